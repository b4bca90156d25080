"""Checkpoints that become models: whole ones, partial ones, renamed ones, and those that are refused."""

import mlx.core as mx
import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file, save_file

from stepaudio.errors import PromptError, WeightsError
from stepaudio.model import StepAudio2

OPEN = {"role": "assistant", "content": None}
ASK = [{"role": "human", "content": "what is the time now"}, OPEN]


def copy_with(checkpoint, folder, change):
    """The tiny checkpoint with its dict of tensors changed in place."""
    for file in checkpoint.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    return folder


def without(share: float):
    """A change that drops this share of the tensors, spread over all of them."""

    def change(tensors):
        names = sorted(tensors)
        for i, name in enumerate(names):
            if int((i + 1) * share) > int(i * share):
                del tensors[name]

    return change


def test_load_takes_every_tensor(tiny_checkpoint, tiny_model):
    stored = load_file(tiny_checkpoint / "model.safetensors")
    assert tiny_model.report.whole and set(tiny_model.report.loaded) == set(stored)
    np.testing.assert_array_equal(np.array(tiny_model.net.lm_head.weight.astype(mx.float32)), stored["lm_head.weight"])


def test_dtype_on_demand(tiny_checkpoint):
    assert StepAudio2.load(tiny_checkpoint, dtype=mx.bfloat16).net.dtype == mx.bfloat16
    with pytest.raises(WeightsError, match="float32, float16 or bfloat16"):
        StepAudio2.load(tiny_checkpoint, dtype=mx.int8)


def test_checkpoint_from_the_environment(tiny_checkpoint, monkeypatch):
    monkeypatch.setenv("STEPAUDIO_CHECKPOINT", str(tiny_checkpoint))
    assert StepAudio2.load().report.path == str(tiny_checkpoint)


def test_tokenizer_of_another_folder(tiny_checkpoint, tmp_path):
    for file in ("config.json", "model.safetensors"):
        (tmp_path / file).write_bytes((tiny_checkpoint / file).read_bytes())
    with pytest.raises(PromptError, match="no such file"):
        StepAudio2.load(tmp_path)
    model = StepAudio2.load(tmp_path, tokenizer=tiny_checkpoint)
    assert model.tokenizer.n_ids == StepAudio2.load(tiny_checkpoint).tokenizer.n_ids


def test_tokenizer_with_more_ids_than_rows(tiny_checkpoint, tmp_path):
    tiny.Tokenizer.train(tiny.SENTENCES, 300, n_audio=500).save(tmp_path)
    with pytest.raises(PromptError, match="same model"):
        StepAudio2.load(tiny_checkpoint, tokenizer=tmp_path)


def test_partial_checkpoint_warns_and_will_not_run(tiny_checkpoint, tmp_path):
    folder = copy_with(tiny_checkpoint, tmp_path, without(0.2))
    with pytest.warns(UserWarning, match="far from whole.*encoder: .*not filled"):
        model = StepAudio2.load(folder)
    for ask in (
        lambda: model.transcribe(tiny.noise(1)),
        lambda: model.generate_text(ASK),
        lambda: model.generate_audio_tokens(ASK),
    ):
        with pytest.raises(WeightsError, match="will not run on random weights.*not filled.*allow_random=True"):
            ask()


def test_one_missing_tensor_is_enough_to_refuse(tiny_checkpoint, tmp_path):
    folder = copy_with(tiny_checkpoint, tmp_path, lambda t: t.pop("model.norm.weight"))
    with pytest.warns(UserWarning, match="not whole"):
        model = StepAudio2.load(folder)
    with pytest.raises(WeightsError, match="model.norm.weight"):
        model.transcribe(tiny.noise(1))


def test_random_weights_on_demand(tiny_checkpoint, tmp_path):
    folder = copy_with(tiny_checkpoint, tmp_path, without(0.2))
    with pytest.warns(UserWarning):
        model = StepAudio2.load(folder, allow_random=True)
    assert len(model.generate_text(ASK, max_tokens=3).tokens) <= 3


def test_under_half_is_an_error_whatever_is_allowed(tiny_checkpoint, tmp_path):
    folder = copy_with(tiny_checkpoint, tmp_path, without(0.6))
    with pytest.raises(WeightsError, match="at least 50% are needed"):
        StepAudio2.load(folder, allow_random=True)


def test_rename_repairs(tiny_checkpoint, tmp_path):
    def wrap(tensors):
        for name in list(tensors):
            tensors[f"module.{name}"] = tensors.pop(name)

    folder = copy_with(tiny_checkpoint, tmp_path, wrap)
    assert StepAudio2.load(folder, rename={"module.": ""}).report.whole
