"""Every cache against a reference that has none: whole sequences, each pair of positions worked out by itself."""

from itertools import cycle

import caches
import mlx.core as mx
import numpy as np
import pytest
from caches import CHUNKS, KEPT, KINDS, LIMIT, SPANS, N, off
from reference import decoder_reference, remembered, tiny_net

from stepaudio.decoding.generate import Request, generate
from stepaudio.decoding.options import RunOptions
from stepaudio.decoding.sampling import Sampling
from stepaudio.errors import DecodeError
from stepaudio.models.kv_cache import CachePolicy, FullCache, NoCache
from stepaudio.models.rope import Rope, Turns

NET = tiny_net(seed=1, scale=1.6)
TOLERANCE = 1e-4  # of the root mean square of the logits; float32 against float64


def embeddings(n: int = N, seed: int = 0) -> mx.array:
    tokens = np.random.default_rng(seed).integers(0, NET.config.text_config.vocab_size, n)
    return NET.embed(tokens)[0]


def run(cache, x: mx.array, chunks, net=NET) -> np.ndarray:
    return caches.run(cache, x, chunks, net)


def build(kind: str, positions: str, limit: int = LIMIT, spans=SPANS, net=NET):
    policy = CachePolicy(kind, limit if kind != "full" else None, positions=positions)
    return policy.build(net.config.text_config.num_hidden_layers, net.model.rope, spans=spans)


def by_hand(kind: str, positions: str, x) -> np.ndarray:
    limit = None if kind == "full" else LIMIT
    return decoder_reference(NET, x, KEPT.get(kind, ()), limit, positions == "reindexed")


@pytest.mark.parametrize("chunks", CHUNKS.values(), ids=CHUNKS)
@pytest.mark.parametrize(("kind", "positions"), KINDS)
def test_equals_the_reference_without_a_cache(kind, positions, chunks):
    x = embeddings()
    assert off(run(build(kind, positions), x, chunks), by_hand(kind, positions, x)) < TOLERANCE


def test_kinds_differ_once_something_is_evicted():
    # Otherwise the test above could not tell one policy from another.
    x = embeddings()
    logits = {kind: by_hand(*kind, x) for kind in KINDS}
    # A plain window has no gap, and rotary attention sees distances only: there the conventions agree.
    assert off(logits["window", "reindexed"], logits.pop(("window", "absolute"))) < 1e-9
    for i, a in enumerate(logits):
        for b in list(logits)[:i]:
            assert off(logits[a][-10:], logits[b][-10:]) > 0.01, (a, b)


@pytest.mark.parametrize("limit", [1, 2, 5])
@pytest.mark.parametrize("positions", ["absolute", "reindexed"])
def test_tiny_limits(positions, limit):
    x = embeddings(12)
    want = decoder_reference(NET, x, (), limit, positions == "reindexed")
    for chunks in ([1], [12], [3, 4]):
        assert off(run(build("window", positions, limit), x, chunks), want) < TOLERANCE


@pytest.mark.parametrize("positions", ["absolute", "reindexed"])
def test_pinned_longer_than_its_window(positions):
    x, kept = embeddings(40), {0, 1, 2, 3, *range(6, 26)}
    cache = build("pinned", positions, len(kept) + 1, ((6, 20),))
    assert off(run(cache, x, [9]), decoder_reference(NET, x, kept, len(kept) + 1, positions == "reindexed")) < TOLERANCE
    assert set(cache.held) == kept | {39}


SPREAD = {"one": ((6, 5),), "two": ((6, 3), (9, 2)), "one comes late": ((5, 4), (40, 3))}


@pytest.mark.parametrize("chunks", [[1], [23, 1, 2]], ids=str)
@pytest.mark.parametrize("spans", SPREAD.values(), ids=SPREAD)
def test_what_stays_is_moved_on_past_what_was_evicted(spans, chunks):
    x, kept = embeddings(60), {0, 1, 2, 3} | {p for start, n in spans for p in range(start, start + n)}
    got = run(build("pinned", "reindexed", 24, spans), x, chunks)
    assert off(got, decoder_reference(NET, x, kept, 24, True)) < TOLERANCE
    assert off(got[-10:], decoder_reference(NET, x, kept, 24, False)[-10:]) > 0.01


@pytest.mark.parametrize("n", [10, 30, 45])
def test_a_reindexed_cache_goes_on_from_its_state(n):
    x, spans = embeddings(60), SPREAD["one comes late"]
    cache, again = (build("pinned", "reindexed", 24, spans) for _ in range(2))
    run(cache, x[:n], [9])
    again.restore(cache.state())
    np.testing.assert_array_equal(run(again, x[n:], [1]), run(cache, x[n:], [1]))
    assert again.nbytes == cache.nbytes


