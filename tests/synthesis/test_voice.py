"""Voices: what is read from a clip, what is refused, and that a saved one is the same or is refused."""

import io
import json

import mlx.core as mx
import numpy as np
import pytest
import soundfile as sf
import tiny
from safetensors.numpy import load_file, save_file

from stepaudio.audio.features import flow_mel, kaldi_fbank, log_mel
from stepaudio.audio.load import load_audio
from stepaudio.checkpoints import token2wav as loading
from stepaudio.errors import AudioError, WeightsError
from stepaudio.synthesis import voice as voice_module
from stepaudio.synthesis.voice import DTYPES, Voice, fingerprint, fitted


class Pipe(io.RawIOBase):
    """A stream that cannot go back."""

    def __init__(self, data: bytes):
        self._data = io.BytesIO(data)

    def readable(self):
        return True

    def readinto(self, buffer):
        return self._data.readinto(buffer)


def test_a_voice_is_the_same_wherever_its_bytes_come_from(synthesizer, tmp_path):
    path = tmp_path / "clip.wav"
    sf.write(path, tiny.noise(2), 16_000, subtype="FLOAT")
    wanted, data = Voice.from_clip(synthesizer.parts, path), path.read_bytes()
    for source in (data, io.BytesIO(data), Pipe(data), {"bytes": data, "path": None}):
        assert Voice.from_clip(synthesizer.parts, source) == wanted
    with pytest.raises(AudioError, match="is cut off"):
        Voice.from_clip(synthesizer.parts, data[: len(data) // 2])


def test_a_voice_is_what_nets_and_front_ends_say(synthesizer):
    """Stereo at 44.1 kHz: channel 0 for codes and speaker, the mean for the mel, as in the reference."""
    parts = synthesizer.parts
    clip = np.stack([tiny.noise(3), tiny.noise(3, seed=1)], axis=1)  # 48000 samples
    voice = Voice.from_clip(parts, clip, sample_rate=44_100)
    first, mean = (load_audio(x, sample_rate=44_100) for x in (clip[:, 0], clip.mean(axis=1)))
    assert np.array_equal(voice.codes, parts.tokenizer(log_mel(first, 8, padding=0)[None])[0])
    wanted = np.array(parts.speaker(mx.array(kaldi_fbank(first, 16))[None])[0])
    np.testing.assert_allclose(voice.speaker, wanted, rtol=1e-5, atol=1e-6)
    sound = load_audio(clip.mean(axis=1), sample_rate=44_100, to=24_000)
    assert len(sound) == pytest.approx(len(mean) * 1.5, abs=2)
    mel = flow_mel(sound, 4).T
    n = min(len(mel), len(voice.mel))
    np.testing.assert_allclose(voice.mel[:n], mel[:n], atol=1e-5)
    assert len(voice.mel) == 2 * len(voice.codes) and len(voice.codes) == 27  # of 108 mel frames


@pytest.mark.parametrize("resampler", ["reference", "soxr"])
def test_a_voice_is_read_by_the_resampler_that_is_asked_for(synthesizer, resampler):
    parts, clip = synthesizer.parts, tiny.noise(3)
    voice = Voice.from_clip(parts, clip, sample_rate=44_100, resampler=resampler)
    at_16k, at_24k = (load_audio(clip, sr=44_100, to=to, resampler=resampler) for to in (16_000, 24_000))
    assert np.array_equal(voice.codes, parts.tokenizer(log_mel(at_16k, 8, padding=0)[None])[0])
    mel = flow_mel(at_24k, 4).T
    np.testing.assert_allclose(voice.mel[:20], mel[:20], atol=1e-5)
    default = Voice.from_clip(parts, clip, sample_rate=44_100)
    assert (voice == default) == (resampler == "reference")
    opened = synthesizer.voice({"array": clip, "sampling_rate": 44_100}, resampler)
    assert (opened == Voice.from_clip(parts, {"array": clip, "sampling_rate": 44_100}, resampler=resampler)) is True


def test_a_mel_is_fitted_to_the_codes():
    mel = np.arange(6.0).reshape(3, 2)
    assert fitted(mel, 2).tolist() == [[0, 1], [2, 3]] and fitted(mel, 3).tolist() == mel.tolist()
    assert fitted(mel, 5).tolist() == [[0, 1], [2, 3], [4, 5], [4, 5], [4, 5]]


def test_path_and_samples_give_the_same_voice(synthesizer, tmp_path):
    sf.write(tmp_path / "a.wav", tiny.noise(2), 16_000, subtype="FLOAT")
    a, b = synthesizer.voice(tmp_path / "a.wav"), synthesizer.voice(tiny.noise(2))
    assert a == b and a.key == b.key and hash(a) == hash(b) and len({a, b}) == 1
    assert synthesizer.voice(tiny.noise(2, seed=9)) != a != "a voice"


def test_the_key_is_the_content(voices):
    a = voices[0]
    assert a.key != voices[1].key and len(a.key) == 64
    for name in DTYPES:
        changed = np.array(getattr(a, name))
        changed.flat[-1] += 1
        fields = {n: getattr(a, n) for n in DTYPES} | {name: changed}
        assert Voice(**fields, weights=a.weights).key != a.key
    assert Voice(a.codes, a.mel, a.speaker, "other").key != a.key


def test_a_voice_cannot_be_changed(voices):
    mine = np.array(voices[0].codes)
    voice = Voice(mine, voices[0].mel, voices[0].speaker, voices[0].weights)
    mine[:] = 0
    assert voice == voices[0]
    for name in DTYPES:
        with pytest.raises(ValueError, match="read-only"):
            getattr(voice, name)[0] = 0
    with pytest.raises(AttributeError):
        voice.codes = mine


# ---- clips that are none ----


@pytest.mark.parametrize(("seconds", "n_codes"), [(0.1, 3), (0.2, 5)])
def test_a_very_short_clip_is_a_voice_with_a_warning(synthesizer, seconds, n_codes):
    with pytest.warns(UserWarning, match=f"{seconds:.2f} s hold little of a voice"):
        voice = synthesizer.voice(tiny.noise(seconds))
    assert len(voice.codes) == n_codes and len(voice.mel) == 2 * n_codes
    assert len(synthesizer.decode([1, 2, 3], voice).wave) == 3 * 960
    assert sum(len(c.wave) for c in synthesizer.stream([1, 2, 3, 4], voice)) == 4 * 960


def test_ten_minutes_are_refused_before_they_are_read(synthesizer, tmp_path, monkeypatch):
    sf.write(tmp_path / "long.wav", np.zeros(600 * 8000, np.int16), 8000)
    with monkeypatch.context() as patched:
        patched.setattr(voice_module, "load_with_doubt", lambda *a, **k: pytest.fail("it was read"))
        with pytest.raises(AudioError, match=r"long.wav: 600.0 s are too long for a voice; expected at most 30 s"):
            synthesizer.voice(tmp_path / "long.wav")
    with pytest.raises(AudioError, match="array: 30.5 s are too long"):
        synthesizer.voice(tiny.noise(30.5))


def test_more_than_thirty_seconds_on_demand(synthesizer):
    """Over 30 s the speech tokenizer gives fewer codes than the clip lasts; the mel is cut to them."""
    voice = Voice.from_clip(synthesizer.parts, tiny.noise(53), max_seconds=60)
    assert len(voice.codes) == 1275 and len(voice.mel) == 2550


@pytest.mark.parametrize(("clip", "message"), [
    (np.zeros(32_000, np.float32), "is silent"), (np.full(32_000, 0.3, np.float32), "is silent"),
    (tiny.noise(2, level=1e-4), "is silent"), (tiny.noise(0.05), "at least 0.1 s"), (tiny.noise(1) * np.nan, "NaN"),
    (tiny.noise(2) * 1e4, "peak"), ("none.wav", "no such file"),
])  # fmt: skip
def test_clips_that_hold_no_voice(synthesizer, clip, message):
    with pytest.raises(AudioError, match=message):
        synthesizer.voice(clip)


def test_channels_that_do_not_hold_the_voice(synthesizer, tmp_path):
    """Codes are read of the first channel and the mel of the mean, so both must hold it. One error, no warning."""
    x = tiny.noise(2)
    wrong = {"mean": np.stack([x, -x], axis=1), "channel 1 of 2": np.stack([0 * x, x], axis=1)}
    for what, clip in wrong.items():
        sf.write(tmp_path / "v.wav", clip, 16_000, subtype="FLOAT")
        for source, rate in ((clip, 16_000), (tmp_path / "v.wav", None)):
            with pytest.raises(AudioError, match=f"{what}.*as a mono clip") as refused:
                Voice.from_clip(synthesizer.parts, source, sample_rate=rate)
            assert "\n" not in str(refused.value) and "downmix" not in str(refused.value)
    half = Voice.from_clip(synthesizer.parts, np.stack([x, 0 * x], axis=1), sample_rate=16_000)
    assert np.array_equal(half.codes, synthesizer.voice(x).codes)


# ---- files ----


def test_saved_and_loaded(synthesizer, voices, tmp_path):
    voices[0].save(tmp_path / "v.safetensors")
    voices[1].save(tmp_path / "v.safetensors")  # replaces it
    found = Voice.load(tmp_path / "v.safetensors", synthesizer.parts)
    assert found == voices[1] == synthesizer.voice(tmp_path / "v.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["v.safetensors"]
    with pytest.raises(WeightsError, match="cannot be written"):
        voices[0].save(tmp_path / "no" / "v.safetensors")


def test_sound_is_made_in_a_voice_or_in_what_one_is_read_from(synthesizer, tmp_path):
    path = tmp_path / "clip.wav"
    sf.write(path, tiny.noise(2), 16_000, subtype="FLOAT")
    voice = synthesizer.voice(path)
    voice.save(tmp_path / "saved.safetensors")
    wanted = synthesizer.decode([1, 2, 3], voice).wave
    pieces = [chunk.wave for chunk in synthesizer.stream([1, 2, 3], voice)]
    for source in (path, str(path), tiny.noise(2), tmp_path / "saved.safetensors"):
        assert np.array_equal(synthesizer.decode([1, 2, 3], source).wave, wanted)
        found = [chunk.wave for chunk in synthesizer.stream([1, 2, 3], source)]
        assert all(map(np.array_equal, found, pieces)) and len(found) == len(pieces)
    with pytest.raises(AudioError, match="nothing.wav"):
        synthesizer.decode([1, 2, 3], tmp_path / "nothing.wav")


def test_other_weights_are_refused(speaking_checkpoint, synthesizer, voices, tmp_path):
    """One number of the speech tokenizer makes other codes; the flow's do not matter."""
    parts = loading.load_token2wav(speaking_checkpoint)
    assert fingerprint(parts) == synthesizer.weights == voices[0].weights
    parts.flow.encoder_proj.bias = parts.flow.encoder_proj.bias + 1
    assert fingerprint(parts) == synthesizer.weights
    variance = parts.speaker.head.bn1.running_var
    parts.speaker.head.bn1.running_var = variance.at[0].add(1e-3)
    assert fingerprint(parts) != synthesizer.weights
    parts.speaker.head.bn1.running_var = variance
    bias = parts.tokenizer.encoder.conv1.bias
    parts.tokenizer.encoder.conv1.bias = bias.at[0].add(1e-3)
    voices[0].save(tmp_path / "v.safetensors")
    with pytest.raises(WeightsError, match="made by other weights"):
        Voice.load(tmp_path / "v.safetensors", parts)
    assert Voice.load(tmp_path / "v.safetensors") == voices[0]  # to look at
    stranger = Voice(voices[0].codes, voices[0].mel, voices[0].speaker, fingerprint(parts))
    for use in (synthesizer.decode, synthesizer.stream):
        with pytest.raises(WeightsError, match="made by other weights"):
            use([1, 2], stranger)
    with pytest.raises(WeightsError, match="made by other weights"):
        synthesizer.voice(stranger)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"codes": [-1, 0]}, "codes 0…6560"), ({"codes": [0, 6561]}, "codes 0…6560"), ({"codes": []}, "found shapes"),
        ({"mel": np.zeros((5, 2))}, "found shapes"), ({"mel": np.zeros((4, 0))}, "found shapes"),
        ({"mel": np.full((4, 2), np.nan)}, "mel lies within"), ({"mel": np.full((4, 2), 1e9)}, "mel lies within"),
        ({"speaker": [np.inf]}, "speaker lies within"), ({"speaker": [[1.0]]}, "found shapes"),
    ],
)  # fmt: skip
def test_numbers_that_no_clip_gives_are_refused(change, found, tmp_path):
    parts = {"codes": [0, 6560], "mel": np.zeros((4, 2)), "speaker": [1.0, 2.0]}
    Voice(**parts, weights="w")
    with pytest.raises(WeightsError, match=found):
        Voice(**parts | change, weights="w")


