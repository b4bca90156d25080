"""Published names and shapes written down by hand, layer by layer: the witness of what `layout` reads off the nets.

Source: the reference's module trees and state dicts. No code is shared with the package but the records of sizes.
Shapes are PyTorch's, as on disk.
"""

from stepaudio.models.decoder import TextConfig
from stepaudio.models.encoder import AudioEncoderConfig
from stepaudio.models.speech_lm import StepAudioConfig
from stepaudio.models.token2wav.campplus import SpeakerConfig
from stepaudio.models.token2wav.conformer import ConformerConfig
from stepaudio.models.token2wav.dit import DitConfig
from stepaudio.models.token2wav.flow import FlowConfig
from stepaudio.models.token2wav.hift import HiftConfig
from stepaudio.models.token2wav.speech_tokenizer import S3Config

Shape = tuple[int, ...]
CONV, CONV2D, TRANSPOSED = (0, 2, 1), (0, 2, 3, 1), (1, 2, 0)  # PyTorch's axes in MLX's order
MAGNITUDE, DIRECTION = ".parametrizations.weight.original0", ".parametrizations.weight.original1"
COUNTER = ".num_batches_tracked"


def _linear(name: str, out: int, into: int, bias: bool = True) -> dict[str, Shape]:
    return {f"{name}.weight": (out, into)} | ({f"{name}.bias": (out,)} if bias else {})


def _conv(name: str, out: int, into: int, size: int) -> dict[str, Shape]:
    return {f"{name}.weight": (out, into, size), f"{name}.bias": (out,)}


def _norm(name: str, width: int) -> dict[str, Shape]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


# ---- language model ----


def main_layout(config: StepAudioConfig) -> dict[str, Shape]:
    """Every tensor of the language model; 832 for the published sizes.

    Source: the module tree of StepFun's `modeling_step_audio_2.py`.
    """
    text, audio = config.text_config, config.audio_encoder_config
    return {
        **encoder_layout(audio),
        **adapter_layout(audio),
        **decoder_layout(text),
        "lm_head.weight": (text.vocab_size, text.hidden_size),
    }


def encoder_layout(audio: AudioEncoderConfig) -> dict[str, Shape]:
    width = audio.n_audio_state
    layout = {
        **_conv("encoder.conv1", width, audio.n_mels, 3),
        **_conv("encoder.conv2", width, width, 3),
        "encoder.positional_embedding.weight": (audio.n_audio_ctx, width),
    }
    for i in range(audio.n_audio_layer):
        layout |= _encoder_block(f"encoder.blocks.{i}", width)
    return layout | _norm("encoder.after_norm", width)


def _encoder_block(name: str, width: int) -> dict[str, Shape]:
    return {
        **_norm(f"{name}.attn_ln", width),
        **_linear(f"{name}.attn.query", width, width),
        **_linear(f"{name}.attn.key", width, width, bias=False),  # as Whisper: a key bias cannot change a softmax
        **_linear(f"{name}.attn.value", width, width),
        **_linear(f"{name}.attn.out", width, width),
        **_norm(f"{name}.mlp_ln", width),
        **_linear(f"{name}.mlp.0", 4 * width, width),
        **_linear(f"{name}.mlp.2", width, 4 * width),
    }


def adapter_layout(audio: AudioEncoderConfig) -> dict[str, Shape]:
    return {
        **_conv("adapter.conv", audio.n_audio_state, audio.n_audio_state, audio.kernel_size),
        **_linear("adapter.linear1", audio.adapter_hidden, audio.n_audio_state),
        **_linear("adapter.linear2", audio.llm_dim, audio.adapter_hidden),
    }


def decoder_layout(text: TextConfig) -> dict[str, Shape]:
    layout = {"model.embed_tokens.weight": (text.vocab_size, text.hidden_size)}
    for i in range(text.num_hidden_layers):
        layout |= _decoder_layer(f"model.layers.{i}", text)
    return layout | {"model.norm.weight": (text.hidden_size,)}