@pytest.mark.parametrize("chunks", CHUNKS.values(), ids=CHUNKS)
@pytest.mark.parametrize(("kind", "positions"), KINDS[1:])
def test_holds_what_the_rule_says(kind, positions, chunks):
    cache = build(kind, positions)
    run(cache, embeddings(), chunks)
    assert sorted(cache.held) == remembered(N - 1, KEPT[kind], LIMIT)
    assert KEPT[kind] <= set(cache.held.tolist())  # pinned spans and sinks are never evicted
    assert cache.offset == N


def test_room_bounds_a_step():
    assert build("full", "absolute").room(1000) == 1000
    assert build("sinks", "absolute").room(1000) == LIMIT and build("sinks", "absolute").room(3) == 3
    # Re-indexed: up to the first position that is evicted, then one by one, but a pinned span at once.
    cache = build("pinned", "reindexed")
    assert cache.room(1000) == 16  # 9 kept and the 7 others that the limit leaves room for
    run(cache, embeddings(30), [30])
    assert cache.room(2) == 2 and cache.room(1000) == 3
    run(cache, embeddings(3), [3])
    assert cache.room(1000) == 1


def test_sinks_equal_full_while_nothing_is_forgotten():
    x = embeddings(LIMIT)
    full = run(build("full", "absolute"), x, [4])
    assert off(run(build("sinks", "absolute"), x, [4]), full) < 1e-6
    assert off(run(build("sinks", "reindexed"), x, [4]), full) < 1e-5


@pytest.mark.parametrize("kind", [k for k in KINDS if k[0] != "full"], ids=str)
def test_a_prompt_below_the_limit_needs_no_mask_of_its_own(kind):
    """Attention's own causal kernel reads it, to the bit as with a full cache; beyond, the rule is written out."""
    x, kept = embeddings(LIMIT + 1), KEPT[kind[0]]
    loose = np.cumsum([i not in kept for i in range(LIMIT + 1)])
    most = int(np.count_nonzero(loose <= LIMIT - len(kept)))  # nothing is evicted
    cache, full = build(*kind), build("full", "absolute")
    for at, n in ((0, 5), (5, most - 5)):
        part = x[None, at : at + n]
        np.testing.assert_array_equal(np.array(NET.logits(part, cache)), np.array(NET.logits(part, full)))
    assert masks(build(*kind), most) == "causal"
    assert not isinstance(masks(build(*kind), most + 1), str)


def masks(cache, n: int):
    """The mask of a first pass over n positions."""
    cache.plan(n)
    heads = mx.zeros((1, 1, n, NET.config.text_config.head_dim))
    return cache.update(0, heads, heads, heads)[3]


def test_no_cache_equals_the_reference():
    x = embeddings()
    assert off(np.array(NET.logits(x[None], NoCache(NET.model.rope))[0]), by_hand("full", "absolute", x)) < TOLERANCE


def padded(lengths: list[int]) -> tuple[mx.array, list[mx.array], np.ndarray]:
    rows = [embeddings(n, seed=n) for n in lengths]
    pad = np.array([max(lengths) - n for n in lengths])
    return mx.stack([mx.pad(r, [(p, 0), (0, 0)]) for r, p in zip(rows, pad, strict=True)]), rows, pad


@pytest.mark.parametrize("chunks", [[24], [1], [5, 1, 7]], ids=str)
def test_left_padding_changes_no_row(chunks):
    batch, rows, pad = padded([24, 9, 17, 1])
    cache, out, done = FullCache(2, NET.model.rope, pad), [], 0
    for take in cycle(chunks):
        take = min(take, 24 - done)
        out.append(np.array(NET.logits(batch[:, done : done + take], cache)))
        done += take
        if done == 24:
            break
    got = np.concatenate(out, axis=1)
    assert np.isfinite(got).all()
    for row, x, p in zip(got, rows, pad, strict=True):
        assert off(row[p:], decoder_reference(NET, x)) < TOLERANCE
    whole = np.array(NET.logits(batch, NoCache(NET.model.rope, mx.array(pad))))
    for row, x, p in zip(whole, rows, pad, strict=True):
        assert off(row[p:], decoder_reference(NET, x)) < TOLERANCE


