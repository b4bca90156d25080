"""The check at the published sizes, rehearsed at small ones: it agrees, and other weights are found out."""

import io
import json
import signal
import time
from contextlib import contextmanager
from dataclasses import replace

import pytest
from small_sizes import SIZES

from stepaudio.bench import agreement, torch_baseline
from stepaudio.bench.agreement import Agreement, compare_with_torch, table
from stepaudio.cli import checkpoints, progress
from stepaudio.cli.main import main
from stepaudio.errors import ConfigError


@pytest.fixture
def with_torch(monkeypatch):
    if not torch_baseline.available():
        pytest.skip("torch and transformers are not installed")
    monkeypatch.setattr(agreement, "SMALL", SIZES)


def test_both_compute_the_same(with_torch):
    found = compare_with_torch(small=True)
    assert all(row.good for row in found)
    assert [row.stage for row in found if row.limit] == ["adapter, float32", "logits, float32"]
    rough = [row.relative for row in found if row.limit is None]
    assert all(1e-4 < r < 0.1 for r in rough)  # bfloat16 differs, on both sides alike


def test_a_tensor_that_differs_is_off(with_torch, monkeypatch, capsys):
    """One norm of a layer, scaled by a hundredth."""
    whole = agreement.torch_tensors

    def other(net, device):
        tensors = whole(net, device)
        name = "model.layers.1.post_attention_layernorm.weight"
        return tensors | {name: tensors[name] * 1.01}

    monkeypatch.setattr(agreement, "torch_tensors", other)
    assert main(["verify", "--published-size", "--tiny", "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert not said["good"] and [row["good"] for row in said["rows"]] == [True, False, True, True]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def terminal(monkeypatch) -> Terminal:
    """Standard error from here on, where progress is shown at once."""
    monkeypatch.setattr(progress, "AFTER", 0.0)
    monkeypatch.setattr(progress, "EVERY", 0.01)
    monkeypatch.setattr("sys.stderr", found := Terminal())
    return found


def test_stages_are_shown_in_their_order_and_json_is_as_without(with_torch, monkeypatch, capsys):
    """Every stage runs within its line: here each is held up until it stands there."""
    begun, shown = [], terminal(monkeypatch)

    @contextmanager
    def held(what):
        begun.append(what)
        with progress.busy(what):
            for _ in range(500):
                if what in shown.getvalue():
                    break
                time.sleep(0.01)
            yield

    monkeypatch.setattr(checkpoints, "busy", held)
    assert main(["verify", "--published-size", "--tiny", "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["good"] and [what.rpartition(" (")[0] for what in begun] == list(agreement.STAGES)
    lines = [part.rpartition(",")[0] for part in shown.getvalue().split(progress.CLEAR) if part]
    assert list(dict.fromkeys(lines)) == begun and begun[-1].endswith("(6 of 6)")


@pytest.mark.parametrize("where", ["_ours", "torch_tensors", "_theirs"])
def test_ctrl_c_in_any_stage_ends_with_one_word(with_torch, monkeypatch, capsys, where):
    shown = terminal(monkeypatch)
    monkeypatch.setattr(agreement, where, lambda *_: signal.raise_signal(signal.SIGINT))
    assert main(["verify", "--published-size", "--tiny", "--json"]) == 130
    assert shown.getvalue().endswith(f"{progress.CLEAR}stepaudio: interrupted\n") and not capsys.readouterr().out


def test_the_verdict():
    row = Agreement("logits", 1e-5, 1.0, 1e-4)
    assert row.good and not replace(row, relative=2e-4).good and not replace(row, argmax=0.99).good
    assert replace(row, limit=None, relative=1.0).good and "off" in table([replace(row, argmax=0.99)])
    assert not replace(row, relative=float("nan")).good


def test_without_torch_one_line_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(torch_baseline, "available", lambda: False)
    assert main(["verify", "--published-size", "--tiny"]) == 2
    assert "stepaudio[parity]" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [[], ["--tiny"], ["goldens", "--published-size"], ["goldens", "--tiny"]])
def test_what_the_command_refuses(argv, capsys):
    assert main(["verify", *argv]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_seed_below_zero(with_torch):
    with pytest.raises(ConfigError, match="seed"):
        compare_with_torch(small=True, seed=-1)
