"""A tiny checkpoint made on the fly, and signals for it. Random weights: it says nonsense, but always the same."""

from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from stepaudio.checkpoints.save import save_checkpoint
from stepaudio.models.decoder import TextConfig
from stepaudio.models.encoder import AudioEncoderConfig
from stepaudio.models.speech_lm import StepAudioConfig, StepAudioNet
from stepaudio.text.tokenizer import Tokenizer

RATE = 16_000
SENTENCES = ["the cat sat on the mat", "what is the time now", "system human assistant", "café 你好"] * 3
N_AUDIO = 40


def config(vocab_size: int) -> StepAudioConfig:
    text = TextConfig(
        hidden_size=32,
        intermediate_size=48,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_hidden_layers=2,
        vocab_size=vocab_size,
        rms_norm_eps=1e-6,
        rope_theta=1e6,
    )
    audio = AudioEncoderConfig(
        n_mels=128,
        n_audio_ctx=1500,
        n_audio_state=32,
        n_audio_head=2,
        n_audio_layer=1,
        llm_dim=32,
        kernel_size=3,
        adapter_stride=2,
        adapter_hidden=48,
    )
    return StepAudioConfig(text, audio)


def weights(sizes: StepAudioConfig, seed: int = 0) -> dict[str, mx.array]:
    """Normals wide enough that the answer depends on the audio."""
    rng = np.random.default_rng(seed)
    found = {}
    for name, array in tree_flatten(StepAudioNet(sizes).parameters()):
        scale = 1.0 if "embed_tokens" in name or "adapter.linear2" in name else 0.3
        value = rng.normal(0, scale, array.shape) + (1.0 if array.ndim == 1 and name.endswith("weight") else 0.0)
        found[name] = mx.array(value.astype(np.float32))
    return found


def write(folder: Path, seed: int = 0) -> Path:
    tokenizer = Tokenizer.train(SENTENCES, vocab_size=300, n_audio=N_AUDIO)
    tokenizer.save(folder)
    sizes = config(-(-tokenizer.n_ids // 64) * 64)
    save_checkpoint(folder, sizes, weights(sizes, seed))
    return folder


def noise(seconds: float, seed: int = 0, level: float = 0.1) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, level, round(seconds * RATE)).astype(np.float32)


def bursts(seconds: float, pauses: list[tuple[float, float]], seed: int = 0) -> np.ndarray:
    """Noise that falls silent in the given stretches of seconds."""
    x = noise(seconds, seed)
    for start, stop in pauses:
        x[round(start * RATE) : round(stop * RATE)] *= 1e-4
    return x
