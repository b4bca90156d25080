"""What the values of stored tensors look like: NaN, Inf, constants, zeros, moments, and traces of an initialiser.

Reads tensor data from disk in blocks of bounded size, by numpy alone.

What it can detect: that a tensor is unusable (NaN, Inf), was never written (constant), or has the moments of a
well-known random initialiser of its shape. What it cannot: that a model was trained well, or trained at all by a
recipe with another initialiser. A short fine-tune hardly moves the moments, so what matches an initialiser may have
been trained a little, and some match by chance: 1 of 368 kernels of five trained speech and text models did. Read the
share.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..errors import WeightsError
from .dtypes import HELD, ITEM_BYTES, as_values, numpy_dtype
from .header import TensorInfo, printable
from .joined import JoinedTensor

BLOCK = 1 << 22  # values at a time: 16 MiB in float32, about 150 MiB with the float64 work arrays
UNIFORM, NORMAL = 1.8, 3.0  # kurtosis E[x^4] / E[x^2]^2 of the two families
MIN_VALUES = 1024  # below this the moments of a sample are too uncertain to recognise anything
SIGMAS = 4.0  # tolerance in standard errors, where that is wider than the fixed one


@dataclass(frozen=True)
class TensorValues:
    """Values of one tensor. Moments are over finite values and `None` where there are none (or overflow).

    `zero_share` is in [0, 1]; `kurtosis` is 3 for a normal distribution; `initialiser` names the one that leaves such
    values, None if none does.
    """

    name: str
    count: int
    nan: int
    inf: int
    zero_share: float
    constant: bool
    mean: float | None
    std: float | None
    norm: float | None
    kurtosis: float | None
    initialiser: str | None

    @property
    def notes(self) -> tuple[str, ...]:
        """What is remarkable, in words; empty for an ordinary tensor."""
        notes = [f"{n} {kind}" for n, kind in ((self.nan, "NaN"), (self.inf, "Inf")) if n]
        if self.constant and not self.initialiser:
            notes.append(f"constant {self.mean:g}")
        return (*notes, self.initialiser) if self.initialiser else tuple(notes)


def describe_values(info: TensorInfo, name: str | None = None) -> TensorValues:
    """Read one tensor and describe its values.

    Parameters
    ----------
    info : TensorInfo
        Where it lies; dtype F32, F16 or BF16, int8 with scales, or fewer bits; PyTorch layout.
    name : str, optional
        Published name, if the file calls it otherwise.

    Returns
    -------
    TensorValues

    Raises
    ------
    WeightsError
        If the data cannot be read, or the dtype is another one.
    """
    if info.dtype not in HELD and not isinstance(info, JoinedTensor):
        shown = printable(info.name)
        raise WeightsError(f"{shown}: values of dtype {info.dtype} are not read, only {', '.join(HELD)}")
    name, tally = name or info.name, _Tally()
    for block in _blocks(info):
        tally.add(block)
    mean, std, norm, kurtosis = tally.moments()
    constant = bool(tally.finite == tally.count > 1 and tally.low == tally.high)
    return TensorValues(
        name=name, count=tally.count, nan=tally.nan, inf=tally.count - tally.finite - tally.nan,
        zero_share=tally.zeros / max(tally.count, 1), constant=constant,
        mean=_finite(mean), std=_finite(std), norm=_finite(norm), kurtosis=_finite(kurtosis),
        initialiser=_untouched(name, info.shape, tally.low) if constant else _match(name, info.shape, tally),
    )  # fmt: skip


def initialisers(shape: tuple[int, ...]) -> dict[str, tuple[float, float]]:
    """Standard deviation and kurtosis that the usual initialisers give a kernel of `shape` (PyTorch layout).

    Sources: `torch.nn.init` (Glorot & Bengio 2010; He et al. 2015), the PyTorch defaults of Linear, Conv1d and
    Embedding, `initializer_range` = 0.02 of GPT-2, Qwen2 and Whisper, and LeCun's 1 / sqrt(fan_in).
    """
    kernel = math.prod(shape[2:])
    fan_in, fan_out = shape[1] * kernel, shape[0] * kernel
    return {
        "uniform(+-1/sqrt(fan_in)), the default of Linear and Conv1d": (1 / math.sqrt(3 * fan_in), UNIFORM),
        "normal(0, 0.02)": (0.02, NORMAL),
        "Xavier uniform": (math.sqrt(2 / (fan_in + fan_out)), UNIFORM),
        "Xavier normal": (math.sqrt(2 / (fan_in + fan_out)), NORMAL),
        "Kaiming uniform": (math.sqrt(2 / fan_in), UNIFORM),
        "Kaiming normal": (math.sqrt(2 / fan_in), NORMAL),
        "normal(0, 1/sqrt(fan_in))": (1 / math.sqrt(fan_in), NORMAL),
        "normal(0, 1), the default of Embedding": (1.0, NORMAL),
    }


class _Tally:
    """Running counts and power sums about a pivot near the mean, in float64."""

    def __init__(self):
        self.count = self.finite = self.nan = self.zeros = 0
        self.low, self.high, self.pivot = math.inf, -math.inf, None
        self.sums = np.zeros(4)

    def add(self, block: np.ndarray) -> None:
        """Count one block of float32 values."""
        self.count += block.size
        self.nan += int(np.isnan(block).sum())
        self.zeros += int((block == 0).sum())
        block = block[np.isfinite(block)].astype(np.float64)
        if not block.size:
            return
        self.finite += block.size
        self.low, self.high = min(self.low, block.min()), max(self.high, block.max())
        self.pivot = block.mean() if self.pivot is None else self.pivot
        block -= self.pivot
        power = block.copy()
        for k in range(4):
            self.sums[k] += power.sum()
            power *= block

    def moments(self) -> tuple[float, float, float, float]:
        """Mean, standard deviation (of the population), Euclidean norm, kurtosis; NaN where undefined."""
        if not self.finite:
            return math.nan, math.nan, math.nan, math.nan
        m1, m2, m3, m4 = self.sums / self.finite  # float64 holds the fourth power of any sane weight, and of most
        mean, variance = self.pivot + m1, max(m2 - m1**2, 0.0)
        fourth = m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4
        norm = math.sqrt(self.finite * (variance + mean**2))
        return mean, math.sqrt(variance), norm, fourth / variance**2 if variance**2 > 0 else math.nan


def _blocks(info: TensorInfo) -> Iterator[np.ndarray]:
    """The values of a tensor, flat, as float32, at most `BLOCK` at a time."""
    if isinstance(info, JoinedTensor):
        yield from _joined_blocks(info)
        return
    left = info.nbytes // ITEM_BYTES[info.dtype]
    try:
        with info.file.open("rb") as stream:
            stream.seek(info.offset)
            while left:
                block = np.fromfile(stream, numpy_dtype(info.dtype), min(left, BLOCK))
                if not block.size:
                    raise WeightsError(f"{info.file}: ends within {printable(info.name)}; it changed meanwhile")
                left -= block.size
                yield as_values(block, info.dtype, float32=True)
    except OSError as error:
        raise WeightsError(f"{info.file}: cannot be read ({error.strerror or error})") from None


def _joined_blocks(info: JoinedTensor) -> Iterator[np.ndarray]:
    try:
        yield from info.blocks(BLOCK)
    except (OSError, ValueError) as error:  # ValueError: a file that has become too short for its map
        raise WeightsError(f"{info.file}: {printable(info.name)} cannot be read ({error})") from None


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _untouched(name: str, shape: tuple[int, ...], value: float) -> str | None:
    """Vectors that are still what a fresh module holds."""
    if len(shape) == 1 and name.endswith(".weight") and value == 1:
        return "untouched: a norm of ones"
    return "untouched: a bias of zeros" if name.endswith(".bias") and value == 0 else None


def _match(name: str, shape: tuple[int, ...], tally: _Tally) -> str | None:
    """The initialiser with these moments: std within 2 %, kurtosis within 0.05, mean zero (wider if few values)."""
    n = tally.finite
    if len(shape) < 2 or not name.endswith(".weight") or n < max(MIN_VALUES, tally.count):
        return None
    mean, std, _, kurtosis = tally.moments()
    fits = {}
    for label, (std0, kurtosis0) in initialisers(shape).items():
        off = abs(std / std0 - 1)
        std_ok = off <= max(0.02, SIGMAS * math.sqrt((kurtosis0 - 1) / (4 * n)))
        kurtosis_ok = abs(kurtosis - kurtosis0) <= max(0.05, SIGMAS * math.sqrt(24 / n))
        edge_ok = kurtosis0 == NORMAL or max(-tally.low, tally.high) <= 1.01 * math.sqrt(3) * std0
        if std_ok and kurtosis_ok and edge_ok and abs(mean) <= SIGMAS * std0 / math.sqrt(n):
            fits[label] = off
    return f"looks like {min(fits, key=lambda label: fits[label])}" if fits else None