def test_keep_rows_drops_the_others():
    batch, rows, pad = padded([24, 9, 17])
    cache = FullCache(2, NET.model.rope, pad)
    NET.logits(batch, cache)
    cache.keep_rows([2, 1])
    assert all(a.shape[0] == 2 for a in cache.arrays)
    more = embeddings(3, seed=99)
    got = np.array(NET.logits(mx.stack([more, more]), cache))
    for row, x in zip(got, [rows[2], rows[1]], strict=True):
        assert off(row, decoder_reference(NET, mx.concatenate([x, more]))[-3:]) < TOLERANCE


def test_bytes_are_those_of_the_config():
    config = NET.config.text_config
    cache = build("sinks", "absolute", 32)
    run(cache, embeddings(), [16, 1])
    assert cache.nbytes == 32 * config.kv_bytes_per_position(4)
    assert build("full", "absolute").nbytes == 0


def test_full_cache_grows_in_blocks():
    cache = build("full", "absolute")
    sizes = []
    for n in (10, 240, 10, 300):
        run(cache, embeddings(n), [n])
        sizes.append(cache.arrays[0].shape[2])
    assert sizes == [256, 256, 512, 768] and list(cache.held) == list(range(560))


def test_rope_at_any_positions_equals_the_fused_kernel():
    rope = Rope(8, 10_000.0)
    x = mx.array(np.random.default_rng(0).normal(size=(2, 3, 6, 8)).astype(np.float32))
    turns = Turns(rope)
    for offset in (0, 1, 700, 16_000):
        turns.to(np.arange(offset, offset + 6))
        assert np.abs(np.array(rope(x, offset) - turns(x))).max() < 3e-3 * (1 if offset > 1000 else 1e-1)
    assert turns(x.astype(mx.bfloat16)).dtype == mx.bfloat16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "ring"}, "full, window, sinks or pinned"),
        ({"positions": "relative"}, "absolute or reindexed"),
        ({"kind": "full", "positions": "renumbered"}, "nothing to re-index"),
        ({"max_len": 0}, "at least 1"),
        ({"max_len": -3}, "at least 1"),
        ({"max_len": 8.5}, "a whole number"),
        ({"max_len": "8"}, "a whole number"),
        ({"sinks": -1}, "0 or more"),
        ({"sinks": 1.5}, "0 or more"),
    ],
)
def test_refuses_what_makes_no_sense(options, message):
    with pytest.raises(DecodeError, match=message):
        CachePolicy(**options)


@pytest.mark.parametrize(
    ("kind", "limit", "spans"), [("sinks", 4, ()), ("sinks", 1, ()), ("pinned", 12, ((7, 8),)), ("pinned", 3, ())]
)
def test_refuses_a_limit_that_the_kept_fill(kind, limit, spans):
    with pytest.raises(DecodeError, match=f"limit of {limit} positions cannot hold"):
        build(kind, "absolute", limit, spans)
    build(kind, "absolute", limit + 4, spans)


def test_limit_comes_from_the_policy_or_the_config():
    assert CachePolicy().limit() == 4096 and CachePolicy().limit(100) == 100
    assert CachePolicy(max_len=7).limit(100) == 7 and CachePolicy("full").limit(100) is None
    assert CachePolicy().build(1, NET.model.rope, 50).max_len == 50


def decode_bytes(n_tokens: int, kind: str, positions: str) -> tuple[set[int], list[int]]:
    """Bytes that the steps of a long run report after the limit is reached, and MLX's active memory on the way."""
    net = tiny_net(seed=3, layers=1)
    options = RunOptions(Sampling.greedy(), CachePolicy(kind, 64, positions=positions), n_tokens, on_loop="off")
    x = net.embed(np.arange(40) % 48)[0]
    reported, active = set(), []
    for step in generate(net, [Request(list(range(40)), x, ((5, 9),))], options):
        if step.index >= 100:
            reported.add(step.kv_bytes)
            active.append(mx.get_active_memory())
    assert step.index == n_tokens - 1 and step.stop == "length"
    return reported, active


@pytest.mark.parametrize(
    ("n_tokens", "kind", "positions"),
    [
        (1500, "window", "absolute"),
        (1500, "pinned", "reindexed"),
        pytest.param(20_000, "sinks", "absolute", marks=pytest.mark.slow),
        pytest.param(20_000, "pinned", "reindexed", marks=pytest.mark.slow),
    ],
)
def test_memory_stays_flat(n_tokens, kind, positions):
    reported, active = decode_bytes(n_tokens, kind, positions)
    assert reported == {2 * 64 * 2 * 8 * 4}  # keys and values, 64 positions, 2 heads of 8 channels, float32
    # The history of tokens grows by 4 bytes a token and exists up to four times while steps overlap; an unbounded cache
    # would grow by 128 bytes an id even in this net.
    assert max(active) - active[0] < 50_000 + 16 * n_tokens
