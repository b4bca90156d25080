"""Tokenizer, chat template, prompts, sentences, subtitles. Names are imported lazily."""

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .chat_template import Message, Prompt, build_prompt
    from .sentences import cut_text
    from .tokenizer import Detokenizer, Tokenizer

__all__ = [
    "Detokenizer",
    "Message",
    "Prompt",
    "Tokenizer",
    "build_prompt",
    "cut_text",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Detokenizer": "tokenizer",
        "Message": "chat_template",
        "Prompt": "chat_template",
        "Tokenizer": "tokenizer",
        "build_prompt": "chat_template",
        "cut_text": "sentences",
    },
)
