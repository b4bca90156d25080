"""A line on a terminal that says what is being done, once that has taken a few seconds."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

AFTER = 3.0  # seconds without a word
EVERY = 1.0  # seconds between updates
CLEAR = "\r\033[K"  # to the start of the line, and empty it


@contextmanager
def busy(what: str, stream: TextIO | None = None) -> Iterator[None]:
    """Show "WHAT, 12 s" on stderr while the body runs, from `AFTER` seconds on; nothing if that is no terminal."""
    out: TextIO = sys.stderr if stream is None else stream
    if not out.isatty():
        yield
        return
    done, began = threading.Event(), time.monotonic()

    def tell() -> None:
        if done.wait(AFTER):
            return
        while True:
            print(f"{CLEAR}{what}, {time.monotonic() - began:.0f} s", end="", file=out, flush=True)
            if done.wait(EVERY):
                break
        print(CLEAR, end="", file=out, flush=True)

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@contextmanager
def stages() -> Iterator[Callable[[str], None]]:
    """A function that shows on stderr what is being done: in the place of the text before, or elsewhere line by line.

    On a terminal "" leaves the line empty for what is printed next.
    """

    def stage(text: str) -> None:
        if sys.stderr.isatty():
            print(f"{CLEAR}{text}", end="", file=sys.stderr, flush=True)
        elif text:
            message(text)

    try:
        yield stage
    finally:
        stage("")


def message(text: str) -> None:
    """Print one line of ours on stderr, over a line that `busy` may have left there."""
    with suppress(OSError, ValueError):  # where nobody reads it, the exit status still says how it went
        print(f"{CLEAR if sys.stderr.isatty() else ''}stepaudio: {text}", file=sys.stderr, flush=True)
