"""Figures of filter banks: every filter over frequency, in hertz."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..audio.filters import mel_filterbank
from ..constants import SAMPLE_RATE
from . import style


def filterbank(bank: np.ndarray | None = None, title: str | None = None, **options: Any) -> Any:
    """Every filter of one bank over frequency; by default the bank of the model's own front end.

    Parameters
    ----------
    bank : np.ndarray, optional
        (n_mels, n_fft // 2 + 1) for 16 kHz.
    title : str, optional
        By default says which bank it is.
    **options
        `hertz`, as in `filterbanks`.

    Returns
    -------
    Axes
    """
    own = bank is None
    name = "mel filters of the encoder" if own else "filters"
    (ax,) = filterbanks({name: mel_filterbank() if bank is None else bank}, title or name, **options)
    return ax


def filterbanks(
    banks: Mapping[str, np.ndarray], title: str, *, hertz: tuple[float, float] = (0, SAMPLE_RATE / 2)
) -> list[Any]:
    """Every filter of every bank over frequency, one panel a bank; filters without any weight are marked.

    Parameters
    ----------
    banks : mapping of str to np.ndarray
        Name -> (n_mels, n_fft // 2 + 1) for 16 kHz; each is drawn relative to its highest weight, which the legend
        gives.
    title : str
        Above the first panel.
    hertz : (float, float)
        Frequencies to show, within 0 to 8000 Hz; the legend counts the filters that peak there.

    Returns
    -------
    list of Axes
        A dot is one bin of the transform. An empty filter is a red cross, between the peaks of its neighbours.

    Raises
    ------
    ConfigError
        No bank, more than four, or frequencies out of order.
    """
    low, high = hertz
    style.need(
        1 <= len(banks) <= len(style.LINES) and 0 <= low < high <= SAMPLE_RATE / 2,
        f"filterbanks: expected 1 to {len(style.LINES)} banks and 0 <= low < high <= {SAMPLE_RATE // 2} Hz, "
        f"found {len(banks)} and {hertz}",
    )
    panels = style.stacked(len(banks), 1.0 + 1.7 * len(banks))
    for ax, (name, bank) in zip(panels, banks.items(), strict=True):
        _draw_filters(ax, name, bank, low, high)
    panels[0].set_title(title)
    panels[-1].set_xlabel("frequency (Hz)")
    return panels


def _draw_filters(ax: Any, name: str, bank: np.ndarray, low: float, high: float) -> None:
    bins, (peaks, empty) = np.linspace(0, SAMPLE_RATE / 2, bank.shape[1]), _peaks(bank)
    shown = np.flatnonzero((peaks >= low) & (peaks <= high))
    full = [i for i in shown if i not in empty]
    shades, dots = (style.DARK, style.MIDDLE), "." if high - low <= 1000 else ""
    for i in full:
        ax.plot(bins, bank[i] / bank.max(), color=shades[i % 2], linewidth=0.9, marker=dots, markersize=4)
    label = f"{len(full)} of {len(bank)} filters\n(highest {bank.max():.3g})"
    if full:
        ax.get_lines()[0].set_label(label)
    marked = [i for i in empty if i in shown]
    if marked:
        numbers = ", ".join(map(str, marked[:8])) + (" …" if len(marked) > 8 else "")
        ax.plot(
            peaks[marked],
            np.zeros(len(marked)),
            "X",
            color=style.ALERT,
            markersize=9,
            clip_on=False,
            zorder=3,
            label=f"{len(marked)} empty filters:\n{numbers}",
        )
    ax.set(xlim=(low, high), ylim=(0, 1.05), ylabel=f"{name}\nweight / highest")
    style.legend(ax)


def _peaks(bank: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """Hz at which each filter is highest (of an empty one: between its neighbours), and the numbers of empty ones."""
    full = np.flatnonzero(bank.max(axis=1) > 0)
    at = bank[full].argmax(axis=1) * (SAMPLE_RATE / 2) / (bank.shape[1] - 1)
    numbers = np.arange(len(bank))
    padded = np.concatenate([[-1], full, [len(bank)]]), np.concatenate([[0], at, [SAMPLE_RATE / 2]])
    peaks = np.interp(numbers, *padded)
    return peaks, sorted(set(numbers.tolist()) - set(full.tolist()))
