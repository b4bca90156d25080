"""Training the vocoder: sound from its mel, judged by spectra of many resolutions, and pitch from the mel.

The source is driven by the pitch that the synthesiser itself spoke with; the net's own pitch is taught beside it.
Phases are never compared: no listener hears them, and nothing in a mel tells them.

B rows, T mel frames (50/s), n = 480 T samples.
"""

from __future__ import annotations

from functools import lru_cache

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from ..backend import on_cuda
from ..mel_speaking import FLOW_HOP, FLOW_PAD
from ..token2wav.config import HiftConfig
from ..token2wav.hift import Hift, Snake, Source
from .front_ends import cut, flow_mel_batch, magnitudes, mirrored, resident
from .speaking_corpus import PITCH_HOP, SpeakingCorpus

RESOLUTIONS = ((64, 16), (128, 32), (256, 64), (512, 128), (1024, 256), (2048, 512))  # samples: window, hop
QUIET = 1e-3  # magnitudes below it are all alike to the logarithm, for a window of 1024
FIRST_PITCH, PITCH_SPREAD = 120.0, 60.0  # Hz; the net's last layer starts near a voice, not near 0
EDGE = 2  # mel frames at both ends of a row, whose neighbours the net does not see, that are not judged
SIZE = HiftConfig(base_channels=192, f0_cond_channels=128, resblock_kernel_sizes=(3, 5, 7))


THREADS = 256  # of a block
ELEMENT = """auto i = cooperative_groups::this_grid().thread_rank();
if (i < n[0]) { float v = x[i], b = a[i % n[1]], below = b + 1e-9f, s = sinf(v * b);
"""


