"""Names and shapes of every tensor of `flow.pt` and `hift.pt`, from the sizes in their configs alone; and how
published tensors go into the nets.

Shapes are PyTorch's, as on disk. Which tensors are kernels, and which of these belong to transposed convolutions,
is decided by name, never by shape. The vocoder is published with weight norm as two tensors per kernel (magnitude
`original0`, direction `original1`); the net holds their product. Knows no files.
"""

from __future__ import annotations

from collections.abc import Mapping

import mlx.core as mx
import numpy as np

from ..errors import WeightsError
from ..models.token2wav.conformer import LOOKAHEAD_MEMORY, ConformerConfig
from ..models.token2wav.dit import KERNEL, MODULATIONS, TIME_CHANNELS, DitConfig
from ..models.token2wav.flow import FlowConfig
from ..models.token2wav.hift import EDGE_KERNEL, F0_KERNEL, F0_LAYERS, HiftConfig

Shape = tuple[int, ...]
CONV = (0, 2, 1)  # (out, in, k) -> (out, k, in)
TRANSPOSED = (1, 2, 0)  # (in, out, k) -> (out, k, in)
MAGNITUDE, DIRECTION = ".parametrizations.weight.original0", ".parametrizations.weight.original1"


def _linear(name: str, out: int, into: int, bias: bool = True) -> dict[str, Shape]:
    return {f"{name}.weight": (out, into)} | ({f"{name}.bias": (out,)} if bias else {})


def _conv(name: str, out: int, into: int, taps: int) -> dict[str, Shape]:
    return {f"{name}.weight": (out, into, taps), f"{name}.bias": (out,)}


def _norm(name: str, width: int) -> dict[str, Shape]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def flow_layout(config: FlowConfig) -> dict[str, Shape]:
    """Every tensor of `flow.pt`: published name to shape on disk; 605 for the published sizes."""
    return {
        "input_embedding.weight": (config.vocab_size, config.input_size),
        **_linear("spk_embed_affine_layer", config.output_size, config.spk_embed_dim),
        **_conformer(config.encoder),
        **_linear("encoder_proj", config.output_size, config.encoder.output_size),
        **_estimator("decoder.estimator", config.decoder.estimator),
    }


def _conformer(c: ConformerConfig) -> dict[str, Shape]:
    C = c.output_size
    layout = {
        **_linear("encoder.embed.out.0", C, c.input_size),
        **_norm("encoder.embed.out.1", C),
        **_norm("encoder.after_norm", C),
        **_conv("encoder.pre_lookahead_layer.conv1", C, C, c.pre_lookahead_len + 1),
        **_conv("encoder.pre_lookahead_layer.conv2", C, C, LOOKAHEAD_MEMORY + 1),
        **_conv("encoder.up_layer.conv", C, C, 2 * c.up_stride + 1),
        **_linear("encoder.up_embed.out.0", C, c.input_size),
        **_norm("encoder.up_embed.out.1", C),
    }
    for stack, n in (("encoders", c.num_blocks), ("up_encoders", c.num_up_blocks)):
        for i in range(n):
            layout |= _conformer_layer(f"encoder.{stack}.{i}", c)
    return layout


