"""HiFT vocoder: mel in, sound out, by way of pitch, a harmonic source, and a short inverse STFT.

B batch, T mel frames (50/s), n samples (24 kHz, 480 per frame), F frames of the short STFT (hop 4), C channels.
Frames lead channels. Attribute names are the published ones, with weight norm merged into the kernels. Noise is an
argument or comes from a seed. Knows no files, no codes and no streams.

Reference: `hifigan.py` (HiFTGenerator) of FlashCosyVoice; Li et al. 2023 (HiFTNet), source after Wang et al. 2019.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import lru_cache
from math import prod

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ...backend.ops import elu, exp, leaky_relu, snake
from ...backend.pieces import Pieces
from ...backend.process import enter
from ...errors import DecodeError
from ...schema import MAX_LAYERS, MAX_STRIDE, read_record, require, require_positive
from ..tap import Tap, emit, named
from .layers import Conv1d, ConvTranspose1d, overlap_add, total_of
from .noise import Noise, noise_frames

MAX_SAMPLES = 1 << 16  # that one mel frame may become


@dataclass(frozen=True)
class IstftConfig:
    """Short inverse transform at the end of the vocoder: `n_fft`, even, and `hop_len`, at most its half, in samples."""

    n_fft: int = 16
    hop_len: int = 4

    def __post_init__(self):
        require_positive(self, "istft", ("n_fft", "hop_len"), MAX_STRIDE)
        require(
            self.n_fft % 2 == 0 and self.hop_len <= self.n_fft // 2,
            f"istft: n_fft {self.n_fft} must be even and at least twice hop_len {self.hop_len}",
        )


@dataclass(frozen=True)
class HiftConfig:
    """Sizes of the HiFT vocoder; the defaults are the published ones (HiFTGenerator of FlashCosyVoice).

    Parameters
    ----------
    in_channels, base_channels, f0_cond_channels : int > 0
        Mel bands; channels before the first stage, halved by each; channels of the pitch predictor.
    nb_harmonics : int
        Overtones of the source.
    sampling_rate : int > 0
        In Hz.
    nsf_alpha, nsf_sigma, nsf_voiced_threshold : float
        Amplitude of the source's sines; standard deviation of its noise where voiced; pitch in Hz above which a frame
        is voiced.
    upsample_rates, upsample_kernel_sizes : tuple of int > 0
        Of each stage.
    istft : IstftConfig
    resblock_kernel_sizes, resblock_dilation_sizes : tuple, tuple of tuples
        Residual blocks of every stage, with odd kernels.
    source_resblock_kernel_sizes, source_resblock_dilation_sizes : tuple, tuple of tuples
        Those of the source, one a stage.
    lrelu_slope, final_lrelu_slope : float
        Slopes below 0; the reference leaves the last one at PyTorch's default.
    audio_limit, magnitude_clip : float > 0
        Samples and magnitudes are kept within these.

    Raises
    ------
    ConfigError
        A size outside these ranges, or lists of unlike length.
    """

    in_channels: int = 80
    base_channels: int = 512
    f0_cond_channels: int = 512
    nb_harmonics: int = 8
    sampling_rate: int = 24_000
    nsf_alpha: float = 0.1
    nsf_sigma: float = 0.003
    nsf_voiced_threshold: float = 10.0
    upsample_rates: tuple[int, ...] = (8, 5, 3)
    upsample_kernel_sizes: tuple[int, ...] = (16, 11, 7)
    istft: IstftConfig = IstftConfig()
    resblock_kernel_sizes: tuple[int, ...] = (3, 7, 11)
    resblock_dilation_sizes: tuple[tuple[int, ...], ...] = ((1, 3, 5),) * 3
    source_resblock_kernel_sizes: tuple[int, ...] = (7, 7, 11)
    source_resblock_dilation_sizes: tuple[tuple[int, ...], ...] = ((1, 3, 5),) * 3
    lrelu_slope: float = 0.1
    final_lrelu_slope: float = 0.01
    audio_limit: float = 0.99
    magnitude_clip: float = 100.0

    def __post_init__(self):
        names = [f.name for f in fields(self)]
        channels = [name for name in names if name.endswith("_channels")]
        require_positive(self, "hift", (*channels, "sampling_rate", "audio_limit", "magnitude_clip"))
        require_positive(self, "hift", [name for name in names if name.endswith(("_rates", "_sizes"))], MAX_STRIDE)
        require(
            0 <= self.nb_harmonics <= MAX_STRIDE,
            f"hift.nb_harmonics: expected 0 … {MAX_STRIDE}, found {self.nb_harmonics}",
        )
        require(self.sampling_rate != 22_050, "hift: at 22050 Hz the reference has another source; not supported")
        stages = len(self.upsample_rates)
        require(
            stages > 0
            and len(self.upsample_kernel_sizes)
            == stages
            == len(self.source_resblock_kernel_sizes)
            == len(self.source_resblock_dilation_sizes),
            "hift: upsample_rates, upsample_kernel_sizes and the source_resblock lists must be equally long",
        )
        require(
            len(self.resblock_kernel_sizes) == len(self.resblock_dilation_sizes) > 0,
            "hift: resblock_kernel_sizes and resblock_dilation_sizes must have the same length",
        )
        layers = stages * sum(map(len, self.resblock_dilation_sizes)) + sum(
            map(len, self.source_resblock_dilation_sizes)
        )
        require(layers <= MAX_LAYERS, f"hift: at most {MAX_LAYERS} residual layers are possible, found {layers}")
        require(
            self.base_channels % 2**stages == 0,
            f"hift: base_channels {self.base_channels} cannot be halved {stages} times",
        )
        for rate, kernel in zip(self.upsample_rates, self.upsample_kernel_sizes, strict=True):
            require(
                kernel >= rate and (kernel - rate) % 2 == 0,
                f"hift: upsampling kernel {kernel} and rate {rate} must differ by an even number",
            )
        require(
            self.samples_per_frame <= MAX_SAMPLES,
            f"hift: upsample_rates and istft.hop_len make {self.samples_per_frame} samples of a frame, at most "
            f"{MAX_SAMPLES} are possible",
        )
        kernels = (*self.resblock_kernel_sizes, *self.source_resblock_kernel_sizes)
        require(all(k % 2 == 1 for k in kernels), f"hift: residual kernels must be odd, found {kernels}")

    @property
    def samples_per_frame(self) -> int:
        """Samples of sound that one mel frame becomes (480 published)."""
        return prod(self.upsample_rates) * self.istft.hop_len

    @property
    def stage_channels(self) -> tuple[int, ...]:
        """Channels after each upsampling."""
        return tuple(self.base_channels // 2 ** (i + 1) for i in range(len(self.upsample_rates)))

    @property
    def source_strides(self) -> tuple[int, ...]:
        """How far each stage thins the STFT frames of the source: the product of the rates still to come."""
        return tuple(prod(self.upsample_rates[i + 1 :]) for i in range(len(self.upsample_rates)))

    @classmethod
    def from_dict(cls, data: object, name: str = "hift") -> HiftConfig:
        """Read a mapping with this record's keys; lists become tuples. Absent keys keep the published values."""
        return read_record(cls, data, name)


