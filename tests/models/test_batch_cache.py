"""A bounded cache of a batch against the reference without one, row by row; whole runs against single ones."""

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from caches import LIMIT, off
from reference import decoder_reference, remembered, tiny_net

from stepaudio.decoding.generate import Request, collect, fits_one_batch, generate
from stepaudio.decoding.options import RunOptions
from stepaudio.decoding.passes import build_batch_cache
from stepaudio.decoding.sampling import Contrast, Sampling
from stepaudio.errors import DecodeError
from stepaudio.models.batch_cache import BatchWindowCache
from stepaudio.models.kv_cache import CachePolicy, FullCache

NET = tiny_net(seed=1, scale=1.6)
KINDS = ("window", "sinks", "pinned")
LENGTHS = (45, 9, 30, 2)  # beyond the limit, within it, and shorter than the sinks
SPANS = (((7, 5), (30, 3)), ((3, 4),), (), ())
AFTER = 24
TOLERANCE = 1e-4


def tokens(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, NET.config.text_config.vocab_size, n)


def request(n: int, spans=()) -> Request:
    ids = tokens(n, n)
    return Request(ids.tolist(), NET.embed(ids)[0], spans)


REQUESTS = [request(n, spans) for n, spans in zip(LENGTHS, SPANS, strict=True)]


def options(kind: str = "sinks", limit: int = LIMIT, sampling: Sampling | None = None, n: int = AFTER, **policy):
    return RunOptions(sampling or Sampling.greedy(), CachePolicy(kind, limit, **policy), n, on_loop="off")


def kept_of(kind: str, spans) -> set[int]:
    sinks = set(range(0 if kind == "window" else 4))
    return sinks | ({p for s, n in spans for p in range(s, s + n)} if kind == "pinned" else set())


def padded(requests) -> mx.array:
    longest = max(len(r.tokens) for r in requests)
    return mx.stack([mx.pad(r.embeddings, [(longest - len(r.tokens), 0), (0, 0)]) for r in requests])


@pytest.mark.parametrize("chunks", [[45], [1] * 45, [19, 7, 1, 1, 17]], ids=["whole", "one by one", "odd"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_row_equals_the_reference_without_a_cache(kind, chunks):
    cache, out, done = build_batch_cache(NET, REQUESTS, options(kind)), [], 0
    assert isinstance(cache, BatchWindowCache)
    more = [NET.embed(tokens(AFTER, 100 + i))[0] for i in range(len(REQUESTS))]
    batch = mx.concatenate([padded(REQUESTS), mx.stack(more)], axis=1)
    for take in [*chunks, *[1] * (AFTER - 5), 5]:
        out.append(np.array(NET.logits(batch[:, done : done + take], cache)))
        done += take
        assert cache.held.shape[1] <= LIMIT and all(a.shape[2] <= LIMIT for a in cache.arrays)
    got = np.concatenate(out, axis=1)
    assert np.isfinite(got).all()
    for row, held, own, spans, rest in zip(got, cache.held, REQUESTS, SPANS, more, strict=True):
        x, kept = mx.concatenate([own.embeddings, rest]), kept_of(kind, spans)
        assert off(row[-len(x) :], decoder_reference(NET, x, kept, LIMIT)) < TOLERANCE
        assert sorted(held[held >= 0]) == remembered(len(x) - 1, kept, LIMIT)


def runs(requests, chosen: RunOptions):
    return [r.tokens for r in collect(generate(NET, requests, chosen), len(requests))]


RUNS = {
    "window": options("window"),
    "sinks": options("sinks"),
    "pinned": options("pinned"),
    "sinks, limit reached late": options("sinks", 40),
    "window, planned": options("window", sampling=Sampling.planned()),
    "sinks, drawn": options("sinks", sampling=Sampling(temperature=1.2, top_p=0.9, seed=4), n=12),
    "pinned, contrast": options(
        "pinned", sampling=replace(Sampling.greedy(), contrast=Contrast("layers", 0.5, layers=(0,))), n=12
    ),
}


@pytest.mark.parametrize("chosen", RUNS.values(), ids=RUNS)
def test_a_batch_gives_what_each_gives_alone(chosen):
    assert runs(REQUESTS, chosen) == [runs([r], chosen)[0] for r in REQUESTS]


def test_the_limit_changes_what_is_said():
    said = {kind: tuple(runs(REQUESTS, options(kind))) for kind in KINDS}
    said["full"] = tuple(runs(REQUESTS, replace(options(), cache=CachePolicy("full"))))
    assert len(set(said.values())) == len(said)


def test_rows_that_end_early_leave():
    """Stop at tokens that rows say at different steps; the others go on as alone."""
    plain = [runs([r], options("sinks"))[0] for r in REQUESTS]
    stops = frozenset({plain[0][3], plain[2][9]})
    chosen = replace(options("sinks"), stop_ids=stops)
    alone = [runs([r], chosen)[0] for r in REQUESTS]
    assert len(set(map(len, alone))) > 1 and runs(REQUESTS, chosen) == alone


@pytest.mark.parametrize("bits", [8, 4])
def test_few_bits_of_prompts_of_one_length(bits):
    net = tiny_net(seed=1, scale=1.6, hidden=128)
    ids = [tokens(25, s) for s in (1, 2)]
    same = [Request(i.tolist(), net.embed(i)[0]) for i in ids]
    chosen = options("sinks", bits=bits)
    both = [r.tokens for r in collect(generate(net, same, chosen), 2)]
    assert both == [collect(generate(net, [r], chosen), 1)[0].tokens for r in same]


def test_what_cannot_share_a_batch():
    assert isinstance(build_batch_cache(NET, REQUESTS, options(limit=75)), FullCache)  # which the limit cannot bite
    for chosen, tap, message in (
        (options(positions="reindexed"), None, "re-indexed positions shares one full cache, but a limit of 19"),
        (options(), lambda *_: None, "with a tap shares one full cache, but a limit of 19"),
    ):
        assert not fits_one_batch(LENGTHS, chosen, 4096, tapped=tap is not None)
        with pytest.raises(DecodeError, match=message):
            next(generate(NET, REQUESTS, chosen, tap))
    with pytest.raises(DecodeError, match="kv_bits=8"):
        next(generate(NET, REQUESTS, options(bits=8)))
    with pytest.raises(DecodeError, match="cannot hold the 12 positions"):
        next(generate(NET, REQUESTS, options("pinned", 12)))
