"""Figures of sound and of what reads it: waveform, mel, attention to audio. Seconds and hertz."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..audio.features import log_mel
from ..audio.filters import hz_to_mel, mel_to_hz
from ..audio.load import load_audio
from ..constants import FRAMES_PER_SECOND, SAMPLE_RATE
from . import style

MAX_POINTS = 4000  # of a waveform: beyond, minimum and maximum of each stretch are drawn
HERTZ_TICKS = (0, 250, 500, 1000, 2000, 4000, 8000)
MEL_LABEL = "log mel, (log10 power + 4) / 4"
TITLE_PAD = 34  # points, room for two levels of labels
SKIPPED = "not decoded:\nno speech found"
EMBEDDING_SECONDS = 0.08  # of sound that one audio embedding stands for


def waveform(
    source: Any,
    title: str | None = None,
    *,
    sample_rate: float | None = None,
    sr: float | None = None,
    skipped: Sequence[tuple[float, float]] = (),
    ax: Any = None,
) -> Any:
    """Amplitude over time.

    Parameters
    ----------
    source : str, os.PathLike or array
        A file, or samples (n,) in [-1, 1], read as `load_audio` reads them.
    title : str, optional
        By default the name of the file.
    sample_rate, sr : number, optional
        Rate of an array in Hz, under either name; 16 kHz by default.
    skipped : sequence of (float, float)
        Start and end in seconds of what to shade: `Transcript.skipped`.
    ax : Axes, optional
        Where to draw; by default on a new figure.

    Returns
    -------
    Axes
        Seconds to the right, amplitude (full scale 1) upwards.

    Raises
    ------
    AudioError
        The source is no audio.
    ConfigError
        matplotlib is not installed.
    """
    samples = _samples(source, sample_rate, sr)
    ax = style.axes(ax, 2.0)
    _draw_waveform(ax, samples)
    for i, (start, end) in enumerate(skipped):
        ax.axvspan(start, end, color=style.LIGHT, linewidth=0, zorder=0, label=None if i else SKIPPED)
    if skipped:
        style.legend(ax)
    ax.set(title=_title(source, title, "waveform"), xlabel="time (s)", xlim=(0, len(samples) / SAMPLE_RATE))
    return ax


def mel(
    source: Any,
    title: str | None = None,
    *,
    sample_rate: float | None = None,
    sr: float | None = None,
    labels: Sequence[tuple[str, float]] = (),
    ax: Any = None,
) -> Any:
    """The log mel spectrogram that the encoder is given.

    Parameters
    ----------
    source : str, os.PathLike or array
        A file, or samples (n,) in [-1, 1], read as `load_audio` reads them.
    title : str, optional
        By default the name of the file.
    sample_rate, sr : number, optional
        Rate of an array in Hz, under either name; 16 kHz by default.
    labels : sequence of (str, float)
        What to write above the figure, such as words, each with the second at which it belongs.
    ax : Axes, optional
        Where to draw; by default on a new figure.

    Returns
    -------
    Axes
        Seconds to the right, hertz upwards, evenly spaced on Slaney's mel scale; darker is louder. Lines drawn into
        it with hertz as y, such as a pitch, stand where they belong.

    Raises
    ------
    AudioError
        The source is no audio.
    ConfigError
        matplotlib is not installed.

    Examples
    --------
    >>> viz.mel("a.wav").figure.savefig("a.png")  # doctest: +SKIP
    """
    samples = _samples(source, sample_rate, sr)
    ax = style.axes(ax, 3.4 if labels else 3.0)
    drawn = _draw_mel(ax, log_mel(samples))
    ax.set(xlabel="time (s)", xlim=(0, len(samples) / SAMPLE_RATE))
    style.color_bar(drawn, ax, MEL_LABEL)
    _write_labels([ax], labels)
    ax.set_title(_title(source, title, "log mel spectrogram"), pad=TITLE_PAD if labels else None)
    return ax


def waveform_and_mel(
    source: Any,
    mel: np.ndarray | None = None,
    title: str | None = None,
    *,
    sample_rate: float | None = None,
    sr: float | None = None,
    labels: Sequence[tuple[str, float]] = (),
) -> tuple[Any, Any]:
    """A recording and its log mel, one above the other on one axis of seconds.

    Parameters
    ----------
    source : str, os.PathLike or array
        A file, or samples (n,) in [-1, 1], read as `load_audio` reads them.
    mel : np.ndarray, optional
        (n_mels, T) at 100 frames/s, frame t at t / 100 s; by default what the encoder is given of `source`.
    title : str, optional
        By default the name of the file.
    sample_rate, sr : number, optional
        Rate of an array in Hz, under either name; 16 kHz by default.
    labels : sequence of (str, float)
        What to write above the figure, such as words, each with the second at which it belongs.

    Returns
    -------
    (Axes, Axes)
        Waveform and mel.
    """
    samples = _samples(source, sample_rate, sr)
    spectrogram = log_mel(samples) if mel is None else mel
    style.need(spectrogram.ndim == 2, f"expected a mel (n_mels, T), found {spectrogram.shape}")
    wave, image = style.stacked(2, 4.5, (1, 2))
    _draw_waveform(wave, samples)
    wave.set_title(_title(source, title, "waveform and log mel"), pad=TITLE_PAD if labels else None)
    drawn = _draw_mel(image, spectrogram)
    image.set(xlabel="time (s)", xlim=(0, max(len(samples) / SAMPLE_RATE, spectrogram.shape[1] / FRAMES_PER_SECOND)))
    style.color_bar(drawn, [wave, image], MEL_LABEL)
    _write_labels([wave, image], labels)
    return wave, image


def word_times(
    source: Any,
    rows: Mapping[str, Sequence[tuple[str, float, float]]],
    title: str | None = None,
    *,
    sample_rate: float | None = None,
    sr: float | None = None,
) -> tuple[Any, Any]:
    """A recording, and below it when each word was said, by one or several accounts.

    Parameters
    ----------
    source : str, os.PathLike or array
        A file, or samples (n,) in [-1, 1], read as `load_audio` reads them.
    rows : mapping of str to sequence of (str, float, float)
        Name of the account -> its words, each with start and end in seconds.
    title : str, optional
        By default the name of the file.
    sample_rate, sr : number, optional
        Rate of an array in Hz, under either name; 16 kHz by default.

    Returns
    -------
    (Axes, Axes)
        Waveform, and one row of boxes an account, the first on top. The starts of the first go on as dotted lines.

    Raises
    ------
    ConfigError
        No account, or a word that ends before it begins.
    """
    style.need(len(rows) > 0, "word times: expected at least one row of words, found none")
    for text, start, end in (word for words in rows.values() for word in words):
        style.need(start <= end, f"word times: {text!r:.40}: expected a start before the end, found {start} to {end} s")
    samples = _samples(source, sample_rate, sr)
    wave, below = style.stacked(2, 2.2 + 0.45 * len(rows), (2, 0.6 * len(rows)))
    _draw_waveform(wave, samples)
    wave.set_title(_title(source, title, "word times"))
    for i, words in enumerate(rows.values()):
        for k, (text, start, end) in enumerate(words):
            low = k % 2 * 0.3  # words are short: neighbours are written at two heights
            below.broken_barh([(start, end - start)], (i - 0.4, 0.8), facecolor="0.92", edgecolor=style.DARK)
            place = {"ha": "center", "va": "center", "bbox": {"facecolor": "0.92", "edgecolor": "none", "pad": 0}}
            below.text((start + end) / 2, i - 0.15 + low, style.plain(text), fontsize=8, **place)
    for _, start, _ in next(iter(rows.values())):
        for ax in (wave, below):
            ax.axvline(start, color=style.ALERT, linewidth=0.8, linestyle=":", zorder=0)
    below.set_yticks(range(len(rows)), [style.plain(name) for name in rows])
    below.set(xlabel="time (s)", xlim=(0, len(samples) / SAMPLE_RATE), ylim=(len(rows) - 0.5, -0.5))
    return wave, below


def _samples(source: Any, sample_rate: float | None, sr: float | None) -> np.ndarray:
    return load_audio(source, sample_rate=sample_rate if sr is None else sr)


def _title(source: Any, title: str | None, otherwise: str) -> str:
    if title is not None:
        return title
    return style.plain(os.path.basename(source)) if isinstance(source, (str, os.PathLike)) else otherwise


def _draw_waveform(ax: Any, samples: np.ndarray) -> None:
    ax.plot(*outline(samples, SAMPLE_RATE), color=style.DARK, linewidth=0.6)
    ax.set_ylabel("amplitude\n(full scale 1)")


def outline(samples: np.ndarray, rate: int, start: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Seconds from `start`, and values; of a long signal the extremes of each stretch, so that no peak is lost."""
    step = -(-2 * len(samples) // MAX_POINTS)
    if step < 2:
        return start + np.arange(len(samples)) / rate, samples
    stretches = np.split(samples, range(step, len(samples), step))
    values = np.array([(s.min(), s.max()) for s in stretches]).ravel()
    return start + np.repeat(np.arange(len(stretches)) * step / rate, 2), values


def _draw_mel(ax: Any, values: np.ndarray, **looks: Any) -> Any:
    """A mel of 16 kHz audio as a mesh: frame t is centred on t / 100 s, a band on the peak of its filter."""
    x = (np.arange(values.shape[1] + 1) - 0.5) / FRAMES_PER_SECOND
    mesh = ax.pcolormesh(x, mel_band_edges(values.shape[0]), values, **{"cmap": style.IMAGE, **looks})
    hertz_axis(ax)
    return mesh


def mel_band_edges(n_mels: int, fmax: float = SAMPLE_RATE / 2) -> np.ndarray:
    """(n_mels + 1,) Hz between the bands of `mel_filterbank`, halfway on the mel scale from peak to peak."""
    return mel_to_hz((np.arange(n_mels + 1) + 0.5) * hz_to_mel(fmax) / (n_mels + 1))


def hertz_axis(ax: Any) -> None:
    """Hertz upwards, spaced as Slaney's mel scale spaces them."""
    low, high = ax.get_ylim()
    ax.set_yscale("function", functions=(hz_to_mel, mel_to_hz))
    ticks = [t for t in HERTZ_TICKS if t <= 1.05 * high]
    ax.set_yticks(ticks, [str(t) for t in ticks])
    ax.minorticks_off()
    ax.set(ylabel="frequency (Hz, mel scale)", ylim=(low, high))


def _write_labels(panels: Sequence[Any], labels: Sequence[tuple[str, float]]) -> None:
    """Above the first of the panels, on two levels in turn, each over a thin line through all of them."""
    for i, (text, second) in enumerate(labels):
        for ax in panels:
            ax.axvline(second, color=style.ALERT, linewidth=0.8, linestyle=":")
        panels[0].annotate(
            style.plain(text),
            (second, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 2 + 13 * (i % 2)),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=9,
        )


def mel_difference(
    first: np.ndarray, second: np.ndarray, title: str, *, names: Sequence[str] = ("first", "second"), ax: Any = None
) -> Any:
    """Where two front ends disagree: first minus second, over the frames that both have.

    Parameters
    ----------
    first, second : np.ndarray
        (n_mels, T) at 100 frames/s; T may differ.
    title : str
        Above the figure.
    names : (str, str)
        Of the two.
    ax : Axes, optional
        Where to draw; by default on a new figure.

    Returns
    -------
    Axes
        White where they agree, red where the first is higher, blue and dotted where the second is.

    Raises
    ------
    ConfigError
        The mels have different numbers of bands.
    """
    style.need(
        first.ndim == second.ndim == 2 and len(first) == len(second),
        f"mel difference: expected two mels of as many bands, found {first.shape} and {second.shape}",
    )
    frames = min(first.shape[1], second.shape[1])
    difference = first[:, :frames] - second[:, :frames]
    bound = float(np.abs(difference).max()) or 1.0
    ax = style.axes(ax)
    drawn = _draw_mel(ax, difference, cmap=style.diverging(), vmin=-bound, vmax=bound)
    if difference.min() < 0 and min(difference.shape) > 1:
        edges = mel_band_edges(len(difference))
        middles = mel_to_hz((hz_to_mel(edges[:-1]) + hz_to_mel(edges[1:])) / 2)
        limits = ax.get_xlim(), ax.get_ylim()
        style.hatch_negative(ax, np.arange(frames) / FRAMES_PER_SECOND, middles, difference, bound)
        ax.set(xlim=limits[0], ylim=limits[1])
    ax.set(title=title, xlabel="time (s)")
    style.color_bar(drawn, ax, f"{names[0]} - {names[1]}\n(log mel, 1 = 40 dB)\ndotted: below 0")
    return ax


def audio_attention(
    weights: np.ndarray, seconds: np.ndarray, tokens: Sequence[str], title: str, *, ax: Any = None
) -> Any:
    """How strongly each token attended to each 80 ms of audio: one row a token, the highest weight marked.

    Parameters
    ----------
    weights : np.ndarray
        (tokens, audio embeddings), at least 0; each row is drawn relative to its highest.
    seconds : np.ndarray
        (audio embeddings,) at which each 80 ms begin.
    tokens : sequence of str
        Their texts.
    title : str
        Above the figure.
    ax : Axes, optional
        Where to draw; by default on a new figure.

    Returns
    -------
    Axes
        Time to the right, tokens downwards in the order of generation.

    Raises
    ------
    ConfigError
        Weights, seconds and tokens do not fit together.
    """
    style.need(
        weights.shape == (len(tokens), len(seconds)) and weights.size > 0,
        f"attention: expected weights ({len(tokens)} tokens, {len(seconds)} seconds), found {weights.shape}",
    )
    ax = style.axes(ax, 1.5 + 0.18 * len(tokens))
    relative = weights / np.maximum(weights.max(axis=1, keepdims=True), 1e-12)
    edges = np.append(seconds, seconds[-1] + EMBEDDING_SECONDS)
    drawn = ax.pcolormesh(edges, np.arange(len(tokens) + 1) - 0.5, relative, cmap=style.IMAGE, vmin=0, vmax=1)
    ax.plot(
        seconds[weights.argmax(axis=1)] + EMBEDDING_SECONDS / 2,
        np.arange(len(tokens)),
        "o",
        markersize=4,
        color=style.ALERT,
        markerfacecolor="white",
        label="highest weight",
    )
    ax.set(title=title, xlabel="audio time (s)", ylabel="token, in order of generation", ylim=(len(tokens) - 0.5, -0.5))
    ax.set_yticks(range(len(tokens)), [style.plain(t) for t in tokens], fontsize=8)
    ax.legend(loc="upper right")  # where a text that walks forwards through its audio leaves room
    style.color_bar(drawn, ax, "attention / highest of the token")
    return ax
