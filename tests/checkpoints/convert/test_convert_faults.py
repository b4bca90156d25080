"""One wrong tensor, initialiser or file of a published folder: refused by its name, or outvoted."""

from dataclasses import replace

import numpy as np
import published
import pytest
from layout_twins import hift_layout, s3_layout, speaker_layout

from stepaudio.checkpoints.convert.convert import check_part, convert
from stepaudio.checkpoints.convert.infer_config import hift_sizes, s3_sizes, speaker_sizes
from stepaudio.checkpoints.convert.published import describe
from stepaudio.checkpoints.layout import SOURCES, TOKEN2WAV
from stepaudio.cli.main import main
from stepaudio.errors import ConfigError, WeightsError
from stepaudio.models.token2wav.campplus import COUNTER, SpeakerConfig
from stepaudio.models.token2wav.hift import HiftConfig
from stepaudio.models.token2wav.speech_tokenizer import S3Config

FULL = {"tokenizer": (s3_sizes, s3_layout, S3Config()), "speaker": (speaker_sizes, speaker_layout, SpeakerConfig()),
        "hift": (hift_sizes, hift_layout, HiftConfig())}  # fmt: skip


@pytest.mark.parametrize("component", TOKEN2WAV)
@pytest.mark.parametrize("fault", ["removed", "renamed", "mis-shaped"])
def test_one_wrong_tensor_is_refused_by_name(component, fault, folder):
    part = describe(folder, component)
    victims = sorted(n for n, t in part.tensors.items() if t.shape and "bias" not in n)
    name = victims[len(victims) // 2]
    tensor = part.tensors[name]
    changed = {n: t for n, t in part.tensors.items() if n != name}
    if fault == "renamed":
        changed[name + "x"] = tensor
    if fault == "mis-shaped":
        changed[name] = replace(tensor, shape=(tensor.shape[0] + 1, *tensor.shape[1:]), strides=None)
    with pytest.raises(WeightsError) as caught:
        check_part(replace(part, tensors=changed))
    assert name in str(caught.value) and str(part.file) in str(caught.value)


@pytest.mark.parametrize("component", ["flow", "hift"])
@pytest.mark.parametrize("fault", ["removed", "renamed", "mis-shaped", "doubled"])
def test_one_wrong_tensor_in_the_file_itself(component, fault, folder):
    tensors = published.tiny_tensors()[component]
    name = {"flow": "encoder.up_layer.conv.weight", "hift": "source_downs.0.bias"}[component]
    array = tensors.pop(name)
    if fault == "renamed":
        tensors["other." + name] = array
    elif fault == "mis-shaped":
        tensors[name] = array[:-1]
    elif fault == "doubled":
        tensors |= {name: array, "generator." + name: array}
    published.write_pt(folder / f"{component}.pt", tensors)
    with pytest.raises(WeightsError) as caught:
        convert(folder)
    assert name in str(caught.value) and f"{component}.pt" in str(caught.value)
    assert not (folder / "converted.json").exists()


@pytest.mark.parametrize("component, name, shown", [
    ("tokenizer", "blocks.0.attn_ln.weight", "encoder.blocks.0.attn_ln.weight"),
    ("tokenizer", "conv2.bias", "encoder.conv2.bias"),
    ("tokenizer", "onnx::MatMul", "encoder.blocks.0.attn.query.weight"),
    ("speaker", "xvector.block2.tdnnd3.cam_layer.linear2.bias", "xvector.block2.tdnnd3.cam_layer.linear2.bias"),
    ("speaker", "xvector.dense.nonlinear.batchnorm.running_var", "xvector.dense.nonlinear.batchnorm.running_var"),
    ("speaker", "onnx::Conv", "head.conv1.bias"),
])  # fmt: skip
@pytest.mark.parametrize("fault", ["removed", "renamed", "mis-shaped"])
def test_one_wrong_initialiser(component, name, shown, fault, folder):
    """Opaque ones are named by the tensor that they are."""
    tensors = published.tiny_tensors()[component]
    graph = (published.s3_graph(tensors, 4) if component == "tokenizer" else
             published.campplus_graph(tensors, (1, 2), published.folds(published.SPEAKER), pool=7))  # fmt: skip
    held = next(n for n in graph.initialisers if n.startswith(name))
    array = graph.initialisers.pop(held)
    if fault != "removed":
        new = held + "x.bias" if fault == "renamed" else held
        graph.initialisers[new] = array if fault == "renamed" else np.concatenate([array, array])
    graph.save(folder / SOURCES[component])
    with pytest.raises(WeightsError) as caught:
        convert(folder)
    assert shown in str(caught.value) and SOURCES[component] in str(caught.value)
    assert fault != "renamed" or f"{held}x.bias" in str(caught.value)


@pytest.mark.parametrize("component", FULL)
def test_published_sizes_survive_any_one_wrong_tensor(component):
    """Also where the tensor is the only one that a size can be read from: it is named, not believed."""
    sizes, layout, config = FULL[component]
    whole = {n: s for n, s in layout(config).items() if not n.endswith(COUNTER)}
    assert sizes(whole) == config
    names = list(whole)
    for name in names[:: max(1, len(names) // 60)] + [n for n in names if "conv1.w" in n or "linear.w" in n]:
        assert sizes({n: s for n, s in whole.items() if n != name}) == config
        for axis in range(len(whole[name])):
            shape = tuple(n + (i == axis) for i, n in enumerate(whole[name]))
            assert sizes(whole | {name: shape}) == config


def test_other_sizes_outvote_one_wrong_tensor():
    for component, name, axis in (("tokenizer", "encoder.blocks.0.attn.query.weight", 0), ("hift", "conv_pre.bias", 0),
                                  ("speaker", "head.conv1.weight", 0),
                                  ("tokenizer", "encoder.conv1.weight", 0)):  # fmt: skip
        sizes, layout, _ = FULL[component]
        shapes = layout(published.CONFIGS[component])
        wrong = tuple(n + (i == axis) for i, n in enumerate(shapes[name]))
        assert layout(sizes(shapes | {name: wrong})) == shapes


def test_missing_files_are_named(folder):
    (folder / "hift.pt").unlink()
    with pytest.raises(WeightsError, match=r"hift\.pt missing"):
        convert(folder.parent)
    with pytest.raises(WeightsError, match=r"flow\.yaml, speech_tokenizer_v2_25hz\.onnx.* missing"):
        convert(folder / "nowhere")


def test_flow_yaml_rules_the_flow(folder):
    text = (folder / "flow.yaml").read_text()
    (folder / "flow.yaml").write_text(text.replace("depth: 2", "depth: 3"))
    with pytest.raises(WeightsError, match=r"flow\.pt: 24 of .* missing: decoder\.estimator\.blocks\.2\."):
        convert(folder)
    (folder / "flow.yaml").write_text(text + "\n  surprise: 1")
    with pytest.raises(ConfigError, match="surprise"):
        convert(folder)


def test_code_in_a_file_ends_as_one_line(folder, capsys):
    target = folder / "made"
    description = published.pickled({"w": published.call("os", "mkdir", str(target))})
    published.write_archive(folder / "flow.pt", description, [])
    assert main(["convert", str(folder)]) == 2
    error = capsys.readouterr().err
    assert "wants to call os.mkdir" in error and error.count("\n") == 1 and not target.exists()
