"""A LoRA on the command line and in Python: found by name, named in reports, and asked what it can do."""

import io
import json
import shutil
import warnings

import adapters
import numpy as np
import pytest
import quantised
from commands import FEW, one_line

import stepaudio
from stepaudio.checkpoints.capabilities import Capabilities
from stepaudio.checkpoints.quantize import quantise
from stepaudio.cli.main import main
from stepaudio.errors import ConfigError, PromptError, WeightsError
from stepaudio.experiments.grid import Grid
from stepaudio.experiments.provenance import provenance
from stepaudio.experiments.sweep import run_sweep
from stepaudio.speech_model import SpeechModel

CAN = {"tasks": ["transcribe", "respond", "speak"]}


@pytest.fixture(scope="module")
def folder(tiny_checkpoint, tmp_path_factory):
    """The tiny model, trained to transcribe alone, with the LoRA `talk` that converses, and with a broken one."""
    folder = tmp_path_factory.mktemp("models") / "recogniser"
    shutil.copytree(tiny_checkpoint, folder)
    (folder / "capabilities.json").write_text('{"tasks": ["transcribe"]}')
    adapters.write_mlx(folder / "talk", adapters.pairs_of(adapters.layers_of(folder)))
    (folder / "talk" / "capabilities.json").write_text(json.dumps(CAN))
    shutil.copytree(folder / "talk", folder / "broken")
    (folder / "broken" / "capabilities.json").write_text("{")
    return folder


