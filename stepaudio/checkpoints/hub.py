"""Models on a hub: found in the cache or fetched into it, only the files that are needed, each held to its checksum.

`huggingface_hub` does the fetching, keeps the cache and knows where the hub is; its environment variables hold
(`HF_HOME`, `HF_HUB_CACHE`, `HF_HUB_OFFLINE`, `HF_TOKEN`). What is in the cache whole is used without asking the
network whether there is something newer; `download` asks.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import DownloadError, StepAudioError
from ..models.speech_lm import CONFIG_FILE, FLAT_FILE
from ..reading import read_object
from .checksums import HubFile, checksum_fault, of_blobs, recorded, write_record
from .convert.manifest import MANIFEST
from .convert.published import FLOW_YAML, FOLDER
from .fetch import NoRanges, fetch_large, part_bytes
from .header import INDEX_FILE, SINGLE_FILE, listed
from .hub_name import MODEL, TOKEN2WAV, HubName
from .layout import SOURCES

TOKENIZERS = (("tokenizer.json",), ("vocab.json", "merges.txt", "tokenizer_config.json", "added_tokens.json"))
OTHERS = (
    CONFIG_FILE,
    FLAT_FILE,
    "generation_config.json",
    "capabilities.json",
    "alignment_heads.json",
    "words.txt",
    "special_tokens_map.json",
)
LARGE = 10_000_000  # bytes from which a file is fetched in ranges
ELSEWHERE = "or fetch it on another machine and give its folder"


@dataclass(frozen=True)
class Download:
    """What `download` did: `files` were asked for, `fetched` of their bytes came from the hub, all were checked."""

    name: str
    commit: str
    folder: Path
    files: tuple[HubFile, ...]
    fetched: int

    def to_dict(self) -> dict:
        """All of it as plain JSON types."""
        return asdict(self) | {"folder": str(self.folder), "bytes": sum(f.bytes for f in self.files)}


def say(text: str) -> None:
    """A line on standard error."""
    print(f"stepaudio: {text}", file=sys.stderr, flush=True)


def snapshot(name: HubName, parts: tuple[str, ...] = (MODEL,), tell: Callable[[str], None] = say) -> Path:
    """The folder of a model in the cache; what it lacks of `parts` is fetched first.

    Raises `DownloadError` where something is lacking and cannot be fetched.
    """
    folder = cached(name)
    lacks = ["all of it"] if folder is None else lacking(folder, parts)
    if folder is not None and not lacks:
        return folder
    if _offline():
        raise DownloadError(
            f"{name}: the cache {_cache()} lacks {listed(lacks)}, and HF_HUB_OFFLINE forbids to fetch it: unset that, "
            f"{ELSEWHERE}"
        )
    return download(name, parts, tell).folder


def download(name: HubName, parts: tuple[str, ...] = (MODEL, TOKEN2WAV), tell: Callable[[str], None] = say) -> Download:
    """Bring the cache up to what the hub has now, and check every file.

    Files that are there whole are not fetched again, and one that came in part goes on where it stopped. A file in the
    cache whose checksum is wrong is fetched anew. Without the network, by `HF_HUB_OFFLINE`, what is there is checked
    alone.

    Parameters
    ----------
    name : HubName
    parts : tuple of {"model", "token2wav"}
    tell : callable
        Given a line before anything of size moves: how much, whither, what is free; and one about memory.

    Raises
    ------
    DownloadError
        No network, no such model or revision, no permission, no room on the disk, a part that the model has not got, a
        checksum that is wrong still.
    """
    if _offline():
        return _checked_offline(name, parts)
    commit, files = _listing(name)
    wanted = _wanted(name, files, parts)
    for file in wanted:
        if (fault := _damage(name, commit, file)) is not None:
            tell(f"{name}: {fault}; it is fetched anew")
            _discard(name, commit, file)
    missing = [f for f in wanted if _place(name, commit, f) is None]
    if missing:
        _announce(name, wanted, missing, tell)
        _fetch_large(name, commit, [f for f in missing if f.bytes >= LARGE and f.sha256])
    folder = _fetch(name, commit, [f.name for f in wanted])
    for file in missing:
        if (fault := checksum_fault(folder, file)) is not None:
            raise DownloadError(f"{name}: {fault}: look at the disk and at what lies between here and the hub")
    write_record(folder, name.repo, commit, wanted)
    return Download(str(name), commit, folder, tuple(wanted), sum(f.bytes for f in missing))


# ---- the cache ----


def cached(name: HubName) -> Path | None:
    """The snapshot of a revision ("main" if none is named), whole or not; None where the cache has none."""
    home, revision = _home(name), name.revision or "main"
    with contextlib.suppress(OSError, ValueError):
        commit = (home / "refs" / revision).read_text(encoding="utf-8").strip()
        revision = commit if commit and "/" not in commit else revision
    folder = home / "snapshots" / revision
    return folder if folder.is_dir() else None


def lacking(folder: Path, parts: Iterable[str]) -> list[str]:
    """Files without which a part cannot be read; links to nothing count as lacking."""
    parts, lacks = tuple(parts), []
    if MODEL in parts:
        lacks += [] if _any(folder, CONFIG_FILE, FLAT_FILE) else [CONFIG_FILE]
        lacks += _weights_lacking(folder)
        sets = [[file for file in files if not (folder / file).is_file()] for files in TOKENIZERS]
        lacks += [] if not all(sets) else sets[-1]
    if TOKEN2WAV in parts and not (folder / FOLDER / MANIFEST).is_file():
        lacks += [f"{FOLDER}/{file}" for file in (FLOW_YAML, *SOURCES.values()) if not _any(folder / FOLDER, file)]
    return lacks


def _any(folder: Path, *names: str) -> bool:
    return any((folder / name).is_file() for name in names)


def _weights_lacking(folder: Path) -> list[str]:
    if not (folder / INDEX_FILE).is_file():
        return [] if (folder / SINGLE_FILE).is_file() else [SINGLE_FILE]
    return [shard for shard in _shards(folder / INDEX_FILE) if not (folder / shard).is_file()]


def _shards(index: Path) -> list[str]:
    """Names of the files that an index names; what else is wrong with it is found when it is read."""
    found = read_object(index, DownloadError, "delete it and fetch it again").get("weight_map")
    names = found.values() if isinstance(found, dict) else ()
    return sorted({name for name in names if isinstance(name, str)})


def _cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser()


def _offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _home(name: HubName) -> Path:
    return _cache() / f"models--{name.repo.replace('/', '--')}"


# ---- what is wanted, and whether there is room ----


def _listing(name: HubName) -> tuple[str, dict[str, HubFile]]:
    """The commit that a revision stands for now, and its files."""
    from huggingface_hub import HfApi

    with _faults(name):
        info = HfApi().model_info(name.repo, revision=name.revision, files_metadata=True)
    files = {}
    for entry in info.siblings or ():
        lfs: Any = entry.lfs
        sha256 = None if lfs is None else lfs.get("sha256") if isinstance(lfs, dict) else lfs.sha256
        files[entry.rfilename] = HubFile(entry.rfilename, entry.size or 0, sha256, None if lfs else entry.blob_id)
    return str(info.sha), files


def _wanted(name: HubName, files: Mapping[str, HubFile], parts: tuple[str, ...]) -> list[HubFile]:
    """The files of these parts; of several ways of storing one thing, the one that is read."""
    names: list[str] = []
    if MODEL in parts:
        names += [file for file in (*OTHERS, *(f for group in TOKENIZERS for f in group)) if file in files]
        if INDEX_FILE in files:
            names += [INDEX_FILE, *_shards(_fetch(name, None, [INDEX_FILE]) / INDEX_FILE)]
        elif SINGLE_FILE in files:
            names.append(SINGLE_FILE)
        else:
            raise DownloadError(f"{name}: has neither {SINGLE_FILE} nor {INDEX_FILE}; is it a Step-Audio model?")
    if TOKEN2WAV in parts:
        inside = [file for file in files if file.startswith(f"{FOLDER}/") and file.count("/") == 1]
        kinds = (".yaml", ".json", ".safetensors") if f"{FOLDER}/{MANIFEST}" in files else (".yaml", ".pt", ".onnx")
        names += [file for file in inside if file.endswith(kinds)]
        if not inside and MODEL not in parts:
            raise DownloadError(f"{name}: has no folder {FOLDER}, so it cannot speak")
    absent = [file for file in names if file not in files]
    if absent:
        raise DownloadError(f"{name}: its {INDEX_FILE} names {listed(absent)}, which it has not got")
    return [files[file] for file in dict.fromkeys(names)]


def _place(name: HubName, commit: str, file: HubFile) -> Path | None:
    """Where the cache has a file of the right size, be it from another revision; None where it has not."""
    home = _home(name)
    places = (home / "blobs" / (file.sha256 or file.git or "none"), home / "snapshots" / commit / file.name)
    return next((path for path in places if path.is_file() and path.stat().st_size == file.bytes), None)


def _damage(name: HubName, commit: str, file: HubFile) -> str | None:
    """What is wrong with a file that the cache has; None if nothing is, or if it has none."""
    path = _place(name, commit, file)
    fault = None if path is None else checksum_fault(path.parent, replace(file, name=path.name))
    return fault and f"{file.name} in the cache: {fault}"


def _discard(name: HubName, commit: str, file: HubFile) -> None:
    """Take a file out of the cache: the link of this revision, and what it leads to."""
    while (path := _place(name, commit, file)) is not None:
        path.unlink()
    (_home(name) / "snapshots" / commit / file.name).unlink(missing_ok=True)


def _announce(name: HubName, wanted: list[HubFile], missing: list[HubFile], tell: Callable[[str], None]) -> None:
    """Say what will move and whether it fits; `DownloadError` where it does not."""
    home, needed = _home(name), sum(f.bytes for f in missing)
    needed -= sum(part_bytes(home / "blobs", f) for f in missing)
    there = next(folder for folder in (home, *home.parents) if folder.is_dir())
    free = shutil.disk_usage(there).free
    tell(
        f"{name}: {len(missing)} of {len(wanted)} files, {_size(sum(f.bytes for f in missing))}, are fetched into "
        f"{home}, where {_size(free)} are free; what stops is taken up again by the same call"
    )
    if needed > free:
        raise DownloadError(
            f"{name}: needs {_size(needed)} and {there} has {_size(free)} free: make room, or let HF_HUB_CACHE name a "
            "folder on another disk"
        )
    weights = sum(f.bytes for f in wanted if f.name.endswith(".safetensors") and "/" not in f.name)
    memory = _memory()
    if weights and memory:
        short = "; that is more than it has" if weights > memory else ""
        tell(
            f"{name}: loaded, its weights take {_size(weights)} as they are stored, which is how a GPU holds them, and "
            f"on a CPU, in float32, twice what 16 bits take; this machine has {_size(memory)}{short}"
        )


def _memory() -> int | None:
    """Bytes of memory of this machine, where the system says so."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def _size(n: int) -> str:
    """Bytes for people.

    >>> _size(16_630_358_528), _size(1030)
    ('16.6 GB', '1.0 kB')
    """
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if n >= size:
            return f"{n / size:.1f} {unit}"
    return f"{max(n, 0)} bytes"


