"""Conversion and loading: what comes out is what the nets and PyTorch make of the same weights; faults are named."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import published
import pytest
from layout_twins import flow_layout, hift_layout, speaker_layout

from stepaudio.checkpoints.arrays import net_arrays
from stepaudio.checkpoints.convert import convert as converting
from stepaudio.checkpoints.convert.convert import check_part, convert
from stepaudio.checkpoints.convert.infer_config import hift_sizes, s3_sizes, speaker_sizes
from stepaudio.checkpoints.convert.manifest import MANIFEST
from stepaudio.checkpoints.convert.published import describe
from stepaudio.checkpoints.header import read_header
from stepaudio.checkpoints.layout import SOURCES, TOKEN2WAV, net_layout
from stepaudio.checkpoints.load import validate_weights
from stepaudio.checkpoints.tensors import read_arrays
from stepaudio.checkpoints.token2wav import Token2Wav, load_token2wav
from stepaudio.cli.main import main
from stepaudio.errors import WeightsError
from stepaudio.models.token2wav.campplus import COUNTER, SpeakerConfig
from stepaudio.models.token2wav.flow import Flow, FlowOptions, Prompt
from stepaudio.models.token2wav.hift import Hift, HiftConfig
from stepaudio.models.token2wav.speech_tokenizer import S3Config

EXPORTED = Path(__file__).parents[2] / "assets" / "exported"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A model's folder with tiny published files, converted. Not to be changed."""
    folder = tmp_path_factory.mktemp("converted")
    published.write_folder(folder)
    assert convert(folder).fresh
    return folder


def same(a, b, tolerance: float = 1e-6) -> None:
    a, b = np.array(a), np.array(b)
    assert a.shape == b.shape and np.abs(a - b).max() <= tolerance * max(1.0, np.abs(b).max())


# ---- what comes out ----


def test_sizes_are_told_from_the_files(model):
    nets = load_token2wav(model)
    assert {c: getattr(nets, c).config for c in TOKEN2WAV} == published.CONFIGS


def test_flow_and_vocoder_say_what_the_published_weights_say(model):
    nets, tensors = load_token2wav(model / "token2wav"), published.tiny_tensors()
    rng = np.random.default_rng(0)
    flow, hift = Flow(published.CONFIGS["flow"]), Hift(published.HIFT)
    flow.load_weights(net_arrays(tensors["flow"], published.CONFIGS["flow"]))
    hift.load_weights(net_arrays(tensors["hift"], published.HIFT))
    prompt = Prompt(np.arange(5)[None], mx.array(rng.normal(size=(1, 10, 4)).astype(np.float32)),
                    mx.array(rng.normal(size=(1, 6)).astype(np.float32)))  # fmt: skip
    codes, noise = np.arange(7)[None], mx.array(rng.normal(size=(1, 24, 4)).astype(np.float32))
    mel = flow(codes, prompt, noise, FlowOptions(2))
    same(nets.flow(codes, prompt, noise, FlowOptions(2)), mel)
    same(nets.hift(mel, None)[0], hift(mel, None)[0])


def test_tokenizer_and_speaker_say_what_pytorch_said(folder):
    """Files from PyTorch's own exporter, folded norms and turned matrices undone, against its outputs."""
    for name in ("campplus.onnx", "speech_tokenizer_v2_25hz.onnx"):
        (folder / name).write_bytes((EXPORTED / name).read_bytes())
    convert(folder)
    nets, said = load_token2wav(folder), read_arrays(EXPORTED / "said.safetensors")
    same(nets.speaker(mx.array(said["speaker.in"])), said["speaker.out"], 1e-5)
    codes = nets.tokenizer(said["tokenizer.in"])[0]
    np.testing.assert_array_equal(codes, said["tokenizer.out"][0])
    assert len(set(codes.tolist())) > 3


