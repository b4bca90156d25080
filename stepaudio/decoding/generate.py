"""The one decoding loop: prefill, then one id after another, for one row or a batch. Ids in, typed steps out.

Knows no text and no audio: stop strings arrive as a function of ids, audio codes as a range of ids. Every way
of generating in this package consumes `generate`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import mlx.core as mx
import numpy as np

from ..backend.ops import log_sum_exp
from ..errors import DecodeError
from ..models.kv_cache import FullCache
from ..models.speech_lm import StepAudioNet
from ..models.tap import Tap, named
from .loop_detector import Loop, LoopDetector
from .options import Options
from .sampler import Sampler

PREFILL = 512  # positions per prefill step: bounds the score matrices


@dataclass(frozen=True)
class Request:
    """One prompt, ready for the decoder.

    ids : prompt ids. embeddings : (n, D), the same with audio rows written in.
    spans : (start, length) of its audio rows, for a cache that pins them.
    """

    ids: Sequence[int]
    embeddings: mx.array
    spans: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Step:
    """One id of one row.

    logprob : natural log-probability under the model's own distribution, before any rule.
    stop : None, or why this row ends here: "eos", "length", "stop string" or "loop".
    loop : the loop that the row's tail forms just now, if any. kv_bytes : bytes the cache holds.
    """

    row: int
    index: int
    id: int
    logprob: float
    stop: str | None = None
    loop: Loop | None = None
    kv_bytes: int = 0


class _Row:
    """What the host keeps of one row: its number, detector, stop function and count."""

    def __init__(self, number: int, options: Options):
        self.number, self.index, self.options = number, 0, options
        self.detector = None if options.on_loop == "off" else LoopDetector()
        self.ends = options.should_stop() if options.should_stop else None
        self.escaped = 0.0  # how often the block had been said when the escape began; twice that ends the row

    def judge(self, token: int, logprob: float, kv_bytes: int) -> Step:
        loop = self.detector.push(token) if self.detector else None
        o, stop = self.options, None
        if token in o.stop_ids:
            stop = "eos"
        elif self.ends and self.ends(token):
            stop = "stop string"
        elif loop and (o.on_loop == "stop" or (self.escaped and loop.repeats >= 2 * self.escaped)):
            stop = "loop"
        elif self.index + 1 >= o.max_tokens:
            stop = "length"
        step = Step(self.number, self.index, token, logprob, stop, loop, kv_bytes)
        self.index += 1
        return step


def generate(
    net: StepAudioNet, requests: Sequence[Request], options: Options, tap: Tap | None = None
) -> Iterator[Step]:
    """Decode one or several prompts; rows of a batch give the ids they would give alone.

    While the host looks at step t, the device already computes step t+1: the only wait per step is for one id
    and its log-probability per row. Rows that have ended leave the batch as soon as half of it has.

    Several rows share a full cache, so a batch needs a cache limit that cannot bite
    (`fits_one_batch`); a single row takes any policy. `tap` is called as tap(name, array) with what every pass of the
    decoder computes, the one ahead of the last id included, and may put other arrays in their place. Raises `DecodeError` otherwise, and on an empty prompt.
    """
    if not requests:
        return
    _check(net, requests, options)
    cache = _cache(net, requests, options)
    sampler = Sampler(options.sampling, [list(map(int, r.ids)) for r in requests], options.audio_range)
    rows = [_Row(i, options) for i in range(len(requests))]
    live = list(rows)
    logits = _prefill(net, _left_padded(requests), cache, tap)
    pending = _choose(sampler, logits)
    while True:
        ahead = _choose(sampler, _logits_after(net, pending[0], cache, tap)) if _any_may_go_on(live) else None
        ids, logprobs = np.array(pending[0]).tolist(), np.array(pending[1]).tolist()  # the one wait of a step
        steps = [
            (row, row.judge(t, p, cache.nbytes)) for row, t, p in zip(rows, ids, logprobs, strict=True) if row in live
        ]
        yield from (step for _, step in steps)
        for row, step in steps:
            if step.stop:
                live.remove(row)
            elif step.loop and options.on_loop == "escape" and not row.escaped:
                row.escaped = step.loop.repeats
                sampler.escape(rows.index(row))
        if not live or ahead is None:
            return
        if len(live) <= len(rows) // 2:
            keep = [i for i, row in enumerate(rows) if row in live]
            cache.keep_rows(keep)
            sampler.keep_rows(keep)
            ahead = tuple(a[mx.array(keep)] for a in ahead)
            rows = list(live)
        pending = ahead


def fits_one_batch(lengths: Sequence[int], options: Options, default_len: int) -> bool:
    """Whether prompts of these lengths can share a full cache without breaking the cache limit."""
    limit = options.cache.limit(default_len)
    return limit is None or max(lengths) + options.max_tokens <= limit


def _check(net: StepAudioNet, requests: Sequence[Request], options: Options) -> None:
    for i, r in enumerate(requests):
        if len(r.ids) == 0 or r.embeddings.shape[0] != len(r.ids):
            raise DecodeError(
                f"request {i}: {len(r.ids)} prompt ids and {r.embeddings.shape[0]} embeddings; expected "
                "the "
                "same number, at least 1"
            )
    if len(requests) > 1 and not fits_one_batch([len(r.ids) for r in requests], options, net.config.max_cache_len):
        limit = options.cache.limit(net.config.max_cache_len)
        raise DecodeError(
            f"a batch shares one full cache, but a limit of {limit} "
            "positions could be reached: run the prompts one by one, raise the limit or lower max_tokens"
        )


def _cache(net: StepAudioNet, requests: Sequence[Request], options: Options):
    n_layers = net.config.text_config.num_hidden_layers
    if len(requests) == 1:
        return options.cache.build(n_layers, net.model.rope, net.config.max_cache_len, requests[0].spans)
    longest = max(len(r.ids) for r in requests)
    return FullCache(n_layers, net.model.rope, np.array([longest - len(r.ids) for r in requests]))


def _left_padded(requests: Sequence[Request]) -> mx.array:
    longest = max(r.embeddings.shape[0] for r in requests)
    return mx.stack([mx.pad(r.embeddings, [(longest - r.embeddings.shape[0], 0), (0, 0)]) for r in requests])


def _prefill(net: StepAudioNet, x: mx.array, cache, tap: Tap | None) -> mx.array:
    """Feed the whole prompt in steps that the cache allows; logits (B, V) after its last position."""
    done, n = 0, x.shape[1]
    while True:
        take = min(cache.room(n - done), PREFILL)
        piece, done = x[:, done : done + take], done + take
        if done >= n:
            return net.next_logits(piece, cache, tap)
        net.model(piece, cache, named(tap, "decoder."))
        mx.eval(cache.arrays)


def _choose(sampler: Sampler, logits: mx.array) -> tuple[mx.array, mx.array]:
    """Next ids (B,) and their log-probabilities before any rule, both already being computed."""
    ids = sampler(logits)
    logprobs = mx.take_along_axis(logits, ids[:, None], axis=1)[:, 0] - log_sum_exp(logits)
    mx.async_eval(ids, logprobs)
    return ids, logprobs


def _logits_after(net: StepAudioNet, ids: mx.array, cache, tap: Tap | None) -> mx.array:
    return net.next_logits(net.model.embed_tokens(ids[:, None]), cache, tap)


def _any_may_go_on(live: list[_Row]) -> bool:
    return any(row.index + 1 < row.options.max_tokens for row in live)


@dataclass(frozen=True)
class Run:
    """The finished run of one row: every id it gave, why it stopped, and the loop it fell into, if any."""

    ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    stop: str | None = None
    loop: Loop | None = None
    kv_bytes: int = 0

    @property
    def mean_logprob(self) -> float:
        return float(np.mean(self.logprobs)) if self.logprobs else 0.0


def collect(steps: Iterator[Step], n_rows: int) -> list[Run]:
    """All rows of a run, in their order."""
    kept: list[list[Step]] = [[] for _ in range(n_rows)]
    for step in steps:
        kept[step.row].append(step)
    runs = []
    for row in kept:
        loops = [s.loop for s in row if s.loop]
        run = Run(tuple(s.id for s in row), tuple(s.logprob for s in row), row[-1].stop if row else None)
        runs.append(replace(run, loop=loops[-1] if loops else None, kv_bytes=row[-1].kv_bytes if row else 0))
    return runs