def _decoder_layer(name: str, text: TextConfig) -> dict[str, Shape]:
    width, inner, kv = text.hidden_size, text.intermediate_size, text.num_key_value_heads * text.head_dim
    return {
        f"{name}.input_layernorm.weight": (width,),
        **_linear(f"{name}.self_attn.q_proj", width, width),
        **_linear(f"{name}.self_attn.k_proj", kv, width),
        **_linear(f"{name}.self_attn.v_proj", kv, width),
        **_linear(f"{name}.self_attn.o_proj", width, width, bias=False),
        f"{name}.post_attention_layernorm.weight": (width,),
        **_linear(f"{name}.mlp.gate_proj", inner, width, bias=False),
        **_linear(f"{name}.mlp.up_proj", inner, width, bias=False),
        **_linear(f"{name}.mlp.down_proj", width, inner, bias=False),
    }


# ---- speech tokenizer ----


def s3_layout(config: S3Config) -> dict[str, Shape]:
    """Published name -> shape (PyTorch layout) of every tensor; 102 for the published sizes.

    Source: the state dict of s3tokenizer's `S3TokenizerV2`, which its ONNX reader fills.
    """
    C = config.n_audio_state
    layout = {
        "encoder.conv1.weight": (C, config.n_mels, 3),
        "encoder.conv1.bias": (C,),
        "encoder.conv2.weight": (C, C, 3),
        "encoder.conv2.bias": (C,),
    }
    for i in range(config.n_audio_layer):
        for name, shape in _block_layout(C, config.fsmn_kernel).items():
            layout[f"encoder.blocks.{i}.{name}"] = shape
    narrow = "quantizer._codebook.project_down"
    return layout | {f"{narrow}.weight": (config.n_dims, C), f"{narrow}.bias": (config.n_dims,)}


def _block_layout(C: int, size: int) -> dict[str, Shape]:
    layout = {f"attn.{name}.weight": (C, C) for name in ("query", "key", "value", "out")}
    layout |= {f"attn.{name}.bias": (C,) for name in ("query", "value", "out")}  # as Whisper: none for the keys
    layout["attn.fsmn_block.weight"] = (C, 1, size)
    layout |= {f"{norm}.{kind}": (C,) for norm in ("attn_ln", "mlp_ln") for kind in ("weight", "bias")}
    layout |= {"mlp.0.weight": (4 * C, C), "mlp.0.bias": (4 * C,)}
    return layout | {"mlp.2.weight": (C, 4 * C), "mlp.2.bias": (C,)}


def s3_kernels(config: S3Config) -> frozenset[str]:
    """Tensors that the net holds as (out, k, in) and PyTorch as (out, in, k), by name; all others are alike."""
    memories = (f"encoder.blocks.{i}.attn.fsmn_block.weight" for i in range(config.n_audio_layer))
    return frozenset(("encoder.conv1.weight", "encoder.conv2.weight", *memories))


# ---- speaker encoder ----


def speaker_layout(config: SpeakerConfig) -> dict[str, Shape]:
    """Published name -> shape on disk; 937 entries for the published sizes, of which 122 are counters."""
    layout = _head(config) | _tdnn(config)
    for i, (block, (into, grown, out)) in enumerate(zip(config.blocks, config.widths(), strict=True), 1):
        for j in range(block[0]):
            width = into + j * config.growth_rate
            layout |= _dense_layer(f"xvector.block{i}.tdnnd{j + 1}", config, width, block[1])
        layout |= _batch_norm(f"xvector.transit{i}.nonlinear.batchnorm", grown)
        layout[f"xvector.transit{i}.linear.weight"] = (out, grown, 1)
    layout |= _batch_norm("xvector.out_nonlinear.batchnorm", out)
    layout["xvector.dense.linear.weight"] = (config.embedding_size, 2 * out, 1)
    return layout | _batch_norm("xvector.dense.nonlinear.batchnorm", config.embedding_size, affine=False)


def speaker_kernels(config: SpeakerConfig) -> dict[str, tuple[int, ...]]:
    """Name -> axes of every tensor that the net holds in another order than PyTorch: `t.transpose(axes)`.

    They are the network's convolutions, by name: in `head` over pictures, elsewhere over time. Batch norms and
    biases have one axis and are alike.
    """
    kernels = [name for name, shape in speaker_layout(config).items() if len(shape) > 1]
    return {name: CONV2D if name.startswith("head.") else CONV for name in kernels}


