"""The check at the published sizes, rehearsed at small ones: it agrees, and other weights are found out."""

import json
from dataclasses import replace

import pytest
from small_sizes import SIZES

from stepaudio.bench import agreement, torch_baseline
from stepaudio.bench.agreement import Agreement, compare_with_torch, table
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
