"""Clips of harmonics for token2wav to train on, and sizes of nets with a few channels."""

import json

import mlx.core as mx
import numpy as np

from stepaudio.checkpoints.random_weights import sizes
from stepaudio.models.token2wav.campplus import SpeakerConfig
from stepaudio.models.token2wav.hift import HiftConfig
from stepaudio.models.token2wav.speech_tokenizer import S3Config
from stepaudio.train.token2wav import features, flow, speech_tokenizer
from stepaudio.train.token2wav.corpus import CODE_HOP, F0_HOP, PHONEME_HOP

RATE = 24_000
TOKENIZER = S3Config(n_audio_state=32, n_audio_head=2, n_audio_layer=1)
SPEAKER = SpeakerConfig(
    embedding_size=8, growth_rate=4, bn_size=2, init_channels=8, blocks=((2, 3, 1), (2, 3, 2)), fcm_channels=4
)
FLOW = sizes("small")["flow"]
HIFT = HiftConfig(base_channels=16, f0_cond_channels=16)


def write_clips(folder, speakers=2, each=4, seconds=1.0, name="a"):
    """Clips of harmonics at each speaker's F0; phoneme 60 + speaker lasts the clip, silence a frame at both ends."""
    folder.mkdir(exist_ok=True)
    n, lines, pcm, f0 = round(seconds * RATE), [], [], []
    for k in range(speakers * each):
        who = k % speakers
        hertz, t = 110.0 * (1 + who) + k, np.arange(n) / RATE
        wave = sum(np.sin(2 * np.pi * hertz * h * t) / h for h in range(1, 12)) * 0.15
        wave = wave + np.random.default_rng(k).normal(0, 0.003, n)
        durations = [1, n // PHONEME_HOP - 2, 1]
        lines.append(
            {"id": str(k), "offset": k * n, "n_samples": n, "person": who, "ids": [0, 60 + who, 0]}
            | {"durations": durations}
        )
        pcm.append((wave * 32767).clip(-32768, 32767).astype(np.int16))
        f0.append(np.full(n // F0_HOP, hertz, np.float16))
    np.concatenate(pcm).tofile(folder / f"{name}.pcm")
    np.concatenate(f0).tofile(folder / f"{name}.f0")
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def some_sound(n, seed=0):
    """A tone of 300 Hz in noise, n samples at 24 kHz."""
    rng = np.random.default_rng(seed)
    t = np.arange(n) / RATE
    return (0.3 * np.sin(2 * np.pi * 300 * t) + rng.normal(0, 0.05, n)).astype(np.float32)


def tokenizer_batch(corpus, batch_size=2, codes=12):
    return speech_tokenizer.Batches(corpus, batch_size, codes, seed=1)(0)


def flow_batch(corpus, step=0):
    """The codes of the corpus, made up, and a batch of the flow."""
    n = len(corpus.pcm) // CODE_HOP
    codes = np.random.default_rng(0).integers(0, 6561, n)
    vectors = np.random.default_rng(1).normal(0, 1, (2, 3, 32)).astype(np.float32)
    mels = features.flow_mels(mx.array(corpus.pcm))
    return codes, flow.Batches(corpus, codes, mels, vectors, 3.0, 0, ((16, 0.5), (24, 0.5)))(step)