F0_LAYERS = 5
F0_KERNEL = 3
EDGE_KERNEL = 7  # conv_pre and conv_post
STAGE = 42  # multiply-adds of a residual block per element and channel: six convolutions of about kernel size 7
ALPHA_FLOOR = 1e-9


class Snake(nn.Module):
    """x + sin^2(a x) / a with one a per channel (Ziyin et al. 2020)."""

    def __init__(self, channels: int):
        super().__init__()
        self.alpha = mx.ones((channels,))

    def __call__(self, x: mx.array) -> mx.array:
        """(B, T, channels) -> the same shape."""
        return snake(x, self.alpha, ALPHA_FLOOR)


class ResBlock(nn.Module):
    """Pairs of convolutions, the first of each dilated, each pair added to what it read."""

    def __init__(self, channels: int, kernel: int, dilations: tuple[int, ...]):
        super().__init__()
        half = kernel // 2
        self.convs1 = [Conv1d(channels, channels, kernel, padding=half * d, dilation=d) for d in dilations]
        self.convs2 = [Conv1d(channels, channels, kernel, padding=half) for _ in dilations]
        self.activations1 = [Snake(channels) for _ in dilations]
        self.activations2 = [Snake(channels) for _ in dilations]

    def __call__(self, x: mx.array) -> mx.array:
        """(B, T, channels) -> the same shape."""
        for act1, conv1, act2, conv2 in zip(
            self.activations1, self.convs1, self.activations2, self.convs2, strict=True
        ):
            x = x + conv2(act2(conv1(act1(x))))
        return x


