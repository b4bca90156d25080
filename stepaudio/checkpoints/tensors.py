"""Stored tensors as arrays: whole safetensors files, and single tensors of any file by place and strides.

A tensor's record says where it lies and in which order, so that it need not be read to be judged.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import cast

import mlx.core as mx
import numpy as np

from ..errors import DataError, WeightsError
from .dtypes import READABLE, as_values, numpy_dtype
from .header import TensorInfo, printable, read_header


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Every tensor of a safetensors file; bfloat16 widened to float32, all other types as stored.

    Raises `WeightsError` where the file is missing or damaged, `DataError` for a type that numpy has not.
    """
    arrays = {}
    for name, info in read_header(path).items():
        if info.dtype not in READABLE:
            raise DataError(f"{path}: {name} is stored as {info.dtype}, which nothing here reads")
        items = np.fromfile(path, numpy_dtype(info.dtype), prod(info.shape), offset=info.offset)
        arrays[name] = as_values(items, info.dtype).reshape(info.shape)
    return arrays


def lazy_arrays(path: str | Path) -> dict[str, mx.array]:
    """Every tensor of a safetensors file, not read before it is needed; raises what `mx.load` raises."""
    return cast(dict[str, mx.array], mx.load(str(path), format="safetensors"))


def lazy_arrays_with_metadata(path: str | Path) -> tuple[dict[str, mx.array], dict[str, str]]:
    """`lazy_arrays`, and the file's own metadata."""
    loaded = mx.load(str(path), format="safetensors", return_metadata=True)
    return cast(tuple[dict[str, mx.array], dict[str, str]], loaded)


@dataclass(frozen=True)
class StoredTensor(TensorInfo):
    """A tensor of any file; `strides` counts items per step of each axis, None where the order is C's."""

    strides: tuple[int, ...] | None = None

    @property
    def dense(self) -> bool:
        """Whether its bytes, in whichever order, are all the values and each of them once."""
        return self.strides is None or span(self.shape, self.strides) == prod(self.shape)

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
    return tuple(prod(shape[i + 1 :]) for i in range(len(shape)))


def read_values(info: StoredTensor) -> np.ndarray:
    """The values, as float32 where the file has any kind of float, else as stored. A view of the file if it can be.

    Raises `WeightsError` where the file cannot be read.
    """
    strides = c_order(info.shape) if info.strides is None else info.strides
    n = span(info.shape, strides)
    if info.dtype not in READABLE:
        raise WeightsError(f"{info.file}: {printable(info.name)} is stored as {info.dtype}, which nothing here reads")
    if n == 0:
        flat = np.zeros(0, numpy_dtype(info.dtype))
    else:
        try:
            flat = np.memmap(info.file, numpy_dtype(info.dtype), "r", info.offset, (n,))
        except (OSError, ValueError) as error:
            raise WeightsError(f"{info.file}: {printable(info.name)} cannot be read ({error})") from None
    flat = as_values(flat, info.dtype, float32=True)
    steps = tuple(s * flat.itemsize for s in strides)
    return np.lib.stride_tricks.as_strided(flat, info.shape, steps, writeable=False)
