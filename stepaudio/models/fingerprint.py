"""What tells two nets apart: a digest of every number in them, worked out where the numbers are."""

from __future__ import annotations

import hashlib

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from .parameters import named_arrays

CHUNK = 1 << 24  # numbers at a time: what is worked out beside them stays small
WORDS = {1: mx.uint8, 2: mx.uint16, 4: mx.uint32}
STEP = 2654435761  # odd, so that every place of a number counts differently (Knuth)


def fingerprint(net: nn.Module) -> str:
    """Hexadecimal digest of names, shapes, dtypes and bits of all parameters."""
    digest = hashlib.sha256()
    for name, array in sorted(named_arrays(net.parameters())):
        digest.update(f"{name} {array.shape} {array.dtype} {_checksum(array)}\n".encode())
    return digest.hexdigest()


def _checksum(array: mx.array) -> list[int]:
    """Of the bits of an array: for each chunk the sum of all, each times a factor of its place, modulo 2^32."""
    flat = mx.contiguous(array).reshape(-1)
    words = flat.view(WORDS[min(array.dtype.size, 4)])
    sums = []
    for start in range(0, words.size, CHUNK):
        part = words[start : start + CHUNK].astype(mx.uint32)
        place = mx.arange(part.size, dtype=mx.uint32) * STEP + 1
        sums.append((part * place).sum().astype(mx.uint32))
        mx.eval(sums[-1])
    return [int(np.array(s)) for s in sums]
