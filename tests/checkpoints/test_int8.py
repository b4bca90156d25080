"""Weights in eight bits, each row with its scale: written and read again bit by bit, against the products in numpy."""

import json

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from small_checkpoint import NAMES, SMALL, arrays, as_held, folder_with, parameters

from stepaudio.checkpoints.header import SINGLE_FILE
from stepaudio.checkpoints.int8 import LARGEST, quantised, widened, widened_pairs
from stepaudio.checkpoints.load import load_weights, validate_weights
from stepaudio.checkpoints.save import save_checkpoint
from stepaudio.errors import WeightsError
from stepaudio.models.speech_lm import StepAudioNet
from stepaudio.train import nano

MATRICES = ["encoder.conv1.weight", "encoder.blocks.0.mlp.0.weight", "lm_head.weight"]


@pytest.mark.parametrize("seed", range(20))
def test_what_was_read_is_written_again_bit_by_bit(seed):
    """Rows from 1e-30 to 1e30; every product is exact, so float64 says the same."""
    rng = np.random.default_rng(seed)
    shape = [(40, 7), (3, 5, 4), (1, 1), (9,)][seed % 4]
    size = 10 ** rng.uniform(-30, 30, (shape[0], *[1] * (len(shape) - 1)))
    values = (rng.normal(size=shape) * size).astype(np.float32)
    values[0] *= seed % 3 > 0  # sometimes a row of zeros
    numbers, scale = quantised(values)
    read = widened(numbers, scale)
    rows = scale.astype(np.float64).reshape(-1, *[1] * (len(shape) - 1))
    assert (read == numbers * rows).all() and np.abs(numbers.astype(int)).max() <= LARGEST
    assert (np.abs(read - values.astype(np.float64)) <= rows / 2 * (1 + 1e-6)).all()
    again, same = quantised(read)
    assert np.array_equal(widened(again, same), read)
    assert np.array_equal(again, numbers) and np.array_equal(same, scale)


def held_arrays():
    return {name: mx.array(as_held(name, array)) for name, array in arrays().items()}


@pytest.fixture
def folder(tmp_path):
    save_checkpoint(tmp_path / "m", SMALL, held_arrays(), int8=MATRICES)
    return tmp_path / "m"


def test_a_checkpoint_in_eight_bits_is_whole_and_small(folder):
    stored = load_file(folder / SINGLE_FILE)
    for name in MATRICES:  # as PyTorch has them, a scale for each row
        rows = stored[f"{name}_scale"]
        assert stored[name].dtype == np.int8 and rows.shape == arrays()[name].shape[:1]
        wanted = stored[name] * rows.reshape(-1, *[1] * (stored[name].ndim - 1))
        np.testing.assert_allclose(wanted, arrays()[name], atol=np.abs(arrays()[name]).max() / 253)
    report = validate_weights(folder, values=True)
    assert report.whole and not report.unexpected and report.exit_status == 0
    described = {v.name: v for v in report.values}
    assert set(described) == set(NAMES)
    for name in MATRICES:
        values = widened(stored[name], stored[f"{name}_scale"])
        assert described[name].count == values.size and described[name].mean == pytest.approx(values.mean(), abs=1e-6)
        assert described[name].norm == pytest.approx(np.linalg.norm(values), rel=1e-5)
    parts = {part.name: part for part in report.components}
    assert parts["lm_head"].dtypes == {"I8 with scales": 1}
    assert parts["lm_head"].bytes == stored["lm_head.weight"].size + 4 * len(stored["lm_head.weight_scale"])
    assert "I8 with scales x 1" in report.table()


@pytest.mark.parametrize("dtype", [None, mx.float32, mx.float16, mx.bfloat16])
@pytest.mark.parametrize("spare", [False, True])
def test_it_is_loaded_as_its_products(folder, dtype, spare):
    stored = load_file(folder / SINGLE_FILE)
    if spare:  # of a type that mlx does not read
        save_file(stored | {"spare": np.ones(3)}, folder / SINGLE_FILE)
    net = StepAudioNet(SMALL)
    assert load_weights(net, folder, SMALL, dtype).whole
    for name, held in parameters(net).items():
        values = arrays()[name]
        if name in MATRICES:
            values = widened(stored[name], stored[f"{name}_scale"])
        wanted = mx.array(as_held(name, values)).astype(dtype or mx.float32)
        np.testing.assert_array_equal(held, np.array(wanted.astype(mx.float32)), err_msg=name)


@pytest.mark.parametrize("kind", [np.float16, np.float32])
def test_scales_may_lie_in_another_file_and_names_may_be_others(folder, tmp_path, kind):
    stored = load_file(folder / SINGLE_FILE)
    stored = {f"outer.{n}": a.astype(kind) if n.endswith("_scale") else a for n, a in stored.items()}
    shards = {"b.safetensors": [n for n in stored if n.endswith("_scale")], "a.safetensors": []}
    shards["a.safetensors"] = [n for n in stored if n not in shards["b.safetensors"]]
    for file, names in shards.items():
        save_file({n: stored[n] for n in names}, folder / file)
    index = {"weight_map": {n: file for file, names in shards.items() for n in names}}
    (folder / SINGLE_FILE).unlink()
    (folder / f"{SINGLE_FILE}.index.json").write_text(json.dumps(index))
    net = StepAudioNet(SMALL)
    assert load_weights(net, folder, SMALL, rename={"outer.": ""}).whole
    one = {"outer.lm_head.weight": "lm_head.weight", "outer.": ""}
    assert load_weights(net, folder, SMALL, rename=one).whole
    wanted = stored["outer.lm_head.weight"] * stored["outer.lm_head.weight_scale"].astype(np.float32)[:, None]
    np.testing.assert_array_equal(np.array(net.lm_head.weight), wanted)


