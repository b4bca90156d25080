"""`data/sweeps/read_aloud.py` gives what `SpeechModel` gives, which speaks one text at a time."""

import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from stepaudio import Sampling, load
from stepaudio.evaluation.repetition import loop_period_onset
from stepaudio.evaluation.word_errors import count_errors
from stepaudio.experiments.grid import Grid
from stepaudio.speech_model import SpeechModel, SpeechOptions

SWEEPS = Path(__file__).resolve().parents[2] / "data" / "sweeps"


@pytest.fixture(scope="module")
def grid():
    return Grid.from_file(SWEEPS / "aloud.json")


@pytest.fixture(scope="module")
def aloud(grid):
    sys.path.insert(0, str(SWEEPS))
    try:
        reader = import_module("read_aloud").Aloud(grid, None)
    finally:
        sys.path.remove(str(SWEEPS))
    reader.clips = reader.clips[2:4]
    return reader


@pytest.fixture(scope="module")
def speaker(nano, aloud):
    return SpeechModel(load(nano), aloud.synthesizer)


def test_texts_are_drawn_as_in_the_published_examples(grid):
    assert {replace(s.sampling, seed=0) for s in grid.settings.values()} == {Sampling.reference("chat")}


@pytest.mark.parametrize("name", ["full", "window 128"])
def test_rows_are_those_of_texts_spoken_one_at_a_time(aloud, grid, speaker, name):
    setting = replace(grid.settings[name], max_tokens=90)
    aloud.names[setting] = name
    options = SpeechOptions(setting.options)
    for i, (clip, voice) in enumerate(zip(aloud.clips, aloud.voices, strict=True)):
        row, spoken = aloud.run(speaker.model, clip, setting, 0), speaker.synthesize(clip.text, voice, options, seed=0)
        (answer,) = spoken.answers
        heard = speaker.model.transcribe(spoken.wave, sr=spoken.sample_rate, sampling="reference", cache="full").text
        assert row["ids"] == [list(answer.tokens)] and row["stops"] == [str(answer.stop)]
        assert np.array_equal(aloud.heard[answer.codes, i, 0][0].wave, spoken.wave)
        assert row["text"] == heard and row["audio_seconds"] == len(spoken.wave) / spoken.sample_rate
        assert (row["words"], row["errors"]) == count_errors(clip.text, heard)
        assert (row["period"], row["onset"]) == loop_period_onset(answer.codes)
        held = row["kv_bytes"]  # the buffers of a window are full, those of a full cache have room to grow
        assert held == answer.kv_bytes if name != "full" else held <= answer.kv_bytes
        assert row["mean_logprob"] == pytest.approx(answer.mean_logprob, abs=1e-4)
