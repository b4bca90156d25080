"""Pictures of a speech model at work. Functions take arrays and return matplotlib Axes.

The caller gives the title; every axis carries its unit; every picture can be read in grey. Sound and attention are
in `plots_audio`, runs in `plots_runs`, weights in `plots_weights`, speech in `plots_speaking`; this module only
gathers them.
"""

from .audio import audio_attention, filterbanks, mel_difference, waveform_and_mel
from .runs import loop_raster, memory, wer_against_bytes, wer_against_loops
from .speech import (
    distance_along,
    interleave_raster,
    noise_used,
    pitch_and_source,
    stages,
    stream_timeline,
    wave_difference,
)
from .weights import histograms, weight_map

__all__ = [
    "audio_attention",
    "distance_along",
    "filterbanks",
    "histograms",
    "interleave_raster",
    "loop_raster",
    "mel_difference",
    "memory",
    "noise_used",
    "pitch_and_source",
    "stages",
    "stream_timeline",
    "wave_difference",
    "waveform_and_mel",
    "weight_map",
    "wer_against_bytes",
    "wer_against_loops",
]
