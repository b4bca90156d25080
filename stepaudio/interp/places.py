"""Where in a run: positions, seconds of audio, steps of generation and tokens, as values."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeGuard

import numpy as np

from ..errors import ConfigError

Span: TypeAlias = tuple[int, int | None]  # from the first on, below the second; None: to the end
Numbers: TypeAlias = int | slice | range | Iterable[int] | None


@dataclass(frozen=True)
class Place:
    """Which positions of a run; what is given holds together, None leaves a condition out.

    Parameters
    ----------
    positions : number, slice, range or numbers
        In the prompt and the answer, from 0, below 0 from the end of the prompt; in encoder and adapter, frames of the
        activation itself, in every segment of audio.
    seconds : (start, stop), optional
        Of audio, in clip `clip`: every frame or audio embedding that the stretch touches.
    clip : int >= 0
        Number of the recording in the prompt.
    steps : number, slice, range or numbers
        Step i is the pass that chooses token i of the answer; step 0 stands at the last position of the prompt.
    tokens : number, slice, range or numbers
        Ids: positions that hold one of these tokens.

    Raises
    ------
    ConfigError
        A number of the wrong kind, a stretch that is empty or begins before 0.
    """

    positions: Any = None
    seconds: tuple[float, float] | None = None
    clip: int = 0
    steps: Any = None
    tokens: Any = None

    def __post_init__(self):
        for name, least in (("positions", None), ("steps", 0), ("tokens", 0)):
            object.__setattr__(self, name, spans(getattr(self, name), name, least))
        if self.seconds is not None:
            object.__setattr__(self, "seconds", _stretch(self.seconds))
        if not is_whole(self.clip) or self.clip < 0:
            raise ConfigError(f"clip: expected a number from 0, found {self.clip!r:.80}")
        if self.clip and self.seconds is None:
            raise ConfigError(f"clip {self.clip}: expected seconds with it, which it counts from its own beginning")

    @property
    def everywhere(self) -> bool:
        """Whether no condition is given."""
        return self.positions is None and self.seconds is None and self.steps is None and self.tokens is None

    def __str__(self) -> str:
        parts = []
        if self.seconds is not None:
            parts.append(
                f"seconds {self.seconds[0]:g}-{self.seconds[1]:g}" + (f" of clip {self.clip}" * (self.clip > 0))
            )
        for name in ("positions", "steps", "tokens"):
            if (given := getattr(self, name)) is not None:
                parts.append(f"{name} " + ",".join(_shown(span) for span in given))
        return " and ".join(parts)


def spans(given: Numbers, name: str, least: int | None = 0) -> tuple[Span, ...] | None:
    """Numbers as half-open spans in order; `least` is the smallest that is allowed."""
    if given is None:
        return None
    wrong = ConfigError(
        f"{name}: expected whole numbers{'' if least is None else f' from {least}'}, as one, a list, a range or a "
        f"slice without a step, found {given!r:.80}"
    )
    found: list[Span] = []
    for item in [given] if is_whole(given) or isinstance(given, slice) else _listed(given, wrong):
        a, b = _ends(item)
        if not is_whole(a) or not (b is None or is_whole(b)):
            raise wrong
        found.append((int(a), None if b is None else int(b)))
    found = _joined(sorted(set(found), key=lambda span: (span[0], span[1] is None, span[1] or 0)))
    if not found or any((least is not None and a < least) or (b is not None and _is_empty(a, b)) for a, b in found):
        raise wrong
    return tuple(found)


def _listed(given: object, wrong: ConfigError) -> list[object]:
    if not isinstance(given, Iterable) or isinstance(given, str):
        raise wrong
    return list(given)


def _ends(item: Any) -> tuple[Any, Any]:
    """First number and the one behind the last, of a number, a slice or a span."""
    if isinstance(item, slice):
        return (item.start or 0, item.stop) if item.step in (None, 1) else (None, None)
    if isinstance(item, tuple):
        return (item[0], item[1]) if len(item) == 2 else (None, None)
    return item, item + 1 if is_whole(item) else None


def _is_empty(a: int, b: int) -> bool:
    return b <= a if (a < 0) == (b < 0) else a >= 0  # from -3 to 0 is the end of the prompt


def _joined(pairs: list[Span]) -> list[Span]:
    """Neighbours as one."""
    found: list[Span] = []
    for a, b in pairs:
        if found and found[-1][1] == a and not found[-1][0] < 0 <= a:
            found[-1] = (found[-1][0], b)
        else:
            found.append((a, b))
    return found


def is_whole(x: object) -> TypeGuard[int]:
    """Whether it is a whole number, of Python or numpy."""
    return isinstance(x, (int, np.integer)) and not isinstance(x, bool)


def _shown(span: Span) -> str:
    a, b = span
    return f"{a}-" if b is None else f"{a}" if b == a + 1 else f"{a}-{b - 1}"


def _stretch(given: Any) -> tuple[float, float]:
    try:
        start, stop = (float(x) for x in given)
    except (TypeError, ValueError):
        raise ConfigError(f"seconds: expected (start, stop), found {given!r:.80}") from None
    if not 0 <= start < stop < float("inf"):
        raise ConfigError(f"seconds: expected 0 <= start < stop, found {start:g} and {stop:g}")
    return start, stop


def within(positions: np.ndarray, conditions: list[list[Span]]) -> np.ndarray:
    """Which positions lie in a span of every condition, booleans."""
    found = np.ones(positions.shape, bool)
    for spans_of_one in conditions:
        held = np.zeros(positions.shape, bool)
        for a, b in spans_of_one:
            held |= (positions >= a) & (positions < (np.inf if b is None else b))
        found &= held
    return found


def from_end(span: Span, n: int) -> Span:
    """A span whose numbers below 0 count from the end of `n` positions."""
    a, b = span
    if a < 0:
        return a + n, n if b is None else b + n if b <= 0 else b
    return a, b
