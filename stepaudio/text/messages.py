"""What callers give: one text, a list of messages, recordings. Distinguished here, and brought to `Message`s.

Knows no tokens: how turns are written is `chat_template`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ..audio.sources import is_file
from ..errors import AudioError, PromptError
from .chat_template import SPOKEN, Message


def names_a_file(text: str) -> bool:
    """Whether a text is the name of a file that is there, with a suffix: then a recording was meant, as a rule."""
    try:
        return bool(Path(text).suffix) and Path(text).is_file()
    except (OSError, ValueError):  # longer than any name, or with bytes that none has
        return False


def message_list(messages) -> Sequence:
    """Messages as they are; a single text is the human's turn. `PromptError` for anything else."""
    if isinstance(messages, str):
        if names_a_file(messages):
            raise PromptError(
                f"{messages} is a file: to have a recording transcribed, call model.transcribe({messages!r}); to have "
                'it answered, put it into a message: [{"role": "human", "content": [{"type": "audio", "audio": ...}]}]'
            )
        return [Message("human", messages)]
    if isinstance(messages, (Mapping, Message)) or not isinstance(messages, Iterable):
        raise PromptError(f"expected a text or a list of messages, found one {type(messages).__name__}")
    return list(messages)


def is_conversation(source) -> bool:
    """Whether this is a list of messages rather than a recording."""
    return isinstance(source, (list, tuple)) and all(isinstance(m, (Message, Mapping)) for m in source) and bool(source)


def is_list_of_recordings(source) -> bool:
    """Whether this is a list of recordings rather than one recording given as a list of samples."""
    if not isinstance(source, (list, tuple)):
        return False
    if is_conversation(source) and not any(isinstance(s, dict) and "array" in s for s in source):
        raise AudioError(
            "a list of messages is no recording: call model.stream(messages) or model.generate_text(messages)"
        )
    return all(is_file(s) or isinstance(s, dict) or getattr(s, "ndim", 0) > 0 for s in source)


def spoken_turns(messages: str | Sequence) -> list[Message]:
    """The messages with an answer that begins as a spoken one does, unless the last turn is an answer already."""
    turns = [Message.of(m) for m in message_list(messages)]
    if turns and turns[-1].role == "assistant" and turns[-1].content is None:
        turns.pop()  # the open turn, to be opened again as a spoken one
    if not turns or turns[-1].role != "assistant":
        turns.append(Message("assistant", SPOKEN, eot=False))
    return turns


def with_audio(turns: Sequence[Message], audio) -> list[Message]:
    """The turns with a recording in their audio item."""
    item = {"type": "audio", "audio": audio}
    return [replace(turn, content=[item]) if isinstance(turn.content, list) else turn for turn in turns]


def audio_items(messages: Sequence[Message]) -> Iterator[Mapping]:
    """Every item of the messages that holds a recording; `PromptError` for one that should and does not."""
    for message in messages:
        for item in message.content if isinstance(message.content, (list, tuple)) else ():
            if isinstance(item, Mapping) and item.get("type") == "audio":
                if "audio" not in item:
                    raise PromptError('an audio item needs its recording under "audio": a path or samples')
                yield item
