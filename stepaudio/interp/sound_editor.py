"""Edits and recording in the nets of token2wav, by positions and seconds of a sound."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Protocol, TypeAlias

import mlx.core as mx
import numpy as np

from ..errors import ConfigError
from .donor import Activations
from .edit_targets import Target, target_of
from .editor import Editor
from .edits import Edits
from .places import Place, Span, from_end, within

TIMES = "TNnLWFX"
Names: TypeAlias = Mapping[str, tuple[tuple[str, ...], Mapping[str, int]]]


class TimeAxes(Protocol):
    """Where the entries of axes of time stand."""

    @property
    def seconds(self) -> float:
        """Length of the sound."""
        ...

    @property
    def n_codes(self) -> int:
        """Codes of the sound."""
        ...

    def origin(self, name: str, letter: str) -> tuple[int, float]:
        """Which entry of an axis stands at second 0, and how many there are per second."""
        ...

    def length(self, name: str, letter: str) -> int | None:
        """Entries along an axis of the whole sound; None where it is no axis of time."""
        ...

    def positions(self, name: str, letter: str, n: int) -> np.ndarray:
        """(n,) where the entries of an axis stand in the whole, in this call of the nets; below 0 for none of it."""
        ...

    def made(self, name: str) -> int:
        """Entries that the call before has made and edited, at the front of this one's."""
        ...


class SoundEditTap(Editor):
    """Makes edits in nets of token2wav, whose names begin with the net's.

    Parameters
    ----------
    edits : in the order in which they are made
    names : every activation: its axes, and the sizes of those that the nets decide
    axes : of time

    Raises
    ------
    ConfigError
        An edit that cannot apply.
    """

    def __init__(self, edits: Edits, names: Names, axes: TimeAxes):
        super().__init__(edits)
        self._axes, self._names = axes, names
        for edit in edits:
            for name in meant(edit.names, names):
                target = target_of(edit, name, *names[name], TIMES)
                self._check(target)
                self.add(target)

    def __call__(self, name: str, x: mx.array) -> mx.array:
        """The edited activation, or `x` itself where nothing is to be done."""
        made = self._axes.made(name)
        if not made or name not in self.names:
            return self.edited(name, x)
        return mx.concatenate([x[:, :made], self.edited(name, x)[:, made:]], axis=1)

    def sharing(self, target: Target) -> str:
        """Each activation has its own rate."""
        return target.name

    def positions(self, target: Target, which: int, x: mx.array) -> np.ndarray:
        """(B, n) positions along the axis, in the whole of the sound."""
        axis = target.axis(TIMES, which)
        if axis is None:
            return np.zeros((x.shape[0], 1), int)
        found = self._axes.positions(target.name, target.axes[axis], x.shape[axis])
        return np.broadcast_to(found, (x.shape[0], len(found)))

    def members(self, target: Target, place: Place, positions: np.ndarray) -> np.ndarray:
        """(B, n) booleans: entries that meet what `place` says."""
        n = self._length(target)
        return np.stack([within(row, self._spans(target, place, n or len(row))) for row in positions])

    def holds(self, tokens: Sequence[Span], positions: np.ndarray) -> mx.array:
        """Never asked for: an edit by tokens is refused."""
        raise ConfigError("token2wav has no tokens; expected positions or seconds")

    def donated(self, donor: Activations, target: Target, row: int) -> np.ndarray:
        """A donor's array for one row."""
        return donor[target.name][row]

    def pooled(self, donor: Activations, target: Target, row: int) -> list[np.ndarray]:
        """The same: rows with and without conditions are never mixed."""
        return [donor[target.name][row]]

    def _spans(self, target: Target, place: Place, n: int) -> list[list[Span]]:
        found: list[list[Span]] = []
        if place.positions is not None:
            found.append([from_end(span, n) for span in place.positions])
        if place.seconds is not None:
            first, rate = self._axes.origin(target.name, target.axes[target.axis(TIMES) or 0])
            a, b = (first + second * rate for second in place.seconds)
            to_the_end = place.seconds[1] > self._axes.seconds - 1e-6  # an axis may be a fraction of an entry longer
            found.append([(int(np.floor(a + 1e-6)), None if to_the_end else int(np.ceil(b - 1e-6)))])
        return found

    def _length(self, target: Target) -> int | None:
        """Entries along the axis of time, in the whole of the sound; a pattern has two of one length."""
        axis = target.axis(TIMES)
        return None if axis is None else self._axes.length(target.name, target.axes[axis])

    def _check(self, target: Target) -> None:
        """Raise unless the edit can apply."""
        edit, what = target.edit, f"edit {target.edit.kind} at {target.name}"
        if edit.keys is not None and target.axis(TIMES, 1) is None:
            raise ConfigError(f"{what}: keys: expected a pattern (*.pattern), which alone is by query and key")
        for place in (edit.at, edit.keys or Place()):
            if place.steps is not None or place.tokens is not None or place.clip:
                raise ConfigError(f"{what}: token2wav has no steps, tokens or clips; expected positions or seconds")
            seconds, n = self._axes.seconds, self._length(target)
            if not place.everywhere and n is None:
                raise ConfigError(f"{what}: it has no axis of time; leave positions and seconds out")
            if place.seconds is not None and place.seconds[1] > seconds + 1e-6:
                raise ConfigError(f"{what}: second {place.seconds[1]:g}: the sound is {seconds:.2f} s long")
            if place.positions is not None and n is not None:
                for a, b in (from_end(span, n) for span in place.positions):
                    if a < 0 or a >= n or (b is not None and b > n):
                        raise ConfigError(f"{what}: position {a if a < 0 or a >= n else (b or 0) - 1}: the run has {n}")
            if not within(np.arange(n or 1), self._spans(target, place, n or 1)).any():
                raise ConfigError(f"{what}: no position of the run is at {place}")
        for donor in edit.donors:
            self._check_sizes(donor[target.name], target, what)
        if edit.donors and target.axis(TIMES) is None:
            raise ConfigError(f"{what}: it has no axis of time, by which donors are read; expected replace")

    def _check_sizes(self, array: np.ndarray, target: Target, what: str) -> None:
        axes, sizes = self._names[target.name]
        for axis, found in zip(axes, array.shape, strict=True):
            if sizes.get(axis, found) != found:
                raise ConfigError(f"{what}: the donor is another model's: {found} where this one has {sizes[axis]}")


