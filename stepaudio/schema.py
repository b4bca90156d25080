"""Closed-world reading: data from outside becomes a frozen record, and what the record does not know is an error.

A record is a dataclass; its fields' types say what they hold, nested records, tuples, unions and enumerations
included. Every message opens with the path of the value it is about.
"""

from __future__ import annotations

import math
import reprlib
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from functools import lru_cache
from numbers import Real
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from .errors import ConfigError

Record = TypeVar("Record")
Reader = Callable[[object, str], object]  # (value, path) -> what the field holds

# Numbers that nobody needs are refused before anything is built or computed with them.
MAX_WHOLE = 2**64 - 1  # of a whole number of which nothing more is known: what a seed may be
MAX_SIZE = 2**24  # channels, tokens, positions; the published vocabulary has 158 720
MAX_STRIDE = 1024  # kernel sizes, strides, rates, dilations: those of which work or memory is a multiple
MAX_LAYERS = 256  # the deepest published net has 32
FLOAT32_LEAST, FLOAT32_MOST = 2.0**-126, (2 - 2.0**-23) * 2.0**127  # beyond, the arithmetic has 0 or infinity


class _WrongType(ConfigError):
    """A single value of another type than its field; within a list, the whole list is then shown."""


def read_record(
    cls: type[Record],
    data: object,
    path: str,
    *,
    start: Record | None = None,
    readers: Mapping[type, Reader] | None = None,
    advice: str = "the published file has it",
) -> Record:
    """Fill a record from a JSON object.

    Parameters
    ----------
    cls : dataclass
        What to fill. Field types may be int, float, bool, str, None, object (anything), tuples, enumerations, other
        records, and unions of these.
    data : object
        A mapping of the record's field names; lists stand for tuples, mappings for nested records. A whole number may
        stand for a float; a boolean is no number. A float is 0 or lies in the range of normal float32 numbers, a whole
        number within `MAX_WHOLE` of 0.
    path : str
        Opens every message.
    start : record, optional
        Its values, nested ones too, stand for what `data` leaves out; by default the fields' own defaults.
    readers : mapping of type to function, optional
        (value, path) -> result, for fields of these types, instead of the rules here.
    advice : str
        Closes the message about a missing key.

    Raises
    ------
    ConfigError
        `data` is no mapping; a key is unknown or missing; a value has another type than its field. Also whatever the
        record's own checks raise.
    """
    known = {f.name: f for f in fields(cast(Any, cls)) if f.init}
    found = require_keys(data, known, path)
    if start is None:
        needed = {n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING}
        absent = sorted(needed - set(found))
        require(not absent, f"{path}: missing key {', '.join(absent)}; {advice}")
        values = {}
    else:
        values = {name: getattr(start, name) for name in known}
    for name, value in found.items():
        kind, below = _types_of(cls)[name], f"{path}.{name}"
        reader = (readers or {}).get(kind) if isinstance(kind, type) else None
        if reader is not None:
            values[name] = reader(value, below)
        elif _is_record(kind) and not isinstance(value, kind):
            values[name] = read_record(kind, value, below, start=values.get(name), readers=readers, advice=advice)
        else:
            values[name] = read_value(value, kind, below)
    return cls(**values)


def require_keys(data: object, known: Iterable[str], path: str, advice: str = "") -> dict[str, Any]:
    """A copy of `data`, once it is a mapping that has no others than the `known` ones; `advice` closes the message."""
    if not isinstance(data, Mapping):
        raise ConfigError(f"{path}: expected a JSON object, found {type(data).__name__}")
    known = set(known)
    unknown = sorted(map(str, set(data) - known))
    shown = ", ".join(f"{key:.60}" for key in unknown[:5]) + (f" and {len(unknown) - 5} more" if unknown[5:] else "")
    require(not unknown, f"{path}: unknown key {shown}; known are {', '.join(sorted(known))}{advice and f'; {advice}'}")
    return dict(data)


def read_value(value: object, kind: Any, path: str) -> Any:
    """One value as the type `kind` says; rules and errors as in `read_record`.

    Examples
    --------
    >>> read_value([1, 2], tuple[int, ...], "seeds")
    (1, 2)
    """
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return _read_union(value, get_args(kind), kind, path)
    if origin is tuple:
        return _read_tuple(value, kind, path)
    if kind in (object, Any):
        return value
    if _is_record(kind):
        return value if isinstance(value, kind) else read_record(kind, value, path)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return _read_choice(value, kind, path)
    accepted = (int, float) if kind is float else kind
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise _wrong_type(value, kind, path)
    if kind is float:
        return _finite(value, path)
    if kind is int and isinstance(value, int):
        require(abs(value) <= MAX_WHOLE, f"{path}: expected a whole number within ±{MAX_WHOLE}, found {shown(value)}")
    return value


def shown(value: object) -> str:
    """A value as messages quote it: Python's spelling, its middle left out where it is long or deep."""
    return _SPELLING.repr(value)


