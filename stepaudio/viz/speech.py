"""Pictures of speech being made: text between codes, the stages of a voice, pitch, and a stream beside the whole."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..interp.streaming import LEVEL_FRAME, Difference, Streamed, level_db
from ..interp.token2wav import CODES_PER_SECOND, KINDS, Interleaving, Stages
from . import style as canvas
from .audio import outline


def interleave_raster(found: Interleaving, title: str) -> tuple:
    """What each id of an answer is, and below, how much sound had been written by then.

    Parameters
    ----------
    found : as `speaking.interleaving` gives it

    Returns
    -------
    (Axes, Axes)
        Kinds, and seconds of sound, over the step. A dashed line at the end says that no end mark came.
    """
    top, below = canvas.stacked(2, 3.6, (2, 3))
    steps = np.arange(len(found.kinds))
    for row, kind in enumerate(KINDS):
        own = steps[found.kinds == row]
        top.plot(own, np.full(len(own), row), "|", markersize=11, color=canvas.DARK, label=f"{kind}: {len(own)} ids")
    top.set_yticks(range(len(KINDS)), KINDS)
    top.set(title=title, ylabel="kind of id", ylim=(len(KINDS) - 0.5, -0.5))
    per_text = f"{found.codes_per_text:.1f} codes for a text id" if found.n_text else "no text"
    below.step(
        steps,
        found.seconds,
        where="post",
        color=canvas.DARK,
        label=f"sound ({per_text})\n{found.unvoiced_text} text ids after it",
    )
    if found.end_is_missing:
        for ax in (top, below):
            ax.axvline(
                len(steps) - 0.5,
                linestyle="--",
                color=canvas.MIDDLE,
                label=f"no end mark (stop: {found.stop})" if ax is below else None,
            )
    below.set(xlabel="step (ids written)", ylabel="sound written (s)", xlim=(-0.5, len(steps)))
    canvas.legend(top)
    canvas.legend(below)
    return top, below


def stages(found: Stages, title: str) -> tuple:
    """Codes, what the conformer makes of them, the mel, and the wave, on one axis of seconds.

    Parameters
    ----------
    found : as `speaking.stages` gives it

    Returns
    -------
    (Axes, Axes, Axes, Axes)
    """
    codes, mu, mel, wave = made = canvas.stacked(4, 7.0, (1, 2, 2, 1))
    codes.plot(
        (np.arange(len(found.codes)) + 0.5) / CODES_PER_SECOND, found.codes, "o", markersize=2.5, color=canvas.DARK
    )
    codes.set(title=title, ylabel="code\n(number)")
    for ax, array, name in ((mu, found.mu, "conformer"), (mel, found.mel, "mel")):
        drawn = ax.imshow(
            array.T,
            origin="lower",
            aspect="auto",
            cmap=canvas.IMAGE,
            interpolation="nearest",
            extent=(0, len(array) / found.frames_per_second, -0.5, array.shape[1] - 0.5),
        )
        ax.set_ylabel(f"{name}\n(band)")
        canvas.shade(drawn, ax, "natural log\nof amplitude")
    wave.plot(*outline(found.wave, found.sample_rate), color=canvas.DARK, linewidth=0.6)
    wave.set(xlabel="time (s)", ylabel="amplitude\n(full scale 1)", xlim=(0, len(found.wave) / found.sample_rate))
    return tuple(made)


def pitch_and_source(
    found: Stages, title: str, *, start: float = 0.0, seconds: float = 0.1, voiced_above: float = 10.0
) -> tuple:
    """The pitch of every frame, and a short stretch of the source that follows from it.

    Parameters
    ----------
    start, seconds : stretch of the source to draw, in s, within the sound
    voiced_above : Hz, the vocoder's threshold, drawn as a dotted line

    Returns
    -------
    (Axes, Axes)
        Pitch over all of the time, source over the stretch: two axes of seconds.
    """
    total = len(found.source) / found.sample_rate
    canvas.need(
        0 <= start < total and seconds > 0,
        f"source: expected a stretch within 0 to {total:.2f} s, found {seconds} s from {start} s",
    )
    pitch, source = canvas.stacked(2, 4.2, shared=False)
    at = (np.arange(len(found.f0)) + 0.5) / found.frames_per_second
    voiced = float((found.f0 > voiced_above).mean())
    pitch.plot(at, found.f0, color=canvas.DARK, label=f"pitch ({voiced:.0%} of frames voiced)")
    pitch.axhline(voiced_above, linestyle=":", color=canvas.MIDDLE, label=f"voiced above {voiced_above:g} Hz")
    pitch.axvspan(start, min(start + seconds, total), color=canvas.LIGHT, zorder=0, label="drawn below")
    pitch.set(title=title, xlabel="time (s)", ylabel="pitch (Hz)", xlim=(0, total))
    first = round(start * found.sample_rate)
    piece = found.source[first : first + round(seconds * found.sample_rate)]
    source.plot(*outline(piece, found.sample_rate, first / found.sample_rate), color=canvas.DARK, linewidth=0.8)
    source.set(xlabel="time (s)", ylabel="source\n(amplitude)")
    canvas.legend(pitch)
    return pitch, source


def wave_difference(found: Difference, title: str, *, names=("first", "second")) -> tuple:
    """Two runs aligned in time: their difference, and its level beside theirs.

    Parameters
    ----------
    found : as `streaming.listening_difference` gives it

    Returns
    -------
    (Axes, Axes)
    """
    rate = found.sample_rate
    wave, level = canvas.stacked(2, 4.2)
    wave.plot(*outline(found.difference, rate), color=canvas.DARK, linewidth=0.6)
    wave.set(title=title, ylabel=f"{names[0]} - {names[1]}\n(full scale 1)")
    shades = (canvas.DARK, canvas.MIDDLE, canvas.DARK)
    for name, x, line, shade in zip(
        (*names, "difference"), (found.first, found.second, found.difference), canvas.LINES, shades, strict=False
    ):
        values = level_db(x, rate)
        level.plot((np.arange(len(values)) + 0.5) * LEVEL_FRAME, values, line, color=shade, label=name)
    level.set(xlabel="time (s)", ylabel="level (dB of full scale)", xlim=(0, len(found.first) / rate))
    canvas.legend(level)
    return wave, level


def stream_timeline(run: Streamed, title: str, *, codes_per_second: float, ax=None):
    """When each chunk's codes are there, when it is computed, and when it is heard.

    Parameters
    ----------
    run : as `streaming.streamed` gives it
    codes_per_second : > 0, at which codes come

    Returns
    -------
    Axes
        One row a chunk, the first on top: waiting for codes (white), computing (grey), playing (dark).
    """
    canvas.need(codes_per_second > 0, f"timeline: expected codes per second above 0, found {codes_per_second}")
    ax = canvas.axes(ax, 1.4 + 0.32 * len(run.chunks))
    ready, waits, clock, before = run.arrivals(codes_per_second), run.waits(codes_per_second), None, 0.0
    for i, (chunk, at, wait) in enumerate(zip(run.chunks, ready, waits, strict=True)):
        there = chunk.codes_taken / codes_per_second
        clock = at if clock is None else clock + wait
        spans = (
            (before, there, "white", "codes come"),
            (at - chunk.seconds, at, canvas.MIDDLE, "computing"),
            (clock, clock + chunk.n_samples / run.sample_rate, canvas.DARK, "heard"),
        )
        for start, stop, shade, label in spans:
            ax.barh(
                i,
                stop - start,
                left=start,
                height=0.7,
                color=shade,
                edgecolor=canvas.DARK,
                linewidth=0.6,
                label=label if i == 0 else None,
            )
        before, clock = there, clock + chunk.n_samples / run.sample_rate
    ax.axvline(ready[0], linestyle=":", color=canvas.DARK, label=f"first sound after {ready[0]:.2f} s")
    ax.set_yticks(range(len(run.chunks)))
    ax.set(
        title=title,
        xlabel="time since the first code was asked for (s)",
        ylabel="chunk (number)",
        ylim=(len(run.chunks) - 0.5, -0.5),
    )
    canvas.legend(ax)
    return ax


def distance_along(distances: Mapping[str, np.ndarray], run: Streamed, title: str, *, ax=None):
    """How far streams are from the whole, frame by frame, with the joints of the chunks.

    Parameters
    ----------
    distances : name -> (T,) dB, as `streaming.mel_distance_db` gives it. run : whose joints are marked

    Returns
    -------
    Axes
    """
    canvas.need(
        1 <= len(distances) <= len(canvas.LINES), f"expected 1 to {len(canvas.LINES)} curves, found {len(distances)}"
    )
    per_second = run.sample_rate / run.frame_samples
    ax = canvas.axes(ax)
    for (name, values), line, shade in zip(distances.items(), canvas.LINES, canvas.SHADES, strict=False):
        ax.plot(
            (np.arange(len(values)) + 0.5) / per_second,
            values,
            line,
            color=shade,
            label=f"{name} (mean {values.mean():.2f} dB)",
        )
    for i, chunk in enumerate(run.chunks[1:]):
        ax.axvline(chunk.first_frame / per_second, color=canvas.LIGHT, zorder=0, label=None if i else "joint")
    ax.set(title=title, xlabel="time (s)", ylabel="distance of the mels (dB)", ylim=(0, None))
    canvas.legend(ax)
    return ax


def noise_used(runs: Mapping[str, Streamed], title: str, *, ax=None):
    """Which frame of the noise each frame of the sound started from; the same one twice shows as teeth.

    Parameters
    ----------
    runs : name -> stream

    Returns
    -------
    Axes
    """
    canvas.need(1 <= len(runs) <= len(canvas.LINES), f"expected 1 to {len(canvas.LINES)} streams, found {len(runs)}")
    ax = canvas.axes(ax)
    for (name, run), line, shade in zip(runs.items(), canvas.LINES, canvas.SHADES, strict=False):
        per_second = run.sample_rate / run.frame_samples
        at = np.concatenate([np.arange(c.first_frame, c.first_frame + c.n_frames) for c in run.chunks])
        frames = np.concatenate([np.arange(c.noise_start, c.noise_start + c.n_frames) for c in run.chunks])
        ax.plot(
            (at + 0.5) / per_second,
            frames,
            line,
            color=shade,
            label=f"{name} ({len(frames) - len(np.unique(frames))} frames again)",
        )
    ax.set(title=title, xlabel="time (s)", ylabel="frame of the noise (number)")
    canvas.legend(ax)
    return ax
