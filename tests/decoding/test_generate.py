"""The decoding loop: the reference's greedy tokens, decoding without a cache, batches against single runs, stops."""

import gc
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from decoded import CIRCLE, COUNTING, GREEDY, NET, OUT, POLICIES, SAMPLINGS, STUCK, prompts, request, run
from reference import chain_net, decoder_reference, golden_net, tiny_net
from safetensors.numpy import load_file

from stepaudio.decoding import prefill as prefill_module
from stepaudio.decoding.generate import Request, Run, Step, collect, fits_one_batch, generate
from stepaudio.decoding.options import RunOptions
from stepaudio.decoding.sampling import Penalties, Sampling
from stepaudio.errors import DecodeError
from stepaudio.models.kv_cache import CachePolicy, FullCache

TENSORS = load_file(Path(__file__).parents[1] / "assets" / "llm.safetensors")
GOLDEN = golden_net(TENSORS)


# ------------------------------------------------------------------------------- the reference's tokens


@pytest.mark.parametrize(
    ("name", "penalties"),
    [
        ("plain", Penalties()),
        ("rep", Penalties(repetition=1.3, include_prompt=True)),
        ("ngram", Penalties(no_repeat_ngram=3, include_prompt=True)),
        ("both", Penalties(repetition=1.3, no_repeat_ngram=3, include_prompt=True)),
    ],
)
def test_greedy_ids_equal_the_reference(name, penalties):
    want = TENSORS[f"out.greedy.{name}"].tolist()
    got = run(GOLDEN, TENSORS["in.text.ids"][0], Sampling(text=penalties), max_tokens=len(want))
    assert list(got.tokens) == want and got.stop == "length"


def test_eos_equals_the_reference():
    want, eos = TENSORS["out.greedy.eos"].tolist(), int(TENSORS["in.greedy.eos_id"][0])
    got = run(GOLDEN, TENSORS["in.text.ids"][0], stop_ids=frozenset([eos]), max_tokens=40)
    assert list(got.tokens) == want and got.stop == "eos" and want[-1] == eos


@pytest.mark.parametrize("k", [1, 2, 3])
def test_greedy_ids_after_audio_equal_the_reference(k):
    want = TENSORS[f"out.audio{k}.greedy"].tolist()
    prompt = Request(TENSORS[f"in.audio{k}.ids"][0].tolist(), mx.array(TENSORS[f"out.audio{k}.embeds"][0]))
    (got,) = collect(generate(GOLDEN, [prompt], RunOptions(GREEDY, max_tokens=len(want))), 1)
    assert list(got.tokens) == want


# ------------------------------------------------------------------------------- a reference without a cache


@pytest.mark.parametrize("sampling", [GREEDY, Sampling()], ids=["greedy", "planned"])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("n_prompt", [17, 41])
def test_cache_policies_reach_the_loop(policy, n_prompt, sampling):
    cache, kept, limit = POLICIES[policy]
    prompt = np.random.default_rng(n_prompt).integers(0, 48, n_prompt)
    got = run(NET, prompt, sampling, ((9, 7),), cache=cache, max_tokens=25)
    everything = NET.embed(np.concatenate([prompt, got.tokens[:-1]]))[0]
    logits = decoder_reference(NET, everything, kept, limit, cache.positions == "reindexed")[n_prompt - 1 :]
    logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    # Log-probabilities are the model's own, before any rule.
    assert np.abs(got.logprobs - logprobs[np.arange(25), got.tokens]).max() < 1e-3
    if sampling is GREEDY:
        assert list(got.tokens) == logits.argmax(axis=1).tolist()
    if limit:
        assert got.kv_bytes == limit * NET.config.text_config.kv_bytes_per_position(4)


def test_policies_change_what_is_said():
    said = {run(NET, np.arange(41), spans=((9, 7),), cache=p[0], max_tokens=25).tokens for p in POLICIES.values()}
    assert len(said) == len(POLICIES)


def test_limit_of_the_config_is_the_default():
    net = tiny_net(seed=7, scale=4, max_cache_len=12)
    assert run(net, np.arange(30), max_tokens=5).kv_bytes == 12 * net.config.text_config.kv_bytes_per_position(4)


