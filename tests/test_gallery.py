"""The gallery shows every figure of the notebooks as they are stored: same page, same files, same pictures."""

import importlib.util
import io
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
Image = pytest.importorskip("PIL.Image", reason="pictures need the extra `notebook`")
CLOSE = 3.0  # of 255, mean over a thumbnail: what few colours, or another version of the resizer, may change


@pytest.fixture(scope="module")
def gallery():
    spec = importlib.util.spec_from_file_location("make_gallery", ROOT / "docs" / "make_gallery.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def found(gallery):
    return [figure for path in sorted(gallery.NOTEBOOKS.glob("*.ipynb")) for figure in gallery.figures(path)]


def pixels(data, width):
    image = Image.open(io.BytesIO(data)).convert("RGB")
    return np.asarray(image.resize((width, round(image.height * width / image.width)), Image.Resampling.LANCZOS), float)


def test_the_page_lists_every_figure(gallery, found):
    assert len(found) > 20 and {f.notebook for f in found} == {p.stem for p in gallery.NOTEBOOKS.glob("*.ipynb")}
    assert gallery.page(found) == (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
    assert {f.file for f in found} == {p.name for p in (gallery.PICTURES / "gallery").glob("*.png")}


def test_each_thumbnail_shows_its_figure(gallery, found):
    for figure in found:
        stored = pixels((gallery.PICTURES / "gallery" / figure.file).read_bytes(), gallery.THUMBNAIL)
        drawn = pixels(figure.png, gallery.THUMBNAIL)
        assert stored.shape == drawn.shape and np.abs(stored - drawn).mean() < CLOSE, figure.file


def test_the_pictures_are_small(gallery):
    assert sum(path.stat().st_size for path in gallery.PICTURES.rglob("*.png")) < 1_000_000


def test_a_figure_knows_its_heading_and_function(gallery, tmp_path):
    path = tmp_path / "10_draw_it.ipynb"
    path.write_text(
        '{"cells": [{"cell_type": "markdown", "source": ["# Title?\\n", "## Part\\n"]},'
        ' {"cell_type": "code", "source": "x = viz.mel(a)", "outputs": [{"data": {"image/png": "AAAA"}}]}]}',
        encoding="utf-8",
    )
    assert list(gallery.figures(path)) == [gallery.Figure("10_draw_it", 1, "Part", "mel", b"\0\0\0")]
