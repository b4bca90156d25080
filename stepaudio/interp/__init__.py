"""Looking inside: record any activation, read it, change it. Draws nothing.

`record` and what reads a recording can be had from here; each is loaded when it is first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..models.tap import chain
    from .lens import AudioAttention, Lens, audio_attention, logit_lens
    from .memory import Memory, watch_memory
    from .names import GLOSSARY, activation_names
    from .recorder import Recorder, Trace, head_mean, last_query, record, transcription
    from .streaming import gap, listening_difference, streamed
    from .token2wav import interleaving, round_trip, stages

_HOME = {
    "AudioAttention": "lens",
    "GLOSSARY": "names",
    "Lens": "lens",
    "Memory": "memory",
    "Recorder": "recorder",
    "Trace": "recorder",
    "activation_names": "names",
    "audio_attention": "lens",
    "chain": "..models.tap",
    "gap": "streaming",
    "head_mean": "recorder",
    "interleaving": "token2wav",
    "last_query": "recorder",
    "listening_difference": "streaming",
    "logit_lens": "lens",
    "record": "recorder",
    "round_trip": "token2wav",
    "stages": "token2wav",
    "streamed": "streaming",
    "transcription": "recorder",
    "watch_memory": "memory",
}

__all__ = [
    "GLOSSARY",
    "AudioAttention",
    "Lens",
    "Memory",
    "Recorder",
    "Trace",
    "activation_names",
    "audio_attention",
    "chain",
    "gap",
    "head_mean",
    "interleaving",
    "last_query",
    "listening_difference",
    "logit_lens",
    "record",
    "round_trip",
    "stages",
    "streamed",
    "transcription",
    "watch_memory",
]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; there are {', '.join(__all__)}")
    home = _HOME[name]
    return getattr(import_module(home if home.startswith(".") else f".{home}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
