"""Log mels of a described batch, made on the accelerator: excerpts, speed, breaths, room, noise, band, warp, masks.

B examples (rows of a batch), N samples, F mel frames, M mel bands. The clean path equals the reference front end (a
test holds it to that): whatever is random comes in through the description that `batches` drew, or from MLX's own
generator.
"""

from __future__ import annotations

from functools import lru_cache

import mlx.core as mx
import numpy as np

from ..audio.filters import N_MELS, mel_filterbank
from ..constants import HOP, N_FFT, SAMPLE_RATE, TAIL_PADDING, n_mel_frames

BAND_UNITS = 128  # masks of bands are drawn in units of so many to the whole
WARPS = np.linspace(0.82, 1.2, 9)  # factors on the frequency axis: shorter and longer vocal tracts


@lru_cache(maxsize=2)
def warped_filters(n_mels: int = N_MELS) -> mx.array:
    """(9, 201, M) mel filterbanks whose frequency axis is scaled; WARPS[4] ~ 1 is close to the true one."""
    true = mel_filterbank(SAMPLE_RATE, N_FFT, n_mels)  # (M, 201)
    bins = np.arange(true.shape[1])
    return mx.array(
        np.stack([np.stack([np.interp(bins * w, bins, f, right=0.0) for f in true], 1) for w in WARPS]).astype(
            np.float32
        )
    )


@lru_cache(maxsize=2)
def clean_filters(n_mels: int = N_MELS) -> mx.array:
    """(201, M) the reference's own filterbank."""
    return mx.array(mel_filterbank(SAMPLE_RATE, N_FFT, n_mels).T.astype(np.float32))


def gather_wave(pcm: mx.array, batch: dict, N: int) -> mx.array:
    """(B, N) samples in [-1, 1]: each example's clips at their places and speeds, by linear interpolation.

    Clips of an example stand in order of time, so the number of clips begun says which one sounds at a sample.
    """
    t = mx.arange(N)[None, :]
    begins = mx.split(batch["begin"], batch["begin"].shape[1], axis=1)
    begun = mx.zeros(t.shape, mx.int32)  # (B, N), 0 before the first clip
    for begin in begins:
        begun = begun + (t >= begin)
    clip = mx.maximum(begun - 1, 0)
    begin, stop, start, rate = (mx.take_along_axis(batch[k], clip, axis=1) for k in ("begin", "stop", "start", "rate"))
    inside = (begun > 0) & (t < stop)
    position = mx.where(inside, t - begin, 0).astype(mx.float32) * rate
    whole = mx.floor(position)
    index = mx.minimum(start + whole.astype(mx.int32), pcm.shape[0] - 2)
    part = position - whole
    value = pcm[index].astype(mx.float32) * (1 - part) + pcm[index + 1].astype(mx.float32) * part
    return mx.where(inside, value / 32768, 0.0)


def smooth_size(n: int) -> int:
    """The smallest number from n on with no prime factor above 5: a length that Fourier transforms are fast at."""
    sizes = (2**a * 3**b * 5**c for a in range(24) for b in range(4) for c in range(4))
    return min(size for size in sizes if size >= n)


