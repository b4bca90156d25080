"""Helpers of the tests of the commands: what they print, a table to score, a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

FEW = ["--max-tokens", "6"]


def unreadable(tmp_path) -> Path:
    path = tmp_path / "text.wav"
    path.write_text("this is no sound")
    return path


def one_line(err: str) -> str:
    lines = err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("stepaudio: ") and "Traceback" not in err
    return lines[0]


def table(tmp_path, text):
    (tmp_path / "m.tsv").write_text(text, encoding="utf-8")
    return tmp_path / "m.tsv"


def as_process(tiny_checkpoint, *argv, **more):
    environment = {**os.environ, "STEPAUDIO_CHECKPOINT": str(tiny_checkpoint), "PYTHONUTF8": "1"}
    return subprocess.run(
        [sys.executable, "-m", "stepaudio", *map(str, argv)],
        **({"capture_output": True, "encoding": "utf-8", "timeout": 120} | more),
        env=environment,
        cwd=Path(__file__).parents[1],
    )
