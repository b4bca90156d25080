"""Two checkpoints, tensor by tensor: what is equal, what changed and by how much, and where the change has a low rank.

Reads headers first and values in blocks; knows names and files, nothing of what the tensors are for.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ..errors import ConfigError
from .convert.manifest import converted_folder, read_manifest
from .dtypes import FLOATS, usable
from .header import TensorInfo, printable
from .layout import TOKEN2WAV, component_of, prefixed
from .low_rank import Difference, Pair
from .net_records import net_records
from .packed import read_tensors
from .suggest import apply_rename

EQUAL, ROUNDING, LOW_RANK, CHANGED = "equal", "rounding", "low rank", "changed"
RESHAPED, LEFT, RIGHT, UNREAD = "other shape", "only in the first", "only in the second", "not compared"
OUTCOMES: tuple[str, ...] = (EQUAL, ROUNDING, LOW_RANK, CHANGED, RESHAPED, LEFT, RIGHT, UNREAD)
MARKS: dict[str, str] = dict(zip(OUTCOMES, ".~L#x<>?", strict=True))
LAYER = re.compile(r"(.*\.(?:layers|blocks))\.(\d+)\.(.+)")
MOST = 64  # rank that is looked for, unless another is asked for
SHOWN = 20  # lines of changed tensors in the table; `to_dict` has all


@dataclass(frozen=True)
class TensorChange:
    """What became of one tensor; shapes and dtypes are those of the first and of the second, "" where it is not there.

    `share`, `largest` and `relative` are those of `low_rank.Difference`; `rank` that of the change, where it is low.
    """

    name: str
    outcome: str
    shapes: tuple[tuple[int, ...] | None, tuple[int, ...] | None]
    dtypes: tuple[str, str]
    share: float | None = None
    largest: float | None = None
    relative: float | None = None
    rank: int | None = None


@dataclass(frozen=True)
class Comparison:
    """Every tensor of two checkpoints, in exactly one place; `note` says what was left out, "" for nothing."""

    first: str
    second: str
    tensors: tuple[TensorChange, ...]
    note: str = ""

    @property
    def counts(self) -> dict[str, int]:
        """Tensors of each outcome, in the order of `OUTCOMES`; those that do not occur are left out."""
        found = Counter(t.outcome for t in self.tensors)
        return {outcome: found[outcome] for outcome in OUTCOMES if found[outcome]}

    @property
    def adapters(self) -> dict[str, tuple[int, ...]]:
        """Name of a tensor within its layer -> the ranks by which it was changed, ascending, each once."""
        ranks = defaultdict(set)
        for tensor in self.tensors:
            if tensor.rank is not None:
                layer = LAYER.fullmatch(tensor.name)
                ranks[layer[3] if layer else tensor.name].add(tensor.rank)
        return {name: tuple(sorted(found)) for name, found in sorted(ranks.items())}

    @property
    def verdict(self) -> str:
        """What the second is to the first, in a sentence."""
        counts, n = self.counts, len(self.tensors)
        if counts.get(EQUAL, 0) == n:
            return f"all {n} tensors are equal"
        others = set(counts) - {EQUAL, ROUNDING}
        if not others:
            return f"{counts[ROUNDING]} of {n} tensors moved by one step of their type at most: rounding, nothing else"
        if others == {LOW_RANK}:
            return f"{counts[LOW_RANK]} of {n} tensors changed by a low rank, no other did: a merged LoRA"
        return f"{n - counts.get(EQUAL, 0)} of {n} tensors are not equal"

    @property
    def exit_status(self) -> int:
        """0 if all is equal, else 1."""
        return 0 if set(self.counts) <= {EQUAL} else 1

    def to_dict(self) -> dict:
        """All of it as plain JSON types, with the derived facts."""
        return asdict(self) | {"counts": self.counts, "verdict": self.verdict, "adapters": self.adapters,
                               "exit_status": self.exit_status}  # fmt: skip

    def table(self) -> str:
        """Aligned text for a terminal: the verdict, counts per component, maps of the layers, what changed most."""
        return "\n\n".join(filter(None, [
            f"{self.first}\n{self.second}\n{self.verdict}", _columns(self.tensors), self.map(), self._adapter_lines(),
            self._changes(), self.note,
        ]))  # fmt: skip

    def map(self) -> str:
        """A mark for each tensor of each stack: tensors of a layer downwards, layers to the right."""
        stacks: dict[str, dict[str, dict[int, str]]] = defaultdict(lambda: defaultdict(dict))
        for tensor in self.tensors:
            if layer := LAYER.fullmatch(tensor.name):
                stacks[layer[1]][layer[3]][int(layer[2])] = MARKS[tensor.outcome]
        lines = []
        for stack, rows in stacks.items():
            if all(mark == MARKS[EQUAL] for row in rows.values() for mark in row.values()):
                continue
            last, width = max(i for row in rows.values() for i in row), max(map(len, rows))
            lines.append(f"{stack} (layers 0 to {last})")
            for name, row in rows.items():
                lines.append(f"  {name:{width}}  {''.join(row.get(i, ' ') for i in range(last + 1))}")
        legend = "  ".join(f"{MARKS[outcome]} {outcome}" for outcome in self.counts)
        return "\n".join([*lines, legend]) if lines else ""

    def _adapter_lines(self) -> str:
        lines = [f"  {name}: rank {', '.join(map(str, ranks))}" for name, ranks in self.adapters.items()]
        return "\n".join(["Changes of low rank:", *lines]) if lines else ""

    def _changes(self) -> str:
        unlike = [t for t in self.tensors if t.outcome != EQUAL]
        unlike.sort(key=lambda t: -(t.relative if t.relative is not None else float("inf")))
        lines = [f"  {printable(t.name)}: {_said_of(t)}" for t in unlike[:SHOWN]]
        more = len(unlike) - SHOWN
        lines += [f"  ... and {more} more (all of them in the JSON)"] if more > 0 else []
        return "\n".join(["Not equal, most changed first:", *lines]) if unlike else ""


def compare_checkpoints(
    first: str | Path, second: str | Path, *, rank: int = MOST, rename: Mapping[str, str] | None = None
) -> Comparison:
    """Compare the tensors of two checkpoints, in memory that does not grow with them.

    Parameters
    ----------
    first, second : str or Path
        Folders, safetensors files or index files. Of folders with a converted token2wav its nets are compared too; they
        may be such folders themselves.
    rank : int >= 0
        Highest rank of a change that is looked for; 0 looks for none, which saves most of the time where much changed.
    rename : mapping of str to str, optional
        Name in the second to name in the first, as `validate_weights` takes it.

    Raises
    ------
    WeightsError
        One of them cannot be read or trusted.
    ConfigError
        `rank` is no whole number from 0 on.
    """
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 0:
        raise ConfigError(f"rank: expected a whole number from 0 on, found {rank!r:.80}")
    a, b = _tensors(first, None), apply_rename(_tensors(second, rename), rename)
    nets, others = _nets(first), _nets(second)
    note = ""
    if nets and others:
        a, b = a | nets, b | others
    elif nets or others:
        note = f"token2wav: not compared, since it is converted beside {first if nets else second} alone"
    names = [*a, *(name for name in b if name not in a)]
    changes = tuple(_compared(name, a.get(name), b.get(name), rank) for name in names)
    return Comparison(str(first), str(second), changes, note)


def _tensors(path: str | Path, rename: Mapping[str, str] | None) -> dict[str, TensorInfo]:
    """Of the language model; nothing of the folder of token2wav itself."""
    return {} if converted_folder(path) == Path(path) else read_tensors(path, rename)


def _nets(path: str | Path) -> dict[str, TensorInfo]:
    """Of the nets of token2wav, as reports name them; nothing where they are not converted."""
    home = converted_folder(path)
    if home is None:
        return {}
    manifest = read_manifest(home)
    return prefixed({component: net_records(manifest, component) for component in TOKEN2WAV})


def _compared(name: str, a: TensorInfo | None, b: TensorInfo | None, most: int) -> TensorChange:
    shapes, dtypes = (a and a.shape, b and b.shape), (a.dtype if a else "", b.dtype if b else "")
    if a is None or b is None:
        return TensorChange(name, RIGHT if a is None else LEFT, shapes, dtypes)
    if a.shape != b.shape:
        return TensorChange(name, RESHAPED, shapes, dtypes)
    if not all(usable(dtype) or dtype in FLOATS for dtype in (a.dtype, b.dtype)):
        return TensorChange(name, UNREAD, shapes, dtypes)
    pair = Pair(a, b)
    found = pair.measure()
    if not found.share:
        return TensorChange(name, EQUAL, shapes, dtypes, 0.0, 0.0, 0.0)
    low = pair.low_rank(found, most) if most else None
    return TensorChange(name, _outcome(found, low), shapes, dtypes, found.share, found.largest, found.relative, low)


def _outcome(found: Difference, low: int | None) -> str:
    return LOW_RANK if low is not None else ROUNDING if found.one_step else CHANGED


def _said_of(t: TensorChange) -> str:
    if t.outcome == RESHAPED:
        return f"{t.shapes[0]} and {t.shapes[1]}"
    if t.outcome in (LEFT, RIGHT):
        return t.outcome
    if t.outcome == UNREAD:
        return f"{t.dtypes[0]} and {t.dtypes[1]}, which are not compared"
    by = "not finite" if t.relative is None else f"by {t.relative:.2e} of its norm"
    rank = "" if t.rank is None else f", rank {t.rank}"
    return f"{t.outcome} {by}{rank}; {t.share:.1%} of its values, {t.largest:.2e} at most"


def _columns(tensors: Iterable[TensorChange]) -> str:
    parts: dict[str, Counter[str]] = defaultdict(Counter)
    for tensor in tensors:
        parts[component_of(tensor.name)][tensor.outcome] += 1
    used = [outcome for outcome in OUTCOMES if any(part[outcome] for part in parts.values())]
    rows: list[Sequence[str]] = [["component", *used]]
    rows += [[name, *(str(part[outcome]) for outcome in used)] for name, part in parts.items()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *cells in rows:
        counts = (cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
        lines.append("  ".join([name.ljust(widths[0]), *counts]))
    return "\n".join(lines)
