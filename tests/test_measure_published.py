"""The script that measures the published sizes: commands that exist, and what is kept of those that fail."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

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


def test_what_is_printed_is_kept_whatever_became_of_the_command(script, monkeypatch, tmp_path):
    steps = {
        "info": (60, ["info"], ["--json"]),
        "wrong": (60, ["info", "--jsn"], []),
        "long": (1, ["info"], ["--json"]),
    }
    monkeypatch.setattr(script, "STEPS", steps)
    monkeypatch.setattr(sys, "argv", ["measure", str(tmp_path), "--tiny"])

    def slow(words, stdout, stderr, timeout):
        if timeout < 2:
            stdout.write('{"half": 1}\nhalf a li')
            stdout.flush()
            raise subprocess.TimeoutExpired(words, timeout)
        return subprocess.run(words, stdout=stdout, stderr=stderr, timeout=timeout)

    monkeypatch.setattr(script, "subprocess", SimpleNamespace(run=slow, TimeoutExpired=subprocess.TimeoutExpired))
    assert script.main() == 1
    found = json.loads((tmp_path / "published.json").read_text())["steps"]
    assert found["info"]["status"] == 0 and found["info"]["lines"][0]["backend"]
    assert found["wrong"]["status"] == 2 and "--json" in (tmp_path / "wrong.err").read_text()
    assert found["long"]["status"] == "cut short" and found["long"]["lines"] == [{"half": 1}, "half a li"]


def test_no_step_begins_without_time(script, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["measure", str(tmp_path), "--seconds", "5"])
    assert script.main() == 1
    found = json.loads((tmp_path / "published.json").read_text())["steps"]
    assert {step["status"] for step in found.values()} == {"no time left"} and len(found) == len(script.STEPS)
