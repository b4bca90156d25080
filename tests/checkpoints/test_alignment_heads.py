"""Heads that follow the speech belong to the weights that they were found on: beside others they are not used."""

import json
import shutil
import warnings
from pathlib import Path

import mlx.core as mx
import pytest
import quantised
import tiny

from stepaudio.checkpoints.alignment_heads import FILE, AlignmentHeads, weights_of
from stepaudio.checkpoints.decoder_folder import plan_decoder, plan_return, write_export
from stepaudio.checkpoints.header import SINGLE_FILE, read_header
from stepaudio.checkpoints.layout import parameters_of
from stepaudio.checkpoints.quantize import quantise
from stepaudio.checkpoints.recipe import Recipe
from stepaudio.checkpoints.save import save_checkpoint
from stepaudio.errors import ConfigError
from stepaudio.model import StepAudio2
from stepaudio.models.quantization import Bits
from stepaudio.models.speech_lm import StepAudioConfig
from stepaudio.train import nano

HEADS = ((0, 1), (1, 3))


def write_heads(folder: Path, **said) -> Path:
    content = {"heads": HEADS, "filter_width": 3, "made": "by hand", "weights": weights_of(folder)} | said
    (folder / FILE).write_text(json.dumps(content), encoding="utf-8")
    return folder


def loaded(folder: Path) -> tuple[StepAudio2, list[str]]:
    """The model, and what was warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = StepAudio2.load(folder)
    return model, [str(w.message) for w in caught if FILE in str(w.message)]


@pytest.fixture
def model(tmp_path):
    return write_heads(tiny.write(tmp_path / "model"))


def test_heads_are_used_beside_their_own_weights(model):
    found, said = loaded(model)
    assert found.engine.require_alignment().heads == HEADS and not said
    of_file = AlignmentHeads.of_weights(model / SINGLE_FILE, found.config.text_config)
    assert of_file is not None and of_file.heads == HEADS


def test_the_same_weights_in_several_files_are_the_same(model, tmp_path):
    net = StepAudio2.load(model, dtype=mx.float32).net
    files = save_checkpoint(tmp_path / "shards", StepAudioConfig.from_file(model), parameters_of(net), 100_000)
    assert len(files) > 3 and weights_of(tmp_path / "shards") == weights_of(model)


@pytest.mark.parametrize("which", ["first tensor", "last tensor", "end of a tensor"])
def test_a_value_moved_anywhere_that_training_moves_is_other_weights(model, which):
    infos = sorted(read_header(model / SINGLE_FILE).values(), key=lambda info: info.offset)
    info = infos[-1] if which == "last tensor" else infos[0] if which == "first tensor" else max(
        infos, key=lambda info: info.nbytes
    )  # fmt: skip
    with (model / SINGLE_FILE).open("r+b") as stream:
        stream.seek(info.offset + (info.nbytes - 1 if which.startswith("end") else 0))
        byte = stream.read(1)
        stream.seek(-1, 1)
        stream.write(bytes([byte[0] ^ 1]))
    found, said = loaded(model)
    assert len(said) == 1 and "of other weights than those beside it" in said[0] and "\n" not in said[0]
    with pytest.raises(ConfigError, match="found none of these weights"):
        found.transcribe(tiny.noise(1), sr=16_000, words=True)
    assert found.transcribe(tiny.noise(1), sr=16_000, max_tokens=4).segments  # all else goes on


@pytest.mark.parametrize("weights", ["", "0" * 64])
def test_a_file_that_does_not_say_whose_heads_they_are_is_not_used(model, weights):
    found, said = loaded(write_heads(model, weights=weights))
    assert found.engine.alignment is None and len(said) == 1


def test_nothing_that_writes_other_weights_takes_the_heads_along(tmp_path):
    source = write_heads(quantised.write(tmp_path / "source"))
    done = quantise(source, tmp_path / "small", Recipe(Bits(8)))
    assert any(FILE in note for note in done.manifest["notes"]) and FILE in done.table()
    write_export(plan_decoder(source), tmp_path / "decoder")
    back = plan_return(source, tmp_path / "decoder")
    assert any(FILE in note for note in back.notes)
    write_export(back, tmp_path / "back")
    nano.average_models([source, source], tmp_path / "mean")
    for name in ("small", "decoder", "back", "mean"):
        assert (tmp_path / name / "config.json").is_file() and not (tmp_path / name / FILE).exists(), name


def test_weights_trained_into_a_folder_with_heads_have_none(model, tmp_path):
    """As a copy of the weights alone does, and a mean that is written there."""
    other = tiny.write(tmp_path / "other", seed=1)
    nano.average_models([other], model)
    assert (model / FILE).exists() and loaded(model)[0].engine.alignment is None
    copied = write_heads(tiny.write(tmp_path / "copied"))
    shutil.copyfile(other / SINGLE_FILE, copied / SINGLE_FILE)
    assert loaded(copied)[0].engine.alignment is None
