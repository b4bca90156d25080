"""What a PyTorch `.pt` file of tensors holds, without PyTorch and without running anything that it says.

Such a file is a zip archive: a pickle that describes a mapping of tensors, and one plain file of bytes for each
storage. The pickle is read by an unpickler that knows the handful of names that tensors are made of and gives back
inert records for them; any other name is refused before anything is called. The bytes are found, not read.
Format: `torch.save` since PyTorch 1.6.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from ...errors import WeightsError
from ...reading import require_file
from ...schema import shown
from ..dtypes import ITEM_BYTES
from ..header import LFS_POINTER, MAX_AXES, MAX_COUNT, MAX_NAME, listed, printable
from ..tensors import StoredTensor, c_order, span

MAX_PICKLE_BYTES = 1_000_000  # names and shapes alone; the published ones take under 100 kB
MAX_ORDER_BYTES = 16  # "little" or "big"
MAX_TENSORS = 10_000  # the published files have under 1000
MAX_REPEATS = 4  # times the file that its tensors may be, since views repeat values at no cost in the file, ...
FREE_BYTES = 1 << 30  # ... and up to here, half as much again as the largest published file, by any factor
LOCAL_HEADER = 30  # bytes before the name in a zip archive's local header
FRAME_BYTES = 9  # of the opcode that opens a frame, and of the frame's length
BLOCK = 1 << 24  # bytes hashed at a time
STORAGES = {"FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16", "DoubleStorage": "F64",
            "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8",
            "ByteStorage": "U8", "BoolStorage": "BOOL"}  # fmt: skip


class PtContent(NamedTuple):
    """`others` are entries that are no tensors: name to type."""

    tensors: dict[str, StoredTensor]
    others: dict[str, str]


class _Storage(NamedTuple):
    dtype: str
    key: str
    n_items: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple
    strides: tuple


def _tensor(storage, offset, shape, strides, *_rest) -> _Tensor:
    return _Tensor(storage, offset, shape, strides)


def _parameter(data, *_rest):
    return data


def _dict() -> dict:
    return {}


ALLOWED = {("collections", "OrderedDict"): _dict, ("torch._utils", "_rebuild_tensor_v2"): _tensor,
           ("torch._utils", "_rebuild_parameter"): _parameter}  # fmt: skip


class _Inert(pickle._Unpickler):
    """Gives records for the names in `ALLOWED` and for storages; refuses everything else.

    Python's own unpickler, not the one in C: keys are looked at before they are hashed, since a tuple of tuples of
    tuples … may take longer to hash than anyone waits.
    """

    dispatch: ClassVar[dict] = dict(pickle._Unpickler.dispatch)

    def _set_one(self: Any):
        _require_names(self.stack[-2:-1])
        pickle._Unpickler.dispatch[pickle.SETITEM[0]](self)

    def _set_many(self: Any):
        _require_names(self.stack[::2])
        pickle._Unpickler.dispatch[pickle.SETITEMS[0]](self)

    def _drop_state(self: Any):
        self.stack.pop()  # attributes of an OrderedDict, which are no tensors

    def _refuse_set(self):
        raise WeightsError("its description holds a dictionary or set in a form that PyTorch does not write")

    dispatch[pickle.SETITEM[0]], dispatch[pickle.SETITEMS[0]] = _set_one, _set_many
    dispatch[pickle.BUILD[0]] = _drop_state
    for _code in (pickle.DICT, pickle.ADDITEMS, pickle.FROZENSET):
        dispatch[_code[0]] = _refuse_set

    def find_class(self, module: str, name: str):
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if (module, name) not in ALLOWED:
            raise WeightsError(
                f"wants to call {printable(f'{module}.{name}')}, which no file of weights needs; "
                "nothing was run. Do not use this file"
            )
        return ALLOWED[module, name]

    def persistent_load(self, pid) -> _Storage:
        if (
            not isinstance(pid, tuple)
            or len(pid) != 5
            or not all(isinstance(part, str) for part in pid[:3])
            or pid[0] != "storage"
            or pid[1] not in ITEM_BYTES
            or not _is_count(pid[4])
        ):
            raise WeightsError(f"names a storage in an unknown way: {shown(pid)}")
        return _Storage(pid[1], pid[2], pid[4])


def _require_names(keys: Sequence[object]) -> None:
    odd = next((key for key in keys if not isinstance(key, str)), None)
    if odd is not None:
        raise WeightsError(f"holds the key {shown(odd)}, expected names")


def read_pt(path: str | Path) -> PtContent:
    """Describe every tensor of a `.pt` file.

    Raises
    ------
    WeightsError
        No zip archive, cut short, a pickle that names anything but tensors (nothing of it is run), views that leave
        their storage, or something else than a flat mapping of names.
    """
    path = Path(path)
    with _refusals(path), zipfile.ZipFile(path) as archive, path.open("rb") as stream:
        root, raw = _description(archive)
        tensors, others = _entries(_unpickled(raw))
        if len(tensors) > MAX_TENSORS:
            raise WeightsError(f"holds {len(tensors)} tensors, at most {MAX_TENSORS} are read; is it another model?")
        storages = {t.storage.key: t.storage for t in tensors.values()}
        places = {key: _place(archive, stream, f"{root}data/{key}", s) for key, s in storages.items()}
        return PtContent({n: _stored(n, t, path, places[t.storage.key]) for n, t in tensors.items()}, others)


def check_storages(path: str | Path) -> None:
    """Read every storage of the archive against its checksum, before its tensors are made arrays.

    Raises
    ------
    WeightsError
        Names the first damaged one; or the tensors are views that would fill the memory: steps of 0, overlapping ones,
        many of one storage.
    """
    path = Path(path)
    n_bytes = sum(tensor.nbytes for tensor in read_pt(path).tensors.values())
    with _refusals(path), zipfile.ZipFile(path) as archive:
        size = path.stat().st_size
        if n_bytes > max(FREE_BYTES, MAX_REPEATS * size):
            raise WeightsError(f"its tensors are views that make {n_bytes} bytes of {size}; save contiguous copies")
        if sum(entry.file_size for entry in archive.infolist()) > size:
            raise WeightsError("the files inside overlap: together they are larger than the archive; do not use it")
        for entry in archive.infolist():
            total = 0
            with path.open("rb") as stream:
                stream.seek(_data_start(stream, entry))
                left = entry.file_size
                while left and (block := stream.read(min(BLOCK, left))):
                    total, left = zlib.crc32(block, total), left - len(block)
            if total != entry.CRC:
                raise WeightsError(
                    f"{printable(entry.filename)} does not have the checksum that the archive "
                    "says; the file is damaged, download it again"
                )


@contextmanager
def _refusals(path: Path) -> Iterator[None]:
    """Whatever goes wrong inside ends as a `WeightsError` that opens with the path."""
    require_file(path, WeightsError, "expected a PyTorch file of weights")
    try:
        yield
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from None
    except (zipfile.BadZipFile, EOFError, OSError, ValueError, RuntimeError, struct.error, zlib.error) as error:
        # ValueError, RuntimeError, struct.error: how zipfile meets damaged names, flags and sizes
        raise WeightsError(f"{path}: {_why_no_zip(path)} ({str(error)[:80]})") from None


def _why_no_zip(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            start = stream.read(len(LFS_POINTER))
    except OSError:
        return "cannot be read"
    if start == LFS_POINTER:
        return "a Git LFS pointer, not the weights; fetch them with `git lfs pull`"
    if start[:2] == b"PK":
        return "the archive is cut short or damaged; download it again"
    return "not a zip archive, as PyTorch writes since 1.6; load and save an older file with PyTorch first"


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= MAX_COUNT


def _description(archive: zipfile.ZipFile) -> tuple[str, bytes]:
    """(folder inside the archive, bytes of its pickle)."""
    found = [e for e in archive.infolist() if e.filename.rpartition("/")[2] == "data.pkl"]
    if len(found) != 1:
        raise WeightsError(f"{len(found)} files named data.pkl inside, expected one; is it a PyTorch file of weights?")
    raw = _small(archive, found[0], MAX_PICKLE_BYTES)
    root = found[0].filename.removesuffix("data.pkl")
    order = next((e for e in archive.infolist() if e.filename == f"{root}byteorder"), None)
    if order is not None and _small(archive, order, MAX_ORDER_BYTES) != b"little":
        raise WeightsError("written on a big-endian machine; save it again on another")
    return root, raw


def _small(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, most: int) -> bytes:
    """The bytes of a small file inside, which must be stored as it is: so it is no larger than the archive."""
    _require_stored(entry)
    if entry.file_size > most:
        raise WeightsError(f"{printable(entry.filename)} takes {entry.file_size} bytes, at most {most} are read")
    return archive.read(entry)


def _require_stored(entry: zipfile.ZipInfo) -> None:
    if entry.compress_type != zipfile.ZIP_STORED:
        raise WeightsError(
            f"{printable(entry.filename)} is compressed, which PyTorch never does; save it again with PyTorch"
        )


def _unpickled(raw: bytes) -> object:
    try:
        for opcode, argument, at in pickletools.genops(raw):  # an index beyond the pickle itself only costs memory
            if opcode.name == "FRAME" and int(argument or 0) > len(raw) - (at or 0) - FRAME_BYTES:
                raise WeightsError("its description is cut short; download it again")
            if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and not 0 <= int(argument or 0) <= len(raw):
                raise WeightsError(f"its description asks for {argument} memo entries; it is damaged or hostile")
        return _Inert(io.BytesIO(raw)).load()
    except WeightsError:
        raise
    except Exception as error:  # a broken pickle raises nearly anything
        raise WeightsError(
            f"its description is no pickle of tensors ({type(error).__name__}: {str(error)[:80]})"
        ) from None


def _entries(root: object) -> tuple[dict[str, _Tensor], dict[str, str]]:
    if not isinstance(root, Mapping):
        raise WeightsError(f"holds a {type(root).__name__.lstrip('_').lower()}, expected a mapping of names to tensors")
    if any(len(key) > MAX_NAME for key in root):
        raise WeightsError(f"holds a name of more than {MAX_NAME} characters")
    nested = [key for key, value in root.items() if isinstance(value, Mapping) and value]
    if nested:
        raise WeightsError(f"{listed(nested)} holds a mapping, expected tensors by name; save its state dict alone")
    tensors = {key: value for key, value in root.items() if isinstance(value, _Tensor)}
    loose = [key for key, tensor in tensors.items() if not isinstance(tensor.storage, _Storage)]
    if loose:
        raise WeightsError(f"tensor {listed(loose)} has no storage")
    return tensors, {key: type(value).__name__ for key, value in root.items() if key not in tensors}


def _data_start(stream, entry: zipfile.ZipInfo) -> int:
    stream.seek(entry.header_offset)
    header = stream.read(LOCAL_HEADER)
    if len(header) < LOCAL_HEADER or header[:4] != b"PK\x03\x04":
        raise WeightsError(f"{printable(entry.filename)} is not where the archive says; it is damaged")
    names = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    return entry.header_offset + LOCAL_HEADER + names


def _place(archive: zipfile.ZipFile, stream, name: str, storage: _Storage) -> int:
    """Byte at which a storage starts in the file."""
    try:
        entry = archive.getinfo(name)
    except KeyError:
        raise WeightsError(f"storage {printable(name)} is missing; the archive is damaged") from None
    needed = storage.n_items * ITEM_BYTES[storage.dtype]
    _require_stored(entry)
    if entry.file_size < needed:
        raise WeightsError(f"storage {printable(name)} has {entry.file_size} bytes, {needed} are promised")
    return _data_start(stream, entry)


def _stored(name: str, tensor: _Tensor, path: Path, start: int) -> StoredTensor:
    storage, offset, shape, strides = tensor
    sizes = all(isinstance(x, tuple) and all(map(_is_count, x)) for x in (shape, strides))
    if not sizes or not len(shape) == len(strides) <= MAX_AXES or not _is_count(offset):
        raise WeightsError(f"tensor {printable(name)} has no valid shape and strides")
    if offset + span(shape, strides) > storage.n_items:
        raise WeightsError(
            f"tensor {printable(name)} of shape {shape} reaches beyond its storage of {storage.n_items} items"
        )
    item = ITEM_BYTES[storage.dtype]
    view = None if strides == c_order(shape) else strides
    return StoredTensor(name, shape, storage.dtype, prod(shape) * item, path, start + offset * item, view)
