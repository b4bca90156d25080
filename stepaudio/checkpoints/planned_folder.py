"""A model's folder that is to be written, whole or not at all: its files, its size, and the steps all kinds share."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from ..errors import WeightsError
from ..files import move_into_place
from ..models.speech_lm import CONFIG_FILE
from .capabilities import FILE as CAPABILITIES
from .capabilities import Capabilities
from .header import INDEX_FILE, SINGLE_FILE
from .save import clear_stale
from .tensor_file import Entry


class FolderPlan(Protocol):
    """What is known before a tensor is read."""

    @property
    def source(self) -> Path:
        """The folder that it is made of."""
        ...

    @property
    def copied(self) -> tuple[str, ...]:
        """Files of it that are copied as they are."""
        ...

    @property
    def shards(self) -> Mapping[str, Mapping[str, Entry]]:
        """File name -> its tensors."""
        ...

    @property
    def capabilities(self) -> Capabilities | None:
        """To be stated, where no copied file does."""
        ...


def files_of(plan: FolderPlan, manifest: str) -> tuple[str, ...]:
    """Names of all files that will be written, the config last."""
    own = [CAPABILITIES] if plan.capabilities else []
    index = [INDEX_FILE] if len(plan.shards) > 1 else []
    return (*plan.copied, *own, *plan.shards, *index, manifest, CONFIG_FILE)


def nbytes_of(plan: FolderPlan) -> int:
    """Bytes of all files, nearly."""
    copied = sum((plan.source / name).stat().st_size for name in plan.copied)
    return copied + sum(entry.nbytes for shard in plan.shards.values() for entry in shard.values())


def begin(plan: FolderPlan, aside: Path, out: Path) -> None:
    """Copy into the folder aside what is copied; `WeightsError` if the whole would find no room there."""
    needed, free = nbytes_of(plan), shutil.disk_usage(aside).free
    if needed > free:
        raise WeightsError(f"{out}: needs {needed:,} bytes, {free:,} are free there; name another disk")
    for name in plan.copied:
        (aside / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(plan.source / name, aside / name)


def finish(plan: FolderPlan, manifest: str, aside: Path, out: Path) -> None:
    """Move all files into place, and take away tensors of a model that was there before."""
    for name in plan.copied:
        (out / name).parent.mkdir(exist_ok=True)
    move_into_place(aside, out, files_of(plan, manifest), [CONFIG_FILE, INDEX_FILE, SINGLE_FILE])
    clear_stale(out, plan.shards)
