"""Which activations an edit means, and what it writes there, by the axes of the glossary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..choices import EditKind
from ..constants import EMBEDDINGS_PER_SECOND, FRAMES_PER_SECOND
from ..errors import ConfigError
from ..models.speech_lm import StepAudioConfig
from .edits import Edit
from .names import FIXED, activation_names, axis_sizes, matching

RATES = {
    "T": float(FRAMES_PER_SECOND),
    "S": FRAMES_PER_SECOND / 2,
    "P": FRAMES_PER_SECOND / 4,
    "R": EMBEDDINGS_PER_SECOND,
}
TIMES, HEADS = "TSPRnL", "HGA"


@dataclass(frozen=True)
class Target:
    """One edit at one activation: its axes, and what it writes there in the order heads, channels."""

    edit: Edit
    name: str
    axes: tuple[str, ...]
    heads: np.ndarray | None  # (H,) booleans
    value: np.ndarray | None  # broadcastable to the activation
    times: str = TIMES  # letters of the axes along which positions are counted

    def axis(self, letters: str, which: int = 0) -> int | None:
        """Place of the first (or a later) axis whose letter is among these."""
        found = [i for i, axis in enumerate(self.axes) if axis in letters]
        return found[which] if which < len(found) else None


def targets_of(edit: Edit, config: StepAudioConfig) -> list[Target]:
    """The edit at every activation of the speech LLM that its patterns fit."""
    names = activation_names(config)
    found: list[Target] = []
    for pattern, meant in matching(edit.names, config).items():
        if meant <= set(FIXED):
            raise ConfigError(
                f"edit {edit.kind} at {pattern}: it is given to the decoder and can be read, not replaced"
            )
        known = {t.name for t in found}
        found += [
            target_of(edit, n, names[n].axes, axis_sizes(config))
            for n in names
            if n in meant and n not in known | set(FIXED)
        ]
    return found


def target_of(edit: Edit, name: str, axes: tuple[str, ...], sizes: Mapping[str, int], times: str = TIMES) -> Target:
    """The edit at one activation; `sizes` of its axes, as far as they are known before a run."""
    what = f"edit {edit.kind} at {name}"
    letter = next((a for a in axes if a in HEADS), None)
    mask = None
    if edit.heads is not None:
        if letter is None:
            raise ConfigError(f"{what}: it has no heads; expected one of q, k, v, z, pattern and what the cache gives")
        if edit.heads[-1] >= sizes[letter]:
            raise ConfigError(f"{what}: head {edit.heads[-1]}: expected numbers from 0 to {sizes[letter] - 1}")
        mask = np.isin(np.arange(sizes[letter]), edit.heads)
    value = edit.value.array if edit.value is not None else None
    if edit.kind == EditKind.MEAN:
        value = _mean_of(edit, name, axes, times)
    if value is None:
        return Target(edit, name, axes, mask, None, times)
    return Target(edit, name, axes, mask, _spread(value, edit, axes, sizes, what), times)


def _spread(value: np.ndarray, edit: Edit, axes: tuple[str, ...], sizes: Mapping[str, int], what: str) -> np.ndarray:
    """What is written, along the axes of heads and channels of the activation."""
    heads = next((i for i, a in enumerate(axes) if a in HEADS), None)
    channel = next((i for i, a in enumerate(axes) if a in "MCEDKV" and a in sizes), None)
    n_heads = 0 if heads is None else sizes[axes[heads]]
    named = n_heads if edit.heads is None or edit.kind == EditKind.MEAN else len(edit.heads)
    allowed: list[tuple[int, ...]] = [()]
    if channel is not None:
        allowed.append((sizes[axes[channel]],))
        allowed += [(named, sizes[axes[channel]])] * (n_heads > 0)
    if value.shape not in allowed:
        raise ConfigError(f"{what}: values of shape {value.shape}; expected {' or '.join(map(str, allowed))}")
    if value.ndim == 2 and named != n_heads:
        whole = np.zeros((n_heads, value.shape[1]), np.float32)
        whole[list(edit.heads or ())] = value
        value = whole
    shape = [1] * len(axes)
    for axis, size in zip([channel, heads], value.shape[::-1], strict=False):
        if axis is not None:
            shape[axis] = size
    return value.reshape(shape)


def _mean_of(edit: Edit, name: str, axes: tuple[str, ...], letters: str) -> np.ndarray:
    """(channels,) or (heads, channels): the mean over donors, rows and positions."""
    times = [a for a in axes if a in letters]
    if len(times) == 2 or (axes[-1] in letters and axes[-1] != "T"):
        raise ConfigError(f"edit mean at {name}: it has no channels that a mean over positions would leave")
    axes = ("B", "n", "V") if name == "logits" else axes
    over = tuple(i - 1 for i, a in enumerate(axes) if a in letters)
    sums, count = np.float64(0), 0
    for donor in edit.donors:
        for row in range(len(donor[name])):
            own = donor.own(name, row, axes)
            sums = sums + own.sum(axis=over, dtype=np.float64)
            count += int(np.prod([own.shape[i] for i in over]))
    return np.asarray(sums / count, np.float32)
