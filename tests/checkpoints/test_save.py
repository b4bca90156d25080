"""Checkpoints written: read back by the safetensors library, replaced whole, or not touched."""

import itertools
import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from safetensors.numpy import load_file
from small_checkpoint import NAMES, SMALL, arrays, as_held, parameters

from stepaudio.checkpoints import load as weights
from stepaudio.checkpoints.header import read_header
from stepaudio.checkpoints.load import load_weights, validate_weights
from stepaudio.checkpoints.save import save_checkpoint
from stepaudio.errors import WeightsError
from stepaudio.models.speech_lm import StepAudioConfig, StepAudioNet


def held_arrays() -> dict[str, mx.array]:
    return {name: mx.array(as_held(name, array)) for name, array in arrays().items()}


def contents(path: Path) -> dict[str, np.ndarray]:
    """All tensors of a folder, read by the safetensors library."""
    return {name: array for file in path.glob("*.safetensors") for name, array in load_file(file).items()}


@pytest.mark.parametrize("limit", [None, 9000, 1])
def test_saved_files_are_the_published_layout(tmp_path, limit):
    files = save_checkpoint(tmp_path / "m", SMALL, held_arrays(), limit)
    read = contents(tmp_path / "m")
    assert set(read) == set(NAMES) and all(np.array_equal(read[name], array) for name, array in arrays().items())
    assert StepAudioConfig.from_file(tmp_path / "m") == SMALL
    assert validate_weights(tmp_path / "m").whole  # which also holds the index against the shards
    assert len(files) == {None: 1, 1: len(NAMES) + 1}.get(limit, len(files)) and all(f.is_file() for f in files)
    if limit == 9000:
        payload = [sum(info.nbytes for info in read_header(f).values()) for f in files[:-1]]
        assert len(payload) > 2 and max(payload) <= 9000
    assert not list((tmp_path / "m").glob(".saving*"))


@pytest.mark.parametrize(("first", "second"), list(itertools.permutations([None, 9000, 20000], 2)))
def test_a_new_save_replaces_the_old_one(tmp_path, first, second):
    save_checkpoint(tmp_path, SMALL, {name: array * 0 for name, array in held_arrays().items()}, first)
    files = save_checkpoint(tmp_path, SMALL, held_arrays(), second)
    assert set(tmp_path.iterdir()) == {*files, tmp_path / "config.json"}
    read = contents(tmp_path)
    assert all(np.array_equal(read[name], array) for name, array in arrays().items())


@pytest.mark.parametrize("limit", [None, 9000])
def test_a_failed_save_leaves_the_old_checkpoint(tmp_path, monkeypatch, limit):
    save_checkpoint(tmp_path, SMALL, held_arrays(), limit)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}

    def full_disk(path, tensors, metadata):
        Path(path).write_bytes(b"half")
        raise RuntimeError("disk full")

    monkeypatch.setattr(weights.mx, "save_safetensors", full_disk)
    with pytest.raises(WeightsError, match="could not be written .disk full"):
        save_checkpoint(tmp_path, SMALL, held_arrays(), limit)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_equal_config_is_left_alone(tmp_path):
    text = json.dumps(SMALL.to_dict() | {"architectures": ["StepAudio2ForCausalLM"]})
    (tmp_path / "config.json").write_text(text)
    save_checkpoint(tmp_path, SMALL, held_arrays())
    assert (tmp_path / "config.json").read_text() == text
    (tmp_path / "config.json").write_text("{}")
    save_checkpoint(tmp_path, SMALL, held_arrays())
    assert StepAudioConfig.from_file(tmp_path) == SMALL


def test_only_the_layout_can_be_saved(tmp_path):
    good = held_arrays()
    for change, message in (
        ({"extra": mx.zeros(3)}, "the unknown extra"),
        ({"encoder.conv1.weight": mx.array(arrays()["encoder.conv1.weight"])}, "encoder.conv1.weight is"),
        ({"lm_head.weight": good["lm_head.weight"].astype(mx.int32)}, "lm_head.weight .*int32"),
    ):
        with pytest.raises(WeightsError, match=message):
            save_checkpoint(tmp_path / "m", SMALL, good | change)
    with pytest.raises(WeightsError, match="lacks lm_head.weight"):
        save_checkpoint(tmp_path / "m", SMALL, {n: a for n, a in good.items() if n != "lm_head.weight"})
    with pytest.raises(WeightsError, match="must be positive, found 0"):
        save_checkpoint(tmp_path / "m", SMALL, good, 0)
    assert not (tmp_path / "m").exists()


def test_the_nets_survive_save_and_load(tmp_path):
    net, other = StepAudioNet(SMALL), StepAudioNet(SMALL)
    save_checkpoint(tmp_path, SMALL, dict(tree_flatten(net.parameters())), 20000)
    load_weights(other, tmp_path, SMALL)
    expected = parameters(net)
    assert all(np.array_equal(array, expected[name]) for name, array in parameters(other).items())
