"""The difference of two stored tensors, block by block: how large it is, and the rank of it where that is low.

Nothing larger than a block and a few narrow matrices is held, so a tensor of any size can be compared. Singular values
come from a random projection with one power iteration (Halko, Martinsson & Tropp 2011), exact where the difference has
a low rank and nothing else. A merged adapter is a product of two thin matrices and, in 16 bits, what rounding made of
it: beside it lies noise, whose largest singular value is known (Marchenko & Pastur). What stands above that edge is
counted, and the rest must be no more than rounding can leave.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..errors import WeightsError
from .dtypes import as_values, numpy_dtype
from .header import TensorInfo, printable
from .joined import JoinedTensor

BLOCK = 1 << 20  # values at a time
SPARE = 10  # columns of the projection beyond the highest rank that is looked for
ABOVE = 1.5  # times the edge of noise: rows of unequal size widen it
MANTISSA = {"BF16": 7, "F16": 10, "F32": 23, "F64": 52}  # bits
LEAST = {"BF16": 2.0**-133, "F16": 2.0**-24, "F32": 2.0**-149, "F64": 0.0}  # steps next to 0


@dataclass(frozen=True)
class Difference:
    """What two tensors of one shape differ in.

    Parameters
    ----------
    share : float
        Of the values that differ, in [0, 1].
    largest : float
        Largest absolute difference.
    relative : float, optional
        Norm of the difference by the norm of the first; None where that is 0, or not finite.
    one_step : bool
        Whether no value moved by more than one step of the coarser of the two stored types.
    finite : bool
        Whether all values of both are finite, but for those that are alike.
    squares : float
        Sum of the squared differences.
    rounding : float
        The most that rounding to the coarser of the two types adds to `squares`.
    """

    share: float
    largest: float
    relative: float | None
    one_step: bool
    finite: bool
    squares: float
    rounding: float


class Pair:
    """Two stored tensors of one shape, read together in blocks of whole rows."""

    def __init__(self, a: TensorInfo, b: TensorInfo):
        self.a, self.b = a, b
        self.joined = [info for info in (a, b) if isinstance(info, JoinedTensor)]
        shape = a.shape if self.joined or len(a.shape) > 1 else (1, *a.shape)
        self.rows, self.width = shape[0], math.prod(shape[1:])

    def blocks(self) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """First row, and the values of both from there on, (n, width) float64."""
        step = max(1, BLOCK // max(self.width, 1))
        for first in range(0, self.rows if self.width else 0, step):
            stop = min(first + step, self.rows)
            yield first, self._read(self.a, first, stop), self._read(self.b, first, stop)

    def differences(self) -> Iterator[tuple[int, np.ndarray]]:
        """First row, and second minus first from there on."""
        for first, a, b in self.blocks():
            yield first, b - a

    def _read(self, info: TensorInfo, first: int, stop: int) -> np.ndarray:
        try:
            if isinstance(info, JoinedTensor):
                return info.rows(first, stop).reshape(stop - first, self.width).astype(np.float64)
            dtype, shape = numpy_dtype(info.dtype), (self.rows, self.width)
            items = np.memmap(info.file, dtype, "r", info.offset, shape)[first:stop]
            return as_values(items, info.dtype).astype(np.float64)
        except (OSError, ValueError) as error:
            raise WeightsError(f"{info.file}: {printable(info.name)} cannot be read ({error})") from None

    def measure(self) -> Difference:
        """How much the two differ."""
        changed = count = 0
        largest = squares = own = rounding = 0.0
        one_step = finite = True
        for _, a, b in self.blocks():
            unlike = ~((a == b) | (np.isnan(a) & np.isnan(b)))
            count += a.size
            changed += int(unlike.sum())
            usable = np.isfinite(a) & np.isfinite(b)
            finite &= bool(usable[unlike].all())
            a, b = np.where(usable, a, 0), np.where(usable, b, 0)
            moved, step = np.abs(b - a), self._step(np.maximum(np.abs(a), np.abs(b)))
            largest = max(largest, float(moved.max(initial=0)))
            one_step &= bool((moved <= step).all())
            squares += float((moved**2).sum())
            own += float((a**2).sum())
            rounding += float((step**2).sum()) / 4
        relative = math.sqrt(squares / own) if own and finite else None
        return Difference(changed / max(count, 1), largest, relative, one_step and finite, finite, squares, rounding)

    def _step(self, size: np.ndarray) -> np.ndarray:
        """Distance of neighbouring numbers of the coarser of the two types, at values of these sizes."""
        if self.joined:
            share = max(info.step for info in self.joined)
            return np.broadcast_to(size.max(1, keepdims=True) * share, size.shape)
        kinds = (self.a.dtype, self.b.dtype)
        steps = np.exp2(np.frexp(size)[1] - 1.0 - min(MANTISSA[kind] for kind in kinds))
        return np.where(size > 0, np.maximum(steps, max(LEAST[kind] for kind in kinds)), 0)

    def low_rank(self, found: Difference, most: int) -> int | None:
        """The rank of the difference, if it is at most `most` and half of what it could be; None otherwise.

        None too where the difference is no more than noise, and where beside a low rank more is left than rounding
        leaves.
        """
        possible = min(self.rows, self.width)
        if possible < 2 or not found.finite or found.squares == 0:
            return None
        values = self.singular_values(min(most + SPARE, possible))
        tiny = max(self.rows, self.width) * np.finfo(np.float64).eps * values[0]
        beyond = max(found.squares - float((values**2).sum()), 0.0)
        left = beyond + np.append(np.cumsum(values[::-1] ** 2)[::-1], 0)  # squares that each rank leaves
        noise = np.sqrt(np.maximum(left, found.rounding / 3))  # a rounding error is a third of its worst, in the mean
        for rank in range(min(most, possible // 2, len(values)) + 1):
            following = values[rank] if rank < len(values) else 0.0
            small = left[rank] <= max(found.rounding, found.squares * 1e-12)
            if small and following <= max(ABOVE * self._edge(rank) * noise[rank], tiny):
                return rank or None
        return None

    def _edge(self, rank: int) -> float:
        """Largest singular value of noise whose squares sum to 1, in what a change of this rank leaves free."""
        rows, width = self.rows - rank, self.width - rank
        return 1 / math.sqrt(rows) + 1 / math.sqrt(width) if rows > 0 and width > 0 else 0.0

    def singular_values(self, n: int) -> np.ndarray:
        """The `n` largest singular values of the difference, (n,), descending; those amid noise are lower bounds."""
        basis = np.random.default_rng(0).standard_normal((self.width, n))
        for _ in range(2):
            left = np.linalg.qr(np.concatenate([d @ basis for _, d in self.differences()]))[0]
            onto = np.zeros((self.width, left.shape[1]))
            for first, d in self.differences():
                onto += d.T @ left[first : first + len(d)]
            basis = np.linalg.qr(onto)[0]
        return np.linalg.svd(onto, compute_uv=False)[:n]
