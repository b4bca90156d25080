"""Another program's nets in a process of their own, for a bench in which they take turns with ours.

PyTorch brings BLAS and threads of its own, and some packages install top-level modules with common names; neither
reaches this process, and that one imports no MLX.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import sys
import types
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from typing import Any, Protocol

from ..backend.blas import BLAS_VARIABLE
from ..errors import BackendError

FAILED = "failed: "


class Nets(Protocol):
    """What can live there: it says on which device it computes."""

    device: str


class OwnProcess:
    """A process that holds what `make` makes there, whose methods are then called by name.

    Parameters
    ----------
    name : str
        Of the program, for errors.
    install : str
        How it is installed, likewise.
    make : callable
        Of a module that can be imported there; its arguments follow.

    Raises
    ------
    BackendError
        It cannot be made, or later, a method raises; in one line.
    """

    def __init__(self, name: str, install: str, make: Callable[..., Nets], *given: Any):
        self._name, self._install = name, install
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        before = os.environ.get(BLAS_VARIABLE)
        os.environ[BLAS_VARIABLE] = "none"
        try:
            self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
            self._process.start()
        finally:
            os.environ.pop(BLAS_VARIABLE) if before is None else os.environ.update({BLAS_VARIABLE: before})
        self._pipe.send((make, given))
        self.device: str = self._answer()

    def call(self, method: str, *given: Any) -> Any:
        """What a method of it gives."""
        self._pipe.send((method, given))
        return self._answer()

    def _answer(self) -> Any:
        try:
            found = self._pipe.recv()
        except EOFError:
            raise BackendError(f"{self._name}: its process ended; is there enough memory for a second model?") from None
        if isinstance(found, str) and found.startswith(FAILED):
            raise BackendError(f"{self._name}: {found.removeprefix(FAILED)}; {self._install}")
        return found

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(10)
        self._process.kill()


def _serve(pipe) -> None:
    try:
        make, given = pipe.recv()
        nets = make(*given)
        pipe.send(nets.device)
        while True:
            method, given = pipe.recv()
            pipe.send(getattr(nets, method)(*given))
    except (EOFError, BrokenPipeError):  # whoever asked is gone
        return
    except Exception as error:  # of another package; reported to the parent process
        text = " ".join(str(error).split())
        pipe.send(f"{FAILED}{type(error).__name__}: {text[:200]}")


def not_installed(names: Sequence[str]) -> list[str]:
    """Of these top-level modules, those that are not there."""
    return [name for name in names if importlib.util.find_spec(name) is None]


def stand_in(name: str) -> None:
    """An empty module, where there is none of this name: for one that is imported and not used."""
    if importlib.util.find_spec(name) is None:
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__spec__ = ModuleSpec(name, None)
