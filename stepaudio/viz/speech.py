"""Figures of speech synthesis: text between audio codes, the stages from codes to wave, pitch, streams of chunks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..interp.streaming import LEVEL_FRAME, Difference, Streamed, level_db
from ..interp.token2wav import CODES_PER_SECOND, KINDS, Interleaving, Stages
from . import style
from .audio import hertz_axis, mel_band_edges, outline


def interleaving(found: Interleaving, title: str) -> tuple[Any, Any]:
    """What each token of an answer is, and below, how many seconds of audio codes had been written by then.

    Parameters
    ----------
    found : Interleaving
        As `interp.token2wav.interleaving` gives it.
    title : str
        Above the figure.

    Returns
    -------
    (Axes, Axes)
        Kinds, and seconds of audio, over the step. A dashed line at the end says that no end mark came.
    """
    top, below = style.stacked(2, 3.6, (2, 3))
    steps = np.arange(len(found.kinds))
    for row, kind in enumerate(KINDS):
        own = steps[found.kinds == row]
        top.plot(own, np.full(len(own), row), "|", markersize=11, color=style.DARK, label=f"{kind}: {len(own)} tokens")
    top.set_yticks(range(len(KINDS)), KINDS)
    top.set(title=title, ylabel="kind of token", ylim=(len(KINDS) - 0.5, -0.5))
    per_text = f"{found.codes_per_text:.1f} codes a text token" if found.n_text else "no text"
    label = f"audio ({per_text})\n{found.unvoiced_text} text tokens after it"
    below.step(steps, found.seconds, where="post", color=style.DARK, label=label)
    if found.end_is_missing:
        for ax in (top, below):
            label = f"no end mark (stop: {found.stop})" if ax is below else None
            ax.axvline(len(steps) - 0.5, linestyle="--", color=style.MIDDLE, label=label)
    below.set(xlabel="step (tokens generated)", ylabel="audio written (s)", xlim=(-0.5, len(steps)))
    style.legend(top)
    style.legend(below)
    return top, below


def synthesis_stages(found: Stages, title: str) -> tuple[Any, Any, Any, Any]:
    """Codes, what the conformer makes of them, the mel, and the wave, on one axis of seconds.

    Parameters
    ----------
    found : Stages
        As `interp.token2wav.stages` gives it.
    title : str
        Above the figure.

    Returns
    -------
    (Axes, Axes, Axes, Axes)
    """
    codes, mu, mel, wave = style.stacked(4, 7.0, (1, 2, 2, 1))
    at = (np.arange(len(found.codes)) + 0.5) / CODES_PER_SECOND
    codes.plot(at, found.codes, "o", markersize=2.5, color=style.DARK)
    codes.set(title=title, ylabel="code\n(number)")
    for ax, array, name in ((mu, found.mu, "conformer"), (mel, found.mel, "mel")):
        seconds = np.arange(len(array) + 1) / found.frames_per_second
        drawn = ax.pcolormesh(seconds, mel_band_edges(array.shape[1]), array.T, cmap=style.IMAGE)
        hertz_axis(ax)
        ax.set_ylabel(f"{name}\n(Hz, mel scale)")
        style.color_bar(drawn, ax, "natural log\nof amplitude")
    wave.plot(*outline(found.wave, found.sample_rate), color=style.DARK, linewidth=0.6)
    wave.set(xlabel="time (s)", ylabel="amplitude\n(full scale 1)", xlim=(0, len(found.wave) / found.sample_rate))
    return codes, mu, mel, wave


def pitch_and_source(
    found: Stages, title: str, *, start: float = 0.0, seconds: float = 0.1, voiced_above: float = 10.0
) -> tuple[Any, Any]:
    """The pitch of every frame, and a short stretch of the source that follows from it.

    Parameters
    ----------
    found : Stages
        As `interp.token2wav.stages` gives it.
    title : str
        Above the figure.
    start, seconds : float
        Stretch of the source to draw, in s, within the sound.
    voiced_above : float
        The vocoder's threshold in Hz, drawn as a dotted line.

    Returns
    -------
    (Axes, Axes)
        Pitch over all of the time, source over the stretch: two axes of seconds.

    Raises
    ------
    ConfigError
        The stretch begins outside the sound, or is empty.
    """
    total = len(found.source) / found.sample_rate
    style.need(
        0 <= start < total and seconds > 0,
        f"source: expected a stretch within 0 to {total:.2f} s, found {seconds} s from {start} s",
    )
    pitch, source = style.stacked(2, 4.2, shared=False)
    at = (np.arange(len(found.f0)) + 0.5) / found.frames_per_second
    voiced = float((found.f0 > voiced_above).mean())
    pitch.plot(at, found.f0, color=style.DARK, label=f"pitch ({voiced:.0%} of frames voiced)")
    pitch.axhline(voiced_above, linestyle=":", color=style.MIDDLE, label=f"voiced above {voiced_above:g} Hz")
    pitch.axvspan(start, min(start + seconds, total), color=style.LIGHT, zorder=0, label="drawn below")
    pitch.set(title=title, xlabel="time (s)", ylabel="pitch (Hz)", xlim=(0, total))
    first = round(start * found.sample_rate)
    part = found.source[first : first + round(seconds * found.sample_rate)]
    source.plot(*outline(part, found.sample_rate, first / found.sample_rate), color=style.DARK, linewidth=0.8)
    source.set(xlabel="time (s)", ylabel="source\n(amplitude)")
    style.legend(pitch)
    return pitch, source


def wave_difference(found: Difference, title: str, *, names: Sequence[str] = ("first", "second")) -> tuple[Any, Any]:
    """Two runs aligned in time: their difference, and its level beside theirs.

    Parameters
    ----------
    found : Difference
        As `interp.streaming.listening_difference` gives it.
    title : str
        Above the figure.
    names : (str, str)
        Of the two runs.

    Returns
    -------
    (Axes, Axes)
    """
    rate = found.sample_rate
    wave, level = style.stacked(2, 4.2)
    wave.plot(*outline(found.difference, rate), color=style.DARK, linewidth=0.6)
    wave.set(title=title, ylabel=f"{names[0]} - {names[1]}\n(full scale 1)")
    curves = (found.first, found.second, found.difference)
    shades = (style.DARK, style.MIDDLE, style.DARK)
    for name, x, line, shade in zip((*names, "difference"), curves, style.LINES, shades, strict=False):
        values = level_db(x, rate)
        level.plot((np.arange(len(values)) + 0.5) * LEVEL_FRAME, values, line, color=shade, label=name)
    level.set(xlabel="time (s)", ylabel="level (dB of full scale)", xlim=(0, len(found.first) / rate))
    style.legend(level)
    return wave, level


def stream_timeline(run: Streamed, title: str, *, codes_per_second: float, ax: Any = None) -> Any:
    """When each chunk's codes are there, when it is computed, and when it is played.

    Parameters
    ----------
    run : Streamed
        As `interp.streaming.streamed` gives it.
    title : str
        Above the figure.
    codes_per_second : float
        Above 0, at which codes come.
    ax : Axes, optional
        Where to draw; by default on a new figure.

    Returns
    -------
    Axes
        One row a chunk, the first on top: waiting for codes (white), computing (grey), playing (dark).

    Raises
    ------
    ConfigError
        `codes_per_second` is not above 0.
    """
    style.need(codes_per_second > 0, f"timeline: expected codes per second above 0, found {codes_per_second}")
    ax = style.axes(ax, 1.4 + 0.32 * len(run.chunks))
    ready, waits, clock, before = run.arrivals(codes_per_second), run.waits(codes_per_second), None, 0.0
    look = {"height": 0.7, "edgecolor": style.DARK, "linewidth": 0.6}
    for i, (chunk, at, wait) in enumerate(zip(run.chunks, ready, waits, strict=True)):
        there = chunk.codes_taken / codes_per_second
        clock = at if clock is None else clock + wait
        spans = (
            (before, there, "white", "codes arrive"),
            (at - chunk.seconds, at, style.MIDDLE, "computing"),
            (clock, clock + chunk.n_samples / run.sample_rate, style.DARK, "playing"),
        )
        for start, stop, shade, label in spans:
            ax.barh(i, stop - start, left=start, color=shade, label=label if i == 0 else None, **look)
        before, clock = there, clock + chunk.n_samples / run.sample_rate
    ax.axvline(ready[0], linestyle=":", color=style.DARK, label=f"first sound after {ready[0]:.2f} s")
    ax.set_yticks(range(len(run.chunks)))
    ylim = (len(run.chunks) - 0.5, -0.5)
    ax.set(title=title, xlabel="time since the first code was asked for (s)", ylabel="chunk (number)", ylim=ylim)
    style.legend(ax)
    return ax


def mel_distance(distances: Mapping[str, np.ndarray], run: Streamed, title: str, *, ax: Any = None) -> Any:
    """How far streams are from the whole, frame by frame, with the chunk boundaries.

    Parameters
    ----------
    distances : mapping of str to np.ndarray
        Name -> (T,) dB, as `interp.streaming.mel_distance_db` gives it.
    run : Streamed
        The stream whose boundaries are marked.
    title : str
        Above the figure.
    ax : Axes, optional
        Where to draw; by default on a new figure.

    Returns
    -------
    Axes

    Raises
    ------
    ConfigError
        No curve, or more than four.
    """
    style.need(
        1 <= len(distances) <= len(style.LINES), f"expected 1 to {len(style.LINES)} curves, found {len(distances)}"
    )
    per_second = run.sample_rate / run.frame_samples
    ax = style.axes(ax)
    for (name, values), line, shade in zip(distances.items(), style.LINES, style.SHADES, strict=False):
        label = f"{name} (mean {values.mean():.2f} dB)"
        ax.plot((np.arange(len(values)) + 0.5) / per_second, values, line, color=shade, label=label)
    for i, chunk in enumerate(run.chunks[1:]):
        label = None if i else "chunk boundary"
        ax.axvline(chunk.first_frame / per_second, color=style.LIGHT, zorder=0, label=label)
    ax.set(title=title, xlabel="time (s)", ylabel="distance of the mels (dB)", ylim=(0, None))
    style.legend(ax)
    return ax


def flow_noise(runs: Mapping[str, Streamed], title: str, *, ax: Any = None) -> Any:
    """Which frame of the noise each frame of the sound started from; noise used twice shows as a sawtooth.

    Parameters
    ----------
    runs : mapping of str to Streamed
        Name -> stream.
    title : str
        Above the figure.
    ax : Axes, optional
        Where to draw; by default on a new figure.

    Returns
    -------
    Axes

    Raises
    ------
    ConfigError
        No stream, or more than four.
    """
    style.need(1 <= len(runs) <= len(style.LINES), f"expected 1 to {len(style.LINES)} streams, found {len(runs)}")
    ax = style.axes(ax)
    for (name, run), line, shade in zip(runs.items(), style.LINES, style.SHADES, strict=False):
        per_second = run.sample_rate / run.frame_samples
        at = np.concatenate([np.arange(c.first_frame, c.first_frame + c.n_frames) for c in run.chunks])
        frames = np.concatenate([np.arange(c.noise_start, c.noise_start + c.n_frames) for c in run.chunks])
        label = f"{name} ({len(frames) - len(np.unique(frames))} frames again)"
        ax.plot((at + 0.5) / per_second, frames, line, color=shade, label=label)
    ax.set(title=title, xlabel="time (s)", ylabel="frame of the noise (number)")
    style.legend(ax)
    return ax
