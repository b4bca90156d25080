"""Speculative decoding against plain decoding: every cache policy, every rule, loops, stops; draws against the odds."""

from itertools import pairwise
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import tiny
from decoded import CIRCLE, COUNTING, GREEDY, NET, OUT, POLICIES, SAMPLINGS, STUCK, prompts, request, run
from reference import chain_net, decoder_reference, tiny_net

from stepaudio.decoding.generate import Request, Run, collect, generate
from stepaudio.decoding.options import RunOptions
from stepaudio.decoding.sampler import Sampler
from stepaudio.decoding.sampling import Penalties, Sampling
from stepaudio.decoding.speculative import Drafts, Lookup, agreement
from stepaudio.engine import Engine
from stepaudio.errors import DecodeError
from stepaudio.model import StepAudio2
from stepaudio.models.kv_cache import CachePolicy
from stepaudio.text.tokenizer import Tokenizer

DRAFTS = {"itself": NET, "another": tiny_net(seed=8, scale=4, layers=1), "lookup": None}
ANYBODY = Sampler(GREEDY, [[0]])  # a lookup does not ask how tokens are chosen
REPETITIVE = [*range(10), *range(10), *range(5)]


def guessed(net, ids, draft, sampling: Any = GREEDY, spans: Any = (), **options) -> Any:
    """A run by speculative decoding."""
    one = request(net, ids, spans)
    own = None if draft is None else (draft, request(draft, ids, spans))
    one = Request(one.tokens, one.embeddings, one.spans, own)
    options = RunOptions(sampling, speculate="lookup" if draft is None else "draft", **options)
    return collect(generate(net, [one], options), 1)[0]


def check_same(got: Run, want: Run) -> None:
    assert (got.tokens, got.stop, got.loop) == (want.tokens, want.stop, want.loop)
    assert np.allclose(got.logprobs, want.logprobs, atol=1e-3)
    assert want.drafts is None and got.drafts is not None and got.drafts.tokens == len(got.tokens)
    assert got.drafts.tokens <= got.drafts.passes + got.drafts.accepted


# ------------------------------------------------------------------------------- the same tokens


@pytest.mark.parametrize("draft", DRAFTS)
@pytest.mark.parametrize("policy", POLICIES)
def test_every_cache_policy(policy, draft):
    """The limit of 19 positions is reached on the way."""
    cache, prompt, k = POLICIES[policy][0], np.random.default_rng(17).integers(0, 12, 17), 4
    for sampling in (GREEDY, Sampling(temperature=0.5, seed=3)):
        want = run(NET, prompt, sampling, ((9, 7),), cache=cache, max_tokens=25)
        got = guessed(NET, prompt, DRAFTS[draft], sampling, ((9, 7),), cache=cache, max_tokens=25, draft_tokens=k)
        check_same(got, want)


RULES = SAMPLINGS | {
    "literal": Sampling.literal(),
    "drawn by all rules": Sampling(
        temperature=1.1, top_k=30, top_p=0.9, min_p=0.02, seed=9,
        text=Penalties(1.2, 0.3, 0.1, 3, 9, True), audio=Penalties(1.1, no_repeat_ngram=2),
    ),
    "window of one": Sampling.greedy(frequency=2.0, window=1),
    "all rules, greedy": Sampling(
        text=Penalties(1.3, 0.2, 0.1, 2, None, True), audio=Penalties(presence=0.5, window=3)
    ),
}  # fmt: skip


@pytest.mark.parametrize("sampling", RULES)
def test_every_rule(sampling):
    ids = prompts(2)[1]
    options = {"max_tokens": 40, "stop_ids": frozenset([3]), "on_loop": "escape", "audio_range": (30, 48)}
    want = run(NET, ids, RULES[sampling], **options)
    for draft in DRAFTS.values():
        check_same(guessed(NET, ids, draft, RULES[sampling], draft_tokens=3, **options), want)