def test_a_name_means_a_folder_within_the_models(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = stepaudio.load(folder, lora="talk")
    assert model.lora.path == str(folder / "talk") and model.capabilities.tasks == tuple(CAN["tasks"])
    adapters.write_mlx(tmp_path / "talk", {"lm_head": adapters.pairs_of(adapters.layers_of(folder))["lm_head"]})
    assert stepaudio.load(folder, lora="talk").lora.layers == 16
    other = stepaudio.load(folder, lora="./talk")
    assert other.lora.layers == 1 and other.capabilities == stepaudio.load(folder).capabilities
    with pytest.raises(
        WeightsError, match=r"other: no such folder is here; .*, or the name of one within the model's: broken or talk"
    ):
        stepaudio.load(folder, lora="other")


def test_it_says_what_is_on(folder):
    model, plain = stepaudio.load(folder, lora="talk"), stepaudio.load(folder)
    assert "LoRA        talk (mlx-lm, rank 4, 16 layers: lm_head 1, model 15)\n" in repr(model)
    assert plain.lora is None and "LoRA" not in repr(plain)
    assert model.altered(pipeline=model.pipeline).lora == model.lora
    tokens = [model.generate_text("hello", sampling="greedy", max_tokens=8).tokens]
    able = stepaudio.load(folder, lora=folder / "talk", dtype="float32")
    assert able.generate_text("hello", sampling="greedy", max_tokens=8).tokens == tokens[0]


def test_a_refusal_names_the_lora_that_can(folder):
    said = r"cannot respond: .* says; a LoRA beside it was trained for that: add --lora talk, or in Python lora='talk'"
    with pytest.raises(PromptError, match=said):
        stepaudio.load(folder).generate_text("hello")
    with pytest.raises(PromptError, match="load a checkpoint that can"):
        Capabilities.of(folder).require("translate")
    able = Capabilities.of(folder, "talk")
    able.require("respond")
    with pytest.raises(PromptError, match="load a checkpoint that can"):
        able.require("translate")
    with pytest.raises(ConfigError, match="not readable as JSON"):
        Capabilities.of(folder, "broken")


def test_a_model_that_says_again_warns_of_the_lora_that_answers(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "model")
    (tmp_path / "model" / "capabilities.json").write_text('{"tasks": ["transcribe", "repeat"]}')
    with pytest.warns(UserWarning, match="says again what is said there; a LoRA beside it .* add --lora talk"):
        Capabilities.of(tmp_path / "model").require_answer()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Capabilities.of(tmp_path / "model", "talk").require_answer()


def test_a_model_that_speaks_by_its_lora(speaking_checkpoint, tmp_path):
    shutil.copytree(speaking_checkpoint, tmp_path / "model")
    (tmp_path / "model" / "capabilities.json").write_text('{"tasks": ["transcribe"]}')
    adapters.write_mlx(tmp_path / "model" / "talk", adapters.pairs_of(adapters.layers_of(speaking_checkpoint)))
    (tmp_path / "model" / "talk" / "capabilities.json").write_text(json.dumps(CAN))
    with pytest.raises(PromptError, match="add --lora talk"):
        SpeechModel.load(tmp_path / "model")
    assert SpeechModel.load(tmp_path / "model", lora="talk").model.lora.layers == 16


def test_a_quantised_model_keeps_its_loras(tmp_path):
    source = quantised.write(tmp_path / "model")
    adapters.write_mlx(source / "talk", adapters.pairs_of(adapters.layers_of(source)))
    (source / "talk" / "capabilities.json").write_text(json.dumps(CAN))
    (source / "talk" / "notes.txt").write_text("not read by anybody")
    quantise(source, tmp_path / "small", 4)
    model = stepaudio.load(tmp_path / "small", lora="talk")
    assert model.lora.beside == 16 and model.capabilities.tasks == tuple(CAN["tasks"])
    assert sorted(p.name for p in (tmp_path / "small" / "talk").iterdir()) == [
        "adapter_config.json", "adapters.safetensors", "capabilities.json",
    ]  # fmt: skip


# ---- the commands ----


def test_commands_take_it(run, wav, folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    manifest = tmp_path / "m.tsv"
    manifest.write_text("file\ttext\na.wav\tthe cat\n")
    greedy = ["--sampling", "greedy", *FEW]
    status, plain, _ = run("transcribe", wav, "--model", folder, *greedy)
    with_lora = run("transcribe", wav, "--model", folder, "--lora", "talk", *greedy)
    assert status == with_lora[0] == 0
    wanted = stepaudio.load(folder, lora="talk").transcribe(wav, sampling="greedy", max_tokens=6)
    tokens = [json.loads(lines[0])["segments"][0]["tokens"] for lines in (plain, with_lora[1])]
    assert tokens[1] == list(wanted.segments[0].tokens) != tokens[0]
    status, out, _ = run("evaluate", manifest, "--model", folder, "--lora", "talk", "--json", *greedy)
    assert status == 0 and json.loads(out[-1])["lora"] == "talk"


def test_a_command_refuses_before_the_model_is_read(run, wav, folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stepaudio.StepAudio2, "load", lambda *a, **k: pytest.fail("the model was read"))
    status, _, err = run("respond", wav, "-o", "a.wav", "--model", folder)
    assert status == 2 and "add --lora talk" in one_line(err)
    status, _, err = run("transcribe", wav, "--model", folder, "--lora", "nowhere")
    assert status == 2 and "lora: nowhere: no such folder is here" in one_line(err)


def test_weights_accounts_for_it(run, folder, tmp_path):
    status, out, _ = run("weights", folder, "--lora", "talk")
    assert status == 0 and out[1] == "LoRA: talk (mlx-lm, rank 4, 16 layers: lm_head 1, model 15)"
    status, out, _ = run("weights", folder, "--lora", "talk", "--json")
    said = json.loads("\n".join(out))["lora"]
    assert (said["format"], said["ranks"], said["scales"], said["beside"]) == ("mlx-lm", [4], [adapters.SCALE], 0)
    assert said["components"] == {"model": 15, "lm_head": 1}
    held = sum(np.prod(x.shape) for pair in adapters.pairs_of(adapters.layers_of(folder)).values() for x in pair)
    assert said["values"] == held
    adapters.write_mlx(tmp_path / "odd", {"model.layers.9.mlp.up_proj": (np.zeros((8, 4)), np.zeros((4, 8)))})
    status, out, _ = run("weights", folder, "--lora", tmp_path / "odd")
    assert status == 2 and "unreadable" in out[0]
    status, _, err = run("weights", folder, "--lora", "talk", "--against", folder)
    assert status == 2 and "--against compares what is stored" in one_line(err)


def test_a_chat_says_what_converses(folder, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert main(["chat", "--model", str(folder)]) == 0
    assert "read alone, without those before it; a LoRA beside it" in capsys.readouterr().err.replace("\n", " ")
    assert main(["chat", "--model", str(folder), "--lora", "talk"]) == 0
    assert capsys.readouterr().err == ""


# ---- sweeps ----


def test_runs_of_a_sweep_are_those_of_their_lora(folder, wav, tmp_path):
    spec = {"clips": [{"file": "a.wav", "text": "the cat"}], "model": str(folder), "lora": "talk",
            "settings": {"greedy": {"sampling": "greedy", "max_tokens": 4, "vad": "off"}}}  # fmt: skip
    (tmp_path / "grid.json").write_text(json.dumps(spec))
    grid = Grid.from_file(tmp_path / "grid.json")
    row = run_sweep(grid, tmp_path / "runs.jsonl", progress=False).rows[0]
    plain = provenance(folder)
    assert row["model"] == f"{plain['model']} with LoRA talk" and row["weights_hash"] != plain["weights_hash"]
    shutil.copytree(folder / "talk", tmp_path / "beside")
    (tmp_path / "grid.json").write_text(json.dumps(spec | {"lora": "beside"}))
    assert Grid.from_file(tmp_path / "grid.json").lora == tmp_path / "beside"
    (tmp_path / "grid.json").write_text(json.dumps(spec | {"lora": 3}))
    with pytest.raises(ConfigError, match=r"lora: expected the folder of a LoRA or null, found 3"):
        Grid.from_file(tmp_path / "grid.json")
