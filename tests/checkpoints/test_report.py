"""What became of every tensor: outcomes, near misses, renaming, and exit statuses."""

import itertools
import json

import numpy as np
import pytest
from small_checkpoint import NAMES, SMALL, arrays, folder_with

from stepaudio.checkpoints import suggest as repair
from stepaudio.checkpoints.load import load_weights, validate_weights
from stepaudio.checkpoints.report import WeightReport
from stepaudio.errors import WeightsError
from stepaudio.models.speech_lm import StepAudioNet


def test_whole_checkpoint(tmp_path):
    report = validate_weights(folder_with(tmp_path / "m", arrays()))
    assert (report.exit_status, report.whole, report.share, report.unfilled) == (0, True, 1.0, ())
    parts = {part.name: part for part in report.components}
    assert set(parts) == {"encoder", "adapter", "model", "lm_head"}
    for name, part in parts.items():
        own = {n: a for n, a in arrays().items() if n.split(".")[0] == name}
        assert (part.expected, part.loaded, part.bytes) == (len(own), len(own), sum(a.nbytes for a in own.values()))
        assert part.dtypes == {"F32": len(own)}
    assert "whole" in report.table() and "Nothing to do" in report.table()


def test_every_tensor_is_in_one_place(tmp_path):
    tensors = arrays()
    del tensors["encoder.conv2.bias"]
    tensors["encoder.conv1.weight"] = tensors["encoder.conv1.weight"].transpose(0, 2, 1)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].astype(np.float64)
    tensors["talker.weight"] = np.zeros(3, np.float32)
    report = validate_weights(folder_with(tmp_path / "m", tensors))
    assert report.missing == ("encoder.conv2.bias",)
    assert [(m.name, m.repair) for m in report.misshaped] == [("encoder.conv1.weight", "transpose (0, 2, 1)")]
    assert report.wrong_dtype == (("model.norm.weight", "F64"),)
    assert report.unexpected == ("talker.weight",)
    assert sorted((*report.loaded, *report.unfilled)) == sorted(NAMES)
    assert report.exit_status == 1
    for word in ("encoder.conv2.bias", "transpose (0, 2, 1)", "F64", "talker.weight", "other"):
        assert word in report.table()
    assert json.loads(json.dumps(report.to_dict()))["missing"] == ["encoder.conv2.bias"]


def test_one_fault_is_enough_and_two_count_once(tmp_path):
    tensors = arrays()
    tensors["model.norm.weight"] = tensors["model.norm.weight"][:-1]
    report = validate_weights(folder_with(tmp_path / "m", tensors))
    assert (report.whole, report.exit_status, report.missing) == (False, 1, ())
    tensors["model.norm.weight"] = tensors["model.norm.weight"].astype(np.float64)
    report = validate_weights(folder_with(tmp_path / "m", tensors))
    assert report.unfilled == ("model.norm.weight",) and report.misshaped == ()


def test_spare_tensors_alone_are_listed_and_harmless(tmp_path):
    report = validate_weights(folder_with(tmp_path / "m", arrays() | {"x.y": np.zeros(2, np.float32)}))
    assert (report.exit_status, report.unexpected) == (0, ("x.y",))
    assert "x.y" in report.table()


@pytest.mark.parametrize(("kept", "status"), [(1.0, 0), (0.95, 1), (0.6, 1), (0.5, 1), (0.4, 2), (0.0, 2)])
def test_exit_status_follows_the_matched_share(tmp_path, kept, status):
    n = int(np.ceil(kept * len(NAMES)))
    tensors = dict(list(arrays().items())[:n]) or {"nothing": np.zeros(1, np.float32)}
    assert validate_weights(folder_with(tmp_path / "m", tensors)).exit_status == status


def test_refused_checkpoint_as_report(tmp_path):
    report = WeightReport.unreadable(tmp_path, WeightsError("model.safetensors: truncated"))
    assert report.exit_status == 2 and not report.whole and "truncated" in report.table()
    assert json.loads(json.dumps(report.to_dict()))["error"] == "model.safetensors: truncated"


