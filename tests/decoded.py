"""Nets, prompts, cache policies and samplings that tests of the decoding loop share."""

import numpy as np
from reference import tiny_net

from stepaudio.decoding.generate import Request, Run, collect, generate
from stepaudio.decoding.options import RunOptions
from stepaudio.decoding.sampling import Sampling
from stepaudio.models.kv_cache import CachePolicy

NET = tiny_net(seed=7, scale=4)  # attention decides, so that tokens differ between caches
GREEDY = Sampling.greedy()
POLICIES = {
    "full": (CachePolicy("full"), (), None),
    "window": (CachePolicy("window", 19), (), 19),
    "sinks": (CachePolicy("sinks", 19), range(4), 19),
    "sinks re-indexed": (CachePolicy("sinks", 19, positions="reindexed"), range(4), 19),
    "pinned": (CachePolicy("pinned", 19), [*range(4), *range(9, 16)], 19),
    "pinned re-indexed": (CachePolicy("pinned", 19, 2, "reindexed"), [0, 1, *range(9, 16)], 19),
}

SAMPLINGS = {
    "greedy": GREEDY,
    "planned": Sampling(),
    "sampled": Sampling.greedy(temperature=1.0, top_k=20, seed=5),
    "planned and sampled": Sampling(temperature=0.8, top_p=0.95, seed=1),
    "chat": Sampling.reference("chat"),
}

COUNTING = {i: {i + 1: 5.0} for i in range(31)} | {31: {0: 5.0}}
CIRCLE = {i: {i + 1: 9.0, 10: 4.0} for i in (3, 4)} | {5: {3: 9.0, 10: 4.0}}  # 3 4 5 3 4 5 …, or out to 10
OUT = {i: {i + 1: 5.0} for i in range(10, 31)}
STUCK = {7: {7: 9.0, 10: 4.0}}


def request(net, ids, spans=()) -> Request:
    return Request(list(map(int, ids)), net.embed(np.array(ids))[0], spans)


def run(net, ids, sampling=GREEDY, spans=(), **options) -> Run:
    return collect(generate(net, [request(net, ids, spans)], RunOptions(sampling, **options)), 1)[0]


def prompts(n: int) -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    return [rng.integers(0, 48, k) for k in rng.integers(1, 40, n)]
