"""One answer to a history: a thought if there is to be one, then the run, then what of it goes into the history."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from ..decoding.generate import Step, collect
from ..decoding.options import DecodingOptions
from ..decoding.outputs import Generation, answer_of
from ..decoding.thought import END_OF_THOUGHT
from ..engine import Engine
from ..errors import PromptError
from ..text.chat_template import SPOKEN, Message
from ..text.prompts import open_answer
from ..text.tokenizer import Tokenizer
from .tools import calls_of
from .turns import Answer, Role, Turn, within_turn


def answer_to(
    engine: Engine,
    turns: Sequence[Turn],
    options: DecodingOptions,
    thinking: DecodingOptions,
    spoken: bool,
    think: bool | None,
    on_step: Callable[[Step], None] | None,
) -> Answer:
    """The answer to turns; `Conversation.answer` explains the rest. thinking : options of the thought."""
    tokenizer, opening = engine.require_tokenizer(), engine.capabilities.thinking
    messages = [turn.message(tokenizer) for turn in turns]
    if think and opening is None:
        raise PromptError("this model does not think aloud: Step-Audio-2-mini-Think and Step-Audio-R1 do; think=False")
    thought, closed = "", True
    opened = open_answer(spoken)
    if opening is not None and think is not False:
        began = Message("assistant", opening, eot=False, plain=True)
        first = engine.answer(engine.build_request([*messages, began]), replace(thinking, stop=(END_OF_THOUGHT,)))
        thought, mark, rest = first.text.partition(END_OF_THOUGHT)
        closed = bool(mark)
        text = f"{opening}{thought}{'' if closed else chr(10)}{END_OF_THOUGHT}"
        text += f"\n\n{SPOKEN}" if spoken else rest or "\n\n"
        opened, thought = Message("assistant", text, eot=False, plain=True), thought.strip()
    steps = _watched(engine.steps(engine.build_request([*messages, opened]), options), on_step)
    found = answer_of(collect(steps, 1)[0], tokenizer)
    answer = _answer(found, tokenizer, spoken, thought=bool(thought))
    return replace(answer, thought=thought, thought_closed=closed)


def _watched(steps: Iterator[Step], on_step: Callable[[Step], None] | None) -> Iterator[Step]:
    for step in steps:
        if on_step is not None:
            on_step(step)
        yield step


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