def test_golden_weights_give_the_golden_outputs(goldens, tmp_path):
    """The reference's small weights, written as published files, converted and loaded."""
    files = {name: read_arrays(goldens / f"{name}.safetensors") for name in ("s3tokenizer", "campplus", "flow", "hift")}
    weights = {n: {k[2:]: a for k, a in f.items() if k.startswith("w.")} for n, f in files.items()}
    sizes = {name: json.loads((goldens / f"{name}.json").read_text())["config"] for name in files}
    heads = sizes["s3tokenizer"]["n_audio_head"]
    published.s3_graph(weights["s3tokenizer"], heads).save(tmp_path / SOURCES["tokenizer"])
    blocks = tuple(map(tuple, sizes["campplus"]["blocks"]))
    published.campplus_graph(
        weights["campplus"], tuple(b[2] for b in blocks), published.folds(SpeakerConfig(blocks=blocks))
    ).save(tmp_path / SOURCES["speaker"])
    published.write_pt(tmp_path / "flow.pt", weights["flow"])
    published.write_pt(tmp_path / "hift.pt", weights["hift"])
    c = sizes["flow"]
    tree = {"input_size": c["encoder"]["input_size"], "output_size": c["output_size"], "output_type": "mel",
            "spk_embed_dim": c["spk_embed_dim"], "vocab_size": c["vocab_size"], "encoder": c["encoder"],
            "decoder": {"inference_cfg_rate": c["cfg_rate"], "estimator": c["dit"]}}  # fmt: skip
    (tmp_path / "flow.yaml").write_text(published.yaml("flow", tree))
    convert(tmp_path)
    nets = load_token2wav(tmp_path)
    f = files["campplus"]
    same(nets.speaker(mx.array(f["in.feat"])), f["out.embedding"], 1e-4)
    f = files["s3tokenizer"]
    for row, codes in enumerate(nets.tokenizer(f["in.mel"], f["in.mel_len"])):
        np.testing.assert_array_equal(codes, f["out.codes"][row, : len(codes)])
    f = files["flow"]
    prompt = Prompt(f["in.prompt_token"], mx.array(f["in.prompt_mel"]), mx.array(f["in.speaker"]))
    noise = mx.array(f["in.rand_noise"]).swapaxes(1, 2)
    mel = nets.flow(f["in.token"], prompt, noise, FlowOptions(c["n_timesteps"]))
    same(mel.swapaxes(1, 2), f["out.mel"], 1e-3)
    f = files["hift"]
    wave, _ = nets.hift(mx.array(f["in.mel"]).swapaxes(1, 2), mx.array(f["in.noise"]))
    assert np.abs(np.array(wave) - f["out.wav"]).max() < 2e-3


def test_dtype_is_that_of_the_flow_alone(model):
    nets = load_token2wav(model, mx.bfloat16)
    assert nets.flow.dtype == mx.bfloat16
    assert {nets.hift.conv_pre.weight.dtype, nets.speaker.head.conv1.weight.dtype,
            nets.tokenizer.encoder.conv1.weight.dtype} == {mx.float32}  # fmt: skip
    assert load_token2wav(model).flow.dtype == mx.float32
    with pytest.raises(WeightsError, match="float32, float16 or bfloat16"):
        load_token2wav(model, mx.int32)


def test_half_precision_files_become_float32(folder):
    tensors = {n: a.astype(np.float16) for n, a in published.tiny_tensors()["flow"].items()}
    published.write_part(folder, "flow", tensors)
    convert(folder)
    assert {i.dtype for i in read_header(folder / "flow.safetensors").values()} == {"F32"}
    same(load_token2wav(folder).flow.encoder_proj.bias, tensors["encoder_proj.bias"])


# ---- the manifest ----


def test_every_tensor_of_every_file_is_accounted_for(model):
    raw = json.loads((model / "token2wav" / "converted.json").read_text())
    assert raw["format"] == 2 and raw["package"].startswith("stepaudio ")
    assert set(raw["sources"]) == {"flow.yaml", *SOURCES.values()}
    assert all(len(s["sha256"]) == 64 and s["bytes"] > 0 for s in raw["sources"].values())
    for component in TOKEN2WAV:
        part, steps_of = describe(model / "token2wav", component), raw["components"][component]["tensors"]
        assert sorted(t["tensor"] for t in steps_of) == sorted(t.name for t in part.tensors.values())
        reached = {t["as"] for t in steps_of}
        named = {n for n in net_layout(part.config) if n in reached or f"{n.rpartition('.')[0]}.*" in reached}
        assert named == set(net_layout(part.config))
        steps = {t["as"]: t["steps"] for t in steps_of}
        expected = {"tokenizer": ("encoder.conv1.weight", ["renamed", "transposed"]),
                    "speaker": ("xvector.tdnn.nonlinear.batchnorm.*", ["batch norm folded before"]),
                    "flow": ("encoder_proj.bias", ["kept"]),
                    "hift": ("ups.0.weight", ["weight norm merged"])}[component]  # fmt: skip
        assert steps[expected[0]][0] == expected[1][0]


