"""Finds the data that comes with the project: the nano checkpoint and the bundled recordings. Reads nothing."""

from __future__ import annotations

import os
from pathlib import Path

from .errors import DataError

CHECKPOINT_VARIABLE = "STEPAUDIO_CHECKPOINT"


def data_folder() -> Path:
    """The folder `data/`: beside the package in a checkout, inside it in an installed wheel."""
    here = Path(__file__).resolve().parent
    for folder in (here.parent / "data", here / "data"):
        if folder.is_dir():
            return folder
    raise DataError(f"no data folder beside or inside {here}; expected data/nano and data/speech: is the installation whole?")


def default_checkpoint() -> Path:
    """`STEPAUDIO_CHECKPOINT` if it is set, else the bundled nano model."""
    named = os.environ.get(CHECKPOINT_VARIABLE)
    return Path(named).expanduser() if named else data_folder() / "nano"


def speech_manifest() -> Path:
    """Table of the bundled recordings and what is said in them."""
    return data_folder() / "speech" / "manifest.tsv"
