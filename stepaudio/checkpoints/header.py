"""What a safetensors checkpoint says it holds: names, shapes, dtypes, byte ranges, of one file or many shards.

Reads headers and the index only, never tensor data, and believes neither: sizes must add up to the byte, and an
index may name nothing outside its folder. The format is that of the
safetensors README: 8 bytes of little-endian header length, a JSON header, the data without gaps.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path, PurePosixPath, PureWindowsPath

from ..errors import WeightsError
from ..reading import is_file, is_folder, parse_object, read_object, require_file, why
from ..schema import shown
from .dtypes import ITEM_BYTES

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library itself
MAX_NAME = 500  # characters of a tensor's name
MAX_COUNT = 2**63 - 1  # items of an axis, bytes of a file
MAX_AXES = 32  # as numpy had for long; published tensors have four at most
BROKEN = "the header is broken; download the file again"
LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class TensorInfo:
    """One stored tensor: name and dtype as the file writes them, `offset` in bytes from the start of `file`."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    file: Path
    offset: int


def read_header(path: str | Path) -> dict[str, TensorInfo]:
    """Read the header of one safetensors file and check it against the size of the file.

    Parameters
    ----------
    path : str or Path
        The file. Its data is not read.

    Returns
    -------
    dict of str to TensorInfo
        By name, in the order of the header.

    Raises
    ------
    WeightsError
        If the file cannot be opened, is too short, holds a broken header, an unknown dtype or a duplicate name,
        or if byte ranges overlap, leave gaps, contradict shape and dtype, or do not end where the file ends.
    """
    path = Path(path)
    raw, file_bytes = _header_bytes(path)
    entries, _ = _parsed(path, raw)
    data_start = 8 + len(raw)
    infos = {name: _tensor_info(path, name, entry, data_start) for name, entry in entries.items()}
    _check_ranges(path, infos.values(), data_start, file_bytes)
    return infos


def read_metadata(path: str | Path) -> dict[str, str]:
    """What the writer of a safetensors file said of it; `WeightsError` as `read_header`, as far as it reads."""
    path = Path(path)
    return _parsed(path, _header_bytes(path)[0])[1]


def _parsed(path: Path, raw: bytes) -> tuple[dict, dict[str, str]]:
    """The entries of a header, and its metadata."""
    entries = parse_object(raw, f"{path}: the header", WeightsError, BROKEN)
    metadata = entries.pop("__metadata__", None)  # mlx writes null where it has none
    if metadata is not None and not _maps_strings(metadata):
        raise WeightsError(f"{path}: __metadata__ must map strings to strings; the header is broken")
    return entries, metadata or {}


def read_checkpoint(path: str | Path) -> dict[str, TensorInfo]:
    """Headers of a whole checkpoint: a folder, one safetensors file, or an index file.

    Parameters
    ----------
    path : str or Path
        A folder with `model.safetensors` or with `model.safetensors.index.json` and its shards, or either file.

    Returns
    -------
    dict of str to TensorInfo
        By the name in the checkpoint.

    Raises
    ------
    WeightsError
        As `read_header`; also if there is no checkpoint or two of them, if a shard is missing or its name leaves
        the folder, or if the index and the shards disagree about names or total size.
    """
    path = Path(path)
    if is_folder(path, WeightsError):
        path = _pick_file(path)
    return _read_shards(path) if path.name.endswith(".json") else read_header(path)


