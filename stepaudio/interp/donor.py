"""Activations of a finished run by position, to be put into another one. Immutable, and known by their bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

from ..errors import ConfigError
from .names import frames_at


def digest_of(array: np.ndarray) -> str:
    """sha256 (hex) of an array: dtype, shape and bytes."""
    found = hashlib.sha256(f"{array.dtype.str} {array.shape}".encode())
    found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


@dataclass(frozen=True, eq=False)
class Activations:
    """What one run computed.

    Attributes
    ----------
    arrays : name -> array with the axes of the glossary; what comes once per pass is joined along its positions.
    n_prompt : positions of the prompt.
    n_positions : positions that were computed.
    frames : mel frames of each segment of audio, which encoder and adapter pad to the longest; empty without audio.
    digest : sha256 (hex) of all of it; runs with equal bytes are equal.
    """

    arrays: Mapping[str, np.ndarray]
    n_prompt: int
    n_positions: int
    frames: tuple[int, ...] = ()
    digest: str = field(init=False)

    def __post_init__(self):
        kept = {}
        for name, array in self.arrays.items():
            kept[name] = array.view()
            kept[name].flags.writeable = False
        object.__setattr__(self, "arrays", MappingProxyType(kept))
        parts = [f"{name} {digest_of(array)}" for name, array in sorted(kept.items())]
        text = "\n".join([f"{self.n_prompt} {self.n_positions} {self.frames}", *parts])
        object.__setattr__(self, "digest", hashlib.sha256(text.encode()).hexdigest())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Activations) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"Activations({len(self.arrays)} names, {self.n_positions} positions, {self.digest[:8]})"

    def __getitem__(self, name: str) -> np.ndarray:
        """The array of a name. Raises `ConfigError` for one that was not kept."""
        if name not in self.arrays:
            raise ConfigError(f"the donor has no {name}; it has {', '.join(self.arrays) or 'nothing'}")
        return self.arrays[name]

    def own(self, name: str, row: int, axes: tuple[str, ...]) -> np.ndarray:
        """One row of an array with these axes, without what its audio was padded with and without the batch's axis."""
        array = self[name][row]
        axis = next((i for i, a in enumerate(axes) if a in "TSPR"), None)
        if axis is None or not self.frames:
            return array
        return np.take(array, range(frames_at(self.frames[row])[axes[axis]]), axis=axis - 1)

    def first_position(self, name: str) -> int:
        """Which position comes first in the array: logits begin at the last one of the prompt."""
        return self.n_prompt - 1 if name == "logits" else 0
