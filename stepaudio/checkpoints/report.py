"""What became of every tensor: a checkpoint's names and shapes held against the expected ones, and said as text.

`compare` fills the record; the record prints itself. Works on header records alone and opens no file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

from ..files import result_name
from ..models.config_keys import ConfigNote
from .dtypes import ACCEPTED
from .header import TensorInfo, listed, printable
from .layout import COMPONENTS, TOKEN2WAV, Shape, component_of
from .lora import LoraReport
from .match import Match, match_stored
from .statistics import MIN_VALUES, TensorValues
from .suggest import NearMiss, near_misses, rename_map, transform

ENOUGH, TOO_LITTLE = 0.9, 0.5  # matched shares: below the first a louder warning, below the second an error
SHOWN = 12  # lines per section of the table; `to_dict` has all


@dataclass(frozen=True)
class ComponentReport:
    """Counts of tensors of one component; `bytes` and `dtypes` (dtype -> tensors) are of what is stored for it."""

    name: str
    expected: int
    loaded: int
    missing: int
    unexpected: int
    misshaped: int
    wrong_dtype: int
    bytes: int
    dtypes: dict[str, int]


@dataclass(frozen=True)
class Misshaped:
    """A tensor of the right name and the wrong shape; `repair` says what would make it right."""

    name: str
    expected: Shape
    found: Shape
    repair: str


@dataclass(frozen=True)
class WeightReport:
    """Every tensor of a checkpoint and of the expected layout, in exactly one place.

    `loaded`, `missing`, `misshaped` and `wrong_dtype` together are the expected layout; `unexpected` is the rest of
    the checkpoint. Names are the published ones, after any renaming. `loaded` means matched: right name, right
    shape, readable dtype. `values` is filled only where they were read; `error` only where nothing could be read.
    `config` lists the keys of the config that others added and that say what is built, or nothing that is used.
    `lora` describes the LoRA that is on; all else is of the checkpoint's own tensors.
    """

    path: str
    components: tuple[ComponentReport, ...] = ()
    loaded: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    misshaped: tuple[Misshaped, ...] = ()
    wrong_dtype: tuple[tuple[str, str], ...] = ()
    near_misses: tuple[NearMiss, ...] = ()
    values: tuple[TensorValues, ...] | None = None
    error: str | None = None
    config: tuple[ConfigNote, ...] = ()
    lora: LoraReport | None = None

    @classmethod
    def unreadable(cls, path: object, error: Exception) -> WeightReport:
        """The report on a checkpoint that was refused: nothing but the reason, exit status 2."""
        return cls(path=result_name(str(path)), error=str(error))

    @property
    def expected(self) -> int:
        """Number of tensors in the expected layout."""
        return sum(part.expected for part in self.components)

    @property
    def share(self) -> float:
        """Matched share of the expected tensors, counted in tensors, in [0, 1]."""
        return len(self.loaded) / self.expected if self.expected else 0.0

    @property
    def unfilled(self) -> tuple[str, ...]:
        """Expected tensors for which the checkpoint has nothing that fits."""
        return (*self.missing, *(m.name for m in self.misshaped), *(name for name, _ in self.wrong_dtype))

    @property
    def whole(self) -> bool:
        """Whether every expected tensor is there in its right shape; spare tensors do not count against it."""
        return self.error is None and self.expected > 0 and not self.unfilled

    @property
    def rename(self) -> dict[str, str]:
        """The near misses as a rename map that `validate_weights` and `load_weights` accept.

        In terms of the names in this report, which are those on disk unless a renaming was given already.
        """
        others = set(self.unfilled) - set(self.missing)
        return rename_map(self.near_misses, (*self.loaded, *others, *self.unexpected))

    @property
    def not_finite(self) -> tuple[str, ...]:
        """Tensors that hold NaN or Inf, if values were read."""
        return tuple(v.name for v in self.values or () if v.nan or v.inf)

    @property
    def looks_untrained(self) -> bool:
        """Whether more than half of the kernels have the moments of a random initialiser, if values were read."""
        kernels = [v for v in self.values or () if v.name.endswith(".weight") and v.count >= MIN_VALUES]
        return 2 * sum(_is_random(v) for v in kernels) > len(kernels)

    @property
    def exit_status(self) -> int:
        """0 whole; 2 under 50 % matched or unreadable; 1 in between, and where values hold NaN or Inf."""
        if self.error is not None or self.share < TOO_LITTLE:
            return 2
        return 0 if self.whole and not self.not_finite else 1

    @property
    def summary(self) -> str:
        """One line per component that is not whole, with the first names; empty if all is well."""
        lines = []
        for part in self.components:
            names = [name for name in self.unfilled if component_of(name) == part.name]
            if names:
                lines.append(f"{part.name}: {len(names)} of {part.expected} not filled ({listed(names, 4)})")
        return "; ".join(lines)

    def to_dict(self) -> dict:
        """All of it as plain JSON types, with the derived facts."""
        derived = ("expected", "share", "whole", "rename", "looks_untrained", "exit_status")
        return {**asdict(self), **{name: getattr(self, name) for name in derived}}

    def table(self) -> str:
        """Aligned text for a terminal: counts per component, what is wrong with which tensor, what to do."""
        if self.error is not None:
            return f"{self.path}: unreadable\n  {self.error}"
        sections = [
            self._headline() + (f"\nLoRA: {self.lora}" if self.lora else ""),
            _columns(self.components),
            *self._problems(),
            *self._value_lines(),
        ]
        sections += _section("Config keys beside the sizes", list(map(str, self.config)))
        return "\n\n".join(sections) + "\n\n" + self._advice()

    def _headline(self) -> str:
        verdict = "whole" if self.whole else "incomplete" if self.share >= TOO_LITTLE else "not this model"
        return f"{self.path}: {verdict}, {len(self.loaded)} of {self.expected} tensors match ({self.share:.1%})"

    def _problems(self) -> list[str]:
        near = {miss.missing: f"   (near: {printable(miss.found)})" for miss in self.near_misses}
        shapes = [f"{m.name}: expected {m.expected}, found {m.found}; {m.repair}" for m in self.misshaped]
        return [
            *_section("Missing", [name + near.get(name, "") for name in self.missing]),
            *_section("Mis-shaped", shapes),
            *_section("Wrong dtype", [f"{name}: {dtype}, accepted {ACCEPTED}" for name, dtype in self.wrong_dtype]),
            *_section("Unexpected", [printable(name) for name in self.unexpected]),
        ]

    def _value_lines(self) -> list[str]:
        if self.values is None:
            return []
        noted = sorted((v for v in self.values if v.notes), key=lambda v: not (v.nan or v.inf))
        constant, random = sum(v.constant for v in self.values), sum(map(_is_random, self.values))
        head = (
            f"Values of {len(self.values)} tensors: {len(self.not_finite)} with NaN or Inf, {constant} constant, "
            f"{random} like a random initialiser"
        )
        return _section(head, [f"{v.name}: {', '.join(v.notes)}" for v in noted]) or [head]

    def _advice(self) -> str:
        if self.not_finite:
            return "What to do: tensors with NaN or Inf cannot be used; download or train them again."
        if self.whole and self.looks_untrained:
            return "What to do: most kernels look freshly initialised; make sure that this checkpoint was trained."
        if self.whole:
            return "Nothing to do." if not self.unexpected else "Nothing to do: spare tensors are not loaded."
        if self.rename:
            shown = ", ".join(f"{old!r}: {new!r}" for old, new in list(self.rename.items())[:4])
            return f"What to do: names differ; try rename={{{shown}{', ...' if len(self.rename) > 4 else ''}}}."
        if any(m.repair != "none found" for m in self.misshaped):
            return "What to do: store the mis-shaped tensors in PyTorch layout, as stated above."
        return "What to do: check that config.json belongs to these weights, then download them again."


def compare(
    path: object,
    records: Mapping[str, TensorInfo],
    expected: Mapping[str, Shape],
    values: Sequence[TensorValues] | None = None,
) -> WeightReport:
    """Hold a checkpoint's records, keyed by published name, against the expected layout.

    Returns
    -------
    WeightReport
        Deals with every name of both sides; near misses are sought only where something is missing.
    """
    found = match_stored(records, expected)
    repairs = {name: transform(records[name].shape, expected[name]) for name in found.misshaped}
    return WeightReport(
        path=str(path),
        components=_components(records, found),
        loaded=found.matched,
        missing=found.missing,
        unexpected=found.unexpected,
        misshaped=tuple(Misshaped(n, expected[n], records[n].shape, repairs[n]) for n in found.misshaped),
        wrong_dtype=tuple((name, records[name].dtype) for name in found.wrong_dtype),
        near_misses=near_misses(
            {name: expected[name] for name in found.missing}, {name: records[name].shape for name in found.unexpected}
        ),
        values=None if values is None else tuple(values),
    )


def _components(records: Mapping[str, TensorInfo], found: Match) -> tuple[ComponentReport, ...]:
    counts = {
        "loaded": _per_component(found.matched),
        "missing": _per_component(found.missing),
        "unexpected": _per_component(found.unexpected),
        "misshaped": _per_component(found.misshaped),
        "wrong_dtype": _per_component(found.wrong_dtype),
    }
    wanted = _per_component(found.expected)
    parts = []
    for part in (*COMPONENTS, *TOKEN2WAV, "other"):
        stored = [info for name, info in records.items() if component_of(name) == part]
        if not stored and not wanted[part]:
            continue
        parts.append(ComponentReport(
            name=part, expected=wanted[part], bytes=sum(info.nbytes for info in stored),
            dtypes=dict(Counter(info.dtype for info in stored)),
            **{kind: count[part] for kind, count in counts.items()},
        ))  # fmt: skip
    return tuple(parts)


def _per_component(names: Iterable[str]) -> Counter[str]:
    return Counter(map(component_of, names))


def _is_random(values: TensorValues) -> bool:
    return bool(values.initialiser) and not values.constant


def _section(title: str, lines: Sequence[str]) -> list[str]:
    """A titled, indented, bounded list; nothing at all if there are no lines."""
    if not lines:
        return []
    shown = [f"  {line}" for line in lines[:SHOWN]]
    if len(lines) > SHOWN:
        shown.append(f"  ... and {len(lines) - SHOWN} more (all of them in the JSON report)")
    return [f"{title} ({len(lines)}):\n" + "\n".join(shown)]


def _columns(parts: Sequence[ComponentReport]) -> str:
    counted = ("expected", "loaded", "missing", "misshaped", "wrong_dtype", "unexpected", "bytes")
    rows = [["component", *(name.replace("_", " ") for name in counted), "dtypes"]]
    for part in parts:
        numbers = [f"{getattr(part, name):,}" for name in counted]
        rows.append([part.name, *numbers, ", ".join(f"{dtype} x {n}" for dtype, n in part.dtypes.items()) or "-"])
    rows.append(["all", *(f"{sum(getattr(part, name) for part in parts):,}" for name in counted), ""])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    last = len(widths) - 1

    def pad(i: int, cell: str) -> str:
        return cell.ljust(widths[i]) if i in (0, last) else cell.rjust(widths[i])

    return "\n".join("  ".join(pad(i, cell) for i, cell in enumerate(row)).rstrip() for row in rows)
