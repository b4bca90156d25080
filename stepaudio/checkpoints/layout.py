"""Names and shapes of every tensor of the published model, computed from the sizes in its config alone.

Shapes are PyTorch's, as on disk: Linear `(out, in)`, Conv1d `(out, in, k)`, Embedding `(rows, dim)`. The nets
hold convolution kernels as MLX wants them, `(out, k, in)`; which tensors those are is a closed list of names.
Knows nothing of files, dtypes or values.
"""

from __future__ import annotations

from ..models.decoder import TextConfig
from ..models.encoder import AudioEncoderConfig
from ..models.speech_lm import StepAudioConfig

COMPONENTS = ("encoder", "adapter", "model", "lm_head")  # first segment of every published name
SPEAKING = ("tokenizer", "speaker", "flow", "hift")  # of the speaking half; in reports they stand before a name
ENCODER_KERNEL = 3  # taps of conv1 and conv2: a literal in the reference; `kernel_size` is the adapter's

# By name and never by shape: a kernel whose sizes happen to agree would otherwise go in the wrong way round.
SWAPPED_KERNELS = frozenset({"encoder.conv1.weight", "encoder.conv2.weight", "adapter.conv.weight"})
KERNEL_AXES = (0, 2, 1)  # (out, in, k) <-> (out, k, in); its own inverse

Shape = tuple[int, ...]


def expected_layout(config: StepAudioConfig) -> dict[str, Shape]:
    """Every tensor of the published main model.

    Parameters
    ----------
    config : StepAudioConfig
        Sizes of the nets.

    Returns
    -------
    dict of str to tuple of int
        Published name to shape on disk (PyTorch layout), in the order of the forward pass. 832 entries for
        the published sizes. Source: the module tree of StepFun's `modeling_step_audio_2.py`.
    """
    text, audio = config.text_config, config.audio_encoder_config
    return {
        **_encoder(audio),
        **_adapter(audio),
        **_decoder(text),
        "lm_head.weight": (text.vocab_size, text.hidden_size),
    }


def component_of(name: str) -> str:
    """One of `COMPONENTS` or `SPEAKING` by the first segment of `name`; anything else is `other`."""
    first = name.split(".", 1)[0]
    return first if first in COMPONENTS or first in SPEAKING else "other"


def mlx_shape(name: str, shape: Shape) -> Shape:
    """Shape that the net holds for the published tensor `name` of shape `shape`; also its own inverse."""
    return tuple(shape[axis] for axis in KERNEL_AXES) if name in SWAPPED_KERNELS else tuple(shape)


def _linear(name: str, out: int, into: int, bias: bool = True) -> dict[str, Shape]:
    layout = {f"{name}.weight": (out, into)}
    return layout | {f"{name}.bias": (out,)} if bias else layout


def _conv(name: str, out: int, into: int, taps: int) -> dict[str, Shape]:
    return {f"{name}.weight": (out, into, taps), f"{name}.bias": (out,)}


def _layer_norm(name: str, width: int) -> dict[str, Shape]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _encoder(audio: AudioEncoderConfig) -> dict[str, Shape]:
    width = audio.n_audio_state
    layout = {
        **_conv("encoder.conv1", width, audio.n_mels, ENCODER_KERNEL),
        **_conv("encoder.conv2", width, width, ENCODER_KERNEL),
        "encoder.positional_embedding.weight": (audio.n_audio_ctx, width),
    }
    for i in range(audio.n_audio_layer):
        layout |= _encoder_block(f"encoder.blocks.{i}", width)
    return layout | _layer_norm("encoder.after_norm", width)


def _encoder_block(name: str, width: int) -> dict[str, Shape]:
    return {
        **_layer_norm(f"{name}.attn_ln", width),
        **_linear(f"{name}.attn.query", width, width),
        **_linear(f"{name}.attn.key", width, width, bias=False),  # as Whisper: a key bias cannot change a softmax
        **_linear(f"{name}.attn.value", width, width),
        **_linear(f"{name}.attn.out", width, width),
        **_layer_norm(f"{name}.mlp_ln", width),
        **_linear(f"{name}.mlp.0", 4 * width, width),
        **_linear(f"{name}.mlp.2", width, 4 * width),
    }


def _adapter(audio: AudioEncoderConfig) -> dict[str, Shape]:
    return {
        **_conv("adapter.conv", audio.n_audio_state, audio.n_audio_state, audio.kernel_size),
        **_linear("adapter.linear1", audio.adapter_hidden, audio.n_audio_state),
        **_linear("adapter.linear2", audio.llm_dim, audio.adapter_hidden),
    }


def _decoder(text: TextConfig) -> dict[str, Shape]:
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
