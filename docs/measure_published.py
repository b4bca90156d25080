"""All that is measured at the published sizes, in one go, as JSON: agreement, speed, memory. For one GPU of 80 GB.

    python docs/measure_published.py OUT            # eight minutes at most
    python docs/measure_published.py OUT --tiny     # a rehearsal on a CPU

Every measurement is a command of the package in a process of its own, which may take as long as is said here and no
longer than what is left; what it has printed by then counts. OUT gets a file for each, and `published.json` with all.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from pathlib import Path

MINI = "stepfun-ai/Step-Audio-2-mini"
STEPS: dict[str, tuple[int, list[str], list[str]]] = {  # name -> seconds, command, and what a rehearsal puts behind it
    "agreement": (90, ["verify", "--published-size", "--json"], ["--tiny"]),
    "speed": (270, ["bench", "--published", "--repeats", "2", "--json"], ["--tiny", "--repeats", "1"]),
    "memory": (
        100,
        ["plan", MINI, "--dtype", "bfloat16", "--seconds", "600", "--tokens", "256", "--measure", "--lengths", "200",
         "--json"],
        ["--seconds", "3", "--tokens", "4", "--lengths", "3", "--dtype", "float32"],
    ),
    "token2wav": (80, ["bench", "--token2wav"], ["--tiny", "--repeats", "1"]),
}  # fmt: skip


def main() -> int:
    """Measure all; 1 if a measurement failed or was cut short."""
    parser = argparse.ArgumentParser(description="measure the published sizes")
    parser.add_argument("out", type=Path, help="folder for what is measured")
    parser.add_argument("--seconds", type=float, default=480, help="for all of it")
    parser.add_argument("--tiny", action="store_true", help="a rehearsal at small sizes")
    parser.add_argument("--only", action="append", choices=STEPS, help="this alone; may be given several times")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    began, found = time.monotonic(), {}
    for name in options.only or STEPS:
        left = options.seconds - (time.monotonic() - began)
        found[name] = measured(name, options, min(STEPS[name][0], left)) if left > 10 else {"status": "no time left"}
        print(name, found[name]["status"], found[name].get("seconds", ""), flush=True)
        about = {"system": platform.platform(), "tiny": options.tiny, "steps": found}
        (options.out / "published.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    return int(any(step["status"] != 0 for step in found.values()))


def measured(name: str, options: argparse.Namespace, seconds: float) -> dict:
    """One step: its exit status or "cut short", seconds, and lines of standard output, JSON where they are such."""
    _, command, tiny = STEPS[name]
    command = [word if word != MINI or not options.tiny else "data/nano" for word in command]
    out, began = options.out / f"{name}.txt", time.monotonic()
    words = [sys.executable, "-m", "stepaudio", *command, *(tiny if options.tiny else [])]
    with out.open("w", encoding="utf-8") as said, (options.out / f"{name}.err").open("w", encoding="utf-8") as errors:
        try:
            status: int | str = subprocess.run(words, stdout=said, stderr=errors, timeout=seconds).returncode
        except subprocess.TimeoutExpired:
            status = "cut short"
    lines = [as_json(line) for line in out.read_text(encoding="utf-8").splitlines()]
    return {"status": status, "seconds": round(time.monotonic() - began, 1), "command": command, "lines": lines}


def as_json(line: str) -> object:
    """What a line says, or the line itself."""
    try:
        return json.loads(line)
    except ValueError:
        return line


if __name__ == "__main__":
    sys.exit(main())