def test_dropped_tensors_say_why(folder):
    tensors = published.tiny_tensors()
    published.write_pt(folder / "flow.pt", tensors["flow"], {"epoch": 3})
    alone = published.Graph()  # no nodes: everything under its own name, counters among it
    layout = speaker_layout(replace(published.SPEAKER, blocks=((2, 3, 1), (3, 3, 2)), seg_pool=100))
    unscaled = "xvector.dense.nonlinear.batchnorm"
    for name, array in published.random_tensors(layout).items():
        alone.hold(array, name)
    alone.hold(np.ones(6, np.float32), f"{unscaled}.weight")
    alone.hold(np.zeros(6, np.float32), f"{unscaled}.bias")
    alone.save(folder / "campplus.onnx")
    parts = convert(folder).manifest.raw["components"]
    why = {t["tensor"]: t["why"] for c in TOKEN2WAV for t in parts[c]["tensors"] if t["steps"] == ["dropped"]}
    counters = {n for n in layout if n.endswith(COUNTER)}
    assert set(why) == {"epoch", f"{unscaled}.weight", f"{unscaled}.bias", *counters} and len(counters) > 20
    assert why["epoch"] == "int, not a tensor" and "nothing reads it" in why[f"head.bn1{COUNTER}"]
    alone.hold(np.full(6, 2, np.float32), f"{unscaled}.weight")  # a scale that does something
    alone.save(folder / "campplus.onnx")
    with pytest.raises(WeightsError, match=f"1 have no place in the net: {unscaled}.weight"):
        convert(folder)


def test_second_run_does_nothing_until_a_source_changes(folder, capsys):
    assert main(["convert", str(folder)]) == 0 and "converted\n" in capsys.readouterr().out
    before = {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}
    assert main(["convert", str(folder.parent)]) == 0 and "nothing to do" in capsys.readouterr().out
    assert {p.name: p.stat().st_mtime_ns for p in folder.iterdir()} == before
    published.write_part(folder, "hift", published.random_tensors(hift_layout(published.HIFT), 99))
    assert convert(folder).fresh
    (folder / "flow.safetensors").write_bytes(b"cut")
    assert convert(folder).fresh and not convert(folder).fresh


def test_a_folder_without_its_published_files_is_converted_already(speaking_checkpoint, tmp_path):
    home = tmp_path / "model" / "token2wav"
    home.mkdir(parents=True)
    for file in (speaking_checkpoint / "token2wav").glob("*.safetensors"):
        shutil.copy(file, home)
    shutil.copy(speaking_checkpoint / "token2wav" / MANIFEST, home)
    assert main(["convert", str(tmp_path / "model")]) == 0
    with pytest.raises(WeightsError, match="flow.yaml.* missing"):
        convert(tmp_path / "model", tmp_path / "elsewhere")
    (home / MANIFEST).unlink()
    with pytest.raises(WeightsError, match="flow.yaml.* missing"):
        convert(tmp_path / "model")


