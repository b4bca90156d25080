"""Standard output and error as a command uses them: every name and text can be printed, and JSON is JSON."""

from __future__ import annotations

import codecs
import contextlib
import io
import json
import math
import os
import sys
from typing import TextIO

from ..errors import DataError

UNPRINTABLE = "stepaudio.unprintable"


def open_streams() -> None:
    """Make both streams take any text. Raises `DataError` if there is no standard output.

    Of a name that is not UTF-8, each odd byte is shown as Python escapes it; what another encoding lacks is shown as
    JSON escapes it.
    """
    codecs.register_error(UNPRINTABLE, _escaped)
    if sys.stderr is None:  # closed: nobody reads what is said
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if sys.stdout is None:
        raise DataError("standard output is closed, so there is nowhere to say what was found; use > FILE")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=UNPRINTABLE)


def _escaped(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    found = _readable(error.object[error.start : error.end])
    return "".join(json.dumps(c)[1:-1] if ord(c) > 127 else c for c in found), error.end


def _readable(text: str) -> str:
    r"""Bytes of a name that were no UTF-8 as ``\xe9``, as `printable_name` shows them."""
    return "".join(f"\\x{ord(c) - 0xDC00:02x}" if "\udc80" <= c <= "\udcff" else c for c in text)


def print_json(value: object, file: TextIO | None = None) -> None:
    """Print one object on one line, at once; numbers that JSON lacks become null."""
    print(json.dumps(_plain(value), ensure_ascii=False, allow_nan=False), file=file, flush=True)


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, str):
        return _readable(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def discard_output() -> None:
    """Let what was printed and cannot be written go, so that the end of the process does not try again."""
    with contextlib.suppress(OSError, ValueError):
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, sys.stdout.fileno())
        os.close(nothing)
