"""Figures of runs: tokens that repeat, word errors against loops and bytes, memory along a generation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..decoding.loop_detector import Loop
from ..evaluation.intervals import Interval
from . import style

KIB, MIB = 1 << 10, 1 << 20
MOST_TICKS = 16  # tokens named on an axis
APART = 9  # points of print between marks that would cover each other


def token_raster(
    tokens: Sequence[int],
    title: str,
    *,
    texts: Sequence[str] | None = None,
    loop: Loop | None = None,
    text_limit: int | None = None,
    ax: Any = None,
) -> Any:
    """Every token of a run against its step; a repetition loop shows as parallel stripes, on a tinted ground.

    Parameters
    ----------
    tokens : sequence of int
        (steps,) token ids.
    title : str
        Above the figure.
    texts : sequence of str, optional
        (steps,) what each token says, for the vertical axis; by default the ids are shown.
    loop : Loop, optional
        As `find_loop` or a run gives it; None for a run without.
    text_limit : int, optional
        Ids below it are text (filled marks), the others are not (open marks); by default all are text.
    ax : Axes, optional
        Where to draw; by default on a new figure.

    Returns
    -------
    Axes
        A line of its own for each token that occurs, in the order of first use from the top.

    Raises
    ------
    ConfigError
        The run is empty, or there are not as many texts as tokens.
    """
    style.need(len(tokens) > 0, "token raster: the run has no tokens")
    style.need(
        texts is None or len(texts) == len(tokens),
        f"token raster: expected a text for each of {len(tokens)} tokens, found {len(texts or ())}",
    )
    ids = np.asarray(tokens)
    ax = style.axes(ax)
    _, first, of_value = np.unique(ids, return_index=True, return_inverse=True)
    line = np.argsort(np.argsort(first))[of_value]  # of each step: rank of its token by first use
    used = np.sort(first)  # step at which the token of each line is first used
    text = ids < (np.inf if text_limit is None else text_limit)
    for kind, fill, label in ((text, style.DARK, "text token"), (~text, "white", "other token")):
        if kind.any():
            steps = np.flatnonzero(kind)
            ax.plot(steps, line[kind], "o", markersize=4, color=style.DARK, markerfacecolor=fill, label=label)
    if loop is not None:
        end = loop.onset + round(loop.period * loop.repeats)
        label = f"loop: {loop.period} tokens, {loop.repeats:.1f} times\nfrom step {loop.onset}"
        ax.axvspan(loop.onset - 0.5, end - 0.5, color=style.ALERT, alpha=0.2, linewidth=0, zorder=0, label=label)
    shown = np.arange(0, len(used), -(-len(used) // MOST_TICKS))
    names = [*map(str, tokens)] if texts is None else [*texts]
    ax.set_yticks(shown, [style.plain(names[s]) for s in used[shown].tolist()])
    ax.set(title=title, xlabel="step (tokens generated)", ylabel="token, by first use", ylim=(len(used) - 0.5, -0.5))
    style.legend(ax)
    return ax


def wer_against_loops(points: Mapping[str, Sequence[float]], title: str, *, ax: Any = None) -> Any:
    """Word error rate against the share of runs that loop, each with its interval.

    Parameters
    ----------
    points : mapping of str to sequence of float
        Setting -> (loop rate, low, high, word error rate, low, high), all in shares (1 is 100 %); low and high are
        the ends of the intervals. Settings at one point share a marker, whose label names them all.
    title : str
        Above the figure.
    ax : Axes, optional
        Where to draw; by default on a new figure.

    Returns
    -------
    Axes
        Both axes in per cent; a marker of its own for each point. Points of one loop rate whose bars overlap are
        drawn side by side.

    Raises
    ------
    ConfigError
        No points or too many, or a rate outside its interval.
    """
    for name, numbers in points.items():
        ordered = len(numbers) == 6 and all(v[1] <= v[0] <= v[2] for v in (numbers[:3], numbers[3:]))
        style.need(
            ordered,
            f"{name}: expected (rate, low, high) of loops, then of word errors, with "
            f"low <= rate <= high, found {numbers}",
        )
    merged = _merged(points, len(style.MARKERS))
    ax = style.axes(ax, 4.0)
    shifts = _side_by_side((numbers[0], *numbers[4:]) for numbers in merged.values())
    for (name, numbers), marker, shift in zip(merged.items(), style.MARKERS, shifts, strict=False):
        _error_cross(ax, name, marker, np.asarray(numbers[:3]) * 100, np.asarray(numbers[3:]) * 100, shift=shift)
    ax.set(title=title, xlabel="runs that loop (%)", ylabel="word error rate (%)")
    ax.set_xlim(left=min(0, ax.get_xlim()[0]))
    ax.set_ylim(bottom=0)
    style.legend(ax)
    return ax


def wer_against_bytes(
    points: Mapping[str, Sequence[float]], title: str, *, what: str = "keys and values held", ax: Any = None
) -> Any:
    """Word error rate, with its interval, against the bytes of the key/value cache, or of something else.

    Parameters
    ----------
    points : mapping of str to sequence of float
        Setting -> (bytes held, word error rate, low, high), rates in shares (1 is 100 %). Settings at one point share
        a marker, whose label names them all.
    title : str
        Above the figure.
    what : str
        Of what the bytes are.
    ax : Axes, optional
        Where to draw; by default on a new figure.

    Returns
    -------
    Axes
        KiB (of much, MiB) to the right, per cent upwards; a marker of its own for each point, filled from the eleventh
        on. Points of one size whose bars overlap are drawn side by side.

    Raises
    ------
    ConfigError
        No points or too many, or a rate outside its interval.
    """
    for name, numbers in points.items():
        style.need(
            len(numbers) == 4 and numbers[0] >= 0 and numbers[2] <= numbers[1] <= numbers[3],
            f"{name}: expected (bytes, word error rate, low, high) with low <= rate <= high, found {numbers}",
        )
    merged = _merged(points, 2 * len(style.MARKERS))
    unit, named = (KIB, "KiB") if max(numbers[0] for numbers in points.values()) < 10 * MIB else (MIB, "MiB")
    ax = style.axes(ax, 4.0)
    shifts = _side_by_side((numbers[0], *numbers[2:]) for numbers in merged.values())
    for i, ((name, (held, *rates)), shift) in enumerate(zip(merged.items(), shifts, strict=True)):
        filled, which = divmod(i, len(style.MARKERS))
        fill = style.DARK if filled else "white"
        _error_cross(ax, name, style.MARKERS[which], np.full(3, held / unit), np.asarray(rates) * 100, fill, shift)
    ax.set(title=title, xlabel=f"{what} ({named})", ylabel="word error rate (%)")
    ax.set_xlim(left=0)
    ax.set_ylim(bottom=0)
    style.legend(ax)
    return ax


def _merged(points: Mapping[str, Sequence[float]], most: int) -> dict[str, Sequence[float]]:
    """Points by name, those that coincide under one name that lists them."""
    names: dict[tuple[float, ...], list[str]] = {}
    for name, numbers in points.items():
        names.setdefault(tuple(round(float(n), 9) for n in numbers), []).append(name)
    style.need(1 <= len(names) <= most, f"expected 1 to {most} settings that differ, found {len(names)}")
    return {"\n= ".join(same): numbers for numbers, same in names.items()}


def _side_by_side(bars: Iterable[Sequence[float]]) -> list[float]:
    """Points of print by which each mark is moved to the right, so that bars at one place do not cover each other.

    `bars`: (place, low, high) of each; only those that overlap are moved.
    """
    taken: dict[float, list[list[tuple[float, float]]]] = {}
    shifts = []
    for place, low, high in bars:
        lanes = taken.setdefault(place, [])
        free = (i for i, lane in enumerate(lanes) if all(high < a or b < low for a, b in lane))
        chosen = next(free, len(lanes))
        if chosen == len(lanes):
            lanes.append([])
        lanes[chosen].append((low, high))
        shifts.append(APART * chosen)
    return shifts


def _error_cross(
    ax: Any, name: str, marker: str, x: np.ndarray, y: np.ndarray, fill: str = "white", shift: float = 0
) -> None:
    """A mark at (estimate, low, high) of both axes, with bars where low and high differ, drawn `shift` points aside."""
    from matplotlib.transforms import ScaledTranslation

    bars = {axis: [[v[0] - v[1]], [v[2] - v[0]]] for axis, v in (("xerr", x), ("yerr", y)) if v[2] > v[1]}
    aside = ax.transData + ScaledTranslation(shift / 72, 0, ax.figure.dpi_scale_trans)
    look = {"marker": marker, "markersize": 7, "color": style.DARK, "ecolor": style.MIDDLE, "markerfacecolor": fill}
    ax.errorbar(x[0], y[0], **bars, **look, capsize=3, linestyle="none", label=name, transform=aside)
    ax.update_datalim([(x.min(), y.min()), (x.max(), y.max())])  # what is drawn aside is left out of the limits
    ax.autoscale_view()


def memory(
    active: np.ndarray, cached: np.ndarray, peak: np.ndarray, kv: np.ndarray, title: str, *, ax: Any = None
) -> Any:
    """Memory along a generation, the four numbers apart.

    Parameters
    ----------
    active, cached, peak, kv : np.ndarray
        (steps,) bytes, as `interp.memory.watch_memory` notes them.
    title : str
        Above the figure.
    ax : Axes, optional
        Where to draw; by default on a new figure.

    Returns
    -------
    Axes
        MiB on a logarithmic axis, because a cache of kilobytes stands beside gigabytes of weights; `kv_bytes` shows
        the cache alone.

    Raises
    ------
    ConfigError
        The curves differ in length, or are empty.
    """
    curves = {"active": active, "cached": cached, "peak": peak, "keys and values": kv}
    style.need(
        len({len(c) for c in curves.values()}) == 1 and len(kv) > 0,
        f"memory: expected four curves of one length, found lengths {[len(c) for c in curves.values()]}",
    )
    ax = style.axes(ax)
    for (name, curve), line, color in zip(curves.items(), style.LINES, style.SHADES, strict=True):
        mib = np.asarray(curve, float) / MIB
        label = f"{name}\n(at the end {mib[-1]:.3g} MiB)"
        ax.plot(np.arange(1, len(mib) + 1), np.where(mib > 0, mib, np.nan), line, color=color, label=label)
    ax.set_yscale("log")
    ax.set(title=title, xlabel="step (tokens generated)", ylabel="memory (MiB)")
    style.legend(ax)
    return ax


def kv_bytes(curves: Mapping[str, Sequence[int]], title: str, *, ax: Any = None) -> Any:
    """Size of the key/value cache along generations, one curve a cache policy.

    Parameters
    ----------
    curves : mapping of str to sequence of int
        Policy -> (steps,) bytes; lengths may differ.
    title : str
        Above the figure.
    ax : Axes, optional
        Where to draw; by default on a new figure.

    Returns
    -------
    Axes
        KiB upwards, from zero, on a linear axis; the buffer of a cache without limit grows in blocks.

    Raises
    ------
    ConfigError
        No curve, an empty one, or more than four.
    """
    style.need(
        1 <= len(curves) <= len(style.LINES) and all(len(c) for c in curves.values()),
        f"kv_bytes: expected 1 to {len(style.LINES)} curves that are not empty, found {len(curves)}",
    )
    ax = style.axes(ax)
    for (name, curve), line, color in zip(curves.items(), style.LINES, style.SHADES, strict=False):
        kib = np.asarray(curve, float) / KIB
        ax.step(np.arange(1, len(kib) + 1), kib, line, where="post", color=color, label=f"{name}\n({kib[-1]:.0f} KiB)")
    ax.set(title=title, xlabel="step (tokens generated)", ylabel="keys and values (KiB)")
    ax.set_ylim(bottom=0)
    style.legend(ax)
    return ax


def difference_map(
    found: Mapping[str, Mapping[str, Interval]], title: str, *, most: float = 0.2, ax: Any = None
) -> Any:
    """Differences of a rate with their intervals, in a table whose cells are shaded by them.

    Parameters
    ----------
    found : mapping of str to mapping of str to Interval
        Row -> column -> difference, as `evaluation.intervals.paired_difference` gives it; all rows have all columns.
    title : str
        Above the figure.
    most : float > 0
        Difference from which on cells have the darkest shade.
    ax : Axes, optional
        Where to draw; by default on a new figure.

    Returns
    -------
    Axes
        In each cell the difference in points, in bold where its interval leaves out 0, and below it the interval.

    Raises
    ------
    ConfigError
        No rows, or rows of other columns.
    """
    rows, columns = list(found), list(next(iter(found.values()), {}))
    even = bool(columns) and all(list(cells) == columns for cells in found.values())
    style.need(even and most > 0, "difference_map: expected rows that all have the same columns")
    ax = style.axes(ax, 1.0 + 0.42 * len(rows))
    values = np.array([[found[row][column].estimate for column in columns] for row in rows])
    edges = (np.arange(n + 1) - 0.5 for n in (len(columns), len(rows)))
    drawn = ax.pcolormesh(*edges, 100 * values, cmap=style.diverging(), vmin=-100 * most, vmax=100 * most)
    for (i, j), value in np.ndenumerate(values):
        cell, ink = found[rows[i]][columns[j]], "white" if abs(value) > 0.6 * most else style.DARK
        weight = "bold" if cell.excludes_zero else "normal"
        ax.text(j, i - 0.14, f"{100 * value:+.1f}", ha="center", va="center", fontsize=8, weight=weight, color=ink)
        ends = f"{100 * cell.low:+.0f} … {100 * cell.high:+.0f}"
        ax.text(j, i + 0.24, ends, ha="center", va="center", fontsize=6, color=ink)
    ax.set_xticks(range(len(columns)), columns)
    ax.set_yticks(range(len(rows)), rows)
    ax.invert_yaxis()
    ax.set_title(title)
    style.color_bar(drawn, ax, "difference (points)")
    return ax


def dose_response(
    curves: Mapping[str, Sequence[Sequence[float]]],
    title: str,
    *,
    xlabel: str = "speech above the noise (dB)",
    ylabel: str = "word error rate (%)",
    ax: Any = None,
) -> Any:
    """How a rate rises with a dose, one curve a kind, each point with its interval.

    Parameters
    ----------
    curves : mapping of str to sequence of (dose, rate, low, high)
        Kind -> its points; rates in shares (1 is 100 %).
    title, xlabel, ylabel : str
        Above, below and beside the figure.
    ax : Axes, optional
        Where to draw; by default on a new figure.

    Returns
    -------
    Axes
        Doses to the right from the largest number to the smallest, per cent upwards from zero.

    Raises
    ------
    ConfigError
        No curve, an empty one, more than four, or a rate outside its interval.
    """
    style.need(
        1 <= len(curves) <= len(style.LINES) and all(len(c) for c in curves.values()),
        f"dose_response: expected 1 to {len(style.LINES)} curves that are not empty, found {len(curves)}",
    )
    ax = style.axes(ax, 3.5)
    for i, (name, points) in enumerate(curves.items()):
        dose, rate, low, high = np.asarray(points, float).T
        style.need(bool(np.all((low <= rate) & (rate <= high))), f"{name}: expected low <= rate <= high")
        ax.errorbar(
            dose + 0.25 * (i - (len(curves) - 1) / 2),  # beside one another, so that no bar hides another
            100 * rate,
            100 * np.array([rate - low, high - rate]),
            fmt=style.MARKERS[i] + style.LINES[i],
            color=style.SHADES[i],
            markerfacecolor="white",
            capsize=2,
            label=name,
        )
    ax.set(title=title, xlabel=xlabel, ylabel=ylabel)
    ax.set_ylim(bottom=0)
    ax.invert_xaxis()
    style.legend(ax)
    return ax
