"""Matrices stored in eight bits: a tensor of int8 and, named after it, a tensor of scales, one for each row.

A value is its whole number times its row's scale. `NAME` is I8 of shape (rows, …), in PyTorch's axes; `NAME_scale` is
F32, F16 or BF16 of shape (rows,). What is written here has numbers in -127..127 and scales of at most 16 significant
bits, so that every product is exact in float32, and values that were read are written again bit by bit.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import prod

import mlx.core as mx
import numpy as np

from ..errors import WeightsError
from .dtypes import HELD, SCALED, as_values, numpy_dtype
from .header import TensorInfo, listed, printable
from .joined import JoinedTensor

SCALE = "_scale"  # behind a tensor's name
LARGEST = 127


@dataclass(frozen=True)
class ScaledTensor(JoinedTensor):
    """A tensor of int8 with its rows' scales; `dtype` is `SCALED`, `nbytes` counts both."""

    scale: TensorInfo

    @property
    def step(self) -> float:
        """As `JoinedTensor`."""
        return 1 / LARGEST

    def rows(self, first: int, stop: int) -> np.ndarray:
        """(n, values of a row), float32."""
        rows, width = self.shape[0], prod(self.shape[1:])
        numbers = np.memmap(self.file, np.int8, "r", self.offset, (rows, width))
        stored = np.memmap(self.scale.file, numpy_dtype(self.scale.dtype), "r", self.scale.offset, (rows,))
        scale = as_values(stored, self.scale.dtype, float32=True)
        return widened(numbers[first:stop], scale[first:stop])


def quantised(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Int8 numbers and float32 scales (rows,) of finite values (rows, …); half a step is the largest error."""
    rows = np.ascontiguousarray(values, np.float32).reshape(len(values), -1)
    scale = np.abs(rows).max(1, initial=0) / LARGEST
    # up to the next number of 16 bits: the mantissa's upper bits, one more where any of the lower ones was set
    scale = ((scale.view(np.uint32) + 0xFF) & 0xFFFFFF00).view(np.float32)
    numbers = np.rint(rows / np.where(scale > 0, scale, 1)[:, None])
    return numbers.astype(np.int8).reshape(values.shape), scale


def widened(numbers: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """The float32 values of int8 numbers (rows, …) and their scales (rows,)."""
    return numbers.astype(np.float32) * scale.astype(np.float32).reshape(-1, *[1] * (numbers.ndim - 1))


def in_eight_bits(tensors: Mapping[str, mx.array], names: Collection[str]) -> dict[str, mx.array]:
    """The tensors, rows first, with those of these names as numbers and scales.

    Raises
    ------
    WeightsError
        A name that is none of theirs, or values that are not finite.
    """
    unknown = sorted(set(names) - set(tensors))
    if unknown:
        raise WeightsError(f"int8: {listed(unknown)} is no tensor of this config; expected names of its layout")
    out = {}
    for name, array in tensors.items():
        if name not in names:
            out[name] = array
            continue
        values = np.array(array.astype(mx.float32))
        if not np.isfinite(values).all():
            raise WeightsError(f"int8: {name} has values that are not finite; such have no scale")
        numbers, scale = quantised(values)
        out |= {name: mx.array(numbers), name + SCALE: mx.array(scale)}
    return out


def with_scales(records: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    """The records of a checkpoint with each int8 tensor and its scales as one `ScaledTensor`.

    Raises
    ------
    WeightsError
        Scales that are not one float for each row.
    """
    pairs = {
        name: (info, records[name + SCALE])
        for name, info in records.items()
        if info.dtype == "I8" and name + SCALE in records
    }
    for name, (info, scale) in pairs.items():
        if scale.dtype not in HELD or not info.shape or scale.shape != info.shape[:1]:
            raise WeightsError(
                f"{info.file}: {printable(name)} is I8 of shape {info.shape}, its scales {scale.dtype} of shape "
                f"{scale.shape}; expected {', '.join(HELD)} of shape {info.shape[:1] or '(rows,)'}; write them again"
            )
    out = {}
    for name, info in records.items():
        if name in pairs:
            scale = pairs[name][1]
            nbytes = info.nbytes + scale.nbytes
            out[name] = ScaledTensor(info.name, info.shape, SCALED, nbytes, info.file, info.offset, scale)
        elif not (name.endswith(SCALE) and name.removesuffix(SCALE) in pairs):
            out[name] = info
    return out


def widened_pairs(arrays: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """Arrays of one file by name, each of int8 with scales as its float32 values, all others as they are."""
    pairs = {name for name, value in arrays.items() if value.dtype == mx.int8 and name + SCALE in arrays}
    out = {}
    for name, value in arrays.items():
        if name in pairs:
            scale = arrays[name + SCALE].astype(mx.float32)
            out[name] = value.astype(mx.float32) * scale.reshape(-1, *[1] * (value.ndim - 1))
        elif not (name.endswith(SCALE) and name.removesuffix(SCALE) in pairs):
            out[name] = value
    return out
