"""Wherever the bytes or the samples come from, they are what soundfile reads from the file itself."""

import io
import os
import signal
import subprocess
import sys
import threading
import warnings

import numpy as np
import pytest
import soundfile as sf

from stepaudio.audio import save, sources
from stepaudio.audio.load import audio_seconds, load_audio
from stepaudio.audio.save import save_audio
from stepaudio.audio.sources import given_rate, rate_is_assumed
from stepaudio.errors import AudioError

RATE = 16_000
SOUND = np.random.default_rng(0).normal(0, 0.1, RATE).astype(np.float32)


@pytest.fixture(params=["wav", "flac", "ogg", "mp3", "aiff"])
def path(tmp_path, request):
    sf.write(tmp_path / f"a.{request.param}", SOUND, RATE)
    return tmp_path / f"a.{request.param}"


@pytest.fixture
def wav(tmp_path):
    sf.write(tmp_path / "a.wav", SOUND, RATE, subtype="FLOAT")
    return tmp_path / "a.wav"


class Pipe(io.RawIOBase):
    """A stream that gives at most a few thousand bytes at a time and cannot go back."""

    def __init__(self, data: bytes):
        self.data = io.BytesIO(data)

    def readable(self):
        return True

    def readinto(self, buffer):
        return self.data.readinto(memoryview(buffer)[:5000])


class OnlyRead:
    """The least that is a file: `read`, and nothing else."""

    def __init__(self, data: bytes):
        self.read = io.BytesIO(data).read


# ---- encoded files ----


def test_bytes_and_file_objects_hold_what_the_file_holds(path):
    want, data = sf.read(path, dtype="float32")[0], path.read_bytes()
    with open(path, "rb") as opened:
        for source in (str(path), path, data, bytearray(data), memoryview(data), io.BytesIO(data), opened, Pipe(data),
                       OnlyRead(data)):  # fmt: skip
            found = load_audio(source)  # mp3 decoders round by where a block ends
            assert found.shape == want.shape and np.abs(found - want).max() < 1e-6, source


def test_mappings_that_hold_a_file(path):
    """As data sets give what they have not decoded: bytes, or where there are none the path."""
    want = load_audio(path)
    for source in ({"bytes": path.read_bytes(), "path": "elsewhere"}, {"bytes": None, "path": str(path)}):
        assert np.array_equal(load_audio(source), want) and audio_seconds(source) == 1
        assert not rate_is_assumed(source)
        with pytest.raises(AudioError, match="a file states its own"):
            load_audio(source, sr=RATE)
    with pytest.raises(AudioError, match="gone.wav: no such file"):
        load_audio({"bytes": None, "path": "gone.wav"})
    with pytest.raises(AudioError, match="holds neither bytes nor a path"):
        load_audio({"bytes": None, "path": None})


def test_seconds_of_bytes_and_streams(wav):
    assert audio_seconds(wav.read_bytes()) == audio_seconds(Pipe(wav.read_bytes())) == 1


def test_a_file_object_is_read_from_its_start_and_stays_open(path):
    buffer = io.BytesIO()
    buffer.write(path.read_bytes())  # as after sf.write(buffer, …): it stands at its end
    assert len(load_audio(buffer)) == len(load_audio(buffer)) == len(sf.read(path)[0])
    assert not buffer.closed


@pytest.mark.parametrize("limit", [1000, 1 << 26])
def test_a_stream_beyond_the_limit_goes_through_a_file(wav, monkeypatch, limit):
    monkeypatch.setattr(sources, "SPOOLED_BYTES", limit)
    assert np.array_equal(load_audio(Pipe(wav.read_bytes())), SOUND)


@pytest.mark.parametrize("size", [0x7FFFFFFF, 0xFFFFFFFF])
def test_a_wav_written_to_a_pipe_promises_any_length(wav, size):
    data = bytearray(wav.read_bytes())
    at = data.index(b"data") + 4
    data[at : at + 4] = data[4:8] = size.to_bytes(4, "little")  # as writers do that cannot go back to the header
    assert np.array_equal(load_audio(Pipe(bytes(data))), SOUND)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_named_pipe_that_was_opened(wav, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_bytes(wav.read_bytes()))
    writer.start()
    with open(tmp_path / "pipe", "rb") as opened:
        assert np.array_equal(load_audio(opened), SOUND)
    writer.join()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_named_pipe_by_its_path(wav, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_bytes(wav.read_bytes()))
    writer.start()
    assert np.array_equal(load_audio(tmp_path / "pipe"), SOUND)
    writer.join()


class Failing(io.BytesIO):
    """A seekable file, of a network or a card, that fails after some thousand bytes."""

    def read(self, size=-1):
        if self.tell() > 10_000:
            raise OSError("connection reset")
        return super().read(min(size, 5000))


