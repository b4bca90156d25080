"""Figures of weights: what became of every tensor of a checkpoint, and how the values of arrays are spread."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..checkpoints.compare import CHANGED, EQUAL, LOW_RANK, ROUNDING, Comparison
from ..checkpoints.layout import COMPONENTS
from ..checkpoints.report import WeightReport
from . import style

OUTCOMES = ("loaded", "mis-shaped", "wrong dtype", "missing")  # drawn from light to dark
OUTCOME_SHADES = ("0.88", "0.62", "0.40", "0.0")
OUTCOME_MARKS = ("", "x", "o", "")  # so that the greys in the middle need not be told apart
CHANGES: tuple[str, ...] = (EQUAL, ROUNDING, LOW_RANK, CHANGED)  # drawn from light to dark
CHANGE_SHADES = ("0.92", "0.75", "0.55", "0.25", "0.0")
CHANGE_MARKS = ("", "", "x", "", "o")
STACKS = {"encoder": r"encoder\.blocks\.(\d+)\.(.+)", "decoder": r"model\.layers\.(\d+)\.(.+)"}


def weight_map(report: WeightReport, title: str, *, stack: str = "decoder", ax: Any = None) -> Any:
    """What became of every tensor: layers downwards, tensors of a layer to the right.

    Parameters
    ----------
    report : WeightReport
        Of `validate_weights`, or a model's.
    title : str
        Above the figure.
    stack : {"decoder", "encoder", "single"}
        The layers of one of the stacks, or all tensors outside of them, by component.
    ax : Axes, optional
        Where to draw; by default on a new figure.

    Returns
    -------
    Axes
        Darker is worse; wrong shapes and dtypes carry a mark besides, and the legend counts all.

    Raises
    ------
    ConfigError
        An unknown stack, or a report without tensors of it.
    """
    return _map(_outcomes(report), report.path, title, stack, ax, OUTCOMES, OUTCOME_SHADES, OUTCOME_MARKS)


def _map(outcomes: Mapping[str, int], what: str, title: str, stack: str, ax: Any, *look: Sequence[str]) -> Any:
    """Cells of one stack; outcomes are indices into the three sequences of `look`: names, shades, marks."""
    style.need(stack in (*STACKS, "single"), f"stack: expected decoder, encoder or single, found {stack!r}")
    cells = {place: outcome for name, outcome in outcomes.items() if (place := _place(name, stack))}
    style.need(bool(cells), f"{what}: no tensor of the {stack} kind is named")
    rows = sorted({r for r, _ in cells}, key=int if stack in STACKS else COMPONENTS.index)
    first = {column: min(rows.index(r) for r, c in cells if c == column) for _, column in cells}
    columns = sorted(first, key=lambda c: (first[c] if stack == "single" else 0, c))
    grid = np.full((len(rows), len(columns)), np.nan)
    for (row, column), outcome in cells.items():
        grid[rows.index(row), columns.index(column)] = outcome
    ax = style.axes(ax, 2.8 + 0.22 * len(rows))
    _draw(ax, grid, *look)
    ax.set_xticks(np.arange(len(columns)) + 0.5, columns, rotation=40, ha="right", fontsize=8)
    ax.set_yticks(np.arange(len(rows)) + 0.5, rows, fontsize=8)
    ylabel = "component" if stack == "single" else f"{stack} layer (number)"
    ax.set(title=title, xlabel="tensor (published name)", ylabel=ylabel)
    return ax


def change_map(comparison: Comparison, title: str, *, stack: str = "decoder", ax: Any = None) -> Any:
    """What became of every tensor from one checkpoint to another: layers downwards, tensors of a layer to the right.

    Parameters
    ----------
    comparison : Comparison
        Of `checkpoints.compare_checkpoints`.
    title, stack, ax
        As in `weight_map`.

    Returns
    -------
    Axes
        Darker is more; the legend counts all.

    Raises
    ------
    ConfigError
        An unknown stack, or a comparison without tensors of it.
    """
    outcomes = {t.name: (*CHANGES, t.outcome).index(t.outcome) for t in comparison.tensors}
    return _map(
        outcomes, comparison.second, title, stack, ax, (*CHANGES, "not comparable"), CHANGE_SHADES, CHANGE_MARKS
    )


def change_sizes(sizes: Mapping[str, float], title: str, *, stack: str = "decoder", ax: Any = None) -> Any:
    """How much every tensor changed: layers downwards, tensors of a layer to the right.

    Parameters
    ----------
    sizes : mapping of str to number >= 0
        Published name -> size of the change relative to the tensor, for instance the quotient of Frobenius norms.
    title : str
        Above the figure.
    stack : {"decoder", "encoder"}
        Whose layers are drawn; other names are left out.
    ax : Axes, optional
        Where to draw; by default on a new figure.

    Returns
    -------
    Axes
        Darker is more; each cell has its number, and a tensor without one is left empty.

    Raises
    ------
    ConfigError
        An unknown stack, no tensor of it, or a size that is no number from 0.
    """
    style.need(stack in STACKS, f"stack: expected decoder or encoder, found {stack!r}")
    cells = {place: float(size) for name, size in sizes.items() if (place := _place(name, stack))}
    style.need(bool(cells), f"change sizes: no tensor of the {stack} is named")
    low, high = min(cells.values()), max(cells.values())
    style.need(0 <= low <= high < np.inf, f"change sizes: expected numbers from 0, found {low} to {high}")
    rows = sorted({row for row, _ in cells}, key=int)
    columns = list(dict.fromkeys(column for _, column in cells))
    grid = np.full((len(rows), len(columns)), np.nan)
    for (row, column), size in cells.items():
        grid[rows.index(row), columns.index(column)] = size
    ax = style.axes(ax, 1.8 + 0.3 * len(rows))
    drawn = ax.pcolormesh(np.ma.masked_invalid(grid), cmap=style.IMAGE, vmin=0, vmax=high or 1.0)
    for row, column in np.argwhere(np.isfinite(grid)):
        ink = "white" if grid[row, column] > 0.6 * high else style.DARK
        place = {"ha": "center", "va": "center", "fontsize": 7, "color": ink}
        ax.text(column + 0.5, row + 0.5, f"{grid[row, column]:.2f}", **place)
    ax.set_xticks(np.arange(len(columns)) + 0.5, columns, rotation=40, ha="right", fontsize=8)
    ax.set_yticks(np.arange(len(rows)) + 0.5, rows, fontsize=8)
    ax.invert_yaxis()
    ax.set(title=title, xlabel="tensor (published name)", ylabel=f"{stack} layer (number)")
    style.color_bar(drawn, ax, "change / tensor (norms)")
    return ax


def _outcomes(report: WeightReport) -> dict[str, int]:
    """Published name -> index into OUTCOMES, in the report's order of names."""
    found = dict.fromkeys(report.loaded, 0) | {m.name: 1 for m in report.misshaped}
    return found | {name: 2 for name, _ in report.wrong_dtype} | dict.fromkeys(report.missing, 3)


