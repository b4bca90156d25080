"""The one decoding loop: prefill, then one token after another, for one prompt or a batch. Token ids in, steps out.

Knows no text and no audio: stop strings arrive as a function of ids, audio codes as a range of ids. Every way
of generating in this package consumes `generate`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from ..backend.ops import log_sum_exp
from ..choices import LoopAction, Positions, Speculation, StopReason
from ..errors import DecodeError
from ..models.speech_lm import StepAudioNet
from ..models.tap import Tap
from .loop_detector import EARLY, Loop, LoopDetector
from .options import RunOptions
from .passes import Passes, build_cache, read_prompts, within_limit
from .sampler import Sampler
from .speculative import DraftModel, Drafts, Lookup, Proposer, agreement
from .steps import Alternative, Request, Step
from .word_times import Word


class _Row:
    """What the host keeps of one sequence: its number, detector, stop function and count."""

    def __init__(self, number: int, options: RunOptions, began: float | None):
        self.began = time.perf_counter() if began is None else began
        self.number, self.index, self.options = number, 0, options
        self.detector = None if options.loop_action == LoopAction.OFF else LoopDetector()
        self.early = LoopDetector(**EARLY) if options.loop_action == LoopAction.ESCAPE else None
        self.begins: Loop | None = None  # the block for which an adaptive penalty begins
        self.ends = options.should_stop() if options.should_stop else None
        self.escaped = 0.0  # repeats of the block when the adaptive penalty began; twice that ends the run

    def judge(
        self, token: int, logprob: float, kv_bytes: int, top: tuple[Alternative, ...], drafts: Drafts | None = None
    ) -> Step:
        if token < 0:
            raise DecodeError(
                f"step {self.index}: no token can be chosen: expected processors to leave a logit above -inf, and none "
                "that is +inf or no number"
            )
        loop = self.detector.push(token) if self.detector else None
        self.begins = self.early.push(token) if self.early else None
        o, stop = self.options, None
        if token in o.stop_ids:
            stop = StopReason.EOS
        elif self.ends and self.ends(token):
            stop = StopReason.STOP_STRING
        elif loop and (o.loop_action == LoopAction.STOP or (self.escaped and loop.repeats >= 2 * self.escaped)):
            stop = StopReason.LOOP
        elif self.index + 1 >= o.max_tokens:
            stop = StopReason.LENGTH
        seconds = time.perf_counter() - self.began
        step = Step(self.number, self.index, token, logprob, stop, loop, kv_bytes, top, seconds, drafts)
        self.index += 1
        return step

    def must_escape(self) -> bool:
        """Whether the adaptive penalty begins with the step just judged."""
        if self.begins is None or self.escaped:
            return False
        self.escaped = self.begins.repeats
        return True


def generate(
    net: StepAudioNet, requests: Sequence[Request], options: RunOptions, tap: Tap | None = None
) -> Iterator[Step]:
    """Decode one or several prompts; every sequence of a batch gets the tokens that it would get alone.

    While the host looks at step t, the device already computes step t+1: the only wait per step is for one id and its
    log-probability per sequence (and the alternatives, where asked for). Sequences that have ended leave the batch as
    soon as half of it has.

    Parameters
    ----------
    net : StepAudioNet
    requests : sequence of Request
        Several share a cache, which not every policy allows (`fits_one_batch`); a single one takes any.
    options : RunOptions
    tap : Tap, optional
        Called with what every pass of the decoder computes, the pass ahead of the last token included; what it
        returns takes the place of what it was given. Sequences that have ended stay in a batch that is tapped.

    Raises
    ------
    DecodeError
        An empty prompt, or a batch that cannot share a cache (`fits_one_batch`); speculative decoding with a tap, or by
        a draft model that a request lacks; a contrast with audio or layers that are not there; processors whose result
        has another shape, or leaves no token.
    """
    if not requests:
        return
    if options.speculate != Speculation.OFF:
        _check_speculation(requests, options, tap)
        for i, request in enumerate(requests):
            _check(net, [request], options, i)
            yield from _speculate(net, request, i, options)
        return
    _check(net, requests, options, tapped=tap is not None)
    passes = Passes(net, requests, options, tap)
    prompts = [list(map(int, r.tokens)) for r in requests]
    sampler = Sampler(options.rules, prompts, options.audio_range, options.loop_action == LoopAction.ESCAPE)
    rows = [_Row(i, options, r.began) for i, r in enumerate(requests)]
    live = list(rows)
    pending = _choose(sampler, *passes.read(), top=options.top)
    while True:
        more = _any_may_go_on(live)
        ahead = _choose(sampler, *passes.after(pending.tokens), top=options.top) if more else None
        steps = [(row, row.judge(*found)) for row, found in _on_host(rows, pending, passes.nbytes) if row in live]
        yield from (step for _, step in steps)
        for row, step in steps:
            if step.stop:
                live.remove(row)
            elif row.must_escape():
                sampler.escape(rows.index(row))
        if not live or ahead is None:
            return
        if tap is None and len(live) <= len(rows) // 2:  # a tap goes by the number of a row
            keep = [i for i, row in enumerate(rows) if row in live]
            passes.keep_rows(keep)
            sampler.keep_rows(keep)
            ahead = ahead.keep_rows(keep)
            rows = list(live)
        pending = ahead


def _speculate(net: StepAudioNet, request: Request, number: int, options: RunOptions) -> Iterator[Step]:
    """Decode one prompt, several proposed tokens to a pass: the same steps as plain decoding gives."""
    cache = build_cache(net, request, options)
    prompt = list(map(int, request.tokens))
    sampler = Sampler(options.rules, [prompt], options.audio_range, options.loop_action == LoopAction.ESCAPE)
    row, proposer = _Row(number, options, request.began), _proposer(net, request, options)
    escape_at, drafts = options.max_tokens, Drafts()
    proposed: list[int] = []
    logits = read_prompts(net, [request], cache, options)
    while True:
        base = row.index
        sampler = sampler.continued(proposed, [base + i >= escape_at for i in range(len(proposed) + 1)])
        chosen = _choose(sampler, logits, top=options.top)
        found = [values for _, values in _on_host([row] * (len(proposed) + 1), chosen, cache.nbytes)]
        tokens = [values[0] for values in found]
        agreed = agreement(proposed, tokens)
        taken, done = agreed + 1, 0
        drafts += Drafts(proposed=len(proposed), passes=1)
        while done < taken:
            drafts += Drafts(accepted=int(done < agreed), tokens=1)
            step = row.judge(*found[done], drafts=drafts)
            yield step
            done += 1
            if step.stop:
                return
            if row.must_escape():  # plain decoding has queued one more token by then
                escape_at = row.index + 1
                taken = min(taken, done + 1)
        if proposed:
            cache.settle(taken)
        sampler.keep_rows([taken - 1])
        proposer.learn(tokens[:taken])
        most = min(options.draft_tokens, options.max_tokens - row.index - 1)
        most = min(most, cache.room(most + 1) - 1)
        escaping = [row.index + i >= escape_at for i in range(most)]
        proposed = _up_to_the_end(proposer.propose(sampler, escaping), options) if most > 0 else []
        if proposed:
            cache.hold()
        x = net.model.embed_tokens(mx.array([[tokens[taken - 1], *proposed]]))
        logits = net.logits(x, cache)[0].astype(mx.float32) if proposed else net.next_logits(x, cache)


def _proposer(net: StepAudioNet, request: Request, options: RunOptions) -> Proposer:
    if options.speculate == Speculation.LOOKUP or request.draft is None:
        return Lookup(list(map(int, request.tokens)))
    draft, own = request.draft
    return DraftModel(draft, own.embeddings, build_cache(draft, own, options, net.config.max_cache_len))


def _up_to_the_end(proposed: list[int], options: RunOptions) -> list[int]:
    """The proposed tokens, without what would come behind an end mark."""
    end = next((i for i, token in enumerate(proposed) if token in options.stop_ids), len(proposed))
    return proposed[: end + 1]


def _check_speculation(requests: Sequence[Request], options: RunOptions, tap: Tap | None) -> None:
    if tap is not None:
        raise DecodeError("a tap sees tokens that speculative decoding takes back: watch with speculate='off'")
    if options.speculate == Speculation.DRAFT and any(r.draft is None for r in requests):
        raise DecodeError(
            "speculate='draft': the model has no draft model; give it one with model.altered(draft=...), or use "
            "speculate='lookup'"
        )


def fits_one_batch(lengths: Sequence[int], options: RunOptions, default_len: int, tapped: bool = False) -> bool:
    """Whether prompts of these lengths can share a batch, each as if it were alone.

    Prompts are filled up at the left, so a key stands elsewhere than alone; as a float it means the same there, but
    with few bits it is rounded otherwise. Where the cache limit can bite, sequences evict at steps of their own: then
    re-indexed positions would move at other steps in each, and a tap, which goes by slots, would find others in each.

    Parameters
    ----------
    default_len : the limit of the net's config. tapped : whether a tap is to watch.
    """
    if options.policy.bits is not None and len(set(lengths)) > 1:
        return False
    free = within_limit(lengths, options, default_len)
    return free or (options.policy.positions == Positions.ABSOLUTE and not tapped)


def _check(
    net: StepAudioNet, requests: Sequence[Request], options: RunOptions, first: int = 0, tapped: bool = False
) -> None:
    for i, r in enumerate(requests, first):
        if len(r.tokens) == 0 or r.embeddings.shape[0] != len(r.tokens):
            raise DecodeError(
                f"request {i}: {len(r.tokens)} prompt tokens and {r.embeddings.shape[0]} embeddings; expected the same "
                "number, at least 1"
            )
    lengths = [len(r.tokens) for r in requests]
    if len(requests) == 1 or fits_one_batch(lengths, options, net.config.max_cache_len, tapped):
        return
    if options.policy.bits is not None and len(set(lengths)) > 1:
        raise DecodeError(
            f"a batch of prompts of several lengths under kv_bits={options.policy.bits} would not give what each "
            "gets alone: run them one by one, or leave kv_bits out"
        )
    why, limit = "a tap" if tapped else "re-indexed positions", options.policy.limit(net.config.max_cache_len)
    raise DecodeError(
        f"a batch with {why} shares one full cache, but a limit of {limit} positions could be reached: run the prompts "
        "one by one, raise the limit or lower max_tokens"
    )


class _Chosen(NamedTuple):
    """A step on the device: ids (B,) and log-probabilities (B,) of what comes next, and of the best (B, k)."""

    tokens: mx.array
    logprobs: mx.array
    top: mx.array | None = None
    top_logprobs: mx.array | None = None

    def keep_rows(self, rows: list[int]) -> _Chosen:
        index = mx.array(rows)
        top, top_logprobs = (None if a is None else a[index] for a in (self.top, self.top_logprobs))
        return _Chosen(self.tokens[index], self.logprobs[index], top, top_logprobs)


def _choose(sampler: Sampler, logits: mx.array, other: mx.array | None = None, *, top: int) -> _Chosen:
    """The next step, already being computed; log-probabilities are those before any rule.

    other : logits that these are contrasted with.
    """
    tokens, total = sampler(logits, other), log_sum_exp(logits)
    logprobs = mx.take_along_axis(logits, tokens[:, None], axis=1)[:, 0] - total
    if top:
        k = min(top, logits.shape[1])
        best = mx.argpartition(-logits, k - 1, axis=1)[:, :k] if k < logits.shape[1] else mx.argsort(-logits, axis=1)
        scores = mx.take_along_axis(logits, best, axis=1)
        order = mx.argsort(-scores, axis=1)
        best, scores = mx.take_along_axis(best, order, axis=1), mx.take_along_axis(scores, order, axis=1)
        chosen = _Chosen(tokens, logprobs, best, scores - total[:, None])
    else:
        chosen = _Chosen(tokens, logprobs)
    mx.async_eval(*(a for a in chosen if a is not None), *sampler.arrays)
    return chosen


def _on_host(rows: list[_Row], chosen: _Chosen, kv_bytes: int) -> Iterator[tuple[_Row, tuple]]:
    """Each sequence with what `_Row.judge` takes: the one wait of a step."""
    tokens, logprobs = np.array(chosen.tokens).tolist(), np.array(chosen.logprobs).tolist()
    tops: list[tuple[Alternative, ...]] = [()] * len(rows)
    if chosen.top is not None:
        ids, odds = np.array(chosen.top).tolist(), np.exp(np.array(chosen.top_logprobs)).tolist()
        tops = [tuple(map(Alternative, *pair)) for pair in zip(ids, odds, strict=True)]
    for row, token, logprob, top in zip(rows, tokens, logprobs, tops, strict=True):
        yield row, (token, logprob, kv_bytes, top)


def _any_may_go_on(live: list[_Row]) -> bool:
    return any(row.index + 1 < row.options.max_tokens for row in live)


@dataclass(frozen=True)
class Run:
    """A finished run: every token it gave, why it stopped, and the repetition loop it fell into, if any.

    Parameters
    ----------
    tokens : tuple of int
        Token ids, the end mark included.
    logprobs : tuple of float
        Natural log-probabilities of the tokens, before any rule.
    stop : StopReason, optional
    loop : Loop, optional
        The last one, as it was when it had grown longest.
    kv_bytes : int
        Bytes that the cache held at the end.
    first_seconds, seconds : float
        From when work on the request began to the first token, and to the last; runs of a batch wait for each other.
    drafts : Drafts, optional
        What speculative decoding saved; None where it was off.
    words : tuple of Word, optional
        When each word was said, in seconds from the beginning of the segment; None unless asked for.
    """

    tokens: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    stop: StopReason | None = None
    loop: Loop | None = None
    kv_bytes: int = 0
    first_seconds: float = field(default=0.0, compare=False)
    seconds: float = field(default=0.0, compare=False)
    drafts: Drafts | None = field(default=None, compare=False)
    words: tuple[Word, ...] | None = None

    @property
    def mean_logprob(self) -> float:
        """Mean of the log-probabilities, 0 for an empty run."""
        return float(np.mean(self.logprobs)) if self.logprobs else 0.0


def collect(steps: Iterator[Step], n_rows: int) -> list[Run]:
    """The runs of a batch of `n_rows`, in the order of their requests."""
    kept: list[list[Step]] = [[] for _ in range(n_rows)]
    for step in steps:
        kept[step.row].append(step)
    runs = []
    for row in kept:
        if not row:
            runs.append(Run())
            continue
        loops, last = [s.loop for s in row if s.loop], row[-1]
        run = Run(tuple(s.token for s in row), tuple(s.logprob for s in row), last.stop)
        run = replace(run, loop=loops[-1] if loops else None, kv_bytes=last.kv_bytes)
        runs.append(replace(run, first_seconds=row[0].seconds, seconds=last.seconds, drafts=last.drafts))
    return runs