@pytest.mark.parametrize("k", [3, 40])
@pytest.mark.parametrize("draft", ["itself", "lookup"])
@pytest.mark.parametrize(("table", "start"), [(CIRCLE, 3), (STUCK, 7)])
def test_loops_end_and_are_escaped_at_the_same_token(table, start, draft, k):
    net = chain_net(table | OUT)
    for on_loop, more in (
        ("escape", {"stop_ids": frozenset([15])}), ("stop", {}), ("report", {}),
        ("escape", {"sampling": Sampling.greedy(escape=Penalties())}),
    ):  # fmt: skip
        options = {"max_tokens": 100, "on_loop": on_loop, "draft_tokens": k, **more}
        want = run(net, [start], **{key: value for key, value in options.items() if key != "draft_tokens"})
        check_same(guessed(net, [start], net if draft == "itself" else None, **options), want)


def test_stops_within_a_pass():
    net, seen = chain_net(COUNTING), []

    def ends_after_four():
        seen.clear()
        return lambda token: seen.append(token) or len(seen) == 4

    for draft in (net, None):
        for options in (
            {"max_tokens": 9, "stop_ids": frozenset([4])}, {"max_tokens": 1}, {"max_tokens": 6},
            {"max_tokens": 9, "should_stop": ends_after_four}, {"max_tokens": 9, "top": 3},
        ):  # fmt: skip
            for k in (1, 3, 20):
                got = guessed(net, [0, 1, 2, 0], draft, draft_tokens=k, **options)
                check_same(got, run(net, [0, 1, 2, 0], GREEDY, (), **options))
    assert seen == [1, 2, 3, 4]  # a stop function sees no token that was taken back, and none behind the end


def test_a_batch_gives_each_row_its_own_tokens():
    requests = [request(NET, p) for p in prompts(5)]
    plain = collect(generate(NET, requests, RunOptions(Sampling(), max_tokens=20)), 5)
    guesses = collect(generate(NET, requests, RunOptions(Sampling(), max_tokens=20, speculate="lookup")), 5)
    for got, want in zip(guesses, plain, strict=True):
        check_same(got, want)


# ------------------------------------------------------------------------------- drawn by the model's own odds


