"""What ends a command from outside: Ctrl-C, SIGTERM, a closed terminal. One line, nothing half written."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from types import FrameType
from typing import NoReturn

INTERRUPTED = 130  # as shells count: 128 and the number of the signal
ENDED = {"SIGTERM": "ended by a signal", "SIGHUP": "the terminal was closed"}


class Ended(KeyboardInterrupt):
    """The process was asked to end; raised where it stands, so that whatever is half written is removed."""

    def __init__(self, number: int):
        super().__init__(ENDED[signal.Signals(number).name])
        self.status = 128 + number


def quiet_while_importing() -> None:
    """Let Ctrl-C end the process with one line until `ends_by_exception` takes over, if it is the command's own.

    Importing takes a moment in which no code of the command could catch an exception.
    """
    if _is_the_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)


def _is_the_command() -> bool:
    name = os.path.basename(sys.argv[0]) if sys.argv else ""
    if name == "-m":  # as Python calls it while it looks for the module
        return "-mstepaudio" in sys.orig_argv or ("-m", "stepaudio") in pairwise(sys.orig_argv)
    return name == "stepaudio"


def _leave(_number: int, _frame: FrameType | None) -> NoReturn:
    os.write(2, b"stepaudio: interrupted\n")
    os._exit(INTERRUPTED)


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
