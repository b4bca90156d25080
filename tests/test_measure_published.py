"""The script that measures the published sizes: commands that exist, and what is kept of those that fail."""

import importlib.util
import json
import os
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest

from stepaudio.bench.published import PARTS
from stepaudio.cli.main import parsed

SCRIPT = Path(__file__).resolve().parents[1] / "docs" / "measure_published.py"


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("measure_published", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("tiny", [False, True])
def test_every_command_is_understood(script, tiny):
    for _, command, more in script.STEPS.values():
        assert parsed([*command, *(more if tiny else [])]).run


def test_every_part_of_the_bench_is_in_one_step(script):
    named = [word for _, command, _ in script.STEPS.values() for flag, word in pairwise(command) if flag == "--part"]
    assert sorted(named) == sorted(PARTS)


def ended(pid: int) -> bool:
    """Whether a process is gone within five seconds, or dead and only not yet waited for."""
    for _ in range(50):
        try:
            os.kill(pid, 0)
            if "Z" in subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout:
                return True
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


CHILD = "import time; time.sleep(60)"
SLOW = f"""import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", {CHILD!r}])
print('{{"half": 1}}', child.pid, sep="\\n", end="", flush=True)
child.wait()"""


def test_what_is_printed_is_kept_whatever_became_of_the_command(script, monkeypatch, tmp_path):
    steps = {
        "info": (60, ["info"], ["--json"]),
        "wrong": (60, ["info", "--jsn"], []),
        "long": (5, [SLOW], []),
    }
    monkeypatch.setattr(script, "STEPS", steps)
    monkeypatch.setattr(sys, "argv", ["measure", str(tmp_path), "--tiny"])

    def started(words, **how):
        return subprocess.Popen([sys.executable, "-c", SLOW] if SLOW in words else words, **how)

    monkeypatch.setattr(script, "subprocess", SimpleNamespace(Popen=started, TimeoutExpired=subprocess.TimeoutExpired))
    assert script.main() == 1
    found = json.loads((tmp_path / "published.json").read_text())["steps"]
    assert found["info"]["status"] == 0 and found["info"]["lines"][0]["backend"]
    assert found["wrong"]["status"] == 2 and "--json" in (tmp_path / "wrong.err").read_text()
    first, child = found["long"]["lines"]
    assert found["long"]["status"] == "cut short" and first == {"half": 1}
    assert ended(child), "what a step started ends with it"


def test_no_step_begins_without_time(script, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["measure", str(tmp_path), "--seconds", "5"])
    assert script.main() == 1
    found = json.loads((tmp_path / "published.json").read_text())["steps"]
    assert {step["status"] for step in found.values()} == {"no time left"} and len(found) == len(script.STEPS)


def figure(what: str, side: str, *values: float) -> dict:
    median = sorted(values)[len(values) // 2]
    return {"part": "decode", "what": what, "side": side, "unit": "tokens/s", "median": median, "values": values}


def test_what_was_measured_as_tables(script, monkeypatch, tmp_path, capsys):
    compared = {"rows": [{"stage": "logits", "relative": 2.83e-6, "argmax": 1.0}, {"stage": "adapter", "relative": 1e-6,
                                                                                   "argmax": None}]}  # fmt: skip
    plan = {"weights": 16_630_000_000, "kv": 1_000_000, "peak": 20_000_000_000}
    seen = {"weights": 16_630_000_000, "peak": 10_000_000_000, "use": {"kv": 2_000_000}, "growth": 0}
    steps = {
        "agreement": {"status": 0, "lines": [compared]},
        "speed": {"status": "cut short", "lines": [figure("a", "stepaudio", 150, 155.5, 800),
                                                   figure("b", "stepaudio", 7), figure("a", "mlx-lm", 75, 100, 200),
                                                   "half a li"]},
        "edits": {"status": 0, "lines": [figure("c", "stepaudio", 1.25) | {"unit": "time / plain"}]},
        "memory": {"status": 1, "lines": [{"plans": {"16 bits": plan, "8 bits": {}}, "shown": seen}]},
        "load": {"status": "no time left"},
    }  # fmt: skip
    (tmp_path / "published.json").write_text(json.dumps({"steps": steps}))
    monkeypatch.setattr(sys, "argv", ["measure", str(tmp_path), "--table"])
    assert script.main() == 0
    assert capsys.readouterr().out.splitlines() == [
        "### agreement", "", "| stage | difference by norm | same most probable token |", "| --- | --- | --- |",
        "| logits | 2.8e-06 | 100.0% |", "| adapter | 1.0e-06 |  |", "",
        "### speed (cut short)", "", "| part | what | unit | stepaudio | mlx-lm | stepaudio / mlx-lm |",
        "| --- | --- | --- | --- | --- | --- |", "| decode | a | tokens/s | 156 | 100 | 2.00 (1.55 to 4.00) |",
        "| decode | b | tokens/s | 7 |  |  |", "",
        "### edits", "", "| part | what | unit | stepaudio |", "| --- | --- | --- | --- |",
        "| decode | c | time / plain | 1.25 |", "",
        "### memory (1)", "", "|  | planned, GB | seen, GB | planned / seen |", "| --- | --- | --- | --- |",
        "| weights | 16.630 | 16.630 | 1.000 |", "| keys and values | 0.001 | 0.002 | 0.500 |",
        "| peak | 20.000 | 10.000 | 2.000 |", "", "growth: 0 bytes", "",
        "### load (no time left)",
    ]  # fmt: skip
