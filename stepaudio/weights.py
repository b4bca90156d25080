"""The published layout on disk: validate it from headers, load it into the nets, write it back.

Every tensor is accounted for, by name; nothing is guessed, defaulted or dropped in silence. Knows names and files,
nothing of what the tensors are for. Of the speaking half it asks `token2wav.survey`.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from .audit import STORED_AS, audit_tensor
from .config import StepAudioConfig
from .errors import ConfigError, WeightsError
from .headers import INDEX_FILE, SINGLE_FILE, TensorInfo, listed, read_checkpoint
from .layout import KERNEL_AXES, SWAPPED_KERNELS, Shape, expected_layout, mlx_shape
from .repair import apply_rename
from .report import ACCEPTED_DTYPES, ENOUGH, TOO_LITTLE, WeightReport, compare
from .token2wav.stored import StoredTensor
from .token2wav.survey import survey

FLOATS = (mx.float32, mx.float16, mx.bfloat16)


def validate_weights(
    path: str | Path,
    config: StepAudioConfig | None = None,
    values: bool = False,
    rename: Mapping[str, str] | None = None,
) -> WeightReport:
    """Hold a checkpoint against the published layout, from headers alone.

    Where the folder holds files of the speaking half too, converted or as published, these are judged with it; their
    names then have `tokenizer.`, `speaker.`, `flow.` or `hift.` in front.

    Parameters
    ----------
    path : str or Path
        Folder, safetensors file, or index file; or the `token2wav` folder alone.
    config : StepAudioConfig, optional
        Sizes to expect; by default those of `config.json` in the folder.
    values : bool
        Also read all data (in blocks, bounded memory) and describe the values of every tensor.
    rename : mapping of str to str, optional
        Checkpoint name to published name; keys that end in '.' are prefixes (see `repair.apply_rename`).

    Returns
    -------
    WeightReport
        `.table()` for people, `.to_dict()` for programs, `.exit_status` for shells.

    Raises
    ------
    WeightsError
        If the checkpoint cannot be read or trusted; `WeightReport.unreadable` turns this into a report.
    ConfigError
        If no config was given and the folder has no usable one.
    """
    speaking = survey(path) if Path(path).is_dir() else None
    records, expected = {}, {}
    if speaking is None or speaking.folder != Path(path):
        records = read_checkpoint(path)
        expected = expected_layout(config or _config_beside(Path(path)))
    if speaking is not None:
        records, expected = records | speaking.records, expected | speaking.expected
    records = apply_rename(records, rename)
    audited = [audit_tensor(i, n) for n, i in records.items() if _auditable(i)] if values else None
    return compare(path, records, expected, audited)


def load_weights(
    model: nn.Module,
    path: str | Path,
    config: StepAudioConfig,
    dtype: mx.Dtype | None = None,
    rename: Mapping[str, str] | None = None,
) -> WeightReport:
    """Fill the parameters of `model` from a checkpoint, each under its published name.

    Under 50 % matched nothing is loaded; with anything missing or mis-shaped the rest is loaded and a warning says
    what is not. What was not filled keeps the values it had: `report.whole` is the question to ask before use.

    Parameters
    ----------
    model : nn.Module
        Parameter names and shapes as `expected_layout(config)`, kernels in MLX layout. Changed in place.
    path : str or Path
        Folder, safetensors file, or index file; tensors in bfloat16, float16 or float32.
    config : StepAudioConfig
        Sizes the model was built with.
    dtype : mx.Dtype, optional
        float32, float16 or bfloat16 to cast to; by default as stored.
    rename : mapping of str to str, optional
        As in `validate_weights`.

    Returns
    -------
    WeightReport

    Raises
    ------
    WeightsError
        If the checkpoint cannot be read or trusted, holds another dtype under an expected name, matches under 50 %,
        or if the model itself was built from another config.
    """
    if dtype is not None and dtype not in FLOATS:
        raise WeightsError(f"dtype {dtype}: weights can be held in float32, float16 or bfloat16")
    expected = expected_layout(config)
    _check_model(model, expected)
    records = apply_rename(read_checkpoint(path), rename)
    report = compare(path, records, expected)
    _enforce(report)
    _fill(model, {name: records[name] for name in report.loaded}, dtype)
    return report


def save_checkpoint(
    folder: str | Path,
    config: StepAudioConfig,
    tensors: Mapping[str, mx.array],
    max_shard_bytes: int | None = None,
) -> list[Path]:
    """Write config and weights in the published layout, so that an interruption never leaves a mixture.

    All files are written aside first and then moved into place: one file in one step; shards between the removal
    of the old index and the arrival of the new one, so an interrupted save has no index and is refused on reading.

    Parameters
    ----------
    folder : str or Path
        Made if need be. An earlier checkpoint in it is replaced.
    config : StepAudioConfig
        Sizes; written as `config.json` unless an equal one is there.
    tensors : mapping of str to mx.array
        Exactly the names of `expected_layout(config)`, kernels in MLX layout; float32, float16 or bfloat16.
    max_shard_bytes : int, optional
        Greatest size of the data of one file; by default one file. A larger tensor gets a file of its own.

    Returns
    -------
    list of Path
        The weight files, the index last if there is one.

    Raises
    ------
    WeightsError
        If names, shapes or dtypes are not those of the layout, or the folder cannot be written.
    """
    folder = Path(folder)
    published = _published(config, tensors)
    shards = _split(published, max_shard_bytes)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=".saving-", dir=folder))
        try:
            index = _write_shards(aside, published, shards)
            _write_config(folder, aside, config)
            return _move_into_place(aside, folder, list(shards), index)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: how mlx reports a failed write
        raise WeightsError(f"{folder}: the checkpoint could not be written ({error})") from None


def _auditable(info: TensorInfo) -> bool:
    return info.dtype in STORED_AS and (not isinstance(info, StoredTensor) or info.dense)


# ---- loading ----


def _config_beside(path: Path) -> StepAudioConfig:
    return StepAudioConfig.from_file(path if path.is_dir() else path.parent / "config.json")


def _check_model(model: nn.Module, expected: Mapping[str, Shape]) -> None:
    _check_parameters(dict(tree_flatten(model.parameters())), expected, "the model was built from another config")


def _check_parameters(tensors: Mapping[str, mx.array], expected: Mapping[str, Shape], reason: str) -> None:
    """Refuse arrays that are not exactly the expected layout as the nets hold it."""
    for fault, names in (("lacks", expected.keys() - tensors), ("has the unknown", tensors.keys() - expected)):
        if names:
            raise WeightsError(f"{reason}: it {fault} {listed(sorted(names))}")
    for name, shape in expected.items():
        if tensors[name].shape != mlx_shape(name, shape):
            raise WeightsError(f"{reason}: {name} is {tensors[name].shape}, expected {mlx_shape(name, shape)}")


def _enforce(report: WeightReport) -> None:
    """Refuse or warn, as the matched share demands."""
    if report.wrong_dtype:
        shown = listed((f"{name} ({dtype})" for name, dtype in report.wrong_dtype))
        raise WeightsError(f"{report.path}: unusable dtype: {shown}; accepted are {', '.join(ACCEPTED_DTYPES)}")
    if report.whole:
        return
    hint = f"; names differ, try rename={report.rename}" if 0 < len(report.rename) <= 4 else ""
    counts = f"{report.path}: {len(report.loaded)} of {report.expected} tensors match ({report.share:.1%})"
    if report.share < TOO_LITTLE:
        raise WeightsError(
            f"{counts}; at least {TOO_LITTLE:.0%} are needed. {report.summary}{hint}. Is this another model? "
            "`stepaudio weights` on this path tells more"
        )
    grade = "far from whole" if report.share < ENOUGH else "not whole"
    warnings.warn(f"{counts}, {grade}. {report.summary}{hint}", stacklevel=3)


def _fill(model: nn.Module, records: Mapping[str, TensorInfo], dtype: mx.Dtype | None) -> None:
    """Load shard by shard; each array is finished, its source let go, before the next: no second copy grows."""
    of_file = defaultdict(list)
    for name, info in records.items():
        of_file[info.file].append((name, info))
    for file, wanted in of_file.items():
        try:
            stored = _stored(file, [info for _, info in wanted])
            model.load_weights(list(_finished(stored, wanted, dtype)), strict=False)
        except (OSError, RuntimeError, ValueError) as error:
            raise WeightsError(f"{file}: cannot be read ({error}); check the disk and download it again") from None


def _stored(file: Path, infos: list[TensorInfo]) -> dict[str, mx.array]:
    """The wanted tensors of one file, not yet read."""
    try:
        return mx.load(str(file), format="safetensors")
    except RuntimeError:  # mlx refuses the whole file for one spare tensor of, say, float64: read the wanted ones
        kinds = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}
        arrays = {i.name: mx.array(np.memmap(file, kinds[i.dtype], "r", i.offset, i.shape)) for i in infos}
        bf16 = {i.name: arrays[i.name].view(mx.bfloat16) for i in infos if i.dtype == "BF16"}
        return arrays | bf16


def _finished(
    stored: dict[str, mx.array], wanted: list[tuple[str, TensorInfo]], dtype: mx.Dtype | None
) -> Iterator[tuple[str, mx.array]]:
    for name, info in wanted:
        array = stored.pop(info.name)
        if name in SWAPPED_KERNELS:
            array = mx.contiguous(array.transpose(KERNEL_AXES))
        array = array if dtype is None else array.astype(dtype)
        mx.eval(array)
        yield name, array


# ---- saving ----


def _published(config: StepAudioConfig, tensors: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """The tensors in PyTorch layout, in the order of the layout."""
    expected = expected_layout(config)
    _check_parameters(tensors, expected, "these tensors are not the published layout of this config")
    odd = [f"{name} ({array.dtype})" for name, array in tensors.items() if array.dtype not in FLOATS]
    if odd:
        raise WeightsError(f"unusable dtype: {listed(odd)}; accepted are float32, float16 and bfloat16")
    return {n: tensors[n].transpose(KERNEL_AXES) if n in SWAPPED_KERNELS else tensors[n] for n in expected}


def _split(tensors: Mapping[str, mx.array], max_bytes: int | None) -> dict[str, list[str]]:
    """File name to the tensors it will hold, filled in order."""
    if max_bytes is not None and max_bytes <= 0:
        raise WeightsError(f"max_shard_bytes must be positive, found {max_bytes}")
    groups, filled = [[]], 0
    for name, array in tensors.items():
        if max_bytes is not None and groups[-1] and filled + array.nbytes > max_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += array.nbytes
    if len(groups) == 1:
        return {SINGLE_FILE: groups[0]}
    return {f"model-{i:05d}-of-{len(groups):05d}.safetensors": group for i, group in enumerate(groups, 1)}


def _write_shards(aside: Path, tensors: Mapping[str, mx.array], shards: Mapping[str, list[str]]) -> bool:
    """Write the files, and an index if there are several; tells whether there is one."""
    for file, names in shards.items():
        mx.save_safetensors(str(aside / file), {name: tensors[name] for name in names}, metadata={"format": "pt"})
        with (aside / file).open("rb+") as stream:  # on disk before the old one goes
            os.fsync(stream.fileno())
    if len(shards) == 1:
        return False
    weight_map = {name: file for file, names in shards.items() for name in names}
    total = sum(tensors[name].nbytes for name in weight_map)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (aside / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return True


def _write_config(folder: Path, aside: Path, config: StepAudioConfig) -> None:
    """Leave an equal config.json alone: a published one says more than we read."""
    try:
        if StepAudioConfig.from_file(folder) == config:
            return
    except ConfigError:
        pass
    text = json.dumps(config.to_dict(), indent=2) + "\n"
    (aside / "config.json").write_text(text, encoding="utf-8")


def _move_into_place(aside: Path, folder: Path, files: list[str], index: bool) -> list[Path]:
    """Old index out, new files in, index last; then clear what the old checkpoint leaves behind."""
    (folder / INDEX_FILE).unlink(missing_ok=True)
    if index:
        (folder / SINGLE_FILE).unlink(missing_ok=True)
    if (aside / "config.json").exists():
        os.replace(aside / "config.json", folder / "config.json")
    files = [*files, INDEX_FILE] if index else files
    for file in files:
        os.replace(aside / file, folder / file)
    for stale in folder.glob("model-?????-of-?????.safetensors"):
        if stale.name not in files:
            stale.unlink()
    return [folder / file for file in files]