def whispered(name: str) -> str:
    """The encoder under the names that transformers' Whisper gives it."""
    pairs = [("encoder.", "model.encoder."), (".blocks.", ".layers."), (".attn_ln.", ".self_attn_layer_norm."),
             (".mlp_ln.", ".final_layer_norm."), (".attn.query.", ".self_attn.q_proj."),
             (".attn.key.", ".self_attn.k_proj."), (".attn.value.", ".self_attn.v_proj."),
             (".attn.out.", ".self_attn.out_proj."), (".mlp.0.", ".fc1."), (".mlp.2.", ".fc2."),
             ("positional_embedding", "embed_positions"), ("after_norm", "layer_norm")]  # fmt: skip
    for ours, theirs in pairs if name.startswith("encoder.") else ():
        name = name.replace(ours, theirs)
    return name


RENAMINGS = {
    "module. in front": lambda n: f"module.{n}",
    "model. before the encoder": lambda n: f"model.{n}" if n.startswith("encoder") else n,
    "encoder. dropped": lambda n: n.removeprefix("encoder."),
    "gamma and beta": lambda n: n.replace("norm.weight", "norm.gamma").replace("norm.bias", "norm.beta"),
    "transformers' Whisper": whispered,
}


@pytest.mark.parametrize("case", RENAMINGS)
def test_near_misses_find_the_names_and_their_map_repairs_them(tmp_path, case):
    old_name = RENAMINGS[case]
    path = folder_with(tmp_path / "m", {old_name(n): a for n, a in arrays().items()})
    report = validate_weights(path)
    renamed = {n: old_name(n) for n in NAMES if old_name(n) != n}
    assert renamed and {miss.missing: miss.found for miss in report.near_misses} == renamed
    assert validate_weights(path, rename=report.rename).whole
    net = StepAudioNet(SMALL)
    assert load_weights(net, path, SMALL, rename=report.rename).whole
    assert np.array_equal(net.encoder.conv1.weight, arrays()["encoder.conv1.weight"].transpose(0, 2, 1))


def test_one_prefix_is_one_rule(tmp_path):
    report = validate_weights(folder_with(tmp_path / "m", {f"module.{n}": a for n, a in arrays().items()}))
    assert report.rename == {"module.": ""}
    assert "rename={'module.': ''}" in report.table()


def test_one_spare_name_is_suggested_once(tmp_path):
    tensors = arrays()
    lost = tensors.pop("encoder.conv1.bias"), tensors.pop("encoder.conv2.bias")
    report = validate_weights(folder_with(tmp_path / "m", tensors | {"encoder.conv_1.bias": lost[0]}))
    pairs = [(miss.missing, miss.found) for miss in report.near_misses]
    assert pairs == [("encoder.conv1.bias", "encoder.conv_1.bias")]


def test_strangers_are_not_suggested(tmp_path):
    tensors = arrays()
    stranger = tensors.pop("encoder.conv1.bias")
    tensors |= {"talker.speed.bias": stranger, "encoder.conv1_.bias": stranger[:3]}
    assert validate_weights(folder_with(tmp_path / "m", tensors)).near_misses == ()


def test_rename_rules():
    renamed = repair.apply_rename({"a.b": 1, "a.c.d": 2, "e": 3}, {"a.": "x.", "a.c.": "y.", "e": "z"})
    assert renamed == {"x.b": 1, "y.d": 2, "z": 3}
    assert repair.apply_rename({"b": 1, "m.c": 2}, {"": "p.", "m.": "m."}) == {"p.b": 1, "m.c": 2}
    with pytest.raises(WeightsError, match="would both become b"):
        repair.apply_rename({"a": 1, "b": 2}, {"a": "b"})
    with pytest.raises(WeightsError, match="'q.' fits no tensor"):
        repair.apply_rename({"a": 1}, {"q.": ""})


@pytest.mark.parametrize("expected", [(4, 6), (2, 3, 5), (7, 7, 3), (24,)])
def test_named_transforms_repair(expected):
    array = np.arange(np.prod(expected)).reshape(expected)
    for axes in itertools.permutations(range(len(expected))):
        found = array.transpose(axes).shape
        word = repair.transform(found, expected)
        if found == expected:
            assert word == ""
        else:
            named = [int(axis) for axis in word.removeprefix("transpose ").strip("()").split(",")]
            assert np.empty(found).transpose(named).shape == expected
    assert repair.transform((1, *expected), expected) == f"reshape to {expected}"
    assert repair.transform((expected[0] + 1, *expected[1:]), expected) == "none found"
    assert repair.transform((7, 3, 7), (7, 7, 3)) == "transpose (0, 2, 1)"  # not (2, 0, 1), which fits too