def _place(name: str, stack: str) -> tuple[str, str] | None:
    """(row, column) of a tensor in the map of `stack`, None if it belongs to another."""
    if stack in STACKS:
        match = re.fullmatch(STACKS[stack], name)
        return match and (match[1], match[2])
    if any(re.fullmatch(pattern, name) for pattern in STACKS.values()):
        return None
    component, _, rest = name.partition(".")
    return component, rest


def _draw(ax: Any, grid: np.ndarray, names: Sequence[str], shades: Sequence[str], marks: Sequence[str]) -> None:
    """Cells in their shade and mark, and a legend that counts them."""
    from matplotlib.colors import ListedColormap
    from matplotlib.lines import Line2D

    ax.pcolormesh(
        np.ma.masked_invalid(grid),
        cmap=ListedColormap(list(shades)),
        vmin=-0.5,
        vmax=len(names) - 0.5,
        edgecolors="white",
        linewidth=1,
    )
    handles = []
    for i, (name, color, mark) in enumerate(zip(names, shades, marks, strict=True)):
        y, x = np.nonzero(grid == i)
        if mark and len(x):
            ax.plot(x + 0.5, y + 0.5, mark, color="white", markersize=5)
        look = {"marker": "s", "linestyle": "none", "markersize": 9, "markeredgecolor": "0.3", "color": color}
        handles.append(Line2D([], [], label=f"{name} ({len(x)})", **look))
    ax.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0)
    ax.invert_yaxis()


def histograms(
    arrays: Mapping[str, np.ndarray], title: str, *, of: str = "value", bins: int = 80, ax: Any = None
) -> Any:
    """How the values of some arrays are spread: one line pattern each, over common bins.

    Parameters
    ----------
    arrays : mapping of str to np.ndarray
        Name -> values of any shape; NaN and Inf are left out and counted in the legend.
    title : str
        Above the figure.
    of : str
        What the values are, for the horizontal axis: "weight", "activation", with a unit where there is one.
    bins : int
        At least 1.
    ax : Axes, optional
        Where to draw; by default on a new figure.

    Returns
    -------
    Axes
        Density on a logarithmic axis: the tails are what tells a trained tensor from a random one.

    Raises
    ------
    ConfigError
        No array or more than four, no bins, or an array without a finite value.
    """
    style.need(
        1 <= len(arrays) <= len(style.LINES) and bins >= 1,
        f"histograms: expected 1 to {len(style.LINES)} arrays and bins >= 1, found {len(arrays)} and {bins}",
    )
    flat = {name: np.asarray(a, np.float32).ravel() for name, a in arrays.items()}
    finite = {name: a[np.isfinite(a)] for name, a in flat.items()}
    style.need(all(a.size for a in finite.values()), "histograms: an array has no finite value")
    low, high = min(a.min() for a in finite.values()), max(a.max() for a in finite.values())
    edges = np.linspace(low, high, bins + 1) if high > low else np.array([low - 0.5, low + 0.5])
    ax = style.axes(ax)
    for (name, values), line, color in zip(finite.items(), style.LINES, style.SHADES, strict=False):
        bad = flat[name].size - values.size
        density, _ = np.histogram(values, edges, density=True)
        label = f"{name} (standard deviation {values.std():.3g}{f', {bad} not finite' if bad else ''})"
        ax.stairs(density, edges, linestyle=line, edgecolor=color, label=label)
    ax.set_yscale("log")
    ax.set(title=title, xlabel=of, ylabel=f"density (1 / {of.partition(' (')[0]})")
    ax.legend()
    return ax
