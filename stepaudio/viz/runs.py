"""Pictures of runs: ids that go in circles, errors against loops, memory along a generation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..decoding.loop_detector import Loop
from . import style as canvas

MIB = 1 << 20


def loop_raster(ids: Sequence[int], title: str, *, loop: Loop | None = None, text_limit: int | None = None, ax=None):
    """Every id of a run against its step; a loop shows as stripes, and the part that loops is shaded.

    Parameters
    ----------
    ids : (steps,)
    loop : as `loops.find_loop` or a run gives it; None for a run without
    text_limit : ids below it are text (filled marks), the others are not (open marks); None: all are text

    Returns
    -------
    Axes
        Ids are drawn by their rank among those that occur, so that a stripe is one id; the ticks tell the ids.
    """
    canvas.need(len(ids) > 0, "loop raster: the run has no ids")
    ids = np.asarray(ids)
    ax = canvas.axes(ax)
    values, rank = np.unique(ids, return_inverse=True)
    text = ids < (np.inf if text_limit is None else text_limit)
    for kind, fill, label in ((text, canvas.DARK, "text id"), (~text, "white", "other id")):
        if kind.any():
            ax.plot(
                np.flatnonzero(kind),
                rank[kind],
                "o",
                markersize=4,
                color=canvas.DARK,
                markerfacecolor=fill,
                label=label,
            )
    if loop is not None:
        end = loop.onset + round(loop.period * loop.repeats)
        ax.axvspan(
            loop.onset - 0.5,
            end - 0.5,
            color=canvas.LIGHT,
            zorder=0,
            label=f"loop: {loop.period} ids, {loop.repeats:.1f} times\nfrom step {loop.onset}",
        )
    shown = np.unique(np.linspace(0, len(values) - 1, min(12, len(values))).round().astype(int))
    ax.set_yticks(shown, [str(v) for v in values[shown]])
    ax.set(title=title, xlabel="step (ids written)", ylabel="id (those that occur, in order)")
    canvas.legend(ax)
    return ax


def wer_against_loops(points: Mapping[str, Sequence[float]], title: str, *, ax=None):
    """What a setting costs in words against what it saves in loops, each with its interval.

    Parameters
    ----------
    points : setting -> (loop rate, low, high, word error rate, low, high), all in shares (1 is 100 %); low and high
        are the ends of the intervals

    Returns
    -------
    Axes
        Both axes in per cent; a marker of its own for each setting.
    """
    most = len(canvas.MARKERS)
    canvas.need(1 <= len(points) <= most, f"expected 1 to {most} settings, found {len(points)}")
    for name, numbers in points.items():
        ordered = len(numbers) == 6 and all(v[1] <= v[0] <= v[2] for v in (numbers[:3], numbers[3:]))
        canvas.need(
            ordered,
            f"{name}: expected (rate, low, high) of loops, then of word errors, with "
            f"low <= rate <= high, found {numbers}",
        )
    ax = canvas.axes(ax, 4.0)
    for (name, numbers), marker in zip(points.items(), canvas.MARKERS, strict=False):
        x, x_low, x_high, y, y_low, y_high = np.asarray(numbers, float) * 100
        ax.errorbar(
            x,
            y,
            xerr=[[x - x_low], [x_high - x]],
            yerr=[[y - y_low], [y_high - y]],
            marker=marker,
            markersize=7,
            color=canvas.DARK,
            ecolor=canvas.MIDDLE,
            markerfacecolor="white",
            capsize=3,
            linestyle="none",
            label=name,
        )
    ax.set(title=title, xlabel="runs that loop (%)", ylabel="word error rate (%)")
    ax.set_xlim(left=min(0, ax.get_xlim()[0]))
    ax.set_ylim(bottom=0)
    canvas.legend(ax)
    return ax


def wer_against_bytes(points: Mapping[str, Sequence[float]], title: str, *, ax=None):
    """What remembering costs in memory against what it saves in words, the error with its interval.

    Parameters
    ----------
    points : setting -> (bytes held, word error rate, low, high), rates in shares (1 is 100 %)

    Returns
    -------
    Axes
        KiB to the right, per cent upwards; a marker of its own for each setting, filled from the eleventh on.
    """
    most = 2 * len(canvas.MARKERS)
    canvas.need(1 <= len(points) <= most, f"expected 1 to {most} settings, found {len(points)}")
    for name, numbers in points.items():
        canvas.need(
            len(numbers) == 4 and numbers[0] >= 0 and numbers[2] <= numbers[1] <= numbers[3],
            f"{name}: expected (bytes, word error rate, low, high) with low <= rate <= high, found {numbers}",
        )
    ax = canvas.axes(ax, 4.0)
    for i, (name, (held, *rates)) in enumerate(points.items()):
        y, low, high = np.asarray(rates, float) * 100
        filled, which = divmod(i, len(canvas.MARKERS))
        ax.errorbar(
            held / 1024,
            y,
            yerr=[[y - low], [high - y]],
            marker=canvas.MARKERS[which],
            markersize=7,
            color=canvas.DARK,
            ecolor=canvas.MIDDLE,
            capsize=3,
            linestyle="none",
            label=name,
            markerfacecolor=canvas.DARK if filled else "white",
        )
    ax.set(title=title, xlabel="keys and values held (KiB)", ylabel="word error rate (%)")
    ax.set_xlim(left=0)
    ax.set_ylim(bottom=0)
    canvas.legend(ax)
    return ax


def memory(active: np.ndarray, cached: np.ndarray, peak: np.ndarray, kv: np.ndarray, title: str, *, ax=None):
    """Memory along a generation, the four numbers apart.

    Parameters
    ----------
    active, cached, peak, kv : (steps,) bytes, as `readings.watch_memory` notes them

    Returns
    -------
    Axes
        MiB on a logarithmic axis, because a cache of kilobytes stands beside gigabytes of weights.
    """
    curves = {"active": active, "cached": cached, "peak": peak, "keys and values": kv}
    canvas.need(
        len({len(c) for c in curves.values()}) == 1 and len(kv) > 0,
        f"memory: expected four curves of one length, found lengths {[len(c) for c in curves.values()]}",
    )
    ax = canvas.axes(ax)
    for (name, curve), line, color in zip(curves.items(), canvas.LINES, canvas.SHADES, strict=True):
        mib = np.asarray(curve, float) / MIB
        ax.plot(
            np.arange(1, len(mib) + 1),
            np.where(mib > 0, mib, np.nan),
            line,
            color=color,
            label=f"{name}\n(at the end {mib[-1]:.3g} MiB)",
        )
    ax.set_yscale("log")
    ax.set(title=title, xlabel="step (ids written)", ylabel="memory (MiB)")
    canvas.legend(ax)
    return ax
