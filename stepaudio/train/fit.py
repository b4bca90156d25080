"""Fitting one small net: AdamW on flat vectors, averaged weights, a schedule by steps or by the clock, saved states.

Knows no nets and no data: a loss is a function of a tree of weights and a batch of arrays. Each of the speaking half's
four nets is fitted by this.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map

from .loop import Flat, say

Loss = Callable[[dict, dict], tuple[mx.array, dict[str, mx.array]]]  # (weights, batch) -> total, what to show
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
        """Linear warm-up, then cosine to one hundredth, over `progress` 0..1."""
        cosine = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        return self.peak_rate * min(1.0, (step + 1) / self.warmup) * cosine


class Fit:
    """Weights, their average and both moments as four flat vectors, and one compiled step."""

    def __init__(self, schedule: Schedule, params: dict, loss: Loss, compiled: bool = True):
        self.schedule, self.flat, self._loss = schedule, Flat(params), loss
        start = self.flat.join(params)
        # ones where a weight is of a matrix or a kernel, which alone decay
        self._matrices = self.flat.join(tree_map(lambda p: mx.full(p.shape, float(p.ndim >= 2)), params))
        nothing = mx.zeros_like(start)
        self.state = {"params": start, "average": start + 0, "first": nothing, "second": nothing + 0}
        self.step_number, self._waiting = 0, ()
        self._update = mx.compile(self._updated) if compiled else self._updated

    def _updated(self, state: dict, batch: dict, rate: mx.array, t: mx.array) -> tuple[dict, dict]:
        """The state after AdamW (Loshchilov and Hutter 2019), and what the loss shows. A gradient that is not finite
        changes nothing but the moments' age."""
        (_, shown), gradient = mx.value_and_grad(self._loss)(self.flat.split(state["params"]), batch)
        gradient = self.flat.join(gradient)
        norm = mx.sqrt(mx.square(gradient).sum())
        gradient = mx.where(mx.isfinite(norm), gradient * mx.minimum(1.0, self.schedule.clip / (norm + 1e-6)), 0.0)
        first = FIRST_DECAY * state["first"] + (1 - FIRST_DECAY) * gradient
        second = SECOND_DECAY * state["second"] + (1 - SECOND_DECAY) * mx.square(gradient)
        step = (first / (1 - FIRST_DECAY**t)) / (mx.sqrt(second / (1 - SECOND_DECAY**t)) + 1e-8)
        params = state["params"] * (1 - rate * self.schedule.weight_decay * self._matrices) - rate * step
        share = mx.minimum(self.schedule.average, t / (t + 10))
        average = share * state["average"] + (1 - share) * params
        return {"params": params, "average": average, "first": first, "second": second}, shown | {"norm": norm}

    def step(self, batch: dict, progress: float) -> dict[str, mx.array]:
        """One update; returns what the loss shows. The host is one step ahead of the device, never more."""
        rate = mx.array(self.schedule.rate(progress, self.step_number), mx.float32)
        self.state, shown = self._update(self.state, batch, rate, mx.array(self.step_number + 1, mx.float32))
        mx.async_eval(self.state, shown)
        mx.eval(self._waiting)
        self._waiting = list(shown.values())
        self.step_number += 1
        return shown

    @property
    def average(self) -> dict:
        """The averaged weights, as a tree."""
        return self.flat.split(self.state["average"])

    def begin_with(self, params: dict) -> None:
        """Weights to go on from; moments start afresh."""
        self.state["params"] = self.flat.join(params)
        self.state["average"] = self.state["params"] + 0

    def save(self, folder: Path) -> None:
        """Everything that a later run needs to go on."""
        folder.mkdir(parents=True, exist_ok=True)
        mx.save_safetensors(str(folder / "new.safetensors"), self.state, {"step": str(self.step_number)})
        (folder / "new.safetensors").replace(folder / "state.safetensors")

    def resume(self, folder: Path) -> bool:
        """Take up a saved state; False if there is none."""
        path = folder / "state.safetensors"
        if not path.exists():
            return False
        arrays, meta = mx.load(str(path), return_metadata=True)
        self.state, self.step_number = dict(arrays), int(meta["step"])
        return True


def run(fit: Fit, batch: Callable[[int], dict], out: Path, on_save: Callable[[], None], elapsed: float = 0.0) -> None:
    """Fit until the schedule ends; log to `out`/log.jsonl, save to `out`/checkpoint and by `on_save`.

    batch : step -> the arrays of the loss; the same step gives the same batch. elapsed : seconds of the schedule that
    were spent before.
    """
    s, began = fit.schedule, time.time()
    out.mkdir(parents=True, exist_ok=True)
    (out / "schedule.json").write_text(json.dumps(asdict(s), indent=1) + "\n", encoding="utf-8")
    recent, mark, saved = [], began, began
    while fit.step_number < s.steps:
        progress = max(fit.step_number / s.steps, (time.time() - began + elapsed) / s.seconds)
        if progress >= 1:
            break
        recent.append(fit.step(batch(fit.step_number), progress))
        if len(recent) == s.log_every:
            means = {name: float(np.mean([shown[name].item() for shown in recent])) for name in recent[0]}
            say(out, step=fit.step_number, **means, per_second=len(recent) / (time.time() - mark), progress=progress,
                peak_gb=mx.get_peak_memory() / 1e9)
            recent, mark = [], time.time()
        if time.time() - saved > s.save_every:
            fit.save(out / "checkpoint")
            on_save()
            saved = mark = time.time()
            recent = []
    fit.save(out / "checkpoint")
    on_save()
    say(out, event="end", step=fit.step_number, seconds=round(time.time() - began, 1))