class F0Predictor(nn.Module):
    """Pitch of every mel frame in Hz."""

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        self.condnet = []
        for i in range(F0_LAYERS):
            conv = Conv1d(in_channels if i == 0 else channels, channels, F0_KERNEL, padding=F0_KERNEL // 2)
            self.condnet += [conv, elu]
        self.classifier = nn.Linear(channels, 1)

    def __call__(self, mel: mx.array) -> mx.array:
        """(B, T, in_channels) -> (B, T)."""
        for layer in self.condnet:
            mel = layer(mel)
        return mx.abs(self.classifier(mel)[..., 0])  # (B, T)


def harmonic_phase(f0: mx.array, n_harmonics: int, sample_rate: int, per_frame: int) -> mx.array:
    """Phases in radians of the first `n_harmonics` multiples of f0 (B, T), at every sample: (B, T * per_frame, H).

    As in the reference, phase is summed per frame, rounded to float32, and drawn as a straight line between the
    middles of frames. It reaches thousands of radians, where float32 is coarse; so the order of roundings is the
    reference's too, on the host. Initial phases would be lost on the way and are left out.
    """
    hz = np.array(f0.astype(mx.float32))[..., None] * np.arange(1, n_harmonics + 1, dtype=np.float32)
    turns = (hz / np.float32(sample_rate)) % np.float32(1)
    phase = np.cumsum(turns, axis=1, dtype=np.float64).astype(np.float32)  # PyTorch sums float32 in doubles
    phase = phase * np.float32(2 * np.pi) * np.float32(per_frame)
    left, right, weight = _between_frames(f0.shape[1], per_frame)
    frames = mx.array(phase)
    return frames[:, left] * (1 - weight) + frames[:, right] * weight


@lru_cache(maxsize=2)
def _between_frames(n: int, per_frame: int) -> tuple[mx.array, mx.array, mx.array]:
    """For each sample of n frames the frames whose middles it lies between, and the weight of the second (…, 1)."""
    sample = np.arange(n * per_frame, dtype=np.float32) + np.float32(0.5)
    place = np.maximum(sample * np.float32(1 / per_frame) - np.float32(0.5), 0)
    left = place.astype(np.int32)
    return mx.array(left), mx.array(np.minimum(left + 1, n - 1)), mx.array(place - left)[:, None]


class Source(nn.Module):
    """Sines at the multiples of the pitch and a little noise; noise alone where there is no voice."""

    def __init__(self, config: HiftConfig):
        super().__init__()
        self.l_linear = nn.Linear(config.nb_harmonics + 1, 1)
        self._config = config

    def __call__(self, f0: mx.array, noise: Noise | None, start: int = 0, tap: Tap | None = None) -> mx.array:
        """Pitch (B, T) in Hz -> source (B, n), with the noise from sample `start` on; None for no noise."""
        c = self._config
        phase = harmonic_phase(f0, c.nb_harmonics + 1, c.sampling_rate, c.samples_per_frame)  # (B, n, H)
        voiced = mx.repeat((f0 > c.nsf_voiced_threshold).astype(mx.float32), c.samples_per_frame, axis=1)[..., None]
        sines = c.nsf_alpha * mx.sin(phase) * voiced
        if noise is not None:
            amplitude = voiced * c.nsf_sigma + (1 - voiced) * (c.nsf_alpha / 3)
            sines = sines + amplitude * noise_frames(noise, start, phase.shape[1], phase.shape[2])
        sines = emit(tap, "sines", sines)
        return mx.tanh(self.l_linear(sines.astype(self.l_linear.weight.dtype)))[..., 0]  # (B, n)


def _window(n_fft: int) -> np.ndarray:
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)  # periodic Hann