# ---- fetching ----


def _fetch_large(name: HubName, commit: str, files: list[HubFile]) -> None:
    """Fetch these files range by range; where the server has no ranges they are left to the library."""
    with _faults(name), contextlib.suppress(NoRanges):
        fetch_large(name.repo, commit, files, _home(name) / "blobs")


def _fetch(name: HubName, commit: str | None, files: list[str]) -> Path:
    """Have the library bring these files into the cache, as far as they are not there; the snapshot's folder.

    The revision is named as the caller did, so that the cache notes which commit it stands for.
    """
    import huggingface_hub
    from huggingface_hub import utils

    quiet = not sys.stderr.isatty() and not utils.are_progress_bars_disabled()
    if quiet:
        utils.disable_progress_bars()
    try:
        with _faults(name):
            fetched = huggingface_hub.snapshot_download(name.repo, revision=name.revision, allow_patterns=files)
            folder = Path(fetched)
    finally:
        if quiet:
            utils.enable_progress_bars()
    if commit is not None and folder.name != commit:
        raise DownloadError(f"{name}: was changed on the hub meanwhile; call this again")
    return folder


@contextlib.contextmanager
def _faults(name: HubName) -> Iterator[None]:
    """What the library, or what it stands on, raises, as one error of ours. Its kinds differ by version."""
    try:
        yield
    except StepAudioError:
        raise
    except Exception as error:
        raise DownloadError(f"{name}: {_said_of(error)}") from None


