"""The published layout on disk: validate it from headers, load it into the nets.

Every tensor is accounted for, by name; nothing is guessed, defaulted or dropped in silence. Knows names and files,
nothing of what the tensors are for. Of token2wav it asks `inventory`.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..backend.process import enter
from ..errors import WeightsError
from ..models.quantization import quantise_layers
from ..models.side_branch import add_branches
from ..models.speech_lm import CONFIG_FILE, FLAT_FILE, StepAudioConfig, read_config
from ..reading import is_file, is_folder
from .dtypes import ACCEPTED, HELD, held_dtype, numpy_dtype, usable
from .header import INDEX_FILE, TensorInfo, listed, weight_files
from .inventory import take_inventory
from .joined import JoinedTensor
from .layout import axes_of, expected_layout, net_layout, parameters_of, to_net
from .lora import Lora
from .match import match
from .packed import WEIGHT, PackedTensor, layer_arrays, read_tensors
from .report import ENOUGH, TOO_LITTLE, WeightReport, compare
from .statistics import describe_values
from .suggest import apply_rename
from .tensors import StoredTensor, lazy_arrays


def validate_weights(
    path: str | Path,
    config: StepAudioConfig | None = None,
    values: bool = False,
    rename: Mapping[str, str] | None = None,
    lora: str | Path | None = None,
) -> WeightReport:
    """Hold a checkpoint against the published layout, from headers alone.

    Where the folder holds files of token2wav too, converted or as published, these are judged with it; their
    names then have `tokenizer.`, `speaker.`, `flow.` or `hift.` in front. Where it holds nothing else, they are judged
    alone.

    Parameters
    ----------
    path : str or Path
        Folder, safetensors file, or index file; or the `token2wav` folder, or a folder with that one alone.
    config : StepAudioConfig, optional
        Sizes to expect; by default those of `config.json` in the folder.
    values : bool
        Also read all data (in blocks, bounded memory) and describe the values of every tensor.
    rename : mapping of str to str, optional
        Checkpoint name to published name; keys that end in '.' are prefixes (see `suggest.apply_rename`).
    lora : str or Path, optional
        A LoRA to hold against the same sizes, as `StepAudio2.load` takes it.

    Returns
    -------
    WeightReport
        `.table()` for people, `.to_dict()` for programs, `.exit_status` for shells.

    Raises
    ------
    WeightsError
        If the checkpoint cannot be read or trusted; `WeightReport.unreadable` turns this into a report. Also if the
        LoRA does not fit it.
    ConfigError
        If no config was given and the folder has no usable one.
    """
    path = Path(path)
    token2wav = take_inventory(path) if is_folder(path, WeightsError) else None
    records, expected, notes = {}, {}, ()
    if token2wav is None or (token2wav.folder != path and _has_language_model(path)):
        records = read_tensors(path, rename)
        if config is None:
            config, notes = read_config(path if is_folder(path, WeightsError) else path.parent)
        expected = expected_layout(config)
    if token2wav is not None:
        records, expected = records | token2wav.records, expected | token2wav.expected
    records = apply_rename(records, rename)
    found = None
    if lora is not None:
        if config is None:
            raise WeightsError(f"{path}: holds no language model, which a LoRA changes; give the model's folder")
        found = Lora.of(lora, path, config)
        found.require_base(records)
    described = [describe_values(i, n) for n, i in records.items() if _describable(i)] if values else None
    about = found and found.report(records)
    return replace(compare(path, records, expected, described), config=notes, lora=about)


def load_weights(
    model: nn.Module,
    path: str | Path,
    config: StepAudioConfig,
    dtype: mx.Dtype | str | None = None,
    rename: Mapping[str, str] | None = None,
    lora: Lora | None = None,
) -> WeightReport:
    """Fill the parameters of `model` from a checkpoint, each under its published name.

    Under 50 % matched nothing is loaded; with anything missing or mis-shaped the rest is loaded and a warning says
    what is not. What was not filled keeps the values it had: `report.whole` is the question to ask before use.

    Parameters
    ----------
    model : nn.Module
        Parameter names and shapes as `expected_layout(config)`, kernels in MLX layout. Changed in place.
    path : str or Path
        Folder, safetensors file, or index file; tensors in bfloat16, float16, float32, int8 with scales (`int8`), or
        of fewer bits (`packed`), for which layers of the model give way to quantised ones.
    config : StepAudioConfig
        Sizes the model was built with.
    dtype : mx.Dtype or its name, optional
        float32, float16 or bfloat16 to cast to; by default as stored, float32 for int8 with scales. Of layers
        of fewer bits it is what scales and offsets have.
    rename : mapping of str to str, optional
        As in `validate_weights`.
    lora : Lora, optional
        Made for the same config. Matrices of floats take it in, by a sum in float32, before they are cast; beside those
        of fewer bits it is computed.

    Returns
    -------
    WeightReport

    Raises
    ------
    WeightsError
        If the checkpoint cannot be read or trusted, holds another dtype under an expected name, matches under 50 %,
        or if the model itself was built from another config. Also if it lacks what the LoRA changes.
    """
    enter()
    dtype = held_dtype(dtype)
    check_parameters(parameters_of(model), config, "the model was built from another config")
    records = apply_rename(read_tensors(path, rename), rename)
    report = compare(path, records, expected_layout(config))
    _enforce(report)
    if lora is not None:
        lora.require_base({name: records[name] for name in report.loaded})
        report = replace(report, lora=lora.report(records))
    packed = {n: i for n in report.loaded if isinstance(i := records[n], PackedTensor)}
    quantise_layers(model, {name.removesuffix(WEIGHT): info.bits for name, info in packed.items()})
    _fill(model, {name: records[name] for name in report.loaded}, dtype, lora)
    if lora is not None:
        held = dtype or mx.float32
        pairs = {name: lora.arrays(name) for name in lora.beside(records)}
        add_branches(model, {name: (a.astype(held), b.astype(held)) for name, (a, b) in pairs.items()})
    return report


def _describable(info: TensorInfo) -> bool:
    return usable(info.dtype) and (not isinstance(info, StoredTensor) or info.dense)


# ---- loading ----


def _has_language_model(folder: Path) -> bool:
    """Whether a folder says that it holds one: by its config or by any file of weights."""
    return (
        any(is_file(folder / name, WeightsError) for name in (CONFIG_FILE, FLAT_FILE))
        or is_file(folder / INDEX_FILE, WeightsError)
        or bool(weight_files(folder))
    )


def check_parameters(tensors: Mapping[str, mx.array], config: StepAudioConfig, reason: str) -> None:
    """Refuse with `WeightsError`, opened by `reason`, arrays that are not exactly what the net of these sizes holds."""
    found = match({name: array.shape for name, array in tensors.items()}, net_layout(config))
    for fault, names in (("lacks", found.missing), ("has the unknown", found.unexpected)):
        if names:
            raise WeightsError(f"{reason}: it {fault} {listed(names)}")
    for name in found.misshaped:
        raise WeightsError(f"{reason}: {name} is {found.found[name]}, expected {found.expected[name]}")


def _enforce(report: WeightReport) -> None:
    """Refuse or warn, as the matched share demands."""
    if report.wrong_dtype:
        shown = listed((f"{name} ({dtype})" for name, dtype in report.wrong_dtype))
        raise WeightsError(f"{report.path}: unusable dtype: {shown}; accepted are {ACCEPTED}")
    if report.whole:
        return
    hint = f"; names differ, try rename={report.rename}" if 0 < len(report.rename) <= 4 else ""
    counts = f"{report.path}: {len(report.loaded)} of {report.expected} tensors match ({report.share:.1%})"
    if report.share < TOO_LITTLE:
        raise WeightsError(
            f"{counts}; at least {TOO_LITTLE:.0%} are needed. {report.summary}{hint}. Is this another model? "
            "`stepaudio weights` on this path says more"
        )
    grade = "far from whole" if report.share < ENOUGH else "not whole"
    warnings.warn(f"{counts}, {grade}. {report.summary}{hint}", stacklevel=3)


def _fill(model: nn.Module, records: Mapping[str, TensorInfo], dtype: mx.Dtype | None, lora: Lora | None) -> None:
    """Load shard by shard; each array is finished, its source let go, before the next: no second copy grows."""
    of_file = defaultdict(list)
    for name, info in records.items():
        of_file[info.file].append((name, info))
    for file, wanted in of_file.items():
        try:
            stored = _stored(file, [info for _, info in wanted])
            model.load_weights(list(_finished(stored, wanted, dtype, lora)), strict=False)
        except (OSError, RuntimeError, ValueError) as error:
            raise WeightsError(f"{file}: cannot be read ({error}); check the disk and download it again") from None


def _stored(file: Path, infos: list[TensorInfo]) -> dict[str, mx.array]:
    """The wanted tensors of one file, not yet read."""
    try:
        return lazy_arrays(file)
    except RuntimeError:  # mlx refuses the whole file for one spare tensor of, say, float64: read the wanted ones
        return {i.name: _by_hand(i) for i in infos if not isinstance(i, JoinedTensor)}


def _by_hand(info: TensorInfo) -> mx.array:
    items = np.memmap(info.file, numpy_dtype(info.dtype), "r", info.offset, info.shape)
    return mx.array(items).view(HELD[info.dtype])


def _finished(
    stored: dict[str, mx.array], wanted: list[tuple[str, TensorInfo]], dtype: mx.Dtype | None, lora: Lora | None
) -> Iterator[tuple[str, mx.array]]:
    for name, info in wanted:
        if isinstance(info, PackedTensor):
            yield from layer_arrays(name, info, dtype)
            continue
        array = mx.array(info.values()) if isinstance(info, JoinedTensor) else stored.pop(info.name)
        axes = axes_of(StepAudioConfig, name)
        if axes is not None:
            array = mx.contiguous(to_net(array, axes))
        held = array.dtype if dtype is None else dtype
        array = (array if lora is None else lora.merged(name, array)).astype(held)
        mx.eval(array)
        yield name, array
