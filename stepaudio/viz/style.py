"""Where a plot goes: the one place that imports matplotlib, and the looks that all plots share. Knows no data."""

from __future__ import annotations

from ..errors import ConfigError

WIDTH = 8.0  # inches
DARK, MIDDLE, LIGHT = "0.0", "0.45", "0.75"  # shades that stay apart in print
LINES = ("-", "--", ":", "-.")  # told apart by pattern, not by colour
SHADES = (DARK, DARK, MIDDLE, MIDDLE)
MARKERS = "osD^vP*X<>"
IMAGE = "Greys"  # more is darker


def axes(ax=None, height: float = 3.0):
    """`ax` itself, or the only axes of a new figure `height` inches high.

    Raises
    ------
    ConfigError
        matplotlib is not installed.
    """
    return ax if ax is not None else stacked(1, height)[0]


def stacked(n: int, height: float, ratios: tuple[float, ...] | None = None, *, shared: bool = True) -> list:
    """`n` axes of a new figure, one above the other, over one horizontal axis (or, not `shared`, each over its own)."""
    try:
        from matplotlib import pyplot
    except ImportError:
        raise ConfigError("plots need matplotlib, which is not installed: install stepaudio[notebook]") from None
    figure, made = pyplot.subplots(
        n, 1, figsize=(WIDTH, height), sharex=shared, squeeze=False, layout="constrained", height_ratios=ratios
    )
    return list(made[:, 0])


def shade(image, ax, label: str):
    """A bar beside `ax` (one, or a list) that says what the shades of `image` mean."""
    return image.figure.colorbar(image, ax=ax, label=label, pad=0.01)


def legend(ax) -> None:
    """What the marks mean, to the right of the picture, where it hides nothing."""
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0)


def need(ok: bool, message: str) -> None:
    """Refuse data that cannot be drawn."""
    if not ok:
        raise ConfigError(message)


def png(ax) -> bytes:
    """The figure that `ax` is in, as a PNG file; the figure is closed, so that repeated drawing fills no memory."""
    from io import BytesIO

    from matplotlib import pyplot

    file = BytesIO()
    ax.figure.savefig(file, format="png", dpi=100)
    pyplot.close(ax.figure)
    return file.getvalue()