def _conformer_layer(name: str, c: ConformerConfig) -> dict[str, Shape]:
    C, head = c.output_size, (c.attention_heads, c.output_size // c.attention_heads)
    return {
        f"{name}.self_attn.pos_bias_u": head,
        f"{name}.self_attn.pos_bias_v": head,
        **_linear(f"{name}.self_attn.linear_q", C, C),
        **_linear(f"{name}.self_attn.linear_k", C, C, c.key_bias),
        **_linear(f"{name}.self_attn.linear_v", C, C),
        **_linear(f"{name}.self_attn.linear_out", C, C),
        **_linear(f"{name}.self_attn.linear_pos", C, C, bias=False),
        **_linear(f"{name}.feed_forward.w_1", c.linear_units, C),
        **_linear(f"{name}.feed_forward.w_2", C, c.linear_units),
        **_norm(f"{name}.norm_ff", C),
        **_norm(f"{name}.norm_mha", C),
    }


def _estimator(name: str, c: DitConfig) -> dict[str, Shape]:
    C = c.hidden_size
    layout = {
        **_linear(f"{name}.t_embedder.mlp.0", C, TIME_CHANNELS),
        **_linear(f"{name}.t_embedder.mlp.2", C, C),
        **_linear(f"{name}.in_proj", C, c.in_channels),
    }
    for i in range(c.depth):
        layout |= _dit_block(f"{name}.blocks.{i}", c)
    return {
        **layout,
        **_linear(f"{name}.final_layer.adaLN_modulation.1", 2 * C, C),
        **_linear(f"{name}.final_layer.linear", c.out_channels, C),
    }


def _dit_block(name: str, c: DitConfig) -> dict[str, Shape]:
    C, inner = c.hidden_size, c.num_heads * c.head_dim
    return {
        **_linear(f"{name}.attn.to_q", inner, C),
        **_linear(f"{name}.attn.to_k", inner, C),
        **_linear(f"{name}.attn.to_v", inner, C),
        **_norm(f"{name}.attn.q_norm", c.head_dim),
        **_norm(f"{name}.attn.k_norm", c.head_dim),
        **_linear(f"{name}.attn.proj", C, inner),
        **_linear(f"{name}.mlp.fc1", c.mlp_size, C),
        **_linear(f"{name}.mlp.fc2", C, c.mlp_size),
        **_conv(f"{name}.conv.block.1", C, C, KERNEL),
        **_norm(f"{name}.conv.block.3", C),
        **_conv(f"{name}.conv.block.6", C, C, KERNEL),
        **_linear(f"{name}.adaLN_modulation.1", MODULATIONS * C, C),
    }


def flow_kernels(config: FlowConfig) -> dict[str, Shape]:
    """Names of the flow's convolution kernels, each with the order of axes that turns it into the net's."""
    depth = config.decoder.estimator.depth
    names = [
        "encoder.pre_lookahead_layer.conv1",
        "encoder.pre_lookahead_layer.conv2",
        "encoder.up_layer.conv",
        *(f"decoder.estimator.blocks.{i}.conv.block.{j}" for i in range(depth) for j in (1, 6)),
    ]
    return {f"{name}.weight": CONV for name in names}


def hift_layout(config: HiftConfig, merged: bool = False) -> dict[str, Shape]:
    """Every tensor of `hift.pt`: published name (without "generator.") to shape on disk; 328 as published.

    With `merged`, every pair of weight-norm tensors is one kernel `NAME.weight`, as the net has it.
    """
    bins2, layout = config.istft.n_fft + 2, _linear("m_source.l_linear", 1, config.nb_harmonics + 1)
    layout |= _normed("conv_pre", config.base_channels, config.in_channels, EDGE_KERNEL)
    per_stage = len(config.resblock_kernel_sizes)
    for i, C in enumerate(config.stage_channels):
        layout |= _normed(f"ups.{i}", C, 2 * C, config.upsample_kernel_sizes[i], transposed=True)
        stride = config.source_strides[i]
        layout |= _conv(f"source_downs.{i}", C, bins2, 1 if stride == 1 else 2 * stride)
        layout |= _resblock(
            f"source_resblocks.{i}",
            C,
            config.source_resblock_kernel_sizes[i],
            len(config.source_resblock_dilation_sizes[i]),
        )
        for j, (kernel, dilations) in enumerate(
            zip(config.resblock_kernel_sizes, config.resblock_dilation_sizes, strict=True)
        ):
            layout |= _resblock(f"resblocks.{i * per_stage + j}", C, kernel, len(dilations))
    layout |= _normed("conv_post", bins2, config.stage_channels[-1], EDGE_KERNEL)
    for i in range(F0_LAYERS):
        into = config.in_channels if i == 0 else config.f0_cond_channels
        layout |= _normed(f"f0_predictor.condnet.{2 * i}", config.f0_cond_channels, into, F0_KERNEL)
    layout |= _linear("f0_predictor.classifier", 1, config.f0_cond_channels)
    return _merged_names(layout) if merged else layout


def _normed(name: str, out: int, into: int, taps: int, transposed: bool = False) -> dict[str, Shape]:
    first, second = (into, out) if transposed else (out, into)
    return {f"{name}.bias": (out,), name + MAGNITUDE: (first, 1, 1), name + DIRECTION: (first, second, taps)}


def _resblock(name: str, C: int, taps: int, n: int) -> dict[str, Shape]:
    layout: dict[str, Shape] = {}
    for i in range(n):
        layout |= _normed(f"{name}.convs1.{i}", C, C, taps) | _normed(f"{name}.convs2.{i}", C, C, taps)
        layout |= {f"{name}.activations1.{i}.alpha": (C,), f"{name}.activations2.{i}.alpha": (C,)}
    return layout


def _merged_names(layout: dict[str, Shape]) -> dict[str, Shape]:
    return {n.replace(DIRECTION, ".weight"): s for n, s in layout.items() if not n.endswith(MAGNITUDE)}


def hift_kernels(config: HiftConfig) -> dict[str, Shape]:
    """Names (merged) of the vocoder's kernels, each with the order of axes that turns it into the net's."""
    pairs = {n.removesuffix(DIRECTION) for n in hift_layout(config) if n.endswith(DIRECTION)}
    plain = {f"source_downs.{i}" for i in range(len(config.upsample_rates))}
    backwards = {f"ups.{i}" for i in range(len(config.upsample_rates))}
    return {f"{name}.weight": TRANSPOSED if name in backwards else CONV for name in sorted(pairs | plain)}


def published_hift_name(name: str) -> str:
    """A name as stored -> as laid out here: every "generator." is dropped, as the reference does before loading."""
    return name.replace("generator.", "")


def merge_weight_norm(magnitude: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """The kernel g v / |v|, the length taken over all axes but the first (Salimans and Kingma 2016).

    `magnitude` (n, 1, 1), `direction` (n, ., .); also right for transposed convolutions, whose first axis is `in`.
    """
    v = np.asarray(direction, np.float64)
    length = np.sqrt((v**2).sum(axis=tuple(range(1, v.ndim)), keepdims=True))
    if not length.all():
        raise WeightsError("weight norm: a kernel has a direction of length zero; the file is damaged")
    return (np.asarray(magnitude, np.float64) * v / length).astype(np.float32)


def flow_weights(tensors: Mapping[str, np.ndarray], config: FlowConfig) -> list[tuple[str, mx.array]]:
    """Published tensors of `flow.pt` as the net holds them. Raises `WeightsError` naming what does not fit."""
    _check(tensors, flow_layout(config), "flow")
    return _turned(tensors, flow_kernels(config))


def hift_weights(tensors: Mapping[str, np.ndarray], config: HiftConfig) -> list[tuple[str, mx.array]]:
    """Published tensors of `hift.pt`, with or without weight norm merged, as the net holds them.

    Raises `WeightsError` naming what does not fit.
    """
    tensors = {published_hift_name(n): a for n, a in tensors.items()}
    if not any(n.endswith(DIRECTION) for n in tensors):
        _check(tensors, hift_layout(config, merged=True), "hift")
        return _turned(tensors, hift_kernels(config))
    _check(tensors, hift_layout(config), "hift")
    merged = {}
    for name, array in tensors.items():
        if name.endswith(DIRECTION):
            stem = name.removesuffix(DIRECTION)
            merged[f"{stem}.weight"] = merge_weight_norm(tensors[stem + MAGNITUDE], array)
        elif not name.endswith(MAGNITUDE):
            merged[name] = array
    return _turned(merged, hift_kernels(config))


def _check(tensors: Mapping[str, np.ndarray], layout: dict[str, Shape], what: str) -> None:
    missing, spare = [n for n in layout if n not in tensors], sorted(set(tensors) - set(layout))
    if missing:
        raise WeightsError(f"{what}: {len(missing)} of {len(layout)} tensors are missing, first {missing[0]}")
    if spare:
        raise WeightsError(f"{what}: {len(spare)} tensors have no place in the net, first {spare[0]}")
    for name, shape in layout.items():
        if tuple(tensors[name].shape) != shape:
            raise WeightsError(f"{what}: {name} has shape {tuple(tensors[name].shape)}, expected {shape}")


def _turned(tensors: Mapping[str, np.ndarray], kernels: dict[str, Shape]) -> list[tuple[str, mx.array]]:
    return [(n, mx.array(np.transpose(a, kernels[n]) if n in kernels else np.asarray(a))) for n, a in tensors.items()]