@pytest.mark.parametrize("cache", [p[0] for p in POLICIES.values()], ids=POLICIES)
@pytest.mark.parametrize("chunk", [1, 3, 7, 40])
def test_prefill_in_chunks_equals_whole(monkeypatch, chunk, cache):
    prompt = np.random.default_rng(1).integers(0, 48, 41)
    whole = run(NET, prompt, spans=((9, 7),), cache=cache, max_tokens=20)
    monkeypatch.setattr(prefill_module, "positions_at_once", lambda *_: chunk)
    chunked = run(NET, prompt, spans=((9, 7),), cache=cache, max_tokens=20)
    assert chunked.tokens == whole.tokens and np.allclose(chunked.logprobs, whole.logprobs, atol=1e-4)


@pytest.mark.parametrize(
    ("cpu", "batch", "steps"),
    [(True, 1, [10] * 4), (False, 1, [24, 16]), (False, 2, [12, 12, 12, 4]), (False, 4, [10] * 4)],
)
def test_prompts_of_a_batch_share_the_positions_of_a_step(monkeypatch, cpu, batch, steps):
    fed, feed = [], type(NET.model).__call__
    monkeypatch.setattr(prefill_module, "ON_CPU", 10)
    monkeypatch.setattr(prefill_module, "ON_GPU", 24)
    monkeypatch.setattr(prefill_module, "on_cpu", lambda: cpu)
    monkeypatch.setattr(
        type(NET.model), "__call__", lambda net, x, *rest: fed.append(x.shape[:2]) or feed(net, x, *rest)
    )
    options = RunOptions(GREEDY, cache=CachePolicy("full"), max_tokens=1)
    list(generate(NET, [request(NET, np.arange(40))] * batch, options))
    assert fed == [(batch, n) for n in steps]


def test_no_step_is_computed_in_vain(monkeypatch):
    fed = []
    decode = type(NET).next_logits

    def count(net, x, *rest):
        fed.append(x.shape[1])
        return decode(net, x, *rest)

    monkeypatch.setattr(type(NET), "next_logits", count)
    run(NET, np.arange(9), max_tokens=5)
    assert fed == [9, 1, 1, 1, 1]


# ------------------------------------------------------------------------------- batch = single


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
@pytest.mark.parametrize("on_loop", ["report", "stop", "escape"])
def test_batch_equals_single(sampling, on_loop):
    options = RunOptions(
        sampling, max_tokens=48, stop_ids=frozenset([3, 17, 40]), on_loop=on_loop, audio_range=(30, 48)
    )
    requests = [request(NET, p) for p in prompts(7)]
    alone = [collect(generate(NET, [r], options), 1)[0] for r in requests]
    together = collect(generate(NET, requests, options), 7)
    for a, b in zip(alone, together, strict=True):
        assert (a.tokens, a.stop, a.loop) == (b.tokens, b.stop, b.loop)
        assert np.allclose(a.logprobs, b.logprobs, atol=1e-3)
    assert len({len(a.tokens) for a in alone}) >= 3  # they stop at different times


def test_rows_leave_the_batch_once_half_has_ended(monkeypatch):
    kept = []
    keep = FullCache.keep_rows
    monkeypatch.setattr(FullCache, "keep_rows", lambda cache, rows: kept.append(rows) or keep(cache, rows))
    net = chain_net({i: {i + 1: 5.0} for i in range(31)})
    requests = [request(net, [start]) for start in (0, 20, 24, 10)]
    runs = collect(generate(net, requests, RunOptions(GREEDY, max_tokens=40, stop_ids=frozenset([28]))), 4)
    assert [r.tokens for r in runs] == [tuple(range(s + 1, 29)) for s in (0, 20, 24, 10)]
    assert kept == [[0, 3], [0]]


# ------------------------------------------------------------------------------- why a run stops


def test_eos_and_length():
    net = chain_net(COUNTING)
    assert run(net, [0], max_tokens=9, stop_ids=frozenset([4, 9])) == Run(
        (1, 2, 3, 4), run(net, [0], max_tokens=4).logprobs, "eos", None, run(net, [0], max_tokens=4).kv_bytes
    )
    assert run(net, [0], max_tokens=3, stop_ids=frozenset([4])).stop == "length"
    assert run(net, [0], max_tokens=4, stop_ids=frozenset([4])).stop == "eos"  # rather than length


def test_one_token():
    net = chain_net(COUNTING)
    steps = list(generate(net, [request(net, [0, 6])], RunOptions(GREEDY, max_tokens=1)))
    assert len(steps) == 1 and (steps[0].token, steps[0].index, steps[0].stop) == (7, 0, "length")


