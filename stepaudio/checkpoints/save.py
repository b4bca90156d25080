"""A net written as a folder in the published layout, whole or not at all."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path

import mlx.core as mx

from ..errors import ConfigError, WeightsError
from ..files import move_into_place, reason, staging_folder
from ..models.speech_lm import StepAudioConfig
from .dtypes import HELD
from .header import INDEX_FILE, SINGLE_FILE, listed
from .int8 import in_eight_bits
from .layout import axes_of, net_layout, to_published
from .load import check_parameters
from .packed import read_quantization

ASIDE = ".saving-"  # start of the name of the folder that new files are written to


def save_checkpoint(
    folder: str | Path,
    config: StepAudioConfig,
    tensors: Mapping[str, mx.array],
    max_shard_bytes: int | None = None,
    int8: Collection[str] = (),
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
    int8 : collection of str
        Names of tensors to store in eight bits, with a scale for each row (`int8`).

    Returns
    -------
    list of Path
        The weight files, the index last if there is one.

    Raises
    ------
    WeightsError
        If names, shapes or dtypes are not those of the layout, a tensor that is to be stored in eight bits has values
        that are not finite, or the folder cannot be written.
    """
    folder = Path(folder)
    published = in_eight_bits(_published(config, tensors), int8)
    shards = _split(published, max_shard_bytes)
    try:
        with staging_folder(folder, ASIDE) as aside:
            files = _write_shards(aside, published, shards)
            settings = ["config.json"] if _write_config(folder, aside, config) else []
            retired = [INDEX_FILE, SINGLE_FILE] if INDEX_FILE in files else [INDEX_FILE]
            written = move_into_place(aside, folder, settings + files, retired)
            clear_stale(folder, files)
            return written[len(settings) :]
    except (OSError, RuntimeError) as error:  # RuntimeError: how mlx reports a failed write
        raise WeightsError(f"{folder}: the checkpoint could not be written ({reason(error)})") from None


# ---- saving ----


def _published(config: StepAudioConfig, tensors: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """The tensors in PyTorch layout, in the order of the layout."""
    check_parameters(tensors, config, "these tensors are not the published layout of this config")
    odd = [f"{name} ({array.dtype})" for name, array in tensors.items() if array.dtype not in HELD.values()]
    if odd:
        raise WeightsError(f"unusable dtype: {listed(odd)}; accepted are float32, float16 and bfloat16")
    return {name: to_published(tensors[name], axes_of(StepAudioConfig, name)) for name in net_layout(config)}


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


def _write_shards(aside: Path, tensors: Mapping[str, mx.array], shards: Mapping[str, list[str]]) -> list[str]:
    """Write the files, and an index if there are several; returns their names, that of the index last."""
    for file, names in shards.items():
        mx.save_safetensors(str(aside / file), {name: tensors[name] for name in names}, metadata={"format": "pt"})
    if len(shards) == 1:
        return list(shards)
    weight_map = {name: file for file, names in shards.items() for name in names}
    total = sum(tensors[name].nbytes for name in weight_map)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (aside / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return [*shards, INDEX_FILE]


def _write_config(folder: Path, aside: Path, config: StepAudioConfig) -> bool:
    """Write config.json unless an equal one is there, which is left alone: a published one says more than we read."""
    with contextlib.suppress(ConfigError):
        if StepAudioConfig.from_file(folder) == config and read_quantization(folder) is None:
            return False
    text = json.dumps(config.to_dict(), indent=2) + "\n"
    (aside / "config.json").write_text(text, encoding="utf-8")
    return True


def clear_stale(folder: Path, files: Collection[str]) -> None:
    """Remove the shards that an earlier checkpoint leaves behind."""
    for stale in folder.glob("model-?????-of-?????.safetensors"):
        if stale.name not in files:
            stale.unlink()
