"""Provenance of a run: hashes of config, weights and recordings, versions, backend. Enough to repeat it."""

from __future__ import annotations

import hashlib
import importlib.metadata
import inspect
import json
from collections.abc import Callable
from dataclasses import is_dataclass
from functools import lru_cache
from pathlib import Path

from .. import __version__
from ..backend import device as backend
from ..checkpoints.find import checkpoint_folder
from ..checkpoints.header import read_checkpoint
from ..checkpoints.hub_name import repository_of
from ..checkpoints.lora_folder import lora_files, lora_folder
from ..errors import ConfigError, DataError
from ..files import sha256
from ..models.speech_lm import StepAudioConfig


def file_hash(*paths: str | Path) -> str:
    """sha256 (hex) of the bytes of these files, one after another; for one file what `sha256sum` says.

    Remembered in this process until a file's size or time of change differs.
    """
    return _file_hash(tuple(_stamp(Path(path)) for path in paths))


def _stamp(path: Path) -> tuple[str, int, int]:
    try:
        found = path.stat()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); is the path in the grid right?") from None
    return str(path), found.st_size, found.st_mtime_ns


@lru_cache(maxsize=4096)
def _file_hash(stamps: tuple[tuple[str, int, int], ...]) -> str:
    try:
        return sha256(*(path for path, _, _ in stamps))
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror})") from None


def json_hash(data: object) -> str:
    """sha256 (hex) of the canonical JSON of `data`: sorted keys, no spaces, UTF-8."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def function_name(function: Callable) -> str:
    """What a function of the caller's is, for a table: its name, its values if it is a record, a hash of its source.

    Raises
    ------
    ConfigError
        A function without a name of its own or with values that its source does not show, or one without source.
    """
    kind = function if inspect.isfunction(function) else type(function)
    plain = inspect.isfunction(function) and "<" not in function.__qualname__
    if not plain and (inspect.isfunction(function) or not is_dataclass(function)):
        raise ConfigError(
            "processors: expected functions of a module, or frozen dataclasses that can be called, so that a table can "
            f"name them; found {function!r:.80}"
        )
    try:
        source = hashlib.sha256(inspect.getsource(kind).encode()).hexdigest()
    except (OSError, TypeError):
        raise ConfigError(f"processors: {kind.__qualname__} has no source to be known by; expected a file") from None
    return f"{kind.__module__}.{kind.__qualname__ if plain else repr(function)} {source[:16]}"


def weights_hash(folder: str | Path, lora: Path | None = None) -> str:
    """`file_hash` of the safetensors files of a checkpoint, headers and data; shards in order of their names.

    Behind them comes what lies in the folder of a LoRA, if one is on.
    """
    files = sorted({Path(info.file) for info in read_checkpoint(folder).values()})
    return file_hash(*files, *(lora_files(lora) if lora else []))


def provenance(model: str | Path | None, dtype: str | None = None, lora: str | Path | None = None) -> dict:
    """The columns that all runs of a sweep share.

    Parameters
    ----------
    model : checkpoint folder, None for the default one.
    dtype : of the weights in memory, None for the backend's.
    lora : what is on the model, as `StepAudio2.load` takes it.

    Raises
    ------
    ConfigError, WeightsError, DataError : the checkpoint's config or weights cannot be read.
    """
    folder = checkpoint_folder(model)
    config = StepAudioConfig.from_file(folder)
    added = None if lora is None else lora_folder(lora, folder)
    name = repository_of(folder) or folder.resolve().name
    return {
        "model": name if added is None else f"{name} with LoRA {added.resolve().name}",
        "config_hash": json_hash(config.to_dict()),
        "weights_hash": weights_hash(folder, added),
        "version": __version__,
        "mlx": importlib.metadata.version("mlx"),
        "backend": backend.info()["backend"],
        "dtype": dtype or str(backend.default_dtype()).removeprefix("mlx.core."),
    }