class _Spelling(reprlib.Repr):
    def repr_int(self, x: int, level: int) -> str:
        return super().repr_int(x, level) if x.bit_length() < 10_000 else f"a number of {x.bit_length()} bits"


_SPELLING = _Spelling()
_SPELLING.maxstring = _SPELLING.maxlong = _SPELLING.maxother = 80
_SPELLING.maxlist = _SPELLING.maxdict = _SPELLING.maxtuple = 6
_SPELLING.maxlevel = 3


def _read_union(value: object, kinds: Sequence[Any], union: Any, path: str) -> Any:
    """The first of the union's types that fits."""
    if value is None and types.NoneType in kinds:
        return None
    kinds = [kind for kind in kinds if kind is not types.NoneType]
    if len(kinds) == 1:
        return read_value(value, kinds[0], path)
    for kind in kinds:
        try:
            return read_value(value, kind, path)
        except _WrongType:
            continue
    raise _wrong_type(value, union, path)


def _read_tuple(value: object, kind: Any, path: str) -> tuple:
    inner = get_args(kind)
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        raise _wrong_type(value, kind, path)
    if inner[-1] is Ellipsis:
        inner = (inner[0],) * len(value)
    if len(inner) != len(value):
        raise _wrong_type(value, kind, path)
    try:
        return tuple(read_value(item, item_kind, path) for item, item_kind in zip(value, inner, strict=True))
    except _WrongType:
        raise _wrong_type(value, kind, path) from None


def _read_choice(value: object, kind: type[Enum], path: str) -> Enum:
    try:
        return kind(value)
    except ValueError:
        raise _WrongType(f"{path}: expected {_name(kind)}, found {shown(value)}") from None


def _finite(value: Any, path: str) -> float:
    try:
        number = float(value)
    except OverflowError:  # a whole number beyond the range of floats
        number = math.inf
    require(math.isfinite(number), f"{path}: expected a finite float, found {shown(value)}")
    require(in_float32(number), f"{path}: expected 0 or a float of float32's range, 1.2e-38 … 3.4e38, found {number!r}")
    return number


def in_float32(number: float) -> bool:
    """Whether float32 arithmetic, with or without denormal numbers, has this float: as 0 or as itself."""
    return number == 0 or FLOAT32_LEAST <= abs(number) <= FLOAT32_MOST


def _wrong_type(value: object, kind: Any, path: str) -> _WrongType:
    return _WrongType(f"{path}: expected {_name(kind)}, found {shown(value)} (wrong type)")


def _name(kind: Any, plural: bool = False) -> str:
    """A type as messages say it: `int`, `a list of int`, `one of off, report`."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(_name(part) for part in inner if part is not types.NoneType)
    if origin is tuple:
        size = "" if inner[-1] is Ellipsis else f"{len(inner)} "
        return f"{'lists' if plural else 'a list'} of {size}{_name(inner[0], plural=True)}"
    if isinstance(kind, type) and issubclass(kind, Enum):
        return f"one of {', '.join(str(member.value) for member in kind)}"
    return "a JSON object" if _is_record(kind) else kind.__name__


def _is_record(kind: Any) -> bool:
    return isinstance(kind, type) and is_dataclass(kind)


@lru_cache(maxsize=256)
def _types_of(cls: type) -> dict[str, Any]:
    """Field name to type; annotations that are text are resolved in the record's own module."""
    return get_type_hints(cls)


# ---- checks that records share ----


def require(ok: bool, message: str) -> None:
    """Raise `ConfigError` with this message unless `ok`."""
    if not ok:
        raise ConfigError(message)


def require_positive(record: object, path: str, names: Iterable[str], most: int = MAX_SIZE) -> None:
    """Raise `ConfigError` unless these fields are numbers above 0, or tuples of at least one such number.

    A whole number must be at most `most`, a float one that float32 has.
    """
    for name in names:
        value = getattr(record, name)
        require(_positive(value), f"{path}.{name}: must be positive, found {shown(value)}")
        require(_greatest(value) <= most, f"{path}.{name}: at most {most} are possible, found {shown(value)}")


def _positive(value: Any) -> bool:
    if isinstance(value, tuple):
        return len(value) > 0 and all(map(_positive, value))
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    return cast(Any, value) > 0 and (not isinstance(value, float) or in_float32(value))


def _greatest(value: Any) -> int:
    """The greatest whole number in a number or nested tuples of them; 0 where there is none."""
    if isinstance(value, tuple):
        return max(map(_greatest, value), default=0)
    return 0 if isinstance(value, float) else value


def require_only(record: object, path: str, allowed: Mapping[str, object]) -> None:
    """Raise `ConfigError` unless each of these fields has the one value that is supported."""
    for name, value in allowed.items():
        found = getattr(record, name)
        require(found == value, f"{path}.{name}: only {value!r} is supported, found {shown(found)}")
