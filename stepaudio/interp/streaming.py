"""A stream beside the whole: what came when, where chunks meet, and how far the two are apart.

T mel frames at 50/s, M bands, n samples.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace

import mlx.core as mx
import numpy as np

from ..audio.features import flow_mel
from ..errors import ConfigError
from ..models.token2wav.noise import Noise
from ..synthesis.streaming import StreamOptions, StreamState, VocoderState, begin, chunked, vocode
from ..synthesis.synthesizer import AS_REFERENCE, Synthesizer
from ..synthesis.voice import Voice
from .token2wav import CODES_PER_SECOND, DB_PER_NEPER

LEVEL_FRAME = 0.02  # seconds over which a level is taken
FLOOR_DB = -120.0


@dataclass(frozen=True)
class ChunkTrace:
    """One chunk of a stream.

    Attributes
    ----------
    codes_taken : since the start, look-ahead included.
    start, n_samples : of its finished sound.
    first_frame, n_frames : of its new mel.
    noise_start : where in the noise it began.
    cache_frames : what the estimator looked back on.
    seconds : of computing.
    """

    codes_taken: int
    start: int
    n_samples: int
    first_frame: int
    n_frames: int
    noise_start: int
    cache_frames: int
    seconds: float


@dataclass(frozen=True)
class Streamed:
    """A stream that has ended.

    Attributes
    ----------
    mel : (T, M).
    wave : (n,).
    chunks : in order.
    preparing : seconds in which the voice was read.
    frame_samples : samples of a mel frame.
    sample_rate : Hz.
    """

    mel: np.ndarray
    wave: np.ndarray
    chunks: tuple[ChunkTrace, ...]
    preparing: float
    frame_samples: int
    sample_rate: int

    @property
    def boundaries(self) -> np.ndarray:
        """(chunks - 1,) samples at which a cross-fade begins."""
        return np.array([c.start for c in self.chunks[1:]], int)

    @property
    def first_sound(self) -> float:
        """Seconds from the first chunk's codes to its sound; the voice was read before."""
        return self.chunks[0].seconds

    def arrivals(self, codes_per_second: float) -> np.ndarray:
        """(chunks,) seconds at which each chunk is ready, if codes come evenly at this rate and are awaited."""
        ready, times = 0.0, []
        for chunk in self.chunks:
            ready = max(ready, chunk.codes_taken / codes_per_second) + chunk.seconds
            times.append(ready)
        return np.array(times)

    def waits(self, codes_per_second: float) -> np.ndarray:
        """(chunks,) seconds for which a listener who started with the first chunk waits before each; 0: none."""
        clock, waits = None, []
        for arrival, chunk in zip(self.arrivals(codes_per_second), self.chunks, strict=True):
            waits.append(0.0 if clock is None else max(0.0, arrival - clock))
            clock = max(arrival, arrival if clock is None else clock) + chunk.n_samples / self.sample_rate
        return np.array(waits)


def streamed(
    synthesizer: Synthesizer,
    codes: Iterable[int],
    voice: Voice,
    *,
    noise: Noise = 0,
    source_noise: Noise | None = 0,
    options: StreamOptions = AS_REFERENCE,
) -> Streamed:
    """Run `Synthesizer.stream` chunk by chunk and keep what happened on the way.

    Parameters
    ----------
    codes : without padding, at least one.
    voice, noise, source_noise, options : as there.

    Raises
    ------
    ConfigError : no codes. DecodeError, WeightsError : as `Synthesizer.stream`.
    """
    voice.check(synthesizer.weights)
    flow, hift = synthesizer.parts.flow, synthesizer.parts.hift
    clock = time.perf_counter()
    state = begin(flow, voice.prompt, noise, source_noise, options)
    mx.eval(state.flow.conformer.arrays, [a for step in state.flow.estimator for b in step for a in b.arrays])
    preparing, mels, waves, chunks = time.perf_counter() - clock, [], [], []
    taken, position = 0, 0
    for chunk, last in chunked(codes, options.chunk_codes, flow.look_ahead):
        began, before = time.perf_counter(), state.flow
        mel, wave, state = _chunk(flow, hift, chunk, state, last)
        taken += chunk.shape[1] - (flow.look_ahead if taken else 0)
        first = before.position - before.prompt_frames
        start = before.cache_frames if options.flow.noise == "cache" else before.position
        chunks.append(
            ChunkTrace(
                taken, position, len(wave), first, len(mel), start, before.cache_frames, time.perf_counter() - began
            )
        )
        mels.append(mel)
        waves.append(wave)
        position += len(wave)
    if not chunks:
        raise ConfigError("stream: there are no codes")
    return Streamed(
        np.concatenate(mels),
        np.concatenate(waves),
        tuple(chunks),
        preparing,
        hift.config.samples_per_frame,
        synthesizer.sample_rate,
    )