@pytest.mark.parametrize("name", ["me.voice", "me", "me.wav", "ME.SAFETENSORS"])
def test_a_voice_is_saved_under_a_name_by_which_it_is_opened(name, synthesizer, voices, tmp_path):
    if name == "ME.SAFETENSORS":
        voices[0].save(tmp_path / name)
        assert synthesizer.voice(tmp_path / name) == voices[0]
    else:
        with pytest.raises(WeightsError, match=r"expected a name that ends in \.safetensors"):
            voices[0].save(tmp_path / name)
        assert not list(tmp_path.iterdir())


def test_broken_files_are_refused(voices, tmp_path):
    path = tmp_path / "v.safetensors"
    voices[0].save(path)
    whole, tensors = path.read_bytes(), load_file(path)
    for data in (b"", b"RIFF" * 30, whole[:-3]):
        path.write_bytes(data)
        with pytest.raises(WeightsError, match="v.safetensors"):
            Voice.load(path)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(WeightsError, match="is damaged"):
        Voice.load(path)
    metadata = json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])["__metadata__"]
    for change, message in (
        ({"format": "stepaudio voice 2"}, "format"),
        ({"key": "0" * 64}, "is damaged"),
        ({"weights": "0" * 64}, "is damaged"),
    ):
        save_file(tensors, path, metadata | change)
        with pytest.raises(WeightsError, match=message):
            Voice.load(path)
    save_file({"codes": tensors["codes"]}, path, metadata)
    with pytest.raises(WeightsError, match="not a voice"):
        Voice.load(path)
    with pytest.raises(WeightsError, match="none.safetensors"):
        Voice.load(tmp_path / "none.safetensors")
