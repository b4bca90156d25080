"""Long texts into parts that a model reads well, divided where a reader would breathe. Knows no language."""

from __future__ import annotations

import re
from itertools import pairwise

from ..errors import ConfigError

MAX_CHARACTERS = 200  # longest part by default
# Where a part ends. Each looks at a run of full stops once, from its start, so that any text takes linear time.
SENTENCE = re.compile(r"(?<![.!?…])[.!?…]++[\"'”’)\]]*+(?=\s)|[。！？]++[”’」』）]*+")
CLAUSE = re.compile(r"[,;:—](?=\s)|[，；：、]")
WORD = re.compile(r"\s+")


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
        packed += [p.strip() for p in _sizable(line, max_characters, (SENTENCE, CLAUSE, WORD)) if p.strip()]
    return packed


def _sizable(text: str, limit: int, ends: tuple[re.Pattern, ...]) -> list[str]:
    """The text in parts within the limit, cut where the first pattern ends; longer ones by the next, at last anywhere.

    White space around a part does not count.
    """
    if len(text.strip()) <= limit:
        return [text]
    if not ends:
        word = text.rstrip()
        found = [word[i : i + limit] for i in range(0, len(word), limit)]
        return [*found[:-1], found[-1] + text[len(word) :]]
    cuts = [0, *(m.end() for m in ends[0].finditer(text)), len(text)]
    parts = []
    for start, stop in pairwise(cuts):
        parts += _sizable(text[start:stop], limit, ends[1:])
    return _joined(parts, limit)


def _joined(parts: list[str], limit: int) -> list[str]:
    """Neighbours joined while they fit together, from the left."""
    found: list[list[str]] = [[]]
    inner = 0  # characters of the last group, from its first that is no white space to its end
    for part in parts:
        size = inner + len(part) if inner else len(part.lstrip())
        if size - (len(part) - len(part.rstrip())) > limit and inner:
            found.append([])
            size = len(part.lstrip())
        found[-1].append(part)
        inner = size
    return ["".join(group) for group in found]
