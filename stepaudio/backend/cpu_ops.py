"""Forms of the nets' functions for the CPU, where MLX has no vector instructions for exp, tanh, erf and sin.

numpy has them, for all of these but erf; so arrays are evaluated and handed over to it. Its part is what a function
computes, and MLX's operations remain what it means: derivatives and compiled graphs come of them.
"""

import math
import sys
from collections.abc import Callable
from functools import lru_cache
from typing import cast

import mlx.core as mx
import numpy as np

from .device import on_cpu
from .pieces import finish

# x * P(x^2) / Q(x^2), lowest power first, least-squares fits reweighted towards equal ripple (Lawson); past the
# limit the function is its asymptote to float32 accuracy.
TANH = (
    (9.999998268e-01, 1.293615803e-01, 2.939323648e-03, 9.444166242e-06, -1.333947792e-08, 1.976552746e-11),
    (1.000000000e00, 4.626942355e-01, 2.383817952e-02, 2.307150114e-04),
)
TANH_LIMIT = 8.6
# Phi(x) - 1/2 and sigmoid(x) - 1/2, in the same form, scaled so that Q's highest coefficient is 1.
PHI = (
    (6.002667725e05, 9.128880258e04, 9.487471009e03, 6.639950869e02, 1.213237896e01),
    (1.504654237e06, 4.795638607e05, 6.614922880e04, 5.138171360e03, 2.416037479e02, 1.0),
)
PHI_LIMIT = 5.3
SIGMOID = (
    (8.354360759e07, 2.791527277e06, 1.816294885e04, 2.659651010e01, 4.280245745e-03),
    (3.341745694e08, 3.901390494e07, 5.390414786e05, 1.702064888e03, 1.0),
)
SIGMOID_LIMIT = 17.2
EXP2 = (1.00000007, 0.69314697, 0.2402212, 0.05550713, 0.00967554, 0.00132765)  # 2^f for |f| <= 1/2, lowest power first
ROUNDER = 12582912.0  # 1.5 * 2^23: adding it rounds a float32 to a whole number, and leaves that in the low bits
SINE = (3.141592580, -5.167706878, 2.550031368, -0.5980451192, 0.07722001820)  # sin(pi f) / f in f^2, |f| <= 1/2
LOG2_E = 1.4426950408889634
GELU_SCALE, GELU_CUBE = 0.7978845608028654, 0.044715  # sqrt(2 / pi); Hendrycks and Gimpel 2016
MISH_LIMIT = 20.0  # past it tanh(log(1 + e^x)) is 1 in float32
MANY = 1_000_000  # scores of attention in one go: they stay near the processor, and Python gets a turn between
BLOCK = 65536  # elements that a form of many operations takes at a time: their results in between stay near, too
FEW = 16384  # elements below which the way there costs more than the arithmetic


def rational(x: mx.array, fit: tuple, limit: float) -> mx.array:
    """X P(x^2) / Q(x^2) with x clipped to +-limit."""
    x = mx.clip(x, -limit, limit)
    t = x * x
    values = []
    for coefficients in fit:
        y = t + coefficients[-2] if coefficients[-1] == 1 else t * coefficients[-1] + coefficients[-2]
        for c in coefficients[-3::-1]:
            y = y * t + c
        values.append(y)
    return x * values[0] / values[1]


def vectorless(x: mx.array) -> bool:
    """Whether MLX has no vector instructions for functions of `x`: float32 on the CPU under Linux."""
    return x.dtype == mx.float32 and sys.platform.startswith("linux") and on_cpu()


def large(x: mx.array) -> bool:
    """Whether the forms of this file are faster for `x`."""
    return x.size >= FEW and vectorless(x)


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


def exp2_below(x: mx.array) -> tuple[mx.array, mx.array]:
    """2^(x - top) and top, the highest of the last axis (kept, length 1); what is 2^-125 of it or less stays there."""
    top = x.max(axis=-1, keepdims=True)
    return cast(mx.array, exp2(mx.maximum(x - top, -125.0))), top


