"""Recordings in: any file or array becomes mono float32 at one rate, by default 16 kHz, one block at a time.

One stated policy each for channels, level, rate and length; whatever falls outside is an `AudioError` that says
what to do. Knows nothing of mels, segments or models.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from ..choices import Resampler
from ..constants import MIN_SECONDS, N_FFT, SAMPLE_RATE
from ..errors import AudioError, ConfigError
from .channels import ChannelWatch
from .decode import open_sound
from .rate import contradiction
from .resample import checked_resampler, resampled
from .sources import PCM_ZERO_AND_SCALE, checked_rate, given_rate, is_file, samples_and_rate, source_name

DOWNMIX = ("first", "mean")
REMEDY = {  # where the channels that are read do not hold the sound
    "first": "read the mean of all with downmix='mean' (transcribe --downmix mean), or give that channel alone",
    "mean": "read the first alone with downmix='first' (transcribe --downmix first)",
}
MAX_PEAK = 32.0  # float samples beyond 32 x full scale (+30 dB) are taken for integer PCM that was not scaled
BLOCK_VALUES = 1 << 20  # samples times channels held at the native rate: 4 MiB of float32
FIRST_ALLOCATION = 1 << 28  # samples; a header that lies about its length cannot make us reserve more
MAX_GROWTH = (
    1000  # times the size of a file, in memory: speech at 6 kbit/s grows by 85, digital silence by far more ...
)
FREE_BYTES = 1 << 28  # ... and up to here, 70 minutes, by any factor


def load_audio(
    source,
    *,
    downmix: str = "first",
    sample_rate: float | None = None,
    sr: float | None = None,
    to: int = SAMPLE_RATE,
    resampler: str = Resampler.REFERENCE,
) -> np.ndarray:
    """Read a recording as mono samples at 16 kHz, whatever its rate, channels and sample type.

    The native-rate signal is never whole in memory: blocks are read, reduced to one channel, resampled and appended
    to the result. Level is left alone: neither clipped nor
    normalised, so float samples may exceed 1.

    Parameters
    ----------
    source : path, bytes, binary file object, array or mapping
        An encoded file that libsndfile reads (wav, flac, ogg, mp3, ...): its path, its bytes, or an open file,
        which may be a pipe. Or samples of shape (n,) or (n, channels): numpy, mlx or torch, a list, or
        ``{"array": ..., "sampling_rate": ...}``. Integer PCM (uint8, int8, int16, int32) is divided by its full
        scale; float samples are in [-1, 1] by convention and accepted up to `MAX_PEAK`.
    downmix : {"first", "mean"}
        "first" takes channel 0, as the reference does: averaging cancels channels of opposite phase, and combs
        the voice where microphones stand apart. "mean" is for speakers who sit on different channels. There is a
        warning where what is read holds no sound, or hardly any, and a channel does.
    sample_rate, sr : number in `RATE_RANGE`, optional
        Rate of an array in Hz, in either spelling. Without one 16000 is assumed, with a warning where the array
        itself contradicts that (`rate.contradiction`). A file states its own rate, so giving one is refused.
    to : int in `RATE_RANGE`
        Rate of the result in Hz: the audio encoder takes 16 kHz, the mel of a voice prompt 24 kHz.
    resampler : {"reference", "soxr"}
        What brings the recording to `to`: the kernel of the reference (a short windowed sinc, which lets some of what
        lies near and above the new Nyquist frequency pass), or soxr at its quality HQ, which keeps it out and takes
        rates that are not whole.

    Returns
    -------
    np.ndarray
        float32, (n,), at `to`. A mono float32 array already at that rate is returned itself, not copied.

    Raises
    ------
    AudioError
        No such file, not audio, cut off, empty, shorter than 0.1 s or than one STFT frame, NaN or Inf in the
        chosen channel, level of unscaled integers, impossible rate or shape, or rates that the resampler does not
        serve.
    ConfigError
        An unknown `downmix` or `resampler`.

    Notes
    -----
    Integer samples in a float array are only recognised by their peak; below `MAX_PEAK` they pass as audio.
    `sources.rate_is_assumed` tells whether a call of this kind takes 16 kHz for granted.

    Examples
    --------
    >>> load_audio(np.zeros((48_000, 2), np.int16), sr=48_000).shape
    (16000,)
    """
    samples, doubt = load_with_doubt(
        source, downmix=downmix, sample_rate=sample_rate, sr=sr, to=to, resampler=resampler
    )
    if doubt is not None:
        warnings.warn(f"{source_name(source)}: {doubt}; {REMEDY[downmix]}", stacklevel=2)
    return samples


def load_with_doubt(
    source,
    *,
    downmix: str = "first",
    sample_rate: float | None = None,
    sr: float | None = None,
    to: int = SAMPLE_RATE,
    resampler: str = Resampler.REFERENCE,
) -> tuple[np.ndarray, str | None]:
    """As `load_audio`, but hands back what speaks against the channels (`ChannelWatch.doubt`) instead of warning."""
    if downmix not in DOWNMIX:
        raise ConfigError(f"downmix: expected {' or '.join(map(repr, DOWNMIX))}, found {downmix!r}")
    kernel = checked_resampler(resampler)
    to, stated = int(checked_rate(to, "to")), given_rate(sample_rate, sr)
    if is_file(source):
        if stated is not None:
            raise AudioError(f"{source_name(source)}: sample_rate is for arrays, a file states its own; leave it out")
        return _load_file(source, downmix, to, kernel)
    array, rate = samples_and_rate(source, stated)
    samples, doubt = _load_array(array, downmix, SAMPLE_RATE if rate is None else rate, to, kernel)
    if rate is None and (doubt_of_rate := contradiction(array)) is not None:
        warnings.warn(f"array: 16 kHz is assumed, but {doubt_of_rate}; state the rate: sr=...", stacklevel=3)
    return samples, doubt


def audio_seconds(source) -> float:
    """Seconds of audio in a file, from its header where the header knows (else by decoding it).

    Parameters
    ----------
    source : path, bytes or binary file object
        As in `load_audio`. A stream that cannot seek is used up.

    Raises
    ------
    AudioError
        The file is missing or not audio.
    """
    with open_sound(source) as file:
        frames = sum(map(len, file.blocks(BLOCK_VALUES))) if file.frames is None else file.frames
        return frames / file.samplerate


def _load_file(source, downmix: str, to: int, resampler: Resampler) -> tuple[np.ndarray, str | None]:
    name = source_name(source)
    with open_sound(source) as file:
        rate = checked_rate(file.samplerate, name)
        watch, channels = _Watch(name, rate), ChannelWatch(downmix, rate)
        blocks = map(channels.mono, file.blocks(BLOCK_VALUES))
        most = max(FREE_BYTES, MAX_GROWTH * file.n_bytes) // np.dtype(np.float32).itemsize
        _refuse_growth(name, file.n_bytes, (file.frames or 0) * to / rate, to, most)
        checked = _at_most(watch.over(blocks), name, file.n_bytes, rate, to, most)
        samples = _joined(checked, rate, to, file.frames, resampler)
    watch.verdict()
    return samples, channels.doubt()


def _at_most(blocks: Iterable[np.ndarray], name: str, n_bytes: int, rate: float, to: int, most: int):
    """Blocks passed on while their sum at rate `to` is no more than `most` samples: a header may state too little."""
    n = 0
    for block in blocks:
        n += len(block)
        _refuse_growth(name, n_bytes, n * to / rate, to, most)
        yield block


def _refuse_growth(name: str, n_bytes: int, n: float, to: int, most: int) -> None:
    if n > most:
        raise AudioError(
            f"{name}: {n / to / 3600:.1f} h or more in a file of {n_bytes} bytes would take over {MAX_GROWTH} times "
            f"its size in memory, which only silence and forged files do; if it is right, split it"
        )


def _load_array(
    array: np.ndarray, downmix: str, sample_rate: float, to: int, resampler: Resampler
) -> tuple[np.ndarray, str | None]:
    rate = checked_rate(sample_rate, "array")
    watch, channels = _Watch("array", rate), ChannelWatch(downmix, rate)
    blocks = watch.over(_array_blocks(array, channels))
    if array.ndim == 1 and array.dtype == np.float32 and rate == to:
        samples, _ = array, sum(map(len, blocks))  # nothing to change: look at it, do not copy it
    else:
        samples = _joined(blocks, rate, to, len(array), resampler)
    watch.verdict()
    return samples, channels.doubt()


def _array_blocks(array: np.ndarray, channels: ChannelWatch) -> Iterator[np.ndarray]:
    """The array as mono float32 blocks, integers divided by their full scale."""
    size = max(1, BLOCK_VALUES // (1 if array.ndim == 1 else array.shape[1]))
    zero, scale = PCM_ZERO_AND_SCALE.get(array.dtype.name, (0, 1))
    for start in range(0, len(array), size):
        block = array[start : start + size]
        if block.dtype.kind != "f":
            block = (block.astype(np.float64) - zero) / scale
        with np.errstate(over="ignore"):  # a float64 beyond float32 becomes Inf, which the watch reports
            block = block.astype(np.float32, copy=False)
        yield channels.mono(block) if block.ndim == 2 else block


def _joined(
    blocks: Iterable[np.ndarray], rate: float, to: int, n_expected: int | None, resampler: Resampler
) -> np.ndarray:
    """Mono blocks at `rate` as one array at rate `to`; beyond the result, only a block is held."""
    wanted = FIRST_ALLOCATION if n_expected is None else math.ceil(n_expected * to / rate) + 1
    samples, n = np.empty(min(wanted, FIRST_ALLOCATION), np.float32), 0
    for block in blocks if rate == to else resampled(blocks, rate, to, resampler):
        if n + len(block) > len(samples):  # in place: a copy would need twice the memory of the recording
            samples.resize(max(n + len(block), len(samples) + len(samples) // 4), refcheck=False)
        samples[n : n + len(block)] = block
        n += len(block)
    samples.resize(n, refcheck=False)
    return samples


@dataclass
class _Watch:
    """Counts what passes by, so that a recording is judged whole: length, level, NaN and Inf."""

    name: str
    rate: float
    n: int = 0
    peak: float = 0.0
    n_bad: int = 0
    first_bad: int = -1

    def over(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        for block in blocks:
            peak = max(abs(float(block.min())), abs(float(block.max())))  # NaN and Inf survive min and max
            self.peak = max(self.peak, peak if math.isfinite(peak) else 0.0)
            if not math.isfinite(peak):
                bad = np.flatnonzero(~np.isfinite(block))
                self.first_bad = self.n + int(bad[0]) if self.n_bad == 0 else self.first_bad
                self.n_bad += len(bad)
            self.n += len(block)
            yield block

    def verdict(self) -> None:
        if self.n == 0:
            raise AudioError(f"{self.name}: holds no samples; expected at least {MIN_SECONDS} s of audio")
        if self.n_bad:
            raise AudioError(
                f"{self.name}: {self.n_bad} of {self.n} samples are NaN or Inf, the first at index "
                f"{self.first_bad}; repair or export the recording again"
            )
        if self.n < MIN_SECONDS * self.rate or self.n * SAMPLE_RATE < N_FFT * self.rate:
            raise AudioError(
                f"{self.name}: {self.n} sample{'s' * (self.n > 1)} at {self.rate:g} Hz last "
                f"{self.n / self.rate:.4f} s; expected at least {MIN_SECONDS} s"
            )
        if self.peak > MAX_PEAK:
            scale = 2**15 if self.peak <= 2**15 else 2**31
            raise AudioError(
                f"{self.name}: peak {self.peak:.6g}, expected float samples in [-1, 1] (at most "
                f"{MAX_PEAK:g}); if these are integer PCM values, divide them by {scale}"
            )