def test_stop_function_is_made_for_each_row():
    made = []

    def ends_after(n):
        def make():
            seen = []
            made.append(seen)
            return lambda token: seen.append(token) or len(seen) == n

        return make

    net = chain_net(COUNTING)
    options = RunOptions(GREEDY, max_tokens=9, should_stop=ends_after(4))
    runs = collect(generate(net, [request(net, [0]), request(net, [9, 20])], options), 2)
    assert [(r.tokens, r.stop) for r in runs] == [((1, 2, 3, 4), "stop string"), ((21, 22, 23, 24), "stop string")]
    assert made == [[1, 2, 3, 4], [21, 22, 23, 24]]
    stop_ids = frozenset([4])
    assert run(net, [0], max_tokens=9, should_stop=ends_after(4), stop_ids=stop_ids).stop == "eos"  # comes first


def test_loop_stops_a_run():
    got = run(chain_net(CIRCLE), [3], max_tokens=100, on_loop="stop")
    assert got.stop == "loop" and got.tokens == ((4, 5, 3) * 11)[:32]
    assert (got.loop.period, got.loop.onset, got.loop.repeats) == (3, 0, 32 / 3)


def test_loop_is_reported_or_ignored():
    got = run(chain_net(CIRCLE), [3], max_tokens=60)
    assert got.stop == "length" and len(got.tokens) == 60 and got.loop.period == 3 and got.loop.repeats == 20
    got = run(chain_net(CIRCLE), [3], max_tokens=60, on_loop="off")
    assert got.stop == "length" and len(got.tokens) == 60 and got.loop is None


def test_steps_tell_of_a_loop_while_it_lasts():
    net = chain_net(CIRCLE)
    steps = list(generate(net, [request(net, [3])], RunOptions(GREEDY, max_tokens=40)))
    assert [s.index for s in steps if s.loop] == list(range(31, 40)) and isinstance(steps[0], Step)


@pytest.mark.parametrize(("table", "start"), [(CIRCLE, 3), (STUCK, 7)])
def test_escape_leaves_a_block_before_it_is_a_loop(table, start):
    # It begins with the 24th id; the 25th has been queued by then; the 26th is chosen by the new rules.
    got = run(chain_net(table | OUT), [start], max_tokens=100, on_loop="escape", stop_ids=frozenset([15]))
    assert got.tokens[:25] == run(chain_net(table), [start], max_tokens=25).tokens
    assert got.tokens[25:] == (10, 11, 12, 13, 14, 15)
    assert got.stop == "eos" and got.loop is None


@pytest.mark.parametrize(("table", "start"), [(CIRCLE, 3), (STUCK, 7)])
def test_escape_that_fails_ends_at_twice_the_block(table, start):
    got = run(chain_net(table), [start], Sampling.greedy(escape=Penalties()), max_tokens=500, on_loop="escape")
    assert got.stop == "loop" and len(got.tokens) == 48


def test_escape_of_one_row_leaves_the_others_alone():
    net = chain_net(CIRCLE | STUCK | OUT | {0: {1: 5.0}, 1: {0: 5.0, 2: 4.0}, 2: {0: 5.0}})
    ids = [[3], [7], [0], [30]]
    options = RunOptions(GREEDY, max_tokens=50, on_loop="escape", stop_ids=frozenset([15, 31]))
    together = collect(generate(net, [request(net, i) for i in ids], options), 4)
    alone = [run(net, i, max_tokens=50, on_loop="escape", stop_ids=frozenset([15, 31])) for i in ids]
    assert [(r.tokens, r.stop) for r in together] == [(r.tokens, r.stop) for r in alone]
    assert [r.stop for r in alone][3] == "eos" and len(alone[3].tokens) == 1


def test_audio_range_reaches_the_sampler():
    net = chain_net({i: {20: 5.0, 21: 4.0, 2: 3.0, 3: 1.0} for i in range(32)})
    sampling = Sampling(text=Penalties(no_repeat_ngram=1), audio=Penalties())
    assert run(net, [0], sampling, max_tokens=4, audio_range=(20, 32)).tokens == (20,) * 4
    assert run(net, [0], sampling, max_tokens=4).tokens == (20, 21, 2, 3)