def test_a_source_that_fails_is_not_the_end_of_the_sound(wav):
    with pytest.raises(AudioError, match="file object: cannot be read .connection reset"):
        load_audio(Failing(wav.read_bytes()))


@pytest.mark.skipif(sys.platform != "linux", reason="file systems of a Mac take UTF-8 alone")
def test_a_name_that_is_not_utf_8(wav):
    odd = wav.parent / os.fsdecode(b"caf\xe9.wav")
    wav.rename(odd)
    assert np.array_equal(load_audio(odd), SOUND)
    odd.write_bytes(b"no sound")
    for path, shown in ((odd, "caf\\\\xe9.wav"), (wav.parent / "two\nlines.wav", "two\\\\nlines.wav")):
        with pytest.raises(AudioError, match=shown) as caught:
            load_audio(path)
        assert str(caught.value).encode().isascii() and "\n" not in str(caught.value)


def test_a_file_that_may_not_be_read(wav):
    """A root user may read anything: the error of the system is put in its place."""
    wav.chmod(0)
    if os.access(wav, os.R_OK):
        pytest.skip("this user may read every file")
    with pytest.raises(AudioError, match="a.wav: no permission to read it"):
        load_audio(wav)


def test_standard_input_is_named(tmp_path):
    code = "import sys; from stepaudio.audio.load import load_audio; load_audio(sys.stdin.buffer)"
    done = subprocess.run([sys.executable, "-c", code], input=b"no sound", capture_output=True, timeout=60)
    assert b"AudioError: standard input: is not audio" in done.stderr


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda wav: b"", "bytes: is empty"),
        (lambda wav: b"\0\0\0 ftypM4A \0\0\0\0" + bytes(99), r"is MPEG-4 .*stepaudio\[av\]|broken MPEG-4"),
        (lambda wav: b"\x1a\x45\xdf\xa3" + bytes(99), r"is Matroska .*stepaudio\[av\]|broken Matroska"),
        (lambda wav: b"\xff\xf1\x50\x80" + bytes(99), r"is AAC.*stepaudio\[av\]|broken AAC"),
        (lambda wav: b"\xff\xfb\x90\xc4" + bytes(9999), "one MPEG frame does not follow another"),
        (lambda wav: io.BytesIO(), "file object: is empty"),
        (lambda wav: Pipe(b""), "file object: is empty"),
        (lambda wav: io.BytesIO(b"hello" * 99), r"file object: is not audio [^(]*\([A-Z][^<>]*\); exp"),
        (lambda wav: io.StringIO("hello"), "open as text; expected a binary file"),
        (lambda wav: wav.open(encoding="latin-1"), "a.wav: is open as text.*'rb'"),
        (lambda wav: closed(wav), "a.wav: cannot be read"),
        (lambda wav: wav.open("ab"), "a.wav: cannot be read"),
    ],
)  # fmt: skip
def test_what_is_no_recording(wav, make, message):
    source = make(wav)
    with pytest.raises(AudioError, match=message):
        load_audio(source)
    if hasattr(source, "close"):
        source.close()


def closed(path):
    with open(path, "rb") as file:
        return file


def test_a_file_states_its_own_rate(wav):
    for source in (wav, wav.read_bytes(), io.BytesIO(wav.read_bytes())):
        for given in ({"sr": RATE}, {"sample_rate": RATE}):
            with pytest.raises(AudioError, match="a file states its own"):
                load_audio(source, **given)


# ---- arrays ----


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16", "int16", "int32", "uint8"])
def test_torch_tensors(dtype):
    torch = pytest.importorskip("torch")
    whole = dtype.startswith(("int", "uint"))
    scale = {"uint8": 100, "int16": 2**14, "int32": 2**30}.get(dtype, 1)
    x = torch.tensor(SOUND.clip(0, 1) * scale).to(getattr(torch, dtype))
    want = load_audio(x.numpy()) if dtype != "bfloat16" else x.float().numpy()
    assert np.array_equal(load_audio(x), want)
    if not whole:
        assert np.array_equal(load_audio(x.requires_grad_()), want)


def test_mlx_arrays():
    mx = pytest.importorskip("mlx.core")
    assert np.array_equal(load_audio(mx.array(SOUND)), SOUND)
    half = mx.array(SOUND).astype(mx.bfloat16)
    assert np.array_equal(load_audio(half), np.array(half.astype(mx.float32)))


