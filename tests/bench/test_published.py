"""The bench at the published sizes, at small ones: what it measures is what it says, and the sides do the same work."""

import json

import numpy as np
import pytest
import tiny
from small_sizes import SIZES

from stepaudio.bench import agreement, peers, published, published_sound, tts, turns
from stepaudio.bench.edited import taps_of
from stepaudio.bench.published import Bench, successor_net
from stepaudio.bench.rows import Row
from stepaudio.cli.main import main
from stepaudio.decoding.generate import Request, collect, generate
from stepaudio.errors import ConfigError
from stepaudio.models.kv_cache import NoCache


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.setattr(agreement, "SMALL", SIZES)
    made = Bench(small=True, repeats=1)
    made.n_tokens = 12
    return made


def ours(bench, request: Request, n: int) -> list[int]:
    return list(collect(generate(bench.engine.net, [request], turns.run_options(n)), 1)[0].tokens)


def test_sides_take_turns_and_the_first_round_does_not_count(bench):
    calls, bench.repeats = [], 2

    def side(name):
        return lambda: calls.append(name) or float(len(calls))

    rows = list(bench.rows("part", "s", {("a", "x"): side("x"), ("a", "y"): side("y")}))
    assert calls == ["x", "y"] * 3
    assert [row.values for row in rows] == [(3.0, 5.0), (4.0, 6.0)]
    assert rows[0].to_dict() == {"part": "part", "what": "a", "side": "x", "unit": "s", "median": 4.0, "least": 3.0,
                                 "most": 5.0, "repeats": 2, "values": [3.0, 5.0]}  # fmt: skip


@pytest.mark.parametrize("period", [5, 20, SIZES.text_config.vocab_size])
def test_a_successor_net_says_the_next_token_of_its_block(bench, period):
    net, vocab = successor_net(bench.engine.net, period), SIZES.text_config.vocab_size
    tokens = [0, 1, 2]
    run = turns.run_options(12)
    found = collect(generate(net, [Request(tokens, net.embed(np.array(tokens))[0])], run), 1)[0].tokens
    assert list(found) == [(3 + i) % min(period, vocab) for i in range(12)]


def test_mlx_lm_gives_the_same_tokens(bench):
    if not peers.MlxLm.installed():
        pytest.skip("needs mlx-lm, the extra `mlx-lm`")
    request = bench.request(1.0)
    assert peers.MlxLm(bench.engine.net).tokens(request.embeddings, 12) == ours(bench, request, 12)


def test_pytorch_gives_the_same_tokens(bench):
    if not peers.Torch.installed():
        pytest.skip("torch and transformers are not installed")
    request = bench.request(1.0)
    assert peers.Torch(bench.engine.net).tokens(request.embeddings, 12) == ours(bench, request, 12)


def test_every_part_gives_its_rows(bench, monkeypatch):
    monkeypatch.setattr(published, "Bench", lambda *_: bench)
    monkeypatch.setattr(peers, "found", lambda net: [])
    monkeypatch.setattr(peers.MlxLm, "installed", lambda: False)
    monkeypatch.setattr(published, "CHUNK_SECONDS", 2)
    monkeypatch.setattr(published, "voice_clip", lambda: tiny.noise(1.5))
    monkeypatch.setattr(published_sound, "voice_clip", lambda: tiny.noise(1.5))
    monkeypatch.setattr(tts, "missing", lambda: ["step-audio2"])
    monkeypatch.setattr(published_sound, "missing", lambda _: ["torch"])
    rows = list(published.run(small=True, repeats=1))
    assert all(np.isfinite(row.values).all() and min(row.values) > 0 for row in rows)
    said = {(row.part, row.what): row for row in rows}
    assert said["speculative", "repeating text, lookup"].unit == "tokens/pass"
    assert said["speculative", "repeating text, lookup"].median > 1.5
    assert said["speculative", "text that never repeats, lookup"].median == 1.0
    held = {bits: said["bits", f"{bits} bits, weights"].median for bits in (8, 4)}
    assert held[4] < held[8] < said["load", "weights"].median
    assert {row.part for row in rows} == {"load", "encoder", "prefill", "decode", "sampler", "cache", "batch",
                                          "speculative", "first token", "first sound", "bits", "edits", "token2wav",
                                          "voice"}  # fmt: skip
    assert {row.what for row in rows if row.part == "token2wav" and row.unit == "GB"} == {
        f"{n} s {how}, peak" for n in (2, 4) for how in ("whole", "streamed")
    }
    early, late = (row.median for row in rows if row.part == "first sound")
    assert early < late


