"""The bundled model nano: its sizes, its vocabulary, and how trained weights become the folder data/nano."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_map

from ..checkpoints.load import load_weights
from ..checkpoints.save import save_checkpoint
from ..errors import ConfigError
from ..models.decoder import TextConfig
from ..models.encoder import AudioEncoderConfig
from ..models.parameters import named_arrays
from ..models.speech_lm import StepAudioConfig, StepAudioNet
from ..text.prompts import ASR_SYSTEM
from ..text.tokenizer import Tokenizer

TEXT_VOCABULARY = 1536  # byte-level BPE tokens below the special ones


def train_tokenizer(texts: Iterable[str], folder: Path) -> Tokenizer:
    """A small tokenizer in the published file set. The prompt is repeated so that it costs few tokens."""
    lines = [" " + t for t in texts]
    grammar = [ASR_SYSTEM, "system\n", "human\n", "assistant\n"] * (len(lines) // 20 + 10)
    tokenizer = Tokenizer.train(lines + grammar, TEXT_VOCABULARY)
    tokenizer.save(folder)
    return tokenizer


def nano_config(vocab_rows: int) -> StepAudioConfig:
    """About 13.5 M parameters: the published architecture at a fifth of its width and fewer layers."""
    text = TextConfig(
        hidden_size=256,
        intermediate_size=640,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_hidden_layers=4,
        vocab_size=vocab_rows,
        rms_norm_eps=1e-6,
        rope_theta=1e6,
        num_attention_groups=2,
        max_seq_len=16384,
        max_position_embeddings=16384,
    )
    audio = AudioEncoderConfig(
        n_mels=128,
        n_audio_ctx=1500,
        n_audio_state=256,
        n_audio_head=4,
        n_audio_layer=6,
        llm_dim=256,
        kernel_size=3,
        adapter_stride=2,
    )
    return StepAudioConfig(text, audio)


def export(average: dict, config: StepAudioConfig, folder: Path) -> None:
    """Write averaged weights as half precision in the published layout, beside a config in its own shape."""
    tensors = {name: value.astype(mx.float16) for name, value in named_arrays(average)}
    save_checkpoint(folder, config, tensors)


def average_models(folders: list[Path], out: Path) -> None:
    """Write the mean of several trained models' weights, with the config of the first.

    For models of one run, or of runs that began alike (Izmailov et al. 2018; Wortsman et al. 2022). The further their
    weights have moved apart, the less can be expected of the mean.

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
    export(tree_map(lambda x: x / len(folders), total), config, out)
