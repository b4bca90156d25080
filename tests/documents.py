"""The written pages as data: their fenced blocks, links, headings and code spans, and how a page's blocks are run.

A page's blocks run in order, and all pages in one process of Python (`run_page.py`): `python` blocks of a page share
their names, `sh` blocks go to bash. Everything happens in a folder that looks like the project's, where a stranger's
own recordings lie too. Lines that would install something are looked up instead of run; a block whose first line says
that it needs the published model, mlx-lm, PyTorch or several processes is looked up as a whole. Blocks of any other
language show something and are not run.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import soundfile

ROOT = Path(__file__).resolve().parents[1]
NEEDS = ("# needs the published model", "# needs mlx-lm", "# needs PyTorch", "# needs several processes")
RUN = ("sh", "python")
INSTALLS = ("make", "pip", "conda", "git", "huggingface-cli", "pre-commit")
SECONDS = 600  # for a page; the machine may be shared
LARGE = 1_000_000  # bytes from which a bundled file is linked to, not copied

# Recordings that a stranger would have: stand-ins of the bundled ones, and the format they are written in.
OWN = {
    "talk.wav": "free_michael.flac", "talk.mp3": "free_michael.flac", "talk.flac": "free_emma.flac",
    "a.wav": "human_0880.flac", "b.wav": "word_emma.flac", "me.wav": "free_nicole.flac",
    "question.wav": "free_belinda.flac",
}  # fmt: skip


@dataclass(frozen=True)
class Block:
    """A fenced block. line : of its first line of text, from 1."""

    page: str
    line: int
    language: str
    text: str

    @property
    def runs(self) -> bool:
        """Whether it can be run with what the project brings."""
        return self.language in RUN and not self.text.startswith(NEEDS)


def blocks(page: str, text: str) -> list[Block]:
    """All fenced blocks of a page, also indented ones."""
    found = []
    for match in re.finditer(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```", text, re.M | re.S):
        indent, language, body = match.groups()
        body = re.sub(rf"^{indent}", "", body, flags=re.M)
        found.append(Block(page, text.count("\n", 0, match.start(3)) + 1, language, body))
    return found


def prose(text: str) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^( *)```.*?^\1```", "", text, flags=re.M | re.S)


def spans(text: str) -> list[str]:
    """The code spans of a page's prose."""
    return re.findall(r"`([^`\n]+)`", prose(text))


def links(text: str) -> list[str]:
    """Targets of the links and pictures of a page's prose."""
    return re.findall(r"\]\(([^()\s]+)\)", prose(text))


def anchors(text: str) -> set[str]:
    """The fragments that a page's headings can be reached by, as the usual hosts of Markdown make them."""
    headings = re.findall(r"^#+ +(.+)$", prose(text), re.M)
    return {re.sub(r"[^\w\- ]", "", h.replace("`", "").lower()).replace(" ", "-") for h in headings}


def commands(text: str) -> list[str]:
    """The lines of an `sh` block, continued ones joined, without comments of their own."""
    lines = text.replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]


def installs(line: str) -> bool:
    """Whether a line makes an environment, or fetches something: looked up, never run."""
    return line.split()[0] in INSTALLS


def words(line: str) -> list[str]:
    """A command's words, up to a comment, pipe or redirection."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|<>&;")
    lexer.whitespace_split = True
    found = []
    for word in lexer:
        if set(word) <= set("|<>&;"):
            break
        found.append(word)
    return found


def stepaudio_commands(block: Block) -> list[list[str]]:
    """The words of every `stepaudio …` in an `sh` block."""
    return [words(line)[1:] for line in commands(block.text) if line.split()[0] == "stepaudio"]


def make_folder(folder: Path) -> None:
    """A folder as a stranger's clone looks to commands, with recordings of their own in it."""

    def copy(source: str, target: str) -> None:
        if os.path.getsize(source) > LARGE:
            os.symlink(source, target)
        else:
            shutil.copy(source, target)

    for name in ("data", "notebooks"):
        shutil.copytree(ROOT / name, folder / name, copy_function=copy)
    for name, clip in OWN.items():
        samples, rate = soundfile.read(ROOT / "data" / "speech" / clip)
        soundfile.write(folder / name, samples, rate)


class Runner:
    """A process that runs pages, one after the other (`run_page.py`)."""

    def __init__(self, folder: Path):
        """Start it; `folder` must have a short name, for the address of a socket is in it."""
        self._programs, address = folder / "bin", str(folder / "socket")
        self._programs.mkdir()
        python, client = shlex.quote(sys.executable), shlex.quote(str(ROOT / "tests" / "run_command.py"))
        for name, call in {"stepaudio": f"-IS {client} {shlex.quote(address)}", "python": ""}.items():
            (self._programs / name).write_text(f'#!/bin/sh\nexec {python} {call} "$@"\n')
            (self._programs / name).chmod(0o755)
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        environment.pop("STEPAUDIO_CHECKPOINT", None)
        self._process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "run_page.py"), address], env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def run(self, page_blocks: list[Block], folder: Path) -> None:
        """Run what runs of a page's blocks, in order. Raises `AssertionError` with what was printed."""
        output = folder / ".printed"
        path = f"{self._programs}{os.pathsep}{os.environ['PATH']}"
        page = {
            "blocks": _todo(page_blocks), "folder": str(folder), "output": str(output),
            "environment": {"PATH": path, "MPLBACKEND": "agg"},
        }  # fmt: skip
        timer = threading.Timer(SECONDS, self._process.kill)
        timer.start()
        print(json.dumps(page), file=self._process.stdin, flush=True)
        status = self._process.stdout.readline()
        timer.cancel()
        printed = output.read_text(encoding="utf-8", errors="replace") if output.exists() else ""
        assert status == "0\n", f"a block failed, status {status!r}:\n{printed[-4000:]}"

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def _todo(page_blocks: list[Block]) -> list[dict]:
    """What runs of a page, without the lines that install something."""
    todo = []
    for block in page_blocks:
        if block.runs:
            lines = [line for line in commands(block.text) if not installs(line)]
            text = "\n".join(lines) if block.language == "sh" else block.text
            todo.append({"page": block.page, "line": block.line, "language": block.language, "text": text})
    return todo
