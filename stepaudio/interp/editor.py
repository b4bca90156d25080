"""The arithmetic of edits: where they hold in an array, and what stands there instead."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import mlx.core as mx
import numpy as np

from ..choices import EditKind
from ..errors import ConfigError
from .donor import Activations
from .edit_targets import HEADS, Target
from .edits import Edits
from .places import Place, Span

AHEAD = 64  # positions of donors that are uploaded at a time while one comes after another


class Editor(ABC):
    """Makes edits at the activations that they mean; which position is which, a subclass knows."""

    def __init__(self, edits: Edits):
        if not isinstance(edits, Edits):
            raise ConfigError(
                f"edits: expected what zero, patch and the others give, joined with +, found {type(edits).__name__}"
            )
        self._targets: dict[str, list[Target]] = {}
        self._draws: dict[tuple[int, int, int], int] = {}
        self._known: dict[tuple, tuple[np.ndarray, np.ndarray]] = {}
        self._uploaded: dict[tuple, mx.array] = {}  # what no pass changes, on the device
        self._ahead: dict[
            tuple, tuple[int, mx.array]
        ] = {}  # of donors: the first position, and what they have from it on

    def begin_pass(self) -> None:
        """Other positions come now than before; those of a pass are worked out once for all its activations."""
        self._known.clear()

    def add(self, target: Target) -> None:
        """Take one edit, behind those that are there."""
        self._targets.setdefault(target.name, []).append(target)

    def sharing(self, target: Target) -> str:
        """What activations have in common whose axes of one letter and length have the same positions: the net."""
        return target.name.partition(".")[0]

    @property
    def names(self) -> tuple[str, ...]:
        """The activations that are edited."""
        return tuple(self._targets)

    def targets(self) -> Iterator[tuple[str, Target]]:
        """Each edit at each activation, in order."""
        return ((name, target) for name, of_name in self._targets.items() for target in of_name)

    def edited(self, name: str, x: mx.array) -> mx.array:
        """The edited activation, or `x` itself where nothing is to be done."""
        for target in self._targets.get(name, ()):
            x = self._edited(target, x)
        return x

    @abstractmethod
    def positions(self, target: Target, which: int, x: mx.array) -> np.ndarray:
        """(B, n) position of each entry of a time axis; below 0 for padding."""

    @abstractmethod
    def members(self, target: Target, place: Place, positions: np.ndarray) -> np.ndarray:
        """(B, n) booleans: positions that meet what `place` says, tokens left out."""

    @abstractmethod
    def holds(self, tokens: Sequence[Span], positions: np.ndarray) -> mx.array:
        """(B, n) booleans: which positions hold one of the tokens."""

    @abstractmethod
    def donated(self, donor: Activations, target: Target, row: int) -> np.ndarray:
        """What a donor has at the places of one row."""

    @abstractmethod
    def pooled(self, donor: Activations, target: Target, row: int) -> list[np.ndarray]:
        """What of a donor may be drawn for one row."""

    @staticmethod
    def donor_range(target: Target) -> tuple[int, int]:
        """First position that the donor of a patch has, and how many."""
        donor, axis = target.edit.donors[0], target.axis(target.times)
        return donor.first_position(target.name), donor[target.name].shape[1 if axis is None else axis]

    def _placed(self, target: Target, place: Place, which: int, x: mx.array) -> tuple[np.ndarray, np.ndarray]:
        """(B, n) positions along a time axis, and which of them `place` means, tokens left out."""
        axis = target.axis(target.times, which)
        along = (None, 1) if axis is None else (target.axes[axis], x.shape[axis])
        key = (self.sharing(target), *along, x.shape[0], place)
        if key not in self._known:
            positions = self.positions(target, which, x)
            self._known[key] = positions, self.members(target, place, positions)
        return self._known[key]

    def _edited(self, target: Target, x: mx.array) -> mx.array:
        if target.name == "logits" and x.ndim == 3:
            target = replace(target, axes=("B", "n", "V"))
        edit, at = target.edit, target.axis(target.times)
        positions, chosen = self._placed(target, edit.at, 0, x)
        keys, seen = None, None
        if target.axis(target.times, 1) is not None:
            keys, seen = self._placed(target, edit.keys or Place(), 1, x)
        if edit.donors and edit.kind == EditKind.PATCH:
            first, donor = self.donor_range(target)
            there = (positions >= first) & (positions < first + donor)
            chosen = np.logical_and(chosen, there)
        if not chosen.any():
            return x
        if seen is not None and not seen.any():
            return x
        if edit.kind not in (EditKind.PATCH, EditKind.RESAMPLE):
            new = self._new(target, x)
        else:
            span, heads = self._extent(target, chosen)
            new = self._donated(target, x, positions, keys, span, heads)
            exact = chosen[:, span].all() and (target.heads is None or target.heads[heads].all())
            if exact and edit.at.tokens is None and edit.keys is None:
                return new  # what was copied is what is meant, and nothing else
        masks: list[mx.array] = []
        if not chosen.all():
            masks.append(_along(mx.array(chosen), x.ndim, 0, at))
        if edit.at.tokens is not None:
            masks.append(_along(self.holds(edit.at.tokens, positions), x.ndim, 0, at))
        if edit.keys is not None and keys is not None and seen is not None:
            masks.append(_along(mx.array(seen), x.ndim, 0, target.axis(target.times, 1)))
            if edit.keys.tokens is not None:
                masks.append(_along(self.holds(edit.keys.tokens, keys), x.ndim, 0, target.axis(target.times, 1)))
        if (named := target.heads) is not None:
            mask = self._once(target, "heads", lambda: mx.array(named))
            masks.append(_along(mask, x.ndim, target.axis(HEADS)))
        mask = None
        for part in masks:
            mask = part if mask is None else mask & part
        return new if mask is None else mx.where(mask, new, x)

    def _once(self, target: Target, what: object, made: Callable[[], mx.array]) -> mx.array:
        """An array that all passes have in common: what the host holds is uploaded once, not at every step."""
        key = (target.name, id(target.edit), what)
        if key not in self._uploaded:
            self._uploaded[key] = made()
        return self._uploaded[key]

    def _new(self, target: Target, x: mx.array) -> mx.array:
        """What stands where the edit holds."""
        kind, given = target.edit.kind, 0.0 if target.value is None else target.value
        if kind == EditKind.ZERO:
            return mx.zeros_like(x)
        value = self._once(target, "value", lambda: mx.array(given))
        if kind == EditKind.ADD:
            return (x.astype(mx.float32) + value).astype(x.dtype)
        if kind == EditKind.SCALE:
            return (x.astype(mx.float32) * value).astype(x.dtype)
        return mx.broadcast_to(value, x.shape).astype(x.dtype)

    @staticmethod
    def _extent(target: Target, chosen: np.ndarray) -> tuple[slice, slice]:
        """The positions and heads from the first to the last where the edit may hold."""
        held, heads = np.flatnonzero(chosen.any(axis=0)), slice(None)
        if target.axis(HEADS) is not None and target.heads is not None:
            named = np.flatnonzero(target.heads)
            heads = slice(named[0], named[-1] + 1)
        return slice(held[0], held[-1] + 1), heads

    def _donated(
        self, target: Target, x: mx.array, positions: np.ndarray, keys: np.ndarray | None, span: slice, heads: slice
    ) -> mx.array:
        """What the donors have within this extent; of other heads and positions nothing is copied from them."""
        at, head = target.axis(target.times), target.axis(HEADS)
        rows = range(len(positions))
        if keys is None and span.stop - span.start == 1:
            block = mx.stack([self._next(target, row, int(positions[row, span][0]), heads, x.dtype) for row in rows])
        else:
            taken = [
                self._taken(target, row, positions[row, span], None if keys is None else keys[row], heads)
                for row in rows
            ]
            block = mx.array(np.stack(taken)).astype(x.dtype)
        if at is None:
            block = block[:, 0]
        if block.shape == x.shape:
            return block
        where = [slice(None)] * x.ndim
        for axis, part in ((at, span), (head, heads)):
            if axis is not None:
                where[axis] = part
        new = mx.array(x)
        new[tuple(where)] = block
        return new

    def _next(self, target: Target, row: int, position: int, heads: slice, dtype: mx.Dtype) -> mx.array:
        """What the donors have at one position for one row; that of the next ones is uploaded with it."""
        key = (target.name, id(target.edit), row)
        start, ahead = self._ahead.get(key, (0, None))
        if ahead is None or not start <= position < start + AHEAD:
            start, known = position, np.arange(position, position + AHEAD)
            ahead = mx.array(self._taken(target, row, known, None, heads)).astype(dtype)
            self._ahead[key] = start, ahead
        where = [slice(None)] * ahead.ndim
        where[_time_axis(target)] = slice(position - start, position - start + 1)
        return ahead[tuple(where)]

    def _taken(
        self, target: Target, row: int, positions: np.ndarray, keys: np.ndarray | None, heads: slice
    ) -> np.ndarray:
        """What the donors have for one row: without the axis of the batch."""
        edit, name, axes, at = target.edit, target.name, target.axes[1:], _time_axis(target)
        part = tuple(heads if a in HEADS else slice(None) for a in axes)
        if edit.kind == EditKind.PATCH:
            (donor,) = edit.donors
            array = self.donated(donor, target, row)[part]
            index = np.clip(positions - donor.first_position(name), 0, array.shape[at] - 1)
            found = np.take(array, index, axis=at)
            if keys is not None:
                found = _padded(found, keys, at + 1)
        else:
            pool = [a[part] for donor in edit.donors for a in self.pooled(donor, target, row)]
            ends = np.cumsum([a.shape[at] for a in pool])
            drawn = np.array([self._drawn(edit.seed, int(p), int(ends[-1])) for p in positions])
            which = np.searchsorted(ends, drawn, side="right")
            parts = [
                pool[i].take(d - (ends[i] - pool[i].shape[at]), axis=at) for i, d in zip(which, drawn, strict=True)
            ]
            found = np.stack(parts, axis=at)
        return found

    def _drawn(self, seed: int, position: int, n: int) -> int:
        key = (seed, position, n)
        if key not in self._draws:  # by seed and position alone: the same in every pass and every row
            self._draws[key] = int(np.random.default_rng([seed, max(position, 0)]).integers(n))
        return self._draws[key]


def _time_axis(target: Target) -> int:
    """The axis of positions in what a donor has for one row; of logits, it has every position."""
    return next((i for i, axis in enumerate(target.axes[1:]) if axis in target.times), 0)


def _along(part: mx.array, ndim: int, *axes: int | None) -> mx.array:
    """A mask with its axes at these places of an activation with `ndim` axes; what is not there is left out."""
    shape = [1] * ndim
    for size, axis in zip(part.shape, axes, strict=True):
        if axis is not None:
            shape[axis] = size
    return part.reshape(shape)


def _padded(array: np.ndarray, keys: np.ndarray, axis: int) -> np.ndarray:
    """A donor's pattern by the slots of this run; 0 where it has none."""
    taken = np.take(array, np.clip(keys, 0, array.shape[axis] - 1), axis=axis)
    there = (keys >= 0) & (keys < array.shape[axis])
    return np.where(there, taken, np.float32(0)) if axis == array.ndim - 1 else taken
