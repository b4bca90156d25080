"""The comparison itself on a tiny checkpoint, and the fast CPU forms against float64 numpy and MLX's plain forms."""

import json
import math

import mlx.core as mx
import numpy as np
import pytest
import soundfile
from tiny import RATE, noise

from stepaudio.backend import cpu_ops, ops
from stepaudio.bench import asr, torch_baseline
from stepaudio.cli.main import main
from stepaudio.errors import ConfigError, DataError

WIDE = np.linspace(-40, 40, 3 * cpu_ops.FEW, dtype=np.float32)
phi = np.vectorize(lambda v: 0.5 * math.erfc(-v / math.sqrt(2)))


@pytest.fixture(autouse=True)
def fast_forms_everywhere(monkeypatch):
    """Metal and CUDA would otherwise compare their plain forms with themselves."""
    monkeypatch.setattr(cpu_ops, "vectorless", lambda x: x.dtype == mx.float32)


@pytest.fixture
def manifest(tmp_path):
    rows = ["file\ttext"]
    for i, seconds in enumerate((0.4, 1.3, 0.9)):
        soundfile.write(tmp_path / f"{i}.wav", noise(seconds, i), RATE)
        rows.append(f"{i}.wav\tnothing")
    soundfile.write(tmp_path / "still.wav", np.zeros(RATE), RATE)
    path = tmp_path / "table.tsv"
    path.write_text("\n".join([*rows, "still.wav\t"]))
    return path


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(asr, "MAX_TOKENS", 6)
    monkeypatch.setattr(asr, "CACHE_TOKENS", 5)
    monkeypatch.setattr(asr, "PAUSE", 0)


def test_without_torch_the_table_says_so(manifest, tiny_checkpoint, short, monkeypatch, capsys):
    monkeypatch.setattr(torch_baseline, "available", lambda: False)
    assert asr.run(manifest, tiny_checkpoint, 1) == 0
    out = capsys.readouterr().out
    assert "3 clips" in out and "not installed" in out
    assert "decoder only / cache, 5 tokens" in out and "encoder again" in out
    assert "tokens equal on 3 of 3 clips" in out


def test_the_command_shows_its_stages_and_gives_json(manifest, tiny_checkpoint, short, monkeypatch, capsys):
    """Lines of JSON have the numbers that the table would; stderr says what is measured, a line each on a pipe."""
    monkeypatch.setattr(torch_baseline, "available", lambda: False)
    argv = ["bench", "--model", str(tiny_checkpoint), "--manifest", str(manifest), "--repeats", "1", "--json"]
    assert main(argv) == 0
    out, err = capsys.readouterr()
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["part"] for row in rows][:5] == [*asr.STAGES, "tokens"] and rows[4]["median"] == 3
    assert {row["part"] for row in rows[5:]} == {"caches", "memory"} and all(row["median"] > 0 for row in rows[:8])
    for stage in ("loading", "alone: warming up", "batch: repeat 1 of 1", "no cache, decoder only: repeat 1 of 1"):
        assert sum(line.startswith(f"stepaudio: {stage}") for line in err.splitlines()) == 1


def test_without_a_manifest_a_few_clips_are_measured(manifest, tiny_model, short, monkeypatch, capsys):
    monkeypatch.setattr(torch_baseline, "available", lambda: False)
    monkeypatch.setattr(asr, "speech_manifest", lambda: manifest)
    monkeypatch.setattr(asr, "FEW", 1)
    assert asr.run(None, tiny_model, 1) == 0
    assert "1 clips, 1 s of sound" in capsys.readouterr().out  # of 1.3, 0.9 and 0.4 s


def test_torch_gives_the_same_tokens(manifest, tiny_model, short):
    if not torch_baseline.available():
        pytest.skip("torch and transformers are not installed")
    comparison = asr.Comparison(tiny_model, asr.read_segments(manifest))
    try:
        comparison.measure(1)
    finally:
        comparison.close()
    assert set(comparison.turns) == {"alone", "batch", "torch 1", "torch 2"}
    assert comparison.differing() == []
    assert (
        len({turn.tokens[0] for turn in comparison.turns["alone"]}) == 1
        and len(comparison.turns["alone"][0].tokens[0]) <= 6
    )
    assert "PyTorch" in asr.table(comparison)


def test_other_tokens_are_reported(manifest, tiny_checkpoint, short, monkeypatch):
    monkeypatch.setattr(torch_baseline, "available", lambda: False)
    monkeypatch.setattr(asr, "without_cache", lambda *_: (1, 2, 3))
    assert asr.run(manifest, tiny_checkpoint, 1) == 1