def _chunk(flow, hift, codes: np.ndarray, state: StreamState, last: bool):
    """As `stream.step`, and the mel too, on the host."""
    mel, flow_state = flow.step(codes, state.flow, last)
    wave, vocoder, _ = vocode(hift, mel, state.vocoder, state.options, state.source_noise, last)
    host = [np.array(a[0].astype(mx.float32)) for a in (mel, wave)]
    return *host, replace(state, flow=flow_state, vocoder=vocoder)


def vocoded_in_chunks(
    synthesizer: Synthesizer,
    mel: np.ndarray,
    chunk_frames: int,
    *,
    source_noise: Noise | None = 0,
    options: StreamOptions = AS_REFERENCE,
) -> np.ndarray:
    """Sound (n,) of one mel (T, M) that is given to the vocoder in chunks, as a stream would.

    It shows the vocoder's share of what a stream changes.
    """
    state, waves = VocoderState(), []
    for start in range(0, len(mel), chunk_frames):
        chunk = mx.array(mel[start : start + chunk_frames])[None]
        wave, state, _ = vocode(
            synthesizer.parts.hift, chunk, state, options, source_noise, start + chunk_frames >= len(mel)
        )
        waves.append(np.array(wave[0].astype(mx.float32)))
    return np.concatenate(waves)


# ---------------------------------------------------------------- how far apart


def level_db(x: np.ndarray, sample_rate: int) -> np.ndarray:
    """(frames,) RMS of each 20 ms in dB of full scale, -120 at the least."""
    step = round(LEVEL_FRAME * sample_rate)
    powers = np.add.reduceat(np.square(x, dtype=np.float64), range(0, len(x), step))
    sizes = np.diff([*range(0, len(x), step), len(x)])
    return 10 * np.log10(np.maximum(powers / sizes, 10 ** (FLOOR_DB / 10)))


@dataclass(frozen=True)
class Difference:
    """Two runs on one axis of time.

    Attributes
    ----------
    shift : samples by which the second came later, and was moved back.
    correlation : -1…1 after that.
    first, second, difference : (n,) the stretch that both have, and first minus second, to be listened to.
    sample_rate : Hz.
    """

    shift: int
    correlation: float
    first: np.ndarray
    second: np.ndarray
    difference: np.ndarray
    sample_rate: int

    @property
    def relative_db(self) -> float:
        """Level of the difference against that of the first; -120 at the least."""
        powers = [max(float(np.mean(np.square(x, dtype=np.float64))), 1e-30) for x in (self.difference, self.first)]
        return max(FLOOR_DB, 10 * float(np.log10(powers[0] / powers[1])))


def listening_difference(
    first: np.ndarray, second: np.ndarray, sample_rate: int, most_seconds: float = 0.5
) -> Difference:
    """Align two waves by the peak of their cross-correlation and subtract.

    Parameters
    ----------
    first, second : (n,), lengths may differ. most_seconds : furthest shift that is tried, either way.

    Raises
    ------
    ConfigError : a wave without samples, or a shift below 0.
    """
    if first.ndim != 1 or second.ndim != 1 or not len(first) or not len(second) or most_seconds < 0:
        raise ConfigError(
            f"difference: expected two waves (n,) and a shift of at least 0 s, found {first.shape}, "
            f"{second.shape} and {most_seconds}"
        )
    most = min(round(most_seconds * sample_rate), len(first) - 1, len(second) - 1)
    shift = _shift(first, second, most)
    a, b = first[max(0, -shift) :], second[max(0, shift) :]
    n = min(len(a), len(b))
    a, b = a[:n], b[:n]
    power = np.sqrt(np.dot(a, a) * np.dot(b, b))
    return Difference(
        shift, float(np.dot(a, b) / power) if power > 0 else float(np.array_equal(a, b)), a, b, a - b, sample_rate
    )