def test_a_tensor_renamed_takes_its_scales_along(folder):
    stored = load_file(folder / SINGLE_FILE)
    stored |= {"head": stored.pop("lm_head.weight"), "head_scale": stored.pop("lm_head.weight_scale")}
    save_file(stored, folder / SINGLE_FILE)
    net = StepAudioNet(SMALL)
    assert load_weights(net, folder, SMALL, rename={"head": "lm_head.weight"}).whole
    np.testing.assert_array_equal(np.array(net.lm_head.weight), widened(stored["head"], stored["head_scale"]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("lm_head.weight_scale"), r"unusable dtype: lm_head.weight \(I8\); accepted .* I8 with scales"),
        (lambda t: t.update({"lm_head.weight_scale": np.ones(3, np.float32)}), r"scales F32 of shape \(3,\); expected"),
        (lambda t: t.update({"lm_head.weight_scale": np.ones((64, 1), np.float32)}), r"scales F32 of shape \(64, 1\)"),
        (lambda t: t.update({"lm_head.weight_scale": np.ones(64)}), r"scales F64 of shape \(64,\); expected"),
        (lambda t: t.update({"lm_head.weight_scale": np.ones(64, np.int8)}), r"scales I8 of shape"),
        (lambda t: t.update({"lm_head.weight": np.array(1, np.int8)}), r"I8 of shape \(\).* expected .*\(rows,\)"),
    ],
)
def test_numbers_without_fitting_scales_are_refused(folder, change, message):
    stored = load_file(folder / SINGLE_FILE)
    change(stored)
    save_file(stored, folder / SINGLE_FILE)
    with pytest.raises(WeightsError, match=message) as refused:
        load_weights(StepAudioNet(SMALL), folder, SMALL)
    assert len(str(refused.value)) < 1000 and "\n" not in str(refused.value)


def test_a_float_beside_which_scales_lie_is_a_float(tmp_path):
    path = folder_with(tmp_path / "m", arrays() | {"lm_head.weight_scale": np.ones(64, np.float32)})
    net = StepAudioNet(SMALL)
    assert load_weights(net, path, SMALL).unexpected == ("lm_head.weight_scale",)
    np.testing.assert_array_equal(np.array(net.lm_head.weight), arrays()["lm_head.weight"])


def test_what_has_no_scale_is_not_stored(tmp_path):
    tensors = held_arrays()
    with pytest.raises(WeightsError, match="int8: other is no tensor"):
        save_checkpoint(tmp_path / "m", SMALL, tensors, int8=["other"])
    tensors["lm_head.weight"] = tensors["lm_head.weight"] * float("inf")
    with pytest.raises(WeightsError, match="int8: lm_head.weight has values that are not finite"):
        save_checkpoint(tmp_path / "m", SMALL, tensors, int8=["lm_head.weight"])
    assert not (tmp_path / "m").exists()


def test_a_mean_of_models_in_eight_bits_keeps_their_encoder(tmp_path):
    """Of one model too: what is stored again is the same file; `--encoder` reads the same values from it."""
    save_checkpoint(tmp_path / "0", SMALL, {n: a.astype(mx.float16) for n, a in held_arrays().items()})
    for k in (1, 2):
        nano.average_models([tmp_path / str(k - 1)], tmp_path / str(k), ["encoder"])
    first, second = ((tmp_path / str(k) / SINGLE_FILE).read_bytes() for k in (1, 2))
    assert first == second
    stored = load_file(tmp_path / "1" / SINGLE_FILE)
    eight = {name for name, value in stored.items() if value.dtype == np.int8}
    assert eight == {n for n in NAMES if n.startswith("encoder.") and arrays()[n].ndim > 1 and "positional" not in n}
    net = StepAudioNet(SMALL)
    load_weights(net, tmp_path / "1", SMALL, mx.float32)
    found = nano.read_encoder(tmp_path / "1" / SINGLE_FILE)
    for name, held in parameters(net.encoder).items():
        np.testing.assert_array_equal(np.array(found[name].astype(mx.float32)), held, err_msg=name)


def test_pairs_of_a_file_are_joined():
    numbers, scale = mx.array(np.array([[1, -2], [127, 0]], np.int8)), mx.array([0.5, 2.0]).astype(mx.bfloat16)
    whole = mx.array([1, 2], mx.int8)
    found = widened_pairs({"a": numbers, "a_scale": scale, "b": whole, "c_scale": scale})
    assert set(found) == {"a", "b", "c_scale"} and found["b"].dtype == mx.int8
    assert found["a"].tolist() == [[0.5, -1.0], [254.0, 0.0]]
