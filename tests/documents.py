"""The written pages as data: their fenced blocks, links, headings and code spans, and how a page's blocks are run.

A page's blocks run in order in one process of Python (`run_page.py`): `python` blocks share their names, `sh` blocks go
to bash. Everything happens in a folder that looks like the project's, where a stranger's own recordings lie too. Lines
that would install something are looked up instead of run; a block whose first line says that it needs the published
model, mlx-lm or PyTorch, is looked up as a whole. Blocks of any other language show something and are not run.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import soundfile

ROOT = Path(__file__).resolve().parents[1]
NEEDS = ("# needs the published model", "# needs mlx-lm", "# needs PyTorch")
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


def run_page(page_blocks: list[Block], folder: Path) -> None:
    """Run what runs of a page's blocks, in order. Raises `AssertionError` with what was printed."""
    programs = folder / ".bin"
    programs.mkdir()
    for name, call in {"stepaudio": "-m stepaudio", "python": ""}.items():
        (programs / name).write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {call} "$@"\n')
        (programs / name).chmod(0o755)
    todo = []
    for block in page_blocks:
        if block.runs:
            lines = [line for line in commands(block.text) if not installs(line)]
            text = "\n".join(lines) if block.language == "sh" else block.text
            todo.append({"page": block.page, "line": block.line, "language": block.language, "text": text})
    environment = os.environ | {
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "MPLBACKEND": "agg",
    }  # fmt: skip
    environment.pop("STEPAUDIO_CHECKPOINT", None)
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "run_page.py")], input=json.dumps(todo), cwd=folder, env=environment,
        text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=SECONDS,
    )  # fmt: skip
    assert done.returncode == 0, f"a block failed:\n{done.stdout[-4000:]}"
