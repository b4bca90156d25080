"""Training the speech tokenizer: codes must carry what is said, in noise too, and not who says it.

The quantiser rounds; its gradient passes straight through (Bengio et al. 2013). From the eight rounded dimensions
alone an auxiliary head, thrown away afterwards, predicts the phoneme at both mel frames of the code, and F0 relative
to its mean; from a stretch of codes it predicts a coarse spectrum relative to the example's mean, which it is told, so
that codes carry how a sound is made and not whose it is. Every example comes twice, clean and augmented; both are
asked for the clean spectrum, and both are pulled to the levels to which the clean one is rounded.

B examples, S codes (25/s), C channels, D = 8 dimensions of a code, N phonemes, K = 32 bands of a coarse spectrum.
"""

from __future__ import annotations

import math
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_unflatten

from ...backend.ops import gelu
from ...constants import HOP, SAMPLE_RATE
from ...errors import DataError
from ...models.parameters import named_arrays
from ...models.token2wav.speech_tokenizer import TANH_SCALE, S3Config, S3Tokenizer
from ..augment import band_gain, clean_filters, gather_wave, log_mel_batch, room_and_noise, warped_filters
from ..batches import augmentation, breaths
from ..losses import linear, mean_entropy
from .corpus import F0_HOP, PHONEME_HOP, UNKNOWN, SpeechCorpus
from .features import at_16k, resident
from .fit import Batch, Metrics

N_PHONEMES = 256
HIDDEN = 256
ROUNDED, PULL = 0.8, 0.3  # share of examples whose values are rounded; weight of the pull to the levels
GROWN_AT = 1500  # the step at which both are reached: at first they would hide where to go
HALF_CODE = 320  # samples at 16 kHz: one mel frame of the flow, two to a code
SPREAD = 0.6  # least standard deviation of each dimension over a batch: codes that are all alike carry nothing
LOG_F0_RANGE = 1.0  # F0 further from its mean is clipped
COARSE, KERNEL, DEPTH = 32, 5, 2  # bands of a coarse spectrum; kernel and number of the convolutions that predict it
LEVEL = 0.85  # where a level of 1 is pulled to: closer to 1, tanh would pass no gradient
NEPERS = 2 * math.log(10)  # of amplitude, to one unit of a log mel
SIZE = S3Config(n_audio_state=256, n_audio_head=4, n_audio_layer=4)


class AuxiliaryHead(nn.Module):
    """Predicts phonemes and F0 from the rounded dimensions of a code, coarse spectra from those of several codes."""

    def __init__(self, n_dims: int):
        super().__init__()
        self.widen = nn.Linear(n_dims, HIDDEN)
        self.deepen = nn.Linear(HIDDEN, HIDDEN)
        self.phonemes = nn.Linear(HIDDEN, 2 * N_PHONEMES)
        self.log_f0 = nn.Linear(HIDDEN, 2)
        self.codes = nn.Linear(n_dims + COARSE, HIDDEN)
        self.around = [nn.Conv1d(HIDDEN, HIDDEN, KERNEL) for _ in range(DEPTH)]
        self.spectrum = nn.Linear(HIDDEN, 2 * COARSE)


