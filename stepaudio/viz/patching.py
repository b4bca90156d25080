"""What patches and ablations do, as maps: layers against time of audio, layers against heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..interp.ablation import HeadTable
from ..interp.patching import TraceMap
from . import style


def causal_map(found: TraceMap, title: str, *, ax: Any = None) -> Any:
    """Share of the difference that a patch restores, by layer and second of audio.

    Parameters
    ----------
    found : TraceMap
    title : str
        Above the figure.
    ax : Axes, optional
        Where to draw; by default on a new figure.

    Returns
    -------
    Axes
        Time to the right, layers upwards in the order in which they are computed.

    Raises
    ------
    ConfigError
        There is no difference to restore.
    """
    shares = found.recovered
    style.need(bool(np.isfinite(shares).all()), "causal_map: the clean and the corrupt run measure the same")
    ax = _map(found.edges, 100 * shares, found.names, "difference restored (%)", ax)
    ax.set(title=title, xlabel="audio time (s)", ylabel="patched activation")
    return ax


def head_map(found: HeadTable, title: str, *, ax: Any = None) -> Any:
    """What answers lose without each head, the mean over clips, by layer and head.

    Parameters
    ----------
    found : HeadTable
    title, ax : as in `causal_map`.

    Returns
    -------
    Axes
        Heads to the right, layers upwards.
    """
    n = found.lost.shape[2]
    ax = _map(np.arange(n + 1) - 0.5, found.mean, found.names, "log-probability lost (nats per token)", ax)
    ax.set(title=title, xlabel="head", ylabel="silenced activation")
    ax.set_xticks(range(n))
    return ax


def _map(edges: np.ndarray, values: np.ndarray, names: Sequence[str], label: str, ax: Any) -> Any:
    """Signed values (names, cells), white at zero, the negative ones dotted."""
    ax = style.axes(ax, 1.5 + 0.22 * len(names))
    bound = max(float(np.abs(values).max()), 1e-12)
    drawn = ax.pcolormesh(
        edges, np.arange(len(names) + 1) - 0.5, values, cmap=style.diverging(), vmin=-bound, vmax=bound
    )
    for row, column in np.argwhere(values < -style.HATCH_FROM * bound):
        ax.text((edges[column] + edges[column + 1]) / 2, row, "−", ha="center", va="center")  # the sign, in grey
    ax.set_yticks(range(len(names)), [style.plain(n) for n in names], fontsize=8)
    style.color_bar(drawn, ax, label)
    return ax
