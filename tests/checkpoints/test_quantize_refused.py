"""Quantised folders that do not say what they hold, and what cannot be quantised: one error, nothing left behind."""

import shutil

import mlx.core as mx
import numpy as np
import pytest
import quantised
from safetensors.numpy import load_file

from stepaudio.checkpoints.compare import compare_checkpoints
from stepaudio.checkpoints.header import SINGLE_FILE
from stepaudio.checkpoints.load import load_weights, validate_weights
from stepaudio.checkpoints.quantize import quantise
from stepaudio.checkpoints.recipe import Recipe
from stepaudio.errors import ConfigError, WeightsError
from stepaudio.model import StepAudio2
from stepaudio.models.quantization import Bits
from stepaudio.models.speech_lm import StepAudioConfig, StepAudioNet


def one_line(refused) -> str:
    text = str(refused.value)
    assert "\n" not in text and len(text) < 1000
    return text


PARTS = (".weight", ".scales", ".biases")
LAYER = "model.layers.0.mlp.up_proj"


def whole_again(tensors):
    means = mx.dequantize(*(mx.array(tensors[LAYER + p]) for p in PARTS), group_size=64, bits=4)
    for part in (".scales", ".biases"):
        del tensors[LAYER + part]
    tensors[f"{LAYER}.weight"] = np.array(means)


CHANGED = {
    "a layer that the config claims is whole": (whole_again, r"claims 1 layers that the file does not quantise: model"),
    "float numbers beside scales": (
        lambda t: t.update({f"{LAYER}.weight": np.ones((128, 64), np.float32)}), r"is F32 of shape \(128, 64\)"),
    "no scales": (lambda t: t.pop(f"{LAYER}.scales"), r"lacks model.layers.0.mlp.up_proj.scales"),
    "no offsets": (lambda t: t.pop(f"{LAYER}.biases"), r"lacks model.layers.0.mlp.up_proj.biases"),
    "no numbers": (lambda t: t.pop(f"{LAYER}.weight"), r"lacks model.layers.0.mlp.up_proj.weight"),
    "another layer's numbers": (
        lambda t: t.update({f"{LAYER}.weight": t["model.layers.0.mlp.down_proj.weight"]}), r"does not fit together"),
    "another layer's scales": (
        lambda t: t.update({f"{LAYER}.scales": t["model.layers.0.mlp.down_proj.scales"]}), r"does not fit together"),
    "scales of another mode": (
        lambda t: t.update({f"{LAYER}.scales": t[f"{LAYER}.scales"].astype(np.uint8)}), r"scales is U8 of shape"),
    "a layer that cannot be": (
        lambda t: t.update({"encoder.conv1.scales": np.ones((64, 2), np.float32)}), r"encoder.conv1.*does not claim"),
    "a whole layer of another's": (
        lambda t: [t.update({LAYER + p: t[f"model.layers.0.mlp.down_proj{p}"]}) for p in PARTS],
        None),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGED)
def test_a_file_whose_tensors_are_not_what_the_config_says_is_refused(copy, name):
    change, message = CHANGED[name]
    quantised.edit(copy, change)
    if message is None:  # it fits in itself, and not into this net: the report says so, as of any tensor
        with pytest.warns(UserWarning, match="not whole"):
            report = StepAudio2.load(copy, allow_random=True).report
        assert [m.name for m in report.misshaped] == [f"{LAYER}.weight"]
        return
    for read in (StepAudio2.load, validate_weights, lambda path: compare_checkpoints(path, path)):
        with pytest.raises(WeightsError, match=message) as refused:
            read(copy)
        one_line(refused)


SAID = {
    "nothing": (lambda c: [c.pop("quantization"), c.pop("quantization_config")], WeightsError, "no quantization in"),
    "a layer is said to be whole": (
        lambda c: c["quantization"].update({LAYER: False}), WeightsError, f"quantises {LAYER}, which the config"),
    "a whole layer is said to be quantised": (
        lambda c: c["quantization"].update(lm_head=True), WeightsError, "claims 1 layers .*: lm_head; say"),
    "other bits": (lambda c: c["quantization"].update(bits=8), WeightsError, "does not fit together for 8 bits"),
    "another group": (lambda c: c["quantization"].update(group_size=32), WeightsError, "does not fit|claims"),
    "another mode": (
        lambda c: c["quantization"].update(mode="mxfp4", group_size=32), WeightsError, "without offsets, and has"),
    "an unknown layer": (lambda c: c["quantization"].update({"model.layers.9.mlp.up_proj": False}), WeightsError,
                         "names model.layers.9.mlp.up_proj, which is no layer"),
    "seven bits": (lambda c: c["quantization"].update(bits=7), ConfigError, "expected bits 2, .* found 7"),
    "no bits": (lambda c: c["quantization"].pop("bits"), ConfigError, "missing key bits"),
    "a text": (lambda c: c.update(quantization="4bit"), ConfigError, "expected a JSON object"),
    "two things": (lambda c: c["quantization_config"].update(bits=8), ConfigError, "something else than quantization"),
    "another method": (
        lambda c: [c.update(quantization_config={"quant_method": "gptq", "bits": 4}), c.pop("quantization")],
        ConfigError, "quantization_config: expected None"),
    "a layer's text": (lambda c: c["quantization"].update({LAYER: "4"}), ConfigError, "expected a JSON object"),
}  # fmt: skip


