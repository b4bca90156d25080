"""The vocoder's snake activation as one CUDA kernel for each direction.

Within a gradient MLX fuses no elementwise operations, and the activations are half of the net's work then.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, cast

import mlx.core as mx

from ...backend.device import on_cuda
from ...models.token2wav.hift import Snake

THREADS = 256  # of a block
ELEMENT = """auto i = cooperative_groups::this_grid().thread_rank();
if (i < n[0]) { float v = x[i], b = a[i % n[1]], below = b + 1e-9f, s = sinf(v * b);
"""


@lru_cache(maxsize=2)
def _kernel(name: str, inputs: tuple[str, ...], outputs: tuple[str, ...], body: str) -> Callable[..., list[mx.array]]:
    compiled: Any = mx.fast.cuda_kernel(
        name=name, input_names=[*inputs, "n"], output_names=list(outputs), source=ELEMENT + body + "}"
    )

    def call(*arrays: mx.array) -> list[mx.array]:
        x = arrays[0]
        blocks = -(-x.size // THREADS)
        return compiled(
            inputs=[*arrays, mx.array([x.size, x.shape[-1]], mx.int32)],
            grid=(blocks * THREADS, 1, 1),
            threadgroup=(THREADS, 1, 1),
            output_shapes=[x.shape] * len(outputs),
            output_dtypes=[mx.float32] * len(outputs),
        )

    return call


def _forward(x: mx.array, a: mx.array) -> mx.array:
    return _kernel("snake", ("x", "a"), ("y",), "y[i] = v + s * s / below;")(x, a)[0]


def _backward(primals: Any, cotangent: mx.array, _value: mx.array) -> tuple[mx.array, mx.array]:
    """d/dx = 1 + sin(2 a x), d/da = (x sin(2 a x) - sin^2(a x) / a) / a."""
    body = """float t = sinf(2 * v * b);
dx[i] = c[i] * (1 + t * b / below); da[i] = c[i] * (v * t - s * s / below) / below;"""
    x, a = primals
    dx, da = _kernel("snake_gradient", ("x", "a", "c"), ("dx", "da"), body)(x, a, cotangent)
    return dx, da.sum(axis=(0, 1))


_custom: Any = mx.custom_function(_forward)
_custom.vjp(_backward)


def fused_snake(x: mx.array, a: mx.array) -> mx.array:
    """`Snake` on CUDA in one pass, and its gradient in one more. x (B, T, C) float32, a (C,)."""
    return cast(mx.array, _custom(x, a))


@lru_cache(maxsize=1)
def can_fuse() -> bool:
    """Whether the kernels run here and agree with the net's own snake, gradient included; prints what it found."""
    if not on_cuda():
        return False
    x, c = (mx.random.normal((2, 77, 3), key=mx.random.key(k)) for k in range(2))
    plain, alpha = Snake(3), mx.array([0.3, 1.0, 2.5])

    def reference(x: mx.array, a: mx.array) -> mx.array:
        plain.alpha = a
        return (plain(x) * c).sum()

    def fused(x: mx.array, a: mx.array) -> mx.array:
        return (fused_snake(x, a) * c).sum()

    try:
        plain.alpha = alpha
        pairs = [(fused_snake(x, alpha), plain(x))]
        gradients = (mx.grad(f, argnums=(0, 1))(x, alpha) for f in (fused, reference))
        pairs += cast(Any, zip(*gradients, strict=True))
        agree = all(mx.allclose(one, other, 1e-3, 1e-3).item() for one, other in pairs)
        print(f"snake: {'fused' if agree else 'not fused: its kernels give other values'}", flush=True)
        return agree
    except (RuntimeError, ValueError) as error:
        print(f"snake: not fused: its kernels do not run here ({' '.join(str(error).split())[:200]})", flush=True)
        return False


class FusedSnake(Snake):
    """`Snake`, by the fused kernels where they run."""

    def __call__(self, x: mx.array) -> mx.array:
        """(B, T, channels) -> the same shape."""
        return fused_snake(x, self.alpha) if can_fuse() else super().__call__(x)
