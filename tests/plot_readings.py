"""What a test reads off matplotlib Axes."""

from stepaudio.viz.style import ALERT


def legend(ax):
    return [t.get_text() for t in ax.get_legend().get_texts()]


def image(ax):
    return ax.images[0].get_array() if ax.images else ax.collections[0].get_array()


def bar_label(ax):
    """What the shades mean: the label of the only other axes of the figure that has no x label."""
    return next(a.get_ylabel() for a in ax.figure.axes if a.get_label() == "<colorbar>")


def is_grey(ax):
    """Whether all is grey but what may be `ALERT`: that red is for marks of a shape of their own."""
    from matplotlib.colors import to_rgb

    lines = [
        c
        for line in ax.get_lines()
        for c in (line.get_color(), line.get_markerfacecolor(), line.get_markeredgecolor())
        if c != "none"
    ]
    patches = [p.get_facecolor()[:3] for p in ax.patches if p.get_fill()]
    patches += [p.get_edgecolor()[:3] for p in ax.patches if p.get_linewidth()]
    shaded = [m for m in (*ax.images, *ax.collections) if m.get_array() is not None]
    maps = [m.cmap(x)[:3] for m in shaded for x in (0.0, 0.5, 1.0)]
    found = [tuple(round(v, 6) for v in to_rgb(c)) for c in (*lines, *patches, *maps)]
    red = tuple(round(v, 6) for v in to_rgb(ALERT))
    return all(len(set(c)) == 1 or c == red for c in found)


def mesh(ax):
    """(x edges, y edges, values) of the mesh in the axes."""
    (drawn,) = [c for c in ax.collections if type(c).__name__ == "QuadMesh"]
    return drawn.get_coordinates()[0, :, 0], drawn.get_coordinates()[:, 0, 1], drawn.get_array()


def bar_of(ax):
    """The axes of the colour bar."""
    return next(a for a in ax.figure.axes if a.get_label() == "<colorbar>")
