"""Word, character and mixed error rates: what counts as a unit, how errors are counted, and rates over many utterances.

Texts are normalised once (`stepaudio.evaluation.normalisers`), then aligned by jiwer with the smallest number of
edits. Errors are substitutions, deletions and insertions.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import jiwer

from ..errors import DataError
from ..reading import read_text
from ..text.scripts import UNSPACED
from .normalisers import OURS, normalise, normaliser

UNIT = re.compile(rf"{UNSPACED}|(?:(?!{UNSPACED})\S)+")
BLANK_BESIDE = re.compile(rf"(?<={UNSPACED}) | (?={UNSPACED})")


Normalise = Callable[[str], str]


def units(text: str, by: Normalise = normalise) -> list[str]:
    """What a mixed error rate counts: characters of scripts without blanks between words, words elsewhere.

    Chinese, Japanese, Thai, Lao, Khmer and Burmese are written without blanks; Korean is not.

    >>> units("我喜欢 Python 3")
    ['我', '喜', '欢', 'python', '3']
    """
    return UNIT.findall(by(text))


def characters(text: str, by: Normalise = normalise) -> str:
    """What a character error rate counts: the normalised text, without blanks beside scripts that have none."""
    return BLANK_BESIDE.sub("", by(text))


def count_errors(reference: str, hypothesis: str, by: Normalise = normalise) -> tuple[int, int]:
    """(words in the reference, word errors) after `by`; all words count as errors where none were spoken."""
    return _count(by(reference).split(), by(hypothesis).split())


def count_char_errors(reference: str, hypothesis: str, by: Normalise = normalise) -> tuple[int, int]:
    """(characters in the reference, character errors): as `count_errors`; a space between words is a character."""
    reference, hypothesis = characters(reference, by), characters(hypothesis, by)
    if not reference:
        return 0, len(hypothesis)
    found = jiwer.process_characters(reference, hypothesis)
    return len(reference), found.substitutions + found.deletions + found.insertions


def count_mixed_errors(reference: str, hypothesis: str, by: Normalise = normalise) -> tuple[int, int]:
    """(units in the reference, errors): as `count_errors`, of `units`; the same where no character is one."""
    return _count(units(reference, by), units(hypothesis, by))


def _count(reference: list[str], hypothesis: list[str]) -> tuple[int, int]:
    if not reference:
        return 0, len(hypothesis)
    found = jiwer.process_words(" ".join(reference), " ".join(hypothesis))
    return len(reference), found.substitutions + found.deletions + found.insertions


def count_errors_of_beginning(reference: str, hypothesis: str) -> tuple[int, int]:
    """(words, word errors) against the beginning of the reference that fits best: the errors are a lower bound.

    For the hypothesis of a recording that was decoded up to an unknown word. What it missed at its end is not counted.
    """
    said, written = normalise(reference).split(), normalise(hypothesis).split()
    row = list(range(len(said) + 1))  # of the edit distance: errors of the words so far, against each beginning
    for i, word in enumerate(written, 1):
        row, above = [i], row
        for j, expected in enumerate(said, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (word != expected)))
    errors = min(row)
    return len(row) - 1 - row[::-1].index(errors), errors


Texts = str | Iterable[str]


def wer(reference: Texts, hypothesis: Texts, normalizer: str = OURS, language: str | None = None) -> float:
    """Word error rate: all errors over all words of the references, after normalising.

    >>> wer("One, two, three.", "one too three")
    0.3333333333333333

    Parameters
    ----------
    reference, hypothesis : what was said and what was recognised: two texts, or two sequences of as many texts.
    normalizer, language : as in `normalisers.normaliser`: "ours", "whisper" or "none".

    Returns
    -------
    float from 0; above 1 where more is inserted than was said, NaN where the references hold no word.

    Raises
    ------
    DataError : one is a text and the other is not, or the sequences differ in length.
    ConfigError : an unknown normaliser, or one whose library is not installed.
    """
    return _rate(count_errors, reference, hypothesis, normalizer, language)


def cer(reference: Texts, hypothesis: Texts, normalizer: str = OURS, language: str | None = None) -> float:
    """Character error rate, as `wer`, with single spaces counted between words that have them."""
    return _rate(count_char_errors, reference, hypothesis, normalizer, language)


def mixed_error_rate(reference: Texts, hypothesis: Texts, normalizer: str = OURS, language: str | None = None) -> float:
    """Mixed error rate, as `wer`, with `units` counted: characters of Chinese, Japanese, Thai…, words elsewhere.

    >>> mixed_error_rate("今天天气很好", "今天天汽很好")
    0.16666666666666666
    """
    return _rate(count_mixed_errors, reference, hypothesis, normalizer, language)


def _rate(
    count: Callable[[str, str, Normalise], tuple[int, int]],
    reference: Texts,
    hypothesis: Texts,
    normalizer: str,
    language: str | None,
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
    pairs = zip(references, hypotheses, strict=True)
    return error_rate(count(right, found, normaliser(normalizer, right, language)) for right, found in pairs)


def error_rate(pairs: Iterable[tuple[int, int]]) -> float:
    """All errors over all units of (units, errors) pairs: the rate of a set. NaN if the references were empty."""
    pairs = list(pairs)
    units = sum(n for n, _ in pairs)
    return sum(errors for _, errors in pairs) / units if units else math.nan


def read_words(path: str | Path) -> set[str]:
    """The words of a `words.txt` (a word, a tab and its count per line), normalised.

    Raises
    ------
    DataError : the file is missing, or is no text.
    """
    lines = read_text(path, DataError, "expected a list of words").splitlines()
    return {word for line in lines for word in normalise(line.split("\t")[0]).split()}
