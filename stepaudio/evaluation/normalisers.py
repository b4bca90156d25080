"""What is changed in a text before errors are counted: our own normaliser, Whisper's, or nothing but blanks."""

from __future__ import annotations

import importlib.util
import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache

from ..choices import alternatives, hint, shown
from ..errors import ConfigError, DataError

OURS, WHISPER, NONE = "ours", "whisper", "none"
NORMALIZERS = (OURS, WHISPER, NONE)
ENGLISH, BASIC = "english", "basic"  # the two of Whisper: with spellings, numbers and contractions, and without
INSTALL = 'pip install "stepaudio[scoring]"'

# One character for each that means the same inside a word or a number. NFKC would take some of them apart.
ALIKE = {ord(c): "'" for c in "‘’‛ʼʻ´`′＇׳"} | {ord("٫"): ".", ord("٬"): ","}
# Marks and fillers without a shape: variation selectors, the grapheme joiner, Hangul fillers, inherent Khmer vowels.
SHAPELESS = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")
LETTER = r"[^\W\d_]"
ABBREVIATION = re.compile(rf"(?<![\w.'])(?:{LETTER}\.)+{LETTER}(?!\w)\.?|(?<![\w.'])(?:{LETTER}\.){{2,}}")
THOUSANDS = re.compile(r"(?<=\d),(?=(?:\d\d,)*\d{3}(?!\d))")
HEBREW_QUOTE = re.compile('(?<=[\u05d0-\u05ea])["\u05f4”“](?=[\u05d0-\u05ea])')
OUTSIDE = re.compile(r"(?<!\d)\.|\.(?!\d)|(?<![^\s'.])'|'(?![^\s'.])")


def check_normalizer(name: str) -> str:
    """The name itself.

    Raises
    ------
    ConfigError : it is none of `NORMALIZERS`, or the library that it needs is not installed.
    """
    if not isinstance(name, str) or name not in NORMALIZERS:
        raise ConfigError(
            f"normalizer: expected {alternatives(NORMALIZERS)}, found {shown(name)}{hint(name, NORMALIZERS)}"
        )
    if name == WHISPER and not has_whisper():
        raise ConfigError(f"normalizer {WHISPER} needs the library whisper-normalizer, not installed here: {INSTALL}")
    return name


def has_whisper() -> bool:
    """Whether the library whisper-normalizer is installed."""
    return importlib.util.find_spec("whisper_normalizer") is not None


def normaliser(name: str = OURS, reference: str = "", language: str | None = None) -> Callable[[str], str]:
    """The function that makes a text ready to be scored: words parted by single blanks.

    Parameters
    ----------
    name : "ours" (`normalise`), "whisper" (that of the library whisper-normalizer), or "none" (blanks alone: case,
        punctuation and numerals count as they are written).
    reference, language : what was said and in which language (ISO 639, "en"), for `whisper_kind`; both sides of a
        comparison take the same function.

    Raises
    ------
    ConfigError : as `check_normalizer`.
    """
    if name == OURS:
        return normalise
    check_normalizer(name)
    return _blanks if name == NONE else _whisper(whisper_kind(reference, language))


def whisper_kind(reference: str, language: str | None = None) -> str:
    """Which of Whisper's two normalisers a text gets: "english" or "basic".

    By its language where that is known, else by its letters: English where all of them are Latin.
    """
    if language is not None:
        return ENGLISH if language == "en" else BASIC
    return ENGLISH if all(map(_is_latin, filter(str.isalpha, reference))) else BASIC


@lru_cache(1 << 14)
def _is_latin(letter: str) -> bool:
    return "LATIN" in unicodedata.name(letter, "") or letter in "ªº"


def _blanks(text: str) -> str:
    return " ".join(text.split())


@lru_cache(2)
def _whisper(kind: str) -> Callable[[str], str]:
    from whisper_normalizer.basic import BasicTextNormalizer
    from whisper_normalizer.english import EnglishTextNormalizer

    change: Callable[[str], str] = EnglishTextNormalizer() if kind == ENGLISH else BasicTextNormalizer()

    @lru_cache(1 << 12)  # a clip's texts are needed for words, characters and their alignment
    def changed(text: str) -> str:
        try:
            return _blanks(change(text))
        except Exception as error:  # whatever the library cannot read
            raise DataError(f"whisper-normalizer cannot read {shown(text)} ({error}); use normalizer ours") from None

    return changed


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