def shaped_noise(shape: tuple[int, int], gain) -> mx.array:
    """(B, N) noise of root mean square 1; `gain` takes (1, n) frequencies in Hz and says how strong it is there."""
    B, N = shape
    even = 2 * smooth_size(-(-N // 2))
    hertz = mx.arange(even // 2 + 1)[None] * (SAMPLE_RATE / even)
    noise = mx.fft.irfft(mx.fft.rfft(mx.random.normal((B, even))) * gain(hertz), n=even)[:, :N]
    return noise / mx.sqrt((noise * noise).mean(1, keepdims=True) + 1e-12)


def loudness(wave: mx.array) -> mx.array:
    """(B, 1) root mean square of each example where there is sound."""
    return mx.sqrt((wave * wave).sum(1, keepdims=True) / mx.maximum((wave != 0).sum(1, keepdims=True), 1) + 1e-10)


def breathing(wave: mx.array, loud: mx.array, batch: dict) -> mx.array:
    """The examples, whose loudness is `loud`, with bursts of noise: each swells and fades, an octave or so wide."""
    B, N = wave.shape
    t = mx.arange(N)[None]
    swell = mx.zeros((B, N))
    for k in range(batch["breath_begin"].shape[1]):
        begin, n, level = (batch[name][:, k : k + 1] for name in ("breath_begin", "breath_length", "breath_level"))
        inside = (t >= begin) & (t < begin + n)
        swell = swell + mx.where(inside, mx.square(mx.sin(mx.pi * (t - begin + 0.5) / n)), 0.0) * level
    middle = batch["breath_hertz"][:, None]
    noise = shaped_noise((B, N), lambda hertz: mx.exp(-mx.square(mx.log2((hertz + 1) / middle))))
    return wave + noise * swell * mx.maximum(loud, 3 * batch["floor"][:, None])  # without words there is no loudness


def room_and_noise(wave: mx.array, batch: dict) -> mx.array:
    """Breaths, reverberation, babble of other examples, coloured noise, each relative to an example's loudness."""
    B, N = wave.shape
    loud = loudness(wave)
    wave = breathing(wave, loud, batch)
    size = smooth_size(N + SAMPLE_RATE // 2)
    tail = mx.random.normal((B, SAMPLE_RATE // 2)) * mx.exp(
        -mx.arange(SAMPLE_RATE // 2)[None] / (SAMPLE_RATE * batch["decay"][:, None])
    )
    tail = tail / mx.sqrt((tail * tail).sum(1, keepdims=True)) * batch["reverb"][:, None]
    response = mx.concatenate([mx.ones((B, 1)), tail[:, 1:]], axis=1)
    spectrum = mx.fft.rfft(wave, n=size) * mx.fft.rfft(response, n=size)
    wave = mx.fft.irfft(spectrum, n=size)[:, :N]
    babble = mx.roll(wave, 1, 0) + mx.roll(mx.roll(wave, 2, 0), N // 3, 1)
    wave = wave + babble * batch["babble"][:, None]
    noise = shaped_noise((B, N), lambda hertz: (hertz + 6.0) ** (-0.5 * batch["colour"][:, None]))
    level = loud * batch["noise"][:, None] + batch["floor"][:, None]
    gain = batch["gain"][:, None] / mx.maximum(mx.abs(wave).max(1, keepdims=True), 0.05)
    wave = (wave + noise * level) * gain
    top = batch["clip"][:, None] * mx.maximum(mx.abs(wave).max(1, keepdims=True), 1e-4)
    return mx.clip(wave, -top, top)


@lru_cache(maxsize=2)
def band_tables(n_mels: int) -> tuple[mx.array, mx.array]:
    """(8, M) hat functions over the mel bands, and (M,) the bands' frequencies in Hz."""
    centre = np.linspace(0, 7, n_mels)
    hats = np.maximum(0, 1 - np.abs(centre[None, :] - np.arange(8)[:, None]))
    hertz = mel_filterbank(SAMPLE_RATE, N_FFT, n_mels).argmax(1) * SAMPLE_RATE / N_FFT
    return mx.array(hats.astype(np.float32)), mx.array(hertz.astype(np.float32))


@lru_cache(maxsize=1)
def hann_window() -> mx.array:
    """(N_FFT,) periodic Hann window."""
    return mx.array(np.hanning(N_FFT + 1)[:-1].astype(np.float32))


def band_gain(batch: dict, n_mels: int = N_MELS) -> mx.array:
    """(B, M) power gains: a smooth random equaliser, and nothing above `top` or below `bottom` Hz."""
    hats, hertz = band_tables(n_mels)
    gain = 10 ** (batch["tilt"] @ hats / 10)
    inside = (hertz[None] <= batch["top"][:, None]) & (hertz[None] >= batch["bottom"][:, None])
    return mx.where(inside, gain, gain * 1e-5)


def log_mel_batch(wave: mx.array, length: mx.array, filters: mx.array, gain: mx.array | None = None) -> mx.array:
    """(B, N) samples of which `length` (B,) count -> (B, F, M) log mels, zero past each example's own frames.

    `filters` (201, M) or (B, 201, M). Equal to `audio.features.log_mel` of each example alone.
    """
    B, N = wave.shape
    wave = mx.where(mx.arange(N)[None] < length[:, None], wave, 0.0)
    F = n_mel_frames(N)
    left = wave[:, 1 : N_FFT // 2 + 1][:, ::-1]  # reflection; at the right end it would mirror the padding's zeros
    x = mx.concatenate([left, wave, mx.zeros((B, TAIL_PADDING + N_FFT))], axis=1)
    frames = mx.as_strided(mx.contiguous(x), (B, F, N_FFT), (x.shape[1], HOP, 1))
    spectrum = mx.fft.rfft(frames * hann_window())
    power = mx.square(spectrum.real) + mx.square(spectrum.imag)
    mel = power @ filters
    if gain is not None:
        mel = mel * gain[:, None, :]
    own = (mx.arange(F)[None] < ((length + TAIL_PADDING) // HOP)[:, None])[..., None]
    log = mx.log10(mx.maximum(mel, 1e-10))
    peak = mx.where(own, log, -10.0).max(axis=(1, 2), keepdims=True)
    return mx.where(own, (mx.maximum(log, peak - 8.0) + 4.0) / 4.0, 0.0)


def mask_some(mel: mx.array, batch: dict) -> mx.array:
    """SpecAugment (Park et al. 2019): a few stretches of time and bands replaced by the example's mean."""
    _, F, M = mel.shape
    mean = mel.mean(axis=(1, 2), keepdims=True)
    time, band = mx.arange(F)[None, None], mx.arange(M)[None, None]
    start = batch["time_mask"][..., 0:1] % F
    hidden = ((time >= start) & (time < start + batch["time_mask"][..., 1:2])).any(1)[:, :, None]
    edges = mx.cumsum(batch["band_mask"], axis=-1) * M // BAND_UNITS  # first band and one past the last
    hidden = hidden | ((band >= edges[..., :1]) & (band < edges[..., 1:])).any(1)[:, None, :]
    own = (mx.arange(F)[None] < ((batch["length"] + TAIL_PADDING) // HOP)[:, None])[..., None]
    return mx.where(hidden & own, mean, mel)


def batch_mels(pcm: mx.array, batch: dict, N: int, filters: mx.array) -> mx.array:
    """Everything above in its order: (B, F, M) log mels of one described batch."""
    wave = room_and_noise(gather_wave(pcm, batch, N), batch)
    mel = log_mel_batch(wave, batch["length"], filters[batch["warp"]], band_gain(batch, filters.shape[-1]))
    return mx.stop_gradient(mask_some(mel, batch))
