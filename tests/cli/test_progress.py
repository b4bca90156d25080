"""The line that says what takes long: on a terminal alone, late, and gone without a trace."""

import io
import os
import re
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
import soundfile as sf
import tiny

from stepaudio.cli import progress
from stepaudio.cli.progress import CLEAR, busy, stages


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(progress, "AFTER", 0.05)
    monkeypatch.setattr(progress, "EVERY", 0.02)


def wait_until_it_is_said(stream: Terminal, times: int) -> None:
    """At most 20 s: another thread says it, which a busy machine may keep waiting."""
    for _ in range(1000):
        time.sleep(0.02)
        if stream.getvalue().count("thinking") >= times:
            break


def test_it_says_what_is_done_and_clears_the_line():
    stream = Terminal()
    with busy("thinking", stream):
        wait_until_it_is_said(stream, 2)
    parts = stream.getvalue().split(CLEAR)
    assert parts[0] == "" and parts[-1] == "" and len(parts) > 3
    assert all(re.fullmatch(r"thinking, \d+ s", part) for part in parts[1:-1])


def test_nothing_for_quick_work_or_elsewhere_than_on_a_terminal(monkeypatch):
    for stream in (Terminal(), io.StringIO()):
        if isinstance(stream, Terminal):
            monkeypatch.setattr(progress, "AFTER", 60.0)
        with busy("thinking", stream):
            time.sleep(0.1 if not isinstance(stream, Terminal) else 0)
        assert stream.getvalue() == ""


def test_stages_replace_each_other_on_a_terminal_and_are_lines_elsewhere(monkeypatch):
    found = []
    for stream in (Terminal(), io.StringIO()):
        monkeypatch.setattr(sys, "stderr", stream)
        with stages() as stage:
            stage("one")
            stage("")
            stage("two")
        found.append(stream.getvalue())
    assert found == [f"{CLEAR}one{CLEAR}{CLEAR}two{CLEAR}", "stepaudio: one\nstepaudio: two\n"]


def test_an_error_passes_and_the_line_is_cleared():
    stream = Terminal()
    with pytest.raises(KeyError), busy("thinking", stream):
        wait_until_it_is_said(stream, 1)
        raise KeyError
    assert "thinking" in stream.getvalue() and stream.getvalue().endswith(CLEAR)


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a terminal")
@pytest.mark.parametrize("seconds", [2, 65])
def test_on_a_real_terminal(tiny_checkpoint, tmp_path, seconds):
    """A long recording has a bar over its seconds, a short one the line; the transcript on stdout is left alone."""
    sf.write(tmp_path / "a.wav", tiny.noise(seconds), 16_000)
    code = "import sys; from stepaudio.cli import main, progress; progress.AFTER = 0; sys.exit(main.main())"
    termios, fcntl = pytest.importorskip("termios"), pytest.importorskip("fcntl")
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    done = subprocess.Popen(
        [sys.executable, "-c", code, "transcribe", "a.wav", "--text", "--max-tokens", "3"], stderr=theirs, text=True,
        stdout=subprocess.PIPE, cwd=tmp_path,
        env={**os.environ, "STEPAUDIO_CHECKPOINT": str(tiny_checkpoint), "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    out, _ = done.communicate(timeout=120)
    os.close(theirs)
    shown = b""
    while True:
        try:
            read = os.read(ours, 4096)
        except OSError:  # what Linux says at the end of a terminal
            break
        if not read:
            break
        shown += read
    os.close(ours)
    assert done.returncode == 0 and len(out.splitlines()) == 1
    assert b"loading the model, 0 s" in shown
    assert (b"transcribing a.wav, " in shown) == (seconds < 60) and (b"/65" in shown) == (seconds == 65)
