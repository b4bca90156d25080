"""What is changed inside a run, as values: which activations, where in them, and how.

An edit names activations by glob patterns over `names.GLOSSARY`, and within them heads, positions, seconds of audio,
steps of generation and tokens. It holds no state of any run: `editing.EditTap` applies it. Draws nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import mlx.core as mx
import numpy as np

from ..choices import EditKind
from ..errors import ConfigError
from .donor import Activations, digest_of
from .places import Numbers, Place, is_whole, spans

EVERYWHERE = Place()


@dataclass(frozen=True)
class Value:
    """Numbers that an edit writes: one, (channels,) or (heads, channels). Equal where their bytes are."""

    digest: str
    shape: tuple[int, ...]
    data: bytes

    @classmethod
    def of(cls, given: Any, name: str) -> Value:
        """Any array of real, finite numbers."""
        if isinstance(given, mx.array):
            given = np.array(given.astype(mx.float32))
        try:
            array = np.array(given, dtype=np.float32)
        except (TypeError, ValueError):
            raise ConfigError(f"{name}: expected numbers, found {type(given).__name__}") from None
        if array.ndim > 2 or not array.size or not np.isfinite(array).all():
            raise ConfigError(
                f"{name}: expected finite numbers, one, (channels,) or (heads, channels), found shape {array.shape}"
            )
        return cls(digest_of(array), array.shape, array.tobytes())

    @property
    def array(self) -> np.ndarray:
        """The numbers, float32."""
        return np.frombuffer(self.data, np.float32).reshape(self.shape)

    def __str__(self) -> str:
        return f"{float(self.array):g}" if not self.shape else f"{self.shape} {self.digest[:8]}"


@dataclass(frozen=True)
class Edit:
    """One change; make it with `replace`, `zero`, `mean`, `add`, `scale`, `patch` or `resample`.

    Attributes
    ----------
    kind : EditKind.
    names : glob patterns over `names.GLOSSARY`.
    heads : numbers from 0, None for all; of keys and values, key/value heads.
    at : new positions of a pass; frames of encoder and adapter.
    keys : positions attended to, of a pattern.
    value : what is written, added, or multiplied with.
    donors : runs whose activations are taken.
    seed : of what is drawn.
    """

    kind: EditKind
    names: tuple[str, ...]
    heads: tuple[int, ...] | None = None
    at: Place = EVERYWHERE
    keys: Place | None = None
    value: Value | None = None
    donors: tuple[Activations, ...] = ()
    seed: int = 0

    def __str__(self) -> str:
        parts = [f"{self.kind} {', '.join(self.names)}"]
        if self.heads is not None:
            parts.append(f"heads {','.join(map(str, self.heads))}")
        parts += [str(self.at)] * (not self.at.everywhere)
        if self.keys is not None:
            parts.append(f"keys {self.keys}")
        if self.value is not None:
            parts.append(f"by {self.value}" if self.kind != EditKind.REPLACE else f"with {self.value}")
        if self.donors:
            parts.append(f"from {','.join(d.digest[:8] for d in self.donors)}")
        if self.kind == EditKind.RESAMPLE:
            parts.append(f"seed {self.seed}")
        return "; ".join(parts)

    def to_dict(self) -> dict:
        """Everything that decides what the edit does, as JSON can hold it; arrays as sha256."""
        place = {f.name: getattr(self.at, f.name) for f in fields(Place)}
        keys = None if self.keys is None else {f.name: getattr(self.keys, f.name) for f in fields(Place)}
        return {
            "kind": str(self.kind),
            "names": list(self.names),
            "heads": None if self.heads is None else list(self.heads),
            "at": place,
            "keys": keys,
            "value": None if self.value is None else self.value.digest,
            "donors": [d.digest for d in self.donors],
            "seed": self.seed,
        }


@dataclass(frozen=True)
class Edits:
    """Edits in order, each working on what the ones before have left; `+` joins them.

    Examples
    --------
    >>> from stepaudio.interp import scale, zero
    >>> print(zero("decoder.1.z", heads=0, steps=slice(2, None)) + scale("adapter.out", 0.5, seconds=(0.4, 0.8)))
    zero decoder.1.z; heads 0; steps 2-
    scale adapter.out; seconds 0.4-0.8; by 0.5
    """

    edits: tuple[Edit, ...] = ()

    def __add__(self, other: Edits) -> Edits:
        return Edits(self.edits + other.edits) if isinstance(other, Edits) else NotImplemented

    def __iter__(self) -> Iterator[Edit]:
        return iter(self.edits)

    def __len__(self) -> int:
        return len(self.edits)

    def __str__(self) -> str:
        return "\n".join(map(str, self.edits)) or "no edits"

    def to_list(self) -> list[dict]:
        """As JSON can hold it, for the provenance of a run."""
        return [edit.to_dict() for edit in self.edits]

    @property
    def digest(self) -> str:
        """sha256 (hex) of what the edits do; equal for equal edits, in every process."""
        return hashlib.sha256(json.dumps(self.to_list(), sort_keys=True).encode()).hexdigest()


# ---------------------------------------------------------------- how edits are made


def replace(names: str | Sequence[str], value: Any, **where: Any) -> Edits:
    """Put `value` there: a number, (channels,) or (heads, channels); `where` as `zero` has it."""
    return _made(EditKind.REPLACE, names, where, value=Value.of(value, "value"))


def zero(
    names: str | Sequence[str],
    *,
    heads: Numbers = None,
    positions: Numbers = None,
    seconds: tuple[float, float] | None = None,
    clip: int = 0,
    steps: Numbers = None,
    tokens: Numbers = None,
    keys: Place | None = None,
) -> Edits:
    """Put zeros there.

    Parameters
    ----------
    names : one or several glob patterns over `names.GLOSSARY`.
    heads : numbers from 0; by default all.
    positions, seconds, clip, steps, tokens : as `Place`, together; by default everywhere.
    keys : which positions attended to, of a pattern.

    Raises
    ------
    ConfigError
        Something of the wrong kind. What a run has no place for is found when the run is laid out.
    """
    where = {"heads": heads, "positions": positions, "seconds": seconds, "clip": clip, "steps": steps}
    return _made(EditKind.ZERO, names, where | {"tokens": tokens, "keys": keys})


def add(names: str | Sequence[str], value: Any, **where: Any) -> Edits:
    """Add `value`, for example a steering vector (channels,); `where` as `zero` has it."""
    return _made(EditKind.ADD, names, where, value=Value.of(value, "value"))


def scale(names: str | Sequence[str], factor: float, **where: Any) -> Edits:
    """Multiply by `factor`, which may also be (channels,) or (heads, channels); `where` as `zero` has it."""
    return _made(EditKind.SCALE, names, where, value=Value.of(factor, "factor"))


def mean(names: str | Sequence[str], donors: Activations | Sequence[Activations], **where: Any) -> Edits:
    """Put the mean over all positions of the donors' runs there; `where` as `zero` has it."""
    return _made(EditKind.MEAN, names, where, donors=_donors(donors))


