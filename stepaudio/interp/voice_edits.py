"""Edits inside the nets that read a voice, addressed as "speech_tokenizer.<name>" and "speaker_encoder.<name>"."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..checkpoints.token2wav import Token2Wav
from ..choices import Resampler
from ..constants import FRAMES_PER_SECOND
from ..models.tap import chain
from ..models.token2wav.campplus import TDNN_STRIDE
from ..models.token2wav.speech_tokenizer import SECOND_STRIDE
from ..synthesis.synthesizer import Synthesizer
from ..synthesis.voice import ClipFeatures, Voice, clip_features
from .donor import Activations
from .edits import Edits
from .names import TOKEN2WAV_GLOSSARY
from .sound_editor import Kept, Names, SoundEditTap

NETS = ("speech_tokenizer", "speaker_encoder")


def voice_names(parts: Token2Wav) -> Names:
    """Every activation of speech tokenizer and speaker encoder: its axes, and the sizes of those the nets decide."""
    of_codes, of_voice = parts.tokenizer.config, parts.speaker.config
    K, widths = of_codes.n_audio_state // of_codes.n_audio_head, of_voice.widths()
    channels = {"head": of_voice.head_channels, "tdnn": of_voice.init_channels, "stats": 2 * widths[-1][2],
                "embedding": of_voice.embedding_size}  # fmt: skip
    found: dict[str, tuple[tuple[str, ...], dict[str, int]]] = {}
    for name, meaning in TOKEN2WAV_GLOSSARY["speech_tokenizer"].items():
        axes = tuple("D" if axis == "8" else axis for axis in meaning.axes)  # digits of a code; fewer in small nets
        sizes = {"C": of_codes.n_audio_state, "H": of_codes.n_audio_head, "K": K, "D": of_codes.n_dims}
        for i in range(of_codes.n_audio_layer if "{i}" in name else 1):
            found[f"speech_tokenizer.{name.replace('{i}', str(i))}"] = axes, sizes
    for name, meaning in TOKEN2WAV_GLOSSARY["speaker_encoder"].items():
        for i in range(len(widths) if "{i}" in name else 1):
            size = widths[i][2] if "{i}" in name else channels[name]
            found[f"speaker_encoder.{name.replace('{i}', str(i + 1))}"] = meaning.axes, {"C": size}
    return found


class VoiceAxes:
    """The axes of time of a clip, in the nets that read a voice from it."""

    def __init__(self, parts: Token2Wav, features: ClipFeatures):
        config, frames = parts.tokenizer.config, features.log_mel.shape[1]
        self.seconds, self.n_codes = features.seconds, int(config.n_codes(frames))
        self._conv1, self._bands = (frames - 1) // config.stride + 1, len(features.bands)
        self._stride = config.stride

    def origin(self, name: str, letter: str) -> tuple[int, float]:
        """Entry 0, as the clip begins at second 0, and how many there are per second."""
        strides = {"speech_tokenizer.conv1": self._stride, "speaker_encoder.head": 1}
        other = TDNN_STRIDE if name.startswith("speaker_encoder.") else SECOND_STRIDE * self._stride
        return 0, FRAMES_PER_SECOND / strides.get(name, other)

    def length(self, name: str, letter: str) -> int | None:
        """Entries along an axis."""
        lengths = {"speech_tokenizer.conv1": self._conv1, "speaker_encoder.head": self._bands}
        other = (self._bands - 1) // TDNN_STRIDE + 1 if name.startswith("speaker_encoder.") else self.n_codes
        return lengths.get(name, other)

    def positions(self, name: str, letter: str, n: int) -> np.ndarray:
        """(n,) positions: the clip is read at once."""
        return np.arange(n)

    def made(self, name: str) -> int:
        """None."""
        return 0


def voice_with_edits(
    synthesizer: Synthesizer,
    source,
    edits: Edits,
    *,
    keep: str | Sequence[str] = (),
    sr: float | None = None,
    sample_rate: float | None = None,
    resampler: str = Resampler.REFERENCE,
) -> tuple[Voice, Activations]:
    """Read a voice from a clip, as `Synthesizer.voice` does, with edits in the nets that read it.

    Parameters
    ----------
    source : a clip, path or samples at 16 kHz; of 30 s at most.
    edits : names begin with "speech_tokenizer." or "speaker_encoder."; seconds are those of the clip, positions entries
        of the activation's own axis of time.
    keep : patterns of activations to keep, as a donor for `patch`, `mean` and `resample`.
    sample_rate, resampler : as `Voice.from_clip`.

    Returns
    -------
    The voice, which speaks with the same weights as others, and what was kept.

    Raises
    ------
    ConfigError : an edit that cannot apply; the nets have not run then. Others as `Voice.from_clip`.
    """
    parts = synthesizer.parts
    features = clip_features(parts, source, sample_rate=sample_rate, resampler=resampler)
    names, axes = voice_names(parts), VoiceAxes(parts, features)
    editing, kept = SoundEditTap(edits, names, axes), Kept(keep, names, axes)
    return Voice.of_features(parts, features, synthesizer.weights, chain(editing, kept)), kept.found
