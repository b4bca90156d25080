"""Tensors that are there against tensors that are expected: the one comparison behind every report and refusal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from .dtypes import usable
from .header import TensorInfo, listed
from .layout import Shape


@dataclass(frozen=True)
class Match:
    """Every name of both sides, in exactly one place.

    `matched`, `missing`, `misshaped` and `wrong_dtype` together are the expected names, in their order; `unexpected`
    is the rest, sorted. A tensor of an unusable dtype is not judged by its shape.
    """

    expected: Mapping[str, Shape]
    found: Mapping[str, Shape]
    dtypes: Mapping[str, str]
    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshaped: tuple[str, ...]
    wrong_dtype: tuple[str, ...]

    def faults(self, shown: Callable[[str], str] = str) -> str:
        """Say all that does not fit in one line, empty if all does; `shown` may add to an unexpected name."""
        total = len(self.expected)
        shapes = (f"{n} has shape {self.found[n]}, expected {self.expected[n]}" for n in self.misshaped)
        kinds = (f"{n} ({self.dtypes[n]})" for n in self.wrong_dtype)
        lists = (
            (len(self.missing), f"of {total} tensors are missing", self.missing),
            (len(self.unexpected), "have no place in the net", map(shown, self.unexpected)),
            (len(self.misshaped), "have other shapes", shapes),
            (len(self.wrong_dtype), "have an unusable type", kinds),
        )
        return "; ".join(f"{count} {fault}: {listed(names)}" for count, fault, names in lists if count)


def match(found: Mapping[str, Shape], expected: Mapping[str, Shape], dtypes: Mapping[str, str] | None = None) -> Match:
    """Compare names, shapes and, where they are given, stored dtypes.

    Parameters
    ----------
    found, expected : mapping of str to tuple of int
        Name -> shape.
    dtypes : mapping of str to str, optional
        Name -> dtype of what was found, as records call it; `dtypes.usable` says which can be used.
    """
    dtypes = dtypes or {}
    present = [name for name in expected if name in found]
    wrong = tuple(name for name in present if name in dtypes and not usable(dtypes[name]))
    misshaped = tuple(name for name in present if name not in wrong and tuple(found[name]) != tuple(expected[name]))
    out = {*wrong, *misshaped}
    return Match(
        expected=expected,
        found=found,
        dtypes=dtypes,
        matched=tuple(name for name in present if name not in out),
        missing=tuple(name for name in expected if name not in found),
        unexpected=tuple(sorted(name for name in found if name not in expected)),
        misshaped=misshaped,
        wrong_dtype=wrong,
    )


def match_stored(records: Mapping[str, TensorInfo], expected: Mapping[str, Shape]) -> Match:
    """`match` of the records of a file's header."""
    shapes = {name: info.shape for name, info in records.items()}
    return match(shapes, expected, {name: info.dtype for name, info in records.items()})