def patch(names: str | Sequence[str], donor: Activations, **where: Any) -> Edits:
    """Put what the donor's run had at the same positions there, as far as it went; `where` as `zero` has it."""
    return _made(EditKind.PATCH, names, where, donors=_donors(donor))


def resample(
    names: str | Sequence[str], donors: Activations | Sequence[Activations], seed: int = 0, **where: Any
) -> Edits:
    """Put what the donors' runs had at positions drawn at random there, drawn for each position by `seed`."""
    if not is_whole(seed) or seed < 0:
        raise ConfigError(f"seed: expected a whole number from 0, found {seed!r:.80}")
    return _made(EditKind.RESAMPLE, names, where, donors=_donors(donors), seed=seed)


def _donors(given: Activations | Sequence[Activations]) -> tuple[Activations, ...]:
    found = (given,) if isinstance(given, Activations) else tuple(given) if isinstance(given, Sequence) else ()
    if not found or not all(isinstance(d, Activations) for d in found):
        raise ConfigError("donors: expected what `activations` gives, one run or several")
    return found


def _made(kind: EditKind, names: str | Sequence[str], where: dict[str, Any], **how: Any) -> Edits:
    patterns = (names,) if isinstance(names, str) else tuple(names) if isinstance(names, Sequence) else ()
    if not patterns or not all(isinstance(n, str) for n in patterns):
        raise ConfigError(f"names: expected a pattern over the names of activations, or several, found {names!r:.80}")
    place = {f.name: where.pop(f.name) for f in fields(Place) if f.name in where}
    heads, keys = spans(where.pop("heads", None), "heads"), where.pop("keys", None)
    if where:
        raise ConfigError(
            f"{kind}: unknown {', '.join(where)}; expected heads, keys, {', '.join(f.name for f in fields(Place))}"
        )
    if keys is not None and not isinstance(keys, Place):
        raise ConfigError(f"keys: expected a Place, found {type(keys).__name__}")
    if heads is not None and heads[-1][1] is None:
        raise ConfigError("heads: expected numbers, found a slice without an end")
    numbers = None if heads is None else tuple(i for a, b in heads for i in range(a, b or 0))
    return Edits((Edit(kind, patterns, numbers, Place(**place), keys, **how),))
