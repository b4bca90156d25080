"""Pictures of sound and of what looks at it: waveform, mel, filters, attention to audio. Seconds and hertz."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..constants import FRAMES_PER_SECOND, SAMPLE_RATE
from . import style as canvas

MAX_POINTS = 4000  # of a waveform: beyond, minimum and maximum of each stretch are drawn


def waveform_and_mel(samples: np.ndarray, mel: np.ndarray, title: str) -> tuple:
    """A recording and its log mel, one above the other on one axis of seconds.

    Parameters
    ----------
    samples : (n,) at 16 kHz, in [-1, 1]
    mel : (n_mels, T) at 100 frames/s, as `mel.log_mel` gives it; frame t stands at t / 100 s

    Returns
    -------
    (Axes, Axes)
        Waveform and mel.
    """
    canvas.need(
        samples.ndim == 1 and mel.ndim == 2,
        f"expected samples (n,) and a mel (n_mels, T), found {samples.shape} and {mel.shape}",
    )
    wave, image = canvas.stacked(2, 4.5, (1, 2))
    wave.plot(*outline(samples, SAMPLE_RATE), color=canvas.DARK, linewidth=0.6)
    wave.set_ylabel("amplitude\n(full scale 1)")
    wave.set_title(title)
    drawn = image.imshow(
        mel, origin="lower", aspect="auto", cmap=canvas.IMAGE, interpolation="nearest", extent=_mel_extent(mel)
    )
    image.set(xlabel="time (s)", ylabel="mel band (number)")
    image.set_xlim(0, max(len(samples) / SAMPLE_RATE, mel.shape[1] / FRAMES_PER_SECOND))
    canvas.shade(drawn, [wave, image], "log mel, (log10 power + 4) / 4")
    return wave, image


def outline(samples: np.ndarray, rate: int, start: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Seconds from `start`, and values; of a long signal the extremes of each stretch, so that no peak is lost."""
    step = -(-2 * len(samples) // MAX_POINTS)
    if step < 2:
        return start + np.arange(len(samples)) / rate, samples
    pieces = np.split(samples, range(step, len(samples), step))
    values = np.array([(p.min(), p.max()) for p in pieces]).ravel()
    return start + np.repeat(np.arange(len(pieces)) * step / rate, 2), values


def _mel_extent(mel: np.ndarray) -> tuple[float, float, float, float]:
    """Edges so that frame t is centred on t / 100 s and band b on b."""
    half = 0.5 / FRAMES_PER_SECOND
    return -half, mel.shape[1] / FRAMES_PER_SECOND - half, -0.5, mel.shape[0] - 0.5


def filterbanks(banks: Mapping[str, np.ndarray], title: str, *, every: int = 8):
    """Filters over frequency, one line pattern for each bank, every so-many-th filter of it.

    Parameters
    ----------
    banks : name -> (n_mels, n_fft // 2 + 1) for 16 kHz; each is drawn relative to its highest value, which the
        legend tells
    every : >= 1

    Returns
    -------
    Axes
    """
    canvas.need(
        1 <= len(banks) <= len(canvas.LINES) and every >= 1,
        f"filterbanks: expected 1 to {len(canvas.LINES)} and every >= 1, found {len(banks)} and {every}",
    )
    ax = canvas.axes()
    for (name, bank), line, color in zip(banks.items(), canvas.LINES, canvas.SHADES, strict=False):
        hertz, top = np.linspace(0, SAMPLE_RATE / 2, bank.shape[1]), bank.max()
        for i, filter_ in enumerate(bank[::every]):
            ax.plot(
                hertz,
                filter_ / top,
                line,
                color=color,
                linewidth=1,
                label=f"{name} (highest {top:.3g}, {_empty(bank)})" if i == 0 else None,
            )
    ax.set(title=title, xlabel="frequency (Hz)", ylabel="weight / highest of the bank")
    ax.set(xlim=(0, SAMPLE_RATE / 2), ylim=(0, 1.4))  # room for the legend
    ax.legend(loc="upper right")
    return ax


def _empty(bank: np.ndarray) -> str:
    n = int(np.count_nonzero(bank.max(axis=1) == 0))
    return f"{n} of {len(bank)} filters empty"


def mel_difference(
    first: np.ndarray, second: np.ndarray, title: str, *, names: Sequence[str] = ("first", "second"), ax=None
):
    """Where two front ends disagree: first minus second, over the frames that both have.

    Parameters
    ----------
    first, second : (n_mels, T) at 100 frames/s, T may differ
    names : of the two

    Returns
    -------
    Axes
        Dark where the first is higher, light where the second is, mid-grey where they agree.
    """
    canvas.need(
        first.ndim == second.ndim == 2 and len(first) == len(second),
        f"mel difference: expected two mels of as many bands, found {first.shape} and {second.shape}",
    )
    frames = min(first.shape[1], second.shape[1])
    difference = first[:, :frames] - second[:, :frames]
    bound = float(np.abs(difference).max()) or 1.0
    ax = canvas.axes(ax)
    drawn = ax.imshow(
        difference,
        origin="lower",
        aspect="auto",
        cmap=canvas.IMAGE,
        vmin=-bound,
        vmax=bound,
        interpolation="nearest",
        extent=_mel_extent(difference),
    )
    ax.set(title=title, xlabel="time (s)", ylabel="mel band (number)")
    canvas.shade(drawn, ax, f"{names[0]} - {names[1]}\n(log mel, 1 = 40 dB)")
    return ax


def audio_attention(weights: np.ndarray, seconds: np.ndarray, words: Sequence[str], title: str, *, ax=None):
    """Which audio was being read when each id was written: one row an id, the most read 80 ms marked.

    Parameters
    ----------
    weights : (ids, audio rows), at least 0; each row is drawn relative to its highest
    seconds : (audio rows,) at which each row of 80 ms begins
    words : what each id says

    Returns
    -------
    Axes
        Time to the right, ids downwards in the order of writing.
    """
    canvas.need(
        weights.shape == (len(words), len(seconds)) and weights.size > 0,
        f"attention: expected weights ({len(words)} words, {len(seconds)} seconds), found {weights.shape}",
    )
    ax = canvas.axes(ax, 1.5 + 0.18 * len(words))
    width = 0.08
    relative = weights / np.maximum(weights.max(axis=1, keepdims=True), 1e-12)
    edges = np.append(seconds, seconds[-1] + width)
    drawn = ax.pcolormesh(edges, np.arange(len(words) + 1) - 0.5, relative, cmap=canvas.IMAGE, vmin=0, vmax=1)
    ax.plot(
        seconds[weights.argmax(axis=1)] + width / 2,
        np.arange(len(words)),
        "o",
        markersize=4,
        color=canvas.DARK,
        markerfacecolor="white",
        label="most read 80 ms",
    )
    ax.set(title=title, xlabel="audio time (s)", ylabel="id, in order of writing", ylim=(len(words) - 0.5, -0.5))
    ax.set_yticks(range(len(words)), [w.replace("$", r"\$") for w in words], fontsize=8)
    ax.legend(loc="lower right", bbox_to_anchor=(1, 1), frameon=False)
    canvas.shade(drawn, ax, "attention / highest of the id")
    return ax
