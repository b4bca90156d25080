"""Logit processors of the caller's own: what they are given, where they stand among the rules, what is refused."""

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from decoded import GREEDY, NET, POLICIES, SAMPLINGS, prompts, request, run
from reference import drawn_reference, rules_reference

from stepaudio.decoding.generate import Request, collect, generate
from stepaudio.decoding.options import RunOptions
from stepaudio.decoding.sampler import HISTORY_BLOCK, Sampler
from stepaudio.decoding.sampling import Penalties, Sampling
from stepaudio.errors import DecodeError

ONCE = Sampling(text=Penalties(no_repeat_ngram=1, include_prompt=True))


def identity(ids, logits):
    return logits


def once(ids, logits):
    """No token twice, of prompt and answer: the rule of `ONCE`, written by itself."""
    return mx.where((ids[:, :, None] == mx.arange(logits.shape[1])).any(axis=1), -mx.inf, logits)


def batch(net, ids, sampling, **options):
    return collect(generate(net, [request(net, i) for i in ids], RunOptions(sampling, **options)), len(ids))


def same(got, want):
    assert (got.tokens, got.logprobs, got.stop) == (want.tokens, want.logprobs, want.stop)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_an_identity_changes_no_bit(sampling):
    plain, ids = SAMPLINGS[sampling], prompts(3)
    seen = replace(plain, processors=[identity, identity])
    for one, other in zip(batch(NET, ids, seen, max_tokens=20), batch(NET, ids, plain, max_tokens=20), strict=True):
        same(one, other)


@pytest.mark.parametrize("policy", POLICIES)
def test_every_cache_policy(policy):
    cache, prompt = POLICIES[policy][0], np.random.default_rng(17).integers(0, 12, 17)
    own = Sampling.greedy(processors=(once,))
    for sampling, want in ((Sampling.greedy(processors=(identity,)), GREEDY), (own, ONCE)):
        got, want = (run(NET, prompt, s, ((9, 7),), cache=cache, max_tokens=12) for s in (sampling, want))
        same(got, want)


def test_a_batch_gives_what_each_gets_alone():
    """Ends at different times, so that sequences leave; a rule that counts, written twice."""
    ids, options = prompts(5), {"max_tokens": 30, "stop_ids": frozenset([3, 17, 40])}
    own = batch(NET, ids, Sampling.greedy(processors=(once,)), **options)
    assert len({len(r.tokens) for r in own}) > 2
    for got, i in zip(own, ids, strict=True):
        want = run(NET, i, ONCE, **options)
        assert (got.tokens, got.stop) == (want.tokens, want.stop)


@pytest.mark.parametrize("speculate", ["lookup", "draft"])
def test_proposed_tokens_are_checked_by_processors_too(speculate):
    ids = [*range(10), *range(10), *range(5)]
    one = request(NET, ids)
    one = Request(one.tokens, one.embeddings, draft=(NET, one))
    for sampling in (Sampling.greedy(processors=(once,)), Sampling(temperature=0.7, seed=2, processors=(once,))):
        (got,) = collect(generate(NET, [one], RunOptions(sampling, speculate=speculate, max_tokens=20)), 1)
        assert got.tokens == run(NET, ids, sampling, max_tokens=20).tokens
        assert got.drafts.accepted or speculate == "lookup"


def test_what_a_processor_is_given():
    """Prompt and answer, packed to the right; also where the buffer of ids grows, and where a sequence has left."""
    seen = []

    def watch(ids, logits):
        seen.append((np.array(ids), np.array(logits)))
        return logits

    ids = [np.arange(HISTORY_BLOCK - 3) % 48, np.arange(9)]
    runs = batch(NET, ids, Sampling.greedy(processors=(watch,)), max_tokens=8)
    assert len(seen) == 8
    for step, (given, logits) in enumerate(seen):
        assert given.dtype == np.int32 and logits.dtype == np.float32 and logits.shape == (2, 48)
        for row, (prompt, found) in enumerate(zip(ids, runs, strict=True)):
            line = [*prompt, *found.tokens[:step]]
            assert given[row][-len(line) :].tolist() == line and (given[row][: -len(line)] == -1).all()
    assert seen[-1][0].shape[1] > seen[0][0].shape[1]


