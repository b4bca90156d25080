"""What a bench found: one figure, as text and as JSON."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Stage = Callable[[str], None]  # is told what is measured next, and "" before anything is printed


def quiet(_text: str) -> None:
    """A `Stage` that says nothing."""


@dataclass(frozen=True)
class Row:
    """One figure: of which part, what, whose, in which unit, and the value of each repeat."""

    part: str
    what: str
    side: str
    unit: str
    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle one."""
        return float(np.median(self.values))

    def to_dict(self) -> dict:
        """Plain JSON types."""
        median, least, most = (short(f(self.values)) for f in (np.median, min, max))
        said = {"part": self.part, "what": self.what, "side": self.side, "unit": self.unit, "median": median}
        return said | {
            "least": least, "most": most, "repeats": len(self.values), "values": [short(v) for v in self.values],
        }  # fmt: skip

    def __str__(self) -> str:
        spread = f"{min(self.values):11.4g} … {max(self.values):.4g}" if len(self.values) > 1 else ""
        return f"{self.part:13}{self.what:40}{self.side:11}{self.median:11.4g} {self.unit:12}{spread}".rstrip()


def short(value: float) -> float:
    """Six digits of it."""
    return float(f"{value:.6g}")
