"""How far a sound may be from the reference's: as far as the last digit of the pitch moves it.

The phase of the vocoder's source is a sum of the pitch over all frames before, in float32, and is multiplied by the
480 samples of a frame and by the number of each harmonic: 200 000 radians after 20 s, where neighbouring float32
numbers lie 0.016 apart. So two right computations of one wave drift apart as it grows longer, and no fixed tolerance
fits all lengths. What does fit is measured: the same vocoder, with the same mel and noise, is run with the pitch of
every frame moved to the next float32 above, and to the next below. The larger change of the two is the condition of the
wave there. In stretches of 0.1 s the reference's own net in PyTorch was within 3.7 times that wherever
it was more than 2e-3 away, and within 4.7 times where it was more than 1e-3 away (eight sets of random weights, 0.5 to
12 s). Its pitch differed by 10 such steps, some up and some down.

A tolerance that grows with the condition would in the end pass anything. It ends at `CEILING`: faults of the kinds that
are made (`tests/parity/test_condition.py`) move a wave by more. Each stretch of 0.1 s has a tolerance of its own, and
where that would exceed the ceiling the stretch is not judged, which the row says; if none is left, it is unusable. What
is not judged in a long wave rests on the mel, which is compared to its end, and on the chunks of a stream, each of
which begins a new sum.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..models.token2wav.hift import Hift
from .golden import Golden, Row

CONDITIONS = 8  # tolerance over the condition
CEILING = 0.1  # of a tolerance, over the root mean square of what is expected
STRETCH = 2400  # samples that share a tolerance, 0.1 s
TOO_ILL = "the last digit of the pitch changes all of it by so much that nothing can be judged"


class _Moved(nn.Module):
    """A predictor of pitch whose values are moved to the next float32 towards a limit."""

    def __init__(self, predictor: nn.Module, limit: float):
        super().__init__()
        self.predictor, self._limit = predictor, np.float32(limit)

    def __call__(self, mel: mx.array) -> mx.array:
        return mx.array(np.nextafter(np.array(self.predictor(mel).astype(mx.float32)), self._limit))


def with_moved_pitch(hift: Hift) -> tuple[Hift, Hift]:
    """The same vocoder twice, with every pitch one float32 higher and lower; weights are shared."""
    moved = copy.copy(hift), copy.copy(hift)
    for net, limit in zip(moved, (np.inf, 0.0), strict=True):
        net["f0_predictor"] = _Moved(hift.f0_predictor, limit)
    return moved


def compare_sound(
    golden: Golden,
    name: str,
    found,
    sound,
    moved: Sequence,
    floor: float,
    *,
    axis: int = -1,
    stage: str | None = None,
) -> None:
    """Add a row for `out.` + name, judged by the condition of the sound; its numbers are those of the worst stretch.

    Parameters
    ----------
    found : array
        What is judged, with time along `axis`.
    sound, moved : array, sequence of arrays
        What our vocoder gives of the reference's mel, and what it gives with the pitch moved.
    floor : float
        Tolerance where the condition asks for less, in the unit of the sound.
    stage : str, optional
        What the row is called, by default `name`.
    """
    stage, expected = stage or name, golden[f"out.{name}"]
    if np.shape(found) != expected.shape or expected.size == 0 or not np.isfinite(expected).all():
        golden.compare(name, found, floor, absolute=True)
        golden.rows[-1] = replace(golden.rows[-1], stage=stage)
        return
    errors = _largest_in_stretches(_change(found, expected, axis))
    conditions = _with_neighbours(_largest_in_stretches(np.max([_change(m, sound, axis) for m in moved], axis=0)))
    allowed, level = (
        np.maximum(floor, CONDITIONS * conditions),
        float(np.sqrt(np.mean(np.square(expected, dtype=float)))),
    )
    judged = allowed <= max(floor, CEILING * level)
    if not judged.any():
        golden.leave([name], "")
        golden.rows[-1] = Row(stage, None, None, None, "unusable", TOO_ILL)
        return
    worst = int(np.argmax(np.where(judged, errors / allowed, -1)))
    part = (slice(None),) * (axis % expected.ndim) + (slice(worst * STRETCH, (worst + 1) * STRETCH),)
    golden.compare(name, found, float(allowed[worst]), absolute=True, judged=part)
    share = judged.mean()
    note = "" if share == 1 else f"{share:.0%} of it judged, the rest is conditioned too ill"
    golden.rows[-1] = replace(golden.rows[-1], stage=stage, condition=float(conditions[worst]), note=note)


def _change(a, b, axis: int) -> np.ndarray:
    """The largest absolute difference at every place along `axis`, (n,); infinite where one of them is not finite."""
    difference = np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64))
    difference = np.moveaxis(difference, axis, 0).reshape(difference.shape[axis], -1).max(axis=1)
    return np.where(np.isfinite(difference), difference, np.inf)


def _largest_in_stretches(values: np.ndarray) -> np.ndarray:
    """The largest of every `STRETCH` values; of the last, what is left."""
    return np.maximum.reduceat(values, np.arange(0, len(values), STRETCH))


def _with_neighbours(values: np.ndarray) -> np.ndarray:
    """The largest of each value and the ones beside it: two changes need not peak in the same stretch."""
    padded = np.pad(values, 1, mode="edge")
    return np.maximum(np.maximum(padded[:-2], padded[2:]), values)
