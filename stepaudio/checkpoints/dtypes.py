"""Types of stored tensors, as safetensors names them: bytes an item, what numpy reads them as, what nets can hold."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from ..choices import shown
from ..errors import WeightsError

ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
_NUMPY = {
    "BOOL": "?", "U8": "u1", "I8": "i1", "U16": "<u2", "I16": "<i2", "F16": "<f2", "BF16": "<u2", "U32": "<u4",
    "I32": "<i4", "F32": "<f4", "U64": "<u8", "I64": "<i8", "F64": "<f8",
}  # fmt: skip
HELD = {"BF16": mx.bfloat16, "F16": mx.float16, "F32": mx.float32}  # weights: dtype on disk -> in memory
SCALED = "I8 with scales"  # what `int8` makes of two stored tensors
PACKED = "-bit"  # within what `packed` makes of three
FLOATS = (*HELD, "F64")
ACCEPTED = ", ".join((*HELD, SCALED)) + ", fewer bits"  # of which nets can be filled, in words

READABLE = frozenset(_NUMPY)  # the others numpy has no type for


def held_dtype(dtype: mx.Dtype | str | None) -> mx.Dtype | None:
    """The dtype that a caller means, by itself or by its name, or None; `WeightsError` if nets are not held in it."""
    names = {str(held).removeprefix("mlx.core."): held for held in HELD.values()}
    found = names.get(dtype) if isinstance(dtype, str) else dtype
    if dtype is not None and not (isinstance(found, mx.Dtype) and found in HELD.values()):
        raise WeightsError(f"dtype: expected float32, float16 or bfloat16, found {shown(dtype)}")
    return found


def packed_dtype(bits: int, group_size: int, mode: str) -> str:
    """What reports call a matrix of fewer bits.

    >>> packed_dtype(4, 64, "affine")
    '4-bit affine by 64'
    """
    return f"{bits}{PACKED} {mode} by {group_size}"


def usable(dtype: str) -> bool:
    """Whether nets can be filled from a tensor of this dtype, as records call it."""
    return dtype in HELD or dtype == SCALED or PACKED in dtype


def numpy_dtype(stored: str) -> np.dtype:
    """What numpy reads the bytes of this stored type, one of `READABLE`, as; bfloat16 as its bits."""
    return np.dtype(_NUMPY[stored])


def as_values(items: np.ndarray, stored: str, float32: bool = False) -> np.ndarray:
    """Values of what was read by `numpy_dtype`: bfloat16 widened, and with `float32` every other float type as well."""
    if stored == "BF16":  # the upper half of a float32
        return (items.astype(np.uint32) << 16).view(np.float32)
    return items.astype(np.float32, copy=False) if float32 and stored in FLOATS else items
