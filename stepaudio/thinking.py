"""The first phase of an answer that thinks aloud: a run that ends where the thought does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from .decoding.options import DecodingOptions
from .decoding.thought import END_OF_THOUGHT, Thought
from .engine import Engine
from .errors import PromptError
from .text.chat_template import SPOKEN, Message
from .text.messages import message_list


def think(engine: Engine, messages: str | Sequence, options: DecodingOptions, spoken: bool | None) -> Thought:
    """What a model thinks about messages; `StepAudio2.think` explains it."""
    opening = engine.capabilities.require_thinking()
    turns = [Message.of(m) for m in message_list(messages)]
    if turns and turns[-1].role == "assistant":
        if turns[-1].content not in (None, SPOKEN):
            raise PromptError("think: the last turn is an answer already; leave it out, or leave it open")
        turns.pop()
    request = engine.build_request([*turns, Message("assistant", opening, eot=False)])
    spoken = engine.capabilities.allow("speak") if spoken is None else spoken
    return Thought(tuple(turns), opening, engine.answer(request, replace(options, stop=(END_OF_THOUGHT,))), spoken)
