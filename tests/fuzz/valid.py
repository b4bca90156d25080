"""Small valid files of every kind that the package reads, each into a folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import adapters
import mlx.core as mx
import numpy as np
import published
import small_checkpoint
import soundfile
import tiny
from golden_files import SIZES as ENCODER_SIZES
from golden_files import encoder_file

from stepaudio.checkpoints.convert.convert import convert
from stepaudio.conversation import Conversation
from stepaudio.experiments.store import Store, read_store
from stepaudio.models.encoder import AudioEncoder, AudioEncoderConfig
from stepaudio.models.parameters import named_arrays
from stepaudio.synthesis.voice import Voice
from stepaudio.text.tokenizer import Tokenizer
from stepaudio.train.optimiser import write_state

SOUNDS = {
    "wav": ("WAV", "PCM_16"), "wav_float": ("WAV", "FLOAT"), "wavex": ("WAVEX", "PCM_24"), "w64": ("W64", "PCM_16"),
    "rf64": ("RF64", "PCM_16"), "flac": ("FLAC", "PCM_16"), "ogg": ("OGG", "VORBIS"), "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"), "aiff": ("AIFF", "PCM_16"), "au": ("AU", "PCM_16"), "caf": ("CAF", "PCM_16"),
}  # fmt: skip


RESULT = {
    "file": "a.wav", "reference": "one two", "hypothesis": "one too", "normalizer": "ours", "language": "en",
    "loops": 1, "audio_seconds": 2.5, "skipped_seconds": 0.5, "wall_seconds": 0.1,
    "segments": [{"start": 0.0, "end": 2.5, "text": "one too", "stop": "loop", "loops": True}],
}  # fmt: skip


def small(folder: Path) -> None:
    small_checkpoint.folder_with(folder, small_checkpoint.arrays())


def golden(folder: Path) -> None:
    encoder_file(folder)


def state(folder: Path) -> None:
    weights = mx.arange(8.0)
    write_state(folder, {"params": weights, "average": weights, "first": weights, "second": weights}, 3)


def encoder(folder: Path) -> None:
    net = AudioEncoder(AudioEncoderConfig(**ENCODER_SIZES, adapter_hidden=28))
    mx.save_safetensors(str(folder / "e.safetensors"), {f"encoder.{n}": v for n, v in named_arrays(net.parameters())})


def single_tokenizer(folder: Path) -> None:
    from stepaudio.text.tokenizer_files import from_parts

    tokenizer_files(folder)
    from_parts(folder).save(str(folder / "tokenizer.json"))


def tokenizer_files(folder: Path) -> None:
    Tokenizer.train(tiny.SENTENCES, vocab_size=300, n_audio=tiny.N_AUDIO).save(folder)


LAYERS = {"model.layers.0.mlp.up_proj": (48, 32), adapters.HEAD: (64, 32), adapters.TABLE: (64, 32)}


def peft(folder: Path) -> None:
    patterns = {"rank_pattern": {"up_proj": 4}, "alpha_pattern": {"lm_head": 8}}
    adapters.write_peft(folder, adapters.pairs_of(LAYERS), patterns)


def mlx_lm(folder: Path) -> None:
    adapters.write_mlx(folder, adapters.pairs_of(LAYERS))


def converted(folder: Path) -> None:
    published.write_folder(folder)
    convert(folder)


def write_sound(name: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        container, subtype = SOUNDS[name]
        x = 0.2 * np.sin(2 * np.pi * 440 * np.arange(8000) / 16_000)
        soundfile.write(folder / "x", x, 16_000, format=container, subtype=subtype)

    return make


def npz(folder: Path) -> None:
    np.save(folder / "x.npy", tiny.noise(0.2))


def store(folder: Path) -> None:
    with Store(folder / "s.jsonl") as store:
        for k in range(3):
            row = {
                "run": f"r{k}",
                "clip": "a.wav",
                "setting": "s",
                "seed": k,
                "defect": "none",
                "words": 3,
                "errors": k,
            }
            store.append(row)


def table(folder: Path) -> None:
    store(folder)
    read_store(folder / "s.jsonl").to_csv(folder / "t.csv")


def results(folder: Path) -> None:
    other = RESULT | {"file": "b.wav", "reference": "", "hypothesis": "今天", "loops": 0}
    lines = [RESULT, other, {"file": "c.wav", "error": "no sound"}, {"measure": "wer", "wer": 0.5}]
    (folder / "r.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def voice(folder: Path) -> None:
    rng = np.random.default_rng(0)
    Voice(np.arange(8, dtype=np.int32), rng.normal(size=(16, 4)).astype(np.float32),
          rng.normal(size=6).astype(np.float32), "w" * 64).save(folder / "v.safetensors")  # fmt: skip


def talk() -> Conversation:
    talk = Conversation("s", tools='[{"a": 1}]').ask("a", tiny.noise(0.2)).say_tokens([300, 301]).ask("b").say("c")
    return talk.give("d").say("e")


def written(name: str, content) -> Callable[[Path], None]:
    text = content if isinstance(content, str) else json.dumps(content)
    return lambda folder: (folder / name).write_text(text, encoding="utf-8")


GRID = {"clips": [{"file": "a.wav", "text": "one two"}], "seeds": [0, 1], "faults": ["none"],
        "settings": {"planned": {"sampling": {"temperature": 0.7, "top_k": 20, "top_p": 0.9,
                                 "text": {"frequency": 1.2, "no_repeat_ngram": 3}},
                                 "cache": {"kind": "window", "max_len": 256}, "max_tokens": 40}}}  # fmt: skip


OPTIONS = {"sampling": {"temperature": 0.5, "top_k": 5, "top_p": 0.9, "text": {"repetition": 1.1}},
           "cache": "window", "max_tokens": 20, "on_loop": "stop", "stop": ["x"], "batch": 2, "top": 3}  # fmt: skip


TURNS = [{"role": "system", "content": "be brief"}, {"role": "human", "content": [
    {"type": "text", "text": "what"}, {"type": "audio"}, {"type": "token", "token": [1, 2]}]},
    {"role": "assistant", "content": None, "eot": True}]  # fmt: skip


TABS = "file\ttext\na.wav\tone two\nb.wav\t\nc.wav\tthree\n"
COMMAS = 'file,text\na.wav,"one, two"\nb.wav,""\nc.wav,three\n'
LINES = '{"audio": {"path": "a.wav"}, "text": "one"}\n{"audio_filepath": "b.wav", "offset": 0.0, "sentence": ""}\n'
EXPORTED = Path(__file__).parents[1] / "assets" / "exported" / "odd.pt"  # written by PyTorch


def shards(folder: Path) -> None:
    small_checkpoint.sharded(folder, small_checkpoint.arrays())
