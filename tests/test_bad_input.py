"""The table of bad input, through the facade and the command: each row has its stated outcome.

What is wrong with single recordings (empty, one sample, NaN, eight channels, 192 kHz, ten hours, ...) is in
`tests/audio`; here stand a few of them to see that the error arrives whole at the top.
"""

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import tiny
from mlx.utils import tree_flatten
from safetensors.numpy import load_file, save_file

from stepaudio.checkpoints.header import INDEX_FILE, SINGLE_FILE
from stepaudio.checkpoints.save import save_checkpoint
from stepaudio.cli.main import main
from stepaudio.errors import AudioError, ConfigError, TokenizerError, WeightsError
from stepaudio.model import StepAudio2

SHARD = "model-00002-of-"  # the second of several


@pytest.fixture
def folder(tiny_checkpoint, tmp_path):
    """A whole checkpoint in one file, to be spoilt."""
    return shutil.copytree(tiny_checkpoint, tmp_path / "model")


@pytest.fixture
def sharded(folder, tiny_model):
    """The same in several shards with an index."""
    save_checkpoint(folder, tiny_model.config, dict(tree_flatten(tiny_model.net.parameters())), 40_000)
    assert (folder / INDEX_FILE).is_file() and not (folder / SINGLE_FILE).exists()
    return folder


def status_of(capsys, *argv) -> tuple[int, str]:
    capsys.readouterr()
    status = main([str(a) for a in argv])
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return status, out + err


def refused(folder, capsys, error, message, weights_status=2):
    """`load` raises, the command exits with 2 and one line, `weights` says it in its exit status and its JSON."""
    with pytest.raises(error, match=message):
        StepAudio2.load(folder)
    status, said = status_of(capsys, "transcribe", "any.wav", "--model", folder)
    assert status == 2 and len(said.splitlines()) == 1
    status, said = status_of(capsys, "weights", folder, "--json")
    assert status == weights_status == json.loads(said)["exit_status"]
    return json.loads(said)


def edit(path: Path, change) -> None:
    data = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(change(data) or data), encoding="utf-8")


def shard(folder: Path) -> Path:
    return next(folder.glob(f"{SHARD}*"))


def respell(folder: Path, change) -> None:
    tensors = load_file(folder / SINGLE_FILE)
    change(tensors)
    save_file(tensors, folder / SINGLE_FILE)


# ---- model folders ----


def test_no_such_folder(tmp_path, capsys):
    refused(tmp_path / "nowhere", capsys, ConfigError, "nowhere")


def test_empty_folder(tmp_path, capsys):
    refused(tmp_path, capsys, ConfigError, "config.json: no such file; expected the folder of a published model")


def test_a_file_instead_of_a_folder(folder, capsys):
    with pytest.raises(ConfigError, match="not readable as JSON"):
        StepAudio2.load(folder / SINGLE_FILE)


def test_another_model_s_folder(folder, capsys):
    edit(folder / "config.json", lambda c: c | {"model_type": "qwen2"})
    refused(folder, capsys, ConfigError, "expected 'step_audio_2', found 'qwen2'")


