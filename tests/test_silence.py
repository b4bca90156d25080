"""Speech behind silence is written by every way in, as the bundled model writes it alone."""

import json

import numpy as np
import pytest
import soundfile as sf

import stepaudio
from stepaudio.audio.load import load_audio
from stepaudio.cli.main import main
from stepaudio.errors import ConfigError
from stepaudio.evaluation.manifest import Clip
from stepaudio.evaluation.word_errors import count_errors
from stepaudio.experiments import Grid
from stepaudio.experiments.grid import Setting
from stepaudio.experiments.sweep import transcribe_one
from stepaudio.resources import data_folder

SAID = {
    "free_emma.flac": "my grandmother kept every letter in a tin box beneath the stairs",
    "free_nicole.flac": "please read the second page again a little more slowly",
}


@pytest.fixture(scope="module")
def model(nano):
    return stepaudio.load(nano)


@pytest.fixture(scope="module")
def clips() -> list[np.ndarray]:
    return [load_audio(data_folder() / "speech" / name) for name in SAID]


@pytest.fixture(scope="module")
def behind_silence(clips, tmp_path_factory):
    """A file: 8 s of nothing, a sentence, 12 s of nothing, another sentence, 5 s of nothing."""
    parts = [np.zeros(seconds * 16_000, np.float32) for seconds in (8, 12, 5)]
    path = tmp_path_factory.mktemp("silence") / "a.wav"
    sf.write(path, np.concatenate([parts[0], clips[0], parts[1], clips[1], parts[2]]), 16_000)
    return path


def errors(text: str, said: str = " ".join(SAID.values())) -> int:
    return count_errors(said, text)[1]


@pytest.fixture(scope="module")
def skipping(model, behind_silence):
    """What the model makes of that file, under both rules."""
    return {rule: model.transcribe(behind_silence, sampling=rule) for rule in ("planned", "reference")}


@pytest.mark.parametrize("sampling", ["planned", "reference"])
def test_no_word_is_lost(model, behind_silence, skipping, sampling):
    found = skipping[sampling]
    assert errors(found.text) <= 3 and found.skipped_seconds > 20
    whole = model.transcribe(behind_silence, sampling=sampling, vad="off")
    assert errors(whole.text) <= 6 and whole.skipped == ()  # the net itself hears speech behind silence


def test_every_way_in(model, behind_silence, skipping, clips, tmp_path, capsys):
    want = skipping["reference"].text
    (tmp_path / "m.tsv").write_text(f"file\ttext\n{behind_silence}\t{' '.join(SAID.values())}\n")
    scores = stepaudio.evaluate(model, tmp_path / "m.tsv", sampling="reference")
    assert scores[0].transcript.text == want and scores[0].to_dict()["skipped_seconds"] > 20
    batch = model.transcribe([clips[0], load_audio(behind_silence)], sr=16_000, sampling="reference")
    assert batch[1].text == want and batch[0].skipped == ()
    assert main(["transcribe", str(behind_silence), "--sampling", "reference"]) == 0
    assert json.loads(capsys.readouterr().out)["text"] == want
    row = transcribe_one(model, Clip(behind_silence, "x"), Setting.of({"sampling": "reference"}), 0)
    assert row["text"] == want and "silence" in row["stops"]
    late = np.concatenate([np.zeros(8 * 16_000, np.float32), clips[0]])
    tokens = [step.token for step in model.stream(late, sr=16_000, sampling="reference")]
    assert errors(model.engine.decode(tokens), SAID["free_emma.flac"]) <= 2
    assert [s.token for s in model.stream(clips[0], sr=16_000)] == [
        s.token for s in model.stream(clips[0], sr=16_000, vad="off")
    ]


def test_silence_and_steady_noise_say_nothing(model):
    rng = np.random.default_rng(0)
    n = 12 * 16_000
    recordings = [np.zeros(n, np.float32), *(rng.normal(0, s, n).astype(np.float32) for s in (1e-3, 3e-3))]
    assert [t.text for t in model.transcribe(recordings, sr=16_000)] == ["", "", ""]


def test_a_detector_that_is_none_is_refused_before_any_work(model, clips):
    for vad in ("webrtc", 3):
        with pytest.raises(ConfigError, match="vad: expected"):
            model.transcribe(clips[0], sr=16_000, vad=vad)
    with pytest.raises(ConfigError, match="vad: expected"):
        Grid([Clip("a.wav", "x")], {"a": {"vad": "webrtc"}})
