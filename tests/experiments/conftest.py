"""Grids: one for a fake model, with many trials, and one for a real model of tiny size."""

import json
import os
from pathlib import Path

import pytest
import soundfile
import tiny

from stepaudio.evaluation.manifest import Clip
from stepaudio.experiments.grid import Grid
from stepaudio.experiments.sweep import run_sweep
from stepaudio.experiments.table import Table

SETTINGS = {"planned": {}, "hot": {"sampling": {"base": "greedy", "temperature": 0.8}, "max_tokens": 40}}


@pytest.fixture
def grid_file(tmp_path, tiny_checkpoint) -> Path:
    """12 clips x 2 settings x 5 seeds, on disk; the recordings hold nothing, the fake model never reads them."""
    for i in range(12):
        (tmp_path / f"clip{i}.wav").write_bytes(bytes([i]))
    clips = [{"file": f"clip{i}.wav", "text": f"said {i}"} for i in range(12)]
    grid = {
        "model": os.path.relpath(tiny_checkpoint, tmp_path),
        "clips": clips,
        "settings": SETTINGS,
        "seeds": [0, 1, 2, 3, 4],
    }
    path = tmp_path / "grid.json"
    path.write_text(json.dumps(grid), encoding="utf-8")
    return path


@pytest.fixture
def grid(grid_file) -> Grid:
    return Grid.from_file(grid_file)


@pytest.fixture(scope="module")
def real_grid(tmp_path_factory, tiny_checkpoint) -> Grid:
    """Two recordings, transcribed by the tiny model itself."""
    tmp_path = tmp_path_factory.mktemp("real")
    for i in range(2):
        soundfile.write(tmp_path / f"{i}.wav", tiny.noise(0.4 + 0.2 * i, seed=i), 16_000)
    settings = {
        "greedy": {"sampling": "greedy", "max_tokens": 6},
        "hot": {"sampling": {"temperature": 1.0}, "max_tokens": 6, "cache": {"kind": "window", "max_len": 8}},
    }
    return Grid([Clip(tmp_path / f"{i}.wav", "the cat") for i in range(2)], settings, tiny_checkpoint, seeds=(1, 2))


@pytest.fixture(scope="module")
def real_table(real_grid, tmp_path_factory) -> Table:
    return run_sweep(real_grid, tmp_path_factory.mktemp("store") / "s.jsonl", progress=False)
