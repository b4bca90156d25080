"""The answers to a history: a thought if there is to be one, the run, the calls of tools, another run.

Decides what of a run goes into the history.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..choices import is_count, is_number, shown
from ..decoding.generate import Step, collect
from ..decoding.options import DecodingOptions
from ..decoding.outputs import Generation, answer_of
from ..decoding.thought import END_OF_THOUGHT
from ..engine import Engine
from ..errors import DecodeError
from ..text.chat_template import SPOKEN, Message
from ..text.prompts import open_answer
from ..text.tokenizer import Tokenizer
from .tools import Tool, ToolStatus, calls_of, make_call, tool_list
from .turns import RESULT_NOTE, Answer, Role, Turn, within_turn

THINK_TOKENS, ROUNDS, SECONDS = 1024, 4, 30.0
STOP, SHOW = "stop", "show"  # what is done about a call that comes to nothing


@dataclass(frozen=True)
class AnswerOptions:
    """How answers are asked for; `Conversation.answer` explains each field.

    Raises
    ------
    DecodeError
        A value outside its range.
    PromptError
        A tool that is none.
    """

    spoken: bool = False
    think: bool | None = None
    think_tokens: int = THINK_TOKENS
    tools: Sequence[Callable[..., Any] | Tool] = ()
    rounds: int = ROUNDS
    seconds: float = SECONDS
    errors: str = STOP

    def __post_init__(self):
        if not is_count(self.think_tokens, 1):
            raise DecodeError(f"think_tokens: expected a whole number of at least 1, found {shown(self.think_tokens)}")
        if not is_count(self.rounds):
            raise DecodeError(f"rounds: expected a whole number, 0 or more, found {shown(self.rounds)}")
        if not is_number(self.seconds) or not 0 < self.seconds <= 86_400:
            raise DecodeError(f"seconds: expected a number above 0 and at most 86400, found {shown(self.seconds)}")
        if self.errors not in (STOP, SHOW):
            raise DecodeError(f"errors: expected stop or show, found {shown(self.errors)}")
        object.__setattr__(self, "tools", tuple(tool_list(self.tools)))  # frozen, but functions become tools here


@dataclass(frozen=True)
class Thinking:
    """What a model thought before an answer. text : without the marks around it. closed : as `Answer` has it."""

    text: str
    closed: bool


def steps_to(
    engine: Engine, turns: Sequence[Turn], asked: AnswerOptions, options: DecodingOptions, thoughts: list[Thinking]
) -> Generator[Step, None, list[Turn]]:
    """The steps of the answer to turns, and of those that follow results of tools; returns the new turns.

    A thought gives no steps: it is put into `thoughts` before the first step of its answer.
    """
    offered, new, left = tool_list(asked.tools), [], asked.rounds
    while True:
        found = yield from _one_answer(engine, [*turns, *new], asked, options, thoughts)
        if not (offered and found.calls and left):
            return [*new, found]
        outcomes = tuple(make_call(call, offered, asked.seconds) for call in found.calls)
        left -= 1
        new.append(replace(found, outcomes=outcomes))
        if asked.errors == STOP and any(o.status != ToolStatus.OK for o in outcomes):
            return new
        new.append(Turn(Role.RESULT, (*(outcome.shown for outcome in outcomes), RESULT_NOTE)))


def _one_answer(
    engine: Engine, turns: Sequence[Turn], asked: AnswerOptions, options: DecodingOptions, thoughts: list[Thinking]
) -> Generator[Step, None, Answer]:
    tokenizer, opening = engine.require_tokenizer(), engine.capabilities.thinking
    messages, spoken = [turn.message(tokenizer) for turn in turns], asked.spoken
    if asked.think:
        engine.capabilities.require_thinking()
    thought, closed = "", True
    opened = open_answer(spoken)
    if opening is not None and (engine.capabilities.thinks_unasked if asked.think is None else asked.think):
        began = Message("assistant", opening, eot=False, plain=True)
        budget = replace(options, max_tokens=asked.think_tokens, stop=(END_OF_THOUGHT,))
        first = engine.answer(engine.build_request([*messages, began]), budget)
        thought, mark, rest = first.text.partition(END_OF_THOUGHT)
        closed = bool(mark)
        text = f"{opening}{thought}{'' if closed else chr(10)}{END_OF_THOUGHT}"
        text += f"\n\n{SPOKEN}" if spoken else rest or "\n\n"
        opened, thought = Message("assistant", text, eot=False, plain=True), thought.strip()
        thoughts.append(Thinking(thought, closed))
    kept: list[Step] = []
    for step in engine.steps(engine.build_request([*messages, opened]), options):
        kept.append(step)
        yield step
    found = answer_of(collect(iter(kept), 1)[0], tokenizer)
    answer = _answer(found, tokenizer, spoken, thought=bool(thought))
    return replace(answer, thought=thought, thought_closed=closed)


def _answer(found: Generation, tokenizer: Tokenizer, spoken: bool, thought: bool) -> Answer:
    """What of a run goes into the history: its text, or its token ids if it is more than text."""
    tokens = within_turn(found.tokens, tokenizer)
    first = min(tokenizer.special_ids)
    more = spoken or any(token >= first for token in tokens)
    text = found.text if len(tokens) == len(found.tokens) else tokenizer.decode(
        [t for t in tokens if t < tokenizer.text_limit], skip_special=True
    )  # fmt: skip
    codes = tuple(c for token in tokens if (c := tokenizer.audio_code(token)) is not None)
    return Answer(
        Role.ANSWER,
        (text.lstrip("\n") if thought else text,),
        tokens if more else (),
        spoken,
        codes,
        calls=calls_of(tokens, tokenizer),
        stop=str(found.stop),
        generation=found,
    )