Form = Callable[[mx.array], mx.array]


def by_numpy(form: Form) -> Callable[[Callable[[np.ndarray], np.ndarray]], Form]:
    """Let numpy compute what `form` says in operations of MLX, of one float32 array.

    The decorated function must not change its argument, which is memory of MLX. `form` has the derivatives, and it is
    taken itself where nothing can be evaluated: inside `mx.compile` and `mx.vmap`.
    """

    def decorate(compute: Callable[[np.ndarray], np.ndarray]) -> Form:
        @mx.custom_function
        def made(x: mx.array) -> mx.array:
            try:
                mx.eval(x)
            except ValueError:
                return form(x)
            with np.errstate(all="ignore"):  # infinities and nan come out as they do of MLX
                return mx.array(compute(np.asarray(x)))

        @made.vjp
        def _slope(x: mx.array, cotangent: mx.array, _value: mx.array) -> mx.array:
            return mx.vjp(form, [x], [cotangent])[1][0]

        @made.jvp
        def _change(x: mx.array, tangent: mx.array) -> mx.array:
            return mx.jvp(form, [x], [tangent])[1][0]

        return cast(Form, made)

    return decorate


def _sine_squared(x: mx.array) -> mx.array:
    x = x * (1 / math.pi)
    f = x - mx.stop_gradient((x + ROUNDER) - ROUNDER)  # the square has a period of 1
    z = f * f
    y = z * SINE[-1] + SINE[-2]
    for c in SINE[-3::-1]:
        y = y * z + c
    return mx.square(f * y)


@by_numpy(lambda x: cast(mx.array, exp2(mx.clip(x * LOG2_E, -125.0, 127.0))))
def exp(x: np.ndarray) -> np.ndarray:
    """e^x."""
    return np.exp(x)


@by_numpy(lambda x: exp2_below(x * LOG2_E)[0])
def exp_below(x: np.ndarray) -> np.ndarray:
    """e^(x - top), with the highest of the last axis as top."""
    y = x - x.max(axis=-1, keepdims=True)
    return np.exp(y, out=y)


@by_numpy(_sine_squared)
def sine_squared(x: np.ndarray) -> np.ndarray:
    """sin^2(x)."""
    y = np.sin(x)
    return np.square(y, out=y)


@by_numpy(lambda x: x * (rational(x, SIGMOID, SIGMOID_LIMIT) + 0.5))
def silu(x: np.ndarray) -> np.ndarray:
    """X * sigmoid(x), which is (1 + tanh(x / 2)) / 2."""
    y = x * np.float32(0.5)
    np.tanh(y, out=y)
    y += 1
    y *= x
    y *= np.float32(0.5)
    return y


@by_numpy(lambda x: x * (rational(x, PHI, PHI_LIMIT) + 0.5))
def gelu(x: np.ndarray) -> np.ndarray:
    """Exact GELU: the operations of the form in its order, so that both give the same bits."""
    given, made = x.reshape(-1), np.empty(x.size, np.float32)
    rooms = np.empty((3, min(BLOCK, x.size)), np.float32)
    for i in range(0, x.size, BLOCK):
        v, y = given[i : i + BLOCK], made[i : i + BLOCK]
        clipped, t, below = rooms[:, : v.size]
        np.clip(v, -PHI_LIMIT, PHI_LIMIT, out=clipped)
        np.multiply(clipped, clipped, out=t)
        for values, coefficients in zip((y, below), PHI, strict=True):
            np.multiply(t, np.float32(coefficients[-1]), out=values)  # of the last, 1
            values += np.float32(coefficients[-2])
            for c in coefficients[-3::-1]:
                values *= t
                values += np.float32(c)
        y *= clipped
        y /= below
        y += np.float32(0.5)
        y *= v
    return made.reshape(x.shape)


