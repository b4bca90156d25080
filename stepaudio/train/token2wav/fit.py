"""Fitting one small net: AdamW on flat vectors, averaged weights, a schedule by steps or by the clock, saved states.

Knows no nets and no data: a loss is a function of a tree of weights and a batch of arrays. Each of the four nets of
token2wav is fitted by this.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map

from ...backend.process import may_compile
from ...errors import DataError
from ...files import replaced_file
from ..optimiser import CHECKPOINT, Flat, State, fresh_state, read_state, write_state
from ..recipe import say

Batch = dict[str, mx.array]
Metrics = dict[str, mx.array]
Loss = Callable[[Any, Any], tuple[mx.array, Metrics]]  # (weights, batch) -> total, and what the log shows
SCHEDULE = "schedule.json"
OPPONENT = "opponent"  # folder of a run with the saved state of the net that was trained against
FIRST_DECAY, SECOND_DECAY = 0.9, 0.98


@dataclass(frozen=True)
class Schedule:
    """How long and how fast. `seconds` ends a run early, with the schedule squeezed to it."""

    steps: int = 100_000
    seconds: float = 1e9
    peak_rate: float = 1e-3
    warmup: int = 300
    weight_decay: float = 0.01
    clip: float = 1.0  # of the gradient's norm
    average: float = 0.999
    seed: int = 0
    log_every: int = 100
    save_every: float = 60.0  # seconds

    def rate(self, progress: float, step: int) -> float:
        """Learning rate: linear warm-up, then cosine to one hundredth, over `progress` 0..1."""
        cosine = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        return self.peak_rate * min(1.0, (step + 1) / self.warmup) * cosine


class Fit:
    """Weights, their average and both moments as four flat vectors, and one step, compiled or not."""

    def __init__(self, schedule: Schedule, params: Any, loss: Loss, compiled: bool = True):
        self.schedule, self.flat, self._loss = schedule, Flat(params), loss
        # ones where a weight belongs to a matrix or a kernel: biases and gains do not decay
        self._matrices = self.flat.join(tree_map(lambda p: mx.full(p.shape, float(p.ndim >= 2)), params))
        self.state: State = fresh_state(self.flat.join(params))
        self.step_number = 0
        self._waiting: list[mx.array] = []
        self._update: Callable = mx.compile(self._updated) if compiled and may_compile() else self._updated

    def _updated(self, state: State, batch: dict[str, Any], rate: mx.array, t: mx.array) -> tuple[State, Metrics]:
        """The state after AdamW (Loshchilov and Hutter 2019), and the loss's metrics.

        A gradient that is not finite counts as zero: it only lets the moments decay.
        """
        (_, metrics), tree = cast(Any, mx.value_and_grad(self._loss)(self.flat.split(state["params"]), batch))
        gradient = self.flat.join(tree)
        norm = mx.sqrt(mx.square(gradient).sum())
        gradient = mx.where(mx.isfinite(norm), gradient * mx.minimum(1.0, self.schedule.clip / (norm + 1e-6)), 0.0)
        first = FIRST_DECAY * state["first"] + (1 - FIRST_DECAY) * gradient
        second = SECOND_DECAY * state["second"] + (1 - SECOND_DECAY) * mx.square(gradient)
        step = (first / (1 - FIRST_DECAY**t)) / (mx.sqrt(second / (1 - SECOND_DECAY**t)) + 1e-8)
        params = state["params"] * (1 - rate * self.schedule.weight_decay * self._matrices) - rate * step
        keep = mx.minimum(self.schedule.average, t / (t + 10))
        average = keep * state["average"] + (1 - keep) * params
        return {"params": params, "average": average, "first": first, "second": second}, metrics | {"norm": norm}

    def step(self, batch: dict[str, Any], progress: float) -> Metrics:
        """One update; returns the loss's metrics. The host is one step ahead of the device, never more."""
        rate = mx.array(self.schedule.rate(progress, self.step_number), mx.float32)
        self.state, metrics = self._update(self.state, batch, rate, mx.array(self.step_number + 1, mx.float32))
        mx.async_eval(self.state, metrics)
        mx.eval(self._waiting)
        self._waiting = list(metrics.values())
        self.step_number += 1
        return metrics

    @property
    def average(self) -> dict:
        """The averaged weights, as a tree."""
        return self.flat.split(self.state["average"])

    def save(self, folder: Path) -> None:
        """Write everything that a later run needs to continue."""
        write_state(folder, self.state, self.step_number)

    def resume(self, folder: Path) -> bool:
        """Take up the state saved in a folder; False if there is none. `DataError` for a state of other weights."""
        found = read_state(folder)
        if found is None:
            return False
        here, there = (state["params"].size for state in (self.state, found[0]))
        if here != there:
            raise DataError(
                f"{folder}: the saved state is of {there} numbers, this run trains {here}; go on with the options that "
                "the run began with, or begin anew in another folder"
            )
        self.state, self.step_number = found
        return True


class Opponent(Protocol):
    """A net that is trained against the one that is fitted, in turns."""

    fit: Fit

    def shown(self, batch: Batch) -> dict[str, Any]:
        """The batch with the opponent's weights."""
        ...

    def step(self, params: Any, batch: Batch, progress: float) -> Metrics:
        """The opponent's step against the net with these weights."""
        ...


def run(
    fit: Fit,
    batches: Callable[[int], Batch],
    out: Path,
    on_save: Callable[[], None],
    elapsed: float = 0.0,
    opponent: Opponent | None = None,
) -> None:
    """Fit until the schedule ends; log to `out`/log.jsonl, save to `out`/checkpoint and by `on_save`.

    Parameters
    ----------
    fit : Fit
    batches : step -> the arrays of the loss; the same step gives the same batch.
    out : folder of the run.
    on_save : called after each saved state, to write the net.
    elapsed : seconds of the schedule that were spent before.
    opponent : makes a step of its own after each of the net's.
    """
    schedule, began = fit.schedule, time.time()
    out.mkdir(parents=True, exist_ok=True)
    with replaced_file(out / SCHEDULE) as aside:
        aside.write_text(json.dumps(asdict(schedule), indent=1) + "\n", encoding="utf-8")
    recent: list[Metrics] = []
    mark = saved = began
    while fit.step_number < schedule.steps:
        progress = max(fit.step_number / schedule.steps, (time.time() - began + elapsed) / schedule.seconds)
        if progress >= 1:
            break
        batch = batches(fit.step_number)
        if opponent is None:
            recent.append(fit.step(batch, progress))
        else:
            metrics = fit.step(opponent.shown(batch), progress)
            recent.append(metrics | opponent.step(fit.flat.split(fit.state["params"]), batch, progress))
        if len(recent) == schedule.log_every:
            _log(out, fit.step_number, recent, time.time() - mark, progress)
            recent, mark = [], time.time()
        if time.time() - saved > schedule.save_every:
            _save(fit, out, opponent)
            on_save()
            saved = mark = time.time()
            recent = []
    _save(fit, out, opponent)
    on_save()
    say(out, event="end", step=fit.step_number, seconds=round(time.time() - began, 1))


def _save(fit: Fit, out: Path, opponent: Opponent | None) -> None:
    fit.save(out / CHECKPOINT)
    if opponent is not None:
        opponent.fit.save(out / OPPONENT)


def _log(out: Path, step: int, recent: list[Metrics], seconds: float, progress: float) -> None:
    means = {name: float(np.mean([metrics[name].item() for metrics in recent])) for name in recent[0]}
    peak = mx.get_peak_memory() / 1e9
    say(out, step=step, **means, per_second=len(recent) / seconds, progress=progress, peak_gb=peak)
