"""Fast forms of functions against float64 and math.erf; explicit attention against the fused kernel."""

import math
import shutil

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from reference import rotate

from stepaudio.backend import cpu_ops, ops
from stepaudio.backend.cpu_ops import exp2
from stepaudio.backend.device import on_cuda
from stepaudio.backend.ops import (
    attention_pattern,
    elu,
    exp,
    gated_silu,
    gated_sum,
    gelu,
    gelu_tanh,
    log_sum_exp,
    mish,
    rms_norm,
    rope,
    silu,
    sine_squared,
    snake,
    softmax_attention,
    sort,
    weighted_values,
)

# Dense where the functions bend, then out to where a float32 square overflows, and both zeros.
WIDE = np.geomspace(1e-30, 1e30, 2001)
RANGE = np.concatenate([np.linspace(-12, 12, 100_001), WIDE, -WIDE, [0.0, -0.0]]).astype(np.float32)
STATED = 5e-7  # error of the rational fits


def gelu_reference(x: np.ndarray) -> np.ndarray:
    return np.array([v * 0.5 * math.erfc(-v / math.sqrt(2)) for v in x.astype(np.float64)])


def silu_reference(x: np.ndarray) -> np.ndarray:
    return np.array([v / (1 + math.exp(-v)) if v > -700 else 0.0 for v in x.astype(np.float64)])


@pytest.fixture(params=["fast", "plain"])
def form(request, monkeypatch):
    monkeypatch.setattr(cpu_ops, "vectorless", lambda x: request.param == "fast")
    monkeypatch.setattr(cpu_ops, "FEW", 0)
    return request.param


def worst(got, want: np.ndarray) -> float:
    """Largest error in units of max(1, |x|): both functions are x times something between 0 and 1."""
    return float((np.abs(np.array(got, dtype=np.float64) - want) / np.maximum(1, np.abs(RANGE))).max())


def test_gelu_is_exact(form):
    assert worst(gelu(mx.array(RANGE)), gelu_reference(RANGE)) < STATED
    x = RANGE.astype(np.float64)
    tanh_form = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    assert worst(tanh_form, gelu_reference(RANGE)) > 100 * STATED  # the common approximation would not pass


def test_silu(form):
    assert worst(silu(mx.array(RANGE)), silu_reference(RANGE)) < STATED


@pytest.mark.parametrize(
    ("fit", "limit", "exact"),
    [
        (cpu_ops.PHI, cpu_ops.PHI_LIMIT, lambda x: 0.5 * math.erf(x / math.sqrt(2))),
        (cpu_ops.SIGMOID, cpu_ops.SIGMOID_LIMIT, lambda x: 0.5 * math.tanh(x / 2)),
    ],
    ids=["normal", "logistic"],
)
def test_fits_keep_their_stated_error(fit, limit, exact):
    got = np.array(cpu_ops.rational(mx.array(RANGE), fit, limit), dtype=np.float64)
    assert np.abs(got - [exact(float(v)) for v in RANGE]).max() < STATED


def test_few_and_many_elements_agree(monkeypatch):
    # The fast forms begin at a size; just below and just above it the answer is the same.
    monkeypatch.setattr(cpu_ops, "vectorless", lambda x: True)
    monkeypatch.setattr(cpu_ops, "FEW", 1000)
    x = mx.random.normal((1000,), key=mx.random.key(0)) * 3
    for f in (gelu, silu):
        few, many = f(x[:999]), f(x)[:999]
        assert not np.array_equal(few, many)  # two forms indeed
        assert (np.abs(np.array(few - many)) / np.maximum(1, np.abs(np.array(x[:999])))).max() < STATED


def test_exp2():
    x = np.concatenate([np.linspace(-125.9, 127.9, 40_001), np.arange(-125, 128), np.arange(-125, 127) + 0.5])
    x = x.astype(np.float32)
    got = np.array(exp2(mx.array(x)), dtype=np.float64)
    assert np.abs(got / np.exp2(x.astype(np.float64)) - 1).max() < 3e-7


