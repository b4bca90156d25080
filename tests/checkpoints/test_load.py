"""Weights in the nets: against the safetensors library, plain numpy, and recorded outputs of the reference."""

import json
import subprocess
import sys
import warnings

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from safetensors.numpy import load_file
from small_checkpoint import NAMES, SMALL, arrays, as_held, entry, folder_with, parameters, raw_file, sharded

from stepaudio.checkpoints.header import SINGLE_FILE
from stepaudio.checkpoints.load import load_weights
from stepaudio.errors import WeightsError
from stepaudio.models.speech_lm import StepAudioConfig, StepAudioNet


@pytest.mark.parametrize("package", ["checkpoints", "synthesis"])
def test_names_of_a_folder_are_those_of_its_modules(package):
    """Lazily imported: in a fresh process nothing is loaded before it is asked for, and `dir` lists all."""
    code = (
        f"import sys, stepaudio.{package} as p\n"
        f"assert not [m for m in sys.modules if m.startswith('stepaudio.{package}.')]\n"
        "assert set(p.__all__) <= set(dir(p)) and all(getattr(p, n).__name__ == n for n in p.__all__)\n"
        "try: p.nonsense\n"
        "except AttributeError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "nonsense" in done.stdout


@pytest.mark.parametrize("write", [folder_with, sharded])
@pytest.mark.parametrize("dtype", [None, mx.float32, mx.bfloat16])
def test_load_fills_every_parameter(tmp_path, write, dtype):
    net, tensors = StepAudioNet(SMALL), arrays(np.float16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = load_weights(net, write(tmp_path / "m", tensors), SMALL, dtype)
    assert report.whole
    assert {a.dtype for _, a in tree_flatten(net.parameters())} == {dtype or mx.float16}
    for name, held in parameters(net).items():
        expected = mx.array(as_held(name, tensors[name])).astype(dtype or mx.float16).astype(mx.float32)
        assert np.array_equal(held, np.array(expected)), name


def test_bfloat16_is_read_as_written(tmp_path):
    net = StepAudioNet(SMALL)
    bf16 = {name: mx.array(array).astype(mx.bfloat16) for name, array in arrays().items()}
    mx.save_safetensors(str(tmp_path / SINGLE_FILE), bf16)
    load_weights(net, tmp_path, SMALL, mx.float32)
    assert all(np.array_equal(held, as_held(name, np.array(bf16[name].astype(mx.float32))))
               for name, held in parameters(net).items())  # fmt: skip


def test_loaded_golden_weights_give_the_golden_audio_rows(goldens):
    config = json.loads((goldens / "llm.json").read_text())["config"]
    config = StepAudioConfig.from_dict({key: config[key] for key in ("text_config", "audio_encoder_config")})
    net, tensors = StepAudioNet(config), load_file(goldens / "llm.safetensors")
    report = load_weights(net, goldens / "llm.safetensors", config, rename={"w.": ""})
    assert report.whole and set(report.unexpected) == {n for n in tensors if not n.startswith("w.")}
    rows = net.encode_audio([tensors["in.audio1.mels"][0]], independent=False)[0]
    expected = tensors["out.audio1.embeds"][0, tensors["out.audio1.rows"]]
    assert np.abs(np.array(rows) - expected).max() <= 1e-4 * np.abs(expected).max()


def test_partial_load_warns_per_component_and_leaves_the_rest_alone(tmp_path):
    net, tensors = StepAudioNet(SMALL), arrays()
    before = parameters(net)
    gone = ["encoder.after_norm.bias", "adapter.linear1.weight"]
    for name in gone:
        del tensors[name]
    tensors["model.norm.weight"] = tensors["model.norm.weight"][:-1]
    with pytest.warns(UserWarning) as caught:
        report = load_weights(net, folder_with(tmp_path / "m", tensors), SMALL)
    message = str(caught[0].message)
    for word in ("encoder: 1 of 37", "adapter: 1 of 6", "model: 1 of 14", *gone, "model.norm.weight"):
        assert word in message
    assert not report.whole and set(report.unfilled) == {*gone, "model.norm.weight"}
    after = parameters(net)
    for name in NAMES:
        kept = name in report.unfilled
        assert np.array_equal(after[name], before[name] if kept else as_held(name, tensors[name])), name


@pytest.mark.parametrize("prefix", ["", "wrapped."])
def test_under_half_is_an_error_and_loads_nothing(tmp_path, prefix):
    net = StepAudioNet(SMALL)
    before = parameters(net)
    names = NAMES if prefix else NAMES[: len(NAMES) // 2 - 1]
    path = folder_with(tmp_path / "m", {f"{prefix}{name}": arrays()[name] for name in names})
    with pytest.raises(WeightsError, match=r"rename=\{'wrapped.': ''\}" if prefix else "at least 50% are needed"):
        load_weights(net, path, SMALL)
    assert all(np.array_equal(array, before[name]) for name, array in parameters(net).items())


@pytest.mark.parametrize("dtype", [np.int8, np.float64, np.int64])
def test_other_dtypes_are_refused_by_name(tmp_path, dtype):
    tensors = arrays()
    tensors["encoder.conv1.bias"] = np.ones(16, dtype)
    path = folder_with(tmp_path / "m", tensors)
    word = {np.int8: "I8", np.float64: "F64", np.int64: "I64"}[dtype]
    with pytest.raises(WeightsError, match=rf"encoder.conv1.bias \({word}\); accepted are BF16, F16, F32"):
        load_weights(StepAudioNet(SMALL), path, SMALL)


@pytest.mark.parametrize("spare", ["F64", "F8_E5M2", "F8_E4M3", "C64"])
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_spare_tensors_that_mlx_cannot_read_do_not_matter(tmp_path, spare, dtype):
    wanted = {name: mx.array(array).astype(dtype) for name, array in arrays().items()}
    mx.save_safetensors(str(tmp_path / SINGLE_FILE), wanted)
    raw = (tmp_path / SINGLE_FILE).read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    size = len(raw) - start
    header = json.loads(raw[8:start]) | {"spare": entry([0], size, size, spare)}
    raw_file(tmp_path / SINGLE_FILE, header)
    with (tmp_path / SINGLE_FILE).open("ab") as stream:
        stream.write(raw[start:])
    net = StepAudioNet(SMALL)
    assert load_weights(net, tmp_path, SMALL).unexpected == ("spare",)
    assert net.dtype == dtype
    for name, held in parameters(net).items():
        assert np.array_equal(held, as_held(name, np.array(wanted[name].astype(mx.float32)))), name


def test_model_of_another_config_is_refused(tmp_path):
    path = folder_with(tmp_path / "m", arrays())
    sizes = SMALL.to_dict()
    sizes["text_config"]["vocab_size"] = 65
    with pytest.raises(WeightsError, match="another config: model.embed_tokens.weight is"):
        load_weights(StepAudioNet(StepAudioConfig.from_dict(sizes)), path, SMALL)
    with pytest.raises(WeightsError, match="it lacks encoder.conv1.weight|it lacks adapter"):
        load_weights(StepAudioNet(SMALL).model, path, SMALL)
    with pytest.raises(WeightsError, match="float32, float16 or bfloat16"):
        load_weights(StepAudioNet(SMALL), path, SMALL, dtype=mx.int8)
