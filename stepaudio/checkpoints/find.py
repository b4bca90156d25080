"""The folder that a caller means: a path, a name on a hub, or the default. Knows names alone; `hub` fetches."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import ConfigError
from ..resources import CHECKPOINT_VARIABLE, default_checkpoint
from .hub_name import MODEL, HubName
from .siblings import name_of


def checkpoint_folder(path: str | Path | None = None, parts: tuple[str, ...] = (MODEL,)) -> Path:
    """The folder to read a model from.

    Parameters
    ----------
    path : str or Path, optional
        A folder, or a text "ORG/NAME" or "ORG/NAME@REVISION" that names a model on a hub; by default what
        `STEPAUDIO_CHECKPOINT` says, or else the bundled model. What is there as a folder is no name on a hub, and
        neither is what would lie in a folder that is there.
    parts : tuple of {"model", "token2wav"}
        What is to be read. Of a model on a hub it is fetched, if the cache has not got it.

    Returns
    -------
    Path
        Of a model on a hub, its snapshot in the cache.

    Raises
    ------
    DownloadError
        The model is not in the cache and cannot be fetched.
    ConfigError
        Nothing of that name is here, and it is that of a published model.
    DataError
        There is no default.
    """
    named = meant(path)
    if isinstance(named, Path):
        known = name_of(str(path))
        if known and not named.exists():
            raise ConfigError(f"{path}: no such file or folder is here; {known} is the model of this name on a hub")
        return named
    from .hub import snapshot

    return snapshot(named, parts)


def meant(path: str | Path | None = None, base: Path = Path()) -> Path | HubName:
    """What a caller means, as `checkpoint_folder` says, without a look into the cache; paths are relative to `base`."""
    if path is None:
        path = os.environ.get(CHECKPOINT_VARIABLE) or default_checkpoint()
    folder, name = base / Path(path).expanduser(), HubName.of(path)
    if name is None or folder.exists() or (name.revision is None and folder.parent.is_dir()):
        return folder
    return name
