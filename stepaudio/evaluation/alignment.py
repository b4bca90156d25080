"""Errors one by one: a reference and a hypothesis aligned word by word, with the segment of each word."""

from __future__ import annotations

import html
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import groupby
from typing import overload

import jiwer

from ..choices import alternatives, shown
from ..errors import DataError, one_line
from ..text.scripts import is_unspaced
from .normalisers import OURS, normaliser
from .word_errors import Normalise, units

EQUAL, SUBSTITUTION, DELETION, INSERTION = "equal", "substitution", "deletion", "insertion"
KINDS = (SUBSTITUTION, DELETION, INSERTION)
MARKS = {EQUAL: "", SUBSTITUTION: "S", DELETION: "D", INSERTION: "I"}
OF_JIWER = {"equal": EQUAL, "substitute": SUBSTITUTION, "delete": DELETION, "insert": INSERTION}
WORDS, MIXED = "wer", "mixed"  # units of an alignment, named as the rates that count them
NEAR = 4  # units shown around an error
LONGEST_RUN = 12  # insertions or deletions in a row; of more, the first half is shown
LONGEST_WORD = 30  # characters
WIDTH = 96  # columns

Span = tuple[float, float, str]  # start and end in seconds, and its part of the hypothesis
Confusion = tuple[str | None, str | None, int]  # reference, hypothesis (None for nothing), how often


@dataclass(frozen=True)
class Edit:
    """A word or character of the reference, and what the hypothesis has in its place.

    Parameters
    ----------
    kind : "equal", "substitution", "deletion" (in the reference alone) or "insertion" (in the hypothesis alone).
    reference, hypothesis : None where there is nothing.
    start, end : seconds of the segment that holds it, None where the segments are not known. A deletion lies somewhere
        between its neighbours.
    """

    kind: str
    reference: str | None
    hypothesis: str | None
    start: float | None = None
    end: float | None = None


@dataclass(frozen=True)
class Alignment(Sequence[Edit]):
    """Reference and hypothesis side by side, with as few errors as possible. Printed, it shows the errors.

    Where several alignments have as few, which words count as substituted is a choice of the aligner; how many errors
    there are is not.
    """

    edits: tuple[Edit, ...]

    @overload
    def __getitem__(self, index: int) -> Edit: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Edit, ...]: ...
    def __getitem__(self, index: int | slice) -> Edit | tuple[Edit, ...]:
        return self.edits[index]

    def __len__(self) -> int:
        return len(self.edits)

    @cached_property
    def kinds(self) -> Counter[str]:
        """How many edits there are of each kind."""
        return Counter(edit.kind for edit in self.edits)

    @property
    def substitutions(self) -> int:
        """Units of the reference that are others in the hypothesis."""
        return self.kinds[SUBSTITUTION]

    @property
    def deletions(self) -> int:
        """Units of the reference that the hypothesis lacks."""
        return self.kinds[DELETION]

    @property
    def insertions(self) -> int:
        """Units of the hypothesis that the reference lacks."""
        return self.kinds[INSERTION]

    @property
    def errors(self) -> int:
        """All three together."""
        return sum(self.kinds[kind] for kind in KINDS)

    @property
    def units(self) -> int:
        """Words (or characters, where a script has no blanks) of the reference."""
        return len(self.edits) - self.insertions

    def confusions(self) -> list[Confusion]:
        """(reference, hypothesis, how often) of all errors, the most frequent first."""
        return most_frequent([self])

    def to_list(self) -> list[dict]:
        """The edits as plain dicts."""
        return [asdict(edit) for edit in self.edits]

    def text(self, width: int = WIDTH, near: int | None = NEAR) -> str:
        """The lines that `print` shows: reference, hypothesis, and S, D or I below each error, with its times.

        Parameters
        ----------
        width : columns of a line, 40 at least.
        near : how many units around an error are shown; None shows all of them.
        """
        lines: list[str] = []
        for span, cells in _rows(_cells(self.edits, near), max(width, 40) - len(LABELS[0])):
            if span is not None:
                lines.append(f"  {span[0]:.1f} to {span[1]:.1f} s")
            lines += _columns(cells)
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.text() or "  (no errors)"

    def _repr_html_(self) -> str:
        return f"<p>{' '.join(map(_html, self.edits))}</p>"


