"""Matrices of fewer bits as MLX's tools store them, and whether a folder's config and its files say the same.

`LAYER.weight` holds packed numbers (U32), `LAYER.scales` a scale for each group of a row, `LAYER.biases`, in the affine
mode, an offset for each group. How many bits there are, and in which mode, stands in `config.json` alone; so a layer
that one of the two calls quantised and the other does not is refused here, where every reader passes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import mlx.core as mx
import numpy as np

from ..errors import ConfigError, WeightsError
from ..models.quantization import AFFINE, Bits, Quantization, layers_of
from ..models.speech_lm import CONFIG_FILE, StepAudioConfig
from ..reading import folder_of, is_file, read_object
from .dtypes import HELD, numpy_dtype, packed_dtype
from .header import TensorInfo, listed, printable, read_checkpoint
from .int8 import SCALE, ScaledTensor, with_scales
from .joined import JoinedTensor
from .layout import Config, build
from .suggest import new_name
from .tensor_file import Entry

WEIGHT, SCALES, BIASES = ".weight", ".scales", ".biases"
KEY, OTHER_KEY = "quantization", "quantization_config"
STEPS = {"mxfp4": 1 / 3, "nvfp4": 1 / 3, "mxfp8": 1 / 14}  # between the two largest values of E2M1, and of E4M3
AGAIN = "quantise the model again, or download it again"


@dataclass(frozen=True)
class PackedTensor(JoinedTensor):
    """Packed numbers with their scales and offsets; `shape` is that of the values, (rows, width) of a matrix."""

    bits: Bits
    scales: TensorInfo
    biases: TensorInfo | None

    @property
    def step(self) -> float:
        """As `JoinedTensor`; a group reaches from its least to its largest value."""
        return STEPS.get(self.bits.mode, 2.0 / ((1 << self.bits.bits) - 1))

    @property
    def matrix(self) -> tuple[int, int]:
        """(rows, width) as it is stored: of other shapes than a matrix's, a group may be a row."""
        rows, groups = self.scales.shape
        return rows, groups * self.bits.group_size

    def rows(self, first: int, stop: int) -> np.ndarray:
        """(n, width), float32."""
        rows, _ = self.matrix
        if rows == self.shape[0]:
            return self._widened(first, stop)
        return self._widened(0, rows).reshape(self.shape[0], -1)[first:stop]

    def _widened(self, first: int, stop: int) -> np.ndarray:
        scales = _slice(self.scales, first, stop)
        biases = None if self.biases is None else _slice(self.biases, first, stop).astype(mx.float32)
        if self.bits.mode == AFFINE:
            scales = scales.astype(mx.float32)
        # always by the CPU: what is described and compared must not depend on the backend
        how = {**self.bits.options, "dtype": mx.float32, "stream": mx.cpu}
        found = mx.dequantize(_slice(self, first, stop), scales, biases, **how)
        return np.array(found.astype(mx.float32, stream=mx.cpu))

    def parts(self) -> Iterator[tuple[str, mx.array]]:
        """What stands behind the layer's name, and the stored array, for each part."""
        for suffix, info in ((WEIGHT, self), (SCALES, self.scales), (BIASES, self.biases)):
            if info is not None:
                yield suffix, _slice(info, 0, self.matrix[0])


def _slice(info: TensorInfo, first: int, stop: int) -> mx.array:
    """Some rows of a stored matrix, as they are."""
    kind, (rows, width) = info.dtype, info.shape if not isinstance(info, PackedTensor) else info.matrix
    if isinstance(info, PackedTensor):
        kind, width = "U32", packed_width(width, info.bits.bits)
    items = np.memmap(info.file, numpy_dtype(kind), "r", info.offset, (rows, width))[first:stop]
    array = mx.array(np.ascontiguousarray(items))
    return array.view(HELD[kind], stream=mx.cpu) if kind in HELD else array


def layer_arrays(name: str, info: PackedTensor, dtype: mx.Dtype | None) -> Iterator[tuple[str, mx.array]]:
    """The parameters of a quantised layer, by the name of its matrix: scales and offsets in the dtype asked for."""
    for suffix, array in info.parts():
        array = array.astype(dtype) if dtype is not None and array.dtype in HELD.values() else array
        mx.eval(array)
        yield name.removesuffix(WEIGHT) + suffix, array


def packed_width(width: int, bits: int) -> int:
    """Numbers of 32 bits that hold so many of fewer bits."""
    return width * bits // 32


