"""Attention that a tap can see into: the fused kernel, but where the pattern itself is replaced.

B batch, H heads, G key/value heads (G divides H), n queries, L keys, D channels of a head.
"""

from __future__ import annotations

import mlx.core as mx

from ..backend.ops import Mask, attention_pattern, softmax_attention, weighted_values
from .tap import Tap, emit, wants


def attend(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    scale: float,
    mask: Mask,
    tap: Tap | None = None,
) -> mx.array:
    """What each query reads, heads side by side: (B, n, H * D).

    The tap receives "pattern" (B, H, n, L), float32, rows summing to 1, and "z" (B, H, n, D), what each head read.
    The pattern is computed beside the kernel, and by MLX only if somebody looks at it; so watching changes no bit of
    the result. Where a row of the pattern is replaced by another, what it reads is written out; the kernel's result
    stands in all other rows, to the bit.

    Parameters
    ----------
    q : (B, H, n, D). k, v : (B, G, L, D).
    scale : of the scores. mask : as `backend.ops.softmax_attention` takes it.
    """
    z = softmax_attention(q, k, v, scale, mask)
    if wants(tap, "pattern"):
        computed = attention_pattern(q, k, scale, mask)
        pattern = emit(tap, "pattern", computed)
        if pattern is not computed:
            same = mx.all(pattern == computed, axis=-1, keepdims=True)
            z = mx.where(same, z, weighted_values(pattern, v))
    return side_by_side(emit(tap, "z", z))


def heads_first(x: mx.array, heads: int) -> mx.array:
    """(B, n, H * D) -> (B, H, n, D)."""
    B, n, width = x.shape
    if n == 1:  # the same numbers in the same order: nothing is to be moved
        return x.reshape(B, heads, 1, width // heads)
    return x.reshape(B, n, heads, -1).transpose(0, 2, 1, 3)


def side_by_side(x: mx.array) -> mx.array:
    """(B, H, n, D) -> (B, n, H * D)."""
    B, H, n, D = x.shape
    return x.reshape(B, 1, H * D) if n == 1 else x.transpose(0, 2, 1, 3).reshape(B, n, H * D)
