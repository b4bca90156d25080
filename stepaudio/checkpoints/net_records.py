"""Files of converted token2wav nets as records: each tensor that is stored as several is one, and fits what is said.

Of these nets kernels of convolutions can have fewer bits as well as matrices. Where the rows of a tensor come out in
whole groups it is stored as MLX's tools store a matrix, else as one whose rows are the groups, in the net's own order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import prod
from pathlib import Path

import mlx.core as mx

from ..models.quantization import Bits
from .convert.manifest import MANIFEST, Manifest, file_of
from .header import TensorInfo, read_header
from .int8 import with_scales
from .joined import JoinedTensor
from .layout import Shape, Token2WavConfig, net_layout
from .packed import WEIGHT, PackedTensor, joined, refuse_unclaimed
from .tensors import lazy_arrays


def groupable(config: Token2WavConfig) -> dict[str, tuple[int, int]]:
    """Layer -> (1, numbers) of all matrices, tables and kernels of the net: groups may run over their rows."""
    return {
        name.removesuffix(WEIGHT): (1, prod(shape))
        for name, shape in net_layout(config).items()
        if name.endswith(WEIGHT) and len(shape) > 1
    }


def stored_matrix(shape: Shape, bits: Bits) -> tuple[int, int]:
    """(rows, width) of the matrix as which a tensor of these axes is quantised; the groups of both kinds are alike."""
    rows, width = shape[0], prod(shape[1:])
    return (rows, width) if bits.fits(width) else (rows * width // bits.group_size, bits.group_size)


def net_records(manifest: Manifest, component: str) -> dict[str, TensorInfo]:
    """The records of one net's file by name, tensors of fewer bits with the axes of the net.

    Raises
    ------
    WeightsError
        As `header.read_header` and `packed.joined`: a tensor that the manifest calls quantised and the file does not,
        or the other way round; parts that do not fit each other.
    ConfigError
        A description of fewer bits that MLX has not got.
    """
    file, said = manifest.folder / file_of(component), manifest.quantization_of(component)
    records = read_header(file)
    if said is None:
        refuse_unclaimed(file, records, MANIFEST)
        return with_scales(records)
    config = manifest.configs[component]
    records = joined(f"{manifest.folder / MANIFEST}: {component}", records, said, groupable(config))
    for name, shape in net_layout(config).items():
        info = records.get(name)
        if isinstance(info, PackedTensor) and info.matrix == stored_matrix(shape, info.bits):
            records[name] = replace(info, shape=shape)
    return with_scales(records)


def arrays_of(file: Path, records: Mapping[str, TensorInfo]) -> Iterator[tuple[str, mx.array]]:
    """Name and values of each tensor of a file, those that are stored as several in float32, others as they are.

    Raises what `mx.load`, `OSError` and `ValueError` say of files that cannot be read.
    """
    stored = lazy_arrays(file)
    for name, info in records.items():
        yield name, mx.array(info.values()) if isinstance(info, JoinedTensor) else stored.pop(name)
