"""The values that training starts from."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
from mlx.utils import tree_unflatten

from ..models.parameters import named_arrays
from ..models.speech_lm import StepAudioNet

RESIDUAL_OUTPUTS = ("attn.out.weight", "mlp.2.weight", "o_proj.weight", "down_proj.weight")


def initialise(net: StepAudioNet) -> dict:
    """Fresh parameters: narrow normals, residual outputs narrower still, sinusoids for the audio positions."""
    config = net.config
    depth = {"encoder": config.audio_encoder_config.n_audio_layer, "model": config.text_config.num_hidden_layers}
    fresh = []
    for name, value in named_arrays(net.parameters()):
        if name == "encoder.positional_embedding.weight":
            value = sinusoids(*value.shape)
        elif value.ndim >= 2:
            fan_in = value.size // value.shape[0]
            std = 0.02 if "embed_tokens" in name or "lm_head" in name else fan_in**-0.5
            if name.endswith(RESIDUAL_OUTPUTS):
                std /= (2 * depth[name.split(".")[0]]) ** 0.5
            value = mx.random.normal(value.shape) * std
        elif name.endswith("bias"):
            value = mx.zeros(value.shape)
        fresh.append((name, value))
    return dict(tree_unflatten(fresh))


def sinusoids(length: int, channels: int) -> mx.array:
    """Fixed position table (length, channels) of Vaswani et al. 2017 in Whisper's arrangement: sines, then cosines."""
    rate = np.exp(-np.log(10_000) / (channels // 2 - 1) * np.arange(channels // 2))
    angle = np.arange(length)[:, None] * rate[None, :]
    return mx.array(np.concatenate([np.sin(angle), np.cos(angle)], axis=1).astype(np.float32))
