"""Figures of a speech model at work: `from stepaudio import viz; viz.mel("a.wav")`.

Functions take a recording or arrays and return matplotlib Axes. Every axis carries its unit, titles are the caller's,
and every figure can be read in grey. Sound and attention to it are in `audio`, filter banks in `filters`, runs in
`runs`, patches and ablations in `patching`, probes in `probes`, weights in `weights`, synthesis in `speech`; things to
click are in `widgets` and `conversation`. All is imported when it is first used, matplotlib when something is drawn.
"""

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from . import widgets
    from .audio import audio_attention, mel, mel_difference, waveform, waveform_and_mel, word_times
    from .conversation import chat
    from .filters import filterbank, filterbanks
    from .patching import causal_map, head_map
    from .probes import probe_scores
    from .runs import (
        difference_map,
        dose_response,
        kv_bytes,
        memory,
        token_raster,
        wer_against_bytes,
        wer_against_loops,
    )
    from .speech import (
        flow_noise,
        interleaving,
        mel_distance,
        pitch_and_source,
        stream_timeline,
        synthesis_stages,
        wave_difference,
    )
    from .weights import change_map, change_sizes, histograms, weight_map

_NAMES = {
    "audio_attention": "audio",
    "causal_map": "patching",
    "change_map": "weights",
    "change_sizes": "weights",
    "chat": "conversation",
    "difference_map": "runs",
    "dose_response": "runs",
    "filterbank": "filters",
    "filterbanks": "filters",
    "flow_noise": "speech",
    "head_map": "patching",
    "histograms": "weights",
    "interleaving": "speech",
    "kv_bytes": "runs",
    "mel": "audio",
    "mel_difference": "audio",
    "mel_distance": "speech",
    "memory": "runs",
    "pitch_and_source": "speech",
    "probe_scores": "probes",
    "stream_timeline": "speech",
    "synthesis_stages": "speech",
    "token_raster": "runs",
    "wave_difference": "speech",
    "waveform": "audio",
    "waveform_and_mel": "audio",
    "weight_map": "weights",
    "wer_against_bytes": "runs",
    "wer_against_loops": "runs",
    "word_times": "audio",
    "widgets": "widgets",
}

__all__ = [
    "audio_attention",
    "causal_map",
    "change_map",
    "change_sizes",
    "chat",
    "difference_map",
    "dose_response",
    "filterbank",
    "filterbanks",
    "flow_noise",
    "head_map",
    "histograms",
    "interleaving",
    "kv_bytes",
    "mel",
    "mel_difference",
    "mel_distance",
    "memory",
    "pitch_and_source",
    "probe_scores",
    "stream_timeline",
    "synthesis_stages",
    "token_raster",
    "wave_difference",
    "waveform",
    "waveform_and_mel",
    "weight_map",
    "wer_against_bytes",
    "wer_against_loops",
    "widgets",
    "word_times",
]

__getattr__, __dir__ = lazy_names(__name__, _NAMES)
