"""Keys and values of few bits: against quantising written in numpy, under every policy, in any chunks."""

import mlx.core as mx
import numpy as np
import pytest
from caches import CHUNKS, KEPT, KINDS, LIMIT, SPANS, N, off, run
from reference import decoder_reference, tiny_net

from stepaudio.decoding.generate import Request, collect, fits_one_batch, generate
from stepaudio.decoding.options import RunOptions, merge_options
from stepaudio.errors import DecodeError
from stepaudio.experiments.grid import Setting
from stepaudio.models.kv_cache import CachePolicy, FullCache, WindowCache
from stepaudio.models.kv_store import Store, bits_of_head

NET = tiny_net(seed=1, scale=1.6, hidden=128)  # heads of 32
TEXT = NET.config.text_config


def held(x: np.ndarray, bits: int, group: int) -> np.ndarray:
    """What is left of values (…, size): whole numbers of so many bits, times a scale, plus an offset, by group.

    The end of a group's range that is larger in magnitude is exact, and so is zero, as MLX has it.
    """
    g = np.asarray(x, np.float32).reshape(-1, group)
    low, high = g.min(1, keepdims=True), g.max(1, keepdims=True)
    down = np.abs(low) > np.abs(high)
    scale = np.where(down, 1, -1) * np.maximum((high - low) / np.float32(2**bits - 1), np.float32(1e-7))
    edge = np.where(down, low, high)
    steps = np.rint(edge / scale)
    scale, offset = np.where(steps != 0, edge / np.where(steps, steps, 1), scale), np.where(steps != 0, edge, 0)
    numbers = np.clip(np.rint((g - offset) / scale), 0, 2**bits - 1)
    return (numbers * scale + offset).reshape(np.shape(x))


def embeddings(n: int = N, seed: int = 0) -> mx.array:
    return NET.embed(np.random.default_rng(seed).integers(0, TEXT.vocab_size, n))[0]


def build(kind: str, positions: str, bits: int | None):
    policy = CachePolicy(kind, LIMIT if kind != "full" else None, positions=positions, bits=bits)
    return policy.build(TEXT.num_hidden_layers, NET.model.rope, spans=SPANS)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("size", [32, 64, 128, 96])
def test_a_store_gives_back_what_numpy_makes_of_it(bits, size):
    rng, store = np.random.default_rng(size), Store(bits_of_head(bits, size))
    x = (rng.normal(size=(2, 3, 40, size)) * 10 ** rng.uniform(-3, 3, (2, 3, 40, 1))).astype(np.float32)
    store.write(mx.array(x[:, :, :7]), 0)
    store.write(mx.array(x[:, :, 7:30]), 7)
    store.extend(mx.array(x[:, :, 30:]), 30)
    store.keep(mx.array(np.arange(3, 40)))
    store.keep_rows(mx.array([1]))
    group = 64 if size % 64 == 0 else 32
    wanted = held(x, bits, group)[1:, :, 3:]
    found = np.array(store.read(37))
    step = (
        np.abs(x).reshape(2, 3, 40, -1, group).max(-1).repeat(group, -1).reshape(x.shape)[1:, :, 3:] * 2 / (2**bits - 1)
    )
    same = np.abs(found - wanted) <= 1e-5 * step * 2**bits
    assert same.mean() > 0.999 and (np.abs(found - wanted) <= 1.01 * step).all()  # a half may round either way
    assert store.nbytes == sum(a.nbytes for a in store.arrays) == 3 * 37 * size * (bits / 8 + 8 / group)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("chunks", CHUNKS.values(), ids=CHUNKS)
