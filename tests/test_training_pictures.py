"""The pages on trainings show their own picture, of the stored curves, and say where these curves end."""

import importlib.util
import io
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
pyplot = pytest.importorskip("matplotlib.pyplot", reason="pictures need the extra `notebook`")
Image = pytest.importorskip("PIL.Image", reason="pictures need the extra `notebook`")
CLOSE = 3.0  # of 255, mean over a picture: what another version of fonts and lines may change
LARGEST = 60_000  # bytes
ENDS = [  # page, panel, how its numbers are written
    ("training_speech_tokenizer", 0, "{:.1f} %"),
    ("training_speech_tokenizer", 2, "{:.1f} %"),
    ("training_speech_tokenizer", 3, "{:.0f} %"),
    ("training_flow", 1, "{:.2f}"),
    ("training_flow", 3, "{:.1f} %"),
    ("training_vocoder", 2, "{:.2f}"),
]


@pytest.fixture(scope="module")
def plots():
    spec = importlib.util.spec_from_file_location("plot_training", DOCS / "plot_training.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def shades(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("L"), float)


def test_each_page_shows_its_picture_and_no_other_page_is_drawn(plots):
    assert {p.stem for p in (DOCS / "pictures").glob("training_*.png")} == set(plots.PAGES)
    for page in plots.PAGES:
        assert f"](pictures/{page}.png)" in (DOCS / f"{page}.md").read_text(encoding="utf-8")


def test_pictures_are_those_of_the_stored_curves(plots):
    for page, panels in plots.PAGES.items():
        stored, drawn = (DOCS / "pictures" / f"{page}.png").read_bytes(), plots.picture(panels)
        assert len(stored) < LARGEST
        assert shades(stored).shape == shades(drawn).shape and np.abs(shades(stored) - shades(drawn)).mean() < CLOSE


@pytest.mark.parametrize(("page", "number", "written"), ENDS)
def test_the_pages_say_where_the_curves_end(plots, page, number, written):
    """The numbers of the tables were written by hand, from the logs."""
    figure, ax = pyplot.subplots()
    plots.draw(ax, plots.PAGES[page][number])
    ends = [written.format(line.get_ydata()[-1] + 1e-6) for line in ax.lines]
    pyplot.close(figure)
    table = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    assert ends and [end for end in ends if f"| {end} |" not in table and f"| {end} both |" not in table] == []
