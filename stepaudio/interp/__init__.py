"""Looking inside: record any activation, read it, change it. Draws nothing.

What is named here is loaded when it is first used.
"""

from typing import TYPE_CHECKING

from ..lazy import lazy_names as _lazy_names

if TYPE_CHECKING:
    from .lens import AudioAttention, Lens, audio_attention, logit_lens
    from .memory import Memory, watch_memory
    from .names import GLOSSARY, activation_names
    from .recorder import Recorder, Trace, head_mean, last_query, record, transcription
    from .streaming import gap, listening_difference, streamed
    from .token2wav import interleaving, round_trip, stages

__all__ = [
    "GLOSSARY", "AudioAttention", "Lens", "Memory", "Recorder", "Trace", "activation_names", "audio_attention", "gap",
    "head_mean", "interleaving", "last_query", "listening_difference", "logit_lens", "record", "round_trip", "stages",
    "streamed", "transcription", "watch_memory",
]  # fmt: skip

__getattr__, __dir__ = _lazy_names(
    __name__,
    {
        "AudioAttention": "lens",
        "GLOSSARY": "names",
        "Lens": "lens",
        "Memory": "memory",
        "Recorder": "recorder",
        "Trace": "recorder",
        "activation_names": "names",
        "audio_attention": "lens",
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
    },
)
