"""Contrast decoding against two runs that know nothing of each other, in float64; altered audio; what is refused."""

from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import tiny
from decoded import GREEDY, NET, POLICIES, prompts, run
from reference import decoder_reference, tiny_net

from stepaudio.decoding.generate import Request, collect, generate
from stepaudio.decoding.logits import contrasted, furthest
from stepaudio.decoding.options import DecodingOptions, RunOptions
from stepaudio.decoding.prompt_cache import PromptCache
from stepaudio.decoding.sampling import Contrast, Sampling
from stepaudio.errors import DecodeError
from stepaudio.interp.running import forced_logits, lay_out

DEEP = tiny_net(seed=11, scale=4, layers=4)
SILENCE = Contrast("silence", 1.5)


def logp(x) -> np.ndarray:
    x = np.asarray(x, np.float64)
    return x - np.logaddexp.reduce(x, axis=-1, keepdims=True)


def by_hand(own, other, weight, plausible) -> np.ndarray:
    """The definition, one token at a time."""
    own, p, q = np.asarray(own, np.float64), np.exp(logp(own)), np.exp(logp(other))
    found = np.full(own.shape, -np.inf)
    for at in np.ndindex(own.shape):
        if p[at] >= plausible * p[at[:-1]].max():
            found[at] = own[at] + weight * np.log(p[at] / q[at])
    return found


def two(net, ids, others, spans=()) -> Request:
    """A prompt, and the same prompt with the embeddings of other ids in the place of altered audio."""
    tokens = list(map(int, ids))
    other = Request(tokens, net.embed(np.array(others))[0], spans)
    return Request(tokens, net.embed(np.array(ids))[0], spans, contrasted=lambda contrast: other)


def go(net, requests, contrast, sampling: Any = GREEDY, **options):
    options = RunOptions(replace(sampling, contrast=contrast), **options)
    return collect(generate(net, requests, options), len(requests))


def pairs(n: int):
    rng = np.random.default_rng(5)
    return [(ids, rng.integers(0, 48, len(ids))) for ids in prompts(n)]


# ------------------------------------------------------------------------------- the rule


@pytest.mark.parametrize("plausible", [0.0, 0.1, 1.0])
def test_the_rule_by_hand(plausible):
    own, other = np.random.default_rng(0).normal(size=(2, 3, 20)).astype(np.float32) * 3
    got = np.array(contrasted(mx.array(own), mx.array(other), 0.7, plausible))
    want = by_hand(own, other, 0.7, plausible)
    assert np.array_equal(np.isfinite(got), np.isfinite(want))
    assert np.allclose(got[np.isfinite(got)], want[np.isfinite(want)], atol=1e-5)
    louder = np.array(contrasted(mx.array(own), mx.array(other + 9), 0.7, plausible))  # a distribution has no level
    assert np.allclose(louder[np.isfinite(got)], got[np.isfinite(got)], atol=1e-5)


def test_the_furthest_distribution_by_hand():
    own, *others = np.random.default_rng(2).normal(size=(4, 6, 20)).astype(np.float32) * 2
    got = np.array(furthest(mx.array(own), [mx.array(o) for o in others]))

    def divergence(a, b):
        p, q = np.exp(logp(a)), np.exp(logp(b))
        m = (p + q) / 2
        return (p * np.log(p / m) + q * np.log(q / m)).sum() / 2

    picks = [int(np.argmax([divergence(own[row], o[row]) for o in others])) for row in range(6)]
    assert len(set(picks)) > 1 and all(np.array_equal(got[row], others[pick][row]) for row, pick in enumerate(picks))


# ------------------------------------------------------------------------------- against a second run


@pytest.mark.parametrize("policy", POLICIES)
def test_every_cache_policy(policy):
    """The limit of 19 positions is reached on the way."""
    cache, kept, limit = POLICIES[policy]
    ids, others = np.random.default_rng(17).integers(0, 48, (2, 17))
    (got,) = go(NET, [two(NET, ids, others, ((9, 7),))], SILENCE, cache=cache, max_tokens=20)
    plain = run(NET, ids, spans=((9, 7),), cache=cache, max_tokens=20)
    assert got.tokens != plain.tokens and got.kv_bytes == 2 * plain.kv_bytes
    own, other = (
        decoder_reference(
            NET, NET.embed(np.concatenate([x, got.tokens[:-1]]))[0], kept, limit, cache.positions == "reindexed"
        )[16:]
        for x in (ids, others)
    )
    assert by_hand(own, other, 1.5, 0.1).argmax(axis=1).tolist() == list(got.tokens)
    assert np.allclose(got.logprobs, logp(own)[np.arange(20), got.tokens], atol=1e-3)  # the model's own


