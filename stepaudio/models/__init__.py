"""The nets. They open no file and know no checkpoint. Names are imported lazily."""

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .kv_cache import CachePolicy
    from .speech_lm import StepAudioConfig, StepAudioNet
    from .tap import chain, emit

__all__ = [
    "CachePolicy",
    "StepAudioConfig",
    "StepAudioNet",
    "chain",
    "emit",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "CachePolicy": "kv_cache",
        "StepAudioConfig": "speech_lm",
        "StepAudioNet": "speech_lm",
        "chain": "tap",
        "emit": "tap",
    },
)