def _shift(first: np.ndarray, second: np.ndarray, most: int) -> int:
    """Of all shifts up to `most`, that of the highest correlation; of equals the smallest."""
    size = 1 << (len(first) + len(second)).bit_length()
    spectrum = np.conj(np.fft.rfft(first, size)) * np.fft.rfft(second, size)
    found = np.fft.irfft(spectrum, size)
    shifts = sorted(range(-most, most + 1), key=abs)
    return int(shifts[int(np.argmax(np.round(found[shifts], 9)))])


def mel_distance_db(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(T,) mean absolute difference of two natural-log mels (T, M) in dB, frame by frame."""
    if first.shape != second.shape or first.ndim != 2:
        raise ConfigError(
            f"mel distance: expected two mels of one shape (T, M), found {first.shape} and {second.shape}"
        )
    return np.abs(first - second).mean(axis=1) * DB_PER_NEPER


def wave_mel_distance_db(first: np.ndarray, second: np.ndarray, sample_rate: int = 24_000) -> np.ndarray:
    """(T,) the same of the mels that two waves of one length have: blind to phase, as the ear nearly is."""
    if sample_rate != 24_000:
        raise ConfigError(f"the flow's mel is of sound at 24000 Hz, found {sample_rate}")
    return mel_distance_db(flow_mel(first).T, flow_mel(second).T)


@dataclass(frozen=True)
class Gap:
    """A stream against the whole of the same codes. All in dB but the ratio and the correlation.

    Attributes
    ----------
    mel : mean distance of the mels.
    mel_near, mel_far : the same over the frames within 0.1 s of a chunk boundary, and over the others.
    mel_relative : RMS of the difference over RMS of the whole's mel (a ratio).
    wave_mel : mean distance of the mels of the two waves: what a listener gets, blind to phase.
    vocoder_alone : the same where one mel goes through the vocoder whole and in chunks.
    wave : level of the difference of the waves against the whole.
    correlation : of the waves.
    """

    mel: float
    mel_near: float
    mel_far: float
    mel_relative: float
    wave_mel: float
    vocoder_alone: float
    wave: float
    correlation: float


def gap(
    synthesizer: Synthesizer,
    codes: list[int],
    voice: Voice,
    *,
    noise: Noise = 0,
    source_noise: Noise | None = 0,
    options: StreamOptions = AS_REFERENCE,
) -> tuple[Gap, Streamed]:
    """How far a stream is from the whole, and the stream. Codes as `streamed`."""
    whole = synthesizer.decode(codes, voice, noise=noise, source_noise=source_noise, options=options.flow)
    run = streamed(synthesizer, codes, voice, noise=noise, source_noise=source_noise, options=options)
    per_frame = mel_distance_db(whole.mel, run.mel)
    near = near_boundaries(run)
    chunk = options.chunk_codes * synthesizer.parts.flow.up
    chunked = vocoded_in_chunks(synthesizer, whole.mel, chunk, source_noise=source_noise, options=options)
    waves = listening_difference(whole.wave, run.wave, run.sample_rate, 0)
    wave_mel, alone = (float(wave_mel_distance_db(whole.wave, w, run.sample_rate).mean()) for w in (run.wave, chunked))
    relative = np.sqrt(np.mean((whole.mel - run.mel) ** 2) / np.mean(whole.mel**2))
    return Gap(
        float(per_frame.mean()),
        _mean(per_frame[near]),
        _mean(per_frame[~near]),
        float(relative),
        wave_mel,
        alone,
        waves.relative_db,
        waves.correlation,
    ), run


def near_boundaries(run: Streamed, seconds: float = 0.1) -> np.ndarray:
    """(T,) true for the frames within so many seconds of the first frame of a chunk other than the first."""
    boundaries = np.array([c.first_frame for c in run.chunks[1:]])
    frames, reach = np.arange(len(run.mel)), seconds * run.sample_rate / run.frame_samples
    return np.any(np.abs(frames[:, None] - boundaries) <= reach, axis=1)


def _mean(x: np.ndarray) -> float:
    return float(x.mean()) if x.size else float("nan")


def first_sound_codes(options: StreamOptions, look_ahead: int) -> int:
    """Codes that must be written before a stream makes its first sound."""
    return options.chunk_codes + look_ahead


def seconds_of(codes: int) -> float:
    """Sound that so many codes stand for."""
    return codes / CODES_PER_SECOND