@pytest.mark.parametrize("name", SAID)
def test_a_config_that_says_something_else_than_the_file_is_refused(copy, name):
    change, error, message = SAID[name]

    def both(config):
        same = config["quantization"]
        change(config)
        if name != "two things" and "quantization" in config and "quantization_config" in config:
            config["quantization_config"] = config["quantization"] if config["quantization"] is same else None

    quantised.edit_config(copy, both)
    with pytest.raises(error, match=message) as refused:
        StepAudio2.load(copy)
    one_line(refused)


def test_the_config_may_say_less_and_more(copy):
    """As other tools write it: no mode, the other key left out, `true` for a layer."""
    quantised.edit_config(copy, lambda c: [c.pop("quantization_config"), c["quantization"].pop("mode"),
                                           c["quantization"].update({LAYER: True})])  # fmt: skip
    assert StepAudio2.load(copy).report.whole


def test_names_may_be_others(copy):
    tensors = load_file(copy / SINGLE_FILE)
    quantised.edit(copy, lambda t: [t.update({f"outer.{n}": t.pop(n)}) for n in list(t)])
    assert validate_weights(copy, rename={"outer.": ""}).whole
    net = StepAudioNet(StepAudioConfig.from_file(copy))
    load_weights(net, copy, net.config, rename={"outer.": ""})
    np.testing.assert_array_equal(np.array(net.model.layers[0].mlp.up_proj.weight), tensors[f"{LAYER}.weight"])


def test_a_mode_that_the_backend_lacks_is_one_error(small, source, tmp_path, monkeypatch):
    def lacking(*_, **__):
        raise RuntimeError("[QuantizedMatmul] NYI\nfor this device")

    monkeypatch.setattr(mx, "quantized_matmul", lacking)
    for call in (lambda: StepAudio2.load(small), lambda: quantise(source, tmp_path / "out", Recipe(Bits(4)))):
        with pytest.raises(WeightsError, match=r"does not compute this on cpu \(\[QuantizedMatmul\] NYI\)") as refused:
            call()
        one_line(refused)
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_quantised_is_refused_and_leaves_nothing(source, small, tmp_path):
    out = tmp_path / "out"
    bad = shutil.copytree(source, tmp_path / "bad")
    quantised.edit(bad, lambda t: t["lm_head.weight"].__setitem__((5, 7), np.nan))
    lame = shutil.copytree(source, tmp_path / "lame")
    quantised.edit(lame, lambda t: t.pop("lm_head.weight"))
    cases = [
        (bad, Recipe(Bits(4)), WeightsError, "lm_head.weight holds values that are not finite"),
        (lame, Recipe(Bits(4)), WeightsError, "not whole, so it is not quantised: lm_head"),
        (small, Recipe(Bits(4)), WeightsError, "28 layers are quantised already"),
        (
            source,
            Recipe(None, (("adapter", Bits(4, 64)),)),
            ConfigError,
            "linear2: its rows of 96 weights are no multiple",
        ),
        (
            source,
            Recipe(None, (("decodr", Bits(4)),)),
            ConfigError,
            "decodr: fits no layer .* expected encoder, adapter",
        ),
        (source, Recipe(None, (("flow", Bits(4)),)), ConfigError, "flow: no converted token2wav lies in"),
        (source, Recipe(Bits(4), (("*", None),)), ConfigError, "nothing to quantise"),
    ]
    for folder, recipe, error, message in cases:
        with pytest.raises(error, match=message) as refused:
            quantise(folder, out, recipe)
        one_line(refused)
        assert not out.exists() or not any(out.iterdir())


def test_no_room_is_known_before_anything_is_written(source, tmp_path, monkeypatch):
    import shutil as system

    monkeypatch.setattr(system, "disk_usage", lambda _: system._ntuple_diskusage(100, 90, 10))
    with pytest.raises(WeightsError, match=r"needs [\d,]+ bytes, 10 are free"):
        quantise(source, tmp_path / "out", Recipe(Bits(4)))
    assert not any((tmp_path / "out").iterdir())