def test_exp_and_elu(form):
    x = np.concatenate([np.linspace(-86, 86, 40_001), np.linspace(-1, 1, 2001), [0.0, -0.0]]).astype(np.float32)
    wide = x.astype(np.float64)
    # The exponent is rounded in float32 first, which moves the power by as much.
    assert (np.abs(np.array(exp(mx.array(x))) / np.exp(wide) - 1) / (1 + np.abs(wide))).max() < STATED
    assert np.abs(np.array(elu(mx.array(x))) - np.where(wide > 0, wide, np.expm1(wide))).max() < 1e-6
    far = np.array(exp(mx.array([-1e30, -np.inf, -200.0, 1e4, np.inf])))
    assert (far[:3] < 1e-37).all() and (far[3:] > 1e38).all()
    assert np.isnan(np.array(exp(mx.array([np.nan])))).all()


def phases() -> tuple[np.ndarray, np.ndarray]:
    """Inputs (100000, 8) and rates (8,): phases from 1e-9 to thousands, every multiple of pi/2 up to 600 among them."""
    rates = np.array([0.05, 0.3, 1.0, 1.13, 2.0, np.pi, 7.7, 20.0], dtype=np.float32)
    small = np.geomspace(1e-9, 8, 9_000)
    x = np.concatenate([np.linspace(-200, 200, 81_000), np.pi / 2 * np.arange(-500, 500), small, -small])
    return np.repeat(x[:, None], len(rates), axis=1).astype(np.float32), rates


def test_sine_squared(form):
    x, rates = phases()
    phase = x.astype(np.float64) * rates
    got = np.array(sine_squared(mx.array(x), mx.array(rates)))
    assert got.shape == x.shape and np.abs(phase).max() > 3000
    # float32 rounds the phase itself, once.
    assert (np.abs(got - np.sin(phase) ** 2) <= 4e-7 + 6e-8 * np.abs(phase)).all()


def test_slope_of_sine_squared(form):
    x, rates = phases()
    x = x[40_000:42_000]
    slope = mx.grad(lambda x: sine_squared(x, mx.array(rates)).sum())(mx.array(x))
    phase = x.astype(np.float64) * rates
    assert (np.abs(np.array(slope) / rates - np.sin(2 * phase)) <= 1e-5 + 4e-7 * np.abs(phase)).all()


DEFINITIONS = {  # in float64
    exp: np.exp,
    silu: lambda x: x / (1 + np.exp(-x)),
    gelu_tanh: lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    mish: lambda x: x * np.tanh(np.logaddexp(0, x)),
    lambda x: sine_squared(x, mx.array([1.7, 0.2])): lambda x: np.sin(x * np.array([1.7, 0.2])) ** 2,
    cpu_ops.exp_below: lambda x: np.exp(x - x.max(axis=-1, keepdims=True)),
}
NAMES = ["exp", "silu", "gelu_tanh", "mish", "sine_squared", "exp_below"]


def check_values_and_slopes(f, change) -> None:
    """change(f) and the changed gradient of f's sum, against the definition and its differences in float64."""
    x = np.stack([np.linspace(-9, 2, 4001), np.linspace(-9, 2, 4001) + 0.7], axis=1)
    define, step = DEFINITIONS[f], 1e-6
    along = np.array([1.0, -2.0])  # a change of both columns at once
    slope = ((define(x + step * along) - define(x - step * along)) / (2 * step)).sum(axis=1)
    given = mx.array(x.astype(np.float32))
    np.testing.assert_allclose(np.array(change(f)(given)), define(x), atol=1e-6, rtol=3e-6)
    gradient = change(mx.grad(lambda x: f(x).sum()))(given)
    np.testing.assert_allclose(np.array(gradient) @ along, slope, atol=3e-5, rtol=1e-5)