def test_ids_of_proposed_tokens():
    plain = Sampling.greedy(processors=(identity,))
    sampler = Sampler(plain, [[5, 6, 7]], escapes=False)  # which keeps no history, only the line of ids
    sampler(mx.array([[0.0, 1.0, 0.0]]))
    lines = np.array(sampler.continued([2, 0], [False] * 3).arrays[-1])
    for row, line in zip(lines, ([5, 6, 7, 1], [5, 6, 7, 1, 2], [5, 6, 7, 1, 2, 0]), strict=True):
        assert row[-len(line) :].tolist() == line and (row[: -len(line)] == -1).all()
    long = Sampler(plain, [[1] * (HISTORY_BLOCK - 1)], escapes=False).continued([2, 0], [False] * 3)
    assert np.array(long.arrays[-1])[2, -HISTORY_BLOCK - 1 :].tolist() == [1] * (HISTORY_BLOCK - 1) + [2, 0]


def test_behind_the_penalties_and_before_the_temperature():
    logits, seen = np.random.default_rng(1).normal(size=(1, 12)).astype(np.float32), [3, 3, 5]
    given = []

    def double(ids, logits):
        given.append(np.array(logits))
        return 2 * logits

    penalties = Penalties(1.5, 0.4, 0.2, include_prompt=True)
    sampling = Sampling(temperature=0.8, top_p=0.7, text=penalties, seed=4, processors=(double, double))
    got = int(Sampler(sampling, [seen])(mx.array(logits))[0])
    ruled = np.array(rules_reference(logits[0], seen, 1.5, 0.4, 0.2))
    assert np.allclose(given[0][0], ruled, atol=1e-6) and np.allclose(given[1][0], 2 * ruled, atol=1e-6)
    noise = np.array(mx.random.gumbel((12,), key=mx.random.split(mx.random.key(4))[1]))
    assert got == drawn_reference(4 * ruled, 0.8, 0.7, noise=noise)


def test_log_probabilities_are_the_models_own():
    def only_seven(ids, logits):
        return mx.where(mx.arange(logits.shape[1]) == 7, logits, -mx.inf)

    got = run(NET, [1, 2], Sampling.greedy(processors=(only_seven,)), max_tokens=3)
    assert got.tokens == (7, 7, 7) and all(x < 0 for x in got.logprobs)
    seven = run(NET, [1, 2], GREEDY, max_tokens=1)
    assert got.logprobs[0] < seven.logprobs[0]


# ------------------------------------------------------------------------------- what cannot be done


@pytest.mark.parametrize(
    "given",
    [identity, "identity", [3], [lambda logits: logits], [None], [[identity]]],
    ids=["function", "name", "number", "function without a name", "None", "list in a list"],
)
def test_what_is_no_list_of_processors_is_refused(given):
    with pytest.raises(DecodeError, match="processors: expected a list of functions"):
        Sampling(processors=given)


@pytest.mark.parametrize(("processor", "message"), [
    (lambda ids, logits: None, r"processors\[0\]: expected an mx.array .*found NoneType"),
    (lambda ids, logits: np.array(logits), "found ndarray"),
    (lambda ids, logits: logits[0], r"\(1, 48\), found .*float32 \(48,\)"),
    (lambda ids, logits: mx.argmax(logits, axis=-1, keepdims=True), "found .*uint32"),
    (lambda ids, logits: logits > 0, "found .*bool"),
    (lambda ids, logits: logits - mx.inf, "step 0: no token can be chosen"),
    (lambda ids, logits: logits + mx.inf, "step 0: no token can be chosen"),
    (lambda ids, logits: mx.where(mx.arange(48) == 4, mx.nan, logits), "step 0: no token can be chosen"),
])  # fmt: skip
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_results_that_are_no_logits_end_the_run_in_one_error(processor, message, temperature):
    sampling = Sampling(temperature=temperature, processors=(processor,))
    for options in ({}, {"speculate": "lookup"}):
        with pytest.raises(DecodeError, match=message):
            run(NET, [1, 2, 3], sampling, max_tokens=3, **options)


def test_a_sequence_that_has_ended_may_run_out_of_tokens():
    """The pass ahead of an end computes one token more than is wanted."""

    def then_nothing(ids, logits):
        return mx.where((ids[:, -1] == 7)[:, None], -mx.inf, mx.where(mx.arange(48) == 7, logits, -mx.inf))

    sampling = Sampling.greedy(processors=(then_nothing,))
    assert run(NET, [1, 2], sampling, max_tokens=9, stop_ids=frozenset([7])).tokens == (7,)
