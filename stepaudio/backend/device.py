"""Which hardware MLX runs on, and the dtype that suits it."""

from __future__ import annotations

import importlib.metadata
import platform
import sys

from . import blas
from .blas import cuda_installed


def on_cpu() -> bool:
    """True if MLX computes on the CPU."""
    import mlx.core as mx

    return mx.default_device().type == mx.DeviceType.cpu


def on_cuda() -> bool:
    """True if MLX computes on a CUDA device."""
    import mlx.core as mx

    return not on_cpu() and mx.cuda.is_available()


def default_dtype():
    """float32 on the CPU, where half-precision products are slow; bfloat16 on a GPU."""
    import mlx.core as mx

    return mx.float32 if on_cpu() else mx.bfloat16


def info() -> dict:
    """What `stepaudio info` prints: versions, backend, BLAS, default dtype."""
    import mlx.core as mx

    versions = {}
    for name in ("stepaudio", "mlx", "numpy", "tokenizers", "soundfile", "soxr"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed as a package"
    backend = "cpu" if on_cpu() else ("cuda" if cuda_installed() else "metal")
    otherwise = "Accelerate" if sys.platform == "darwin" else "MLX's own (slow)" if backend == "cpu" else "unused"
    library = blas.loaded or otherwise
    return {
        "backend": backend,
        "device": str(mx.default_device()),
        "blas": library,
        "dtype": str(default_dtype()).removeprefix("mlx.core."),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": versions,
    }