def test_a_flat_config(folder, capsys):
    edit(folder / "config.json", lambda c: {"hidden_size": 32})
    refused(folder, capsys, ConfigError, "unknown key hidden_size")


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00", "[" * 100_000])
def test_a_broken_config(folder, capsys, text):
    (folder / "config.json").write_text(text)
    refused(folder, capsys, ConfigError, "config.json")


def test_a_config_of_other_sizes(folder, capsys):
    """Names match, shapes do not: nothing can be loaded."""

    def wider(config):
        config["text_config"] |= {"hidden_size": 64}
        config["audio_encoder_config"] |= {"llm_dim": 64, "n_audio_state": 64}

    edit(folder / "config.json", wider)
    report = refused(folder, capsys, WeightsError, "tensors match")
    assert report["misshaped"]


def test_no_weights(folder, capsys):
    (folder / SINGLE_FILE).unlink()
    refused(folder, capsys, WeightsError, "model")


def test_a_missing_shard(sharded, capsys):
    name = shard(sharded).name
    shard(sharded).unlink()
    assert name in refused(sharded, capsys, WeightsError, name)["error"]


@pytest.mark.parametrize("keep", [0, 4, 9, 200, -1])
def test_a_truncated_shard(sharded, capsys, keep):
    path = shard(sharded)
    path.write_bytes(path.read_bytes()[:keep])
    refused(sharded, capsys, WeightsError, path.name)


def test_a_truncated_file(folder, capsys):
    path = folder / SINGLE_FILE
    path.write_bytes(path.read_bytes()[:-100])
    refused(folder, capsys, WeightsError, SINGLE_FILE)


def test_a_header_that_lies_about_its_size(folder, capsys):
    path = folder / SINGLE_FILE
    path.write_bytes((2**62).to_bytes(8, "little") + path.read_bytes()[8:])
    refused(folder, capsys, WeightsError, SINGLE_FILE)


def test_text_named_safetensors(folder, capsys):
    (folder / SINGLE_FILE).write_text("these are no weights at all")
    refused(folder, capsys, WeightsError, SINGLE_FILE)


def test_wrong_dtype(folder, capsys):
    def whole_numbers(tensors):
        tensors["lm_head.weight"] = tensors["lm_head.weight"].astype(np.int32)

    respell(folder, whole_numbers)
    report = refused(folder, capsys, WeightsError, r"unusable dtype: lm_head.weight \(I32\)", weights_status=1)
    assert report["wrong_dtype"] == [["lm_head.weight", "I32"]]


def test_extra_tensors_are_reported_and_left_alone(folder, capsys, tiny_model):
    respell(folder, lambda t: t.update({"talker.weight": np.zeros((3, 3)), "model.extra": np.zeros(2, np.float32)}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = StepAudio2.load(folder)
    assert model.report.whole and set(model.report.unexpected) == {"talker.weight", "model.extra"}
    x = tiny.noise(1)
    assert model.transcribe(x, max_tokens=5).text == tiny_model.transcribe(x, max_tokens=5).text
    status, said = status_of(capsys, "weights", folder)
    assert status == 0 and "talker.weight" in said


def test_a_transposed_tensor_gets_its_repair(folder, capsys):
    respell(
        folder,
        lambda t: t.update({"encoder.conv1.weight": np.ascontiguousarray(t["encoder.conv1.weight"].swapaxes(1, 2))}),
    )
    with pytest.warns(UserWarning, match="conv1"):
        model = StepAudio2.load(folder)
    with pytest.raises(WeightsError, match="conv1"):
        model.transcribe(tiny.noise(1))
    status, said = status_of(capsys, "weights", folder, "--json")
    (wrong,) = json.loads(said)["misshaped"]
    assert status == 1 and wrong["name"] == "encoder.conv1.weight" and wrong["repair"] != "none found"


# ---- an index that lies ----


def points_elsewhere(index):
    names = list(index["weight_map"])
    index["weight_map"][names[0]] = index["weight_map"][names[-1]]


def forgets_one(index):
    del index["weight_map"][next(iter(index["weight_map"]))]


def invents_one(index):
    index["weight_map"]["made.up"] = next(iter(index["weight_map"].values()))


def wrong_total(index):
    index["metadata"]["total_size"] += 1


@pytest.mark.parametrize("lie", [points_elsewhere, forgets_one, invents_one, wrong_total])
def test_a_lying_index(sharded, capsys, lie):
    edit(sharded / INDEX_FILE, lie)
    refused(sharded, capsys, WeightsError, "index|shard|total")


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "a/../../b.safetensors"])
def test_an_index_that_leaves_the_folder(sharded, capsys, name):
    edit(sharded / INDEX_FILE, lambda i: i["weight_map"].update(dict.fromkeys(i["weight_map"], name)))
    assert name in refused(sharded, capsys, WeightsError, "leave|folder")["error"]


def test_a_file_and_an_index_at_once(sharded, tiny_checkpoint, capsys):
    shutil.copy(tiny_checkpoint / SINGLE_FILE, sharded)
    refused(sharded, capsys, WeightsError, SINGLE_FILE)


# ---- tokenizers ----


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt", "added_tokens.json", "tokenizer_config.json"])
def test_a_missing_tokenizer_file(folder, capsys, name):
    (folder / name).unlink()
    with pytest.raises(TokenizerError, match=f"{name}.*--no-tokenizer"):
        StepAudio2.load(folder)
    status, said = status_of(capsys, "transcribe", "any.wav", "--model", folder)
    assert status == 2 and name in said
    assert StepAudio2.load(folder, tokenizer=None).tokenizer is None  # the deliberate way


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt", "added_tokens.json", "tokenizer_config.json"])
def test_a_broken_tokenizer_file(folder, name):
    (folder / name).write_text("[1, 2")
    with pytest.raises(TokenizerError, match=name):
        StepAudio2.load(folder)


# ---- recordings, seen from the top ----


def recording(folder: Path, what: str) -> Path:
    path = folder / f"{what}.wav"
    if what == "empty file":
        path.touch()
    elif what == "text":
        path.write_text("I am a recording, honestly")
    elif what == "folder":
        path.mkdir()
    elif what == "header alone":
        sf.write(path, np.zeros(0), 16_000)
    elif what == "one sample":
        sf.write(path, np.ones(1), 16_000)
    elif what == "NaN":
        sf.write(path, np.full(16_000, np.nan, np.float32), 16_000, subtype="FLOAT")
    return path


@pytest.mark.parametrize("what", ["none", "empty file", "text", "folder", "header alone", "one sample", "NaN"])
def test_bad_recordings(tmp_path, tiny_model, tiny_checkpoint, capsys, what):
    path = recording(tmp_path, what)
    with pytest.raises(AudioError, match=f"{what}.wav"):
        tiny_model.transcribe(path)
    sf.write(tmp_path / "good.wav", tiny.noise(1), 16_000)
    capsys.readouterr()
    status = main(
        ["transcribe", str(path), str(tmp_path / "good.wav"), "--model", str(tiny_checkpoint), "--max-tokens", "3"]
    )
    bad, good = map(json.loads, capsys.readouterr().out.splitlines())
    assert status == 1 and set(bad) == {"file", "error"} and good["audio_seconds"] == 1


@pytest.mark.parametrize(
    "x",
    [
        np.zeros(10),
        np.full(16_000, np.inf),
        np.zeros((0, 2)),
        np.zeros(16_000, complex),
        "",
        None,
        7,
        np.array("x"),
    ],
)
def test_bad_arrays(tiny_model, x):
    with pytest.raises(AudioError):
        tiny_model.transcribe(x)


@pytest.mark.parametrize(("channels", "rate"), [(8, 16_000), (1, 192_000), (2, 8_000)])
def test_odd_recordings_are_read(tmp_path, tiny_model, channels, rate):
    x = np.random.default_rng(0).normal(0, 0.1, (rate, channels))
    sf.write(tmp_path / "x.wav", x, rate)
    found = tiny_model.transcribe(tmp_path / "x.wav", max_tokens=3)
    assert found.audio_seconds == pytest.approx(1, abs=1e-3) and len(found.segments) == 1


def test_clipped_and_silent(tiny_model):
    assert tiny_model.transcribe(np.clip(tiny.noise(1) * 100, -1, 1), max_tokens=3).segments[0].tokens
    assert tiny_model.transcribe(np.zeros(16_000, np.float32)).segments[0].stop == "silence"
