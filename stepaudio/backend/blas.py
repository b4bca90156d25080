"""What MLX must find when it is imported: a fast BLAS, kept memory, CUDA caches that only forget. Imports no mlx.

The `mlx[cpu]` wheel for Linux carries the reference BLAS, about thirty times slower than the machine
allows. Loading another CBLAS into the global symbol table before `mlx.core` is imported replaces it, which
is why the package's `__init__` calls `preload_blas` first; there too, the C library is asked to keep freed memory.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib.metadata
import os
import platform
import sys
import warnings
from pathlib import Path

BLAS_VARIABLE = "STEPAUDIO_BLAS"  # a library path, or "none" to leave MLX as it is
CACHE_CHECK_VARIABLE = "MLX_ENABLE_CACHE_THRASHING_CHECK"  # MLX's own; other backends do not read it
PRODUCT = "cblas_sgemm"
loaded: str | None = None


def _candidates() -> list[str]:
    """Paths of CBLAS libraries worth trying, best first."""
    named = os.environ.get(BLAS_VARIABLE)
    if named:
        return [] if named == "none" else [named]
    # The `mkl` wheel puts its libraries into the environment's lib folder, wherever that folder is.
    packages = [Path(p).absolute() for p in sys.path if p.endswith("site-packages")]
    above = [p.parents[2] for p in packages if len(p.parents) > 2]
    roots = dict.fromkeys([Path(sys.prefix), Path(sys.base_prefix), *above])
    found = [str(p) for root in roots for p in sorted((root / "lib").glob("libmkl_rt.so*"), reverse=True)]
    triple = f"{platform.machine()}-linux-gnu"
    for folder in (f"/usr/lib/{triple}/openblas-pthread", f"/usr/lib/{triple}", "/usr/lib64", "/usr/lib"):
        found += [str(p) for p in sorted(Path(folder).glob("libopenblas.so*"))[:1]]
    return found


def cuda_installed() -> bool:
    """True if MLX's CUDA backend is installed beside MLX."""
    # Asked for by name: to read what every package says of itself takes as long as all else of an import.
    names = ("mlx-cuda", "mlx-cuda-12", "mlx-cuda-13")
    return any(d.metadata for name in names for d in importlib.metadata.distributions(name=name))


def preload_blas() -> str | None:
    """Load a fast CBLAS before MLX. Returns its path, or None if none is needed or none was found.

    Only Linux without the CUDA backend needs it. Set `STEPAUDIO_BLAS` to a library's path to choose one, or
    to `none` to keep MLX's own. Warns once if nothing was found.
    """
    global loaded
    if loaded or not sys.platform.startswith("linux") or cuda_installed():
        return loaded
    if "mlx.core" in sys.modules:
        warnings.warn(
            "mlx was imported before stepaudio, so no fast BLAS could be put under it: import stepaudio "
            "first, or matrix products run about 30 times slower",
            RuntimeWarning,
            stacklevel=3,
        )
        return None
    for path in _candidates():
        if _load_cblas(path):
            loaded = path
            return path
    named = os.environ.get(BLAS_VARIABLE)
    if named != "none":
        reason = f"{BLAS_VARIABLE}={named} is no CBLAS library that can be loaded" if named else "no fast BLAS found"
        warnings.warn(
            f"{reason}: matrix products run about 30 times slower. Install the extra stepaudio[cpu] "
            f"(mkl), or Debian's libopenblas0-pthread, or point {BLAS_VARIABLE} at a CBLAS library",
            RuntimeWarning,
            stacklevel=3,
        )
    return None


def keep_freed_memory() -> bool:
    """Let glibc keep what MLX frees, up to 32 MiB apiece, for the next array; true if it was asked to.

    By default every large array is mapped afresh and unmapped when freed, so that each operation on it first waits
    for thousands of page faults. Only Linux without the CUDA backend needs it; the process's peak is not raised, but
    what it once used stays with it.
    """
    if not sys.platform.startswith("linux") or cuda_installed():
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another C library
        return False
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
    return bool(mallopt(mmap_threshold, 32 << 20) and mallopt(trim_threshold, (1 << 31) - 1))


def allow_any_shapes() -> None:
    """Let MLX's CUDA caches forget the oldest shape instead of ending the run; to be called before MLX is imported.

    MLX counts every shape that a cache meets in a process's life and raises "Cache thrashing is happening" at twice the
    cache's size: 256 lengths of audio for convolutions. The caches still keep the shapes used last, and a repeated
    shape is as fast as before. Whoever sets `MLX_ENABLE_CACHE_THRASHING_CHECK` is obeyed.
    """
    os.environ.setdefault(CACHE_CHECK_VARIABLE, "0")


def _load_cblas(path: str) -> bool:
    """Load a library for all to see; true if it holds the matrix product that MLX calls."""
    if _working_folder_is_there():
        return hasattr(_opened(path), PRODUCT)
    here = os.open(".", os.O_RDONLY)  # MKL ends the process where this folder was deleted; so it starts in another
    try:
        os.chdir("/")
        library = _opened(path)
        if library is None or not hasattr(library, PRODUCT):
            return False
        _multiply_once(library)
        return True
    finally:
        os.fchdir(here)
        os.close(here)


def _opened(path: str) -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
    except OSError:
        return None


def _working_folder_is_there() -> bool:
    try:
        return bool(os.getcwd())
    except OSError:
        return False


def _multiply_once(library: ctypes.CDLL) -> None:
    """Let a BLAS load what it computes with: MKL does so at its first product."""
    row_major, plain, one, number = 101, 111, ctypes.c_float(1), (ctypes.c_float * 1)(1)
    library.cblas_sgemm(row_major, plain, plain, 1, 1, 1, one, number, 1, number, 1, one, (ctypes.c_float * 1)(), 1)