def test_the_edits_take_effect_and_their_ratios_are_of_one_round(bench):
    bench.repeats = 2
    rows = list(published.PARTS["edits"](bench))
    speeds = {row.what: row.values for row in rows if row.unit != "time / plain"}
    for row in (row for row in rows if row.unit == "time / plain"):
        plain = speeds[f"{row.what.partition(',')[0]}, plain"]
        assert row.values == tuple(a / b for a, b in zip(plain, speeds[row.what], strict=True))
    request, taps = taps_of(bench.engine, bench.mel, 64, turns.run_options(12), 0)
    assert len(request.tokens) == 64
    net, seen = bench.engine.net, {}
    for name, made in taps.items():
        seen[name] = np.array(net.logits(request.embeddings[None], NoCache(net.model.rope), made()))[0]
    assert next(iter(seen)) == "plain" and len(seen) == 5
    moved = {name: np.abs(logits - seen["plain"]).max() for name, logits in seen.items()}
    assert moved.pop("plain") == 0 and min(moved.values()) > 1e-2, moved


def test_the_command(bench, monkeypatch, capsys):
    monkeypatch.setattr(published, "Bench", lambda *_: bench)
    assert main(["bench", "--published", "--tiny", "--part", "prefill", "--repeats", "1", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {row["part"] for row in rows} == {"prefill"} and rows[0]["side"] == "stepaudio"


def test_whose_rows_are_missing_is_said_once(bench, monkeypatch, capsys):
    monkeypatch.setattr(published, "Bench", lambda *_: bench)
    monkeypatch.setattr(peers, "found", lambda net: [])
    there = {"torch", "einops", "scipy", "flashcosyvoice", "torchaudio", "onnx", "s3tokenizer"}
    monkeypatch.setattr(published, "not_installed", lambda names: [name for name in names if name not in there])
    assert main(["bench", "--published", "--tiny", "--part", "encoder", "--part", "prefill", "--repeats", "1"]) == 0
    assert capsys.readouterr().err.splitlines() == [
        'stepaudio: no rows for mlx-lm of prefill: mlx_lm not installed (pip install "stepaudio[mlx-lm]")',
        "stepaudio: no rows for PyTorch of encoder, prefill: transformers not installed "
        '(pip install "stepaudio[parity]")',
    ]
    assert [line.partition(":")[0] for line in published.without()][2:] == [
        "no rows for step-audio2 of token2wav", "no rows for chatterbox of voice",
    ]  # fmt: skip
    assert published.without(["load"]) == []


@pytest.mark.parametrize(
    "argv",
    [["--tiny"], ["--token2wav", "--tiny", "--model", "data/nano"], ["--part", "load"], ["--published", "--token2wav"],
     ["--published", "--part", "lode"], ["--published", "--repeats", "0"], ["--published", "--model", "data/nano"]],
)  # fmt: skip
def test_what_the_command_refuses(argv, capsys):
    assert main(["bench", *argv]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_rate_leaves_the_first_tokens_out():
    ends = [0.0, 10.0, *(10.0 + 0.5 * i for i in range(1, 23))]  # the second token took ten seconds
    assert peers.rate(ends) == pytest.approx(2.0)


def test_a_row_as_text_and_an_unknown_part():
    assert str(Row("load", "peak", "stepaudio", "GB", (1.5,))).split() == ["load", "peak", "stepaudio", "1.5", "GB"]
    with pytest.raises(ConfigError, match="expected of load"):
        next(published.run(["weights"]))
