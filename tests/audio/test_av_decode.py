"""Formats of PyAV: what PyAV itself encoded is read to its end, at its pitch; what was cut off is refused."""

import io

import numpy as np
import pytest

from stepaudio.audio.load import audio_seconds, load_audio
from stepaudio.errors import AudioError

RATE, SECONDS, HERTZ = 48_000, 2.0, 440.0
FORMS = {"m4a": ("mp4", "aac"), "mkv": ("matroska", "aac"), "webm": ("webm", "libopus"), "aac": ("adts", "aac")}


def encoded(form: str, channels: int = 1) -> bytes:
    av = pytest.importorskip("av")
    container, codec = FORMS[form]
    x = 0.3 * np.sin(2 * np.pi * HERTZ * np.arange(int(SECONDS * RATE)) / RATE).astype(np.float32)
    sound = np.stack([x, np.zeros_like(x)][:channels])
    out = io.BytesIO()
    with av.open(out, "w", format=container) as file:
        stream = file.add_stream(codec, rate=RATE, layout="stereo" if channels == 2 else "mono")
        resampler = av.AudioResampler(format=stream.format, layout=stream.layout, rate=RATE)
        for start in range(0, sound.shape[1], 960):
            block = np.ascontiguousarray(sound[:, start : start + 960])
            frame = av.AudioFrame.from_ndarray(block, format="fltp", layout=stream.layout.name)
            frame.rate, frame.pts = RATE, start
            for part in resampler.resample(frame):
                file.mux(stream.encode(part))
        file.mux(stream.encode(None))
    return out.getvalue()


@pytest.mark.parametrize("form", FORMS)
def test_what_pyav_encodes_is_read_to_its_end(form, tmp_path):
    (tmp_path / f"a.{form}").write_bytes(encoded(form))
    for source in (tmp_path / f"a.{form}", encoded(form)):
        samples = load_audio(source)
        assert abs(len(samples) / 16_000 - SECONDS) < 0.1 and abs(audio_seconds(source) - SECONDS) < 0.1
        spectrum = np.abs(np.fft.rfft(samples[4000:20_000]))
        assert spectrum.argmax() == pytest.approx(HERTZ, abs=1.5)  # of one second
        assert np.sqrt(np.mean(samples[4000:20_000] ** 2)) == pytest.approx(0.3 / np.sqrt(2), rel=0.1)


def test_the_first_channel_is_read():
    left = load_audio(encoded("m4a", 2))
    assert np.sqrt(np.mean(left[4000:20_000] ** 2)) == pytest.approx(0.3 / np.sqrt(2), rel=0.1)
    mean = load_audio(encoded("m4a", 2), downmix="mean")
    assert np.sqrt(np.mean(mean[4000:20_000] ** 2)) == pytest.approx(0.15 / np.sqrt(2), rel=0.1)


@pytest.mark.parametrize("form", ["m4a", "mkv", "webm"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_cut_file_is_refused_or_read_whole(form, share):
    data = encoded(form)
    try:
        found = len(load_audio(data[: int(len(data) * share)])) / 16_000
    except AudioError as error:
        assert "\n" not in str(error) and len(str(error)) < 1000
    else:
        assert found > SECONDS - 0.15


def test_a_file_without_sound_is_refused():
    pytest.importorskip("av")
    with pytest.raises(AudioError, match="broken MPEG-4"):
        load_audio(b"\0\0\0\x18ftypisom" + bytes(4000))
