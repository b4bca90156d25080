"""Activations of a finished run by position, to be put into another one. Immutable, and known by their bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

from ..errors import ConfigError
from ..text.chat_template import Prompt
from .names import GLOSSARY, frames_at, pattern_of


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


def realigned(donor: Activations, of: Prompt, prompt: Prompt) -> Activations:
    """What a run of another recording had, by the positions of a prompt that differs in its recording alone.

    Text goes to text, and step to step of the answer. Audio goes to audio from the first position on, cut where it is
    longer and repeated where it is shorter. What encoder and adapter computed is by the time of the recording already.

    Parameters
    ----------
    of : the prompt of the donor's run.
    prompt : that of the other run. Each has one segment of audio.

    Raises
    ------
    ConfigError : their texts are not of one length.
    """
    (there,), (here,) = of.slots, prompt.slots
    if (there.start, len(of.tokens) - there.length) != (here.start, len(prompt.tokens) - here.length):
        raise ConfigError(
            f"a donor of another recording: expected a prompt with as much text, {len(prompt.tokens) - here.length} "
            f"tokens, found {len(of.tokens) - there.length}; name a fault that leaves the text as it is"
        )
    audio = there.start + np.arange(here.length) % there.length
    taken = np.r_[: there.start, audio, there.start + there.length : donor.n_positions]
    arrays = {}
    for name, array in donor.arrays.items():
        axes = GLOSSARY[pattern_of(name)].axes
        axis = next((i for i, a in enumerate(axes) if a in "nL"), None)
        arrays[name] = array if axis is None else np.take(array, taken, axis)
    return Activations(arrays, len(prompt.tokens), len(taken), donor.frames)
