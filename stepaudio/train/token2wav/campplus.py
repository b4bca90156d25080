"""Training the speaker encoder (CAM++): classify the speaker among all speakers of the corpus.

A voice played faster or slower is another one (higher, with a shorter vocal tract), so resampling can multiply the
speakers. Once most answers are right, the angle to the true speaker gets a margin (Deng et al. 2019); with the margin
from the start, among 960 speakers, nothing was learnt in a thousand steps. While training, batch norms use the batch's
own statistics; the running ones are estimated afterwards by `estimate_statistics`.

B examples, F feature frames, E numbers of a speaker vector, K classes.
"""

from __future__ import annotations

from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_map, tree_unflatten

from ...constants import SAMPLE_RATE
from ...models.parameters import named_arrays
from ...models.token2wav.campplus import BatchNorm, SpeakerConfig, SpeakerEncoder
from ..augment import gather_wave, room_and_noise
from ..batches import augmentation, breaths
from .corpus import SpeechCorpus
from .features import at_16k, fbank_batch
from .fit import Batch, Metrics

SPEEDS = (1.0,)
MARGIN, MARGIN_FROM, MARGIN_STEPS = 0.2, 1500, 1500  # radians; steps without it, then steps until it is complete
SCALE = 16.0
SIZE = SpeakerConfig(
    embedding_size=96,
    growth_rate=16,
    bn_size=4,
    init_channels=64,
    blocks=((6, 3, 1), (12, 3, 2), (8, 3, 2)),
    fcm_channels=16,
)


class TrainingNorm(BatchNorm):
    """A batch norm of the batch's own statistics, which also appends them to `_seen` where that is a list."""

    def __call__(self, x: mx.array) -> mx.array:
        """(…, channels) -> the same shape."""
        axes = tuple(range(x.ndim - 1))
        mean, variance = x.mean(axes), x.var(axes)
        if self._seen is not None:
            self._seen.append((mean, variance))
        x = (x - mean) * mx.rsqrt(variance + self._eps)
        return x * self.weight + self.bias if "weight" in self else x


def batch_norms(net: SpeakerEncoder) -> list[Any]:
    """Every batch norm of a net."""
    return [module for _, module in net.named_modules() if isinstance(module, BatchNorm)]


def use_batch_statistics(net: SpeakerEncoder, collect: bool = False) -> None:
    """Let the net's norms use the batch's statistics, and `collect` them if asked.

    The class of the norms is changed in place, so weights and their names stay as they are.
    """
    for norm in batch_norms(net):
        norm.__class__, norm._seen = TrainingNorm, [] if collect else None


def estimate_statistics(net: SpeakerEncoder, batches: list[mx.array]) -> None:
    """Set each norm's running statistics to their mean over batches of features (B, F, bands), and use them."""
    use_batch_statistics(net, collect=True)
    for features in batches:
        mx.eval(net(features))
    for norm in batch_norms(net):
        means, variances = zip(*norm._seen, strict=True)
        norm.running_mean, norm.running_var = sum(means) / len(means), sum(variances) / len(variances)
        norm.__class__, norm._seen = BatchNorm, None
    mx.eval(net.parameters())


def learnt(net: SpeakerEncoder) -> dict:
    """The weights of a net that are fitted: all but the running statistics of its norms."""
    weights = named_arrays(net.parameters())
    return cast(dict, tree_unflatten([(name, value) for name, value in weights if ".running_" not in name]))