def begin(config: S3Config, seed: int) -> tuple[S3Tokenizer, dict]:
    """The net, and initial weights of it and of its auxiliary head. Residual branches are scaled down by the depth."""
    mx.random.seed(seed)
    net, head = S3Tokenizer(config), AuxiliaryHead(config.n_dims)
    fresh = []
    for name, value in named_arrays(net.parameters()):
        if value.ndim >= 2:
            value = mx.random.normal(value.shape) * (value.size // value.shape[0]) ** -0.5
            if name.endswith(("attn.out.weight", "mlp.2.weight")):
                value = value / (2 * config.n_audio_layer) ** 0.5
            if "fsmn_block" in name:
                value = 0.1 * value
        elif name.endswith("bias"):
            value = mx.zeros(value.shape)
        fresh.append((name, value))
    return net, {"net": tree_unflatten(fresh), "head": head.parameters()}


def deepened(own: dict, fresh: dict) -> dict:
    """The weights of a trained net, behind whose blocks come those that a `fresh` one has more, doing nothing yet.

    Raises
    ------
    DataError
        The trained net is the deeper one.
    """
    blocks, wanted = own["encoder"]["blocks"], fresh["encoder"]["blocks"]
    if len(blocks) > len(wanted):
        raise DataError(f"layers: expected {len(blocks)} or more, as the net to begin with has, found {len(wanted)}")
    more = wanted[len(blocks) :]
    for block in more:
        for part in (block["attn"]["value"], block["mlp"][2]):
            part |= {name: mx.zeros_like(value) for name, value in part.items()}
    return own | {"encoder": own["encoder"] | {"blocks": [*blocks, *more]}}


def continuous_codes(net: S3Tokenizer, mel: mx.array) -> mx.array:
    """(B, F, n_mels) log mels -> (B, S, D), each in -1 … 1, before they are rounded."""
    length = mx.full((mel.shape[0],), mel.shape[1], mx.int32)
    x = net.encoder(mel.transpose(0, 2, 1), length)
    return mx.tanh(net.quantizer._codebook.project_down(x)) * TANH_SCALE


def straight_through_round(x: mx.array) -> mx.array:
    """-1, 0 or 1; the gradient is that of `x`."""
    return x + mx.stop_gradient(mx.round(x) - x)


def predict(head: dict, values: mx.array) -> tuple[mx.array, mx.array]:
    """(B, S, D) -> logits of phonemes (B, 2 S, N) and relative log F0 (B, 2 S), one for each mel frame."""
    h = gelu(linear(head["widen"], values))
    h = h + gelu(linear(head["deepen"], h))
    B, S, _ = h.shape
    return linear(head["phonemes"], h).reshape(B, 2 * S, -1), linear(head["log_f0"], h).reshape(B, 2 * S)


def coarse_spectra(mel: mx.array) -> tuple[mx.array, mx.array]:
    """(B, 4 S, n_mels) log mels -> nepers (B, 2 S, K) relative to each example's mean, and that mean (B, 1, K)."""
    B, F, M = mel.shape
    coarse = NEPERS * mel.reshape(B, F // 2, 2, COARSE, M // COARSE).mean(axis=(2, 4))
    mean = coarse.mean(axis=1, keepdims=True)
    return coarse - mean, mean


def predict_spectra(head: dict, values: mx.array, mean: mx.array) -> mx.array:
    """(B, S, D) and mean spectra (B, 1, K) -> spectra relative to them (B, 2 S, K)."""
    mean = mx.broadcast_to(mean, (*values.shape[:2], mean.shape[2]))
    h = linear(head["codes"], mx.concatenate([values, mean], axis=-1))
    for conv in head["around"]:
        h = h + mx.conv1d(nn.gelu(h), conv["weight"], padding=KERNEL // 2) + conv["bias"]
    B, S, _ = h.shape
    return linear(head["spectrum"], nn.gelu(h)).reshape(B, 2 * S, -1)


def loss(
    params: dict, batch: Batch, net: S3Tokenizer, f0_weight: float = 1.0, spectrum_weight: float = 1.0
) -> tuple[mx.array, Metrics]:
    """Phonemes, F0, coarse spectra, distance from the clean example's levels, and spread of the dimensions.

    The second half of the batch holds the examples of the first, augmented.
    """
    net.update(params["net"])
    values = continuous_codes(net, batch["mel"])
    spread = mx.maximum(SPREAD - mx.sqrt(values.var(axis=(0, 1)) + 1e-6), 0.0).mean()
    rounded = mx.where(batch["round"], straight_through_round(values), values)
    logits, log_f0 = predict(params["head"], rounded)
    spectra, mean = (_twice(x) for x in coarse_spectra(mx.split(batch["mel"], 2)[0]))
    spectrum = mx.abs(predict_spectra(params["head"], rounded, mean) - spectra).mean()
    labels, known = batch["phonemes"], batch["phonemes"] != UNKNOWN
    phonemes = mean_entropy(logits, labels, known, 0.02)
    voiced = batch["voiced"]
    f0 = (mx.abs(log_f0 - batch["log_f0"]) * voiced).sum() / mx.maximum(voiced.sum(), 1)
    levels = mx.round(mx.stop_gradient(values))
    clean, augmented = mx.split(levels, 2)
    pull = mx.square(values - LEVEL * _twice(clean)).mean()
    right, noisy = (x.sum() for x in mx.split((logits.argmax(-1) == labels) & known, 2))
    n_known = mx.maximum(known.sum() / 2, 1)
    total = phonemes + f0_weight * f0 + spectrum_weight * spectrum + batch["pull"] * pull + spread
    return total, {
        "phonemes": phonemes,
        "f0": f0,
        "spectrum": spectrum,
        "pull": pull,
        "spread": spread,
        "accuracy": right / n_known,
        "accuracy_in_noise": noisy / n_known,
        "same_codes": (clean == augmented).all(-1).astype(mx.float32).mean(),
    }


class Batches:
    """step -> mels and labels; sound and labels stay on the accelerator.

    Parameters
    ----------
    corpus : SpeechCorpus
    batch_size : number of different examples; each comes twice.
    codes : of each example.
    seed : int
    ahead : steps that are behind the net already: what grows with the steps begins where it would be then.
    """

    def __init__(self, corpus: SpeechCorpus, batch_size: int, codes: int, seed: int, ahead: int = 0):
        self.batch_size, self.samples, self.seed, self.ahead = batch_size, codes * 2 * HALF_CODE, seed, ahead
        self.pcm = at_16k(corpus.pcm)
        self.phonemes, self.log_f0 = resident(corpus.phonemes), resident(corpus.log_f0)
        self.voiced = resident(corpus.f0 > 0)

    def drawn(self, step: int) -> dict[str, np.ndarray]:
        """Where the examples begin, how fast they run, and how they are augmented."""
        rng, B = np.random.default_rng((self.seed, step)), self.batch_size
        rate = np.clip(np.exp(rng.normal(0, 0.1, B)), 0.75, 1.35).astype(np.float32)
        start = rng.integers(0, self.pcm.shape[0] - int(1.4 * self.samples) - 2, B).astype(np.int32)
        examples = [{"segments": [(0, self.samples, None, None)], "length": self.samples}] * B
        return {"rate": rate[:, None], "start": start[:, None]} | augmentation(rng, B) | breaths(rng, examples)

    def rounded(self, step: int) -> np.ndarray:
        """(2 batch_size, 1, 1): which examples are rounded; few at first, as rounding hides where to go."""
        share = ROUNDED * min(1.0, (step + self.ahead) / GROWN_AT)
        return np.random.default_rng((self.seed, step, 1)).random((2 * self.batch_size, 1, 1)) < share

    def __call__(self, step: int) -> Batch:
        """The batch of a step; the same step gives the same excerpts."""
        described = {k: mx.array(v) for k, v in self.drawn(step).items()}
        B, frames = self.batch_size, self.samples // HALF_CODE
        described |= {"begin": mx.zeros((B, 1), mx.int32), "stop": mx.full((B, 1), self.samples, mx.int32)}
        middle = (mx.arange(frames)[None] + 0.5) * HALF_CODE * described["rate"]
        at = described["start"] + middle.astype(mx.int32)  # samples at 16 kHz
        f0_at, phoneme_at = at // (F0_HOP * 2 // 3), at // (PHONEME_HOP * 2 // 3)
        log_f0 = mx.clip(self.log_f0[f0_at], -LOG_F0_RANGE, LOG_F0_RANGE)
        return {
            "mel": _mels(gather_wave(self.pcm, described, self.samples), described, self.samples),
            "phonemes": _twice(self.phonemes[phoneme_at].astype(mx.int32)),
            "log_f0": _twice(log_f0),
            "voiced": _twice(self.voiced[f0_at].astype(mx.float32)),
            "round": mx.array(self.rounded(step)),
            "pull": mx.array(PULL * min(1.0, (step + self.ahead) / GROWN_AT), mx.float32),
        }


def _twice(x: mx.array) -> mx.array:
    return mx.concatenate([x, x])


def _mels(wave: mx.array, described: Batch, n: int) -> mx.array:
    """(2 B, F, 128) log mels: clean examples, then the same with room, noise, other bands and another vocal tract."""
    length = mx.full((wave.shape[0],), n, mx.int32)
    clean = log_mel_batch(wave * described["gain"][:, None], length, clean_filters())
    filters = warped_filters()[described["warp"]]
    augmented = log_mel_batch(room_and_noise(wave, described), length, filters, band_gain(described))
    return cast(mx.array, mx.stop_gradient(mx.concatenate([clean, augmented])[:, : n // HOP]))


def codes_of(
    net: S3Tokenizer, pcm: mx.array, batch_size: int = 64, seconds: float = 16.0, margin: float = 1.6
) -> np.ndarray:
    """Codes of a long recording at 16 kHz, in windows that overlap.

    Away from the ends of the recording they are what the net gives for a clip of `seconds`.

    Parameters
    ----------
    net : S3Tokenizer
    pcm : (n,) int16.
    batch_size : windows at a time.
    seconds : length of a window, of which `margin` seconds at both ends are dropped.

    Returns
    -------
    (n / 640,) int16.
    """
    code = 2 * HALF_CODE
    keep, side = round((seconds - 2 * margin) * SAMPLE_RATE) // code, round(margin * SAMPLE_RATE) // code
    n_codes = pcm.shape[0] // code
    found = []
    for first in range(0, n_codes, keep * batch_size):
        starts = np.arange(first, min(n_codes, first + keep * batch_size), keep)
        index = (starts[:, None] - side) * code + np.arange((keep + 2 * side) * code)[None]
        inside = mx.array(cast(Any, (index >= 0) & (index < n_codes * code)))
        wave = pcm[mx.array(np.clip(index, 0, n_codes * code - 1).astype(np.int32))].astype(mx.float32) / 32768
        wave = mx.where(inside, wave, 0.0)
        length = mx.full((len(starts),), wave.shape[1], mx.int32)
        mel = log_mel_batch(wave, length, clean_filters())[:, : wave.shape[1] // HOP].transpose(0, 2, 1)
        codes = net.quantizer(net.encoder(mel, length // HOP))[:, side : side + keep]
        found.append(np.array(codes).reshape(-1).astype(np.int16))
    return np.concatenate(found)[:n_codes]