@lru_cache(maxsize=2)
def _kernel(name: str, inputs: tuple[str, ...], outputs: tuple[str, ...], body: str):
    kernel = mx.fast.cuda_kernel(name=name, input_names=[*inputs, "n"], output_names=list(outputs),
                                 source=ELEMENT + body + "}")

    def call(*arrays: mx.array) -> list[mx.array]:
        x = arrays[0]
        blocks = -(-x.size // THREADS)
        return kernel(inputs=[*arrays, mx.array([x.size, x.shape[-1]], mx.int32)], grid=(blocks * THREADS, 1, 1),
                      threadgroup=(THREADS, 1, 1), output_shapes=[x.shape] * len(outputs),
                      output_dtypes=[mx.float32] * len(outputs))

    return call


@mx.custom_function
def fused_snake(x: mx.array, a: mx.array) -> mx.array:
    """`Snake` on CUDA in one pass, and its gradient in one more: half of the net's work otherwise, for within a
    gradient MLX fuses nothing. x (B, T, C) float32, a (C,)."""
    return _kernel("snake", ("x", "a"), ("y",), "y[i] = v + s * s / below;")(x, a)[0]


@fused_snake.vjp
def _fused_snake_vjp(primals, cotangent, _value):
    """d/dx = 1 + sin(2 a x), d/da = (x sin(2 a x) - sin^2(a x) / a) / a."""
    body = """float t = sinf(2 * v * b);
dx[i] = c[i] * (1 + t * b / below); da[i] = c[i] * (v * t - s * s / below) / below;"""
    x, a = primals
    by_x, by_a = _kernel("snake_slopes", ("x", "a", "c"), ("dx", "da"), body)(x, a, cotangent)
    return by_x, by_a.sum(axis=(0, 1))


@lru_cache(maxsize=1)
def can_fuse() -> bool:
    """Whether the kernels run here and agree with the net's own snake, gradient included."""
    if not on_cuda():
        return False
    x, c = (mx.random.normal((2, 77, 3), key=mx.random.key(k)) for k in range(2))
    plain, a = Snake(3), mx.array([0.3, 1.0, 2.5])

    def slow(x, a):
        plain.alpha = a
        return (plain(x) * c).sum()

    try:
        pairs = [(fused_snake(x, plain.alpha), plain(x))]
        pairs += zip(mx.grad(lambda x, a: (fused_snake(x, a) * c).sum(), argnums=(0, 1))(x, a),
                     mx.grad(slow, argnums=(0, 1))(x, a), strict=True)
        agree = all(mx.allclose(one, other, 1e-3, 1e-3).item() for one, other in pairs)
        print(f"snake: {'fused' if agree else 'plain, for its kernels give other numbers'}", flush=True)
        return agree
    except (RuntimeError, ValueError) as error:
        print(f"snake: plain, for its kernels do not run here ({' '.join(str(error).split())[:200]})", flush=True)
        return False


class FusedSnake(Snake):
    def __call__(self, x: mx.array) -> mx.array:
        return fused_snake(x, self.alpha) if can_fuse() else super().__call__(x)


def begin(config: HiftConfig, seed: int) -> tuple[Hift, dict]:
    """The net and fresh weights: kernels of variance 1 / inputs, the vocoder's last layer calmer."""
    mx.random.seed(seed)
    net, fresh = Hift(config), []
    can_fuse()  # asked before anything is differentiated
    for module in net.modules():
        if isinstance(module, Snake):
            module.__class__ = FusedSnake
    for name, value in tree_flatten(net.parameters()):
        if value.ndim >= 2:
            value = mx.random.normal(value.shape) * (value.size // value.shape[0]) ** -0.5
            if "convs2" in name or name.startswith("conv_post"):
                value = 0.3 * value
        elif name.endswith(".bias"):
            value = mx.zeros(value.shape)
        fresh.append((name, value))
    weights = dict(fresh)
    weights["f0_predictor.classifier.weight"] = weights["f0_predictor.classifier.weight"] * PITCH_SPREAD
    weights["f0_predictor.classifier.bias"] = mx.array([FIRST_PITCH])
    return net, tree_unflatten(list(weights.items()))


def source_of(source: Source, f0: mx.array, config: HiftConfig, key: mx.array) -> mx.array:
    """`Source` on the accelerator: (B, T) Hz -> (B, n). Phases are summed in float32, which a short row can stand."""
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


def spectral_loss(made: mx.array, true: mx.array) -> mx.array:
    """(B, n) twice: over all resolutions, mean distance of log magnitudes, and of magnitudes beside their size
    (after Yamamoto et al. 2020)."""
    total = 0.0
    for size, hop in RESOLUTIONS:
        a, b = magnitudes(made, size, hop), magnitudes(true, size, hop)
        floor = QUIET * (size / 1024) ** 0.5
        logs = mx.abs(mx.log(a + floor) - mx.log(b + floor)).mean()
        beside = mx.sqrt(mx.square(a - b).sum() / (mx.square(b).sum() + 1e-6) + 1e-9)
        total = total + logs + beside
    return total / len(RESOLUTIONS)


def loss(params: dict, batch: dict, net: Hift):
    """Spectra of the sound, its mel, and the pitch (in 100 Hz; the mean distance, so that a frame is voiced or not)."""
    net.update(params)
    mel, f0 = batch["mel"], batch["f0"]
    made = net.decode(mel, source_of(net.m_source, f0, net.config, batch["key"]))
    inner = slice(EDGE * FLOW_HOP, made.shape[1] - EDGE * FLOW_HOP)
    spectra = spectral_loss(made[:, inner], batch["wave"][:, inner])
    again = flow_mel_batch(mirrored(made, FLOW_PAD))
    mels = mx.abs(again - batch["mel_clean"])[:, EDGE:-EDGE].mean()
    told = net.f0_predictor(mel)
    pitch = mx.abs(told - f0).mean() / 100
    wrong = ((told > net.config.nsf_voiced_threshold) != (f0 > 0)).astype(mx.float32).mean()
    return spectra + mels + pitch, {"spectra": spectra, "mels": mels, "pitch": pitch, "voicing_wrong": wrong}


class Batches:
    """step -> mel, pitch and sound of rows cut anywhere. Rows come at any loudness; mels a little noisy and blurred,
    as a flow will give them."""

    def __init__(self, corpus: SpeakingCorpus, rows: int, frames: int, seed: int, blemish: float = 0.1):
        self.rows, self.frames, self.seed, self.blemish = rows, frames, seed, blemish
        self.pcm, self.pitch = resident(corpus.pcm), resident(corpus.pitch)

    def __call__(self, step: int) -> dict[str, mx.array]:
        rng = np.random.default_rng((self.seed, step))
        n, T = self.frames * FLOW_HOP, self.frames
        start = mx.array(rng.integers(FLOW_PAD, self.pcm.shape[0] - n - FLOW_PAD, self.rows).astype(np.int32))
        gain = mx.array((10 ** (rng.uniform(-14, 3, (self.rows, 1)) / 20)).astype(np.float32))
        wave = cut(self.pcm, start - FLOW_PAD, n + 2 * FLOW_PAD).astype(mx.float32) / 32768 * gain
        mel = flow_mel_batch(wave)
        spoilt = mel + mx.array(rng.uniform(0, self.blemish, (self.rows, 1, 1)).astype(np.float32)) * mx.random.normal(
            mel.shape, key=mx.random.key(int(rng.integers(1 << 31))))
        middle = (mx.arange(T) * FLOW_HOP + FLOW_HOP // 2)[None] + start[:, None]
        return {"mel": spoilt, "mel_clean": mel, "wave": wave[:, FLOW_PAD : FLOW_PAD + n],
                "f0": self.pitch[middle // PITCH_HOP], "key": mx.random.key(int(rng.integers(1 << 31)))}

