"""The trained nets that are bundled: the sound that they make of codes has the words and the pitch of the clip."""

import numpy as np
import pytest

import stepaudio
from stepaudio.audio.load import load_audio
from stepaudio.checkpoints import validate_weights
from stepaudio.evaluation.manifest import read_manifest
from stepaudio.experiments.provenance import file_hash, weights_hash
from stepaudio.models.token2wav.flow import FlowOptions
from stepaudio.resources import data_folder, speech_manifest, voice_clip
from stepaudio.synthesis import Synthesizer

RATE = 24_000


@pytest.fixture(scope="module")
def synthesizer() -> Synthesizer:
    return Synthesizer.load(data_folder() / "nano")


def pitch(wave: np.ndarray) -> float:
    """Hz: the median over frames of 40 ms of the lag at which the sound is most like itself."""
    frames = np.lib.stride_tricks.sliding_window_view(wave, 960)[::240].astype(np.float64)
    frames = frames[np.square(frames).mean(1) > np.square(wave).mean()]
    spectrum = np.abs(np.fft.rfft(frames - frames.mean(1, keepdims=True), 2048)) ** 2
    alike = np.fft.irfft(spectrum)[:, 80:343]  # 300 to 70 Hz
    return float(np.median(RATE / (80 + alike.argmax(1))))


def test_its_sound_has_the_words_and_the_pitch_of_the_clip(synthesizer):
    said = {clip.file.name: clip.text.split() for clip in read_manifest(speech_manifest())}
    model, pitches = stepaudio.load(), {}
    for name in ("female", "male"):
        clip = voice_clip(name)
        voice = synthesizer.voice(clip)
        sound = synthesizer.decode(voice.codes, voice, options=FlowOptions(n_steps=3))
        words = model.transcribe(sound.wave, sr=RATE, sampling="reference").text.split()
        assert len(set(words) & set(said[clip.name])) >= 0.6 * len(set(said[clip.name])), words
        pitches[name] = pitch(sound.wave), pitch(load_audio(clip, to=RATE))
    for made, true in pitches.values():
        assert made == pytest.approx(true, rel=0.1)
    assert pitches["male"][0] < 0.8 * pitches["female"][0]


def test_the_text_half_is_what_it_was_without_it():
    """Weights of a sweep are named by the language model's files alone; a report counts both halves."""
    folder = data_folder() / "nano"
    report = validate_weights(folder)
    assert report.whole and not report.unexpected
    assert {"tokenizer", "speaker", "flow", "hift"} < {part.name for part in report.components}
    assert weights_hash(folder) == file_hash(folder / "model.safetensors")
