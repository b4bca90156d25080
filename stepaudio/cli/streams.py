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

    Of a name that is not UTF-8, each odd byte is shown as U+FFFD; what another encoding lacks is shown as JSON
    escapes it.
    """
    codecs.register_error(UNPRINTABLE, _escaped)
    if sys.stderr is None:  # closed: nobody reads what is said
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if sys.stdout is None:
        raise DataError("standard output is closed, so there is nowhere to say what was found; use > FILE")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=UNPRINTABLE)


def _escaped(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    found = error.object[error.start : error.end]
    if error.encoding.lower().replace("-", "") == "utf8":  # it lacks nothing but bytes of names that were no text
        return ("\ufffd" * len(found)).encode(), error.end
    return "".join(map(_json_escape, found)), error.end


def _json_escape(character: str) -> str:
    """One character in ASCII, a byte of a name that was no text as U+FFFD."""
    return json.dumps("\ufffd" if "\ud800" <= character <= "\udfff" else character)[1:-1]


def print_json(value: object, file: TextIO | None = None) -> None:
    """Print one object on one line, at once; numbers that JSON lacks become null."""
    print(json.dumps(_finite(value), ensure_ascii=False, allow_nan=False), file=file, flush=True)


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def discard_output() -> None:
    """Let what was printed and cannot be written go, so that the end of the process does not try again."""
    with contextlib.suppress(OSError, ValueError):
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, sys.stdout.fileno())
        os.close(nothing)
