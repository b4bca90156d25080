"""Files that appear whole or not at all: written aside, brought to disk, then renamed into place.

A rename within a folder is one step for whoever looks at it, and what is renamed was synchronised before, so neither a
killed process nor a power cut leaves half a file under a wanted name. Errors are those of the system; callers turn
them into their own.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import os
import platform
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

BLOCK_BYTES = 1 << 20  # read at a time
LONGEST_NAME = 300  # characters of a path in a message
_COUNTER = itertools.count()  # threads of one process may write to the same name


@contextmanager
def replaced_file(path: str | os.PathLike) -> Iterator[Path]:
    """Write one file aside, and give it its name once the block has ended well.

    Parameters
    ----------
    path : str or os.PathLike
        The wanted name; a file that has it is replaced. Files that killed processes left aside for it are removed.

    Yields
    ------
    Path
        Where to write: a hidden name beside `path`, of this process, with the same suffix (libraries choose a format
        by it). It is removed if the block raises.

    Raises
    ------
    OSError
        A folder or a device has the name; nothing was written; it cannot be brought to disk or renamed.

    Examples
    --------
    >>> with replaced_file(target) as aside:
    ...     aside.write_text("whole")
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if path.exists() and not path.is_file():  # a rename would put a file in the place of a device
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    prefix = _aside_prefix(path)
    _remove_stale(path.parent, prefix)
    aside = path.with_name(f"{prefix}{os.getpid()}-{next(_COUNTER)}{path.suffix}")
    try:
        yield aside
        _synchronise(aside)
        os.replace(aside, path)
        _synchronise_folder(path.parent)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def staging_folder(folder: str | os.PathLike, prefix: str) -> Iterator[Path]:
    """Make a folder inside `folder` for files that are to come into it together, by `move_into_place`.

    Whatever is left in it is removed at the end, and so are the ones that killed processes left: only one process at a
    time may write to a folder.

    Parameters
    ----------
    folder : str or os.PathLike
        The wanted place; made if need be.
    prefix : str
        Start of the staging folder's name, a dot in front.

    Raises
    ------
    OSError
        A file has the name, or the folder cannot be made.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "it is a file, and a folder is written", str(folder))
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob(f"{prefix}*"):
        shutil.rmtree(stale, ignore_errors=True)
    aside = Path(tempfile.mkdtemp(prefix=prefix, dir=folder))
    try:
        yield aside
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def move_into_place(
    aside: Path, folder: str | os.PathLike, names: Iterable[str], retire: Iterable[str] = ()
) -> list[Path]:
    """Move staged files into `folder`, in the order of `names`; those to `retire` are removed before the first one.

    A reader that demands a seal (an index, a manifest) never meets a mixture if the seal's old copy is retired and its
    new one is named last: between the two there is none.

    Returns
    -------
    list of Path
        The files in their places.
    """
    folder, names = Path(folder), list(names)
    for name in names:
        _synchronise(aside / name)
    for name in retire:
        (folder / name).unlink(missing_ok=True)
    _synchronise_folder(folder)
    for name in names:
        os.replace(aside / name, folder / name)
    _synchronise_folder(folder)
    return [folder / name for name in names]


def sha256(*paths: str | os.PathLike) -> str:
    """SHA-256 (hexadecimal) of the bytes of these files, one after another; of one file, what `sha256sum` says."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as stream:
            while block := stream.read(BLOCK_BYTES):
                digest.update(block)
    return digest.hexdigest()


def reason(error: Exception) -> str:
    """What went wrong; of an error of the system without its number and the path, which callers name."""
    return getattr(error, "strerror", None) or str(error)


def printable_name(path: str | os.PathLike) -> str:
    r"""A path as text that any UTF-8 output takes: bytes that are no UTF-8 are shown as ``\xe9``.

    >>> printable_name("talk.wav")
    'talk.wav'
    """
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def short_name(path: str | os.PathLike) -> str:
    """A path as messages quote it: on one line, its middle left out beyond `LONGEST_NAME` characters."""
    name = printable_name(path)
    name = name if name.isprintable() else repr(name)[1:-1]
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME // 2]}…{name[-LONGEST_NAME // 2 :]}"


def result_name(path: str | os.PathLike) -> str:
    """A path as results quote it: whole where something has that name, so that it can be looked up, else short."""
    return printable_name(path) if os.path.lexists(path) else short_name(path)


def _aside_prefix(path: Path) -> str:
    """How names aside begin that this machine writes for `path`: short, however long the name is."""
    wanted = os.fsencode(path.name) + b"\0" + os.fsencode(platform.node())
    return f".stepaudio-{hashlib.sha256(wanted).hexdigest()[:16]}-"


def _remove_stale(folder: Path, prefix: str) -> None:
    """Remove what processes of this machine that are no more left under `prefix`."""
    for stale in folder.glob(f"{prefix}*"):
        owner = stale.name.removeprefix(prefix).partition("-")[0]
        if owner.isdecimal() and not _is_running(int(owner)):
            stale.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's
        return True
    return True


def _synchronise(path: Path) -> None:
    """Wait until a file's bytes are on the disk."""
    with path.open("rb+") as stream:
        os.fsync(stream.fileno())


def _synchronise_folder(folder: Path) -> None:
    """Wait until a folder's names are on the disk, on systems that can be asked to."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