def meant(patterns: str | Sequence[str], names: Names) -> list[str]:
    """The activations that glob patterns fit, each once. Raises `ConfigError` for a pattern that fits none."""
    found: dict[str, None] = {}
    for pattern in (patterns,) if isinstance(patterns, str) else tuple(patterns):
        matches = [n for n in names if fnmatchcase(n, pattern)]
        if not matches:
            nets = " and ".join(dict.fromkeys(f"{n.partition('.')[0]}.<name>" for n in names))
            raise ConfigError(
                f"no activation of token2wav is called {pattern!r:.80}; expected a pattern over {nets}, with the names "
                "of stepaudio.interp.names.TOKEN2WAV_GLOSSARY"
            )
        found |= dict.fromkeys(matches)
    return list(found)


class Kept:
    """A tap that keeps activations by position, whatever calls they come in."""

    def __init__(self, patterns: str | Sequence[str], names: Names, axes: TimeAxes):
        self._wanted, self._axes = {name: names[name][0] for name in meant(patterns, names)}, axes
        self._arrays: dict[str, np.ndarray] = {}

    def __call__(self, name: str, x: mx.array) -> None:
        """Keep `x` where it is wanted."""
        if name not in self._wanted:
            return
        array, shape, where = np.array(x.astype(mx.float32)), list(x.shape), []
        for axis, letter in enumerate(self._wanted[name]):
            n = self._axes.length(name, letter) if letter in TIMES else None
            if n is not None:
                where.append((axis, self._axes.positions(name, letter, x.shape[axis])))
                shape[axis] = n
        if not where:
            self._arrays[name] = array
            return
        for axis, positions in where:
            array = np.compress(positions >= 0, array, axis)
        whole = self._arrays.setdefault(name, np.zeros(shape, np.float32))
        index: list[np.ndarray] = [np.arange(size) for size in shape]
        for axis, positions in where:
            index[axis] = positions[positions >= 0]
        whole[np.ix_(*index)] = array

    @property
    def found(self) -> Activations:
        """All that came."""
        return Activations(self._arrays, 0, self._axes.n_codes)
