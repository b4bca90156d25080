"""Signals while a C library calls back into Python: an exception that they raise there would be lost."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

ENDING = ("SIGINT", "SIGTERM", "SIGHUP")


@contextmanager
def signals_wait() -> Iterator[None]:
    """Within it a signal that would raise an exception waits, and does so at its end.

    libsndfile reads and writes through functions of ours. What one of them raises goes nowhere: Ctrl-C would not be
    answered, and the file seem to end there. Only the main thread takes signals; in another one nothing is done.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (getattr(signal, name) for name in ENDING if hasattr(signal, name))
    before = {number: handler for number in numbers if callable(handler := signal.getsignal(number))}
    came: list[tuple] = []
    try:
        for number in before:
            signal.signal(number, lambda *found: came.append(found))
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for found in came[:1]:
            before[found[0]](*found)