def most_frequent(alignments: Iterable[Alignment]) -> list[Confusion]:
    """(reference, hypothesis, how often) of the errors of all alignments, most frequent first, None for nothing."""
    found = Counter((e.reference, e.hypothesis) for alignment in alignments for e in alignment if e.kind != EQUAL)
    order = sorted(found.items(), key=lambda item: (-item[1], item[0][0] or "", item[0][1] or ""))
    return [(*pair, n) for pair, n in order]


def align(
    reference: str,
    hypothesis: str,
    *,
    normalizer: str = OURS,
    language: str | None = None,
    unit: str = "auto",
    segments: Sequence[Span] = (),
) -> Alignment:
    """Align a reference with a hypothesis.

    >>> print(align("one two three", "one too three four"))
        ref one two three ****
        hyp one too three four
                S         I

    Parameters
    ----------
    reference, hypothesis : the two texts.
    normalizer, language : as in `normalisers.normaliser`.
    unit : "wer" (words), "mixed" (characters of scripts without blanks, words elsewhere), or "auto": the second where
        the reference holds such a script.
    segments : (start, end, text) in seconds, in order: the parts of the hypothesis.

    Raises
    ------
    DataError : an unknown unit. ConfigError : as `normalisers.check_normalizer`.
    """
    if unit not in (WORDS, MIXED, "auto"):
        raise DataError(f"unit: expected {alternatives((WORDS, MIXED, 'auto'))}, found {shown(unit)}")
    mixed = is_unspaced(reference) if unit == "auto" else unit == MIXED
    by = normaliser(normalizer, reference, language)
    right, found = _units(reference, by, mixed), _units(hypothesis, by, mixed)
    owners = _owners(found, [_units(text, by, mixed) for _, _, text in segments])
    edits: list[Edit] = []
    last, n_found = 0, 0  # segment of the hypothesis's last unit so far, and how many units it has had
    for kind, i, j in _pairs(right, found):
        first = last
        if j is not None and owners:
            first = last = owners[j]
        until = owners[n_found] if j is None and n_found < len(owners) else last if j is not None else len(segments) - 1
        n_found += j is not None
        where = (segments[first][0], segments[until][1]) if segments else (None, None)
        edits.append(Edit(kind, None if i is None else right[i], None if j is None else found[j], *where))
    return Alignment(tuple(edits))


def _units(text: str, by: Normalise, mixed: bool) -> list[str]:
    return units(text, by) if mixed else by(text).split()


def _pairs(reference: list[str], hypothesis: list[str]) -> list[tuple[str, int | None, int | None]]:
    """(kind, index into the reference, into the hypothesis) of a smallest number of edits, in order."""
    if not reference:
        return [(INSERTION, None, j) for j in range(len(hypothesis))]
    found: list[tuple[str, int | None, int | None]] = []
    for chunk in jiwer.process_words(" ".join(reference), " ".join(hypothesis)).alignments[0]:
        kind = OF_JIWER[chunk.type]
        i, j = chunk.ref_start_idx, chunk.hyp_start_idx
        for k in range(max(chunk.ref_end_idx - i, chunk.hyp_end_idx - j)):
            found.append((kind, None if kind == INSERTION else i + k, None if kind == DELETION else j + k))
    return found


def _owners(hypothesis: list[str], parts: list[list[str]]) -> list[int]:
    """Index of the segment of each unit of the hypothesis.

    A normaliser may join what lies in two segments ("twenty", "one dollars"), so the parts are aligned with the whole.
    """
    of_parts = [k for k, part in enumerate(parts) for _ in part]
    flat = [unit for part in parts for unit in part]
    if flat == hypothesis or not of_parts:
        return of_parts if flat == hypothesis else [0] * len(hypothesis) if parts else []
    owners, last = [0] * len(hypothesis), 0
    for _, i, j in _pairs(flat, hypothesis):
        last = last if i is None else of_parts[i]
        if j is not None:
            owners[j] = last
    return owners


