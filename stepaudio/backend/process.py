"""What MLX asks of the process around it: no fork behind its back, threads that tidy up, a folder to compile in.

Importing this imports no mlx. Every net calls `enter` before it computes.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import warnings
from pathlib import Path

from ..errors import BackendError
from .device import on_cpu

FORKED = (
    "this process was forked from one that had used MLX already, whose threads do not live on here: anything computed "
    'would wait for ever. Start workers by "spawn" (multiprocessing.get_context("spawn"), or '
    'multiprocessing_context="spawn" of a DataLoader), or load the model in each worker and not before'
)
COMPILE_SPACE = 8 << 20  # bytes that must be free where kernels are compiled

_in_use = False  # by the process that is about to fork
_forked = False
_thread = threading.local()


class _Tidy:
    """Belongs to one thread; dies with it, and takes the thread's MLX streams along.

    Left to the thread's own end, they go while the interpreter may already be shutting down, which aborts the process.
    """

    def __del__(self):
        sys.modules["mlx.core"].clear_streams()


def enter() -> None:
    """Say that the calling thread is about to compute.

    Raises
    ------
    BackendError
        The process was forked from one that had used MLX.
    """
    if _forked:
        raise BackendError(FORKED)
    if threading.current_thread() is not threading.main_thread() and not hasattr(_thread, "tidy"):
        _thread.tidy = _Tidy()


def _before_fork() -> None:
    global _in_use
    mx = sys.modules.get("mlx.core")
    _in_use = mx is not None and mx.get_peak_memory() > 0


def _in_child() -> None:
    global _forked
    _forked = _forked or _in_use


def watch_forks() -> None:
    """Have `enter` refuse to compute in children of a process that has used MLX; where there is no fork, do nothing."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=_before_fork, after_in_child=_in_child)


def may_compile() -> bool:
    """Whether `mx.compile` can be used: on a GPU always; on a CPU MLX writes and loads libraries in a shared folder.

    Warns where that folder cannot be used.
    """
    if not on_cpu() or os.name != "posix":
        return True
    fault = _folder_fault(Path(tempfile.gettempdir()) / "mlx")
    if fault:
        warnings.warn(
            f"{fault}: nothing is compiled, which is slower. TMPDIR names another folder", RuntimeWarning, stacklevel=2
        )
    return not fault


def _folder_fault(folder: Path) -> str | None:
    """What keeps MLX from compiling below a folder, which need not be there yet."""
    try:
        folder.mkdir(exist_ok=True)
        if any(p.stat().st_uid != os.getuid() for p in (folder, *folder.glob("*"), *folder.glob("*/cpu"))):
            return f"{folder} belongs to another user"
        with tempfile.NamedTemporaryFile(dir=folder):
            room = os.statvfs(folder)
    except OSError as error:
        return f"{folder}: {error.strerror}"
    if room.f_flag & getattr(os, "ST_NOEXEC", 0):
        return f"{folder} lies where nothing may be executed"
    if room.f_bavail * room.f_frsize < COMPILE_SPACE:
        return f"{folder}: no space left"
    return None
