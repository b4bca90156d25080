"""Training the speaker encoder: whose voice is it, among all voices of the corpus (and each of them at other speeds).

A voice played faster or slower is another one (higher, with a shorter throat), so resampling can multiply the voices.
The loss asks for more than the right answer, once that is often found: the angle to the right voice gets a margin (Deng
et al. 2019). With the margin from the start, among 960 voices, nothing was learnt in a thousand steps. Batch norms
see the batch's own statistics; those that the net keeps are taken afterwards, by `settle`.

B rows, F feature frames, E numbers of a speaker vector, K voices.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from ..token2wav.speaker import BatchNorm, SpeakerConfig, SpeakerEncoder
from ..units import SAMPLE_RATE
from .augment import gather_wave, room_and_noise
from .corpus import augmentation, breaths
from .front_ends import at_16k, fbank_batch
from .speaking_corpus import SpeakingCorpus

SPEEDS = (1.0,)
MARGIN, MARGIN_FROM, MARGIN_STEPS = 0.2, 1500, 1500  # radians; steps without it, and until it is whole
SCALE = 16.0
SIZE = SpeakerConfig(embedding_size=96, growth_rate=16, bn_size=4, init_channels=64,
                     blocks=((6, 3, 1), (12, 3, 2), (8, 3, 2)), fcm_channels=16)


class LiveNorm(BatchNorm):
    """A batch norm of the batch's own statistics, which also shows them to `_seen` where that is a list."""

    def __call__(self, x: mx.array) -> mx.array:
        axes = tuple(range(x.ndim - 1))
        mean, variance = x.mean(axes), x.var(axes)
        if self._seen is not None:
            self._seen.append((mean, variance))
        x = (x - mean) * mx.rsqrt(variance + self._eps)
        return x * self.weight + self.bias if "weight" in self else x


def norms(net: SpeakerEncoder) -> dict[str, BatchNorm]:
    return {name: module for name, module in net.named_modules() if isinstance(module, BatchNorm)}


def live(net: SpeakerEncoder, seen: bool = False) -> None:
    """Let the net's norms see the batch. Their class is changed in place, so weights and names stay what they are."""
    for norm in norms(net).values():
        norm.__class__, norm._seen = LiveNorm, [] if seen else None


def settle(net: SpeakerEncoder, batches: list[mx.array]) -> None:
    """Keep the mean statistics that each norm sees on `batches` of features (B, F, bands), and use them from now on."""
    live(net, seen=True)
    for features in batches:
        mx.eval(net(features))
    for norm in norms(net).values():
        means, variances = zip(*norm._seen, strict=True)
        norm.running_mean, norm.running_var = sum(means) / len(means), sum(variances) / len(variances)
        norm.__class__, norm._seen = BatchNorm, None
    mx.eval(net.parameters())


def begin(config: SpeakerConfig, n_voices: int, seed: int) -> tuple[SpeakerEncoder, dict]:
    """The net, its norms live, and fresh weights of it and of one direction for each voice. What the norms keep is
    not learnt and not among them."""
    mx.random.seed(seed)
    net = SpeakerEncoder(config)
    live(net)
    fresh = []
    for name, value in tree_flatten(net.parameters()):
        if ".running_" in name:
            continue
        if value.ndim >= 2:
            value = mx.random.normal(value.shape) * (2 / (value.size // value.shape[0])) ** 0.5
        fresh.append((name, value))
    return net, {"net": tree_unflatten(fresh), "voices": mx.random.normal((n_voices, config.embedding_size))}


def unit(x: mx.array) -> mx.array:
    return x * mx.rsqrt(mx.square(x).sum(-1, keepdims=True) + 1e-12)


def loss(params: dict, batch: dict, net: SpeakerEncoder):
    """Cross-entropy of scaled cosines, the right one's angle enlarged by the margin."""
    net.update(params["net"])
    cosine = unit(net(batch["features"])) @ unit(params["voices"]).T  # (B, K)
    right = mx.arange(cosine.shape[1])[None] == batch["voice"][:, None]
    sine = mx.sqrt(mx.maximum(1 - mx.square(cosine), 1e-6))
    harder = cosine * mx.cos(batch["margin"]) - sine * mx.sin(batch["margin"])
    logits = SCALE * mx.where(right, harder, cosine)
    entropy = nn.losses.cross_entropy(logits, batch["voice"]).mean()
    return entropy, {"entropy": entropy, "right": (cosine.argmax(1) == batch["voice"]).mean(),
                     "cosine": (cosine * right).sum() / cosine.shape[0]}


class Batches:
    """step -> filterbanks of rows of one voice each, half of them in noise and rooms, and whose they are."""

    def __init__(self, corpus: SpeakingCorpus, rows: int, seconds: float, seed: int):
        self.corpus, self.rows, self.seed, self.samples = corpus, rows, seed, round(seconds * SAMPLE_RATE)
        self.pcm = at_16k(corpus.pcm)
        self._features = _features

    @property
    def n_voices(self) -> int:
        return len(self.corpus.persons) * len(SPEEDS)

    def __call__(self, step: int) -> dict[str, mx.array]:
        rng = np.random.default_rng((self.seed, step))
        longest = int(max(SPEEDS) * self.samples) + 2
        start, who = self.corpus.windows(rng, self.rows, longest * 3 // 2 // 960 * 960 + 960)
        speed = rng.integers(0, len(SPEEDS), self.rows)
        rows = [{"segments": [(0, self.samples, None, None)], "length": self.samples}] * self.rows
        told = augmentation(rng, self.rows) | breaths(rng, rows)
        told["babble"] = told["babble"] * 0  # another voice is another answer
        told |= {"start": (start // 3 * 2).astype(np.int32)[:, None], "begin": np.zeros((self.rows, 1), np.int32),
                 "stop": np.full((self.rows, 1), self.samples, np.int32),
                 "rate": np.array(SPEEDS, np.float32)[speed][:, None]}
        told = {k: mx.array(v) for k, v in told.items()}
        wave = gather_wave(self.pcm, told, self.samples)
        noisy = mx.array(rng.random((self.rows, 1)) < 0.5)
        margin = MARGIN * min(1.0, max(0.0, (step - MARGIN_FROM) / MARGIN_STEPS))
        return {"features": self._features(wave, told, noisy), "margin": mx.array(margin, mx.float32),
                "voice": mx.array((who * len(SPEEDS) + speed).astype(np.int32))}


def _features(wave: mx.array, told: dict, noisy: mx.array) -> mx.array:
    wave = mx.where(noisy, room_and_noise(wave, told), wave * told["gain"][:, None])
    return mx.stop_gradient(fbank_batch(wave))


def vectors_of(net: SpeakerEncoder, corpus: SpeakingCorpus, pcm: mx.array, each: int, seconds: float, seed: int = 0):
    """`each` speaker vectors of every person, (persons, each, E) float32, from stretches of so many seconds."""
    n, rng, found = round(seconds * SAMPLE_RATE), np.random.default_rng(seed), []
    for first, last in zip(corpus.edges[:-1], corpus.edges[1:], strict=True):
        room = max(1, int(last - first) // 3 * 2 - n)
        start = int(first) // 3 * 2 + rng.integers(0, room, each)
        start = np.minimum(start, pcm.shape[0] - n)
        wave = pcm[mx.array(start.astype(np.int32))[:, None] + mx.arange(n)[None]].astype(mx.float32) / 32768
        found.append(np.array(net(fbank_batch(wave))))
    return np.stack(found)
