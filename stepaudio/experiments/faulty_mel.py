"""Log mel spectra as re-implementations get them wrong: the scale of the filters, how frames are cut, what is held.

Written apart from `audio.features`, whose faithful path has no switches; with all choices faithful the two agree.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from ..audio.features import DYNAMIC_RANGE, POWER_FLOOR
from ..audio.filters import N_MELS, mel_filterbank
from ..constants import HOP, N_FFT, SAMPLE_RATE, TAIL_PADDING
from ..errors import ConfigError

SCALES, FRAMINGS = ("slaney", "htk"), ("centred", "uncentred")
LEAST_DEVIATION = 1e-5  # of digital silence
VALUES = ("log10", "ln", "amplitude", "standard", "by_band")


def htk_filterbank(n_mels: int = N_MELS) -> np.ndarray:
    """Triangles of height 1 on HTK's scale, 2595 log10(1 + f / 700): the wrong filters.

    Returns
    -------
    np.ndarray
        float32, (n_mels, 201), without unit. The lowest filters are narrower than the 40 Hz between bins, so that
        some catch no bin at all.
    """
    top = 2595 * np.log10(1 + SAMPLE_RATE / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, n_mels + 2) / 2595) - 1)  # Hz
    bins = np.arange(N_FFT // 2 + 1) * SAMPLE_RATE / N_FFT
    low, middle, high = (edges[i : i + n_mels, None] for i in range(3))
    rise, fall = (bins - low) / (middle - low), (high - bins) / (high - middle)
    return np.maximum(0, np.minimum(rise, fall)).astype(np.float32)


@dataclass(frozen=True)
class WrongMel:
    """A front end in the place of `audio.features.log_mel`: (samples (n,), n_mels) -> float32 (n_mels, T).

    scale : "slaney" (faithful) or "htk" (`htk_filterbank`).
    framing : "centred" (faithful) or "uncentred": frames start at the first sample instead of half a frame before
        it, nothing is mirrored, the Hann window is symmetric, and there are two frames fewer.
    values : "log10" (faithful); "ln", the natural logarithm; "amplitude", the filters over magnitudes instead of
        powers; "standard", mean 0 and standard deviation 1 over the clip instead of (x + 4) / 4; "by_band", over bands.
    """

    scale: str = "slaney"
    framing: str = "centred"
    values: str = "log10"

    def __post_init__(self):
        if self.scale not in SCALES or self.framing not in FRAMINGS or self.values not in VALUES:
            raise ConfigError(
                f"wrong mel: expected a scale of {', '.join(SCALES)}, a framing of {', '.join(FRAMINGS)} and values of "
                f"{', '.join(VALUES)}, found {self.scale!r}, {self.framing!r} and {self.values!r}"
            )

    def __call__(self, samples: np.ndarray, n_mels: int = N_MELS) -> np.ndarray:
        """Samples (n,) at 16 kHz -> log mel (n_mels, T), float32."""
        filters = htk_filterbank(n_mels) if self.scale == "htk" else mel_filterbank(SAMPLE_RATE, N_FFT, n_mels)
        power = np.abs(np.fft.rfft(self._frames(samples))) ** (1 if self.values == "amplitude" else 2)  # (frames, bins)
        if len(power) == 0:
            return np.zeros((n_mels, 0), np.float32)
        logarithm = np.log if self.values == "ln" else np.log10
        log = logarithm(np.maximum(filters @ power.T, POWER_FLOOR))
        log = np.maximum(log, log.max() - DYNAMIC_RANGE)
        if self.values in ("standard", "by_band"):
            axis = 1 if self.values == "by_band" else None
            mean, deviation = (of(log, axis=axis, keepdims=True) for of in (np.mean, np.std))
            return ((log - mean) / np.maximum(deviation, LEAST_DEVIATION)).astype(np.float32)
        return ((log + 4) / 4).astype(np.float32)

    def _frames(self, samples: np.ndarray) -> np.ndarray:
        """Windowed frames (T, n_fft)."""
        signal = np.concatenate([samples, np.zeros(TAIL_PADDING, np.float32)])
        if self.framing == "centred":
            signal, period = np.pad(signal, N_FFT // 2, mode="reflect"), N_FFT
        else:
            period = N_FFT - 1
        if len(signal) < N_FFT:
            return np.zeros((0, N_FFT))
        window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(N_FFT) / period)
        return sliding_window_view(signal, N_FFT)[::HOP][: (len(signal) - N_FFT) // HOP] * window
