"""Voices, streaming and the synthesizer: audio codes to sound. The main names are imported when they are first used."""

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .streaming import StreamOptions
    from .synthesizer import Sound, Synthesizer
    from .voice import Voice

__all__ = ["Sound", "StreamOptions", "Synthesizer", "Voice"]

_NAMES = {"Sound": "synthesizer", "StreamOptions": "streaming", "Synthesizer": "synthesizer", "Voice": "voice"}
__getattr__, __dir__ = lazy_names(__name__, _NAMES)
