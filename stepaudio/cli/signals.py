"""What ends a command from outside: Ctrl-C, SIGTERM, a closed terminal. One line, nothing half written."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

ENDED = {"SIGTERM": "ended by a signal", "SIGHUP": "the terminal was closed"}


class Ended(KeyboardInterrupt):
    """The process was asked to end; raised where it stands, so that whatever is half written is removed."""

    def __init__(self, number: int):
        super().__init__(ENDED[signal.Signals(number).name])
        self.status = 128 + number


def _raise(number: int, _frame: FrameType | None) -> NoReturn:
    raise Ended(number)


@contextmanager
def ends_by_exception() -> Iterator[None]:
    """Within it SIGINT raises `KeyboardInterrupt`, and SIGTERM and SIGHUP raise `Ended`, unless they are ignored."""
    wanted = {signal.SIGINT: signal.default_int_handler}
    wanted |= {getattr(signal, name): _raise for name in ENDED if hasattr(signal, name)}
    before = {}
    try:
        for number, handler in wanted.items():
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, handler)
    except ValueError:  # not the main thread, which alone may say what a signal does
        before = {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