def _angles(n_fft: int) -> np.ndarray:
    return 2 * np.pi * np.outer(np.arange(n_fft), np.arange(n_fft // 2 + 1)) / n_fft  # (sample, bin)


def short_stft(x: mx.array, n_fft: int, hop: int) -> mx.array:
    """(B, n) -> (B, n // hop + 1, n_fft + 2), real parts then imaginary; centred, reflected, periodic Hann."""
    half = n_fft // 2
    x = mx.concatenate([x[:, half:0:-1], x, x[:, -2 : -half - 2 : -1]], axis=1)
    angles = _angles(n_fft)
    basis = np.concatenate([np.cos(angles), -np.sin(angles)], axis=1) * _window(n_fft)[:, None]
    kernel = mx.array(basis.T[..., None].astype(np.float32)).astype(x.dtype)  # (n_fft + 2, n_fft, 1)
    return mx.conv1d(x[..., None], kernel, stride=hop)


def inverse_stft(magnitude: mx.array, phase: mx.array, n_fft: int, hop: int, clip: float) -> mx.array:
    """(B, F, bins) twice -> (B, hop * (F - 1)); magnitudes end at `clip`; both ends lose half a window.

    Overlapping frames are windowed and divided by the sum of squared windows, as torch.istft does.
    """
    magnitude = mx.minimum(magnitude, clip)
    spectrum = mx.concatenate([magnitude * mx.cos(phase), magnitude * mx.sin(phase)], axis=-1)
    angles, window, half = _angles(n_fft), _window(n_fft), n_fft // 2
    twice = np.full(half + 1, 2.0)
    twice[[0, -1]] = 1.0  # bins without a mirror image
    basis = np.concatenate([np.cos(angles) * twice, -np.sin(angles) * twice], axis=1) / n_fft * window[:, None]
    basis[:, [half + 1, -1]] = 0.0  # their imaginary parts are no part of a real signal
    frames = spectrum @ mx.array(basis.T.astype(np.float32)).astype(spectrum.dtype)  # (B, F, n_fft)
    signal = overlap_add(frames[..., None], hop)[..., 0]
    return (signal / _weights(magnitude.shape[1], n_fft, hop))[:, half : signal.shape[1] - half]


@lru_cache(maxsize=2)
def _weights(frames: int, n_fft: int, hop: int) -> mx.array:
    """Sum of the squared windows at every sample of so many frames, 1 where there is none."""
    total = np.zeros(((frames - 1) * hop + n_fft), np.float32)
    for j, square in enumerate((_window(n_fft) ** 2).astype(np.float32)):
        total[j : j + (frames - 1) * hop + 1 : hop] += square
    return mx.array(np.where(total > 1e-8, total, np.float32(1)))


class Hift(nn.Module):
    """The vocoder; it keeps nothing between calls."""

    def __init__(self, config: HiftConfig):
        super().__init__()
        bins2 = config.istft.n_fft + 2
        self.m_source = Source(config)
        self.conv_pre = Conv1d(config.in_channels, config.base_channels, EDGE_KERNEL, padding=EDGE_KERNEL // 2)
        self.ups, self.source_downs, self.source_resblocks, self.resblocks = [], [], [], []
        for i, C in enumerate(config.stage_channels):
            kernel, rate = config.upsample_kernel_sizes[i], config.upsample_rates[i]
            self.ups.append(ConvTranspose1d(2 * C, C, kernel, rate, (kernel - rate) // 2))
            stride = config.source_strides[i]
            kernel, padding = (1, 0) if stride == 1 else (2 * stride, stride // 2)
            self.source_downs.append(Conv1d(bins2, C, kernel, stride=stride, padding=padding))
            self.source_resblocks.append(
                ResBlock(C, config.source_resblock_kernel_sizes[i], config.source_resblock_dilation_sizes[i])
            )
            self.resblocks += [
                ResBlock(C, k, d)
                for k, d in zip(config.resblock_kernel_sizes, config.resblock_dilation_sizes, strict=True)
            ]
        self.conv_post = Conv1d(config.stage_channels[-1], bins2, EDGE_KERNEL, padding=EDGE_KERNEL // 2)
        self.f0_predictor = F0Predictor(config.in_channels, config.f0_cond_channels)
        self._config = config

    @property
    def config(self) -> HiftConfig:
        """Its sizes."""
        return self._config

    def __call__(
        self,
        mel: mx.array,
        noise: Noise | None,
        cache_source: mx.array | None = None,
        start: int = 0,
        tap: Tap | None = None,
    ) -> tuple[mx.array, mx.array]:
        """Mel to sound.

        Parameters
        ----------
        mel : (B, T, in_channels) natural-log mel, T >= 1.
        noise : additive noise of the source: a seed, an array (1, at least start + n, harmonics + 1) of standard
            normal numbers, or None for none (then nothing here is random).
        cache_source : (B, m) source of the call before for the first m samples, which stand for the same time.
        start : where in the noise this call begins, in samples.

        Returns
        -------
        wave (B, n) within +-audio_limit and source (B, n), n = T * samples_per_frame.
        """
        enter()
        if mel.ndim != 3 or mel.shape[1] < 1 or mel.shape[2] != self._config.in_channels:
            raise DecodeError(
                f"vocoder: expected a mel of shape (rows, frames, {self._config.in_channels}), found {tuple(mel.shape)}"
            )
        mel = mel.astype(self.conv_pre.weight.dtype)
        f0 = emit(tap, "f0", self.f0_predictor(mel))
        source = self.m_source(f0, noise, start, tap)
        if cache_source is not None and cache_source.shape[1]:
            source = mx.concatenate([cache_source.astype(source.dtype), source[:, cache_source.shape[1] :]], axis=1)
        source = emit(tap, "source", source)
        return self.decode(mel, source, tap), source

    def decode(self, mel: mx.array, source: mx.array, tap: Tap | None = None) -> mx.array:
        """Mel (B, T, M) and source (B, n) -> wave (B, n)."""
        c = self._config
        spectrum = emit(tap, "source_stft", short_stft(source, c.istft.n_fft, c.istft.hop_len))
        x = emit(tap, "conv_pre", self.conv_pre(mel))
        per_stage, last, pieces = len(c.resblock_kernel_sizes), len(self.ups) - 1, Pieces()
        for i, up in enumerate(self.ups):
            at = named(tap, f"{i}.")
            x = emit(at, "up", up(leaky_relu(x, c.lrelu_slope)))
            if i == last:  # one frame more, as the centred STFT of the source has
                x = mx.concatenate([x[:, 1:2], x], axis=1)
            x = x + emit(at, "source", self.source_resblocks[i](self.source_downs[i](spectrum)))
            x = pieces.end(x, STAGE)
            x = total_of(pieces.end(block(x), STAGE) for block in self.resblocks[i * per_stage : (i + 1) * per_stage])
            x = x / per_stage
            x = emit(at, "out", x)
        x = emit(tap, "before_conv_post", leaky_relu(x, c.final_lrelu_slope))
        x = emit(tap, "conv_post", self.conv_post(x))
        magnitude, phase = mx.split(x.astype(mx.float32), 2, axis=-1)
        wave = inverse_stft(exp(magnitude), mx.sin(phase), c.istft.n_fft, c.istft.hop_len, c.magnitude_clip)
        return emit(tap, "wave", mx.clip(wave, -c.audio_limit, c.audio_limit))
