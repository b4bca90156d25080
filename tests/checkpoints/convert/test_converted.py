"""Converted folders: what loading asks of them, and what a report says."""

import json

import mlx.core as mx
import published
import pytest

from stepaudio.checkpoints.convert.convert import convert
from stepaudio.checkpoints.layout import TOKEN2WAV, net_layout
from stepaudio.checkpoints.load import validate_weights
from stepaudio.checkpoints.report import WeightReport
from stepaudio.checkpoints.token2wav import load_token2wav
from stepaudio.cli.main import main
from stepaudio.errors import StepAudioError, WeightsError


def test_unconverted_folders_say_what_to_run(folder, tmp_path):
    for path in (folder, folder.parent):
        with pytest.raises(WeightsError, match=f"not converted yet; run `stepaudio convert {path}`"):
            load_token2wav(path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match="no token2wav is here"):
        load_token2wav(tmp_path / "empty")
    with pytest.raises(WeightsError, match="no such folder"):
        load_token2wav(tmp_path / "absent")


def test_a_flow_yaml_that_changed_since(folder):
    convert(folder)
    text = (folder / "flow.yaml").read_text()
    (folder / "flow.yaml").write_text(text.replace("inference_cfg_rate: 0.7", "inference_cfg_rate: 0.5"))
    with pytest.raises(WeightsError, match=r"flow\.yaml: not the sizes that were converted"):
        load_token2wav(folder)


@pytest.mark.parametrize("component, name", [
    ("tokenizer", "quantizer._codebook.project_down.weight"), ("speaker", "xvector.dense.linear.weight"),
    ("flow", "decoder.estimator.in_proj.bias"), ("hift", "f0_predictor.classifier.weight"),
])  # fmt: skip
def test_a_converted_file_is_held_to_the_nets(component, name, folder):
    convert(folder)
    path = folder / f"{component}.safetensors"
    whole = mx.load(str(path))
    for wrong, said in (({n: a for n, a in whole.items() if n != name}, f"1 of .* are missing: {name}"),
                        (whole | {"spare": mx.zeros(3)}, "no place in the net: spare"),
                        (whole | {name: mx.zeros((3, 5))}, rf"{name} has shape \(3, 5\), expected"),
                        (whole | {name: whole[name].astype(mx.int32)}, rf"unusable type: {name} \(I32\)")):  # fmt: skip
        mx.save_safetensors(str(path), wrong)
        with pytest.raises(WeightsError, match=said):
            load_token2wav(folder)
    path.unlink()
    with pytest.raises(WeightsError, match="no such file"):
        load_token2wav(folder)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 2}', '{"format": 1}', "\x00", "[" * 100_000])
def test_broken_manifests(text, folder):
    convert(folder)
    (folder / "converted.json").write_text(text)
    with pytest.raises(WeightsError, match=r"converted\.json: .*run `stepaudio convert` again"):
        load_token2wav(folder)
    assert convert(folder).fresh


def test_a_manifest_with_other_sizes(folder):
    convert(folder)
    raw = json.loads((folder / "converted.json").read_text())
    raw["components"]["tokenizer"]["config"]["n_audio_head"] = 3
    (folder / "converted.json").write_text(json.dumps(raw))
    with pytest.raises(StepAudioError, match="n_audio_head 3"):
        load_token2wav(folder)


def test_report_covers_published_and_converted_files(folder, tmp_path):
    before = validate_weights(folder, values=True)
    assert before.whole and before.exit_status == 0 and not before.unexpected
    assert [part.name for part in before.components] == list(TOKEN2WAV)
    assert len(before.values) == before.expected
    convert(folder)
    after = validate_weights(folder, values=True)
    assert after.whole and [p.expected for p in after.components] == [
        len(net_layout(published.CONFIGS[c])) for c in TOKEN2WAV
    ]
    (folder / "hift.safetensors").unlink()
    lacking = validate_weights(folder)
    assert lacking.exit_status == 1 and len(lacking.missing) == len(net_layout(published.HIFT))
    assert lacking.missing[0].startswith("hift.")


def test_report_joins_both_halves(tiny_checkpoint, tmp_path, capsys):
    model = tmp_path / "model"
    model.mkdir()
    for file in tiny_checkpoint.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    alone = validate_weights(model)
    published.write_folder(model)
    joined = validate_weights(model)
    assert joined.whole and joined.components[:4] == alone.components
    assert [p.name for p in joined.components[4:]] == list(TOKEN2WAV)
    (model / "token2wav" / "campplus.onnx").unlink()
    assert main(["weights", str(model)]) in (1, 2)
    assert "speaker.head.conv1.weight" in capsys.readouterr().out
    (model / "token2wav" / "flow.pt").write_bytes(b"PK no archive")
    assert main(["weights", str(model)]) == 2 and "flow.pt" in capsys.readouterr().out


def test_report_names_single_faults_of_published_files(folder):
    tensors = published.tiny_tensors()["hift"]
    tensors["spare"] = tensors.pop("source_downs.0.bias")
    tensors["conv_pre.bias"] = tensors["conv_pre.bias"][:-1]
    published.write_part(folder, "hift", tensors)
    report = validate_weights(folder)
    assert report.missing == ("hift.source_downs.0.bias",) and report.unexpected == ("hift.spare",)
    assert [m.name for m in report.misshaped] == ["hift.conv_pre.bias"]
    assert isinstance(report, WeightReport) and report.exit_status == 1
