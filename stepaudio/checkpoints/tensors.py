"""One tensor of a published file: where it lies and in which order, so that nobody needs to read it to judge it.

Knows no file format and no names.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..errors import DataError, WeightsError
from .header import TensorInfo, printable, read_header

STORED = {
    name: np.dtype(kind)
    for name, kind in {
        "BOOL": "?",
        "U8": "u1",
        "I8": "i1",
        "U16": "<u2",
        "I16": "<i2",
        "F16": "<f2",
        "BF16": "<u2",
        "U32": "<u4",
        "I32": "<i4",
        "F32": "<f4",
        "U64": "<u8",
        "I64": "<i8",
        "F64": "<f8",
    }.items()
}


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Every tensor of a safetensors file; bfloat16 widened to float32, all other types as stored.

    Raises `WeightsError` where the file is missing or broken, `DataError` for a type that numpy has not.
    """
    arrays = {}
    for name, info in read_header(path).items():
        if info.dtype not in STORED:
            raise DataError(f"{path}: {name} is stored as {info.dtype}, which nothing here reads")
        flat = np.fromfile(path, STORED[info.dtype], info.nbytes // STORED[info.dtype].itemsize, offset=info.offset)
        if info.dtype == "BF16":
            flat = (flat.astype(np.uint32) << 16).view(np.float32)
        arrays[name] = flat.reshape(info.shape)
    return arrays


KINDS = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "F64": "<f8", "I64": "<i8", "I32": "<i4", "I16": "<i2",
         "I8": "i1", "U8": "u1", "BOOL": "?"}  # fmt: skip
FLOATS = ("F32", "F16", "BF16", "F64")


@dataclass(frozen=True)
class StoredTensor(TensorInfo):
    """`strides` counts items per step of each axis; None where the order is C's."""

    strides: tuple[int, ...] | None = None

    @property
    def dense(self) -> bool:
        """Whether its bytes, in whichever order, are all the values and each of them once."""
        return self.strides is None or span(self.shape, self.strides) == math.prod(self.shape)

    @property
    def transposed(self) -> StoredTensor:
        """A matrix with its axes exchanged, still the same bytes."""
        strides = self.strides or (self.shape[1], 1)
        return replace(self, shape=self.shape[::-1], strides=strides[::-1])


def span(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Items from the first to the last that a view reaches."""
    return 0 if 0 in shape else 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))


def c_order(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of an array without gaps, last axis fastest."""
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


def read_values(info: StoredTensor) -> np.ndarray:
    """The values, as float32 where the file has any kind of float, else as stored. A view of the file if it can be.

    Raises `WeightsError` where the file cannot be read.
    """
    strides = c_order(info.shape) if info.strides is None else info.strides
    n, kind = span(info.shape, strides), np.dtype(KINDS[info.dtype])
    if n == 0:
        flat = np.zeros(0, kind)
    else:
        try:
            flat = np.memmap(info.file, kind, "r", info.offset, (n,))
        except (OSError, ValueError) as error:
            raise WeightsError(f"{info.file}: {printable(info.name)} cannot be read ({error})") from None
    if info.dtype == "BF16":
        flat = (flat.astype(np.uint32) << 16).view(np.float32)
    elif info.dtype in FLOATS:
        flat = flat.astype(np.float32, copy=False)
    steps = tuple(s * flat.itemsize for s in strides)
    return np.lib.stride_tricks.as_strided(flat, info.shape, steps, writeable=False)
