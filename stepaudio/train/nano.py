"""The bundled model nano: its sizes, its vocabulary, and how trained weights become the folder data/nano."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_map

from ..checkpoints.dtypes import SCALED
from ..checkpoints.header import read_checkpoint, read_header
from ..checkpoints.int8 import widened_pairs, with_scales
from ..checkpoints.layout import axes_of, to_net
from ..checkpoints.load import load_weights
from ..checkpoints.save import save_checkpoint
from ..checkpoints.tensors import lazy_arrays
from ..errors import ConfigError, DataError
from ..models.decoder import TextConfig
from ..models.encoder import AudioEncoderConfig
from ..models.parameters import named_arrays
from ..models.speech_lm import StepAudioConfig, StepAudioNet
from ..text.prompts import ASR_SYSTEM
from ..text.tokenizer import Tokenizer

ENCODER = "encoder."
SIZED = {"positional_embedding.weight": 2, "conv1.weight": 3}  # what says the sizes of an encoder: its axes
TABLES = ("embedding.weight", "embed_tokens.weight")  # ends of their names
TEXT_VOCABULARY = 1536  # byte-level BPE tokens below the special ones


def train_tokenizer(texts: Iterable[str], folder: Path) -> Tokenizer:
    """A small tokenizer in the published file set. The prompt is repeated so that it costs few tokens."""
    lines = [" " + t for t in texts]
    grammar = [ASR_SYSTEM, "system\n", "human\n", "assistant\n"] * (len(lines) // 20 + 10)
    tokenizer = Tokenizer.train(lines + grammar, TEXT_VOCABULARY)
    tokenizer.save(folder)
    return tokenizer


def read_encoder(path: Path) -> dict[str, mx.array]:
    """The arrays `encoder.…` of a safetensors file in the published layout, by the names and axes of `AudioEncoder`.

    Raises
    ------
    WeightsError : the file cannot be read.
    DataError : it holds none.
    """
    read_header(path)
    found = widened_pairs(lazy_arrays(path))
    arrays = {n: to_net(v, axes_of(StepAudioConfig, n)) for n, v in found.items() if n.startswith(ENCODER)}
    if not arrays:
        raise DataError(f"{path}: expected arrays named {ENCODER}…, as data/recipe/whisper_encoder.py writes them")
    return {name.removeprefix(ENCODER): mx.contiguous(value) for name, value in arrays.items()}


def encoder_sizes(arrays: dict[str, mx.array]) -> dict[str, int]:
    """What the config of an encoder says, of one whose heads have 64 channels, as all of Whisper's have.

    Raises
    ------
    DataError : an array that says a size is missing, or has other axes.
    """
    shapes: dict[str, tuple[int, ...]] = {name: arrays[name].shape if name in arrays else () for name in SIZED}
    odd = [f"{name} of {shapes[name]}" for name, n_axes in SIZED.items() if len(shapes[name]) != n_axes]
    if odd:
        raise DataError(f"no encoder: expected arrays of {SIZED} axes, found {', '.join(odd)}")
    n_audio_ctx, n_audio_state = shapes["positional_embedding.weight"]
    return {
        "n_mels": shapes["conv1.weight"][-1],
        "n_audio_ctx": n_audio_ctx,
        "n_audio_state": n_audio_state,
        "n_audio_head": n_audio_state // 64,
        "n_audio_layer": sum(name.endswith("attn_ln.weight") for name in arrays),
    }


NANO_ENCODER = {"n_mels": 128, "n_audio_ctx": 1500, "n_audio_state": 256, "n_audio_head": 4, "n_audio_layer": 6}


def nano_config(
    vocab_rows: int, width: int = 256, layers: int = 4, encoder: dict[str, int] = NANO_ENCODER
) -> StepAudioConfig:
    """About 13.5 M parameters: the published architecture at a fifth of its width and fewer layers.

    Parameters
    ----------
    vocab_rows : rows of the embedding table. width, layers : of the decoder; the width a multiple of 128.
    encoder : sizes of another encoder, as `encoder_sizes` gives them.
    """
    text = TextConfig(
        hidden_size=width,
        intermediate_size=5 * width // 2,
        num_attention_heads=width // 64,
        num_key_value_heads=2,
        num_hidden_layers=layers,
        vocab_size=vocab_rows,
        rms_norm_eps=1e-6,
        rope_theta=1e6,
        num_attention_groups=2,
        max_seq_len=16384,
        max_position_embeddings=16384,
    )
    audio = AudioEncoderConfig(**encoder, llm_dim=width, kernel_size=3, adapter_stride=2)
    return StepAudioConfig(text, audio)


def export(average: dict, config: StepAudioConfig, folder: Path, int8: Collection[str] = ()) -> None:
    """Write averaged weights as half precision in the published layout, beside a config in its own shape.

    Of the parts named in `int8` ("encoder", …) the matrices and kernels are stored in eight bits, tables are not.
    """
    small = [
        name
        for name, value in named_arrays(average)
        if name.split(".")[0] in int8 and value.ndim > 1 and not name.endswith(TABLES)
    ]
    tensors = {name: value if name in small else value.astype(mx.float16) for name, value in named_arrays(average)}
    save_checkpoint(folder, config, tensors, int8=small)


def parts_in_int8(folder: Path) -> set[str]:
    """The parts of a model ("encoder", …) of which tensors are stored in eight bits.

    Raises
    ------
    WeightsError : its weights cannot be read.
    """
    return {name.split(".")[0] for name, info in with_scales(read_checkpoint(folder)).items() if info.dtype == SCALED}


def average_models(folders: list[Path], out: Path, int8: Collection[str] = ()) -> None:
    """Write the mean of several trained models' weights, or one's own, with the config of the first.

    For models of one run, or of runs that began alike (Izmailov et al. 2018; Wortsman et al. 2022). The further their
    weights have moved apart, the less can be expected of the mean. `int8` as in `export`.

    Raises
    ------
    ConfigError : the models differ in their sizes, or a config is missing or wrong.
    WeightsError : a model whose tensors are not those of its config.
    """
    config = StepAudioConfig.from_file(folders[0] / "config.json")
    total = None
    for folder in folders:
        if StepAudioConfig.from_file(folder / "config.json") != config:
            raise ConfigError(f"{folder}: its sizes are not those of {folders[0]}, so their weights have no mean")
        net = StepAudioNet(config)
        load_weights(net, folder, config, mx.float32)
        found = net.parameters()
        total = found if total is None else tree_map(mx.add, total, found)
    export(tree_map(lambda x: x / len(folders), total), config, out, int8)
