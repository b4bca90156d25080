"""Sound: files in and out, segmentation, filters and features. Names are imported lazily."""

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .features import log_mel
    from .filters import mel_filterbank
    from .load import audio_seconds, load_audio
    from .save import save_audio
    from .segment import cut_points, is_silent
    from .vad import speech_spans

__all__ = [
    "audio_seconds",
    "cut_points",
    "is_silent",
    "load_audio",
    "log_mel",
    "mel_filterbank",
    "save_audio",
    "speech_spans",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "audio_seconds": "load",
        "cut_points": "segment",
        "is_silent": "segment",
        "load_audio": "load",
        "log_mel": "features",
        "mel_filterbank": "filters",
        "save_audio": "save",
        "speech_spans": "vad",
    },
)
