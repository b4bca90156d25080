"""Files that a command is about to write: looked at before any work, so that nothing is overwritten by mistake.

One rule for all commands. What a command reads is never written to. A file that is there is replaced only if this
command could have written it: an empty file, or one that is recognised as the same kind; any other only with --force.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from .errors import ConfigError

READ_FROM_A_MODEL = {".json", ".safetensors", ".txt", ".pt", ".onnx", ".yaml"}
TOKEN2WAV_FOLDER = "token2wav"


@dataclass(frozen=True)
class Target:
    """A file to be written.

    Parameters
    ----------
    option : str
        What named it; opens messages.
    path : Path
    kind : str
        What the command writes there, in messages.
    is_ours : callable
        Whether a regular file that is there is of this kind.
    """

    option: str
    path: Path
    kind: str
    is_ours: Callable[[Path], bool]


def check_targets(targets: Iterable[Target], inputs: Iterable[str | Path], force: bool = False) -> None:
    """Raise `ConfigError` unless all targets can be written, and may be.

    Parameters
    ----------
    targets : iterable of Target
    inputs : iterable of paths
        What the command reads; of a folder, the files in it that a model is read from.
    force : bool
        Whether files of another kind may be replaced; never one that is read.
    """
    read = {found: path for path in inputs for file in _files(Path(path)) for found in _identities(file, path)}
    written: set = set()
    for target in targets:
        there = _check_place(target)
        same = _identities(target.path, target.path)
        for identity in same:
            if identity in read:
                raise ConfigError(f"{_named(target)}: {read[identity]} is read by this command; name another file")
        if written.intersection(same):
            raise ConfigError(f"{_named(target)}: two outputs of this command would be the same file; name another")
        written.update(same)
        if there and not force and not _replaceable(target):
            raise ConfigError(
                f"{_named(target)}: is there already and is not {target.kind}; name another file, or replace it with "
                "--force"
            )


def _check_place(target: Target) -> bool:
    """Whether something is there; refuses a place where no file can be written."""
    path = target.path
    try:
        mode = os.lstat(path).st_mode if _exists(path) else 0
        mode = os.stat(path).st_mode if stat.S_ISLNK(mode) and os.path.exists(path) else mode
    except (OSError, ValueError) as error:
        raise ConfigError(f"{_named(target)}: cannot be written ({getattr(error, 'strerror', error)})") from None
    parent, problem = path.parent, None
    if not os.path.isdir(parent):
        problem = "no such folder"
    elif _real(parent) is None:
        problem = "the working folder was deleted"
    elif stat.S_ISLNK(mode):
        problem = "it is a link to nothing"
    elif mode and not stat.S_ISREG(mode):
        problem = "it is a folder" if stat.S_ISDIR(mode) else "it is no regular file"
    elif not os.access(parent, os.W_OK | os.X_OK) or (mode and not os.access(path, os.W_OK)):
        problem = "no permission"
    if problem:
        raise ConfigError(f"{_named(target)}: cannot be written ({problem})")
    return bool(mode)


def _exists(path: Path) -> bool:
    """Whether something has this name, be it a link to nothing; a name that no file can have raises `OSError`."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _real(path: str | os.PathLike) -> str | None:
    """Where links lead; None if the path is relative, and the working folder is gone."""
    try:
        return os.path.realpath(path)
    except OSError:
        return None


def _named(target: Target) -> str:
    return f"{target.option} {target.path}"


def _replaceable(target: Target) -> bool:
    try:
        return os.stat(target.path).st_size == 0 or target.is_ours(target.path)
    except OSError:  # not ours to read, so not ours to replace
        return False


def _files(path: Path) -> Iterable[Path]:
    """The file itself; of a model's folder, what is read from it."""
    folders = [d for d in (path, path / TOKEN2WAV_FOLDER) if os.path.isdir(d) and os.access(d, os.R_OK)]
    return [f for d in folders for f in d.iterdir() if f.suffix in READ_FROM_A_MODEL] or [path]


def _identities(file: Path, path: str | Path) -> list:
    """What two names of one file share: where links lead, and, if it is there, the file's number on its device."""
    found: list = [_real(file) or os.fspath(file)]
    try:
        status = os.stat(file)
    except (OSError, ValueError):
        return found
    return [*found, (status.st_dev, status.st_ino)]