@pytest.mark.parametrize("contrast", [SILENCE, Contrast("layers", 1.0, layers=(0, 1, 2))], ids=["audio", "layers"])
@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=0.8, seed=3)], ids=["greedy", "planned, drawn"])
def test_a_batch_gives_what_each_gets_alone(contrast, sampling):
    """Ends at different times, so that sequences leave both runs."""
    options = {"max_tokens": 16, "stop_ids": frozenset([3, 17, 40, 41])}
    requests = [two(DEEP, *pair) for pair in pairs(5)]
    together = go(DEEP, requests, contrast, sampling, **options)
    assert len({len(r.tokens) for r in together}) > 2
    for one, found in zip(requests, together, strict=True):
        (alone,) = go(DEEP, [one], contrast, sampling, **options)
        assert (found.tokens, found.stop) == (alone.tokens, alone.stop)
        assert np.allclose(found.logprobs, alone.logprobs, atol=1e-3)


@pytest.mark.parametrize("against", [{"against": "silence"}, {"against": "layers", "layers": (0,)}], ids=str)
def test_without_weight_it_is_plain_decoding_to_the_bit(against):
    requests = [two(DEEP, *pair) for pair in pairs(3)]
    plain = go(DEEP, requests, None, max_tokens=12)
    assert go(DEEP, requests, Contrast(weight=0, **against), max_tokens=12) == plain
    assert go(DEEP, requests, Contrast(weight=1e-30, **against), max_tokens=12, top=3)[0].tokens == plain[0].tokens
    assert go(DEEP, requests, Contrast(weight=2, **against), max_tokens=12) != plain


def test_the_same_run_on_both_sides_changes_nothing():
    for ids, _ in pairs(3):
        (got,) = go(NET, [two(NET, ids, ids)], SILENCE, max_tokens=12)
        assert got.tokens == run(NET, ids, max_tokens=12).tokens


# ------------------------------------------------------------------------------- against earlier layers


@pytest.mark.parametrize("layers", [(0,), (2,), (0, 1, 2)], ids=str)
def test_an_early_layer_is_the_net_without_those_behind_it(layers):
    ids = prompts(3)[2]
    (got,) = go(DEEP, [two(DEEP, ids, ids)], Contrast("layers", 1.0, layers=layers), max_tokens=16)
    x = DEEP.embed(np.concatenate([ids, got.tokens[:-1]]))[0]

    def up_to(n):
        net = tiny_net(layers=n)
        net.model.layers, net.model.norm, net.lm_head = DEEP.model.layers[:n], DEEP.model.norm, DEEP.lm_head
        return decoder_reference(net, x)[len(ids) - 1 :].astype(np.float32)

    own, others = up_to(4), [mx.array(up_to(i + 1)) for i in layers]
    other = np.array(furthest(mx.array(own), others))
    assert by_hand(own, other, 1.0, 0.1).argmax(axis=1).tolist() == list(got.tokens)
    assert got.tokens != run(DEEP, ids, max_tokens=16).tokens
    assert got.kv_bytes == run(DEEP, ids, max_tokens=16).kv_bytes


# ------------------------------------------------------------------------------- audio


@pytest.fixture(scope="module")
def clip():
    return tiny.noise(1.3, 7)


def test_altered_audio(clip):
    loud = 5 * clip
    assert not Contrast("silence", 1).altered(clip).any()
    noise, other = Contrast("noise", 1).altered(loud), Contrast("noise", 1, seed=1).altered(loud)
    assert noise.std() == pytest.approx(loud.std(), rel=0.02) and abs(np.corrcoef(noise, loud)[0, 1]) < 0.05
    assert np.array_equal(noise, Contrast("noise", 1).altered(loud)) and not np.array_equal(noise, other)
    late = Contrast("shift", 1, seconds=0.5).altered(clip)
    assert not late[:8000].any() and np.array_equal(late[8000:], clip[:-8000])
    assert not Contrast("shift", 1, seconds=2).altered(clip).any()
    for found in (noise, late):
        assert found.shape == clip.shape and found.dtype == np.float32


