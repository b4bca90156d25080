"""Finds the data that comes with the project: the nano checkpoint and the bundled recordings. Reads no contents."""

from __future__ import annotations

import os
from pathlib import Path

from .errors import DataError

CHECKPOINT_VARIABLE = "STEPAUDIO_CHECKPOINT"
VOICES = {"female": "free_emma.flac", "male": "free_michael.flac"}  # CC0, one speaker each, 3.5 and 5.1 s


def data_folder() -> Path:
    """The folder `data/`: inside the package in an installed wheel, beside it in a checkout.

    Inside comes first: what lies beside an installed package is not ours.
    """
    here = Path(__file__).resolve().parent
    for folder in (here / "data", here.parent / "data"):
        if folder.is_dir():
            return folder
    raise DataError(
        f"no data folder inside or beside {here}; expected data/nano and data/speech: is the installation whole?"
    )


def default_checkpoint() -> Path:
    """`STEPAUDIO_CHECKPOINT` if it is set, else the bundled nano model, which must be there."""
    named = os.environ.get(CHECKPOINT_VARIABLE)
    if named:
        return Path(named).expanduser()
    nano = data_folder() / "nano"
    if not (nano / "config.json").is_file():
        raise DataError(
            f"{nano}: no bundled model here. Give a checkpoint folder in the published layout "
            f"(--model DIR, or {CHECKPOINT_VARIABLE}=DIR), or train one: see data/recipe/README.md"
        )
    return nano


def speech_manifest() -> Path:
    """Table of the bundled recordings and what is said in them."""
    return data_folder() / "speech" / "manifest.tsv"


def voice_clip(name: str = "female") -> Path:
    """The bundled recording from which a default voice is read, by a name of `VOICES`."""
    if name not in VOICES:
        raise DataError(f"voice: expected {' or '.join(VOICES)}, found {name!r}")
    return data_folder() / "speech" / VOICES[name]