def _said_of(error: Exception) -> str:
    from huggingface_hub import errors

    def kind(name: str) -> bool:
        found = getattr(errors, name, None)
        return found is not None and isinstance(error, found)

    if kind("GatedRepoError"):
        return "its owner asks for consent first: give it on the model's page, then log in with `hf auth login`"
    if kind("RepositoryNotFoundError"):
        return (
            "neither a folder here nor a model that the hub shows: is it spelled right? A private one needs "
            "`hf auth login`"
        )
    if kind("RevisionNotFoundError"):
        return "the hub has this model, but not this revision: name a branch, a tag or a whole commit"
    if kind("HFValidationError"):
        return f"no name that a hub can have ({error!s:.200})"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return f"the hub answered with status {status}: try again later, {ELSEWHERE}"
    if isinstance(error, OSError) and error.errno in (
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EACCES,
        errno.EROFS,
        errno.EPERM,
    ):
        return (
            f"{error.filename or _cache()}: {error.strerror}: make room or permit it, or let HF_HUB_CACHE name another "
            "folder"
        )
    return (
        f"the hub cannot be reached ({type(error).__name__}: {error!s:.120}): look at the network; what came is "
        f"kept; {ELSEWHERE}"
    )


# ---- without the network ----


def _checked_offline(name: HubName, parts: tuple[str, ...]) -> Download:
    """What the cache has, held to the checksums that it keeps: ours, else the names of the library's blobs."""
    folder = cached(name)
    if folder is not None and MODEL in parts and not (folder / FOLDER).is_dir():
        parts = (MODEL,)  # of a model that does not speak there is no more
    folder = snapshot(name, parts)
    files = {file.name: file for file in of_blobs(folder)} | {file.name: file for file in recorded(folder)}
    faults = [fault for file in files.values() if (fault := checksum_fault(folder, file)) is not None]
    if faults:
        raise DownloadError(f"{name}: {listed(faults)}; unset HF_HUB_OFFLINE and call this again to fetch it anew")
    return Download(str(name), folder.name, folder, tuple(files.values()), 0)
