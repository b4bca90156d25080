"""CUDA kernels where MLX fuses nothing: GELU and its gradient."""

from collections.abc import Callable
from functools import lru_cache
from typing import cast

import mlx.core as mx

THREADS = 256  # of a block; the kernels below have no bounds check
ELEMENT = "auto i = cooperative_groups::this_grid().thread_rank(); float v = static_cast<float>(x[i]);\n"
BELOW = "0.5f * (1.0f + erff(v * 0.70710678f))"  # Phi(v)


@lru_cache(maxsize=2)
def _kernel(name: str, inputs: tuple[str, ...], body: str):
    kernel = cast(
        Callable, mx.fast.cuda_kernel(name=name, input_names=inputs, output_names=["y"], source=ELEMENT + body)
    )
    return lambda *arrays: kernel(
        inputs=arrays,
        template=[("T", arrays[0].dtype)],
        grid=(arrays[0].size, 1, 1),
        threadgroup=(THREADS, 1, 1),
        output_shapes=[arrays[0].shape],
        output_dtypes=[arrays[0].dtype],
    )[0]


@mx.custom_function
def gelu_on_cuda(x: mx.array) -> mx.array:
    """Exact GELU in one kernel; the size of `x` must be a multiple of `THREADS`."""
    return _kernel("gelu", ("x",), f"y[i] = static_cast<T>(v * {BELOW});")(x)


@gelu_on_cuda.vjp
def _gelu_slope_on_cuda(x: mx.array, cotangent: mx.array, _value: mx.array) -> mx.array:
    body = f"y[i] = static_cast<T>(static_cast<float>(c[i]) * ({BELOW} + v * 0.39894228f * expf(-0.5f * v * v)));"
    return _kernel("gelu_slope", ("x", "c"), body)(x, cotangent)