@by_numpy(lambda x: 0.5 * x * (1 + rational(GELU_SCALE * (x + GELU_CUBE * x * x * x), TANH, TANH_LIMIT)))
def gelu_tanh(x: np.ndarray) -> np.ndarray:
    """GELU in the tanh approximation."""
    y = x * x
    y *= np.float32(GELU_SCALE * GELU_CUBE)
    y += np.float32(GELU_SCALE)
    y *= x
    np.tanh(y, out=y)
    y += 1
    y *= x
    y *= np.float32(0.5)
    return y


def _mish(x: mx.array) -> mx.array:
    e = cast(mx.array, exp2(mx.clip(x * LOG2_E, -125.0, MISH_LIMIT * LOG2_E)))
    n = e * (e + 2.0)
    return x * (n / (n + 2.0))


@by_numpy(_mish)
def mish(x: np.ndarray) -> np.ndarray:
    """X tanh(log(1 + e^x)), by one exponential."""
    e = np.minimum(x, np.float32(MISH_LIMIT))
    np.exp(e, out=e)
    n = e + 2
    n *= e
    np.add(n, 2, out=e)
    n /= e
    n *= x
    return n


@by_numpy(lambda x: mx.sort(x, axis=-1))
def sort(x: np.ndarray) -> np.ndarray:
    """The last axis rising."""
    return np.sort(x, axis=-1)


@lru_cache(maxsize=16)
def rotations(dims: int, base: float, offset: int, n: int) -> tuple[mx.array, ...]:
    """Cos and sin (n, dims), the first half of sin negative; for a single position the (dims, dims) rotation matrix."""
    angle = np.arange(offset, offset + n)[:, None] * base ** (-np.arange(dims // 2) / (dims // 2))
    cos, sin = np.cos(angle), np.sin(angle)
    cos, sin = np.concatenate([cos, cos], axis=1), np.concatenate([-sin, sin], axis=1)
    if n == 1:
        return (mx.array((np.diag(cos[0]) + np.roll(np.diag(sin[0]), dims // 2, axis=0)).astype(np.float32)),)
    return mx.array(cos.astype(np.float32)), mx.array(sin.astype(np.float32))


def attention_of_adds(q: mx.array, k: mx.array, v: mx.array, scale: float, mask: mx.array | None) -> mx.array:
    """`ops.softmax_attention`, heads that share keys in one product; if large, with the division last."""
    B, H, n, D = q.shape
    G, L = k.shape[1], k.shape[2]
    if B * H * n * L > MANY and B * G > 1:
        return _attention_in_halves(q, k, v, scale, mask)
    scores = (q * scale).reshape(B, G, -1, D) @ k.swapaxes(-1, -2)  # (B, G, H/G n, L)
    if mask is not None:
        mask = mx.where(mask, 0.0, -mx.inf) if mask.dtype == mx.bool_ else mask
        scores = (scores.reshape(B, H, n, L) + mask).reshape(B, G, -1, L)
    if scores.size < FEW:
        return (mx.softmax(scores, axis=-1) @ v).reshape(B, H, n, D)
    weights = exp_below(scores)
    return ((weights @ v) / (weights @ mx.ones((L, 1)))).reshape(B, H, n, D)  # a product is the fastest sum


def _attention_in_halves(q: mx.array, k: mx.array, v: mx.array, scale: float, mask: mx.array | None) -> mx.array:
    """`attention_of_adds` of half the batch, or half the heads, and then of the others: no sum is another."""
    axis = int(len(q) == 1)
    middle = k.shape[axis] // 2
    cut = middle * (q.shape[axis] // k.shape[axis])
    masks = [mask, mask]
    if mask is not None and mask.ndim == 4 and mask.shape[axis] > 1:
        masks = mx.split(mask, [cut], axis)
    halves = zip(*(mx.split(x, [at], axis) for x, at in ((q, cut), (k, middle), (v, middle))), masks, strict=True)
    return mx.concatenate([finish(attention_of_adds(q, k, v, scale, its)) for q, k, v, its in halves], axis)
