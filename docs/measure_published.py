"""All that is measured at the published sizes, in one go, as JSON: agreement, speed, memory. For one GPU of 80 GB.

    python docs/measure_published.py OUT            # 800 seconds at most
    python docs/measure_published.py OUT --tiny     # a rehearsal on a CPU
    python docs/measure_published.py OUT --table    # what lies in OUT, as tables for a page

Every measurement is a command of the package in a process of its own, which may take as long as is said here and no
longer than what is left; what it has printed by then counts. OUT gets a file for each, and `published.json` with all.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

MINI = "stepfun-ai/Step-Audio-2-mini"


def bench(seconds: int, repeats: int, *parts: str) -> tuple[int, list[str], list[str]]:
    """A step of parts of `bench --published`."""
    named = [word for part in parts for word in ("--part", part)]
    return (
        seconds, ["bench", "--published", "--repeats", str(repeats), "--json", *named], ["--tiny", "--repeats", "1"],
    )  # fmt: skip


STEPS: dict[str, tuple[int, list[str], list[str]]] = {  # name -> seconds, command, and what a rehearsal puts behind it
    "speed": bench(150, 3, "decode", "prefill", "encoder"),  # in the order of what is missed most if time runs out
    "edits": bench(80, 3, "edits"),
    "token2wav": bench(140, 3, "token2wav"),
    "memory": (
        90,
        ["plan", MINI, "--dtype", "bfloat16", "--seconds", "600", "--tokens", "256", "--measure", "--lengths", "200",
         "--json"],
        ["--seconds", "3", "--tokens", "4", "--lengths", "3", "--dtype", "float32"],
    ),
    "voice": bench(50, 3, "voice"),
    "choosing": bench(90, 3, "samplers", "caches"),
    "waiting": bench(90, 3, "speculative", "first-token", "first-sound"),
    "batches": bench(90, 2, "batches"),
    "bits": bench(90, 2, "bits"),
    "agreement": (150, ["verify", "--published-size", "--json"], ["--tiny"]),
    "load": bench(90, 2, "load"),
}  # fmt: skip


def main() -> int:
    """Measure all; 1 if a measurement failed or was cut short."""
    parser = argparse.ArgumentParser(description="measure the published sizes")
    parser.add_argument("out", type=Path, help="folder for what is measured")
    parser.add_argument("--seconds", type=float, default=800, help="for all of it")
    parser.add_argument("--tiny", action="store_true", help="a rehearsal at small sizes")
    parser.add_argument("--only", action="append", choices=STEPS, help="this alone; may be given several times")
    parser.add_argument("--table", action="store_true", help="measure nothing; print what OUT holds")
    options = parser.parse_args()
    if options.table:
        print(tables(json.loads((options.out / "published.json").read_text(encoding="utf-8"))))
        return 0
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
        process = subprocess.Popen(words, stdout=said, stderr=errors, start_new_session=True)
        try:
            status: int | str = process.wait(seconds)
        except subprocess.TimeoutExpired:
            status = "cut short"
            os.killpg(process.pid, signal.SIGKILL)  # with what it started, which would disturb the next
            process.wait()
    lines = [as_json(line) for line in out.read_text(encoding="utf-8").splitlines()]
    return {"status": status, "seconds": round(time.monotonic() - began, 1), "command": command, "lines": lines}


def as_json(line: str) -> object:
    """What a line says, or the line itself."""
    try:
        return json.loads(line)
    except ValueError:
        return line


# ---------------------------------------------------------------- what was measured, as tables


def tables(found: dict) -> str:
    """Each step that printed something, in Markdown; of a step that did not end well its status."""
    parts = []
    for name, step in found["steps"].items():
        lines = [line for line in step.get("lines", []) if isinstance(line, dict)]
        ended = "" if step["status"] == 0 else f" ({step['status']})"
        shown = {"agreement": agreement, "memory": memory}.get(name, speed)
        parts += [f"### {name}{ended}", *([shown(lines)] if lines else [])]
    return "\n\n".join(parts)


def grid(head: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def agreement(lines: list[dict]) -> str:
    """Of `verify --published-size`."""
    rows = [
        [row["stage"], f"{row['relative']:.1e}", "" if row["argmax"] is None else f"{row['argmax']:.1%}"]
        for row in lines[0]["rows"]
    ]
    return grid(["stage", "difference by norm", "same most probable token"], rows)


def speed(lines: list[dict]) -> str:
    """Of `bench --published`: a row for each figure, a column for each program; medians.

    Behind them what is here over what is elsewhere: of each repeat, since both took turns; the median of these.
    """
    sides = list(dict.fromkeys(line["side"] for line in lines))
    found: dict[tuple[str, str, str], dict[str, dict]] = {}
    for line in lines:
        found.setdefault((line["part"], line["what"], line["unit"]), {})[line["side"]] = line
    others = [side for side in sides[1:] if any({sides[0], side} <= set(row) for row in found.values())]
    rows = []
    for names, row in found.items():
        medians = [f"{row[side]['median']:.3g}" if side in row else "" for side in sides]
        rows.append([*names, *medians, *(ratio(row.get(sides[0]), row.get(side)) for side in others)])
    return grid(["part", "what", "unit", *sides, *(f"{sides[0]} / {side}" for side in others)], rows)


def ratio(line: dict | None, other: dict | None) -> str:
    """One figure over another, repeat by repeat; nothing where one is missing."""
    if line is None or other is None:
        return ""
    pairs = [a / b for a, b in zip(line["values"], other["values"], strict=False) if b]
    return f"{statistics.median(pairs):.2f} ({min(pairs):.2f} to {max(pairs):.2f})" if pairs else ""


def memory(lines: list[dict]) -> str:
    """Of `plan --measure`: the first of the plans, which is the one that was run, beside what was seen; in GB."""
    plan, seen = next(iter(lines[0]["plans"].values())), lines[0]["shown"]
    pairs = {"weights": (plan["weights"], seen["weights"]), "keys and values": (plan["kv"], seen["use"]["kv"]),
             "peak": (plan["peak"], seen["peak"])}  # fmt: skip
    rows = [[name, f"{a / 1e9:.3f}", f"{b / 1e9:.3f}", f"{a / b:.3f}"] for name, (a, b) in pairs.items()]
    return grid(["", "planned, GB", "seen, GB", "planned / seen"], rows) + f"\n\ngrowth: {seen['growth']} bytes"


if __name__ == "__main__":
    sys.exit(main())
