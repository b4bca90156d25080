"""A safetensors file written piece by piece: shapes first, then the bytes of each tensor in any order.

What is known of a tensor before it is computed, its shape and type, is all that the header needs; so no more of a model
is ever held than one piece.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Self

from ..errors import WeightsError
from ..files import BLOCK_BYTES
from .dtypes import ITEM_BYTES
from .header import SINGLE_FILE


@dataclass(frozen=True)
class Entry:
    """Type, as safetensors names it, and shape of a tensor that is to be written."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of its data."""
        return prod(self.shape) * ITEM_BYTES[self.dtype]


class TensorFile:
    """A file of these tensors, to be filled within a `with` block; errors are those of the system."""

    def __init__(self, path: Path, entries: Mapping[str, Entry], metadata: Mapping[str, str]):
        self._path, self._start, end = path, {}, 0
        self._left = {name: entry.nbytes for name, entry in entries.items()}
        header: dict[str, object] = {"__metadata__": dict(metadata)}
        for name, entry in entries.items():
            start, end = end, end + entry.nbytes
            header[name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [start, end]}
            self._start[name] = start
        text = json.dumps(header, separators=(",", ":")).encode()
        self._header = text + b" " * (-len(text) % 8)

    def __enter__(self) -> Self:
        self._stream = self._path.open("wb")
        self._stream.write(len(self._header).to_bytes(8, "little") + self._header)
        self._data = self._stream.tell()
        return self

    def write(self, name: str, data: bytes | memoryview) -> None:
        """The next bytes of a tensor, C order."""
        size = len(data)
        done = self._left[name] - size
        assert done >= 0, f"{name}: {-done} bytes too many"
        self._stream.seek(self._data + self._start[name])
        self._stream.write(data)
        self._start[name] += size
        self._left[name] = done

    def __exit__(self, kind, *_) -> None:
        self._stream.close()
        assert kind or not any(self._left.values()), f"{self._path}: not whole"


def split_into_files(entries: Mapping[str, Mapping[str, Entry]], most: int) -> dict[str, dict[str, Entry]]:
    """File name -> its tensors, filled in order up to `most` bytes; what one tensor is stored as stays together."""
    groups: list[dict[str, Entry]] = [{}]
    for parts in entries.values():
        held = sum(entry.nbytes for entry in groups[-1].values())
        if groups[-1] and held + sum(entry.nbytes for entry in parts.values()) > most:
            groups.append({})
        groups[-1] |= parts
    if len(groups) == 1:
        return {SINGLE_FILE: groups[0]}
    return {f"model-{i:05d}-of-{len(groups):05d}.safetensors": group for i, group in enumerate(groups, 1)}


def index_of(shards: Mapping[str, Mapping[str, Entry]]) -> dict[str, object]:
    """What the index of several files says."""
    shard_of = {name: file for file, entries in shards.items() for name in entries}
    total = sum(entry.nbytes for entries in shards.values() for entry in entries.values())
    return {"metadata": {"total_size": total}, "weight_map": dict(sorted(shard_of.items()))}


def copy_stored(stream: TensorFile, name: str, file: Path, offset: int, nbytes: int) -> None:
    """Bytes of a stored tensor as they are. Raises `WeightsError` where the file has become shorter."""
    with file.open("rb") as source:
        source.seek(offset)
        while nbytes:
            data = source.read(min(nbytes, BLOCK_BYTES))
            if not data:
                raise WeightsError(f"{file}: ends within {name}; it changed meanwhile")
            stream.write(name, data)
            nbytes -= len(data)
