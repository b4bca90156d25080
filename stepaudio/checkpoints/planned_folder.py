"""A model's folder that is to be written, whole or not at all: its files, its size, and the steps all kinds share."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath
from typing import Protocol

from ..errors import WeightsError
from ..files import move_into_place
from ..models.speech_lm import CONFIG_FILE
from .capabilities import FILE as CAPABILITIES
from .capabilities import Capabilities
from .convert.manifest import MANIFEST as CONVERTED
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
    def files(self) -> tuple[str, ...]:
        """Names of all files that will be written, that without which no other is read last."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of all files, nearly."""
        ...

    @property
    def shards(self) -> Mapping[str, Mapping[str, Entry]]:
        """File name -> its tensors, of the language model."""
        ...

    @property
    def capabilities(self) -> Capabilities | None:
        """To be stated, where no copied file does."""
        ...


def files_of(plan: FolderPlan, manifest: str, nets: Iterable[str] = ()) -> tuple[str, ...]:
    """Names of all files that will be written: manifests behind what they speak of, the config last.

    `nets` are files of token2wav that are written, not copied.
    """
    own = [CAPABILITIES] if plan.capabilities else []
    index = [INDEX_FILE] if len(plan.shards) > 1 else []
    first = [*plan.copied, *own, *plan.shards, *index, *nets]
    return (*sorted(first, key=is_seal), manifest, *([CONFIG_FILE] if plan.shards else []))


def is_seal(name: str) -> bool:
    """Whether a file of this name says that the nets of token2wav beside it are whole."""
    return PurePath(name).name == CONVERTED


def nbytes_of(plan: FolderPlan) -> int:
    """Bytes of all files, nearly."""
    copied = sum((plan.source / name).stat().st_size for name in plan.copied)
    return copied + sum(entry.nbytes for shard in plan.shards.values() for entry in shard.values())


def begin(plan: FolderPlan, aside: Path, out: Path) -> None:
    """Copy into the folder aside what is copied; `WeightsError` if the whole would find no room there."""
    needed, free = plan.nbytes, shutil.disk_usage(aside).free
    if needed > free:
        raise WeightsError(f"{out}: needs {needed:,} bytes, {free:,} are free there; name another disk")
    for name in plan.copied:
        (aside / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(plan.source / name, aside / name)


def finish(plan: FolderPlan, aside: Path, out: Path) -> None:
    """Move all files into place, and take away tensors of a model that was there before."""
    for name in plan.files:
        (out / name).parent.mkdir(exist_ok=True)
    seals = [CONFIG_FILE, INDEX_FILE, SINGLE_FILE] if plan.shards else []
    move_into_place(aside, out, plan.files, [*seals, *filter(is_seal, plan.files)])
    clear_stale(out, plan.shards)
