"""Hooks into a net: a caller sees every intermediate result by name, and may put another in its place."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from ..errors import ConfigError

Tap = Callable[[str, mx.array], mx.array | None]


def emit(tap: Tap | None, name: str, x: mx.array) -> mx.array:
    """Hand `x` to the tap and go on with what it returns; the whole cost without a tap is one comparison.

    Parameters
    ----------
    tap : called as tap(name, x). None, or `x` itself, leaves everything as it is; any other array (MLX or numpy) takes
        the place of `x` in all that follows, in the dtype of `x`.
    name : what `x` is called, see `stepaudio.interp.names.GLOSSARY`.

    Raises
    ------
    ConfigError : a replacement of another shape, or one that holds no real numbers.
    """
    if tap is None:
        return x
    found = tap(name, x)
    if found is None or found is x:
        return x
    return _replacement(tap.prefix + name if isinstance(tap, _Prefixed) else name, x, found)


def _replacement(name: str, x: mx.array, found: mx.array | np.ndarray) -> mx.array:
    """What a tap returned, in the dtype of `x`."""
    if isinstance(found, np.ndarray) and found.dtype.kind in "biuf":
        found = mx.array(found)
    if not isinstance(found, mx.array) or found.dtype == mx.complex64:
        kind = found.dtype if isinstance(found, (mx.array, np.ndarray)) else type(found).__name__
        raise ConfigError(f"tap at {name}: expected None or an array of real numbers, found {kind}")
    if found.shape != x.shape:
        raise ConfigError(
            f"tap at {name}: a replacement must have the shape of what it replaces, {tuple(x.shape)}; found "
            f"{tuple(found.shape)}"
        )
    return found.astype(x.dtype)


@dataclass(frozen=True)
class _Prefixed:
    """A tap for a part of a net."""

    tap: Tap
    prefix: str

    def __call__(self, name: str, x: mx.array) -> mx.array | None:
        return self.tap(self.prefix + name, x)


def named(tap: Tap | None, prefix: str) -> Tap | None:
    """The same tap for a part of a net, whose names get `prefix` in front; None if it wants nothing there."""
    if tap is None or not wants(tap, prefix):
        return None
    return _Prefixed(tap.tap, tap.prefix + prefix) if isinstance(tap, _Prefixed) else _Prefixed(tap, prefix)


def wants(tap: Tap | None, name: str) -> bool:
    """Whether there is a tap that has a use for `name`, or, if that ends in a dot, for anything below it.

    A tap may have a method `wants` that says so, for example by `beginnings`; one without is shown everything.
    """
    if isinstance(tap, _Prefixed):
        tap, name = tap.tap, tap.prefix + name
    says = getattr(tap, "wants", None)
    return tap is not None and (says is None or says(name))


def beginnings(names: Iterable[str]) -> frozenset[str]:
    """These names, and all that they begin with up to a dot: what `wants` is asked for."""
    found = set(names)
    for name in tuple(found):
        found |= {name[: i + 1] for i, letter in enumerate(name) if letter == "."}
    return frozenset(found)


@dataclass(frozen=True)
class _Chain:
    """Several taps, one behind the other."""

    taps: tuple[Tap, ...]

    def __call__(self, name: str, x: mx.array) -> mx.array:
        for tap in self.taps:
            x = emit(tap, name, x)
        return x

    def wants(self, name: str) -> bool:
        return any(wants(tap, name) for tap in self.taps)


def chain(*taps: Tap | None) -> Tap | None:
    """One tap out of several: each sees what the one before has left, so a recorder behind an edit records the edit."""
    given = tuple(tap for tap in taps if tap is not None)
    return _Chain(given) if len(given) > 1 else given[0] if given else None