# ------------------------------------------------------------------------------- what cannot be done


@pytest.mark.parametrize(
    "option",
    [
        {"max_tokens": 0},
        {"max_tokens": -5},
        {"max_tokens": 2.5},
        {"max_tokens": "9"},
        {"on_loop": "sometimes"},
        {"on_loop": 3},
    ],
    ids=str,
)
def test_refuses_options_out_of_range(option):
    with pytest.raises(DecodeError, match=next(iter(option))):
        RunOptions(**option)


def test_no_request_no_step():
    assert list(generate(NET, [], RunOptions())) == [] and collect(iter(()), 2) == [Run(), Run()]
    assert Run().mean_logprob == 0 and Run(logprobs=(-1.0, -3.0)).mean_logprob == -2


def test_refuses_prompts_that_do_not_fit_their_embeddings():
    x = NET.embed(np.arange(3))[0]
    for bad in (Request([], x[:0]), Request([1, 2], x), Request([1, 2, 3, 4], x)):
        with pytest.raises(DecodeError, match="request 1"):
            list(generate(NET, [request(NET, [1]), bad], RunOptions()))


def test_a_batch_of_reindexed_positions_must_fit_under_the_cache_limit():
    assert RunOptions().max_tokens == 2048
    for lengths, max_tokens, cache, fits in (
        ([5, 8], 8, CachePolicy("sinks", 16, positions="reindexed"), True),
        ([5, 9], 8, CachePolicy("sinks", 16, positions="reindexed"), False),
        ([5, 9], 8, CachePolicy("full"), True),
        ([5, 9], 8, CachePolicy("window", positions="reindexed"), False),
        ([5, 9], 8, CachePolicy("window"), True),
    ):
        options = RunOptions(GREEDY, cache, max_tokens)
        assert fits_one_batch(lengths, options, 16) == fits
        net, requests = tiny_net(max_cache_len=16), [request(NET, range(n)) for n in lengths]
        if fits:
            assert [len(r.tokens) for r in collect(generate(net, requests, options), 2)] == [8, 8]
        else:
            with pytest.raises(DecodeError, match="limit of 16"):
                list(generate(net, requests, options))


def test_refuses_a_cache_that_pinned_audio_fills():
    with pytest.raises(DecodeError, match="cannot hold the 16 positions"):
        run(NET, np.arange(30), spans=((9, 12),), cache=CachePolicy("pinned", 16))


# ------------------------------------------------------------------------------- threads, and what is left behind


def in_a_thread(work):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


@pytest.mark.parametrize(
    "sampling", [GREEDY, Sampling(), Sampling(temperature=1.0, top_k=20)], ids=["greedy", "planned", "drawn"]
)
@pytest.mark.parametrize("kind", ["full", "window"])
def test_every_step_may_be_taken_in_another_thread(sampling, kind):
    options = RunOptions(sampling, CachePolicy(kind, None if kind == "full" else 16), max_tokens=12)
    want = [s.token for s in generate(NET, [request(NET, [1, 2, 3])], options)]
    prompt = request(NET, [1, 2, 3])
    mx.eval(prompt.embeddings)
    steps = generate(NET, [prompt], options)
    got = [in_a_thread(lambda: next(steps).token) for _ in range(6)]
    got += in_a_thread(lambda: [next(steps).token for _ in range(3)])
    assert got + [s.token for s in steps] == want


@pytest.mark.parametrize(
    ("sampling", "on_loop"),
    [
        (GREEDY, "escape"),  # a history that no choice needs yet
        (Sampling(), "report"),
        (Sampling(temperature=1.0), "report"),
    ],
    ids=["greedy", "planned", "drawn"],
)
def test_nothing_piles_up_behind_a_run(sampling, on_loop):
    """A token that is forgotten leaves nothing: no array, and no graph, which a growing resident set would show."""
    options = RunOptions(sampling, CachePolicy("window", 32), max_tokens=1000, on_loop=on_loop)
    marks = []
    for step in generate(NET, [request(NET, [1, 2, 3])], options):
        if step.index in (400, 999):
            gc.collect()
            marks.append((mx.get_active_memory(), resident()))
    assert marks[1][0] - marks[0][0] < 100_000
    assert marks[1][1] - marks[0][1] < 5e6  # 12 KB a token, were the history's graph kept


def resident() -> int:
    """Bytes of this process in memory, where the system tells."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else 0
