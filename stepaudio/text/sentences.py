"""Long texts into parts that a model reads well, divided where a reader would breathe. Knows no language."""

from __future__ import annotations

import re

from ..errors import ConfigError

MAX_CHARACTERS = 200  # longest part by default
SENTENCE = re.compile(r"[^\n]*?(?:[.!?…]+[\"'”’)\]]*(?=\s)|[。！？]+[”’」』）]*|\n|$)")
CLAUSE = re.compile(r".*?(?:[,;:—](?=\s)|[，；：、]|$)", re.DOTALL)


def cut_text(text: str, max_characters: int = MAX_CHARACTERS) -> list[str]:
    """Cut a text at the ends of sentences, as few times as the limit allows; a line break always cuts.

    A sentence over the limit is cut after commas and the like, then between words, and where there are none, anywhere.
    A full stop cuts only before white space, so "3.14" stays whole; "Mr. Smith" may be cut.

    Returns
    -------
    list of str
        Stripped, none empty, none over the limit; joined they are the text but for white space.

    Examples
    --------
    >>> cut_text("One. Two! Three and a half?", 10)
    ['One. Two!', 'Three and', 'a half?']
    """
    if not isinstance(max_characters, int) or max_characters < 1:
        raise ConfigError(f"max_characters: expected a whole number of at least 1, found {max_characters!r}")
    packed = []
    for line in text.splitlines():
        parts = _sizable(SENTENCE.findall(line), max_characters, (CLAUSE, re.compile(r"\S*\s*")))
        packed += _packed(parts, max_characters)
    return packed


def _sizable(parts: list[str], limit: int, finer: tuple[re.Pattern, ...]) -> list[str]:
    """The parts, those over the limit cut by the next finer pattern, at last anywhere."""
    found = []
    for part in parts:
        if len(part.strip()) <= limit:
            found.append(part)
        elif finer:
            found += _packed_raw(_sizable(finer[0].findall(part), limit, finer[1:]), limit)
        else:
            word, blank = part.rstrip(), part[len(part.rstrip()) :]
            found += [word[i : i + limit] for i in range(0, len(word), limit)]
            found[-1] += blank
    return found


def _packed_raw(parts: list[str], limit: int) -> list[str]:
    """Neighbours joined while they fit together."""
    packed = [""]
    for part in parts:
        if len((packed[-1] + part).strip()) <= limit:
            packed[-1] += part
        else:
            packed.append(part)
    return packed


def _packed(parts: list[str], limit: int) -> list[str]:
    return [p.strip() for p in _packed_raw(parts, limit) if p.strip()]
