"""Audio embeddings of a trained model, which those of another encoder are drawn to."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx

from ..checkpoints.load import load_weights
from ..constants import HOP, TAIL_PADDING
from ..errors import ConfigError
from ..models.encoder import n_rows
from ..models.speech_lm import StepAudioConfig, StepAudioNet
from .augment import clean_filters, gather_wave, log_mel_batch


class Teacher:
    """Encoder and adapter of a checkpoint. They hear each example as it was spoken, without what is done to the sound.

    Parameters
    ----------
    folder : of a checkpoint in the published layout.
    config : sizes of the net that learns. dtype : of the weights.

    Raises
    ------
    ConfigError : audio embeddings of another width or rate than those of the net that learns.
    WeightsError : tensors that are not those of the folder's config.
    """

    def __init__(self, folder: Path, config: StepAudioConfig, dtype: mx.Dtype):
        own = StepAudioConfig.from_file(folder)
        theirs, ours = ((c.audio_encoder_config.llm_dim, c.audio_encoder_config.adapter_stride) for c in (own, config))
        if theirs != ours:
            raise ConfigError(
                f"{folder}: its audio embeddings have (channels, stride) {theirs}, those of the net to be trained "
                f"{ours}; a teacher's must be alike"
            )
        net = StepAudioNet(own)
        load_weights(net, folder, own, dtype)
        self._encoder, self._adapter = net.encoder, net.adapter
        self._n_mels, self._stride, self._dtype = own.audio_encoder_config.n_mels, ours[1], dtype

    def __call__(self, pcm: mx.array, batch: dict, N: int) -> tuple[mx.array, mx.array]:
        """Audio embeddings (B, R, D) of one described batch of N samples, and which of them count (B, R)."""
        mels = log_mel_batch(gather_wave(pcm, batch, N), batch["length"], clean_filters(self._n_mels))
        x_len = (batch["length"] + TAIL_PADDING) // HOP - 2
        encoded = self._encoder(mels.transpose(0, 2, 1).astype(self._dtype), x_len, independent=True)
        audio = self._adapter(encoded)
        own = mx.arange(audio.shape[1])[None] < n_rows(x_len, self._stride)[:, None]
        return audio, own & batch["taught"][:, None].astype(mx.bool_)