@pytest.mark.parametrize("f", DEFINITIONS, ids=NAMES)
def test_functions_and_their_slopes_are_those_of_the_definitions(form, f):
    check_values_and_slopes(f, lambda f: f)
    check_values_and_slopes(f, mx.vmap)


def test_a_function_by_numpy_can_be_compiled(monkeypatch):
    monkeypatch.setattr(cpu_ops, "vectorless", lambda x: True)
    monkeypatch.setattr(cpu_ops, "FEW", 0)
    check_values_and_slopes(exp, mx.compile)


def test_numpy_leaves_its_argument_alone(form):
    for f in DEFINITIONS:
        x = mx.random.normal((50, 2), key=mx.random.key(3))
        before = np.array(x)
        mx.eval(f(x))
        np.testing.assert_array_equal(np.array(x), before)


@pytest.mark.parametrize("block", [1000, 1 << 20])
def test_gelu_by_numpy_has_the_bits_of_its_form(monkeypatch, block):
    monkeypatch.setattr(cpu_ops, "BLOCK", block)
    x = mx.array(np.append(RANGE, np.array([np.inf, -np.inf, np.nan], np.float32)).reshape(4, -1))
    form = x * (cpu_ops.rational(x, cpu_ops.PHI, cpu_ops.PHI_LIMIT) + 0.5)
    np.testing.assert_array_equal(np.array(cpu_ops.gelu(x)), np.array(form))
    np.testing.assert_array_equal(np.array(cpu_ops.gelu(x.T)), np.array(form.T))


@pytest.mark.parametrize("compiled", [False, True])
def test_slope_of_gelu(form, compiled):
    x = np.linspace(-9, 9, 40_001)
    change = mx.compile if compiled and shutil.which("g++") else lambda f: f
    slope = change(mx.grad(lambda x: gelu(x).sum()))(mx.array(x.astype(np.float32)))
    want = np.vectorize(math.erfc)(-x / math.sqrt(2)) / 2 + x * np.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    np.testing.assert_allclose(np.array(slope), want, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 5])
def test_sort(form, rows):
    x = np.random.default_rng(1).normal(0, 3, (rows, 5003)).astype(np.float32)
    x[:, ::7], x[0, 5], x[:, ::11] = -np.inf, np.inf, 0.25
    given = mx.array(x)
    np.testing.assert_array_equal(np.array(sort(given)), np.array([sorted(row) for row in x.tolist()], np.float32))
    np.testing.assert_array_equal(np.array(given), x)


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0, 1000.0])
def test_log_sum_exp(form, scale):
    x = (np.random.default_rng(0).normal(size=(3, 5000)) * scale).astype(np.float32)
    x[0, ::2], x[1, 1:] = -np.inf, -np.inf
    wide = x.astype(np.float64)
    top = wide.max(axis=1, keepdims=True)
    want = np.log(np.exp(wide - top).sum(axis=1)) + top[:, 0]
    got = np.array(log_sum_exp(mx.array(x)), dtype=np.float64)
    assert np.abs(got - want).max() < 1e-6 * max(8, np.abs(want).max())


@pytest.mark.skipif(shutil.which("g++") is None, reason="what is compiled for a CPU needs a compiler")
def test_gated_silu_as_one_kernel(monkeypatch):
    rng = np.random.default_rng(0)
    gate, x = mx.split(mx.array(rng.normal(size=(2, 3, 64)).astype(np.float32) * 3), 2, axis=-1)
    want = np.array(gate, np.float64) / (1 + np.exp(-np.array(gate, np.float64))) * np.array(x)
    np.testing.assert_allclose(gated_silu(gate, x), want, rtol=1e-6, atol=1e-6)
    monkeypatch.setattr(ops, "on_cpu", lambda: False)
    np.testing.assert_allclose(gated_silu(gate, x), want, rtol=1e-6, atol=1e-6)


