"""The tables in data/sweeps are those of their grids, of the clips beside them, and of the bundled weights."""

import csv
import json
from pathlib import Path

import pytest

from stepaudio.experiments.grid import Grid, Setting
from stepaudio.experiments.provenance import file_hash, weights_hash
from stepaudio.experiments.store import read_table

SWEEPS = Path(__file__).resolve().parents[2] / "data" / "sweeps"
GRIDS = sorted(SWEEPS.glob("*.json"))
CLIPS = SWEEPS / "clips"


def texts() -> dict[str, str]:
    with open(CLIPS / "manifest.tsv", encoding="utf-8", newline="") as file:
        return {row["file"]: row["text"] for row in csv.DictReader(file, delimiter="\t")}


@pytest.fixture(scope="module", params=GRIDS, ids=lambda p: p.stem)
def stored(request):
    pytest.importorskip("pyarrow", reason="stored tables need the extra `notebook`")
    return json.loads(request.param.read_text(encoding="utf-8")), read_table(request.param.with_suffix(".parquet")).rows


def test_every_run_of_the_grid_is_there_once(stored):
    grid, rows = stored
    found = sorted((r["clip"], r["setting"], r["seed"], r["defect"]) for r in rows)
    clips = sorted({r["clip"] for r in rows})
    assert len(clips) >= 40 and found == sorted(
        (clip, setting, seed, defect)
        for clip in clips
        for setting in grid["settings"]
        for seed in grid.get("seeds", [0])
        for defect in grid.get("defects", ["none"])
    )
    assert not any(r["error"] for r in rows)


def test_settings_are_those_of_the_grid(stored):
    grid, rows = stored
    meant = {name: Setting.of(spec) for name, spec in grid["settings"].items()}
    assert {r["setting"]: Setting.of(r["setting_json"]) for r in rows} == meant


def test_grids_can_be_run_again(stored, request):
    """Each reads back, and its trials bear the names of the stored rows, old key or new."""
    grid, rows = stored
    if grid["clips"] != "clips/manifest.tsv":
        pytest.skip("its recordings are joined anew, not stored")
    path = request.node.callspec.params["stored"]
    found = {(t.clip_name, t.setting_name, t.seed, t.fault) for t in Grid.from_file(path).trials()}
    assert found == {(r["clip"], r["setting"], r["seed"], r["defect"]) for r in rows}


def test_runs_were_made_with_the_bundled_weights(stored, nano):
    _, rows = stored
    assert {r["weights_hash"] for r in rows} == {weights_hash(nano)}


def test_runs_used_the_clips_that_are_there(stored):
    grid, rows = stored
    if grid["clips"] != "clips/manifest.tsv":
        pytest.skip("its recordings are joined anew, not stored")
    assert {r["clip"]: (r["clip_hash"], r["expected"]) for r in rows} == {
        name: (file_hash(CLIPS / name), text) for name, text in texts().items()
    }


def test_clips_are_those_of_the_manifest():
    assert sorted(texts()) == sorted(p.name for p in CLIPS.glob("*.ogg")) and len(texts()) >= 40
