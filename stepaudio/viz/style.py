"""Where a figure goes: the one place that imports matplotlib, and the looks that all figures share.

Greys tell one line from another; colour is kept for what colour says better: the sign of a difference, and what
needs the eye first (`ALERT`). Everything stays readable when printed in grey.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from ..errors import ConfigError

WIDTH = 8.0  # inches
DARK, MIDDLE, LIGHT = "0.0", "0.45", "0.75"  # shades that stay apart in print
ALERT = "#b2182b"  # the red end of `DIVERGING`; as dark as the grey 0.27
LINES = ("-", "--", ":", "-.")  # told apart by pattern, not by colour
SHADES = (DARK, DARK, MIDDLE, MIDDLE)
MARKERS = "osD^vP*X<>"
IMAGE = "Greys"  # more is darker
DIVERGING, LEVELS = (
    "RdBu_r",
    21,
)  # blue below zero, white at zero, red above; the ends are alike in grey, hence the dots
NEGATIVE_HATCH = ".."
HATCH_FROM = 0.15  # of the largest difference: what is paler than this needs no sign


def axes(ax: Any = None, height: float = 3.0) -> Any:
    """`ax` itself, or the only axes of a new figure `height` inches high.

    Raises
    ------
    ConfigError
        matplotlib is not installed.
    """
    return ax if ax is not None else stacked(1, height)[0]


def stacked(n: int, height: float, ratios: tuple[float, ...] | None = None, *, shared: bool = True) -> list[Any]:
    """`n` axes of a new figure, one above the other, over one horizontal axis (or, not `shared`, each over its own)."""
    try:
        from matplotlib import pyplot
    except ImportError:
        raise ConfigError("plots need matplotlib, which is not installed: install stepaudio[notebook]") from None
    _, made = pyplot.subplots(
        n, 1, figsize=(WIDTH, height), sharex=shared, squeeze=False, layout="constrained", height_ratios=ratios
    )
    return list(made[:, 0])


def color_bar(image: Any, ax: Any, label: str) -> Any:
    """A bar beside `ax` (one, or a list) that says what the shades of `image` mean."""
    return image.figure.colorbar(image, ax=ax, label=label, pad=0.01)


def legend(ax: Any) -> None:
    """What the marks mean, to the right of the figure, where it hides nothing."""
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0)


def diverging() -> Any:
    """The colour map of signed differences, in as many steps as an eye can tell, with white in the middle."""
    from matplotlib import colormaps

    return colormaps[DIVERGING].resampled(LEVELS)


def hatch_negative(ax: Any, x: Sequence[float], y: Sequence[float], values: Any, bound: float) -> Any:
    """Dots where `values` (len(y), len(x)) lie below zero by `HATCH_FROM` of `bound` or more: the sign, in grey."""
    from matplotlib import rc_context

    with rc_context({"hatch.linewidth": 0.4}):
        return ax.contourf(
            x, y, values, levels=[-2 * bound, -HATCH_FROM * bound], colors="none", hatches=[NEGATIVE_HATCH]
        )


def plain(text: str) -> str:
    r"""`text` letter by letter: dollars begin no formula, and what no font draws is written as its code (\u4f60).

    To see Chinese as such, name an installed font that has it: `matplotlib.rcParams["font.family"].append(...)`.
    """
    drawable = _glyphs(tuple(_families()))
    escaped = (c if ord(c) in drawable else c.encode("unicode_escape").decode("ascii") for c in text)
    return "".join(escaped).replace("$", r"\$")


def _families() -> list[str]:
    from matplotlib import rcParams

    return list(rcParams["font.family"])


@lru_cache(maxsize=4)
def _glyphs(families: tuple[str, ...]) -> frozenset[int]:
    """Code points that the fonts of these families can draw."""
    from matplotlib import font_manager

    fonts = [font_manager.get_font(font_manager.findfont(font_manager.FontProperties(family=[f]))) for f in families]
    return frozenset(code for font in fonts for code in font.get_charmap())


def need(ok: bool, message: str) -> None:
    """Refuse data that cannot be drawn.

    Raises
    ------
    ConfigError
        Not `ok`.
    """
    if not ok:
        raise ConfigError(message)


def png(ax: Any) -> bytes:
    """The figure that `ax` is in, as a PNG file; the figure is closed, so that repeated drawing fills no memory."""
    from io import BytesIO

    from matplotlib import pyplot

    file = BytesIO()
    ax.figure.savefig(file, format="png", dpi=100)
    pyplot.close(ax.figure)
    return file.getvalue()