# --- shown in columns -----------------------------------------------------------------------------------------------

Cell = tuple[str, str, str, tuple[float, float] | None]  # reference, hypothesis, mark, span
LABELS = ("    ref", "    hyp", "       ")
FAR = ("…", "…")  # shown in the place of what is right and far from errors


def _cells(edits: Sequence[Edit], near: int | None) -> list[Cell]:
    """What is shown of each edit; "…" for what is right and far from errors, and for the rest of long runs."""
    wrong = [i for i, edit in enumerate(edits) if edit.kind != EQUAL]
    close = {k for i in wrong for k in range(i - (near or 0), i + (near or 0) + 1)}
    cells: list[Cell] = []
    for kind, run in groupby(range(len(edits)), lambda i: edits[i].kind):
        places = list(run)
        shortened = kind in (DELETION, INSERTION) and len(places) > LONGEST_RUN
        for i in places[: LONGEST_RUN // 2] if shortened else places:
            if near is None or i in close:
                cells.append(_cell(edits[i]))
            elif wrong and (not cells or cells[-1][:2] != FAR):
                cells.append((*FAR, "", _span(edits[i])))
        if shortened:
            more, span = f"(+{len(places) - LONGEST_RUN // 2})", _span(edits[places[-1]])
            cells.append((more, "…", "D", span) if kind == DELETION else ("…", more, "I", span))
    return cells


def _cell(edit: Edit) -> Cell:
    texts = [_printable(text) for text in (edit.reference, edit.hypothesis)]
    wide = "*" * max(map(columns, texts))
    return texts[0] or wide, texts[1] or wide, MARKS[edit.kind], _span(edit)


def _span(edit: Edit) -> tuple[float, float] | None:
    return None if edit.start is None or edit.end is None else (edit.start, edit.end)


def _rows(cells: list[Cell], width: int) -> list[tuple[tuple[float, float] | None, list[Cell]]]:
    """Cells in lines: a new one where the segment changes or the line is full; its times where they are new."""
    rows: list[tuple[tuple[float, float] | None, list[Cell]]] = []
    row: list[Cell] = []
    used, here = 0, None
    for cell in cells:
        size = 1 + max(columns(text) for text in cell[:3])
        same = cell[3] == here or cell[3] is None
        if row and same and used + size > width:
            row, used = [], 0
            rows.append((None, row))
        elif not rows or not same:
            row, used, here = [], 0, cell[3]
            rows.append((here, row))
        row.append(cell)
        used += size
    return [(span, row) for span, row in rows if any(text != "…" for cell in row for text in cell[:2])]


def _columns(cells: list[Cell]) -> list[str]:
    texts = list(LABELS)
    for cell in cells:
        size = max(columns(text) for text in cell[:3])
        texts = [f"{line} {text}{' ' * (size - columns(text))}" for line, text in zip(texts, cell[:3], strict=True)]
    return [line.rstrip() for line in texts if line.strip()]


def _printable(text: str | None) -> str:
    """A word as a terminal can show it, the middle of one that no line would hold left out."""
    text = one_line(text or "")
    return text if len(text) <= LONGEST_WORD else f"{text[: LONGEST_WORD // 2]}…{text[-LONGEST_WORD // 2 :]}"


def columns(text: str) -> int:
    """How wide a terminal shows a text: Chinese takes two columns, marks above and below letters none."""
    return sum(_width(c) for c in text)


def _width(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _html(edit: Edit) -> str:
    if edit.kind == EQUAL:
        return html.escape(edit.reference or "")
    when = "" if edit.start is None else f" title='{edit.start:.1f} to {edit.end:.1f} s'"
    lost = f"<del style='color:#b00020'{when}>{html.escape(edit.reference)}</del>" if edit.reference else ""
    found = f"<ins style='color:#00695c'{when}>{html.escape(edit.hypothesis)}</ins>" if edit.hypothesis else ""
    return f"{lost}&nbsp;{found}" if lost and found else lost or found
