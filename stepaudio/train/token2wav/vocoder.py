"""Training the vocoder (HiFT): sound from its mel, compared by spectra of many resolutions, and F0 from the mel.

Sound is made twice, with unlike noise, and the two must differ from each other as much as from the truth; otherwise
noise is smoothed away, which sounds like a buzz.

The source is driven by the F0 that the corpus was synthesised with; the net's own F0 predictor is trained beside it.
Phases are never compared: they are hardly audible, and the mel does not determine them.

B examples, T mel frames (50/s), n = 480 T samples.
"""

from __future__ import annotations

from typing import cast

import mlx.core as mx
import numpy as np
from mlx.utils import tree_unflatten

from ...audio.features import FLOW_HOP, FLOW_PAD
from ...models.parameters import named_arrays
from ...models.token2wav.hift import Hift, HiftConfig, Snake, Source
from .adversary import Adversary
from .corpus import F0_HOP, SpeechCorpus
from .features import excerpts, flow_mel_batch, magnitudes, mirrored, resident
from .fit import Batch, Metrics
from .snake import FusedSnake, can_fuse

RESOLUTIONS = ((64, 16), (128, 32), (256, 64), (512, 128), (1024, 256), (2048, 512))  # samples: window, hop
QUIET = 1e-3  # added to magnitudes before the logarithm, for a window of 1024
FIRST_F0, F0_SPREAD = 120.0, 60.0  # Hz; the predictor's last layer starts near a voice, not near 0
EDGE = 2  # mel frames at both ends, whose context the net does not have, that are not compared
SIZE = HiftConfig(base_channels=192, f0_cond_channels=128, resblock_kernel_sizes=(3, 5, 7))


