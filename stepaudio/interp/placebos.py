"""Placebos of a patch: the same edit at the same positions, with what the clean run had elsewhere. Draws by seed alone.

What is put at a position is never what the patch puts there: it comes from a position that the patch leaves as it is,
or, where the patch leaves none, from any but its own; and its numbers are others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import ConfigError
from .donor import Activations
from .edit_targets import HEADS, RATES, TIMES, Target
from .editing import EditTap
from .edits import Edits, patch
from .names import frames_at
from .places import within

Entry = tuple[int, int]  # segment of audio, or 0, and index along the axis of time


def placebo(place: Mapping[str, Any], donor: Activations, patching: EditTap, tokens: Sequence[int], seed: int) -> Edits:
    """A patch at `place` whose donor has, at each position that is patched, what it had elsewhere.

    Parameters
    ----------
    place : arguments of `patch`, but the donor.
    donor : activations of the clean run.
    patching : the patch itself, checked against the corrupt run.
    tokens : of the corrupt run's prompt, and behind it those of the clean answer, as far as they are known; places by
        token are read from them.
    seed : of what is drawn; activations of the same length get the same positions.

    Raises
    ------
    ConfigError : there is no other position, none with other numbers, or the activation has two axes of time.
    """
    moved = {name: _moved(donor, patching, target, tokens, seed) for name, target in patching.targets()}
    return patch(donor=Activations(moved, donor.n_prompt, donor.n_positions, donor.frames), **place)


def _moved(donor: Activations, patching: EditTap, target: Target, tokens: Sequence[int], seed: int) -> np.ndarray:
    """The donor's array with other entries of it at every position that is patched."""
    array, axes = donor[target.name], ("B", "n", "V") if target.name == "logits" else target.axes
    times = [i for i, a in enumerate(axes) if a in TIMES]
    if len(times) != 1:
        raise ConfigError(
            f"placebos at {target.name}: a pattern is as long as its position is late; expected activations with one "
            "axis of time, or no placebos"
        )
    made = array.copy()
    rows, into = np.moveaxis(array, times[0], 1), np.moveaxis(made, times[0], 1)  # (B, n, ...), views
    patched, free = _entries(donor, patching, target, axes[times[0]], rows.shape[:2], tokens)
    heads = next((i for i, a in enumerate(axes) if a in HEADS), None)
    seen = rows if heads is None or target.heads is None else rows[:, :, target.heads]  # heads follow the time
    for entry in patched:
        order = np.random.default_rng([seed, *entry]).permutation(len(free))
        drawn = (free[i] for i in order if free[i] != entry)
        other = next((one for one in drawn if not np.array_equal(seen[one], seen[entry])), None)
        if other is None:
            raise ConfigError(
                f"placebos at {target.name}: the clean run has nothing else to put at position {entry[1]}; expected a "
                "place with other positions beside it, of other values, or no placebos"
            )
        into[entry] = rows[other]
    return made


def _entries(
    donor: Activations, patching: EditTap, target: Target, letter: str, shape: tuple[int, int], tokens: Sequence[int]
) -> tuple[list[Entry], list[Entry]]:
    """Which entries are patched, and from which a placebo may draw."""
    first, n = donor.first_position(target.name), shape[1]
    there = np.ones(shape, bool)
    if letter in RATES and donor.frames:
        there &= np.arange(n) < np.array([frames_at(frames)[letter] for frames in donor.frames])[:, None]
    positions = np.broadcast_to(np.arange(first, first + n), shape)
    patched = patching.members(target, target.edit.at, positions) & there
    if (spans := target.edit.at.tokens) is not None:
        known = positions < len(tokens)
        ids = np.append(np.array(tokens, int), -1)[np.where(known, positions, -1)]
        found = patched & (within(ids, [list(spans)]) | ~known)
        free, patched = there & ~found, there  # a generated answer may hold these tokens anywhere
    else:
        free = there & ~patched
    entries = [[(int(row), int(i)) for row, i in np.argwhere(mask)] for mask in (patched, free)]
    return entries[0], entries[1] or entries[0]
