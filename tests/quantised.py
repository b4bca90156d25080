"""A checkpoint small enough for tests whose layers come out in whole groups, and such folders quantised."""

import json
from pathlib import Path

import mlx.core as mx
import tiny
from safetensors.numpy import load_file, save_file

from stepaudio.checkpoints.header import SINGLE_FILE
from stepaudio.checkpoints.save import save_checkpoint
from stepaudio.models.decoder import TextConfig
from stepaudio.models.encoder import AudioEncoderConfig
from stepaudio.models.speech_lm import StepAudioConfig
from stepaudio.text.tokenizer import Tokenizer


def config(vocab_size: int) -> StepAudioConfig:
    text = TextConfig(64, 128, 2, 1, 2, vocab_size, 1e-6, 1e6)
    return StepAudioConfig(text, AudioEncoderConfig(128, 1500, 64, 2, 2, 64, 3, 2, adapter_hidden=96))


def write(folder: Path, dtype: mx.Dtype = mx.float32, seed: int = 0) -> Path:
    """A folder with a tokenizer, an adapter of which one layer has rows of 96, which 64 does not divide."""
    tokenizer = Tokenizer.train(tiny.SENTENCES, vocab_size=300, n_audio=tiny.N_AUDIO)
    tokenizer.save(folder)
    sizes = config(-(-tokenizer.n_ids // 64) * 64)
    save_checkpoint(folder, sizes, {n: a.astype(dtype) for n, a in tiny.weights(sizes, seed).items()})
    return folder


def edit(folder: Path, change) -> Path:
    """Change the stored tensors of a folder, given as a dict of numpy arrays (float32 models alone)."""
    tensors = load_file(folder / SINGLE_FILE)
    change(tensors)
    save_file(tensors, folder / SINGLE_FILE)
    return folder


def edit_config(folder: Path, change) -> Path:
    said = json.loads((folder / "config.json").read_text())
    change(said)
    (folder / "config.json").write_text(json.dumps(said))
    return folder
