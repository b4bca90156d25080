"""Word and character error rates: what counts as a word, how errors are counted, and rates over many utterances.

Texts are normalised once (`normalise`), then aligned by jiwer with the smallest number of edits. Errors are
substitutions, deletions and insertions.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path

import jiwer

from ..errors import DataError


def normalise(text: str) -> str:
    """Text as it is scored: words in lower case, parted by single spaces.

    NFKC, lower case, curly quotes made straight, hyphens and dashes to spaces, all other punctuation dropped but
    apostrophes inside words. Numerals and abbreviations stay as they are written.

    >>> normalise("Don't -- I said: “FORTY-TWO”!")
    "don't i said forty two"
    """
    text = unicodedata.normalize("NFKC", text).lower().replace("’", "'").replace("‘", "'")
    text = re.sub(r"[-‐-―_/]", " ", text)
    text = re.sub(r"[^\w\s']", "", text)
    text = re.sub(r"(?<!\w)'|'(?!\w)", "", text)
    return " ".join(text.split())


def count_errors(reference: str, hypothesis: str) -> tuple[int, int]:
    """(words in the reference, word errors) after normalising; all words count as errors where none were spoken."""
    reference, hypothesis = normalise(reference), normalise(hypothesis)
    if not reference:
        return 0, len(hypothesis.split())
    found = jiwer.process_words(reference, hypothesis)
    return len(reference.split()), found.substitutions + found.deletions + found.insertions


def count_char_errors(reference: str, hypothesis: str) -> tuple[int, int]:
    """(characters in the reference, character errors): as `count_errors`; a space between words is a character."""
    reference, hypothesis = normalise(reference), normalise(hypothesis)
    if not reference:
        return 0, len(hypothesis)
    found = jiwer.process_characters(reference, hypothesis)
    return len(reference), found.substitutions + found.deletions + found.insertions


def wer(reference: str | Iterable[str], hypothesis: str | Iterable[str]) -> float:
    """Word error rate: all errors over all words of the references, after normalising.

    >>> wer("One, two, three.", "one too three")
    0.3333333333333333

    Parameters
    ----------
    reference, hypothesis : what was said and what was recognised: two texts, or two sequences of as many texts.

    Returns
    -------
    float from 0; above 1 where more is inserted than was said, NaN where the references hold no word.

    Raises
    ------
    DataError : one is a text and the other is not, or the sequences differ in length.
    """
    return _rate(count_errors, reference, hypothesis)


def cer(reference: str | Iterable[str], hypothesis: str | Iterable[str]) -> float:
    """Character error rate, as `wer`, with single spaces counted between words."""
    return _rate(count_char_errors, reference, hypothesis)


def _rate(
    count: Callable[[str, str], tuple[int, int]], reference: str | Iterable[str], hypothesis: str | Iterable[str]
) -> float:
    if isinstance(reference, str) != isinstance(hypothesis, str):
        raise DataError(
            "an error rate needs two texts or two sequences of texts, found "
            f"{type(reference).__name__} and {type(hypothesis).__name__}"
        )
    references = [reference] if isinstance(reference, str) else list(reference)
    hypotheses = [hypothesis] if isinstance(hypothesis, str) else list(hypothesis)
    if len(references) != len(hypotheses):
        raise DataError(
            f"an error rate needs a hypothesis for each reference, found {len(references)} references and "
            f"{len(hypotheses)} hypotheses"
        )
    return error_rate(map(count, references, hypotheses))


def error_rate(pairs: Iterable[tuple[int, int]]) -> float:
    """All errors over all units of (units, errors) pairs: WER or CER of a set. NaN if the references were empty."""
    pairs = list(pairs)
    units = sum(n for n, _ in pairs)
    return sum(errors for _, errors in pairs) / units if units else math.nan


def read_words(path: str | Path) -> set[str]:
    """The words of a `words.txt` (a word, a tab and its count per line), normalised.

    Raises
    ------
    DataError : the file is missing, or is no text.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
        return {word for line in lines for word in normalise(line.split("\t")[0]).split()}
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not readable as a list of words ({error})") from None
