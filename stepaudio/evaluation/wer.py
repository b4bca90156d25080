"""Normalised words and their errors."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

import jiwer

from ..errors import DataError


def normalise(text: str) -> str:
    """Lower case, NFKC, curly quotes made straight, hyphens and dashes to spaces, all other punctuation dropped but
    apostrophes inside words, white space single. Numerals and abbreviations stay as they are written.

    >>> normalise("Don't -- I said: “FORTY-TWO”!")
    "don't i said forty two"
    """
    text = unicodedata.normalize("NFKC", text).lower().replace("’", "'").replace("‘", "'")
    text = re.sub(r"[-‐-―_/]", " ", text)
    text = re.sub(r"[^\w\s']", "", text)
    text = re.sub(r"(?<!\w)'|'(?!\w)", "", text)
    return " ".join(text.split())


def count_errors(expected: str, heard: str) -> tuple[int, int]:
    """(words expected, word errors) after normalising; words heard where none were said count as errors."""
    want, got = normalise(expected), normalise(heard)
    if not want:
        return 0, len(got.split())
    found = jiwer.process_words(want, got)
    return len(want.split()), found.substitutions + found.deletions + found.insertions


def read_words(path: str | Path) -> set[str]:
    """The words of a `words.txt` (a word, a tab and its count per line), normalised."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
        return {word for line in lines for word in normalise(line.split("\t")[0]).split()}
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not readable as a list of words ({error})") from None
