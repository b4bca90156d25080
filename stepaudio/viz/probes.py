"""What linear probes find, layer by layer, beside their controls."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..interp.probes import Probes
from . import style

LABELS = {"accuracy": "accuracy (%)", "R2": "variance explained (%)"}


def probe_scores(found: Probes, title: str, *, ax: Any = None) -> Any:
    """Score of each activation's probe with its interval, over the range of the scores with shuffled labels.

    Parameters
    ----------
    found : Probes
    title : str
        Above the figure.
    ax : Axes, optional
        Where to draw; by default on a new figure.

    Returns
    -------
    Axes
        Activations to the right in their order, per cent upwards. The shaded band holds all controls, the dashed line
        is their mean, the dotted one what is scored without the activation.
    """
    ax = style.axes(ax, 4.0)
    at = np.arange(len(found.names))
    low, high = (100 * np.array([getattr(s, end) for s in found.scores]) for end in ("low", "high"))
    score, controls = 100 * np.array([s.estimate for s in found.scores]), 100 * found.controls
    ax.fill_between(at, controls.min(axis=1), controls.max(axis=1), color=style.LIGHT, linewidth=0, label="controls")
    ax.plot(at, controls.mean(axis=1), style.LINES[1], color=style.MIDDLE, label="mean of controls")
    ax.axhline(100 * found.guess, linestyle=style.LINES[2], color=style.MIDDLE, label="guess")
    ax.errorbar(
        at, score, np.array([score - low, high - score]), fmt=style.MARKERS[0] + style.LINES[0], color=style.DARK,
        markerfacecolor="white", capsize=2, label=f"probe, {found.scores[0].level:.0%} interval",
    )  # fmt: skip
    ax.set(title=title, ylabel=LABELS[found.measure], ylim=(min(0, *controls.min(axis=1), *score) - 4, 104))
    ax.set_xticks(at, [style.plain(name) for name in found.names], rotation=90, fontsize=8)
    style.legend(ax)
    return ax
