"""Strings that end a run, looked for in the text as it grows."""

from __future__ import annotations

from collections.abc import Sequence

from ..text.tokenizer import Detokenizer, Tokenizer


class StopStrings:
    """Tells when the text so far ends in one of the strings; a string may span several tokens."""

    def __init__(self, tokenizer: Tokenizer, strings: Sequence[str]):
        self._text, self._detokenizer = "", Detokenizer(tokenizer)
        self._strings, self._longest = tuple(strings), max(map(len, strings))

    def __call__(self, token: int) -> bool:
        """Take the next token; whether the text now holds one of the strings."""
        new = self._detokenizer.push(token)
        window = self._text + new
        self._text = window[-self._longest :]
        return any(s in window for s in self._strings)
