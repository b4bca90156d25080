"""Draw the curves of token2wav's trainings, one picture a page, from `data/recipe/token2wav/curves`.

    python docs/plot_training.py

Each row of a curve is the mean of the 100 steps before it, as the log of a run holds it; `seconds` are those of the
schedule, from the start of the run. The first 300 steps, in which the rate rises, are left out of the pictures.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

DOCS = Path(__file__).resolve().parent
CURVES = DOCS.parent / "data" / "recipe" / "token2wav" / "curves"
WARMUP = 300  # steps
SMOOTHED = 9  # rows, in the moving mean of the flow matching loss
COLORS = 16  # greys of thin lines and letters
TITLE, SMALL = 9, 7  # points


class Panel(NamedTuple):
    """One pair of axes: which column of which runs, the factor it is shown by, and against what."""

    title: str
    net: str
    lines: Mapping[str, tuple[str, str]]  # label -> (run, column)
    factor: float = 1.0
    against: str = "step"
    mean_of: int = 1  # rows


def of_runs(column: str, *runs: str) -> dict[str, tuple[str, str]]:
    """One column of several runs, each by its own name."""
    return {run: (run, column) for run in runs}


BLOCKS = ("fourth, 4 blocks", "fourth, 6 blocks", "third")  # the solid line, the first, is the bundled net's
CODES = ("fourth, codes of 4 blocks", "fourth, codes of 6 blocks", "third")
SIXTH = ("sixth, weight 1", "sixth, weight 0.3", "sixth, energy distance alone", "seventh")
CRITICS = {
    "critics, of true sound": ("sixth, weight 1", "critics_right"),
    "critics, of made sound": ("sixth, weight 1", "critics_wrong"),
    "vocoder, of its scores": ("sixth, weight 1", "scores"),
}
TOKENIZER, RIGHT, VELOCITY = "speech_tokenizer", "Frames with the right phoneme", "Flow matching loss"
NEPERS = "mean distance (nepers)"
PAGES = {
    "training_speech_tokenizer": (
        Panel(f"{RIGHT}, clean (%)", TOKENIZER, of_runs("accuracy", *BLOCKS), 100),
        Panel(f"{RIGHT}, clean (%)", TOKENIZER, of_runs("accuracy", *BLOCKS), 100, "seconds"),
        Panel(f"{RIGHT}, in noise (%)", TOKENIZER, of_runs("accuracy_in_noise", *BLOCKS), 100),
        Panel("Codes that noise leaves alone (%)", TOKENIZER, of_runs("same_codes", *BLOCKS), 100),
    ),
    "training_flow": (
        Panel(VELOCITY, "flow", of_runs("velocity", *CODES), mean_of=SMOOTHED),
        Panel(f"Mel of its conformer, {NEPERS}", "flow", of_runs("encoder", *CODES)),
        Panel(
            f"{VELOCITY}, two that went on from the fourth",
            "flow",
            of_runs("velocity", "more whispering", "with likeness"),
            mean_of=SMOOTHED,
        ),
        Panel("Speaker encoder: clips of the right voice (%)", "speaker", of_runs("accuracy", "third"), 100),
    ),
    "training_vocoder": (
        Panel("Distance of spectra", "vocoder", of_runs("spectra", "fourth", "fifth")),
        Panel("Energy distance of spectra", "vocoder", of_runs("spectra", *SIXTH)),
        Panel(f"Mel, {NEPERS}", "vocoder", of_runs("mel", SIXTH[0], "fifth", "fourth", "seventh")),
        Panel("Squared errors of scores, sixth, weight 1", "vocoder", CRITICS),
    ),
}


def curves(net: str) -> dict[str, dict[str, np.ndarray]]:
    """Run -> column -> its numbers, from the end of the warm-up on; what a run has not measured is nan."""
    found: dict[str, dict[str, list[float]]] = {}
    with (CURVES / f"{net}.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            columns = found.setdefault(row.pop("run"), {name: [] for name in row})
            for name, value in row.items():
                columns[name].append(float(value or "nan"))
    kept = {run: np.asarray(columns["step"]) >= WARMUP for run, columns in found.items()}
    return {run: {name: np.asarray(v)[kept[run]] for name, v in columns.items()} for run, columns in found.items()}


def smoothed(values: np.ndarray, rows: int) -> np.ndarray:
    """The mean of `rows` values around each, of fewer at both ends."""
    ones = np.ones(rows)
    return np.convolve(values, ones, "same") / np.convolve(np.ones(len(values)), ones, "same")


def draw(ax: Any, panel: Panel) -> None:
    """One panel."""
    from stepaudio.viz import style

    runs, thousand = curves(panel.net), 1000 if panel.against == "step" else 1
    for (label, (run, column)), line, color in zip(panel.lines.items(), style.LINES, style.SHADES, strict=False):
        values = panel.factor * smoothed(runs[run][column], panel.mean_of)
        ax.plot(runs[run][panel.against] / thousand, values, line, color=color, linewidth=1.1, label=label)
    ax.set_title(panel.title, fontsize=TITLE)
    ax.set_xlabel("thousand steps" if panel.against == "step" else "seconds", fontsize=SMALL)
    ax.tick_params(labelsize=SMALL)
    ax.legend(fontsize=SMALL, frameon=False)


def picture(panels: Sequence[Panel]) -> bytes:
    """Four panels, two by two, as a PNG file of few greys."""
    from matplotlib import pyplot
    from PIL import Image

    from stepaudio.viz import style

    _, made = pyplot.subplots(2, 2, figsize=(style.WIDTH, 5.2), layout="constrained")
    for ax, panel in zip(made.flat, panels, strict=True):
        draw(ax, panel)
    file = io.BytesIO()
    Image.open(io.BytesIO(style.png(made.flat[0]))).convert("RGB").quantize(COLORS).save(file, "PNG", optimize=True)
    return file.getvalue()


if __name__ == "__main__":
    for name, panels in PAGES.items():
        (DOCS / "pictures" / f"{name}.png").write_bytes(picture(panels))
