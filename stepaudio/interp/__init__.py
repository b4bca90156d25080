"""Looking inside: record any activation, read it, change it. Draws nothing.

What is named here is loaded when it is first used.
"""

from typing import TYPE_CHECKING

from ..lazy import lazy_names as _lazy_names

if TYPE_CHECKING:
    from .ablation import HeadTable, ablate_heads
    from .attribution import LogitParts, logit_parts
    from .donor import Activations
    from .edits import Edits, add, mean, patch, replace, resample, scale, zero
    from .frames import Frames, audio_frames
    from .lens import AudioAttention, Lens, audio_attention, logit_lens
    from .memory import Memory, watch_memory
    from .names import GLOSSARY, activation_names
    from .patch_estimates import PatchEstimates, estimate_patches
    from .patching import Patched, TraceMap, causal_trace, patch_between, run_pair
    from .places import Place
    from .probe_rows import ProbeData, probe_data
    from .probes import Probes, train_probes
    from .recorder import Recorder, Trace, head_mean, last_query, record, transcription
    from .running import activations, forced_logits, lay_out, run_with_edits, steps_with_edits
    from .sae_training import SAEOptions, SAEStep, train_sae
    from .sound_edits import sound_with_edits, streamed_with_edits
    from .sparse_autoencoder import FeaturePlace, SparseAutoencoder
    from .steering import Steering, steering_between
    from .streaming import gap, listening_difference, streamed
    from .token2wav import interleaving, round_trip, stages
    from .voice_edits import voice_with_edits

__all__ = [
    "GLOSSARY", "Activations", "AudioAttention", "Edits", "FeaturePlace", "Frames", "HeadTable", "Lens",
    "LogitParts", "Memory", "PatchEstimates", "Patched", "Place", "ProbeData", "Probes", "Recorder", "SAEOptions",
    "SAEStep", "SparseAutoencoder", "Steering", "Trace", "TraceMap", "ablate_heads", "activation_names",
    "activations", "add", "audio_attention", "audio_frames", "causal_trace", "estimate_patches", "forced_logits",
    "gap", "head_mean", "interleaving", "last_query", "lay_out", "listening_difference", "logit_lens", "logit_parts",
    "mean", "patch", "patch_between", "probe_data", "record", "replace", "resample", "round_trip", "run_pair",
    "run_with_edits", "scale", "sound_with_edits", "stages", "steering_between", "steps_with_edits", "streamed",
    "streamed_with_edits", "train_probes", "train_sae", "transcription", "voice_with_edits", "watch_memory", "zero",
]  # fmt: skip

__getattr__, __dir__ = _lazy_names(
    __name__,
    {
        "Activations": "donor",
        "AudioAttention": "lens",
        "Edits": "edits",
        "FeaturePlace": "sparse_autoencoder",
        "Frames": "frames",
        "GLOSSARY": "names",
        "HeadTable": "ablation",
        "Lens": "lens",
        "LogitParts": "attribution",
        "Memory": "memory",
        "PatchEstimates": "patch_estimates",
        "Patched": "patching",
        "Place": "places",
        "ProbeData": "probe_rows",
        "Probes": "probes",
        "Recorder": "recorder",
        "SAEOptions": "sae_training",
        "SAEStep": "sae_training",
        "SparseAutoencoder": "sparse_autoencoder",
        "Steering": "steering",
        "Trace": "recorder",
        "TraceMap": "patching",
        "ablate_heads": "ablation",
        "activation_names": "names",
        "activations": "running",
        "add": "edits",
        "audio_attention": "lens",
        "audio_frames": "frames",
        "causal_trace": "patching",
        "estimate_patches": "patch_estimates",
        "forced_logits": "running",
        "gap": "streaming",
        "head_mean": "recorder",
        "interleaving": "token2wav",
        "last_query": "recorder",
        "lay_out": "running",
        "listening_difference": "streaming",
        "logit_lens": "lens",
        "logit_parts": "attribution",
        "mean": "edits",
        "patch": "edits",
        "patch_between": "patching",
        "probe_data": "probe_rows",
        "record": "recorder",
        "replace": "edits",
        "resample": "edits",
        "round_trip": "token2wav",
        "run_pair": "patching",
        "run_with_edits": "running",
        "scale": "edits",
        "sound_with_edits": "sound_edits",
        "stages": "token2wav",
        "steering_between": "steering",
        "steps_with_edits": "running",
        "streamed": "streaming",
        "streamed_with_edits": "sound_edits",
        "train_probes": "probes",
        "train_sae": "sae_training",
        "transcription": "recorder",
        "voice_with_edits": "voice_edits",
        "watch_memory": "memory",
        "zero": "edits",
    },
)