def begin(config: HiftConfig, seed: int) -> tuple[Hift, dict]:
    """The net and initial weights: kernels of variance 1 / inputs, the vocoder's last layer smaller."""
    mx.random.seed(seed)
    net, fresh = Hift(config), {}
    can_fuse()  # asked before anything is differentiated
    for module in net.modules():
        if isinstance(module, Snake):
            module.__class__ = FusedSnake
    for name, value in named_arrays(net.parameters()):
        if value.ndim >= 2:
            value = mx.random.normal(value.shape) * (value.size // value.shape[0]) ** -0.5
            if "convs2" in name or name.startswith("conv_post"):
                value = 0.3 * value
        elif name.endswith(".bias"):
            value = mx.zeros(value.shape)
        fresh[name] = value
    fresh["f0_predictor.classifier.weight"] = fresh["f0_predictor.classifier.weight"] * F0_SPREAD
    fresh["f0_predictor.classifier.bias"] = mx.array([FIRST_F0])
    return net, cast(dict, tree_unflatten(list(fresh.items())))


def source_signal(source: Source, f0: mx.array, config: HiftConfig, key: mx.array) -> mx.array:
    """`Source` on the accelerator: (B, T) Hz -> (B, n). Phases are summed in float32, enough for a short example."""
    H, per = config.nb_harmonics + 1, config.samples_per_frame
    turns = f0[..., None] * mx.arange(1, H + 1) / config.sampling_rate
    frames = mx.cumsum(turns - mx.floor(turns), axis=1) * per  # cycles at the middle of each frame, (B, T, H)
    place = np.maximum((np.arange(f0.shape[1] * per) + 0.5) / per - 0.5, 0)
    left = place.astype(np.int32)
    right, weight = np.minimum(left + 1, f0.shape[1] - 1), mx.array((place - left).astype(np.float32))[:, None]
    cycles = frames[:, mx.array(left)] * (1 - weight) + frames[:, mx.array(right)] * weight
    voiced = mx.repeat((f0 > config.nsf_voiced_threshold).astype(mx.float32), per, axis=1)[..., None]
    sines = config.nsf_alpha * mx.sin(2 * np.pi * (cycles - mx.floor(cycles))) * voiced
    amplitude = voiced * config.nsf_sigma + (1 - voiced) * (config.nsf_alpha / 3)
    sines = sines + amplitude * mx.random.normal(sines.shape, key=key)
    return mx.tanh(source.l_linear(mx.stop_gradient(sines)))[..., 0]


def spectral_distance(a: mx.array, b: mx.array, scale: mx.array) -> mx.array:
    """Spectra (B, F, K) twice, scale (B, 1, 1) -> distance of log magnitudes, by frame, plus that of magnitudes."""
    logs = mx.sqrt(mx.square(mx.log(a) - mx.log(b)).mean(-1) + 1e-6).mean()
    return logs + (mx.abs(a - b) / scale).mean()


def energy_distance(one: mx.array, other: mx.array, true: mx.array) -> mx.array:
    """How far two sounds made from the same mel are from the true one, less how far they are from each other; (B, n).

    The mean over all resolutions. Two draws that differ as much as each differs from the truth make its least expected
    value (Gritsenko et al. 2020), where a distance from the truth alone is least for noise that is smoothed away.
    """
    total = mx.array(0.0)
    for size, hop in RESOLUTIONS:
        floor = QUIET * (size / 1024) ** 0.5
        a, b, x = (magnitudes(wave, size, hop) + floor for wave in (one, other, true))
        scale = x.mean((1, 2), keepdims=True)
        apart = spectral_distance(a, x, scale) + spectral_distance(b, x, scale)
        total = total + apart - spectral_distance(a, b, scale)
    return total / len(RESOLUTIONS)


def inner(wave: mx.array) -> mx.array:
    """(B, n) without the ends, whose context the net does not have."""
    return wave[:, EDGE * FLOW_HOP : wave.shape[1] - EDGE * FLOW_HOP]


def sound(params: dict, batch: Batch, net: Hift, draws: int = 1) -> mx.array:
    """Sound of each example by the true F0, (draws B, n), each with its own noise."""
    net.update(params)
    mel, f0 = (mx.concatenate([batch[name]] * draws) for name in ("mel", "f0"))
    return net.decode(mel, source_signal(net.m_source, f0, net.config, batch["key"]))


def loss(params: dict, batch: Batch, net: Hift, adversary: Adversary | None = None) -> tuple[mx.array, Metrics]:
    """Spectra of the sound, its mel, and F0 in units of 100 Hz (L1, so that a frame is either voiced or not).

    With an adversary also what it finds wrong.
    """
    one, other = mx.split(sound(params, batch, net, draws=2), 2)
    true = inner(batch["wave"])
    spectra = energy_distance(inner(one), inner(other), true)
    a, b = (flow_mel_batch(mirrored(wave, FLOW_PAD))[:, EDGE:-EDGE] for wave in (one, other))
    x = batch["mel_clean"][:, EDGE:-EDGE]
    distance = mx.abs(a - x).mean()
    mels = distance + mx.abs(b - x).mean() - mx.abs(a - b).mean()
    predicted, f0 = net.f0_predictor(batch["mel"]), batch["f0"]
    f0_error = mx.abs(predicted - f0).mean() / 100
    voicing = ((predicted > net.config.nsf_voiced_threshold) != (f0 > 0)).astype(mx.float32).mean()
    total = spectra + mels + f0_error
    metrics = {"spectra": spectra, "mel": distance, "f0": f0_error, "voicing_error": voicing}
    if adversary is not None:
        wrong, found = adversary.opinion(inner(one), true, batch)
        total, metrics = total + wrong, metrics | found
    return total, metrics


class Batches:
    """step -> mel, F0 and sound of excerpts at random places and levels.

    Parameters
    ----------
    corpus : SpeechCorpus
    batch_size : int > 0
    frames : mel frames of an example.
    seed : int
    noise : largest standard deviation of the noise added to mels, as the flow's mels are not exact.
    """

    def __init__(self, corpus: SpeechCorpus, batch_size: int, frames: int, seed: int, noise: float = 0.1):
        self.batch_size, self.frames, self.seed, self.noise = batch_size, frames, seed, noise
        self.pcm, self.f0 = resident(corpus.pcm), resident(corpus.f0)

    def __call__(self, step: int) -> Batch:
        """The batch of a step; the same step gives the same batch."""
        rng, B = np.random.default_rng((self.seed, step)), self.batch_size
        n, T = self.frames * FLOW_HOP, self.frames
        start = mx.array(rng.integers(FLOW_PAD, self.pcm.shape[0] - n - FLOW_PAD, B).astype(np.int32))
        gain = mx.array((10 ** (rng.uniform(-14, 3, (B, 1)) / 20)).astype(np.float32))
        wave = excerpts(self.pcm, start - FLOW_PAD, n + 2 * FLOW_PAD).astype(mx.float32) / 32768 * gain
        mel = flow_mel_batch(wave)
        level = mx.array(rng.uniform(0, self.noise, (B, 1, 1)).astype(np.float32))
        noisy = mel + level * mx.random.normal(mel.shape, key=mx.random.key(int(rng.integers(1 << 31))))
        middle = (mx.arange(T) * FLOW_HOP + FLOW_HOP // 2)[None] + start[:, None]
        return {
            "mel": noisy,
            "mel_clean": mel,
            "wave": wave[:, FLOW_PAD : FLOW_PAD + n],
            "f0": self.f0[middle // F0_HOP],
            "key": mx.random.key(int(rng.integers(1 << 31))),
        }
