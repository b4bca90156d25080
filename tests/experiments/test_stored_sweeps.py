"""The tables in data/sweeps are those of their grids, of the clips beside them, and of the bundled weights."""

import csv
import json
from functools import cache
from pathlib import Path

import pytest

from stepaudio.evaluation.intervals import paired_difference
from stepaudio.experiments.grid import Grid, Setting
from stepaudio.experiments.provenance import file_hash, weights_hash
from stepaudio.experiments.store import read_table

SWEEPS = Path(__file__).resolve().parents[2] / "data" / "sweeps"
GRIDS = sorted(SWEEPS.glob("*.json"))
STORED = ("clips", "long")  # folders of clips; other recordings are made anew from these


@cache
def rows_of(name: str) -> list[dict]:
    """Of a stored table, read once."""
    pytest.importorskip("pyarrow", reason="stored tables need the extra `notebook`")
    return read_table(SWEEPS / f"{name}.parquet").rows


def texts(folder: Path) -> dict[str, str]:
    with open(folder / "manifest.tsv", encoding="utf-8", newline="") as file:
        return {row["file"]: row["text"] for row in csv.DictReader(file, delimiter="\t")}


@pytest.fixture(scope="module", params=GRIDS, ids=lambda p: p.stem)
def stored(request):
    return json.loads(request.param.read_text(encoding="utf-8")), rows_of(request.param.stem)


def test_every_run_of_the_grid_is_there_once(stored):
    grid, rows = stored
    found = sorted((r["clip"], r["setting"], r["seed"], r["defect"]) for r in rows)
    clips = sorted({r["clip"] for r in rows})
    assert len(clips) >= 40 and found == sorted(
        (clip, setting, seed, defect)
        for clip in clips
        for setting in grid["settings"]
        for seed in grid.get("seeds", [0])
        for defect in grid.get("faults", grid.get("defects", ["none"]))
    )
    assert not any(r["error"] for r in rows)


def test_settings_are_those_of_the_grid(stored):
    grid, rows = stored
    found = {(r["setting"], json.dumps(r["setting_json"])) for r in rows}
    assert {name for name, _ in found} == set(grid["settings"])
    for name, spec in found:
        assert Setting.of(json.loads(spec)) == Setting.of(grid["settings"][name]), name


def test_grids_can_be_run_again(stored, request):
    """Each reads back, and its trials bear the names of the stored rows, old key or new."""
    grid, rows = stored
    if grid["clips"].split("/")[0] not in STORED:
        pytest.skip("its recordings are joined anew, not stored")
    path = request.node.callspec.params["stored"]
    found = {(t.clip_name, t.setting_name, t.seed, t.fault) for t in Grid.from_file(path).trials()}
    assert found == {(r["clip"], r["setting"], r["seed"], r["defect"]) for r in rows}


def test_runs_were_made_with_the_bundled_weights(stored, nano):
    _, rows = stored
    assert {r["weights_hash"] for r in rows} == {weights_hash(nano)}


def test_runs_used_the_clips_that_are_there(stored):
    grid, rows = stored
    if grid["clips"].split("/")[0] not in STORED:
        pytest.skip("its recordings are joined anew, not stored")
    folder = (SWEEPS / grid["clips"]).parent
    assert {r["clip"]: (r["clip_hash"], r["expected"]) for r in rows} == {
        name: (file_hash(folder / name), text) for name, text in texts(folder).items()
    }


@pytest.mark.parametrize("name", STORED)
def test_clips_are_those_of_the_manifest(name):
    found = texts(SWEEPS / name)
    assert sorted(found) == sorted(p.name for p in (SWEEPS / name).glob("*.ogg")) and len(found) >= 40


def of(rows, setting, kinds):
    return [r for r in rows if r["setting"] == setting and r["clip"].startswith(kinds)]


@pytest.mark.parametrize("length", ["windows_3s", "windows_20s", "windows_60s"])
def test_the_default_costs_less_than_a_point_on_continuous_speech(length):
    """What docs/decoding.md says of the window: 8 tokens do, 16 and the whole run do not; nothing loops."""
    rows = rows_of(length)
    speech = ("prose", "dictation", "lists", "minute", "sentence")
    plain = of(rows, "none", speech)
    cost = {name: paired_difference(of(rows, name, speech), plain, "loop_free_wer")
            for name in ("planned", "both, last 16", "literal")}  # fmt: skip
    assert len(plain) >= 40 and cost["planned"].low <= 0 and cost["planned"].high <= 0.0075
    assert cost["both, last 16"].low > 0 and cost["literal"].low > (0.001 if length == "windows_3s" else 0.07)
    assert not any(r["loops"] for r in of(rows, "planned", ""))


def test_either_half_of_the_clips_chooses_the_window_of_the_default():
    """The widest window whose estimated cost is below half a point in all lengths that have it."""
    speech = ("prose", "dictation", "lists", "minute", "sentence")
    tables = [rows_of(name) for name in ("windows_3s", "windows_20s", "windows_60s")]
    for half in (0, 1):
        fits = []
        for window in ("both, last 4", "planned", "both, last 16", "literal"):
            costs = []
            for rows in tables:
                chosen = set(sorted({r["clip"] for r in of(rows, "none", speech)})[half::2])
                ruled, plain = ([r for r in of(rows, s, speech) if r["clip"] in chosen] for s in (window, "none"))
                costs += [paired_difference(ruled, plain, "loop_free_wer").estimate] if ruled else []
            fits += [window] * (max(costs) <= 0.005)
        assert fits[-1] == "planned"
