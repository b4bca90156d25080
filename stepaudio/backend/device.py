"""Which hardware MLX runs on, and the dtype that suits it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import sys

from ..errors import BackendError
from . import blas
from .blas import cuda_installed

NEEDED = ("numpy", "tokenizers", "huggingface_hub", "soundfile", "soxr", "tqdm", "jiwer")  # as pyproject.toml has them


class _MissingMLX:
    """Finds no module; says what to install where `mlx` is looked for. Stands behind all other finders."""

    @staticmethod
    def find_spec(name: str, path=None, target=None) -> None:
        """Refuse `mlx`, know nothing else."""
        if name == "mlx" or name.startswith("mlx."):
            raise BackendError(missing_mlx())


class _MissingPackage:
    """The same for the other packages that are needed, where a module of this one looks for them."""

    @staticmethod
    def find_spec(name: str, path=None, target=None) -> None:
        """Refuse what no other finder has found."""
        if name in NEEDED and _asked_by_us():
            raise BackendError(f"{name} is not installed, and nothing here works without it: pip install stepaudio")


def _asked_by_us() -> bool:
    """Whether a module of this package imports: others may do without, and look for it all the same."""
    frame = sys._getframe(2)
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "importlib":
        frame = frame.f_back
    return frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "stepaudio"


def missing_mlx() -> str:
    """One sentence: MLX is not installed, and which extra of this package brings it on this machine."""
    extra = {"Darwin": "stepaudio", "Linux": "stepaudio[cpu]"}.get(platform.system(), "stepaudio[cpu]")
    other = ' (with an NVIDIA GPU: "stepaudio[cuda]")' if platform.system() == "Linux" else ""
    return f'MLX is not installed, and nothing here computes without it: pip install "{extra}"{other}'


def require_mlx() -> None:
    """Raise `BackendError` with that sentence if MLX is not installed. Imports nothing."""
    if not mlx_installed():
        raise BackendError(missing_mlx())


def mlx_installed() -> bool:
    """Whether a module `mlx` can be found."""
    try:
        return importlib.util.find_spec("mlx") is not None
    except (BackendError, ValueError):
        return False


def explain_missing_packages() -> bool:
    """Let every later import of a package that is needed and missing end in a `BackendError`; tells if MLX is missing.

    Only this package's own imports end so, but for those of MLX.
    """
    if _MissingPackage not in sys.meta_path:
        sys.meta_path.append(_MissingPackage)
    if mlx_installed():
        return False
    if _MissingMLX not in sys.meta_path:
        sys.meta_path.append(_MissingMLX)
    return True


def on_cpu() -> bool:
    """True if MLX computes on the CPU."""
    import mlx.core as mx

    return mx.default_device().type == mx.DeviceType.cpu


def on_cuda() -> bool:
    """True if MLX computes on a CUDA device."""
    import mlx.core as mx

    return not on_cpu() and mx.cuda.is_available()


def float32_products() -> str:
    """How MLX multiplies float32 here, in words: whole, or in TF32, which it does on CUDA unless told otherwise."""
    if not on_cuda():
        return "whole"
    return "whole" if os.environ.get("MLX_ENABLE_TF32", "1") == "0" else "in TF32"


def default_dtype():
    """float32 on the CPU, where half-precision products are slow; bfloat16 on a GPU."""
    import mlx.core as mx

    return mx.float32 if on_cpu() else mx.bfloat16


def info() -> dict:
    """What `stepaudio info` prints: versions, backend, BLAS, default dtype, bytes that MLX has."""
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
        "memory": {"active": mx.get_active_memory(), "cached": mx.get_cache_memory(), "peak": mx.get_peak_memory()},
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": versions,
    }
