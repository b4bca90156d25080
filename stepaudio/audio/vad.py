"""Voice activity detection: which parts of a recording may hold speech, so that long silence is not decoded.

Prefers to keep: what is skipped is long, quiet, and steady in every band. Any detector may take the place of the
energy detector; margins, and which pauses are long, are the same for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import cast

import numpy as np

from ..choices import SpeechDetector, alternatives, hint
from ..constants import SAMPLE_RATE
from ..errors import AudioError, ConfigError
from .segment import BLOCK_FRAMES, FLOOR_POWER, FRAME, SILENCE_DBFS, checked_samples

Detector = Callable[[np.ndarray, int], Iterable[tuple[int, int]]]
MARGIN_SECONDS = 0.5  # kept on either side of what a detector finds: weak onsets, and the silence that models expect
EDGE_SECONDS = 1.0  # silence at the beginning or the end that is worth skipping
PAUSE_SECONDS = 2.0  # silence between words that is
BAND_HERTZ = (100, 400, 1000, 3000, 8000)  # edges of bands; hum or rumble fills one and leaves the others to speech
MEDIAN_FRAMES = 5  # 0.1 s: events shorter than half of it are clicks; steps of a level stay steps
STEADY_FRAMES = 50  # 1 s within which ...
STEADY_DB = 8.0  # ... no band of a pause varies by more than this: steady noise does by 6 dB, words by much more
QUIET_DB = 12.0  # a pause lies at least this far below the loudest sound, or below -60 dBFS
AUDIBLE_DBFS = -70.0  # a recording whose loudest sound lies below holds nothing that the bundled model reads
RANGE_DB = 60.0  # what lies further below the loudest sound counts as no sound


def speech_spans(samples: np.ndarray, vad: str | Detector | None = "energy") -> list[tuple[int, int]]:
    """The parts of a recording that are worth decoding: all but long silence at its edges and between words.

    Parameters
    ----------
    samples : np.ndarray of float, (n,)
        16 kHz.
    vad : {"energy", "silero", "off"} or callable
        "energy" is `energy_spans`, "silero" is `silero_spans`, "off" keeps everything. A callable is given samples and
        rate, and returns the (start, end) of speech in samples, in order.

    Returns
    -------
    list of (start, end)
        In samples, end exclusive, in order and apart. Each holds 0.5 s before and after what the detector found.
        Silence of less than 1 s at an edge or 2 s between words is kept. Empty if there is no speech.

    Raises
    ------
    AudioError
        Not a mono float signal, empty, or with NaN or Inf.
    ConfigError
        An unknown detector, one that is not installed, or one that returns something else than spans.

    Examples
    --------
    >>> speech_spans(np.zeros(16_000, np.float32))
    []
    >>> speech_spans(np.zeros(160_000, np.float32), lambda samples, rate: [(3 * rate, 4 * rate)])
    [(40000, 72000)]
    """
    samples, chosen = checked_samples(samples), detector_of(vad)
    if chosen is None:
        return [(0, samples.size)]
    return _kept(_checked_spans(chosen(samples, SAMPLE_RATE), samples.size), samples.size)


def detector_of(vad: object) -> Detector | None:
    """The function that a name means, or a function as it is; None for "off", None and False.

    Raises
    ------
    ConfigError
        Anything else.
    """
    if vad is None or isinstance(vad, bool):
        vad = "energy" if vad else "off"
    if callable(vad):
        return cast(Detector, vad)
    if not (isinstance(vad, str) and vad in SpeechDetector.values()):
        raise ConfigError(
            f"vad: expected {alternatives(SpeechDetector.values())}, or a function (samples, rate) -> spans; found "
            f"{vad!r:.80}{hint(vad, SpeechDetector.values())}"
        )
    return {SpeechDetector.ENERGY: energy_spans, SpeechDetector.SILERO: silero_spans}.get(SpeechDetector(vad))


def _kept(spans: Iterable[tuple[int, int]], n: int) -> list[tuple[int, int]]:
    """Spans in order, with margins, joined where the pause between them is short, and up to near edges."""
    margin, edge, pause = (round(s * SAMPLE_RATE) for s in (MARGIN_SECONDS, EDGE_SECONDS, PAUSE_SECONDS))
    kept: list[tuple[int, int]] = []
    for start, end in spans:
        if kept and start - kept[-1][1] < pause:
            kept[-1] = kept[-1][0], max(end, kept[-1][1])
        else:
            kept.append((start, end))
    if kept and kept[0][0] < edge:
        kept[0] = 0, kept[0][1]
    if kept and n - kept[-1][1] < edge:
        kept[-1] = kept[-1][0], n
    return [(max(start - margin, 0), min(end + margin, n)) for start, end in kept]


def _checked_spans(found: object, n: int) -> list[tuple[int, int]]:
    """What a detector returned, as pairs of whole numbers in order."""
    try:
        spans = [(int(start), int(end)) for start, end in cast(Iterable, found)]
    except (TypeError, ValueError, OverflowError):
        spans = None
    if spans is None or any(not 0 <= start < end <= n for start, end in spans) or spans != sorted(spans):
        raise ConfigError(
            f"vad: the detector is to return pairs (start, end) in samples, in order, each within 0 to {n}; it "
            f"returned {found!r:.200}"
        )
    return spans


def energy_spans(samples: np.ndarray, rate: int = SAMPLE_RATE) -> list[tuple[int, int]]:
    """All but what is steady, quiet, and lasts a second or longer; works on the levels of four bands.

    Offsets, hum and steady noise of any level do not hide a pause, and clicks below 20 ms do not end one. Noise that
    varies, music and everything within 12 dB of the loudest sound are kept, so that a recording of noise alone is.
    Where nothing reaches -70 dBFS for 60 ms there is no speech.

    Parameters
    ----------
    samples : np.ndarray of float, (n,)
    rate : int
        Must be 16000.

    Returns
    -------
    list of (start, end)
        In samples, on a grid of 20 ms.

    Raises
    ------
    AudioError
        Another rate, or NaN or Inf.
    """
    if rate != SAMPLE_RATE:
        raise AudioError(f"energy_spans: expected samples at {SAMPLE_RATE} Hz, found {rate}; load_audio resamples")
    power = _median(_band_powers(samples))
    total = 10 * np.log10(power.sum(axis=1) + FLOOR_POWER)
    loudest = total.max()
    if loudest < AUDIBLE_DBFS:
        return []
    level = np.maximum(10 * np.log10(power + FLOOR_POWER), loudest - RANGE_DB)
    width = min(STEADY_FRAMES, len(level))
    windows = np.lib.stride_tricks.sliding_window_view
    span = windows(level, width, axis=0)
    steady = (span.max(axis=-1) - span.min(axis=-1) < STEADY_DB).all(axis=1)
    quiet = windows(total, width).max(axis=-1) < max(loudest - QUIET_DB, SILENCE_DBFS)
    silent = np.convolve(steady & quiet, np.ones(width)) > 0  # every frame of such a window
    edges = np.flatnonzero(np.diff(~silent, prepend=False, append=False)).reshape(-1, 2)
    ends = np.where(edges[:, 1] == len(level), len(samples), (edges[:, 1] + 1) * FRAME)
    return [(int(start) * FRAME, int(end)) for start, end in zip(edges[:, 0], ends, strict=True)]


@np.errstate(invalid="ignore", over="ignore")  # reported by our own error instead
def _band_powers(samples: np.ndarray) -> np.ndarray:
    """(frames, bands) of frames of 40 ms, one every 20 ms; at least one."""
    size = 2 * FRAME
    if samples.size < size:
        samples = np.pad(samples, (0, size - samples.size), mode="edge")
    frames = np.lib.stride_tricks.sliding_window_view(samples, size)[::FRAME]
    window = np.hanning(size + 1)[:-1].astype(np.float32)
    hertz = np.fft.rfftfreq(size, 1 / SAMPLE_RATE)
    inside = np.array([(hertz >= a) & (hertz < b) for a, b in pairwise(BAND_HERTZ)]).T
    weights = inside * 2 / (size * (window**2).sum())  # Parseval: the bands of a frame add up to its variance
    power = np.empty((len(frames), inside.shape[1]))
    for start in range(0, len(frames), BLOCK_FRAMES):
        block = frames[start : start + BLOCK_FRAMES]
        spectrum = np.fft.rfft((block - block.mean(axis=1, keepdims=True)) * window)
        power[start : start + BLOCK_FRAMES] = (spectrum.real**2 + spectrum.imag**2) @ weights
    if not np.isfinite(power).all():
        raise AudioError("the samples hold NaN or Inf; load_audio says where")
    return power


def _median(power: np.ndarray) -> np.ndarray:
    """The running median of 0.1 s, of the same shape; the ends repeat."""
    half = MEDIAN_FRAMES // 2
    padded = np.pad(power, ((half, half), (0, 0)), mode="edge")
    windows, found = np.lib.stride_tricks.sliding_window_view(padded, MEDIAN_FRAMES, axis=0), np.empty_like(power)
    for start in range(0, len(power), BLOCK_FRAMES):  # the median copies what it is given
        found[start : start + BLOCK_FRAMES] = np.median(windows[start : start + BLOCK_FRAMES], axis=-1)
    return found


def silero_spans(samples: np.ndarray, rate: int = SAMPLE_RATE) -> list[tuple[int, int]]:
    """What the net of the package silero-vad takes for speech.

    Parameters
    ----------
    samples : np.ndarray of float, (n,)
    rate : int
        8000 or 16000.

    Returns
    -------
    list of (start, end)
        In samples.

    Raises
    ------
    ConfigError
        silero-vad is not installed.
    """
    try:
        import torch
        from silero_vad import get_speech_timestamps, load_silero_vad
    except ImportError as error:
        raise ConfigError(f'vad="silero" needs silero-vad ({error}): pip install "stepaudio[silero]"') from None
    found = get_speech_timestamps(torch.from_numpy(samples.astype(np.float32)), load_silero_vad(), sampling_rate=rate)
    return [(span["start"], span["end"]) for span in found]
