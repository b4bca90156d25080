"""An answer as a record: text and audio codes in the order in which they came, every token accounted for.

Knows token ids and the tokenizer, no nets and no sound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

from ..choices import StopReason
from ..text.tokenizer import Detokenizer, Tokenizer
from .generate import Run
from .loop_detector import Loop
from .speculative import Drafts

TEXT, CODES, PADDING, MARKER = "text", "codes", "padding", "marker"


@dataclass(frozen=True)
class Piece:
    """Consecutive tokens of one kind: `tokens[start : start + len(piece.tokens)]` of the answer.

    Parameters
    ----------
    kind : {"text", "codes", "padding", "marker"}
        Padding: audio tokens beyond the last code, which are never voiced. Marker: tokens that are neither text nor
        audio (`<tts_start>` and the like).
    start : int
        Index of the first token in the answer.
    tokens : tuple of int
        Token ids.
    text : str
        Of a text piece. A character whose bytes are spread over two pieces stands in the one that ends it.
    codes : tuple of int
        Of a codes piece, each 0 … 6560.
    """

    kind: str
    start: int
    tokens: tuple[int, ...]
    text: str = ""
    codes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Generation:
    """An answer.

    Parameters
    ----------
    tokens : tuple of int
        All token ids, in order, without the end mark.
    text : str
        The text tokens, decoded.
    codes : tuple of int
        The audio codes, each 0 … 6560.
    stop : StopReason
        "eos", "length", "stop string" or "loop".
    mean_logprob : float
        Natural logarithm, over all tokens, the end mark included.
    loop : Loop, optional
        The repetition loop it fell into.
    kv_bytes : int
        Bytes that the cache held at the end.
    pieces : tuple of Piece
        The tokens by kind, without a gap.
    first_token_seconds, seconds : float
        From when work on the prompt began to the first token, and to the last.
    drafts : Drafts, optional
        What speculative decoding saved; None where it was off.
    """

    tokens: tuple[int, ...]
    text: str
    codes: tuple[int, ...]
    stop: StopReason | str
    mean_logprob: float
    loop: Loop | None = None
    kv_bytes: int = 0
    pieces: tuple[Piece, ...] = ()
    first_token_seconds: float = field(default=0.0, compare=False)
    seconds: float = field(default=0.0, compare=False)
    drafts: Drafts | None = field(default=None, compare=False)

    @property
    def kind(self) -> str:
        """One of "spoken", if there are codes; "text", if there is any but white space; "empty"."""
        return "spoken" if self.codes else "text" if self.text and self.text.strip() else "empty"

    @property
    def n_padding(self) -> int:
        """Audio padding in the answer: in `tokens`, but on purpose not in `codes`."""
        return sum(len(p.tokens) for p in self.pieces if p.kind == PADDING)

    def text_only(self) -> Generation:
        """The same without its codes."""
        return replace(self, codes=(), pieces=tuple(p for p in self.pieces if p.kind != CODES))


def answer_of(run: Run, tokenizer: Tokenizer) -> Generation:
    """The answer that a run is: without the token that ended it, if that is an end mark."""
    tokens = run.tokens[:-1] if run.stop == StopReason.EOS else run.tokens
    pieces = interleave(tokens, tokenizer)
    text = tokenizer.decode([t for t in tokens if t < tokenizer.text_limit], skip_special=True)
    codes = tuple(code for piece in pieces for code in piece.codes)
    stop = run.stop or StopReason.LENGTH
    found = Generation(tuple(tokens), text, codes, stop, run.mean_logprob, run.loop, run.kv_bytes, pieces)
    return replace(found, first_token_seconds=run.first_seconds, seconds=run.seconds, drafts=run.drafts)


def interleave(tokens: Sequence[int], tokenizer: Tokenizer) -> tuple[Piece, ...]:
    """Tokens as pieces of one kind, in order; all texts joined are the text of all text tokens."""
    detokenizer = Detokenizer(tokenizer)
    pieces: list[Piece] = []
    for kind, group in groupby(tokens, lambda i: kind_of(i, tokenizer)):
        own, start = tuple(group), pieces[-1].start + len(pieces[-1].tokens) if pieces else 0
        text = "".join(map(detokenizer.push, own)) if kind == TEXT else ""
        codes = tuple(code for i in own if (code := tokenizer.audio_code(i)) is not None) if kind == CODES else ()
        pieces.append(Piece(kind, start, own, text, codes))
    rest, last = detokenizer.finish(), max((i for i, p in enumerate(pieces) if p.kind == TEXT), default=None)
    if rest and last is not None:  # a character that was cut off
        pieces[last] = replace(pieces[last], text=pieces[last].text + rest)
    return tuple(pieces)


def kind_of(token_id: int, tokenizer: Tokenizer) -> str:
    """Kind of a token, "text" being what the reference's own split calls text: every id below `<audio_start>`."""
    if token_id < tokenizer.text_limit:
        return TEXT
    if tokenizer.is_audio_padding(token_id):
        return PADDING
    return CODES if tokenizer.audio_code(token_id) is not None else MARKER
