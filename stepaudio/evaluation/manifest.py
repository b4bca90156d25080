"""Manifests: tables of recordings and of what is said in each."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

from ..errors import DataError


@dataclass(frozen=True)
class Clip:
    """A line of a manifest: a recording, and its reference text."""

    file: Path
    text: str


def read_manifest(path: str | Path) -> list[Clip]:
    """A tab- or comma-separated table with at least the columns `file` and `text`; paths are relative to the table.

    Raises
    ------
    DataError : the table is missing, has no such columns, no line, or a line that does not fit its head.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not readable as a table ({error})") from None
    head = text.splitlines()[0] if text.strip() else ""
    comma = "\t" not in head
    reader = csv.DictReader(
        io.StringIO(text, newline=""),
        delimiter="," if comma else "\t",
        quoting=csv.QUOTE_MINIMAL if comma else csv.QUOTE_NONE,
    )
    try:
        if not {"file", "text"} <= set(reader.fieldnames or ()):
            found = ", ".join(reader.fieldnames or ()) or "nothing"
            raise DataError(f"{path}: expected columns file and text, found {found}")
        clips = [_clip(path, reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num}: not readable as a table ({error})") from None
    if not clips:
        raise DataError(f"{path}: the table has a head but no line")
    return clips


def _clip(path: Path, line: int, row: dict) -> Clip:
    """One line. A cell too many is most often an unquoted comma in the text, which would cut the text short."""
    if None in row:
        raise DataError(f"{path}: line {line}: more cells than the head has names; quote a text that holds commas")
    if not row["file"]:
        raise DataError(f"{path}: line {line}: the column file is empty")
    return Clip(path.parent / row["file"], row["text"] or "")
