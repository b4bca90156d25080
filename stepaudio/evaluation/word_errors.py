"""Word, character and mixed error rates: what counts as a unit, how errors are counted, and rates over many utterances.

Texts are normalised once (`normalise`), then aligned by jiwer with the smallest number of edits. Errors are
substitutions, deletions and insertions.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path

import jiwer

from ..errors import DataError
from ..reading import read_text
from ..text.scripts import UNSPACED

# One character for each that means the same inside a word or a number. NFKC would take some of them apart.
ALIKE = {ord(c): "'" for c in "‘’‛ʼʻ´`′＇׳"} | {ord("٫"): ".", ord("٬"): ","}
# Marks and fillers without a shape: variation selectors, the grapheme joiner, Hangul fillers, inherent Khmer vowels.
SHAPELESS = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")
LETTER = r"[^\W\d_]"
ABBREVIATION = re.compile(rf"(?<![\w.'])(?:{LETTER}\.)+{LETTER}(?!\w)\.?|(?<![\w.'])(?:{LETTER}\.){{2,}}")
THOUSANDS = re.compile(r"(?<=\d),(?=(?:\d\d,)*\d{3}(?!\d))")
HEBREW_QUOTE = re.compile('(?<=[\u05d0-\u05ea])["\u05f4”“](?=[\u05d0-\u05ea])')
OUTSIDE = re.compile(r"(?<!\d)\.|\.(?!\d)|(?<![^\s'.])'|'(?![^\s'.])")
UNIT = re.compile(rf"{UNSPACED}|(?:(?!{UNSPACED})\S)+")
BLANK_BESIDE = re.compile(rf"(?<={UNSPACED}) | (?={UNSPACED})")


def normalise(text: str) -> str:
    """Text as it is scored: words in lower case, parted by single spaces.

    NFKC and lower case. Letters, digits and combining marks (vowel signs, tones, accents) are kept, and so are
    apostrophes inside words and decimal points; commas between thousands, points inside abbreviations, tatweel and
    invisible characters are dropped; all else parts words. Numerals and abbreviations stay as they are written.

    >>> normalise("Don't -- I said: “FORTY-TWO”! Wait…what?")
    "don't i said forty two wait what"
    """
    text = unicodedata.normalize("NFKC", text.translate(ALIKE)).translate(ALIKE).lower().replace("i\u0307", "i")  # "İ"
    text = unicodedata.normalize("NFKC", "".join(map(_visible, SHAPELESS.sub("", text))))
    text = HEBREW_QUOTE.sub("", THOUSANDS.sub("", text))
    text = ABBREVIATION.sub(lambda found: found[0].replace(".", "") + " ", text)
    text = OUTSIDE.sub(" ", "".join(map(_scored, text)))
    return " ".join(filter(None, map(_without_stray_marks, text.split())))


@lru_cache(1 << 14)
def _visible(character: str) -> str:
    """Format characters (joiners, soft hyphens, directions) are no part of a text; a blank of no width parts words."""
    if character == "\u200b":
        return " "
    return "" if character == "ـ" or unicodedata.category(character) == "Cf" else character


@lru_cache(1 << 14)
def _scored(character: str) -> str:
    """The character, or the blank or the nothing that stands for it."""
    kind = unicodedata.category(character)
    if kind[0] in "LN" or kind in ("Mn", "Mc") or character in "'.":
        return character
    return "" if kind == "Me" else " "


def _without_stray_marks(word: str) -> str:
    """Marks that follow no letter belong to nothing, and what stood behind them stands at the edge."""
    while word and (word[0] in "'." or unicodedata.category(word[0])[0] == "M"):
        word = word[1:]
    return word


def units(text: str) -> list[str]:
    """What a mixed error rate counts: characters of scripts without blanks between words, words elsewhere.

    Chinese, Japanese, Thai, Lao, Khmer and Burmese are written without blanks; Korean is not.

    >>> units("我喜欢 Python 3")
    ['我', '喜', '欢', 'python', '3']
    """
    return UNIT.findall(normalise(text))


def characters(text: str) -> str:
    """What a character error rate counts: the normalised text, without blanks beside scripts that have none."""
    return BLANK_BESIDE.sub("", normalise(text))


def count_errors(reference: str, hypothesis: str) -> tuple[int, int]:
    """(words in the reference, word errors) after normalising; all words count as errors where none were spoken."""
    return _count(normalise(reference).split(), normalise(hypothesis).split())


def count_char_errors(reference: str, hypothesis: str) -> tuple[int, int]:
    """(characters in the reference, character errors): as `count_errors`; a space between words is a character."""
    reference, hypothesis = characters(reference), characters(hypothesis)
    if not reference:
        return 0, len(hypothesis)
    found = jiwer.process_characters(reference, hypothesis)
    return len(reference), found.substitutions + found.deletions + found.insertions


def count_mixed_errors(reference: str, hypothesis: str) -> tuple[int, int]:
    """(units in the reference, errors): as `count_errors`, of `units`; the same where no character is one."""
    return _count(units(reference), units(hypothesis))


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
    """Character error rate, as `wer`, with single spaces counted between words that have them."""
    return _rate(count_char_errors, reference, hypothesis)


def mixed_error_rate(reference: str | Iterable[str], hypothesis: str | Iterable[str]) -> float:
    """Mixed error rate, as `wer`, with `units` counted: characters of Chinese, Japanese, Thai…, words elsewhere.

    >>> mixed_error_rate("今天天气很好", "今天天汽很好")
    0.16666666666666666
    """
    return _rate(count_mixed_errors, reference, hypothesis)


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
