"""GELU, SiLU, attention, rotary embedding and log-sum-exp, each with a form for where MLX has no vector instructions.

MLX's CPU backend on Linux evaluates `erf`, `exp`, `tanh`, `sin` one element at a time, but adds and multiplies
whole vectors. There, forms made of adds and multiplies alone (errors below 4e-7 of the value or of 1) are several times
faster, once arrays are large enough to pay for the longer graph. Metal and CUDA take the plain forms, but for GELU in
bfloat16 on CUDA: MLX fuses nothing within a gradient, and there GELU took ten times as long as fused.
"""

import sys
from functools import lru_cache

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from .backend import on_cpu, on_cuda

# x * P(x^2) / Q(x^2), lowest power first, least-squares fits reweighted towards equal ripple (Lawson); past the
# limit the function is its asymptote to float32 accuracy.
TANH = ((9.999998268e-01, 1.293615803e-01, 2.939323648e-03, 9.444166242e-06, -1.333947792e-08, 1.976552746e-11),
        (1.000000000e+00, 4.626942355e-01, 2.383817952e-02, 2.307150114e-04))
TANH_LIMIT = 8.6
# Phi(x) - 1/2 and sigmoid(x) - 1/2, in the same form, scaled so that Q's highest coefficient is 1.
PHI = ((6.002667725e+05, 9.128880258e+04, 9.487471009e+03, 6.639950869e+02, 1.213237896e+01),
       (1.504654237e+06, 4.795638607e+05, 6.614922880e+04, 5.138171360e+03, 2.416037479e+02, 1.0))
PHI_LIMIT = 5.3
SIGMOID = ((8.354360759e+07, 2.791527277e+06, 1.816294885e+04, 2.659651010e+01, 4.280245745e-03),
           (3.341745694e+08, 3.901390494e+07, 5.390414786e+05, 1.702064888e+03, 1.0))
SIGMOID_LIMIT = 17.2
EXP2 = (1.00000007, 0.69314697, 0.2402212, 0.05550713, 0.00967554, 0.00132765)  # 2^f for |f| <= 1/2, lowest power first
ROUNDER = 12582912.0  # 1.5 * 2^23: adding it rounds a float32 to a whole number, and leaves that in the low bits
LOG2_E = 1.4426950408889634
FEW = 16384  # elements below which the length of the graph costs more than the arithmetic


def rational(x: mx.array, fit: tuple, limit: float) -> mx.array:
    """x P(x^2) / Q(x^2) with x clipped to +-limit."""
    x = mx.clip(x, -limit, limit)
    t = x * x
    values = []
    for coefficients in fit:
        y = t + coefficients[-2] if coefficients[-1] == 1 else t * coefficients[-1] + coefficients[-2]
        for c in coefficients[-3::-1]:
            y = y * t + c
        values.append(y)
    return x * values[0] / values[1]


def _vectorless(x: mx.array) -> bool:
    return x.dtype == mx.float32 and sys.platform.startswith("linux") and on_cpu()


def _many(x: mx.array) -> bool:
    return x.size >= FEW and _vectorless(x)


def gelu(x: mx.array) -> mx.array:
    """Exact GELU, x * Phi(x) (Hendrycks and Gimpel 2016), never the tanh approximation."""
    if _many(x):
        return x * (rational(x, PHI, PHI_LIMIT) + 0.5)
    if x.dtype == mx.bfloat16 and x.size % THREADS == 0 and on_cuda():
        return _gelu_on_cuda(x)
    return nn.gelu(x)


THREADS = 256  # of a block; the kernels below have no bounds check
ELEMENT = "auto i = cooperative_groups::this_grid().thread_rank(); float v = static_cast<float>(x[i]);\n"
BELOW = "0.5f * (1.0f + erff(v * 0.70710678f))"  # Phi(v)


@lru_cache(maxsize=2)
def _kernel(name: str, inputs: tuple[str, ...], body: str):
    kernel = mx.fast.cuda_kernel(name=name, input_names=inputs, output_names=["y"], source=ELEMENT + body)
    return lambda *arrays: kernel(inputs=arrays, template=[("T", arrays[0].dtype)], grid=(arrays[0].size, 1, 1),
                                  threadgroup=(THREADS, 1, 1), output_shapes=[arrays[0].shape],
                                  output_dtypes=[arrays[0].dtype])[0]


@mx.custom_function
def _gelu_on_cuda(x: mx.array) -> mx.array:
    return _kernel("gelu", ("x",), f"y[i] = static_cast<T>(v * {BELOW});")(x)


@_gelu_on_cuda.vjp
def _gelu_slope_on_cuda(x: mx.array, cotangent: mx.array, _value: mx.array) -> mx.array:
    body = f"y[i] = static_cast<T>(static_cast<float>(c[i]) * ({BELOW} + v * 0.39894228f * expf(-0.5f * v * v)));"
    return _kernel("gelu_slope", ("x", "c"), body)(x, cotangent)


def silu(x: mx.array) -> mx.array:
    """x * sigmoid(x)."""
    if _many(x):
        return x * (rational(x, SIGMOID, SIGMOID_LIMIT) + 0.5)
    return x * mx.sigmoid(x)


