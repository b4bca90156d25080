"""How far a sound may be from the reference's: as far as the last digit of the pitch moves it.

The phase of the vocoder's source is a sum of the pitch over all frames before, in float32, and is multiplied by the
480 samples of a frame and by the number of each harmonic: 200 000 radians after 20 s, where neighbouring float32
numbers lie 0.016 apart. So two right computations of one wave drift apart as it grows longer, and no fixed tolerance
fits all lengths. What does fit is measured: the same vocoder, with the same mel and noise, is run with the pitch of
every frame moved to the next float32 above, and to the next below. The larger change of the two, up to a sample, is the
condition of the wave there. The reference's own nets in PyTorch were within 1.9 times that wherever they were more than
1e-3 away (six vocoders, 0.5 to 30 s), in which the pitches of the two differed by 10 such steps, up and down.

A tolerance that grows with the condition would in the end pass anything. It ends at `CEILING`: faults of the kinds that
are made (`tests/parity/test_condition.py`) move a wave by more. Samples from where the tolerance would exceed it on
are not judged, and the row says so; what comes after them rests on the mel, which is compared to its end, and on the
chunks of a stream, each of which begins a new sum.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..models.token2wav.hift import Hift
from .golden import Golden

CONDITIONS = 6  # tolerance over the condition
CEILING = 0.1  # of a tolerance, over the root mean square of what is expected


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
        net.f0_predictor = _Moved(hift.f0_predictor, limit)
    return moved


@dataclass(frozen=True)
class Allowance:
    """What is compared of a sound, and how closely.

    n : samples that are judged, from the first. condition : what the last digit of the pitch changes in them.
    tolerance : absolute, in the unit of the sound.
    """

    n: int
    condition: float
    tolerance: float

    @classmethod
    def of(cls, changes: np.ndarray, level: float, floor: float, slack: float = 1) -> Allowance:
        """Of changes (n,), the largest at every sample, in a sound of a root mean square `level`.

        floor : tolerance where the condition asks for less. slack : what both are multiplied with.
        """
        condition = np.maximum.accumulate(changes)
        least, most = floor * slack, max(floor * slack, CEILING * level)
        n = int(np.count_nonzero(CONDITIONS * slack * condition <= most))
        reached = float(condition[n - 1]) if n else 0.0
        return cls(n, reached, max(least, CONDITIONS * slack * reached))


def compare_sound(
    golden: Golden,
    name: str,
    found,
    changes: np.ndarray,
    floor: float,
    *,
    slack: float = 1,
    axis: int = -1,
    stage: str | None = None,
) -> None:
    """Add a row for `out.` + name, judged by the condition of the sound.

    Parameters
    ----------
    found : array
        Our sound, with time along `axis`.
    changes : np.ndarray, (n,)
        As `largest_changes` gives them.
    floor, slack
        As in `Allowance.of`.
    stage : str, optional
        What the row is called, by default `name`.
    """
    expected = golden[f"out.{name}"]
    level = float(np.sqrt(np.mean(np.square(expected, dtype=np.float64)))) if expected.size else 0.0
    allowed = Allowance.of(changes, level, floor, slack)
    judged = (slice(None),) * (axis % expected.ndim) + (slice(allowed.n),)
    golden.compare(name, found, allowed.tolerance, absolute=True, judged=judged)
    row, note = golden.rows[-1], ""
    if allowed.n < len(changes):
        note = f"judged up to sample {allowed.n} of {len(changes)}, where its condition reaches the ceiling"
    golden.rows[-1] = replace(row, stage=stage or name, condition=allowed.condition, note=row.note or note)


def largest_changes(sound, moved: Sequence, axis: int = -1) -> np.ndarray:
    """What the pitch's last digit changes at each place along `axis`: (n,) of a sound and the same with moved pitch."""
    base = np.asarray(sound, np.float64)
    change = np.max([np.abs(np.asarray(other, np.float64) - base) for other in moved], axis=0)
    return np.moveaxis(change, axis, 0).reshape(change.shape[axis], -1).max(axis=1, initial=0)