@pytest.mark.parametrize(
    "contrast",
    [SILENCE, Contrast("noise", 1.5), Contrast("shift", 1.5, seconds=0.5)],
    ids=["silence", "noise", "shift"],
)
def test_the_model_is_contrasted_with_itself_on_altered_audio(tiny_model, clip, contrast):
    sampling = Sampling.greedy(contrast=contrast)
    steps = list(tiny_model.stream(clip, sampling=sampling, max_tokens=8))
    tokens = [s.token for s in steps]
    own, other = (forced_logits(tiny_model, lay_out(tiny_model, x), tokens) for x in (clip, contrast.altered(clip)))
    assert by_hand(own, other, 1.5, 0.1).argmax(axis=1).tolist() == tokens
    assert tokens != [s.token for s in tiny_model.stream(clip, sampling=GREEDY, max_tokens=8)]
    kept = tiny_model.altered(prompt_cache=PromptCache())
    assert [s.token for _ in range(2) for s in kept.stream(clip, sampling=sampling, max_tokens=8)] == 2 * tokens


def test_recordings_that_are_transcribed_together(tiny_model, clip):
    clips, how = [clip, *(tiny.noise(2.1, seed) for seed in range(4))], {"max_tokens": 8, "vad": "off"}

    def tokens(sources, **also):
        return [t.segments[0].tokens for t in tiny_model.transcribe(sources, sampling=GREEDY, **how, **also)]

    together = tokens(clips, contrast=SILENCE)
    assert together == [tokens([x], contrast=SILENCE)[0] for x in clips] != tokens(clips)
    (request,) = tiny_model.engine.transcription_requests(
        [clip], tiny_model.engine.encode_audio([tiny_model.engine.log_mel(clip)]), "go", 0.0
    )
    silent = tiny_model.engine.encode_audio([tiny_model.engine.log_mel(np.zeros_like(clip))])[0]
    start, length = request.spans[0]
    assert np.array_equal(request.contrasted(SILENCE).embeddings[start : start + length], silent)


# ------------------------------------------------------------------------------- what cannot be done


@pytest.mark.parametrize(("named", "given"), [
    ("against", {"against": "music"}), ("weight", {"weight": -1}), ("weight", {"weight": float("nan")}),
    ("weight", {"weight": "much"}), ("plausible", {"plausible": 1.5}), ("seconds", {"seconds": 1.0}),
    ("seconds", {"against": "shift"}), ("seconds", {"against": "shift", "seconds": 0}), ("layers", {"layers": (1,)}),
    ("layers", {"against": "layers"}), ("layers", {"against": "layers", "layers": (-1,)}),
    ("layers", {"against": "layers", "layers": (1, 1)}), ("layers", {"against": "layers", "layers": 2}),
    ("seed", {"seed": -1}), ("seconds", {"against": "layers", "layers": (0,), "seconds": 1}),
], ids=str)  # fmt: skip
def test_what_is_no_contrast_is_refused_when_it_is_made(named, given):
    with pytest.raises(DecodeError, match=f"contrast {named}"):
        Contrast(**{"against": "silence", "weight": 1.0} | given)


def test_what_a_run_cannot_be_contrasted_with():
    with pytest.raises(DecodeError, match="contrast: expected a Contrast or None, found 'silence'"):
        Sampling(contrast="silence")  # type: ignore[arg-type]
    for speculate in ("lookup", "draft"):
        with pytest.raises(DecodeError, match="contrast with speculate"):
            DecodingOptions(Sampling(contrast=SILENCE), speculate=speculate)
    with pytest.raises(DecodeError, match="the prompt of request 0 has no audio"):
        run(NET, [1, 2], Sampling(contrast=SILENCE))
    for layers in ((1,), (0, 7)):
        with pytest.raises(DecodeError, match="expected numbers from 0 to 0"):
            run(NET, [1, 2], Sampling(contrast=Contrast("layers", 1.0, layers=layers)))
    with pytest.raises(DecodeError, match="a decoder of several layers"):
        run(tiny_net(layers=1), [1, 2], Sampling(contrast=Contrast("layers", 1.0, layers=(0,))))


def test_a_text_has_no_audio(tiny_model):
    with pytest.raises(DecodeError, match="no audio"):
        tiny_model.generate_text("Hello", contrast=SILENCE, max_tokens=3)
    assert tiny_model.generate_text("Hello", contrast=Contrast("layers", 1.0, layers=(0,)), max_tokens=3).tokens
