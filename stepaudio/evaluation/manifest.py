"""Manifests: tables of recordings and of what is said in each."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..errors import DataError
from ..reading import read_text


@dataclass(frozen=True)
class Clip:
    """A line of a manifest: a recording, and its reference text, "" where nobody speaks.

    Raises
    ------
    DataError : the text is none: a text that nobody gave is not silence.
    """

    file: Path
    text: str

    def __post_init__(self):
        if not isinstance(self.text, str):
            raise DataError(
                f'{self.file}: expected the text that is said, "" where nobody speaks, found {self.text!r}; leave out '
                "recordings that nobody has written down"
            )
        object.__setattr__(self, "file", Path(self.file))


def read_manifest(path: str | Path) -> list[Clip]:
    """A tab- or comma-separated table with at least the columns `file` and `text`; paths are relative to the table.

    An empty text says that nobody speaks. A line that ends before its text is refused.

    Raises
    ------
    DataError : the table is missing, has no such columns, no line, or a line that does not fit its head.
    """
    path = Path(path)
    text = read_text(path, DataError, "expected a table with the columns file and text")
    head = text.splitlines()[0] if text.strip() else ""
    comma = "\t" not in head
    reader = csv.DictReader(
        io.StringIO(text, newline=""),
        delimiter="," if comma else "\t",
        quoting=csv.QUOTE_MINIMAL if comma else csv.QUOTE_NONE,
        strict=True,  # a quote that never closes would swallow the lines behind it
    )
    try:
        names = list(reader.fieldnames or ())
        if [names.count(name) for name in ("file", "text")] != [1, 1]:
            found = ", ".join(names)[:200] or "nothing"
            raise DataError(f"{path}: expected columns file and text, each once, found {found}")
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
    if row["text"] is None:
        raise DataError(
            f"{path}: line {line}: ends before the column text; a text that is missing is not silence: say what is "
            "said, or end the line with an empty cell where nobody speaks"
        )
    return Clip(path.parent / row["file"], row["text"])


def distinct_names(files: Iterable[Path]) -> list[str]:
    """The last name of each file, with as many folders before it as tell it from the others; a double is numbered.

    >>> distinct_names([Path("x/a/1.wav"), Path("x/b/1.wav"), Path("x/b/2.wav"), Path("x/b/2.wav")])
    ['a/1.wav', 'b/1.wav', '2.wav', '2.wav (2)']
    """
    files, n_parts = [Path(file) for file in files], {}
    for file in set(files):
        n_parts[file] = 1
    while True:
        known = Counter("/".join(file.parts[-n:]) for file, n in n_parts.items())
        short = [f for f, n in n_parts.items() if known["/".join(f.parts[-n:])] > 1 and n < len(f.parts)]
        if not short:
            break
        for file in short:
            n_parts[file] += 1
    seen, names = Counter(), []
    for file in files:
        seen[file] += 1
        name = "/".join(file.parts[-n_parts[file] :])
        names.append(name if seen[file] == 1 else f"{name} ({seen[file]})")
    return names