@pytest.mark.skipif(shutil.which("g++") is None, reason="what is compiled for a CPU needs a compiler")
def test_snake_and_gated_sum_as_one_kernel(monkeypatch):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 2, 7, 64)).astype(np.float32)
    rate, gate = rng.uniform(0.1, 3, (2, 64)).astype(np.float32)
    wide = x.astype(np.float64)
    for _ in range(2):
        made = snake(mx.array(x), mx.array(rate), 1e-9)
        np.testing.assert_allclose(made, wide + np.sin(wide * rate) ** 2 / rate, rtol=1e-5, atol=1e-5)
        made = gated_sum(mx.array(x), mx.array(gate), mx.array(y))
        np.testing.assert_allclose(made, wide + gate * y.astype(np.float64), rtol=1e-5, atol=1e-6)
        monkeypatch.setattr(ops, "on_cpu", lambda: False)
        monkeypatch.setattr(ops, "on_cuda", lambda: True)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e3])
def test_rms_norm_of_one_position_and_of_many(scale):
    rng = np.random.default_rng(0)
    x, weight = rng.normal(size=(3, 5, 96)) * scale, rng.normal(size=96)
    want = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-6) * weight
    x, weight = (mx.array(a.astype(np.float32)) for a in (x, weight))
    np.testing.assert_allclose(rms_norm(x, weight, 1e-6), want, rtol=3e-6, atol=1e-7)
    ones = rms_norm(x[:, :1], weight, 1e-6)
    np.testing.assert_allclose(ones, want[:, :1], rtol=3e-6, atol=1e-7)
    for row in range(3):
        np.testing.assert_array_equal(ones[row], rms_norm(x[row : row + 1, :1], weight, 1e-6)[0])
    half = rms_norm(x.astype(mx.bfloat16), weight.astype(mx.bfloat16), 1e-6)
    assert half.dtype == mx.bfloat16


@pytest.mark.parametrize("offset", [0, 1, 37, 4000, 16_383])
@pytest.mark.parametrize("n", [1, 2, 9])
def test_rope(form, n, offset):
    x = np.random.default_rng(n).normal(size=(2, 3, n, 8)).astype(np.float32)
    want = rotate(x.astype(np.float64), np.broadcast_to(np.arange(offset, offset + n), (2, 3, n)), 1e6)
    # The fused kernel works out its angles in float32: off by 1e-3 at thousands of positions.
    allowed = 1e-6 if form == "fast" else 1e-5 + 5e-7 * offset
    assert np.abs(np.array(rope(mx.array(x), 8, 1e6, offset)) - want).max() < allowed


def test_what_is_rotated_at_one_position_shares_it(monkeypatch):
    """In the type of a GPU; each call would make an array of the number, and hand it to the device."""
    rotate, offsets, x = mx.fast.rope, [], mx.ones((1, 2, 3, 8), mx.bfloat16)
    monkeypatch.setattr(
        mx.fast, "rope", lambda x, *a, offset, **o: offsets.append(offset) or rotate(x, *a, offset=offset, **o)
    )
    for offset in (5, 5, 6, 5):
        want = rotate(x, 8, traditional=False, base=1e6, scale=1.0, offset=offset)
        assert mx.array_equal(rope(x, 8, 1e6, offset), want)
    assert offsets[0] is offsets[1] is offsets[3] and offsets[2] is not offsets[0]


@pytest.mark.skipif(not on_cuda(), reason="needs a CUDA device")
def test_gelu_and_its_slope_in_bfloat16_on_cuda():
    x = mx.random.normal((8, 256)).astype(mx.bfloat16) * 3
    expected = mx.array(gelu_reference(np.array(x.astype(mx.float32))))
    assert mx.allclose(gelu(x).astype(mx.float32), expected, rtol=1e-2, atol=1e-2)
    slope, plain = (mx.grad(lambda x, f=f: f(x).astype(mx.float32).sum())(x) for f in (gelu, nn.gelu))
    assert mx.allclose(slope.astype(mx.float32), plain.astype(mx.float32), atol=2e-2)


