"""Turns of a conversation as records, and how each is written in the reference's grammar.

What comes from outside is written as plain text: no word of a user, a file or a tool becomes a control token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property

from ..decoding.outputs import Generation
from ..decoding.prompt_cache import digest
from ..errors import PromptError
from ..text.chat_template import Message
from ..text.prompts import spoken_turn
from ..text.tokenizer import Tokenizer
from .recording import Recording
from .tools import MalformedCall, ToolCall, ToolResult

RESULT_NOTE = (
    "\n\n\n请用口语化形式总结检索结果，简短地回答用户的问题。"  # StepFun's example: sum it up, answer in brief
)


class Role(StrEnum):
    """Who a turn is by."""

    SYSTEM = "system"
    TOOLS = "tools"
    HUMAN = "human"
    ANSWER = "answer"
    RESULT = "result"


FOLLOWS = {  # what each may stand behind; None is the beginning
    Role.SYSTEM: (None,),
    Role.TOOLS: (None, Role.SYSTEM),
    Role.HUMAN: (None, Role.SYSTEM, Role.TOOLS, Role.ANSWER),
    Role.ANSWER: (Role.HUMAN, Role.RESULT),
    Role.RESULT: (Role.ANSWER,),
}


@dataclass(frozen=True, eq=False)
class Turn:
    """One turn.

    Parameters
    ----------
    role : Role
    parts : tuple of str or Recording
        What was said, in order; of tools, their schemas as JSON; of results, a text for each and what follows them.
    """

    role: Role
    parts: tuple[str | Recording, ...]

    @property
    def text(self) -> str:
        """Its texts, joined."""
        return "".join(part for part in self.parts if isinstance(part, str))

    @cached_property
    def key(self) -> str:
        """A digest of what a model reads of it."""
        return digest(str(self.role), *(p.key if isinstance(p, Recording) else p for p in self.parts))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Turn) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def message(self, tokenizer: Tokenizer) -> Message:
        """The turn as a prompt of this tokenizer has it."""
        role = {Role.TOOLS: "tool_json_schemas", Role.RESULT: "input"}.get(self.role, str(self.role))
        if self.role != Role.RESULT and len(self.parts) == 1 and isinstance(self.parts[0], str):
            return Message(role, self.parts[0], plain=True)
        return Message(role, [_item(part) for part in self.parts], plain=True)


def _item(part: str | Recording) -> dict:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    return {"type": "audio", "audio": {"array": part.samples, "sampling_rate": 16_000}}


@dataclass(frozen=True, eq=False)
class Answer(Turn):
    """An answer; of a written one the text is in the history, of any other its token ids.

    Parameters
    ----------
    role, parts
        As of a turn; its text.
    tokens : tuple of int
        Token ids as they were generated, for an answer that is more than text: codes, markers, a call of a tool.
    spoken : bool
        Whether it was opened as a spoken one.
    codes : tuple of int
        Its audio codes, each 0 … 6560.
    thought : str
        What the model thought before; not in the history that it reads.
    thought_closed : bool
        False where the thought had to be closed for it.
    calls : tuple of ToolCall or MalformedCall
        What it calls.
    outcomes : tuple of ToolResult
        What came of the calls, if they were made.
    generation : Generation, optional
        The run; not kept in files.
    stop : str
        Why it ended: a `StopReason`, or "" for an answer that was put into the history by hand.
    """

    tokens: tuple[int, ...] = ()
    spoken: bool = False
    codes: tuple[int, ...] = ()
    thought: str = ""
    thought_closed: bool = True
    calls: tuple[ToolCall | MalformedCall, ...] = ()
    outcomes: tuple[ToolResult, ...] = ()
    stop: str = ""
    generation: Generation | None = field(default=None, repr=False)

    @cached_property
    def key(self) -> str:
        """A digest of what a model reads of it."""
        return digest(str(self.role), *self.parts, list(self.tokens), self.spoken)

    def message(self, tokenizer: Tokenizer) -> Message:
        """The answer as a prompt of this tokenizer has it."""
        tokens = within_turn(self.tokens, tokenizer)
        if self.spoken:
            return spoken_turn(tokens)
        if tokens:
            return Message("assistant", [{"type": "token", "token": list(tokens)}])
        return Message("assistant", self.text, plain=True)


def within_turn(tokens: Sequence[int], tokenizer: Tokenizer) -> tuple[int, ...]:
    """Tokens up to the first that would open or close a turn, or stand for a recording.

    Whatever a model generates, or a file holds, an answer stays one turn.
    """
    ends = {tokenizer.bot, tokenizer.audio_start, tokenizer.audio_patch, tokenizer.audio_end, *tokenizer.eos_ids}
    stop = next((i for i, token in enumerate(tokens) if token in ends), len(tokens))
    return tuple(tokens[:stop])


def check_order(turns: Sequence[Turn]) -> None:
    """Raise `PromptError` unless each turn may stand behind the one before it."""
    before: Role | None = None
    for number, turn in enumerate(turns):
        if not isinstance(turn, Turn):
            raise PromptError(f"turn {number}: expected a Turn, found {turn!r:.80}; ask(…), say(…), give(…) make them")
        if before not in FOLLOWS[turn.role]:
            place = "at the beginning" if before is None else f"behind a turn of the role {before}"
            raise PromptError(
                f"turn {number}: one of the role {turn.role} cannot stand {place}; a conversation is system, tools, "
                "then human and answer in turn, with results and another answer where tools were called"
            )
        before = turn.role