@pytest.mark.parametrize("draft", ["another", "lookup"])
def test_draws_follow_the_odds(draft):
    """The first two tokens of 250 seeds, as pairs, against the exact odds in float64: Pearson's chi-square."""
    net, n, vocab = tiny_net(seed=3, scale=1.5, vocab=8), 250, 8
    other = tiny_net(seed=4, scale=1.5, vocab=8) if draft == "another" else None
    prompt = [1, 2, 3, 1, 2, 4, 1, 2, 5, 6, 7, 0, 6, 1, 5, 1, 3, 2]
    table = np.array(net.embed(np.arange(vocab))[0], dtype=np.float64)

    def odds(ids):
        logits = decoder_reference(net, table[ids])[-1] / 1.3
        shares = np.exp(logits - logits.max())
        return shares / shares.sum()

    want = np.concatenate([p * odds([*prompt, i]) for i, p in enumerate(odds(prompt))])
    counts, accepted = np.zeros(vocab**2), 0
    for seed in range(n):
        got = guessed(net, prompt, other, Sampling.greedy(temperature=1.3, seed=seed), max_tokens=3, draft_tokens=1)
        counts[got.tokens[0] * vocab + got.tokens[1]] += 1
        accepted += got.drafts.accepted
    order = np.argsort(-want)
    groups = np.array_split(order, np.flatnonzero(np.diff(np.cumsum(want[order]) // (8 / n))) + 1)
    expected = np.array([want[g].sum() * n for g in groups])
    statistic = ((np.array([counts[g].sum() for g in groups]) - expected) ** 2 / expected).sum()
    assert len(groups) > 10 and 15 < accepted < n
    free = len(groups) - 1
    assert statistic < free * (1 - 2 / (9 * free) + 3.09 * (2 / (9 * free)) ** 0.5) ** 3  # 0.999 (Wilson and Hilferty)


# ------------------------------------------------------------------------------- what it saves


def test_a_draft_that_is_the_model_itself_is_always_right():
    for sampling in (GREEDY, Sampling(), Sampling.reference("chat")):
        got = guessed(NET, REPETITIVE, NET, sampling, max_tokens=41, draft_tokens=4, on_loop="off")
        assert got.drafts == Drafts(proposed=32, accepted=32, tokens=41, passes=9)
        assert got.drafts.acceptance == 1 and got.drafts.tokens_per_pass == 41 / 9


def test_passes_are_counted_as_the_net_makes_them(monkeypatch):
    fed, decode = [], type(NET.model).__call__
    monkeypatch.setattr(
        type(NET.model), "__call__", lambda net, x, *rest: fed.append(x.shape[1]) or decode(net, x, *rest)
    )
    got = guessed(chain_net(CIRCLE), [3, 4, 5, 3], None, max_tokens=21, draft_tokens=4, on_loop="off")
    assert fed == [4, 5, 5, 5, 5] and got.drafts == Drafts(16, 16, 21, 5)


def test_lookup_repeats_what_came_last():
    lookup = Lookup([1, 2, 3, 9, 1, 2, 4, 5, 1, 2])
    assert lookup.propose(ANYBODY, [False] * 4) == [4, 5, 1, 2]
    lookup.learn([3])
    assert lookup.propose(ANYBODY, [False] * 3) == [9, 1, 2]  # three tokens in a row count before two
    lookup.learn([7])
    assert lookup.propose(ANYBODY, [False] * 3) == []
    lookup.learn([7, 7])
    assert lookup.propose(ANYBODY, [False] * 5) == [7] * 5  # the end overlaps with what it repeats
    assert Lookup([1]).propose(ANYBODY, [False]) == Lookup([]).propose(ANYBODY, [False]) == []


def test_counting():
    assert agreement([1, 2, 3], [1, 2, 4]) == 2 and agreement([], [1]) == 0 and agreement([1], [1, 2]) == 1
    assert Drafts().acceptance == Drafts().tokens_per_pass == 0
    assert Drafts(4, 2, 5, 3) + Drafts(4, 2, 1, 1) == Drafts(8, 4, 6, 4)


def test_time_goes_on():
    steps = list(generate(NET, [request(NET, REPETITIVE)], RunOptions(GREEDY, max_tokens=9, speculate="lookup")))
    assert all(a.seconds < b.seconds for a, b in pairwise(steps)) and steps[0].seconds > 0
    got = collect(iter(steps), 1)[0]
    assert (got.first_seconds, got.seconds) == (steps[0].seconds, steps[-1].seconds)


# ------------------------------------------------------------------------------- what it holds, and what it refuses


@pytest.mark.parametrize("policy", POLICIES)
def test_what_was_taken_back_is_not_held(policy):
    """A cache that took positions on trial goes on as one that never had them."""
    cache, kept, limit = POLICIES[policy]
    layers, ids = NET.config.text_config.num_hidden_layers, np.random.default_rng(5).integers(0, 48, 40)
    x, wrong = NET.embed(ids), NET.embed(np.flip(ids).copy())
    held, at = cache.build(layers, NET.model.rope, spans=((9, 7),)), 0
    logits = []
    for n, stays in ((13, 13), (4, 1), (4, 4), (3, 0), (5, 2), (1, 1), (4, 2), (2, 2), (5, 3), (1, 0), (6, 5)):
        n = min(n, held.room(n)) if n > 1 else n
        if n > 1 and at:
            stays = min(stays, n)
            held.hold()
            mixed = mx.concatenate([x[:, at : at + stays], wrong[:, at + stays : at + n]], axis=1)
            logits.append(np.array(NET.logits(mixed, held))[0, :stays])
            held.settle(stays)
        else:
            stays = n
            logits.append(np.array(NET.logits(x[:, at : at + n], held))[0])
        at += stays
        assert held.offset == at and (limit is None or len(held.held) <= limit)
    want = decoder_reference(NET, x[0, :at], kept, limit, cache.positions == "reindexed")
    assert np.abs(np.concatenate(logits) - want).max() < 1e-3 * np.sqrt(np.mean(want**2))


@pytest.mark.parametrize(
    "option", [{"speculate": "lookpu"}, {"speculate": None}, {"draft_tokens": 0}, {"draft_tokens": 1.5}], ids=str
)
def test_refuses_options_out_of_range(option):
    with pytest.raises(DecodeError, match=next(iter(option))):
        RunOptions(**option)


def test_refusals():
    one = request(NET, [1, 2, 3])
    with pytest.raises(DecodeError, match=r"model.altered\(draft"):
        next(generate(NET, [one], RunOptions(speculate="draft")))
    with pytest.raises(DecodeError, match="speculate='off'"):
        next(generate(NET, [one], RunOptions(speculate="lookup"), lambda name, x: None))
    with pytest.raises(DecodeError, match="request 1"):
        list(generate(NET, [one, Request([], one.embeddings[:0])], RunOptions(speculate="lookup", max_tokens=2)))
    with pytest.raises(DecodeError, match="cannot hold"):
        guessed(NET, np.arange(30), None, spans=((9, 12),), cache=CachePolicy("pinned", 16))


# ------------------------------------------------------------------------------- with a whole model


@pytest.fixture(scope="module")
def pair(tiny_model, tmp_path_factory):
    """The tiny model, and the same with a draft of other weights."""
    draft = StepAudio2.load(tiny.write(tmp_path_factory.mktemp("draft"), seed=1))
    return tiny_model, tiny_model.altered(draft=draft)


ASK = [{"role": "human", "content": [{"type": "audio", "audio": tiny.noise(0.9)}, {"type": "text", "text": "what?"}]}]


@pytest.mark.parametrize("speculate", ["lookup", "draft"])
def test_all_ways_of_generating_give_the_same(pair, speculate):
    model, drafted = pair
    options = {"max_tokens": 12, "speculate": speculate}
    recordings = [tiny.noise(1.5, 1), tiny.noise(0.8, 2)]
    got, want = (
        drafted.transcribe(recordings, vad="off", **options),
        model.transcribe(recordings, vad="off", max_tokens=12),
    )
    for a, b in zip(got, want, strict=True):
        assert [(s.text, s.tokens, s.stop) for s in a.segments] == [(s.text, s.tokens, s.stop) for s in b.segments]
        assert a.drafts.tokens == len(a.segments[0].tokens) + (a.segments[0].stop == "eos") and b.drafts is None
        assert a.first_token_seconds > 0 < b.first_token_seconds
    for name in ("generate_with_audio", "generate_text", "generate_audio_tokens"):
        got, want = getattr(drafted, name)(ASK, **options), getattr(model, name)(ASK, max_tokens=12)
        assert (got.tokens, got.codes, got.text, got.stop) == (want.tokens, want.codes, want.text, want.stop)
        assert got.drafts.tokens == 12 and want.drafts is None and 0 < got.first_token_seconds <= got.seconds
    steps = list(drafted.stream(tiny.noise(0.8, 2), vad="off", **options))
    assert [s.token for s in steps] == [s.token for s in model.stream(tiny.noise(0.8, 2), vad="off", max_tokens=12)]
    assert steps[-1].drafts.passes <= 12


def test_a_draft_reads_the_audio(tiny_model):
    """Only with the same audio does a model agree with itself at every token."""
    got = tiny_model.altered(draft=tiny_model).generate_text(ASK, max_tokens=21, speculate="draft", sampling="greedy")
    assert got.drafts == Drafts(16, 16, 21, 5)


def test_refuses_a_draft_with_other_tokens(tiny_model, tmp_path):
    other = Tokenizer.train(["some other words in here"], vocab_size=300, n_audio=tiny.N_AUDIO)
    other.save(tmp_path)
    words = StepAudio2(Engine(tiny_model.net, Tokenizer.from_folder(tmp_path)), tiny_model.report)
    nets = StepAudio2(Engine(tiny_net(), None), tiny_model.report)
    for draft, match in ((words, "other ids"), (nets, "tokens of the vocabulary, as the model has, found 48")):
        with pytest.raises(DecodeError, match=match):
            tiny_model.altered(draft=draft)
    with pytest.raises(DecodeError, match=r"altered\(draft"):
        tiny_model.transcribe(tiny.noise(0.5), vad="off", speculate="draft")