def test_other_types_take_the_plain_form():
    x = mx.array([-1.0, 0.5, 3.0])
    for dtype in (mx.float16, mx.bfloat16):
        assert gelu(x.astype(dtype)).dtype == silu(x.astype(dtype)).dtype == dtype
        assert not cpu_ops.vectorless(x.astype(dtype))


# ------------------------------------------------------------------------------- attention


def attention_reference(q, k, v, scale, seen, bias):
    """float64, one head, one query at a time."""
    B, H, n, D = q.shape
    out, weights = np.zeros((B, H, n, D)), np.zeros((B, H, n, k.shape[2]))
    for b, h, i in np.ndindex(B, H, n):
        g = h // (H // k.shape[1])
        scores = k[b, g].astype(np.float64) @ q[b, h, i] * scale + bias[b, h, i]
        scores[~seen[b, h, i]] = -np.inf
        e = np.exp(scores - scores.max())
        weights[b, h, i] = e / e.sum()
        out[b, h, i] = weights[b, h, i] @ v[b, g]
    return out, weights


def masks(B, H, n, L):
    rng = np.random.default_rng(1)
    some = rng.random((B, 1, n, L)) < 0.6
    some[..., 0] = True
    bias = rng.normal(size=(B, H, n, L)).astype(np.float32)
    hidden = np.where(rng.random((B, 1, 1, L)) < 0.5, 0, -1e10).astype(np.float32)
    hidden[..., 0] = 0
    everything, nothing = np.ones((B, H, n, L), bool), np.zeros((B, H, n, L))
    end = np.arange(L)[None, :] <= np.arange(L - n, L)[:, None]
    return {
        "none": (None, everything, nothing),
        "causal": ("causal", everything & end, nothing),
        "bool": (mx.array(some), everything & some, nothing),
        "additive": (mx.array(bias), everything, bias),
        "keys": (mx.array(hidden), everything, nothing + hidden),
    }


@pytest.mark.parametrize("kernel", ["fused", "few", "many", "in halves"])
@pytest.mark.parametrize("mask", ["none", "causal", "bool", "additive", "keys"])
@pytest.mark.parametrize(("heads", "groups", "n", "L"), [(4, 4, 6, 6), (4, 2, 3, 9), (6, 1, 1, 7), (6, 2, 5, 5)])
def test_every_attention_equals_the_reference(monkeypatch, kernel, mask, heads, groups, n, L):
    monkeypatch.setattr(cpu_ops, "vectorless", lambda x: kernel != "fused")
    monkeypatch.setattr(cpu_ops, "FEW", 10**9 if kernel == "few" else 0)
    monkeypatch.setattr(cpu_ops, "MANY", 1 if kernel == "in halves" else 10**9)
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(2, h, m, 8)).astype(np.float32) for h, m in ((heads, n), (groups, L), (groups, L)))
    given, seen, bias = masks(2, heads, n, L)[mask]
    quick = softmax_attention(mx.array(q), mx.array(k), mx.array(v), 0.4, given)
    pattern = attention_pattern(mx.array(q), mx.array(k), 0.4, given)
    want, weights = attention_reference(q, k, v, 0.4, seen, bias)
    assert np.abs(np.array(quick) - want).max() < 1e-5
    assert np.abs(np.array(weighted_values(pattern, mx.array(v))) - want).max() < 1e-5
    assert np.abs(np.array(pattern) - weights).max() < 1e-6


def test_explicit_attention_keeps_the_type():
    x = mx.ones((1, 2, 3, 8), dtype=mx.bfloat16)
    pattern = attention_pattern(x, x, 1.0, "causal")
    assert pattern.dtype == mx.float32 and weighted_values(pattern, x).dtype == mx.bfloat16