@pytest.mark.parametrize(("kind", "positions"), KINDS)
def test_equals_the_reference_that_quantises_in_numpy(kind, positions, chunks, bits):
    x, limit = embeddings(), None if kind == "full" else LIMIT
    how = (NET, x, KEPT.get(kind, ()), limit, positions == "reindexed")
    wanted = decoder_reference(*how, hold=lambda a: held(a, bits, 32))
    found = run(build(kind, positions, bits), x, chunks, NET)
    moved = off(wanted, decoder_reference(*how))
    assert off(found, wanted) < 0.1 * moved and moved > {8: 1e-3, 4: 1e-2}[bits]


def test_bytes_are_those_of_the_bits():
    for bits, each in ((None, 32 * 4), (8, 32 + 8), (4, 16 + 8)):  # a scale and an offset in float32 for 32 numbers
        cache = build("sinks", "absolute", bits)
        run(cache, embeddings(), [1], NET)
        rows = 2 * TEXT.num_hidden_layers * TEXT.num_key_value_heads
        assert cache.nbytes == LIMIT * rows * each == LIMIT * TEXT.kv_bytes_per_position(4, bits)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_batch_gives_what_each_gets_alone(bits):
    requests = [Request(list(range(9)), embeddings(9, seed=s)) for s in range(3)]
    options = RunOptions.of(merge_options(sampling="greedy", cache="full", kv_bits=bits, max_tokens=12), frozenset({5}))
    together = collect(generate(NET, requests, options), 3)
    for request, run_ in zip(requests, together, strict=True):
        alone = collect(generate(NET, [request], options), 1)[0]
        assert alone.tokens == run_.tokens
        np.testing.assert_allclose(alone.logprobs, run_.logprobs, atol=1e-3)
    longer = Request(list(range(30)), embeddings(30))
    with pytest.raises(DecodeError, match=f"several lengths under kv_bits={bits} would not give what each gets alone"):
        next(generate(NET, [*requests, longer], options))
    assert not fits_one_batch([9, 30], options, 4096) and fits_one_batch([9, 9], options, 4096)
    plain = collect(generate(NET, requests, merge_options(options, kv_bits=None)), 3)
    assert plain[0].kv_bytes / together[0].kv_bytes > {8: 3, 4: 5}[bits]


@pytest.mark.parametrize("bits", [0, 2, 16, True, "8", 4.5])
def test_other_bits_are_refused(bits):
    with pytest.raises(DecodeError, match="kv_bits: expected 8, 4 or none, found"):
        CachePolicy(bits=bits)


def test_heads_that_no_group_divides_are_refused_before_anything_is_computed():
    net = tiny_net()
    for kind in ("full", "sinks"):
        with pytest.raises(DecodeError, match=r"heads of \d+ channels come out in no groups of 64 or 32"):
            CachePolicy(kind, bits=8).build(2, net.model.rope)
    with pytest.raises(DecodeError, match="a full cache evicts nothing"):
        CachePolicy("full", positions="reindexed", bits=8)


def test_kinds_are_as_before_without_bits():
    assert isinstance(CachePolicy("full").build(1, NET.model.rope), FullCache)
    assert isinstance(CachePolicy().build(1, NET.model.rope), WindowCache)
    assert (
        "bits" not in Setting().to_dict()["cache"]
        and Setting.of({"cache": {"bits": 8}}).to_dict()["cache"]["bits"] == 8
    )
    assert merge_options(cache="window", kv_bits=4).policy == CachePolicy("window", bits=4)


@pytest.mark.parametrize("cache", ["full", "sinks"])
def test_speculation_gives_the_same_tokens(cache):
    request = Request([1, 2, 3, 4] * 5, NET.embed(np.array([1, 2, 3, 4] * 5))[0])
    kept = {"sampling": "greedy", "on_loop": "off", "cache": cache, "kv_bits": 8, "max_tokens": 60}
    runs = [
        collect(generate(NET, [request], RunOptions.of(merge_options(**kept, speculate=s), frozenset())), 1)[0]
        for s in ("off", "lookup")
    ]
    assert runs[0].tokens == runs[1].tokens and len(runs[0].tokens) == 60
