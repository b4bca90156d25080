"""Training the speech tokenizer: codes must tell what is being said, in noise too, and nothing of who says it.

The quantiser rounds; its gradient passes as if it did not (Bengio et al. 2013). From the eight rounded numbers alone a
small head, thrown away afterwards, reads the phoneme at both mel frames of the code, and how high the voice is beside
its own mean. Every row comes twice, as it is and mistreated; the second is drawn to the numbers of the first.

B rows, S codes (25/s), C channels, D = 8 numbers of a code, N phonemes.
"""

from __future__ import annotations

from functools import partial

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from ..token2wav.s3 import TANH_SCALE, S3Config, S3Tokenizer
from ..units import HOP, SAMPLE_RATE
from .augment import band_gain, clean_filters, gather_wave, log_mel_batch, room_and_noise, warped_filters
from .corpus import augmentation, breaths
from .front_ends import at_16k, resident
from .loop import linear, mean_entropy
from .speaking_corpus import PHONEME_HOP, PITCH_HOP, UNKNOWN, SpeakingCorpus

N_PHONEMES = 256
HIDDEN = 256
ROUNDED, ROUNDED_AT = 0.8, 1500  # share of rows whose numbers are rounded, and the step at which it is reached
HALF_CODE = 320  # samples at 16 kHz: one mel frame of the flow, two to a code
SPREAD = 0.6  # deviation over a batch that every number is to have at least: codes that are all alike say nothing
MELODY_RANGE = 1.0  # of the logarithm of pitch; what lies beyond is cut
SIZE = S3Config(n_audio_state=256, n_audio_head=4, n_audio_layer=4)


class Tutor(nn.Module):
    """Reads phonemes and melody from rounded numbers."""

    def __init__(self, n_dims: int):
        super().__init__()
        self.widen = nn.Linear(n_dims, HIDDEN)
        self.deepen = nn.Linear(HIDDEN, HIDDEN)
        self.phonemes = nn.Linear(HIDDEN, 2 * N_PHONEMES)
        self.melody = nn.Linear(HIDDEN, 2)