def test_ratios_by_hand():
    ours = [asr.Turn([], np.array([[1.0, 2, 3], [3, 2, 1]]))]
    theirs = [asr.Turn([], np.array([[2.0, 2, 2], [2, 2, 2]]))]
    np.testing.assert_allclose(asr.manifest_ratios(ours, theirs), [[1, 1, 1, 1]])
    np.testing.assert_allclose(asr.clip_ratios(ours, theirs), [[1, 1, 1, 1]])
    np.testing.assert_allclose(
        asr.clip_ratios([asr.Turn([], np.array([[6.0, 1, 1]]))], [asr.Turn([], np.array([[2.0, 1, 1]]))]),
        [[3, 1, 1, 2]],
    )


def test_refusals(tmp_path, manifest, tiny_model):
    with pytest.raises(ConfigError, match="repeats"):
        asr.run(manifest, tiny_model, 0)
    soundfile.write(tmp_path / "still.wav", np.zeros(RATE), RATE)
    (tmp_path / "silence.tsv").write_text("file\ttext\nstill.wav\t\n")
    with pytest.raises(DataError, match="silence"):
        asr.read_segments(tmp_path / "silence.tsv")


# ---------------------------------------------------------------- fast forms


def test_gelu_and_silu():
    x = WIDE.astype(np.float64)
    for quick, wanted in ((ops.gelu, x * phi(x)), (ops.silu, x / (1 + np.exp(-x)))):
        error = np.abs(np.array(quick(mx.array(WIDE))) - wanted)
        assert (error / np.maximum(1, np.abs(x))).max() < 4e-7


def test_exp2_over_its_whole_range():
    x = np.concatenate([np.linspace(-125.9, 127.9, 100_001), np.arange(-125, 128), np.arange(-125, 127) + 0.5])
    x = x.astype(np.float32)
    np.testing.assert_allclose(np.array(cpu_ops.exp2(mx.array(x))), np.exp2(x.astype(np.float64)), rtol=2.5e-7)


def test_log_sum_exp():
    x = np.random.default_rng(0).normal(0, 8, (3, cpu_ops.FEW)).astype(np.float32)
    x[1, ::2] = -np.inf
    x[2] -= 300
    y = x.astype(np.float64)
    top = y.max(1)
    wanted = top + np.log(np.exp(y - top[:, None]).sum(1))
    np.testing.assert_allclose(np.array(ops.log_sum_exp(mx.array(x))), wanted, rtol=1e-6)


def softmax_by_hand(q, k, v, scale, mask):
    k, v = (np.repeat(a.astype(np.float64), q.shape[1] // a.shape[1], axis=1) for a in (k, v))
    scores = q.astype(np.float64) @ k.swapaxes(-1, -2) * scale
    scores = np.where(mask, scores, -np.inf) if mask.dtype == bool else scores + mask
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights @ v / weights.sum(-1, keepdims=True)


@pytest.mark.parametrize("n, L", [(1, 70), (9, 70), (90, 90), (90, 130)])
@pytest.mark.parametrize("kind", ["none", "causal", "seen", "added"])
def test_attention(n, L, kind):
    """Small and large, with heads that share keys, through every kind of mask."""
    rng = np.random.default_rng(n)
    q, k, v = (rng.normal(0, 2, shape).astype(np.float32) for shape in ((2, 4, n, 16), (2, 2, L, 16), (2, 2, L, 16)))
    causal = np.arange(L)[None, :] <= np.arange(L - n, L)[:, None]
    seen = causal & (np.arange(L) >= np.array([0, L - n - 5 if n < L else 0])[:, None, None])[:, None]
    added = np.where(np.arange(L) < L - 4, 0.0, -1e10).astype(np.float32)[None, None, None]
    mask, given = {
        "none": (np.ones((1, L), bool), None),
        "causal": (causal, "causal"),
        "seen": (seen, mx.array(seen)),
        "added": (added, mx.array(added)),
    }[kind]
    found = ops.softmax_attention(mx.array(q), mx.array(k), mx.array(v), 0.25, given)
    np.testing.assert_allclose(np.array(found), softmax_by_hand(q, k, v, 0.25, mask), atol=1e-5)


@pytest.mark.parametrize("offset, n", [(0, 7), (3, 1), (5000, 2), (16_000, 1)])
def test_rope(offset, n):
    """As complex numbers: channel pair (j, j + half) turns by position * base^(-j / half)."""
    x = np.random.default_rng(1).normal(size=(2, 3, n, 16)).astype(np.float32)
    turn = np.exp(1j * np.arange(offset, offset + n)[:, None] * 1e6 ** (-np.arange(8) / 8))
    z = (x[..., :8] + 1j * x[..., 8:]) * turn
    found = np.array(ops.rope(mx.array(x), 16, 1e6, offset))
    np.testing.assert_allclose(found, np.concatenate([z.real, z.imag], axis=-1), atol=2e-6)
