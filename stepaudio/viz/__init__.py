"""Figures of a speech model at work: `from stepaudio import viz; viz.mel("a.wav")`.

Functions take a recording or arrays and return matplotlib Axes. Every axis carries its unit, titles are the caller's,
and every figure can be read in grey. Sound and attention to it are in `audio`, runs in `runs`, weights in `weights`,
synthesis in `speech`; things to click are in `widgets`. Importing this imports no matplotlib: drawing does.
"""

from .audio import audio_attention, filterbank, filterbanks, mel, mel_difference, waveform, waveform_and_mel
from .runs import kv_bytes, memory, token_raster, wer_against_bytes, wer_against_loops
from .speech import (
    flow_noise,
    interleaving,
    mel_distance,
    pitch_and_source,
    stream_timeline,
    synthesis_stages,
    wave_difference,
)
from .weights import histograms, weight_map

__all__ = [
    "audio_attention",
    "filterbank",
    "filterbanks",
    "flow_noise",
    "histograms",
    "interleaving",
    "kv_bytes",
    "mel",
    "mel_difference",
    "mel_distance",
    "memory",
    "pitch_and_source",
    "stream_timeline",
    "synthesis_stages",
    "token_raster",
    "wave_difference",
    "waveform",
    "waveform_and_mel",
    "weight_map",
    "wer_against_bytes",
    "wer_against_loops",
]