def _batch_norm(name: str, channels: int, affine: bool = True) -> dict[str, Shape]:
    kinds = ("weight", "bias", "running_mean", "running_var")[0 if affine else 2 :]
    return {f"{name}.{kind}": (channels,) for kind in kinds} | {name + COUNTER: ()}


def _conv_norm(conv: str, norm: str, out: int, into: int, size: int) -> dict[str, Shape]:
    return {f"{conv}.weight": (out, into, size, size)} | _batch_norm(norm, out)


def _head(config: SpeakerConfig) -> dict[str, Shape]:
    C = config.fcm_channels
    layout = _conv_norm("head.conv1", "head.bn1", C, 1, 3)
    for i in range(2):
        for j in range(2):
            block = f"head.layer{i + 1}.{j}"
            layout |= _conv_norm(f"{block}.conv1", f"{block}.bn1", C, C, 3)
            layout |= _conv_norm(f"{block}.conv2", f"{block}.bn2", C, C, 3)
            if j == 0:  # the block that strides over the bands
                layout |= _conv_norm(f"{block}.shortcut.0", f"{block}.shortcut.1", C, C, 1)
    return layout | _conv_norm("head.conv2", "head.bn2", C, C, 3)


def _tdnn(config: SpeakerConfig) -> dict[str, Shape]:
    C = config.init_channels
    kernel = {"xvector.tdnn.linear.weight": (C, config.head_channels, 5)}
    return kernel | _batch_norm("xvector.tdnn.nonlinear.batchnorm", C)


def _dense_layer(name: str, config: SpeakerConfig, into: int, kernel: int) -> dict[str, Shape]:
    C, growth = config.bn_channels, config.growth_rate
    inner, cam = C // 2, f"{name}.cam_layer"
    return {
        **_batch_norm(f"{name}.nonlinear1.batchnorm", into),
        f"{name}.linear1.weight": (C, into, 1),
        **_batch_norm(f"{name}.nonlinear2.batchnorm", C),
        f"{cam}.linear_local.weight": (growth, C, kernel),
        f"{cam}.linear1.weight": (inner, C, 1),
        f"{cam}.linear1.bias": (inner,),
        f"{cam}.linear2.weight": (growth, inner, 1),
        f"{cam}.linear2.bias": (growth,),
    }


# ---- flow ----


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
        **_conv("encoder.pre_lookahead_layer.conv2", C, C, 3),
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
        **_linear(f"{name}.t_embedder.mlp.0", C, 256),
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
        **_conv(f"{name}.conv.block.1", C, C, 3),
        **_norm(f"{name}.conv.block.3", C),
        **_conv(f"{name}.conv.block.6", C, C, 3),
        **_linear(f"{name}.adaLN_modulation.1", 9 * C, C),
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


# ---- vocoder ----


def hift_layout(config: HiftConfig, merged: bool = False) -> dict[str, Shape]:
    """Every tensor of `hift.pt`: published name (without "generator.") to shape on disk; 328 as published.

    With `merged`, every pair of weight-norm tensors is one kernel `NAME.weight`, as the net has it.
    """
    bins2, layout = config.istft.n_fft + 2, _linear("m_source.l_linear", 1, config.nb_harmonics + 1)
    layout |= _normed("conv_pre", config.base_channels, config.in_channels, 7)
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
    layout |= _normed("conv_post", bins2, config.stage_channels[-1], 7)
    for i in range(5):
        into = config.in_channels if i == 0 else config.f0_cond_channels
        layout |= _normed(f"f0_predictor.condnet.{2 * i}", config.f0_cond_channels, into, 3)
    layout |= _linear("f0_predictor.classifier", 1, config.f0_cond_channels)
    return _merged_names(layout) if merged else layout


def _normed(name: str, out: int, into: int, size: int, transposed: bool = False) -> dict[str, Shape]:
    first, second = (into, out) if transposed else (out, into)
    return {f"{name}.bias": (out,), name + MAGNITUDE: (first, 1, 1), name + DIRECTION: (first, second, size)}


def _resblock(name: str, C: int, size: int, n: int) -> dict[str, Shape]:
    layout: dict[str, Shape] = {}
    for i in range(n):
        layout |= _normed(f"{name}.convs1.{i}", C, C, size) | _normed(f"{name}.convs2.{i}", C, C, size)
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
