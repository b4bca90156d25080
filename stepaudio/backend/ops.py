"""GELU, SiLU, attention, rotary embedding and log-sum-exp, each with a form for where MLX has no vector instructions.

MLX's CPU backend on Linux evaluates `erf`, `exp`, `tanh`, `sin` one element at a time, but adds and multiplies
whole vectors. There, forms made of adds and multiplies alone (errors below 4e-7 of the value or of 1) are several times
faster, once arrays are large enough to pay for the longer graph. Metal and CUDA take the plain forms, but for GELU in
bfloat16 on CUDA: MLX fuses nothing within a gradient, and there GELU took ten times as long as fused.

The activations of `mlx.nn` are compiled. On a CPU that means a C++ compiler, and libraries written to and loaded from a
temporary folder that all users share: no net uses them there.
"""

import math
from typing import cast

import mlx.core as mx
import mlx.nn as nn

from . import cpu_ops
from .cpu_ops import (
    LOG2_E,
    PHI,
    PHI_LIMIT,
    SIGMOID,
    SIGMOID_LIMIT,
    attention_of_adds,
    exp2_below,
    large,
    rational,
    rotations,
)
from .cuda_ops import THREADS, gelu_on_cuda
from .device import on_cpu, on_cuda

SQRT_HALF = 0.5**0.5
Mask = mx.array | str | None  # of attention: booleans or additive, "causal", or none


def gelu(x: mx.array) -> mx.array:
    """Exact GELU, x * Phi(x) (Hendrycks and Gimpel 2016), never the tanh approximation."""
    if large(x):
        return x * (rational(x, PHI, PHI_LIMIT) + 0.5)
    if x.dtype == mx.bfloat16 and x.size % THREADS == 0 and on_cuda():
        return cast(mx.array, gelu_on_cuda(x))
    return x * (0.5 + 0.5 * mx.erf(x * SQRT_HALF)) if on_cpu() else nn.gelu(x)


def relu(x: mx.array) -> mx.array:
    """max(X, 0)."""
    return mx.maximum(x, 0)


def leaky_relu(x: mx.array, slope: float) -> mx.array:
    """X where positive, else slope * x; 0 <= slope <= 1."""
    return mx.maximum(x, slope * x) if on_cpu() else nn.leaky_relu(x, slope)


def elu(x: mx.array) -> mx.array:
    """X where positive, else e^x - 1 (Clevert et al. 2016)."""
    return mx.where(x > 0, x, exp(mx.minimum(x, 0)) - 1) if on_cpu() else nn.elu(x)


def exp(x: mx.array) -> mx.array:
    """e^x; past the range of float32, arrays that are large on a CPU end near 2^127 and 2^-125."""
    return cpu_ops.exp(x) if large(x) else mx.exp(x)


def sine_squared(x: mx.array, rate: mx.array) -> mx.array:
    """sin^2(rate x), in x's shape; `rate` (channels,) for the last axis of x.

    Where MLX only adds and multiplies vectors, phases are counted in half turns: two roundings more than a product in
    radians has, so up to 1.8e-7 of the phase in all.
    """
    if large(x):
        return cpu_ops.sine_squared(x * (rate * (1 / math.pi)))
    return mx.square(mx.sin(x * rate))


def silu(x: mx.array) -> mx.array:
    """X * sigmoid(x)."""
    if large(x):
        return x * (rational(x, SIGMOID, SIGMOID_LIMIT) + 0.5)
    return x * mx.sigmoid(x)


def log_sum_exp(x: mx.array) -> mx.array:
    """(B, V) -> (B,): natural logarithm of the sum of exponentials, entries of -inf allowed."""
    if not large(x):
        return mx.logsumexp(x, axis=-1)
    powers, top = exp2_below(x * LOG2_E)
    return (mx.log2(powers.sum(axis=-1)) + top[..., 0]) * (1 / LOG2_E)


def rope(x: mx.array, dims: int, base: float, offset: int) -> mx.array:
    """Rotary position embedding (Su et al. 2021) in the halves convention, at positions offset, offset+1, and so on.

    x (B, H, n, dims). On the CPU, cosines and sines are made once for all layers, and a lone position is turned by
    one matrix product, which is a tenth of the graph.
    """
    if not cpu_ops.vectorless(x):
        return mx.fast.rope(x, dims, traditional=False, base=base, scale=1.0, offset=offset)
    turns = rotations(dims, base, offset, x.shape[2])
    if len(turns) == 1:
        return x @ turns[0]
    half = dims // 2
    return x * turns[0] + mx.concatenate([x[..., half:], x[..., :half]], axis=-1) * turns[1]


def softmax_attention(q: mx.array, k: mx.array, v: mx.array, scale: float, mask: Mask = None) -> mx.array:
    """Scaled dot-product attention: MLX's fused kernel, or a form of adds and multiplies where that is faster.

    Parameters
    ----------
    q : (B, H, n, D). k, v : (B, G, L, D) with G dividing H.
    scale : of the scores.
    mask : None, "causal" (aligned at the end), booleans (true = seen) or additive, broadcastable to (B, H, n, L).

    Returns
    -------
    (B, H, n, D)
    """
    if not cpu_ops.vectorless(q):
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask)
    return attention_of_adds(q, k, v, scale, _array_mask(mask, q.shape[2], k.shape[2]))


def attention_pattern(q: mx.array, k: mx.array, scale: float, mask: Mask = None) -> mx.array:
    """The weights of that attention, written out: (B, H, n, L), float32, rows summing to 1."""
    (B, H, n, D), (_, G, L, _) = q.shape, k.shape
    scores = (q.reshape(B, G, H // G, n, D) * scale) @ k[:, :, None].swapaxes(-1, -2)
    scores = scores.reshape(B, H, n, L).astype(mx.float32)
    mask = _array_mask(mask, n, L)
    if mask is not None:
        scores = mx.where(mask, scores, -mx.inf) if mask.dtype == mx.bool_ else scores + mask
    return mx.softmax(scores, axis=-1)


def weighted_values(pattern: mx.array, v: mx.array) -> mx.array:
    """Values (B, G, L, D) under weights (B, H, n, L): (B, H, n, D) in the dtype of the values."""
    (B, H, n, L), (_, G, _, D) = pattern.shape, v.shape
    weights = pattern.astype(v.dtype).reshape(B, G, H // G, n, L)
    return (weights @ v[:, :, None]).reshape(B, H, n, D)


def _array_mask(mask: Mask, n: int, L: int) -> mx.array | None:
    """The mask as an array, (n, L) booleans for "causal"."""
    return mx.arange(L)[None, :] <= mx.arange(L - n, L)[:, None] if isinstance(mask, str) else mask