def begin(config: S3Config, seed: int) -> tuple[S3Tokenizer, dict]:
    """The net, and fresh weights of it and of its tutor. Each layer's output is narrowed by the depth."""
    mx.random.seed(seed)
    net, tutor = S3Tokenizer(config), Tutor(config.n_dims)
    fresh = []
    for name, value in tree_flatten(net.parameters()):
        if value.ndim >= 2:
            value = mx.random.normal(value.shape) * (value.size // value.shape[0]) ** -0.5
            if name.endswith(("attn.out.weight", "mlp.2.weight")):
                value = value / (2 * config.n_audio_layer) ** 0.5
            if "fsmn_block" in name:
                value = 0.1 * value
        elif name.endswith("bias"):
            value = mx.zeros(value.shape)
        fresh.append((name, value))
    return net, {"net": tree_unflatten(fresh), "tutor": tutor.parameters()}


def soft_numbers(net: S3Tokenizer, mel: mx.array) -> mx.array:
    """(B, F, n_mels) log mels -> (B, S, D), each in -1 … 1, before they are rounded."""
    length = mx.full((mel.shape[0],), mel.shape[1], mx.int32)
    x = net.encoder(mel.transpose(0, 2, 1), length)
    return mx.tanh(net.quantizer._codebook.project_down(x)) * TANH_SCALE


def rounded(soft: mx.array) -> mx.array:
    """-1, 0 or 1; the gradient is that of `soft`."""
    return soft + mx.stop_gradient(mx.round(soft) - soft)


def read(tutor: dict, numbers: mx.array) -> tuple[mx.array, mx.array]:
    """(B, S, D) -> logits of phonemes (B, 2 S, N) and melody (B, 2 S), one for each mel frame."""
    h = nn.gelu(linear(tutor["widen"], numbers))
    h = h + nn.gelu(linear(tutor["deepen"], h))
    B, S, _ = h.shape
    return linear(tutor["phonemes"], h).reshape(B, 2 * S, -1), linear(tutor["melody"], h).reshape(B, 2 * S)


def loss(params: dict, batch: dict, net: S3Tokenizer, melody_weight: float = 1.0, likeness: float = 0.1):
    """Of a batch whose second half holds the rows of the first, mistreated."""
    net.update(params["net"])
    soft = soft_numbers(net, batch["mel"])
    narrow = mx.maximum(SPREAD - mx.sqrt(soft.var(axis=(0, 1)) + 1e-6), 0.0).mean()
    numbers = mx.where(batch["round"], rounded(soft), soft)
    logits, tune = read(params["tutor"], numbers)
    labels, known = batch["phonemes"], batch["phonemes"] != UNKNOWN
    sounds = mean_entropy(logits, labels, known, 0.02)
    voiced = batch["voiced"]
    away = (mx.abs(tune - batch["melody"]) * voiced).sum() / mx.maximum(voiced.sum(), 1)
    clean, rough = mx.split(soft, 2)
    unlike = mx.square(rough - mx.stop_gradient(clean)).mean()
    right = ((logits.argmax(-1) == labels) & known).sum() / mx.maximum(known.sum(), 1)
    sure, unsure = (mx.round(mx.stop_gradient(x)) for x in (clean, rough))
    same = (sure == unsure).all(-1).astype(mx.float32).mean()
    total = sounds + melody_weight * away + likeness * unlike + narrow
    return total, {"sounds": sounds, "melody": away, "unlike": unlike, "narrow": narrow, "right": right,
                   "same_codes": same}


class Batches:
    """step -> mels and labels; sound and labels stay on the accelerator.

    rows : how many different ones; each comes twice. codes : of each row.
    """

    def __init__(self, corpus: SpeakingCorpus, rows: int, codes: int, seed: int):
        self.rows, self.samples, self.seed = rows, codes * 2 * HALF_CODE, seed
        self.pcm = at_16k(corpus.pcm)
        self.phonemes, self.melody = resident(corpus.phonemes), resident(corpus.melody)
        self.voiced = resident(corpus.pitch > 0)
        self._mels = partial(_mels, n=self.samples)

    def described(self, step: int) -> dict[str, np.ndarray]:
        """Where the rows begin, how fast they run, and how they are mistreated."""
        rng = np.random.default_rng((self.seed, step))
        rate = np.clip(np.exp(rng.normal(0, 0.1, self.rows)), 0.75, 1.35).astype(np.float32)
        start = rng.integers(0, self.pcm.shape[0] - int(1.4 * self.samples) - 2, self.rows).astype(np.int32)
        rows = [{"segments": [(0, self.samples, None, None)], "length": self.samples}] * self.rows
        return {"rate": rate[:, None], "start": start[:, None]} | augmentation(rng, self.rows) | breaths(rng, rows)

    def rounded_rows(self, step: int) -> np.ndarray:
        """(2 rows, 1, 1): whose numbers are rounded; few at first, for what is rounded hardly says where to go."""
        share = ROUNDED * min(1.0, step / ROUNDED_AT)
        return np.random.default_rng((self.seed, step, 1)).random((2 * self.rows, 1, 1)) < share

    def __call__(self, step: int) -> dict[str, mx.array]:
        told = {k: mx.array(v) for k, v in self.described(step).items()}
        B, frames = self.rows, self.samples // HALF_CODE
        told |= {"begin": mx.zeros((B, 1), mx.int32), "stop": mx.full((B, 1), self.samples, mx.int32)}
        middle = (mx.arange(frames)[None] + 0.5) * HALF_CODE * told["rate"]
        at = told["start"] + middle.astype(mx.int32)  # samples at 16 kHz
        pitch_at, phoneme_at = at // (PITCH_HOP * 2 // 3), at // (PHONEME_HOP * 2 // 3)
        tune = mx.clip(self.melody[pitch_at], -MELODY_RANGE, MELODY_RANGE)
        twice = lambda x: mx.concatenate([x, x])  # noqa: E731
        return {"mel": self._mels(gather_wave(self.pcm, told, self.samples), told),
                "phonemes": twice(self.phonemes[phoneme_at].astype(mx.int32)), "melody": twice(tune),
                "voiced": twice(self.voiced[pitch_at].astype(mx.float32)),
                "round": mx.array(self.rounded_rows(step))}


def _mels(wave: mx.array, told: dict, n: int) -> mx.array:
    """(2 B, F, 128) log mels: clean rows, then the same with room, noise, other bands and another vocal tract."""
    length = mx.full((wave.shape[0],), n, mx.int32)
    loud = wave * told["gain"][:, None]
    clean = log_mel_batch(loud, length, clean_filters())
    rough = log_mel_batch(room_and_noise(wave, told), length, warped_filters()[told["warp"]], band_gain(told))
    return mx.stop_gradient(mx.concatenate([clean, rough])[:, : n // HOP])


def codes_of(net: S3Tokenizer, pcm: mx.array, rows: int = 64, seconds: float = 16.0, margin: float = 1.6) -> np.ndarray:
    """Codes of a long recording at 16 kHz, (n,) int16 -> (n / 640,) int16, in stretches that overlap by `margin`.

    As the net hears a clip of that length, but for what lies beyond its ends.
    """
    code = 2 * HALF_CODE
    keep, side = round((seconds - 2 * margin) * SAMPLE_RATE) // code, round(margin * SAMPLE_RATE) // code
    n_codes = pcm.shape[0] // code
    found = []
    for first in range(0, n_codes, keep * rows):
        starts = np.arange(first, min(n_codes, first + keep * rows), keep)
        index = (starts[:, None] - side) * code + np.arange((keep + 2 * side) * code)[None]
        inside = mx.array((index >= 0) & (index < n_codes * code))
        wave = pcm[mx.array(np.clip(index, 0, n_codes * code - 1).astype(np.int32))].astype(mx.float32) / 32768
        wave = mx.where(inside, wave, 0.0)
        length = mx.full((len(starts),), wave.shape[1], mx.int32)
        mel = log_mel_batch(wave, length, clean_filters())[:, : wave.shape[1] // HOP].transpose(0, 2, 1)
        codes = net.quantizer(net.encoder(mel, length // HOP))[:, side : side + keep]
        found.append(np.array(codes).reshape(-1).astype(np.int16))
    return np.concatenate(found)[:n_codes]
