"""Closed-world readers: a mapping becomes a frozen record, and a key that is unknown or missing is an error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from types import MappingProxyType

from .errors import ConfigError

# Written by training frameworks, read by nobody here; their values cannot change what is computed.
INERT_KEYS = frozenset(
    {"architectures", "auto_map", "transformers_version", "torch_dtype", "dtype", "_name_or_path", "use_cache"}
)


def require(ok: bool, message: str) -> None:
    if not ok:
        raise ConfigError(message)


def read_record(cls, data: object, path: str, nested: Mapping[str, type] = MappingProxyType({})):
    """Fill the frozen record `cls` from a JSON object, refusing what it does not know."""
    require(isinstance(data, dict), f"{path}: expected a JSON object, found {type(data).__name__}")
    known = {f.name: f for f in fields(cls)}
    unknown = sorted(set(data) - set(known) - INERT_KEYS)
    require(not unknown, f"{path}: unknown key {', '.join(unknown)}; known are {', '.join(sorted(known))}")
    needed = {n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING}
    absent = sorted(needed - set(data))
    require(not absent, f"{path}: missing key {', '.join(absent)}; the published config.json has it")
    values = {}
    for name, value in data.items():
        if name in known:
            values[name] = typed(value, known[name].type, f"{path}.{name}", nested)
    return cls(**values)


def typed(value, kind, path: str, nested: Mapping[str, type] = MappingProxyType({})):
    """One value checked against the annotation of its field; nested records are read recursively."""
    if kind in nested:
        return read_record(nested[kind], value, path)
    if value is None and kind.endswith("| None"):
        return None
    kind = kind.removesuffix(" | None")
    if kind == "int":
        ok = isinstance(value, int) and not isinstance(value, bool)
    elif kind == "float":
        ok = isinstance(value, (int, float)) and not isinstance(value, bool)
        value = float(value) if ok else value
    elif kind == "str":
        ok = isinstance(value, str)
    elif kind == "bool":
        ok = isinstance(value, bool)
    else:  # "object": checked by the record itself
        ok = True
    require(ok, f"{path}: expected {kind}, found {value!r}")
    return value


def fill(cls, data: object, path: str):
    """Fill the frozen record `cls` from a mapping, refusing what it does not know."""
    require(isinstance(data, dict), f"{path}: expected a mapping, found {type(data).__name__}")
    known = {f.name: f for f in fields(cls)}
    unknown = sorted(str(k) for k in set(data) - set(known))
    require(not unknown, f"{path}: unknown key {', '.join(unknown)}; known are {', '.join(sorted(known))}")
    absent = sorted({n for n, f in known.items() if f.default is MISSING} - set(data))
    require(not absent, f"{path}: missing key {', '.join(absent)}; the published file has it")
    return cls(**{n: typed(value, known[n].type, f"{path}.{n}") for n, value in data.items()})


def require_positive(record, path: str, names: tuple[str, ...]) -> None:
    for name in names:
        value = getattr(record, name)
        require(value > 0, f"{path}.{name}: must be positive, found {value}")


def require_only(record, path: str, allowed: dict) -> None:
    for name, value in allowed.items():
        found = getattr(record, name)
        require(found == value, f"{path}.{name}: only {value!r} is supported, found {found!r}")


def whole_numbers(value, depth: int, path: str) -> None:
    """Raise unless `value` is a tuple of positive whole numbers, or of such tuples for a depth of two."""
    require(isinstance(value, tuple) and len(value) > 0, f"{path}: expected a list, found {value!r}")
    for item in value:
        if depth > 1:
            whole_numbers(item, depth - 1, path)
        else:
            ok = type(item) is int and item > 0
            require(ok, f"{path}: expected a list of positive whole numbers, found {value!r}")


def tuples(value):
    return tuple(tuples(v) for v in value) if isinstance(value, (list, tuple)) else value


def known_keys(data: object, cls: type, path: str, extra: Sequence[str] = ()) -> dict:
    """`data` if it is an object whose keys are all fields of `cls` (or in `extra`)."""
    if not isinstance(data, Mapping):
        raise ConfigError(f"{path}: expected an object, found {data!r}")
    names = {f.name for f in fields(cls)} | set(extra)
    unknown = sorted(set(data) - names)
    if unknown:
        raise ConfigError(f"{path}: unknown key {', '.join(map(str, unknown))}; known are {', '.join(sorted(names))}")
    return dict(data)


def build_record(cls: type, values: dict, path: str):
    """cls(**values), with a value of a wrong type reported under its path."""
    try:
        return cls(**values)
    except TypeError as error:
        raise ConfigError(f"{path}: a value has the wrong type ({error})") from None


def tuple_of(values: object, kind: type, name: str) -> tuple:
    if (
        isinstance(values, (str, bytes))
        or not isinstance(values, Sequence | range)
        or not all(isinstance(v, kind) and not isinstance(v, bool) for v in values)
    ):
        raise ConfigError(f"{name}: expected a list of {kind.__name__}, found {values!r}")
    return tuple(values)
