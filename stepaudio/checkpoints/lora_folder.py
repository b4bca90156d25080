"""Where a LoRA lies: the folder that a word means, and those within a model's folder. Knows names alone."""

from __future__ import annotations

from pathlib import Path

from ..choices import alternatives, shown
from ..errors import WeightsError
from ..reading import is_file, is_folder, why

CONFIG = "adapter_config.json"  # of PEFT and of mlx-lm
ADAPTERS = "adapters.safetensors"  # mlx-lm's
PEFT_ADAPTERS = "adapter_model.safetensors"
EXPECTED = "expected a folder as PEFT or mlx-lm writes it"


def lora_folder(named: str | Path, model: Path | None) -> Path:
    """The folder of the LoRA that a caller names.

    Parameters
    ----------
    named : str or Path
        A name of a folder within the model's, or else a path.
    model : Path, optional
        The model's folder, or a file in it; None where it is not known.

    Raises
    ------
    WeightsError
        No such folder.
    """
    if not isinstance(named, str | Path) or not str(named):
        raise WeightsError(f"lora: {EXPECTED}, found {shown(named)}")
    there = loras_in(model)
    if str(named) in there:
        return there[str(named)]
    folder = Path(named).expanduser()
    if is_folder(folder, WeightsError):
        return folder
    found = "is no folder" if is_file(folder, WeightsError) else "no such folder is here"
    beside = f", or the name of one within the model's: {alternatives(tuple(there))}" if there else ""
    raise WeightsError(f"lora: {folder}: {found}; {EXPECTED}{beside}")


def lora_files(folder: Path) -> list[Path]:
    """What makes a LoRA in a folder: its config and its tensors, as far as they are there."""
    return [folder / name for name in (CONFIG, ADAPTERS, PEFT_ADAPTERS) if is_file(folder / name, WeightsError)]


def loras_in(model: Path | None) -> dict[str, Path]:
    """Name -> folder of each LoRA within a model's folder, by name; `WeightsError` where that cannot be listed."""
    folder = model if model is None or is_folder(model, WeightsError) else model.parent
    if folder is None or not is_folder(folder, WeightsError):
        return {}
    try:
        found = sorted(path for path in folder.iterdir() if path.is_dir())
    except OSError as error:
        raise WeightsError(f"{folder}: {why(error)}") from None
    return {path.name: path for path in found if is_file(path / CONFIG, WeightsError)}
