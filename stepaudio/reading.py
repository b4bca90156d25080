"""Small files read whole: looked at before they are opened, bounded before they are read, and every failure one error.

Whatever the system answers (not there, no permission, a name that is too long, a pipe that would never end), and
whatever the bytes are instead of what they should be, ends in the error class that the caller names.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import StepAudioError

MAX_DEPTH = 64  # containers inside containers; the files that are read here need 6
MAX_JSON_BYTES = 100_000_000  # of one file; the largest published, a tokenizer, takes 11 MB
HALF = re.compile(rb"\\u[dD][89a-fA-F]")  # one of the two halves in which JSON may write a character
MARK = b"\xef\xbb\xbf"  # byte order mark that some editors write in front of UTF-8


def is_file(path: str | os.PathLike, error: type[StepAudioError]) -> bool:
    """Whether a regular file is there; raises `error` where the system does not say."""
    return stat.S_ISREG(_mode(path, error))


def is_folder(path: str | os.PathLike, error: type[StepAudioError]) -> bool:
    """Whether a folder is there; raises `error` where the system does not say."""
    return stat.S_ISDIR(_mode(path, error))


def _mode(path: str | os.PathLike, error: type[StepAudioError]) -> int:
    """What kind of thing lies there, as `os.stat` has it; 0 for nothing.

    A link to nothing, on the way too, is an error and not nothing: somebody means a file there, and to go on without it
    would misread the folder. Caches of downloads are made of links.
    """
    try:
        return os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        for link in (Path(path), *Path(path).parents):
            if link.is_symlink() and not link.exists():
                raise error(
                    f"{link}: is a link to {os.readlink(link)!r:.200}, which is not there; download it again, or mend "
                    "the link"
                ) from None
        return 0
    except (OSError, ValueError) as failure:
        raise error(f"{path}: {why(failure)}") from None


def why(failure: Exception) -> str:
    """The reason for which a path cannot be used, in the words of the system."""
    if isinstance(failure, PermissionError):
        return "no permission to read it"
    reason = failure.strerror if isinstance(failure, OSError) else None
    return f"cannot be read ({reason or failure})"


def require_file(path: str | os.PathLike, error: type[StepAudioError], expected: str) -> None:
    """Raise `error`, with `expected` at its end, where no regular file is there."""
    mode = _mode(path, error)
    if not stat.S_ISREG(mode):
        found = "no such file" if mode == 0 else "is a folder" if stat.S_ISDIR(mode) else "is no regular file"
        raise error(f"{path}: {found}; {expected}")


def read_bytes(
    path: str | os.PathLike, error: type[StepAudioError], expected: str, most: int = MAX_JSON_BYTES
) -> bytes:
    """All bytes of a regular file.

    Parameters
    ----------
    path : str or os.PathLike
    error : type of StepAudioError
        What is raised where the file is missing, unreadable, no regular file, or larger than `most` bytes.
    expected : str
        Closes the message: what should be there, what to do.
    most : int
    """
    require_file(path, error, expected)
    try:
        with open(path, "rb") as stream:
            data = stream.read(most + 1)
    except OSError as failure:
        raise error(f"{path}: {why(failure)}; {expected}") from None
    if len(data) > most:
        raise error(f"{path}: has more than {most} bytes, which no such file needs; {expected}")
    return data


def read_text(path: str | os.PathLike, error: type[StepAudioError], expected: str, most: int = MAX_JSON_BYTES) -> str:
    """The text of a UTF-8 file, without the byte order mark that may open it; line ends become newlines."""
    data = read_bytes(path, error, expected, most).removeprefix(MARK)
    try:
        return data.decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as failure:
        raise error(f"{path}: expected UTF-8 text, found {failure}; {expected}") from None


def read_object(path: str | os.PathLike, error: type[StepAudioError], expected: str) -> dict[str, Any]:
    """The JSON object in a file; `parse_object` says what it may be."""
    return parse_object(read_bytes(path, error, expected), str(path), error, expected)


def parse_object(data: bytes, what: str, error: type[StepAudioError], expected: str) -> dict[str, Any]:
    """A JSON object in which no key comes twice and nothing is nested more than `MAX_DEPTH` deep.

    Parameters
    ----------
    data : bytes
        UTF-8; a byte order mark may open it.
    what : str
        Opens the message of `error`, which is raised for anything else.
    error : type of StepAudioError
    expected : str
        Closes the message.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entries = dict(pairs)
        if len(entries) < len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))
            raise error(f"{what}: names {twice!r:.80} twice; {expected}")
        return entries

    try:
        parsed = json.loads(data.removeprefix(MARK).decode("utf-8"), object_pairs_hook=unique)
        if HALF.search(data):
            json.dumps(parsed, ensure_ascii=False).encode("utf-8")  # half a character is no text: no library takes it
    except (ValueError, RecursionError) as failure:  # ValueError: no UTF-8, no JSON, a number of thousands of digits
        raise error(f"{what}: not readable as JSON ({failure!s:.120}); {expected}") from None
    if not isinstance(parsed, dict):
        raise error(f"{what}: expected a JSON object, found {type(parsed).__name__}; {expected}")
    if any(depth > MAX_DEPTH for depth in _depths(parsed)):
        raise error(f"{what}: is nested more than {MAX_DEPTH} deep; {expected}")
    return parsed


def _depths(tree: dict[str, Any] | list[Any]) -> Iterator[int]:
    """How deep each container lies, by a walk that does not nest itself."""
    left: list[tuple[Any, int]] = [(tree, 1)]
    while left:
        node, depth = left.pop()
        yield depth
        inner = node.values() if isinstance(node, dict) else node
        left += [(item, depth + 1) for item in inner if isinstance(item, (dict, list))]


def folder_of(path: str | os.PathLike, error: type[StepAudioError]) -> Path:
    """The path itself if it is a folder, else the folder that holds it."""
    path = Path(path)
    return path if is_folder(path, error) else path.parent
