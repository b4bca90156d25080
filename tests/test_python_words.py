"""Words of the command line that Python takes too: dtypes, voices, bits; and what is refused in their place."""

import json

import mlx.core as mx
import numpy as np
import pytest
import quantised
import soundfile as sf
import tiny

import stepaudio
from stepaudio.checkpoints.quantize import quantise
from stepaudio.errors import DecodeError, StepAudioError, WeightsError
from stepaudio.resources import voice_clip
from stepaudio.synthesis import Synthesizer

SOUND = tiny.noise(2)


@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16"])
def test_a_dtype_may_be_named(speaking_checkpoint, name):
    speech = stepaudio.SpeechModel.load(speaking_checkpoint, dtype=name)
    flow = Synthesizer.load(speaking_checkpoint, dtype=name).parts.flow
    assert speech.model.net.dtype == flow.dtype == getattr(mx, name)


@pytest.mark.parametrize("wrong", ["int8", "bf16", mx.int8, np.float32, 16])
def test_a_dtype_that_nets_are_not_held_in(tiny_checkpoint, speaking_checkpoint, wrong):
    for load, folder in ((stepaudio.load, tiny_checkpoint), (Synthesizer.load, speaking_checkpoint)):
        with pytest.raises(WeightsError, match="dtype: expected float32, float16 or bfloat16, found"):
            load(folder, dtype=wrong)


def test_voices_of_the_command_line_by_their_names(speaking_checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    speech = stepaudio.SpeechModel.load(speaking_checkpoint)
    voice = speech.synthesizer.voice
    assert voice("female") == voice(voice_clip()) != voice("male") == voice(voice_clip("male"))
    own = speech.synthesize("hello", max_tokens=20)
    assert np.array_equal(own.wave, speech.synthesize("hello", voice("female"), max_tokens=20).wave)
    sf.write("male", SOUND, 16_000, format="WAV", subtype="FLOAT")  # a file comes before the name
    assert voice("male") == voice(SOUND)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"draft": "data/nano"}, "draft: expected a model as stepaudio.load gives it, found 'data/nano'"),
        ({"prompt_cache": "talk.kept"}, "prompt_cache: expected PromptCache"),
        ({"prompt_cache": stepaudio.PromptCache}, "prompt_cache: expected PromptCache"),
    ],
)
def test_what_a_model_cannot_be_altered_by(tiny_model, given, said):
    with pytest.raises(DecodeError, match=said):
        tiny_model.altered(**given)


@pytest.mark.parametrize("bits", [8.0, "8", True, 3])
def test_bits_of_keys_and_values_that_are_none(tiny_model, bits):
    with pytest.raises(DecodeError, match="kv_bits: expected 8, 4 or none"):
        tiny_model.transcribe(SOUND, kv_bits=bits, max_tokens=6)


def test_a_recipe_may_be_a_number_or_rules(tmp_path):
    source = quantised.write(tmp_path / "m")
    quantise(source, tmp_path / "four", 4)
    quantise(source, tmp_path / "head", {"head": "8/32"})
    four, head = (json.loads((tmp_path / n / "config.json").read_text())["quantization"] for n in ("four", "head"))
    assert (four["bits"], head["bits"], head["group_size"]) == (4, 8, 32)
    for wrong in (None, 4.0, "4", [4], 7, {"head": 4.0}):
        with pytest.raises(StepAudioError, match="expected"):
            quantise(source, tmp_path / "none", wrong)
    assert not (tmp_path / "none").exists()