def listed(names: Iterable[str], limit: int = 5) -> str:
    """At most `limit` names for a message, made printable, then how many more there are."""
    names = list(names)
    shown = ", ".join(printable(name) for name in names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def printable(name: str) -> str:
    """`name` as it can be shown in a terminal: control characters escaped, overlong names cut."""
    name = name if name.isprintable() else repr(name)
    return name if len(name) <= 160 else name[:157] + "..."


# ---- one file ----


def _header_bytes(path: Path) -> tuple[bytes, int]:
    """The JSON bytes of the header, unread by anyone yet, and the size of the whole file."""
    require_file(path, WeightsError, "expected safetensors weights")
    try:
        with path.open("rb") as stream:
            file_bytes = os.fstat(stream.fileno()).st_size
            start = stream.read(len(LFS_POINTER))
            header_bytes = _header_length(path, start, file_bytes)
            stream.seek(8)
            return stream.read(header_bytes), file_bytes
    except OSError as error:
        raise WeightsError(f"{path}: {why(error)}") from None


def _header_length(path: Path, start: bytes, file_bytes: int) -> int:
    if start == LFS_POINTER:
        raise WeightsError(f"{path}: a Git LFS pointer, not the weights; fetch them with `git lfs pull`")
    if len(start) < 8:
        raise WeightsError(f"{path}: {file_bytes} bytes; a safetensors file has at least 8; download or write it again")
    length = int.from_bytes(start[:8], "little")
    if length > MAX_HEADER_BYTES:
        raise WeightsError(
            f"{path}: claims a header of {length} bytes, at most {MAX_HEADER_BYTES} are allowed; is it safetensors?"
        )
    if 8 + length > file_bytes:
        raise WeightsError(
            f"{path}: claims a header of {length} bytes, but the file has only {file_bytes}; it is cut short or "
            "lies about its size; download or write it again"
        )
    return length


def _maps_strings(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(v, str) for v in value.values())


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value <= MAX_COUNT


def _tensor_info(path: Path, name: str, entry: object, data_start: int) -> TensorInfo:
    """One header entry, checked in itself: dtype known, and byte range = shape x item size."""
    what = f"{path}: tensor {printable(name)}"
    if len(name) > MAX_NAME:
        raise WeightsError(f"{what}: its name has {len(name)} characters, at most {MAX_NAME} are read")
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= set(entry):
        raise WeightsError(f"{what} lacks dtype, shape or data_offsets; the header is broken")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise WeightsError(f"{what} has unknown dtype {shown(dtype)}; known are {', '.join(ITEM_BYTES)}")
    if not isinstance(shape, list) or len(shape) > MAX_AXES or not all(map(_is_size, shape)):
        raise WeightsError(f"{what} has no valid shape: {shown(shape)}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_size, offsets)):
        raise WeightsError(f"{what} has no valid data_offsets: {shown(offsets)}")
    nbytes = prod(shape) * ITEM_BYTES[dtype]
    if offsets[1] - offsets[0] != nbytes:
        raise WeightsError(
            f"{what}: {dtype} of shape {tuple(shape)} needs {nbytes} bytes, its offsets {offsets} span "
            f"{offsets[1] - offsets[0]}; the header lies about its size"
        )
    return TensorInfo(name, tuple(shape), dtype, nbytes, path, data_start + offsets[0])


def _check_ranges(path: Path, infos: Iterable[TensorInfo], data_start: int, file_bytes: int) -> None:
    """Refuse ranges that overlap, leave a gap, or do not end exactly where the file ends."""
    end, before = data_start, None
    for info in sorted(infos, key=lambda info: (info.offset, info.nbytes)):
        if info.offset != end:
            fault = "overlaps what comes before it" if info.offset < end else "leaves unused bytes before it"
            raise WeightsError(
                f"{path}: tensor {printable(info.name)} starts at data byte {info.offset - data_start} and {fault} "
                f"(up to {end - data_start}: {printable(before) if before else 'nothing'}); the header is broken"
            )
        end, before = info.offset + info.nbytes, info.name
    if end > file_bytes:
        raise WeightsError(
            f"{path}: truncated: the header promises {end - data_start} bytes of data, the file holds "
            f"{file_bytes - data_start}; download or write it again"
        )
    if end < file_bytes:
        raise WeightsError(
            f"{path}: {file_bytes - end} more bytes of data than the header describes; it lies about its size"
        )


# ---- many shards ----


def _pick_file(folder: Path) -> Path:
    """The one file that describes the checkpoint in `folder`."""
    single, index = folder / SINGLE_FILE, folder / INDEX_FILE
    found = [file for file in (single, index) if is_file(file, WeightsError)]
    if len(found) > 1:
        named = read_object(index, WeightsError, "download the index again").get("weight_map")
        if isinstance(named, dict) and set(map(str, named.values())) == {SINGLE_FILE}:
            return index  # some tools write an index of one file; it says nothing else, and is held to that
        raise WeightsError(
            f"{folder}: holds both {SINGLE_FILE} and {INDEX_FILE}, so it is unclear which is meant; remove one, or "
            "give the path of the file itself"
        )
    if found:
        return found[0]
    others = weight_files(folder)
    raise WeightsError(
        f"{folder}: neither {SINGLE_FILE} nor {INDEX_FILE} is there; found "
        f"{listed(others) if others else 'no weights at all'}; give the folder of a published "
        "model, or the path of one safetensors file"
    )


def weight_files(folder: Path) -> list[str]:
    """Names of the files in a folder that look like weights; `WeightsError` where it cannot be listed."""
    try:
        return sorted(p.name for p in folder.iterdir() if p.suffix in {".safetensors", ".bin", ".pt", ".pth", ".npz"})
    except OSError as error:
        raise WeightsError(f"{folder}: {why(error)}") from None


def _read_shards(index: Path) -> dict[str, TensorInfo]:
    """Headers of all shards that `index` names, held against the index in both directions."""
    content = read_object(index, WeightsError, "download the index again")
    shard_of = _weight_map(index, content)
    shards = sorted(set(shard_of.values()))
    absent = [shard for shard in shards if not is_file(index.parent / shard, WeightsError)]
    if absent:
        raise WeightsError(
            f"{index}: {len(absent)} of {len(shards)} shards are missing: {listed(absent, 20)}; download them into "
            f"{index.parent}"
        )
    infos: dict[str, TensorInfo] = {}
    promised: dict[str, set[str]] = {shard: set() for shard in shards}
    for name, shard in shard_of.items():
        promised[shard].add(name)
    for shard in shards:
        infos |= _shard_as_indexed(index, shard, promised[shard])
    _check_total(index, content.get("metadata"), sum(info.nbytes for info in infos.values()))
    return infos


def _weight_map(index: Path, content: dict) -> dict[str, str]:
    shard_of = content.get("weight_map")
    if not isinstance(shard_of, dict) or not shard_of or not all(isinstance(s, str) for s in shard_of.values()):
        raise WeightsError(f"{index}: weight_map should map tensor names to shard names; download or write it again")
    outside = sorted({shard for shard in shard_of.values() if _leaves_folder(shard)})
    if outside:
        raise WeightsError(
            f"{index}: shard {listed(outside)} lies outside the folder of the index; shards are named relative to "
            "it, without '..'; do not use this checkpoint"
        )
    return shard_of


def _leaves_folder(shard: str) -> bool:
    """Whether the *name* points outside. A symbolic link is the folder owner's own doing (download caches link)."""
    windows, posix = PureWindowsPath(shard), PurePosixPath(shard)  # judged alike on every system
    unusable = not shard.strip() or "\0" in shard
    return unusable or ".." in windows.parts or posix.is_absolute() or bool(windows.anchor)


def _shard_as_indexed(index: Path, shard: str, promised: set[str]) -> dict[str, TensorInfo]:
    infos = read_header(index.parent / shard)
    lacking, unnamed = sorted(promised - set(infos)), sorted(set(infos) - promised)
    if lacking:
        raise WeightsError(f"{index}: says that {shard} holds {listed(lacking)}, which it does not; the index lies")
    if unnamed:
        raise WeightsError(f"{index}: does not say that {shard} holds {listed(unnamed)}, which it does; the index lies")
    return infos


def _check_total(index: Path, metadata: object, found: int) -> None:
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    if total is None:
        return  # optional in the format
    if isinstance(total, bool) or not isinstance(total, (int, float)) or total != found:
        raise WeightsError(
            f"{index}: metadata.total_size is {shown(total)}, its shards hold {found} bytes of tensors; the "
            "index lies or belongs to other shards"
        )