def test_mappings_with_a_rate():
    want = load_audio(SOUND, sr=8000)
    for extra in ({}, {"path": None}):
        assert np.array_equal(load_audio({"array": SOUND, "sampling_rate": 8000} | extra), want)
    assert np.array_equal(load_audio({"array": SOUND, "sampling_rate": 8000}, sr=8000), want)
    for wrong, found in (({"array": SOUND}, "array"), ({}, "none"), ({"audio": SOUND, "sr": 1}, "audio, sr")):
        with pytest.raises(AudioError, match=f'expected the keys "array" and "sampling_rate".*, found {found}'):
            load_audio(wrong)
    with pytest.raises(AudioError, match="its sampling_rate is 8000 Hz, and 16000 was given"):
        load_audio({"array": SOUND, "sampling_rate": 8000}, sr=16_000)
    with pytest.raises(AudioError, match="sample rate None Hz is impossible"):
        load_audio({"array": SOUND, "sampling_rate": None})


@pytest.mark.parametrize("pair", [(SOUND, 44_100), (44_100, SOUND), [SOUND, 44_100.0]])
def test_a_pair_of_samples_and_rate_shows_the_right_call(pair):
    with pytest.raises(AudioError, match=r"pass them apart: \(samples, sr=44100"):
        load_audio(pair)


# ---- rates ----


def test_two_spellings_of_one_rate():
    want = load_audio(SOUND, sample_rate=8000)
    assert np.array_equal(load_audio(SOUND, sr=8000), want)
    assert np.array_equal(load_audio(SOUND, sr=8000, sample_rate=8000.0), want)
    with pytest.raises(AudioError, match="sample_rate=8000 and sr=16000 mean the same and differ"):
        load_audio(SOUND, sr=16_000, sample_rate=8000)
    assert given_rate(None, None) is None


def test_whether_a_rate_is_assumed(wav):
    assert rate_is_assumed(SOUND) and rate_is_assumed([0.0, 0.1])
    assert not rate_is_assumed(SOUND, sr=16_000) and not rate_is_assumed(SOUND, sample_rate=16_000)
    for stated in (wav, str(wav), b"", io.BytesIO(), {"array": SOUND, "sampling_rate": 8000}):
        assert not rate_is_assumed(stated)


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros((RATE, 2)), "2 channels of float64"),
        (np.zeros((RATE, 2), np.int16), "2 channels of int16"),
        (np.zeros(441_000, np.float32), "441000 samples are 10 s to the sample at 44100 Hz"),
        (np.zeros(22_050, np.float32), "22050 samples are 1 s to the sample at 22050 Hz"),
        (np.zeros(33_075, np.float32), "33075 samples are 3 s to the sample at 11025 Hz"),
    ],
)
def test_an_array_that_contradicts_16_khz(array, said):
    with pytest.warns(UserWarning, match=f"16 kHz is assumed, but {said}.*sr=") as caught:
        load_audio(array)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_audio(array, sr=16_000)


@pytest.mark.parametrize("array", [SOUND, SOUND.astype(np.float64), np.stack([SOUND, SOUND], axis=1), SOUND[:, None],
                                   np.zeros((RATE, 1)), np.zeros(352_800, np.float32), np.zeros(48_000)])  # fmt: skip
def test_an_array_that_may_well_be_at_16_khz(array):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_audio(array)


# ---- Ctrl-C while libsndfile reads or writes through our functions ----


class Interrupting(io.BytesIO):
    """Ctrl-C comes in the middle of the nth read."""

    def __init__(self, data, n):
        super().__init__(data)
        self.left = n

    def read(self, *size):
        self.left -= 1
        if self.left == 0:
            signal.raise_signal(signal.SIGINT)
        return super().read(*size)


@pytest.mark.parametrize("form", ["WAV", "FLAC", "OGG", "MP3"])
def test_ctrl_c_while_a_file_is_read(form):
    """At whatever read it comes: what a callback raises is lost, and a file would end there."""
    out = io.BytesIO()
    sf.write(out, np.tile(SOUND, 8), RATE, format=form)
    counted = Interrupting(out.getvalue(), 1 << 30)
    load_audio(counted)
    n = (1 << 30) - counted.left
    for k in {1, 2, n // 2, n - 1, n} - {0}:
        with pytest.raises(KeyboardInterrupt):
            load_audio(Interrupting(out.getvalue(), k))


@pytest.mark.parametrize("form", ["wav", "flac", "ogg"])
def test_ctrl_c_while_a_file_is_written(form, tmp_path, monkeypatch):
    write, calls = save._Disk.write, []

    def interrupted(disk, data):
        calls.append(len(data))
        if len(calls) == at[0]:
            signal.raise_signal(signal.SIGINT)
        return write(disk, data)

    monkeypatch.setattr(save._Disk, "write", interrupted)
    at = [0]
    save_audio(tmp_path / f"whole.{form}", np.tile(SOUND, 8))
    for at[0] in {1, len(calls) // 2, len(calls)} - {0}:
        calls.clear()
        with pytest.raises(KeyboardInterrupt):
            save_audio(tmp_path / f"a.{form}", np.tile(SOUND, 8))
    assert [path.name for path in tmp_path.iterdir()] == [f"whole.{form}"]
