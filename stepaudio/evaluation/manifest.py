"""Manifests: tables of recordings and of what is said in each."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..choices import alternatives, hint, shown
from ..errors import DataError
from ..reading import read_text
from ..text.scripts import is_unspaced

TRANSCRIBE, TRANSLATE = "transcribe", "translate"
TASKS = (TRANSCRIBE, TRANSLATE)
TASK_NAMES = {"asr": TRANSCRIBE, "transcription": TRANSCRIBE, "translation": TRANSLATE, "st": TRANSLATE,
              "ast": TRANSLATE, "s2tt": TRANSLATE}  # fmt: skip
EXPECTED = "expected a table with the columns file and text"
LANGUAGES = {
    "english": "en",
    "chinese": "zh",
    "mandarin": "zh",
    "cmn": "zh",
    "eng": "en",
    "jpn": "ja",
    "japanese": "ja",
}
KANA = re.compile("[\u3041-\u30ff]")


@dataclass(frozen=True)
class Clip:
    """A line of a manifest: a recording, and its reference text, "" where nobody speaks.

    Parameters
    ----------
    file : the recording.
    text : what is said in it or, if the task is to translate, what the translation should be.
    task : "transcribe" or "translate".
    language : of the text, as ISO 639 has it ("en", "zh"); None where nobody says.

    Raises
    ------
    DataError : the text is none (a text that nobody gave is not silence), or an unknown task.
    """

    file: Path
    text: str
    task: str = TRANSCRIBE
    language: str | None = None

    def __post_init__(self):
        if not isinstance(self.text, str):
            raise DataError(
                f'{self.file}: expected the text that is said, "" where nobody speaks, found {self.text!r}; leave out '
                "recordings that nobody has written down"
            )
        if self.task not in TASKS:
            raise DataError(
                f"{self.file}: task: expected {alternatives(TASKS)}, found {shown(self.task)}{hint(self.task, TASKS)}"
            )
        object.__setattr__(self, "file", Path(self.file))
        object.__setattr__(self, "language", language_code(self.language))

    @property
    def has_speech(self) -> bool:
        """Whether somebody speaks: the text is not empty."""
        return bool(self.text.strip())

    @property
    def target(self) -> str:
        """Language of the text: as given, else by its letters, Chinese, Japanese or English."""
        return self.language or ("ja" if KANA.search(self.text) else "zh" if is_unspaced(self.text) else "en")


def language_code(name: str | None) -> str | None:
    """The ISO 639 code of a language as manifests name it; None for none.

    >>> language_code("zh-CN"), language_code("English"), language_code(" ")
    ('zh', 'en', None)
    """
    word = re.split("[-_]", (name or "").strip().lower())[0]
    return LANGUAGES.get(word, word) or None


def read_manifest(path: str | Path, task: str | None = TRANSCRIBE) -> list[Clip]:
    """A tab- or comma-separated table with at least the columns `file` and `text`; paths are relative to the table.

    An empty text says that nobody speaks. A line that ends before its text is refused. A column `language` names the
    language of what is said, `to` that of a translation.

    Parameters
    ----------
    task : "transcribe"; "translate" takes the column `translation`, or `text` where there is none; None leaves it to
        the table, which is one of translations if it has the column `translation`, or says so in a column `task`.

    Raises
    ------
    DataError : the table is missing, has no such columns, no line, or a line that does not fit its head.
    """
    path = Path(path)
    text = read_text(path, DataError, EXPECTED)
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
        column = "translation" if "translation" in names and task != TRANSCRIBE else "text"
        if [names.count(name) for name in ("file", column)] != [1, 1]:
            found = ", ".join(names)[:200] or "nothing"
            raise DataError(f"{path}: expected columns file and {column}, each once, found {found}")
        default = TRANSLATE if column == "translation" else TRANSCRIBE
        clips = [_clip(path, reader.line_num, row, column, task, default) for row in reader]
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num}: not readable as a table ({error})") from None
    if not clips:
        raise DataError(f"{path}: the table has a head but no line")
    return clips


def _clip(path: Path, line: int, row: dict, column: str, task: str | None, default: str) -> Clip:
    """One line. A cell too many is most often an unquoted comma in the text, which would cut the text short."""
    if None in row:
        raise DataError(f"{path}: line {line}: more cells than the head has names; quote a text that holds commas")
    if not row["file"]:
        raise DataError(f"{path}: line {line}: the column file is empty")
    if row[column] is None:
        raise DataError(
            f"{path}: line {line}: ends before the column {column}; a text that is missing is not silence: say what is "
            "said, or end the line with an empty cell where nobody speaks"
        )
    word = (row.get("task") or "").strip().lower()
    task = task or TASK_NAMES.get(word, word) or default
    if task not in TASKS:
        raise DataError(f"{path}: line {line}: task: expected {alternatives(TASKS)}, found {shown(task)}")
    return Clip(path.parent / row["file"], row[column], task, row.get("to" if task == TRANSLATE else "language"))


def one_task(clips: Iterable[Clip]) -> str:
    """The task that all clips have. Raises `DataError` where some are to be translated and others are not."""
    found = {clip.task for clip in clips}
    if len(found) > 1:
        raise DataError("some clips are to be transcribed and others translated: score them as two tables")
    return min(found, default=TRANSCRIBE)


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
