"""GELU, SiLU, attention, rotary embedding and log-sum-exp, each with a form for where MLX has no vector instructions.

MLX's CPU backend on Linux evaluates `erf`, `exp`, `tanh`, `sin` one element at a time, but adds and multiplies
whole vectors. There, large arrays go through numpy, which has vector instructions for all of these but `erf`, or
through forms made of adds and multiplies alone (errors below 4e-7 of the value or of 1). Metal and CUDA take the plain
forms, but for GELU in bfloat16 on CUDA: MLX fuses nothing within a gradient, and there GELU took ten times as long as
fused. On a GPU small nets wait for the host, which takes about 10 microseconds to start a kernel there; so what comes
often is compiled into one.

The activations of `mlx.nn` are compiled. On a CPU that means a C++ compiler, and libraries written to and loaded from a
temporary folder that all users share: no net uses them there.
"""

from functools import lru_cache
from typing import cast

import mlx.core as mx
import mlx.nn as nn

from . import cpu_ops
from .cpu_ops import (
    GELU_CUBE,
    GELU_SCALE,
    LOG2_E,
    MISH_LIMIT,
    attention_of_adds,
    exp2_below,
    large,
    rotations,
)
from .cuda_ops import THREADS, gelu_on_cuda
from .device import on_cpu, on_cuda

SQRT_HALF = 0.5**0.5
Mask = mx.array | str | None  # of attention: booleans or additive, "causal", or none


def gelu(x: mx.array) -> mx.array:
    """Exact GELU, x * Phi(x) (Hendrycks and Gimpel 2016), never the tanh approximation."""
    if large(x):
        return cpu_ops.gelu(x)
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
    """e^x."""
    return cpu_ops.exp(x) if large(x) else mx.exp(x)


def sort(x: mx.array) -> mx.array:
    """The last axis rising."""
    return cpu_ops.sort(x) if large(x) else mx.sort(x, axis=-1)


def sine_squared(x: mx.array, rate: mx.array) -> mx.array:
    """sin^2(rate x), in x's shape; `rate` (channels,) for the last axis of x."""
    return cpu_ops.sine_squared(x * rate) if large(x) else mx.square(mx.sin(x * rate))


def snake(x: mx.array, rate: mx.array, floor: float) -> mx.array:
    """X + sin^2(rate x) / (rate + floor) (Ziyin et al. 2020), on CUDA in one kernel; `rate` (channels,)."""
    return _compiled_snake(floor)(x, rate) if on_cuda() else x + sine_squared(x, rate) / (rate + floor)


@lru_cache(maxsize=1)
def _compiled_snake(floor: float):
    return mx.compile(lambda x, rate: x + mx.square(mx.sin(x * rate)) / (rate + floor), shapeless=True)


def silu(x: mx.array) -> mx.array:
    """X * sigmoid(x)."""
    return cpu_ops.silu(x) if large(x) else x * mx.sigmoid(x)


def gated_silu(gate: mx.array, x: mx.array) -> mx.array:
    """silu(gate) * x, on a GPU in one kernel."""
    return silu(gate) * x if on_cpu() else _compiled_gated_silu()(gate, x)


@lru_cache(maxsize=1)
def _compiled_gated_silu():
    return mx.compile(lambda gate, x: gate * mx.sigmoid(gate) * x, shapeless=True)


def gated_sum(x: mx.array, gate: mx.array, y: mx.array) -> mx.array:
    """X + gate * y, on a GPU in one kernel."""
    return x + gate * y if on_cpu() else _compiled_gated_sum()(x, gate, y)


@lru_cache(maxsize=1)
def _compiled_gated_sum():
    return mx.compile(lambda x, gate, y: x + gate * y, shapeless=True)


def gelu_tanh(x: mx.array) -> mx.array:
    """GELU in the tanh approximation, as token2wav's estimator was trained with (not the exact one of the encoder)."""
    if large(x):
        return cpu_ops.gelu_tanh(x)
    return 0.5 * x * (1 + mx.tanh(GELU_SCALE * (x + GELU_CUBE * x * x * x))) if on_cpu() else nn.gelu_approx(x)


def mish(x: mx.array) -> mx.array:
    """X tanh(log(1 + e^x)) (Misra 2020); with e = e^x the tanh is (e^2 + 2e) / (e^2 + 2e + 2), one exponential."""
    if large(x):
        return cpu_ops.mish(x)
    return _mish(x) if on_cpu() else _compiled_mish()(x)


@lru_cache(maxsize=1)
def _compiled_mish():
    return mx.compile(_mish, shapeless=True)


def _mish(x: mx.array) -> mx.array:
    e = mx.exp(mx.minimum(x, MISH_LIMIT))
    n = e * (e + 2.0)
    return x * (n / (n + 2.0))


def rms_norm(x: mx.array, weight: mx.array, eps: float) -> mx.array:
    """Root mean square norm of x (…, D): over the root of its mean square and `eps`, times `weight` (D,).

    MLX has no kernel for it on a CPU and works it out in nine steps; of a lone position the mean square is one matrix
    product. Batches get row by row what each row gets alone.
    """
    if x.ndim != 3 or x.shape[1] != 1 or not cpu_ops.vectorless(x):
        return mx.fast.rms_norm(x, weight, eps)
    square = mx.addmm(mx.array([[eps]]), x, x.swapaxes(1, 2), alpha=1 / x.shape[2])
    return x * mx.rsqrt(square) * weight


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
        return mx.fast.rope(x, dims, traditional=False, base=base, scale=1.0, offset=_position(offset))
    turns = rotations(dims, base, offset, x.shape[2])
    if len(turns) == 1:
        return x @ turns[0]
    half = dims // 2
    return x * turns[0] + mx.concatenate([x[..., half:], x[..., :half]], axis=-1) * turns[1]


@lru_cache(maxsize=16)
def _position(offset: int) -> mx.array:
    """An offset on the device: queries and keys of all layers of a pass share it, where each would upload its own."""
    return mx.array(offset)


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