def begin(config: SpeakerConfig, n_classes: int, seed: int) -> tuple[SpeakerEncoder, dict]:
    """The net with training norms, and initial weights of it and of one direction for each class."""
    mx.random.seed(seed)
    net = SpeakerEncoder(config)
    use_batch_statistics(net)

    def fresh(value: mx.array) -> mx.array:
        if value.ndim < 2:
            return value
        return mx.random.normal(value.shape) * (2 / (value.size // value.shape[0])) ** 0.5

    return net, {"net": tree_map(fresh, learnt(net)), "classes": mx.random.normal((n_classes, config.embedding_size))}


def unit(x: mx.array) -> mx.array:
    """(…, E) -> the same directions, of length 1."""
    return x * mx.rsqrt(mx.square(x).sum(-1, keepdims=True) + 1e-12)


def loss(params: dict, batch: Batch, net: SpeakerEncoder) -> tuple[mx.array, Metrics]:
    """Cross-entropy of scaled cosines, the angle to the true class enlarged by the margin."""
    net.update(params["net"])
    cosine = unit(net(batch["features"])) @ unit(params["classes"]).T  # (B, K)
    true = mx.arange(cosine.shape[1])[None] == batch["label"][:, None]
    sine = mx.sqrt(mx.maximum(1 - mx.square(cosine), 1e-6))
    enlarged = cosine * mx.cos(batch["margin"]) - sine * mx.sin(batch["margin"])
    logits = SCALE * mx.where(true, enlarged, cosine)
    entropy = nn.losses.cross_entropy(logits, batch["label"]).mean()
    accuracy = (cosine.argmax(1) == batch["label"]).mean()
    return entropy, {"entropy": entropy, "accuracy": accuracy, "cosine": (cosine * true).sum() / cosine.shape[0]}


class Batches:
    """step -> filterbanks of examples of one speaker each, half of them in noise and rooms, and their labels.

    Parameters
    ----------
    corpus : SpeechCorpus
    batch_size : int > 0
    seconds : length of an example.
    seed : int
    """

    def __init__(self, corpus: SpeechCorpus, batch_size: int, seconds: float, seed: int):
        self.corpus, self.batch_size, self.seed = corpus, batch_size, seed
        self.samples = round(seconds * SAMPLE_RATE)
        self.pcm = at_16k(corpus.pcm)

    @property
    def n_classes(self) -> int:
        """Speakers times speeds."""
        return len(self.corpus.speakers) * len(SPEEDS)

    def __call__(self, step: int) -> Batch:
        """The batch of a step; the same step gives the same excerpts."""
        rng, B = np.random.default_rng((self.seed, step)), self.batch_size
        longest = int(max(SPEEDS) * self.samples) + 2
        start, speaker = self.corpus.windows(rng, B, longest * 3 // 2 // 960 * 960 + 960)
        speed = rng.integers(0, len(SPEEDS), B)
        examples = [{"segments": [(0, self.samples, None, None)], "length": self.samples}] * B
        drawn = augmentation(rng, B) | breaths(rng, examples)
        drawn["babble"] = drawn["babble"] * 0  # another voice would be another answer
        drawn |= {
            "start": (start // 3 * 2).astype(np.int32)[:, None],
            "begin": np.zeros((B, 1), np.int32),
            "stop": np.full((B, 1), self.samples, np.int32),
            "rate": np.array(SPEEDS, np.float32)[speed][:, None],
        }
        described = {k: mx.array(v) for k, v in drawn.items()}
        noisy = mx.array(cast(Any, rng.random((B, 1)) < 0.5))
        margin = MARGIN * min(1.0, max(0.0, (step - MARGIN_FROM) / MARGIN_STEPS))
        return {
            "features": _features(gather_wave(self.pcm, described, self.samples), described, noisy),
            "margin": mx.array(margin, mx.float32),
            "label": mx.array((speaker * len(SPEEDS) + speed).astype(np.int32)),
        }


def _features(wave: mx.array, described: Batch, noisy: mx.array) -> mx.array:
    wave = mx.where(noisy, room_and_noise(wave, described), wave * described["gain"][:, None])
    return cast(mx.array, mx.stop_gradient(fbank_batch(wave)))


def speaker_vectors(
    net: SpeakerEncoder, corpus: SpeechCorpus, pcm: mx.array, each: int, seconds: float, seed: int = 0
) -> np.ndarray:
    """Speaker vectors of random excerpts of every speaker.

    Parameters
    ----------
    net : with running statistics.
    corpus : whose speakers; `pcm` is its sound at 16 kHz, (n,) int16.
    each : vectors of a speaker.
    seconds : length of an excerpt.
    seed : decides where they lie.

    Returns
    -------
    (speakers, each, E) float32.
    """
    n, rng, found = round(seconds * SAMPLE_RATE), np.random.default_rng(seed), []
    for first, last in zip(corpus.edges[:-1], corpus.edges[1:], strict=True):
        room = max(1, int(last - first) // 3 * 2 - n)
        start = int(first) // 3 * 2 + rng.integers(0, room, each)
        start = np.minimum(start, pcm.shape[0] - n)
        wave = pcm[mx.array(start.astype(np.int32))[:, None] + mx.arange(n)[None]].astype(mx.float32) / 32768
        found.append(np.array(net(fbank_batch(wave))))
    return np.stack(found)
