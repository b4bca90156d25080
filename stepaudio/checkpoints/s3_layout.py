"""Names and shapes of the speech tokenizer's published tensors, from its sizes."""

from __future__ import annotations

from ..models.token2wav.speech_tokenizer import CONV_TAPS, S3Config
from .layout import Shape


def s3_layout(config: S3Config) -> dict[str, Shape]:
    """Published name -> shape (PyTorch layout) of every tensor; 102 for the published sizes.

    Source: the state dict of s3tokenizer's `S3TokenizerV2`, which its ONNX reader fills.
    """
    C = config.n_audio_state
    layout = {
        "encoder.conv1.weight": (C, config.n_mels, CONV_TAPS),
        "encoder.conv1.bias": (C,),
        "encoder.conv2.weight": (C, C, CONV_TAPS),
        "encoder.conv2.bias": (C,),
    }
    for i in range(config.n_audio_layer):
        for name, shape in _block_layout(C, config.fsmn_kernel).items():
            layout[f"encoder.blocks.{i}.{name}"] = shape
    narrow = "quantizer._codebook.project_down"
    return layout | {f"{narrow}.weight": (config.n_dims, C), f"{narrow}.bias": (config.n_dims,)}


def _block_layout(C: int, taps: int) -> dict[str, Shape]:
    layout = {f"attn.{name}.weight": (C, C) for name in ("query", "key", "value", "out")}
    layout |= {f"attn.{name}.bias": (C,) for name in ("query", "value", "out")}  # as Whisper: none for the keys
    layout["attn.fsmn_block.weight"] = (C, 1, taps)
    layout |= {f"{norm}.{kind}": (C,) for norm in ("attn_ln", "mlp_ln") for kind in ("weight", "bias")}
    layout |= {"mlp.0.weight": (4 * C, C), "mlp.0.bias": (4 * C,)}
    return layout | {"mlp.2.weight": (C, 4 * C), "mlp.2.bias": (C,)}


def s3_kernels(config: S3Config) -> frozenset[str]:
    """Tensors that the net holds as (out, k, in) and PyTorch as (out, in, k), by name; all others are alike."""
    memories = (f"encoder.blocks.{i}.attn.fsmn_block.weight" for i in range(config.n_audio_layer))
    return frozenset(("encoder.conv1.weight", "encoder.conv2.weight", *memories))
