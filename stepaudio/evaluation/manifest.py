"""Manifests: tables or JSON lines of recordings and of what is said in each."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..choices import alternatives, hint, shown
from ..errors import DataError
from ..reading import parse_object, read_text
from ..text.scripts import is_unspaced

TRANSCRIBE, TRANSLATE = "transcribe", "translate"
TASKS = (TRANSCRIBE, TRANSLATE)
TASK_NAMES = {"asr": TRANSCRIBE, "transcription": TRANSCRIBE, "translation": TRANSLATE, "st": TRANSLATE,
              "ast": TRANSLATE, "s2tt": TRANSLATE}  # fmt: skip
EXPECTED = "expected a table with the columns file and text, or JSON lines with these keys"
# What other tools call them. Of several recordings the first here is read; several texts, none called text: refused.
FILES = ("file", "audio", "audio_filepath", "audio_path", "path", "file_name", "wav")
TEXTS = ("text", "sentence", "transcript", "transcription", "txt", "normalized_text")
SPOKEN, WRITTEN = ("language", "lang", "locale"), ("to", "target_lang")
JSON_LINES = (".jsonl", ".ndjson", ".json")
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
    """A tab- or comma-separated table with at least the columns `file` and `text`, or JSON lines with these keys.

    Paths are relative to the manifest; an empty text says that nobody speaks. The names that other tools give the two
    (`FILES`, `TEXTS`) are understood, and a recording may be an object with `path`. `language` names the language of
    what is said, `to` that of a translation; what else a line has is left alone. A line without a text is refused, and
    so is one that means a part of its recording (`offset`).

    Parameters
    ----------
    path : JSON lines are known by their name (.jsonl, .ndjson, .json) or by the brace that begins them.
    task : "transcribe"; "translate" takes `translation`, or the text where there is none; None leaves it to the
        manifest, which is one of translations if it has `translation`, or says so by `task`.

    Raises
    ------
    DataError : the manifest is missing, names no recording or text, has no line, or a line that does not fit.
    """
    path = Path(path)
    text = read_text(path, DataError, EXPECTED)
    is_json = path.suffix.lower() in JSON_LINES or text.lstrip().startswith("{")
    clips = [_clip(path.parent, *line, task) for line in (_objects if is_json else _cells)(path, text, task)]
    if not clips:
        raise DataError(f"{path}: {'holds' if is_json else 'the table has a head but'} no line; {EXPECTED}")
    return clips


Line = tuple[str, dict[str, Any], str, str]  # "file: line n", for messages; its cells; names of recording and text


def _cells(path: Path, text: str, task: str | None) -> Iterator[Line]:
    """The lines of a table. A cell too many is most often an unquoted comma in the text, which would cut it short."""
    comma = "\t" not in (text.splitlines()[0] if text.strip() else "")
    reader = csv.DictReader(
        io.StringIO(text, newline=""),
        delimiter="," if comma else "\t",
        quoting=csv.QUOTE_MINIMAL if comma else csv.QUOTE_NONE,
        strict=True,  # a quote that never closes would swallow the lines behind it
    )
    try:
        file, column = _names(f"{path}", list(reader.fieldnames or ()), task)
        for row in reader:
            what = f"{path}: line {reader.line_num}"
            if None in row:
                raise DataError(f"{what}: more cells than the head has names; quote a text that holds commas")
            if row[column] is None:
                raise DataError(
                    f"{what}: ends before the column {column}; a text that is missing is not silence: say what is "
                    "said, or end the line with an empty cell where nobody speaks"
                )
            yield what, row, file, column
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num}: not readable as a table ({error})") from None


def _objects(path: Path, text: str, task: str | None) -> Iterator[Line]:
    """The lines of a file of JSON lines, without what is null in them."""
    for n, line in enumerate(text.split("\n"), 1):
        if line.strip():
            what = f"{path}: line {n}"
            row = parse_object(line.encode(), what, DataError, EXPECTED)
            row = {name: value for name, value in row.items() if value is not None}
            yield what, row, *_names(what, list(row), task)


def _names(what: str, names: Sequence[str], task: str | None) -> tuple[str, str]:
    """What recording and text are called among these names."""
    files = [name for name in FILES if name in names][:1]
    texts = [name for name in TEXTS if name in names]
    texts = texts[:1] if TEXTS[0] in texts else texts
    if "translation" in names and task != TRANSCRIBE:
        texts = ["translation"]
    if len(texts) > 1:
        raise DataError(f"{what}: two texts, {' and '.join(texts[:2])}; call the one that counts text")
    if not files or not texts or any(names.count(name) > 1 for name in (*files, *texts)):
        column = "translation" if "translation" in names and task != TRANSCRIBE else "text"
        found = ", ".join(names)[:200] or "nothing"
        raise DataError(f"{what}: expected columns file and {column}, each once, found {found}")
    return files[0], texts[0]


def _clip(folder: Path, what: str, row: dict[str, Any], file: str, column: str, task: str | None) -> Clip:
    """One line."""
    default = TRANSLATE if column == "translation" else TRANSCRIBE
    recording = row[file].get("path") if isinstance(row[file], dict) else row[file]
    if not recording or not isinstance(recording, str):
        raise DataError(f"{what}: {file}: expected the path of a recording, found {shown(recording)}")
    if not _is_zero(row.get("offset") or 0):
        raise DataError(
            f"{what}: offset {shown(row['offset'])}: means a part of {recording!r:.200}, and recordings are read "
            "whole; save the parts as files of their own"
        )
    word = _word(what, row, ("task",)).lower()
    task = task or TASK_NAMES.get(word, word) or default
    if task not in TASKS:
        raise DataError(f"{what}: task: expected {alternatives(TASKS)}, found {shown(task)}")
    if not isinstance(row[column], str):
        raise DataError(f"{what}: {column}: expected a text, found {shown(row[column])}")
    language = _word(what, row, WRITTEN if task == TRANSLATE else SPOKEN)
    return Clip(folder / recording, row[column], task, language)


def _is_zero(value: object) -> bool:
    try:
        return float(value) == 0  # type: ignore[arg-type]  # a table has words
    except (TypeError, ValueError, OverflowError):
        return False


def _word(what: str, row: dict[str, Any], names: Sequence[str]) -> str:
    """What a line says under the first of these names that it has; "" for none."""
    name = next((name for name in names if row.get(name) is not None), names[0])
    value = row.get(name) or ""
    if not isinstance(value, str):
        raise DataError(f"{what}: {name}: expected a word, found {shown(value)}")
    return value.strip()


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
