"""Scripts that put no blanks between words: which characters are theirs, and how parts of a text are joined."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

# Han, kana and bopomofo; inside a character class. 3005-3007 are iteration marks and the numeral zero.
_CJK = (
    "\u2e80-\u2fd5\u3005-\u3007\u3021-\u3029\u3031-\u3035\u3038-\u303b\u3041-\u3096\u3099-\u309f\u30a1-\u30fa"
    "\u30fc-\u312f\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f"
    "\U0001aff0-\U0001b16f\U00020000-\U0003ffff"
)
# Thai, Lao, Myanmar and Khmer put blanks between phrases alone.
_SOUTH_EAST = "\u0e01-\u0eff\u1000-\u109f\u1780-\u17ff\ua9e0-\ua9ff\uaa60-\uaa7f"
_WIDE_MARKS = "\u3001-\u3003\u3008-\u3011\u3014-\u301f\u30fb\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65"

UNSPACED = f"[{_CJK}{_SOUTH_EAST}]"  # a pattern: one character of a script without blanks between words
_ANY_UNSPACED = re.compile(UNSPACED)
_CJK_SEAM = re.compile(rf"[{_CJK}] [{_CJK}]|[{_WIDE_MARKS}] | [{_WIDE_MARKS}]")


# Languages -> how the names of their letters begin in Unicode.
_LETTERS = {
    "en": ("LATIN",), "de": ("LATIN",), "es": ("LATIN",), "fr": ("LATIN",), "it": ("LATIN",), "pt": ("LATIN",),
    "zh": ("LATIN", "CJK"), "ja": ("LATIN", "CJK", "HIRAGANA", "KATAKANA"), "ko": ("LATIN", "HANGUL"),
}  # fmt: skip


def foreign_letters(text: str, languages: Iterable[str]) -> str:
    """The letters of a text that none of these languages is written with, each once; "" if one is not known here.

    >>> foreign_letters("naïve 你好, 12", ["en"])
    '你好'
    """
    languages = tuple(languages)
    if not all(language in _LETTERS for language in languages):
        return ""
    known = tuple(name for language in languages for name in _LETTERS[language])
    letters = dict.fromkeys(filter(str.isalpha, text))
    return "".join(c for c in letters if not unicodedata.name(c, "").startswith(known))


def symbols(text: str) -> str:
    """The digits and symbols of a text that are read as words, each once.

    >>> symbols("It's 12 % of $5, or so!")
    '12%$5'
    """
    found = dict.fromkeys(c for c in text if c.isnumeric() or unicodedata.category(c)[0] == "S" or c in "%&@#*/")
    return "".join(c for c in found if not c.isalpha())  # Chinese numerals are letters


def is_unspaced(text: str) -> bool:
    """Whether a character of a script without blanks between words stands in the text."""
    return _ANY_UNSPACED.search(text) is not None


def join_texts(texts: Iterable[str]) -> str:
    """Parts of one text joined by blanks, but for seams at Chinese and Japanese, which have none.

    Empty parts are left out. Between a Chinese part and an English one stays a blank.

    >>> join_texts(["今天天气很好。", "我们去", "公园", "with Anna", "and you"])
    '今天天气很好。我们去公园 with Anna and you'
    """
    joined = ""
    for text in texts:
        blank = joined and text and not _CJK_SEAM.search(f"{joined[-1]} {text[0]}")
        joined += f" {text}" if blank else text
    return joined