def stored_parts(name: str, info: TensorInfo, matrix: tuple[int, ...], bits: Bits | None) -> dict[str, Entry]:
    """The tensors that one will be stored as: as it is, or quantised as a matrix of (rows, width)."""
    if bits is None:
        whole = Entry("I8" if isinstance(info, ScaledTensor) else info.dtype, info.shape)
        scale = {name + SCALE: Entry(info.scale.dtype, info.scale.shape)} if isinstance(info, ScaledTensor) else {}
        return {name: whole} | scale
    rows, width = matrix
    layer, groups = name.removesuffix(WEIGHT), (rows, width // bits.group_size)
    found = {name: Entry("U32", (rows, packed_width(width, bits.bits)))}
    if bits.mode != AFFINE:
        return found | {layer + SCALES: Entry("U8", groups)}
    kind = info.dtype if info.dtype in HELD else "F32"
    return found | {layer + SCALES: Entry(kind, groups), layer + BIASES: Entry(kind, groups)}


def read_tensors(path: str | Path, rename: Mapping[str, str] | None = None) -> dict[str, TensorInfo]:
    """The records of a checkpoint by its own names, each matrix that is stored as several tensors as one record.

    Parameters
    ----------
    path : str or Path
        Folder, safetensors file, or index file; what its config says of fewer bits is read beside it.
    rename : mapping of str to str, optional
        Under which published names layers are to be looked up, as `suggest.apply_rename`, which is up to the caller.

    Raises
    ------
    WeightsError
        As `header.read_checkpoint`; parts that do not fit each other; a layer that the config calls quantised and the
        file does not, or the other way round.
    ConfigError
        A description of fewer bits that MLX has not got.
    """
    records = read_checkpoint(path)
    said = read_quantization(path)
    if said is None:
        refuse_unclaimed(path, records)
    else:
        layers = quantisable(StepAudioConfig.from_file(folder_of(path, WeightsError)))
        records = joined(path, records, said, layers, {name: new_name(name, rename) for name in records})
    return with_scales(records)


def read_quantization(path: str | Path) -> Quantization | None:
    """What the config beside a checkpoint says of fewer bits; None where it says nothing, or where there is none."""
    file = folder_of(path, WeightsError) / CONFIG_FILE
    if not is_file(file, ConfigError):
        return None
    said = read_object(file, ConfigError, "expected the config of a model").get(KEY)
    return None if said is None else Quantization.from_dict(said, f"{file}.{KEY}")


@lru_cache(maxsize=32)
def quantisable(config: Config) -> Mapping[str, tuple[int, int]]:
    """Layer -> (rows, width) of all that can be quantised in the net of these sizes."""
    return layers_of(build(config))


def check_claims(
    path: object, said: Quantization, layers: Mapping[str, tuple[int, int]], records: Mapping[str, TensorInfo]
) -> None:
    """Refuse with `WeightsError` a config and files that do not call the same layers quantised.

    Parameters
    ----------
    path : object
        Opens messages.
    said : Quantization
    layers : mapping of str to (int, int)
        All layers that can be quantised.
    records : mapping of str to TensorInfo
        By published name, matrices of fewer bits joined.
    """
    unknown = [name for name in said.layers if name not in layers]
    if unknown:
        raise WeightsError(
            f"{path}: the config's {KEY} names {listed(unknown)}, which is no layer of this model that can be quantised"
        )
    claimed = {name for name, (_, width) in layers.items() if said.of(name, width) is not None}
    packed = {name.removesuffix(WEIGHT) for name, info in records.items() if isinstance(info, PackedTensor)}
    whole = {name for name in layers if name + WEIGHT in records} - packed
    if claimed & whole:
        names = sorted(claimed & whole)
        raise WeightsError(
            f"{path}: the config's {KEY} claims {len(names)} layers that the file does not quantise: {listed(names)}; "
            f'say `"{names[0]}": false` there if that is meant, else {AGAIN}'
        )
    if packed - claimed:
        names = sorted(packed - claimed)
        raise WeightsError(
            f"{path}: quantises {len(names)} layers that the config's {KEY} does not claim: {listed(names)}; {AGAIN}"
        )


def refuse_unclaimed(path: object, records: Mapping[str, TensorInfo], where: str = CONFIG_FILE) -> None:
    """Refuse with `WeightsError` packed matrices of which the file `where`, by its name, says nothing."""
    layers = [name.removesuffix(SCALES) for name in records if name.endswith(SCALES)]
    layers = [name for name in layers if name + WEIGHT in records and records[name + WEIGHT].dtype == "U32"]
    if layers:
        raise WeightsError(
            f"{path}: quantises {len(layers)} layers ({listed(layers)}), and no {KEY} in {where} beside it says "
            "with how many bits; bring the config that was written with it"
        )


def joined(
    path: object,
    records: Mapping[str, TensorInfo],
    said: Quantization,
    layers: Mapping[str, tuple[int, int]],
    names: Mapping[str, str] | None = None,
) -> dict[str, TensorInfo]:
    """The records, by the names in the file, with packed matrices joined.

    Parameters
    ----------
    path, said, layers
        As `check_claims`, which is asked at the end.
    records : mapping of str to TensorInfo
    names : mapping of str to str, optional
        Name in the file -> published name, where they differ.

    Raises
    ------
    WeightsError
        As `join` and `check_claims`.
    """
    names, out = names or {}, dict(records)
    for layer in _parts(records):
        published = names.get(layer + WEIGHT, layer + WEIGHT).removesuffix(WEIGHT)
        bits = said.of(published, layers[published][1]) if published in layers else None
        if bits is None:
            raise WeightsError(
                f"{path}: quantises {printable(published)}, which the config's {KEY} does not claim; {AGAIN}"
            )
        out[layer + WEIGHT] = join(records, layer, bits)
        for part in (SCALES, BIASES):
            out.pop(layer + part, None)
    check_claims(path, said, layers, {names.get(name, name): info for name, info in out.items()})
    return out


def _parts(records: Mapping[str, TensorInfo]) -> list[str]:
    """Layers of which a packed matrix, or scales or offsets of one, are stored."""
    found: dict[str, None] = {}
    for name, info in records.items():
        stem, dot, last = name.rpartition(".")
        if (dot + last in (SCALES, BIASES)) or (dot + last == WEIGHT and info.dtype == "U32"):
            found[stem] = None
    return list(found)


def join(records: Mapping[str, TensorInfo], layer: str, bits: Bits) -> PackedTensor:
    """The three (or two) stored tensors of a layer as one.

    Raises
    ------
    WeightsError
        One is missing, is of another type, or does not fit the others; or there are offsets in a mode without.
    """
    wanted = [WEIGHT, SCALES, *([BIASES] if bits.mode == AFFINE else [])]
    missing = [layer + part for part in wanted if layer + part not in records]
    what = printable(layer)
    if missing:
        there = [layer + part for part in (WEIGHT, SCALES, BIASES) if layer + part in records]
        raise WeightsError(
            f"{records[there[0]].file}: {what} is said to have {bits} and lacks {listed(missing)}; {AGAIN}"
        )
    found = [records[layer + part] for part in wanted]
    weight, scales, biases = found[0], found[1], found[2] if bits.mode == AFFINE else None
    file = weight.file
    if bits.mode != AFFINE and layer + BIASES in records:
        raise WeightsError(f"{file}: {what} is said to have {bits}, a mode without offsets, and has them; {AGAIN}")
    kinds = tuple(HELD) if bits.mode == AFFINE else ("U8",)
    for info, known in ((weight, ("U32",)), *((i, kinds) for i in found[1:])):
        if info.dtype not in known or len(info.shape) != 2:
            raise WeightsError(
                f"{file}: {printable(info.name)} is {info.dtype} of shape {info.shape}; {bits} have a matrix of "
                f"{' or '.join(known)} there; {AGAIN}"
            )
    rows, groups = scales.shape
    width = groups * bits.group_size
    if weight.shape != (rows, packed_width(width, bits.bits)) or (biases is not None and biases.shape != scales.shape):
        others = "" if biases is None else f", offsets {biases.shape}"
        raise WeightsError(
            f"{file}: {what} does not fit together for {bits}: packed {weight.shape}, scales {scales.shape}{others}; "
            f"is {KEY} in the config that of these files? If so, {AGAIN}"
        )
    nbytes = sum(info.nbytes for info in found)
    shape, dtype = (rows, width), packed_dtype(bits.bits, bits.group_size, bits.mode)
    return PackedTensor(weight.name, shape, dtype, nbytes, file, weight.offset, bits, scales, biases)


def quantization_of(chosen: Mapping[str, Bits], layers: Mapping[str, tuple[int, int]]) -> Quantization:
    """What the config is to say: the commonest bits for all, and every layer that has others or none."""
    default = Counter(chosen.values()).most_common(1)[0][0]
    said = Quantization(default)
    odd = {name: chosen.get(name) for name, (_, width) in layers.items() if said.of(name, width) != chosen.get(name)}
    return Quantization(default, odd)
