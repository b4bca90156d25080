"""An answer as a record: text and audio codes in the order in which they came, every id accounted for.

Knows ids and the tokenizer, no nets and no sound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from ..text.tokenizer import Detokenizer, Tokenizer
from .generate import Run
from .loop_detector import Loop

TEXT, CODES, PADDING, MARKER = "text", "codes", "padding", "marker"


@dataclass(frozen=True)
class Piece:
    """A run of ids of one kind. `ids[start : start + len(ids)]` of the answer are these.

    kind : "text"; "codes", audio codes; "padding", audio ids beyond the last code, which nobody voices; "marker",
        ids that are neither (`<tts_start>` and the like).
    text : of a text piece. A character whose bytes are spread over two pieces stands in the one that ends it.
    codes : of a codes piece, each 0 … 6560.
    """

    kind: str
    start: int
    ids: tuple[int, ...]
    text: str = ""
    codes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Generation:
    """An answer. ids: all of it, in order. text: its text ids, decoded. codes: its audio codes 0..6560.

    `stop` says why it ended ("eos", "length", "stop string", "loop"); `loop` what it repeated, if it did. `pieces`
    cover the ids without a gap.
    """

    ids: tuple[int, ...]
    text: str | None
    codes: tuple[int, ...]
    stop: str
    mean_logprob: float
    loop: Loop | None = None
    kv_bytes: int = 0
    pieces: tuple[Piece, ...] = ()

    @property
    def kind(self) -> str:
        """ "spoken" if there are codes, else "text" if there is any but white space, else "empty"."""
        return "spoken" if self.codes else "text" if self.text and self.text.strip() else "empty"

    @property
    def n_padding(self) -> int:
        """Audio padding in the answer: in `ids`, but on purpose not in `codes`."""
        return sum(len(p.ids) for p in self.pieces if p.kind == PADDING)

    def text_only(self) -> Generation:
        """The same without its codes."""
        return replace(self, codes=(), pieces=tuple(p for p in self.pieces if p.kind != CODES))


def answer_of(run: Run, tokenizer: Tokenizer) -> Generation:
    """The answer that a run is: without the id that ended it, if that is an end mark."""
    ids = run.ids[:-1] if run.stop == "eos" else run.ids
    pieces = interleave(ids, tokenizer)
    text = tokenizer.decode([t for t in ids if t < tokenizer.text_limit], skip_special=True)
    codes = tuple(code for piece in pieces for code in piece.codes)
    return Generation(tuple(ids), text, codes, run.stop or "length", run.mean_logprob, run.loop, run.kv_bytes, pieces)


def interleave(ids: Sequence[int], tokenizer: Tokenizer) -> tuple[Piece, ...]:
    """Ids as runs of one kind, in order; all texts joined are the text of all text ids."""
    words = Detokenizer(tokenizer)
    pieces: list[Piece] = []
    for kind, group in groupby(ids, lambda i: kind_of(i, tokenizer)):
        own, start = tuple(group), sum(len(p.ids) for p in pieces[-1:]) + (pieces[-1].start if pieces else 0)
        text = "".join(map(words.push, own)) if kind == TEXT else ""
        codes = tuple(tokenizer.audio_code(i) for i in own) if kind == CODES else ()
        pieces.append(Piece(kind, start, own, text, codes))
    rest, last = words.finish(), max((i for i, p in enumerate(pieces) if p.kind == TEXT), default=None)
    if rest and last is not None:  # a character that was cut off
        pieces[last] = replace(pieces[last], text=pieces[last].text + rest)
    return tuple(pieces)


def kind_of(token_id: int, tokenizer: Tokenizer) -> str:
    """Text is what the reference's own split calls text: every id below `<audio_start>`."""
    if token_id < tokenizer.text_limit:
        return TEXT
    if tokenizer.is_audio_padding(token_id):
        return PADDING
    return CODES if tokenizer.audio_code(token_id) is not None else MARKER
