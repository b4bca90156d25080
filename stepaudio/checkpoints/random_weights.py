"""The four nets of token2wav randomly initialised from a seed: of a small size, or of the published one.

For looking at shapes, order and timing where no trained weights are. Such nets say nothing that is speech; codes,
mels and waves have the published rates and the small net the published bands, codebook and hop. Opens no file.
"""

from __future__ import annotations

import zlib
from typing import Any

import mlx.core as mx
import numpy as np

from ..errors import ConfigError
from ..models.token2wav.campplus import SpeakerConfig
from ..models.token2wav.flow import FlowConfig
from ..models.token2wav.hift import Hift, HiftConfig
from ..models.token2wav.speech_tokenizer import S3Config
from .layout import TOKEN2WAV, Token2WavConfig, build, parameters_of
from .token2wav import Token2Wav

ONES = (".running_var", ".alpha")
PITCH = 150.0  # Hz; without an offset, random weights would leave every frame unvoiced
PITCH_SPREAD = 60.0  # factor on the weights that move it
LEVEL, CALM = 0.5, 0.25  # added to log magnitudes, and a factor on what makes them: without, sound leaves full scale


def flow_config(width: int, heads: int, blocks: int, up_blocks: int, depth: int, speaker: int) -> FlowConfig:
    """Sizes of a flow whose other settings are the published ones.

    Parameters
    ----------
    width, heads : int > 0
        Channels and attention heads, of encoder and estimator.
    blocks, up_blocks : int > 0
        Layers of the encoder before and after it doubles the frames.
    depth : int > 0
        Blocks of the estimator.
    speaker : int > 0
        Numbers of a speaker vector.
    """
    encoder = {
        "input_size": width,
        "output_size": width,
        "input_layer": "linear",
        "pre_lookahead_len": 3,
        "num_blocks": blocks,
        "num_up_blocks": up_blocks,
        "up_stride": 2,
        "up_scale_factor": 2,
        "attention_heads": heads,
        "pos_enc_layer_type": "rel_pos_espnet",
        "selfattention_layer_type": "rel_selfattn",
        "key_bias": True,
        "linear_units": 4 * width,
        "dropout_rate": 0.1,
        "positional_dropout_rate": 0.1,
        "attention_dropout_rate": 0.1,
        "normalize_before": True,
    }
    estimator = {
        "in_channels": 320,
        "out_channels": 80,
        "mlp_ratio": 4.0,
        "depth": depth,
        "num_heads": heads,
        "head_dim": width // heads,
        "hidden_size": width,
    }
    return FlowConfig.from_dict(
        {
            "input_size": width,
            "output_size": 80,
            "spk_embed_dim": speaker,
            "output_type": "mel",
            "vocab_size": 6561,
            "encoder": encoder,
            "decoder": {"inference_cfg_rate": 0.7, "estimator": estimator},
        }
    )


def sizes(size: str = "small") -> dict[str, Token2WavConfig]:
    """The configs of the four nets, by component: "small", or "published" (those of Step-Audio 2 mini)."""
    if size == "published":
        return {
            "tokenizer": S3Config(),
            "speaker": SpeakerConfig(),
            "flow": flow_config(512, 8, 6, 4, 16, 192),
            "hift": HiftConfig(),
        }
    if size == "small":
        speaker = SpeakerConfig(
            embedding_size=32, growth_rate=8, bn_size=2, init_channels=16, blocks=((2, 3, 1), (2, 3, 2)), fcm_channels=4
        )
        return {
            "tokenizer": S3Config(n_audio_state=64, n_audio_head=4, n_audio_layer=2),
            "speaker": speaker,
            "flow": flow_config(64, 4, 2, 1, 2, 32),
            "hift": HiftConfig(base_channels=32, f0_cond_channels=32),
        }
    raise ConfigError(f"size: expected 'small' or 'published', found {size!r}")


def random_token2wav(size: str = "small", seed: int = 0) -> Token2Wav:
    """Nets with random weights that `seed` decides, alike on every machine.

    Kernels and matrices are normal with a variance of 1 / inputs, norms and variances 1, biases 0; but pitch lies
    around 150 Hz, so that there is voice, and the vocoder's magnitudes are evened out, so that it stays below full
    scale.

    Parameters
    ----------
    size : {"small", "published"}
    seed : int >= 0

    Raises
    ------
    ConfigError
        Another size, or a seed below 0.
    """
    if seed < 0:
        raise ConfigError(f"seed: must not be negative, found {seed}")
    nets: dict[str, Any] = {name: random_net(config, (seed, i)) for i, (name, config) in enumerate(sizes(size).items())}
    hift: Hift = nets["hift"]
    hift.f0_predictor.classifier.bias = mx.array([PITCH])
    hift.f0_predictor.classifier.weight = hift.f0_predictor.classifier.weight * PITCH_SPREAD
    bins = hift.config.istft.n_fft // 2 + 1
    hift.conv_post.weight = hift.conv_post.weight * CALM
    hift.conv_post.bias = mx.concatenate([mx.full((bins,), LEVEL), mx.zeros((bins,))])
    mx.eval([net.parameters() for net in nets.values()])
    return Token2Wav(**{name: nets[name] for name in TOKEN2WAV})


def random_net(config: Token2WavConfig, seed: tuple[int, ...]) -> Any:
    """One net of these sizes, as `random_token2wav` initialises all; what MLX drew at construction is never computed.

    Every tensor comes from the seed and its own name.
    """
    net = build(config)
    net.load_weights([(name, _values(name, array.shape, seed)) for name, array in parameters_of(net).items()])
    return net.eval()


def _values(name: str, shape: tuple[int, ...], seed: tuple[int, ...]) -> mx.array:
    if len(shape) < 2:
        return mx.full(shape, 1.0 if name.endswith((".weight", *ONES)) else 0.0)
    rng = np.random.default_rng((*seed, zlib.crc32(name.encode())))
    fan_in = shape[-1] if "embedding" in name else int(np.prod(shape[1:]))
    return mx.array(rng.standard_normal(shape, np.float32) * np.float32(fan_in**-0.5))
