"""What an ONNX file holds: nodes, and where its initialisers lie. Nothing is run and no tensor is read.

Reads the few fields of the protobuf messages that are needed, from a memory map, and believes no length that it
finds. Format: `onnx.proto` of ONNX, wire format of Protocol Buffers.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

from ...errors import WeightsError
from ...reading import require_file
from ...schema import shown
from ..dtypes import ITEM_BYTES
from ..header import LFS_POINTER, MAX_AXES, MAX_COUNT, MAX_NAME, listed, printable
from ..tensors import StoredTensor

DTYPES = {1: "F32", 10: "F16", 16: "BF16", 11: "F64", 7: "I64", 6: "I32", 5: "I16", 3: "I8", 2: "U8", 9: "BOOL"}
OWN_DOMAINS = ("", "ai.onnx")
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types
MAX_VARINT_BYTES = 10
MAX_INTS = 1 << 16  # bytes of a list of whole numbers: shapes, axes, strides; data stands in `raw_data`
MAX_DEPTH = 8  # graphs inside graphs


@dataclass(frozen=True)
class Node:
    """One operator. `attributes` holds whole numbers, floats, tuples of these, and small integer tensors as tuples."""

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict = field(default_factory=dict)

    @property
    def where(self) -> str:
        """The node as messages name it: operator, and its name or outputs."""
        return f"{self.op} {printable(self.name or ', '.join(self.outputs))}"


@dataclass(frozen=True)
class Graph:
    """What a file describes.

    Nodes are in the order of the file, those of branches behind theirs; initialisers by name; `constants` are integer
    tensors by the name that carries them, be it an initialiser's or a Constant node's.
    """

    nodes: tuple[Node, ...]
    initialisers: dict[str, StoredTensor]
    constants: dict[str, tuple[int, ...]]


def read_onnx(path: str | Path) -> Graph:
    """Describe an ONNX file.

    Raises
    ------
    WeightsError
        Not readable as ONNX, cut short, operators of a foreign domain, functions of its own, weights in branches,
        sparse initialisers, or data that lies in other files.
    """
    path = Path(path)
    require_file(path, WeightsError, "expected an ONNX graph")
    try:
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if data[: len(LFS_POINTER)] == LFS_POINTER:
                raise WeightsError("a Git LFS pointer, not the weights; fetch them with `git lfs pull`")
            return _model(data, path)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from None
    except (OSError, ValueError, IndexError, TypeError, struct.error) as error:
        # TypeError: a field has another wire type than ONNX gives it
        raise WeightsError(
            f"{path}: not readable as ONNX, or cut short ({str(error)[:80]}); download it again"
        ) from None


# ---- protobuf ----


def _varint(data, at: int, end: int) -> tuple[int, int]:
    value = 0
    for i in range(MAX_VARINT_BYTES):
        if at + i >= end:
            raise IndexError("a number runs past its end")
        byte = data[at + i]
        value |= (byte & 127) << (7 * i)
        if byte < 128:
            return value, at + i + 1
    raise ValueError("a number is too long")


def _fields(data, at: int, end: int) -> Iterator[tuple[int, int | tuple[int, int]]]:
    """(field number, whole number or (start, end) of bytes) of one message; fixed numbers come as their bytes."""
    while at < end:
        key, at = _varint(data, at, end)
        number, wire = key >> 3, key & 7
        if number == 0 or wire not in (VARINT, FIXED64, BYTES, FIXED32):
            raise ValueError(f"no such field: {number} of wire type {wire}")
        if wire == VARINT:
            value, at = _varint(data, at, end)
            yield number, value
            continue
        size = {FIXED64: 8, FIXED32: 4}.get(wire)
        if size is None:
            size, at = _varint(data, at, end)
        if at + size > end:
            raise IndexError(f"field {number} promises {size} bytes, {end - at} are left")
        yield number, (at, at + size)
        at += size


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _place(value: int | tuple[int, int]) -> tuple[int, int]:
    """(start, end) of a field of bytes; `TypeError` for a number, which is no such field."""
    if isinstance(value, int):
        raise TypeError(f"a field of bytes is the number {value}")
    return value


def _number(value: int | tuple[int, int]) -> int:
    """A field that is a whole number; `TypeError` for bytes."""
    if isinstance(value, tuple):
        raise TypeError("a field of a number is bytes")
    return value


def _text(data, value: int | tuple[int, int]) -> str:
    start, end = _place(value)
    return data[start:end].decode("utf-8")


def _ints(data, value) -> list[int]:
    """A repeated whole number, packed or single."""
    if isinstance(value, int):
        return [_signed(value)]
    found, (at, end) = [], value
    if end - at > MAX_INTS:
        raise ValueError(f"a list of whole numbers takes {end - at} bytes, at most {MAX_INTS} are read")
    while at < end:
        number, at = _varint(data, at, end)
        found.append(_signed(number))
    return found


# ---- messages ----


def _model(data, path: Path) -> Graph:
    graph = None
    for number, value in _fields(data, 0, len(data)):
        if number == 7:
            graph = value
        elif number == 25:
            raise WeightsError("defines functions of its own, which the published graphs do not; is it another model?")
    if not isinstance(graph, tuple):
        raise WeightsError("not an ONNX model: it holds no graph")
    nodes, initialisers, constants = [], {}, {}
    _graph(data, graph, path, nodes, initialisers, constants)
    if not initialisers:
        raise WeightsError("holds no initialisers: a graph without weights")
    for node in nodes:
        value = node.attributes.get("value") if node.op == "Constant" else None
        constants |= {node.outputs[0]: value} if node.outputs and isinstance(value, tuple) else {}
    return Graph(tuple(nodes), initialisers, constants)


def _graph(data, place, path: Path, nodes: list, initialisers: dict, constants: dict, depth: int = 0) -> None:
    """Fill the three from one graph and from those inside it: exporters write some squeezes as branches."""
    if depth > MAX_DEPTH:
        raise WeightsError(f"holds graphs inside graphs, more than {MAX_DEPTH} deep")
    for number, value in _fields(data, *place):
        if number == 1:
            node, inner = _node(data, value)
            nodes.append(node)
            for branch in inner:
                _graph(data, branch, path, nodes, initialisers, constants, depth + 1)
        elif number == 5:
            tensor, numbers = _tensor(data, value, path)
            if depth and numbers is None:
                raise WeightsError(
                    f"initialiser {printable(tensor.name)} lies in a branch, where the published graphs "
                    "have none; is it another model?"
                )
            if tensor.name in initialisers:
                raise WeightsError(f"initialiser {printable(tensor.name)} is there twice")
            initialisers[tensor.name] = tensor
            constants |= {} if numbers is None else {tensor.name: numbers}
        elif number == 15:
            raise WeightsError("holds sparse initialisers, which the published graphs do not; is it another model?")


def _node(data, place) -> tuple[Node, list[tuple[int, int]]]:
    """A node, and where the graphs in its attributes lie."""
    texts: dict[int, list[str]] = {n: [] for n in (1, 2, 3, 4, 7)}
    attributes, inner = {}, []
    for number, value in _fields(data, *place):
        if number in texts:
            texts[number].append(_text(data, value))
        elif number == 5:
            name, content = _attribute(data, value, inner)
            attributes[name] = content
    node = Node("".join(texts[4]), "".join(texts[3]), tuple(texts[1]), tuple(texts[2]), attributes)
    domain = "".join(texts[7])
    if domain not in OWN_DOMAINS:
        raise WeightsError(f"operator {printable(domain)}.{node.where} is foreign: only ONNX's own operators are known")
    return node, inner


def _attribute(data, place, inner: list) -> tuple[str, object]:
    """Its name and content; graphs go into `inner` by their place."""
    name, content = "", None
    ints: list[int] = []
    for number, value in _fields(data, *place):
        if number == 1:
            name = _text(data, value)
        elif number == 2:
            start, end = _place(value)
            content = struct.unpack("<f", data[start:end])[0]
        elif number == 3:
            content = _signed(_number(value))
        elif number == 5:
            content = _tensor(data, value, Path())[1]
        elif number in (6, 11):
            inner.append(_place(value))
        elif number == 8:
            ints += _ints(data, value)
    return name, tuple(ints) if ints else content


def _tensor(data, place, path: Path) -> tuple[StoredTensor, tuple[int, ...] | None]:
    """Where a tensor lies, and its numbers if it is a short list of whole ones."""
    dims, kind, name, raw, numbers = [], 0, "", None, []
    for number, value in _fields(data, *place):
        if number == 1:
            dims += _ints(data, value)
        elif number == 2:
            kind = _number(value)
        elif number == 8:
            name = _text(data, value)
        elif number in (4, 9, 10):  # floats and doubles come packed, which is as good as raw_data
            raw = value if isinstance(value, tuple) and raw is None else ()
        elif number == 7:
            numbers += _ints(data, value)
        elif number == 13 or (number == 14 and value == 1):
            raise WeightsError(
                f"the data of {printable(name) or 'a tensor'} lies in another file; expected one file "
                "that holds everything"
            )
    if kind not in DTYPES and name:
        raise WeightsError(
            f"initialiser {printable(name)} has the data type {kind}; known are {listed(DTYPES.values(), 99)}"
        )
    if len(name) > MAX_NAME or len(dims) > MAX_AXES or not all(0 <= n <= MAX_COUNT for n in dims):
        raise WeightsError(f"initialiser {printable(name)} has the shape {shown(dims)}")
    shape, dtype = tuple(dims), DTYPES.get(kind, "U8")
    nbytes = prod(shape) * ITEM_BYTES[dtype]
    start, end = raw if raw else (0, 0)
    if dtype == "I64" and (numbers or (len(shape) <= 1 and end - start == nbytes <= 64)):
        numbers = numbers or list(struct.unpack(f"<{(end - start) // 8}q", data[start:end]))
        return StoredTensor(name, shape, dtype, nbytes, path, start), tuple(numbers)
    if end - start != nbytes and name:
        raise WeightsError(
            f"initialiser {printable(name)}: {dtype} of shape {shape} needs {nbytes} bytes, found {end - start}"
        )
    return StoredTensor(name, shape, dtype, nbytes, path, start), None