@mx.custom_function
def exp2(x: mx.array) -> mx.array:
    """2^x of float32 from adds, multiplies and one shift, for -126 < x < 128; relative error below 3e-7.

    x = n + f with n whole: a polynomial gives 2^f, and adding n to its exponent bits multiplies it by 2^n.
    """
    shifted = x + ROUNDER
    f = x - (shifted - ROUNDER)
    y = f * EXP2[-1] + EXP2[-2]
    for c in EXP2[-3::-1]:
        y = y * f + c
    return (y.view(mx.int32) + mx.left_shift(shifted.view(mx.int32), 23)).view(mx.float32)


@exp2.vjp
def _exp2_slope(_x: mx.array, cotangent: mx.array, value: mx.array) -> mx.array:
    """Bits have no derivative, the function they make has: 2^x ln 2."""
    return cotangent * value * (1 / LOG2_E)


def _exp2_below(x: mx.array) -> tuple[mx.array, mx.array]:
    """2^(x - top) and top, the highest of the last axis (kept, length 1); what is 2^-125 of it or less stays there."""
    top = x.max(axis=-1, keepdims=True)
    return exp2(mx.maximum(x - top, -125.0)), top


def log_sum_exp(x: mx.array) -> mx.array:
    """(B, V) -> (B,): natural logarithm of the sum of exponentials, entries of -inf allowed."""
    if not _many(x):
        return mx.logsumexp(x, axis=-1)
    powers, top = _exp2_below(x * LOG2_E)
    return (mx.log2(powers.sum(axis=-1)) + top[..., 0]) * (1 / LOG2_E)


@lru_cache(maxsize=4)
def _turns(dims: int, base: float, offset: int, n: int) -> tuple[mx.array, ...]:
    """cos and sin (n, dims), the first half of sin negative; for a single position the (dims, dims) rotation matrix."""
    angle = np.arange(offset, offset + n)[:, None] * base ** (-np.arange(dims // 2) / (dims // 2))
    cos, sin = np.cos(angle), np.sin(angle)
    cos, sin = np.concatenate([cos, cos], axis=1), np.concatenate([-sin, sin], axis=1)
    if n == 1:
        return (mx.array((np.diag(cos[0]) + np.roll(np.diag(sin[0]), dims // 2, axis=0)).astype(np.float32)),)
    return mx.array(cos.astype(np.float32)), mx.array(sin.astype(np.float32))


def rope(x: mx.array, dims: int, base: float, offset: int) -> mx.array:
    """Rotary position embedding (Su et al. 2021) in the halves convention, at positions offset, offset+1, …

    x (B, H, n, dims). On the CPU, cosines and sines are made once for all layers, and a lone position is turned by
    one matrix product, which is a tenth of the graph.
    """
    if not _vectorless(x):
        return mx.fast.rope(x, dims, traditional=False, base=base, scale=1.0, offset=offset)
    turns = _turns(dims, base, offset, x.shape[2])
    if len(turns) == 1:
        return x @ turns[0]
    half = dims // 2
    return x * turns[0] + mx.concatenate([x[..., half:], x[..., :half]], axis=-1) * turns[1]


def softmax_attention(q: mx.array, k: mx.array, v: mx.array, scale: float, mask=None, tap=None) -> mx.array:
    """Scaled dot-product attention: the fused kernel, its CPU form, or the explicit twin when a tap wants the weights.

    q (B, H, n, D); k, v (B, G, L, D) with G dividing H; mask None, "causal" (aligned at the end), booleans
    (true = seen) or additive, broadcastable to (B, H, n, L). Returns (B, H, n, D). The tap receives
    "attention" (B, H, n, L), rows summing to 1.
    """
    if tap is None and not _vectorless(q):
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask)
    B, H, n, D = q.shape
    G, L = k.shape[1], k.shape[2]
    if isinstance(mask, str):
        mask = mx.arange(L)[None, :] <= mx.arange(L - n, L)[:, None]
    if tap is None:
        return _attention_of_adds(q, k, v, scale, mask)
    scores = (q.reshape(B, G, H // G, n, D) * scale) @ k[:, :, None].swapaxes(-1, -2)
    scores = scores.reshape(B, H, n, L).astype(mx.float32)
    if mask is not None:
        scores = mx.where(mask, scores, -mx.inf) if mask.dtype == mx.bool_ else scores + mask
    weights = mx.softmax(scores, axis=-1)
    tap("attention", weights)
    weights = weights.astype(v.dtype).reshape(B, G, H // G, n, L)
    return (weights @ v[:, :, None]).reshape(B, H, n, D)


def _attention_of_adds(q: mx.array, k: mx.array, v: mx.array, scale: float, mask: mx.array | None) -> mx.array:
    """The same, heads that share keys in one product; if large, in base 2 with the division left for last."""
    B, H, n, D = q.shape
    G, L = k.shape[1], k.shape[2]
    few = B * H * n * L < FEW
    unit = 1.0 if few else LOG2_E
    scores = (q * (scale * unit)).reshape(B, G, -1, D) @ k.swapaxes(-1, -2)  # (B, G, H/G n, L)
    if mask is not None:
        mask = mx.where(mask, 0.0, -mx.inf) if mask.dtype == mx.bool_ else mask * unit
        scores = (scores.reshape(B, H, n, L) + mask).reshape(B, G, -1, L)
    if few:
        return (mx.softmax(scores, axis=-1) @ v).reshape(B, H, n, D)
    weights, _ = _exp2_below(scores)
    return ((weights @ v) / weights.sum(axis=-1, keepdims=True)).reshape(B, H, n, D)
