"""Turns -> token ids and the places of audio embeddings: the one module that knows the reference's turn grammar.

Pure: reads no file and no sound; the caller says how many embeddings each segment of each recording has.
The grammar is that of StepFun's `apply_chat_template` in `stepaudio2.py`. The ChatML template that lies in
the published `tokenizer_config.json` is not what the model was trained on, and is never read.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..errors import PromptError, TokenizerError
from .tokenizer import EOT, Tokenizer

ROLES = ("system", "human", "assistant", "input", "tool_json_schemas")
BOT = "<|BOT|>"
ALIASES = {"user": "human"}
SPOKEN = "<tts_start>"  # content of an open assistant turn that is to be spoken
ITEMS = ("text", "token", "audio")  # types of an item; each keeps its value under its own name


@dataclass(frozen=True)
class Message:
    """One turn.

    Parameters
    ----------
    role : one of `ROLES`, or "user" for "human"
    content : str, list of items, or None
        A string is tokenised together with its header and end; items (`{"type": "text", "text": str}`,
        `{"type": "audio"}`, `{"type": "token", "token": [ids]}`) one by one; None only opens the turn.
    eot : bool
        Whether `<|EOT|>` closes the turn; without meaning for None.
    plain : bool
        Whether special tokens written in the content are characters, as text of a stranger needs it. One exception:
        `<tts_start>` at the end of an answer that stays open is the token.
    """

    role: str
    content: str | Sequence[Mapping] | None
    eot: bool = True
    plain: bool = False

    def __post_init__(self):
        if not isinstance(self.role, str) or ALIASES.get(self.role, self.role) not in ROLES:
            raise PromptError(f"unknown role {self.role!r}; expected one of {', '.join((*ROLES, *ALIASES))}")
        if not (self.content is None or isinstance(self.content, (str, list, tuple))):
            raise PromptError(
                f"content of a {self.role} turn: expected text, a list of items or None, found "
                f"{type(self.content).__name__}"
            )
        if not isinstance(self.eot, bool):
            raise PromptError(f"eot of a {self.role} turn: expected true or false, found {self.eot!r}")

    @classmethod
    def of(cls, message: Message | Mapping) -> Message:
        """A message as it is, or made from a dict with the keys role, content and perhaps eot."""
        if isinstance(message, cls):
            return message
        needed = {"role", "content"}
        if not isinstance(message, Mapping) or not needed <= set(message) <= needed | {"eot"}:
            raise PromptError(f"expected a message with role, content and perhaps eot, found {message!r:.120}")
        return cls(message["role"], message["content"], message.get("eot", True))

    @property
    def header(self) -> str:
        """What opens the turn."""
        return f"{BOT}{ALIASES.get(self.role, self.role)}\n"


@dataclass(frozen=True)
class AudioSlot:
    """Where the embeddings of one segment (at most 25 s) go: tokens[start : start + length] are `<audio_patch>`.

    `clip` counts the recordings of the prompt, `piece` the segments of that recording, both from 0. A very short
    remainder has length 0: it keeps its markers, as in the reference.
    """

    start: int
    length: int
    clip: int
    piece: int = 0


@dataclass(frozen=True)
class Prompt:
    """Token ids for the decoder and one slot per segment of audio, in order; may be built by hand from ids alone."""

    tokens: tuple[int, ...]
    slots: tuple[AudioSlot, ...] = ()

    def __post_init__(self):
        if not self.tokens:
            raise PromptError("the prompt is empty; expected at least one token")
        free = 0
        for slot in self.slots:
            if not (free <= slot.start and slot.length >= 0 and slot.start + slot.length <= len(self.tokens)):
                raise PromptError(
                    f"audio rows {slot.start}..{slot.start + slot.length - 1} overlap others or lie "
                    f"outside the {len(self.tokens)} tokens of the prompt"
                )
            free = slot.start + slot.length

    @property
    def n_prompt(self) -> int:
        """Positions the prompt takes."""
        return len(self.tokens)


class _Writer:
    """Appends text after text; each is tokenised on its own, so nothing merges across a border."""

    def __init__(self, tokenizer: Tokenizer | None, n_rows: Sequence[Sequence[int]]):
        if tokenizer is None:
            raise PromptError("a prompt of turns needs a tokenizer; without one, give Prompt(ids) itself")
        self.tokenizer, self.n_rows = tokenizer, _checked_rows(n_rows)
        self.ids: list[int] = []
        self.slots: list[AudioSlot] = []
        self.n_clips = 0

    def text(self, text: str, plain: bool = False) -> None:
        if not isinstance(text, str):
            raise PromptError(f"expected text, found {text!r:.60}")
        self.ids += self.tokenizer.encode_plain(text) if plain else self.tokenizer.encode(text)

    def tokens(self, ids: Iterable[int]) -> None:
        if isinstance(ids, (str, bytes, Mapping)) or not isinstance(ids, Iterable):
            raise PromptError(f"token item: expected a list of ids, found {ids!r:.60}")
        limit = self.tokenizer.vocab_rows or self.tokenizer.n_ids
        for token_id in ids:
            try:
                value = self.tokenizer.check(token_id)
            except TokenizerError as error:
                raise PromptError(f"token item: {error}") from None
            if value >= limit:
                raise PromptError(f"token item: id {value} lies outside the vocabulary 0..{limit - 1}")
            self.ids.append(value)

    def audio(self) -> None:
        clip, t = self.n_clips, self.tokenizer
        if clip >= len(self.n_rows):
            raise PromptError(
                f"audio item {clip} has no rows; n_rows has {len(self.n_rows)} entries, expected one "
                "list per audio item"
            )
        for piece, length in enumerate(self.n_rows[clip]):
            self.slots.append(AudioSlot(len(self.ids) + 1, length, clip, piece))
            self.ids += [t.audio_start, *[t.audio_patch] * length, t.audio_end]
        self.n_clips += 1

    def item(self, item: Mapping, plain: bool = False) -> None:
        kind = item.get("type") if isinstance(item, Mapping) else None
        if not isinstance(kind, str) or kind not in ITEMS or not set(item) <= {"type", kind}:
            raise PromptError(f"expected an item of type {', '.join(ITEMS)} with its value, found {item!r:.120}")
        if kind == "audio":
            return self.audio()
        if kind not in item:
            raise PromptError(f"{kind} item: the key {kind!r} is missing")
        return self.text(item["text"], plain) if kind == "text" else self.tokens(item["token"])

    def turn(self, message: Message) -> None:
        if message.content is None:
            self.text(message.header)
        elif isinstance(message.content, str):
            if message.plain:
                self.plain_turn(message, message.content)
            else:
                self.text(message.header + message.content + (EOT if message.eot else ""))
        else:
            self.text(message.header)
            for item in message.content:
                self.item(item, message.plain)
            self.text(EOT if message.eot else "")

    def plain_turn(self, message: Message, content: str) -> None:
        """The tokens that one piece gives where its content spells no token: those part it in any case."""
        opens_speech = not message.eot and content.endswith(SPOKEN)
        self.text(BOT)
        self.text(message.header.removeprefix(BOT) + content.removesuffix(SPOKEN if opens_speech else ""), plain=True)
        self.text(SPOKEN if opens_speech else EOT if message.eot else "")

    def prompt(self) -> Prompt:
        if self.n_clips != len(self.n_rows):
            raise PromptError(
                f"n_rows has {len(self.n_rows)} entries, the messages have only {self.n_clips} audio items"
            )
        return Prompt(tuple(self.ids), tuple(self.slots))


def _checked_rows(n_rows: Sequence[Sequence[int]]) -> list[list[int]]:
    """The counts as plain ints; a recording without a segment or a negative count is refused."""
    try:
        rows = [[operator.index(n) for n in pieces] for pieces in n_rows]
    except TypeError:
        raise PromptError(f"n_rows: expected a list of row counts per audio item, found {n_rows!r:.120}") from None
    for clip, pieces in enumerate(rows):
        if not pieces or min(pieces) < 0:
            raise PromptError(f"audio item {clip}: expected a count >= 0 for each of its segments, found {pieces}")
    return rows


def build_prompt(
    messages: Sequence[Message | Mapping], tokenizer: Tokenizer, n_rows: Sequence[Sequence[int]] = ()
) -> Prompt:
    """The token ids of a conversation, and where its audio goes.

    Special tokens written in a text become their ids, as in the reference, but for those of plain messages: for
    foreign text.

    Parameters
    ----------
    messages : list of Message, or of dicts with the same keys
    tokenizer : Tokenizer
    n_rows : sequence of sequences of int >= 0
        Per audio item, in order, the number of embeddings of each of its segments; see `constants.n_audio_embeddings`.

    Returns
    -------
    Prompt

    Raises
    ------
    PromptError
        Unknown role or item, wrong type of content, audio without embeddings or the reverse, an id
        outside the vocabulary.

    Examples
    --------
    >>> turns = [Message("human", [{"type": "audio"}]), Message("assistant", None)]
    >>> build_prompt(turns, tokenizer, n_rows=[[47]]).slots                      # doctest: +SKIP
    (AudioSlot(start=4, length=47, clip=0, piece=0),)
    """
    if isinstance(messages, (str, Mapping, Message)):
        raise PromptError(f"expected a list of messages, found one {type(messages).__name__}")
    writer = _Writer(tokenizer, n_rows)
    for message in messages:
        writer.turn(Message.of(message))
    return writer.prompt()


def build_turnless_prompt(
    messages: Sequence[Message | Mapping], tokenizer: Tokenizer, n_rows: Sequence[Sequence[int]] = ()
) -> Prompt:
    """What is said in turns, as a base model is given it: one after the other, without headers and ends.

    Parameters, result and errors as in `build_prompt`.
    """
    pieces: list[str | Mapping] = []
    for message in map(Message.of, messages):
        pieces += [message.content] if isinstance(message.content, str) else message.content or ()
    return build_base_prompt(pieces, tokenizer, n_rows)


def build_base_prompt(
    pieces: Sequence[str | Mapping], tokenizer: Tokenizer, n_rows: Sequence[Sequence[int]] = ()
) -> Prompt:
    """The token ids for a base model, which knows no turns: texts and items, one after the other.

    Parameters, result and errors as in `build_prompt`; `pieces` holds strings and items.
    """
    if isinstance(pieces, (str, Mapping)):
        raise PromptError(f"expected a list of texts and items, found one {type(pieces).__name__}")
    writer = _Writer(tokenizer, n_rows)
    for piece in pieces:
        if isinstance(piece, str):
            writer.text(piece)
        else:
            writer.item(piece)
    return writer.prompt()
