"""Files that came from a hub, held to their checksums; and the record of these that is kept beside them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import DownloadError
from ..files import BLOCK_BYTES, replaced_file
from ..reading import is_file, read_object

RECORD = "checksums.json"  # written into a snapshot: what was fetched, and what each file must be


@dataclass(frozen=True)
class HubFile:
    """A file of a repository. sha256 : of its bytes, where the hub has it; git : else its id as a blob of git."""

    name: str
    bytes: int
    sha256: str | None = None
    git: str | None = None


def checksum_fault(folder: Path, file: HubFile) -> str | None:
    """What is wrong with a file, None if nothing is."""
    path = folder / file.name
    try:
        if not path.is_file():
            return f"{file.name} is missing"
        size = path.stat().st_size
        if size != file.bytes:
            return f"{file.name} has {size} bytes instead of {file.bytes}"
        if file.sha256 is not None:
            kind, expected, found = "SHA-256", file.sha256, sha256_of(path)
        elif file.git is not None:
            kind, expected = "git's id", file.git
            found = _digest(path, hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False))
        else:
            return None
    except OSError as error:
        raise DownloadError(f"{path}: cannot be read ({error.strerror})") from None
    return None if found == expected else f"{file.name}: its {kind} is {found}, expected {expected}"


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    return _digest(path, hashlib.sha256())


def _digest(path: Path, digest: Any) -> str:
    with path.open("rb") as stream:
        while block := stream.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def write_record(folder: Path, repo: str, commit: str, files: Iterable[HubFile]) -> None:
    """Keep the checksums beside the files, those of other parts too."""
    known = {f.name: f for f in (*recorded(folder), *files)}
    record = {"repository": repo, "commit": commit, "files": [asdict(known[n]) for n in sorted(known)]}
    try:
        with replaced_file(folder / RECORD) as aside:
            aside.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise DownloadError(f"{folder / RECORD}: cannot be written ({error.strerror})") from None


def recorded(folder: Path) -> list[HubFile]:
    """What an earlier download noted; nothing where it noted nothing that can be read."""
    path = folder / RECORD
    try:
        if not is_file(path, DownloadError):
            return []
        return [HubFile(**entry) for entry in read_object(path, DownloadError, "delete it")["files"]]
    except (DownloadError, KeyError, TypeError):
        return []


def of_blobs(folder: Path) -> Iterator[HubFile]:
    """The files of a snapshot that are links; the library names what they lead to by its checksum."""
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() and path.is_file():
            digest, name = path.resolve().name, path.relative_to(folder).as_posix()
            size = path.stat().st_size
            if len(digest) == 64:
                yield HubFile(name, size, sha256=digest)
            elif len(digest) == 40:
                yield HubFile(name, size, git=digest)