def test_out_is_another_folder_that_stands_alone(folder, tmp_path, capsys):
    out = tmp_path / "elsewhere"
    assert main(["convert", str(folder), "--out", str(out), "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["components"]) == set(TOKEN2WAV)
    assert {p.name for p in out.iterdir()} == {"converted.json", *(f"{c}.safetensors" for c in TOKEN2WAV)}
    assert isinstance(load_token2wav(out), Token2Wav)
    assert {p.name for p in folder.iterdir()} == {"flow.yaml", *SOURCES.values()}


# ---- interruption ----


KILLED = """
import os, signal, sys
from stepaudio import files
from stepaudio.checkpoints.convert import convert
moves, replace = [], os.replace
def replace_some(source, target):
    moves.append(target)
    if len(moves) == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
files.os.replace = replace_some
convert.convert(sys.argv[1])
"""


@pytest.mark.parametrize("stop_at", [1, 5])
def test_killed_between_two_files_leaves_nothing_to_load(stop_at, folder):
    convert(folder)
    published.write_part(folder, "hift", published.random_tensors(hift_layout(published.HIFT), 99))
    ended = subprocess.run([sys.executable, "-c", KILLED, str(folder), str(stop_at)], check=False,
                           env=os.environ | {"PYTHONPATH": str(Path(converting.__file__).parents[3])})  # fmt: skip
    assert ended.returncode == -signal.SIGKILL and len(list(folder.glob(".converting-*"))) == 1
    with pytest.raises(WeightsError, match="not converted yet; run `stepaudio convert"):
        load_token2wav(folder)
    assert convert(folder).fresh and not list(folder.glob(".converting-*"))
    same(load_token2wav(folder).hift.conv_pre.bias,
         published.random_tensors(hift_layout(published.HIFT), 99)["conv_pre.bias"])  # fmt: skip


def test_a_conversion_that_fails_leaves_the_earlier_one(folder, monkeypatch):
    convert(folder)
    before = (folder / "converted.json").read_bytes()
    (folder / "flow.pt").write_bytes((folder / "flow.pt").read_bytes()[:-100])
    (folder / ".converting-killed").mkdir()
    with pytest.raises(WeightsError, match=r"flow\.pt: .*cut short"):
        convert(folder)
    assert (folder / "converted.json").read_bytes() == before and not list(folder.glob(".converting-*"))
    assert isinstance(load_token2wav(folder), Token2Wav)


def test_folder_that_cannot_be_written(folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WeightsError, match="could not be written .*--out"):
        convert(folder, tmp_path / "file" / "x")


@pytest.mark.parametrize(("sizes", "name"), [
    (s3_sizes, "encoder.blocks.999999999999.attn.query.weight"),
    (speaker_sizes, "xvector.block7777777.tdnnd1.linear1.weight"),
    (hift_sizes, "ups.88888888.bias"),
])  # fmt: skip
def test_numbers_in_names_do_not_become_nets(sizes, name):
    component = {s3_sizes: "tokenizer", speaker_sizes: "speaker", hift_sizes: "hift"}[sizes]
    shapes = {n: a.shape for n, a in published.tiny_tensors()[component].items()}
    with pytest.raises(WeightsError, match=r"a name counts up to \d+, of only"):
        sizes(shapes | {name: (16, 16)})


# ---- full size ----


def full_files(folder: Path, shared: Path, kind: str) -> dict:
    """The published layout on disk: storages of one item for the archives, half precision zeros for the graphs."""
    layout = {k: {n: tuple(s) for n, s in v["tensors"].items()} for k, v in json.loads(
        (shared / "published_layout.json").read_text()).items() if k in ("flow", "hift", "campplus",
                                                                          "speech_tokenizer_v2_25hz")}  # fmt: skip
    published.write_pt(folder / "flow.pt", layout["flow"])
    published.write_pt(folder / "hift.pt", {f"generator.{n}": s for n, s in layout["hift"].items()})
    (folder / "flow.yaml").write_bytes((shared / "Step-Audio-2-mini" / "token2wav" / "flow.yaml").read_bytes())
    zeros = {k: {n: np.ones(s, np.float16) if s else np.array(1) for n, s in layout[k].items()}
             for k in ("campplus", "speech_tokenizer_v2_25hz")}  # fmt: skip
    if kind == "graphs":
        published.s3_graph(zeros["speech_tokenizer_v2_25hz"], 20).save(folder / "speech_tokenizer_v2_25hz.onnx")
        norms = {n: a for n, a in zeros["campplus"].items() if not n.endswith(COUNTER)}
        published.campplus_graph(norms, (1, 2, 2), published.folds(SpeakerConfig())).save(folder / "campplus.onnx")
        return layout
    for name, arrays in zeros.items():
        graph = published.Graph()
        for tensor, array in arrays.items():
            graph.hold(array, tensor)
        graph.save(folder / f"{name}.onnx")
    return layout


@pytest.mark.parametrize("kind", ["graphs", "names"])
def test_the_whole_published_layout(shared, tmp_path, kind):
    """605 + 328 + 102 + 937 tensors: described, reported, converted and loaded whole."""
    layout = full_files(tmp_path, shared, kind)
    assert [len(layout[k]) for k in ("flow", "hift", "speech_tokenizer_v2_25hz", "campplus")] == [605, 328, 102, 937]
    report = validate_weights(tmp_path)
    assert report.whole and not report.unexpected and not report.misshaped
    raw = convert(tmp_path).manifest.raw["components"]
    counts = {c: len(part["tensors"]) for c, part in raw.items()}
    assert counts == {"tokenizer": 102, "speaker": 937 if kind == "names" else 617, "flow": 605, "hift": 328}
    nets = load_token2wav(tmp_path)
    assert (nets.tokenizer.config, nets.speaker.config, nets.hift.config) == (S3Config(), SpeakerConfig(), HiftConfig())
    assert validate_weights(tmp_path).whole


@pytest.mark.parametrize("component", ["flow", "hift"])
def test_any_one_tensor_of_the_published_archives(shared, tmp_path, component):
    """Each removed or mis-shaped in turn, by the archive's own description."""
    layout = {n: tuple(s) for n, s in json.loads((shared / "published_layout.json").read_text())[component][
        "tensors"].items()}  # fmt: skip
    (tmp_path / "flow.yaml").write_bytes((shared / "Step-Audio-2-mini" / "token2wav" / "flow.yaml").read_bytes())
    for name in list(layout)[::25]:
        for wrong in ({n: s for n, s in layout.items() if n != name},
                      layout | {name: (*layout[name][:-1], layout[name][-1] + 1)}):  # fmt: skip
            published.write_pt(tmp_path / f"{component}.pt", wrong)
            with pytest.raises(WeightsError) as caught:
                check_part(describe(tmp_path, component))
            assert name in str(caught.value) and "1 " in str(caught.value)


def test_layouts_of_the_tiny_files_are_those_of_the_nets():
    assert set(flow_layout(published.CONFIGS["flow"])) == set(published.tiny_tensors()["flow"])
