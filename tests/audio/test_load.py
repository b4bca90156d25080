"""Reading recordings: every bad input has a stated outcome, every good one a known signal."""

import os
import struct
import tracemalloc
import warnings

import numpy as np
import pytest
import soundfile as sf
import soxr
from safetensors.numpy import load_file

from stepaudio.audio import load as audio
from stepaudio.audio.features import log_mel
from stepaudio.audio.load import audio_seconds, load_audio
from stepaudio.audio.segment import cut_points
from stepaudio.errors import AudioError, ConfigError

RATE = 16_000


def sine(seconds: float, rate: int = RATE, hz: float = 440.0, amplitude: float = 0.5) -> np.ndarray:
    return (amplitude * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def write(path, samples, rate: int = RATE, subtype: str | None = None):
    sf.write(path, samples, rate, subtype=subtype)
    return path


def sparse_wav(path, seconds: int, rate: int, channels: int, bits: int = 16):
    """A silent PCM file that takes no room on the disk."""
    frame, size = channels * bits // 8, seconds * rate * channels * bits // 8
    with open(path, "wb") as file:
        file.write(
            struct.pack(
                "<4sI4s4sIHHIIHH4sI",
                b"RIFF",
                36 + size,
                b"WAVE",
                b"fmt ",
                16,
                1,
                channels,
                rate,
                rate * frame,
                frame,
                bits,
                b"data",
                size,
            )
        )
        file.truncate(44 + size)
    return path


# ---- good input ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3", "aiff"])
def test_formats(tmp_path, suffix):
    got = load_audio(write(tmp_path / f"a.{suffix}", sine(1)))
    assert got.dtype == np.float32 and got.shape == (16_000,)
    assert np.abs(got[2000:-2000] - sine(1)[2000:-2000]).max() < 0.02  # the lossy ones


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW"])
def test_sample_types(tmp_path, subtype):
    got = load_audio(write(tmp_path / "a.wav", sine(1), subtype=subtype))
    assert np.abs(got - sine(1)).max() < 0.02


@pytest.mark.parametrize("rate", [8000, 11_025, 22_050, 24_000, 44_100, 48_000, 96_000, 192_000])
def test_rates(tmp_path, rate):
    got = load_audio(write(tmp_path / "a.wav", sine(1, rate), rate, "FLOAT"))
    assert abs(len(got) - 16_000) <= 1
    assert np.abs(got - sine(1)[: len(got)])[400:-400].max() < 1e-3  # the tone itself, not shifted in time


def test_frequencies_above_8_khz_are_removed():
    high = sine(1, 48_000, hz=11_000.0)
    for resampler, left in (("soxr", 1e-3), ("reference", 2e-3)):
        assert np.abs(load_audio(high, sample_rate=48_000, resampler=resampler)[400:-400]).max() < left


@pytest.mark.parametrize("block", [1000, 4096, 100_000])
def test_streamed_equals_whole(monkeypatch, block):  # the reference's kernel: test_resample
    samples = np.random.default_rng(0).normal(0, 0.1, (50_001, 3)).astype(np.float32)
    monkeypatch.setattr(audio, "BLOCK_VALUES", block)
    got = load_audio(samples, sample_rate=44_100, resampler="soxr")
    want = soxr.resample(samples[:, 0], 44_100, RATE)
    assert got.shape == want.shape and np.abs(got - want).max() < 1e-5


def test_soxr_is_near_the_reference(goldens):
    # Another sinc than the reference's: they differ in the last tenth below 8 kHz, hardly in the voice.
    tensors = load_file(goldens / "mel.safetensors")
    source = tensors["in.resample.wav"]
    for rate in (22_050, 24_000, 44_100, 48_000):
        want = tensors[f"out.resample.{rate}_16000"]
        got = load_audio(np.pad(source, (0, 8000)), sample_rate=rate, resampler="soxr")[: len(want)]
        assert np.sqrt(np.mean((got - want) ** 2)) < 0.02 * want.std(), rate


def test_first_channel_is_the_default_and_survives_opposite_phase(tmp_path):
    path = write(tmp_path / "a.wav", np.stack([sine(1), -sine(1)], axis=1), subtype="FLOAT")
    assert np.array_equal(load_audio(path), sine(1))
    with pytest.warns(UserWarning, match="cancels"):
        assert np.abs(load_audio(path, downmix="mean")).max() == 0


def test_eight_channels(tmp_path):
    channels = np.stack([sine(1, hz=100.0 * (i + 1)) for i in range(8)], axis=1)
    path = write(tmp_path / "a.wav", channels, subtype="FLOAT")
    assert np.array_equal(load_audio(path), channels[:, 0])
    assert np.abs(load_audio(path, downmix="mean") - channels.mean(axis=1)).max() < 1e-6
    assert np.array_equal(load_audio(channels), channels[:, 0])


def test_clipped_and_silent_are_accepted(tmp_path):
    clipped = np.clip(sine(1, amplitude=4.0), -1, 1)
    assert np.array_equal(load_audio(write(tmp_path / "c.wav", clipped, subtype="FLOAT")), clipped)
    assert not load_audio(write(tmp_path / "z.wav", np.zeros(16_000))).any()


def test_overshoot_passes_unchanged():
    assert load_audio(sine(1, amplitude=3.0)).max() == sine(1, amplitude=3.0).max()


@pytest.mark.parametrize(
    ("dtype", "zero", "scale"),
    [
        ("uint8", 128, 128),
        ("int8", 0, 128),
        ("int16", 0, 2**15),
        ("int32", 0, 2**31),
    ],
)
def test_integer_pcm_is_divided_by_its_full_scale(dtype, zero, scale):
    lowest = np.full(1600, np.iinfo(dtype).min, dtype)
    assert (load_audio(lowest) == -1).all()
    samples = (sine(0.5) * scale * 0.99 + zero).astype(dtype)
    assert np.abs(load_audio(samples) - sine(0.5) * 0.99).max() <= 1 / scale + 1e-6


@pytest.mark.parametrize("wrap", [list, np.float64, np.asfortranarray])
def test_array_likes(wrap):
    assert np.array_equal(load_audio(wrap(sine(0.5))), sine(0.5))


def test_mlx_array():
    mx = pytest.importorskip("mlx.core")
    assert np.array_equal(load_audio(mx.array(sine(0.5))), sine(0.5))


def test_nothing_to_do_means_no_copy():
    samples = sine(1)
    assert np.shares_memory(load_audio(samples), samples)


def test_stream_without_a_length(tmp_path):
    path = write(tmp_path / "a.flac", sine(1))
    data = bytearray(path.read_bytes())
    data[21] &= 0xF0  # STREAMINFO: 36 bits of total samples, zero means unknown
    data[22:26] = bytes(4)
    path.write_bytes(data)
    assert len(load_audio(path)) == 16_000 and audio_seconds(path) == 1.0


def test_result_grows_past_its_first_allocation(monkeypatch):
    monkeypatch.setattr(audio, "FIRST_ALLOCATION", 100)
    monkeypatch.setattr(audio, "BLOCK_VALUES", 700)
    samples = np.stack([sine(1), sine(1)], axis=1)
    assert np.array_equal(load_audio(samples), samples[:, 0])


def test_audio_seconds(tmp_path):
    assert audio_seconds(write(tmp_path / "a.wav", sine(0.25, 44_100), 44_100)) == 0.25
    assert audio_seconds(sparse_wav(tmp_path / "b.wav", 36_000, 8000, 1)) == 36_000


# ---- bad files -----------------------------------------------------------------------------------------------


def test_no_such_file(tmp_path):
    with pytest.raises(AudioError, match="no such file"):
        load_audio(tmp_path / "absent.wav")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.wav", b"", "0 bytes"),
        ("text.wav", b"This is not a recording.\n" * 100, "not audio"),
        ("header.wav", b"RIFF\x24\x00\x00\x00WAVE", "not audio"),
        ("headerless.raw", bytes(4000), "not audio"),
        ("zeros.wav", bytes(4000), "not audio"),
    ],
)
def test_not_audio(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    for function in (load_audio, audio_seconds):
        with pytest.raises(AudioError, match=message) as caught:
            function(tmp_path / name)
        assert str(caught.value).count(name) == 1 and "\n" not in str(caught.value)


def test_places_that_are_no_file(tmp_path):
    with pytest.raises(AudioError, match="is a folder"):
        load_audio(tmp_path)
    with pytest.raises(AudioError, match="cannot be opened"):
        load_audio("a\0b.wav")
    with pytest.raises(AudioError, match="is a device"):
        load_audio(os.devnull)
    (tmp_path / "link.wav").symlink_to("gone.wav")
    with pytest.raises(AudioError, match=r"link.wav: is a link to a file that is not there: gone.wav"):
        load_audio(tmp_path / "link.wav")
    with pytest.raises(AudioError, match="cannot be opened .File name too long") as caught:
        load_audio("a" * 5000)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(("n", "message"), [(0, "no samples"), (1, "1 sample at"), (399, "0.0249 s"), (1599, "0.1 s")])
def test_too_short(tmp_path, n, message):
    for source in (write(tmp_path / "a.wav", np.zeros(n)), np.zeros(n, np.float32)):
        with pytest.raises(AudioError, match=message):
            load_audio(source)


def test_a_tenth_of_a_second_is_enough():
    assert len(load_audio(np.zeros(1600, np.float32))) == 1600
    assert len(load_audio(np.zeros(4410, np.float32), sample_rate=44_100)) == 1600
    with pytest.raises(AudioError, match="0.1 s"):
        load_audio(np.zeros(4409, np.float32), sample_rate=44_100)


@pytest.mark.parametrize("rate", [16_000, 48_000])
@pytest.mark.parametrize("block", [3000, 1 << 20])
def test_nan_and_inf_are_counted_and_located(tmp_path, monkeypatch, rate, block):
    monkeypatch.setattr(audio, "BLOCK_VALUES", block)
    samples = sine(1, rate)
    samples[[7000, 7001, 9000]] = np.nan, np.inf, -np.inf
    for source, given in ((write(tmp_path / "a.wav", samples, rate, "FLOAT"), None), (samples, rate)):
        with pytest.raises(AudioError, match=f"3 of {rate} samples are NaN or Inf, the first at index 7000"):
            load_audio(source, sample_rate=given)


def test_nan_in_a_channel_that_is_not_used():
    samples = np.stack([sine(1), np.full(16_000, np.nan, np.float32)], axis=1)
    assert np.array_equal(load_audio(samples), sine(1))
    with pytest.raises(AudioError, match="16000 of 16000"):
        load_audio(samples, downmix="mean")


def test_float64_beyond_float32_is_inf():
    with warnings.catch_warnings(), pytest.raises(AudioError, match="NaN or Inf"):
        warnings.simplefilter("error")
        load_audio(np.full(1600, 1e300))


@pytest.mark.parametrize("suffix", ["mp3", "flac", "ogg"])
def test_cut_off_file(tmp_path, suffix):
    path = write(tmp_path / f"a.{suffix}", sine(3))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(AudioError, match=r"cut off|broken audio data|not audio"):
        load_audio(path)


# ---- bad arrays and options ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("peak", "divisor"), [(33.0, 2**15), (20_000.0, 2**15), (1e9, 2**31)])
def test_unscaled_integers_in_float(peak, divisor):
    with pytest.raises(AudioError, match=f"divide them by {divisor}"):
        load_audio(np.concatenate([sine(1, amplitude=peak * 1.01), np.zeros(2 * audio.BLOCK_VALUES, np.float32)]))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.zeros((2, 16_000), np.float32), "transpose"),
        (np.zeros((1, 16_000), np.float32), "transpose"),
        (np.zeros((16_000, 2, 1), np.float32), "shape"),
        (np.zeros((16_000, 0), np.float32), "shape"),
        (np.float32(0.5), "shape"),
        ([0] * 16_000, "int64 samples have no known full scale"),
        (np.zeros(16_000, bool), "bool"),
        (np.zeros(16_000, complex), "complex"),
        ([[0.0], [0.0, 1.0]], "rectangular"),
        (["a", "b"], "full scale"),
        (b"RIFF", "is not audio"),
        (b"", "bytes: is empty"),
        (None, "full scale"),
        ([], "no samples"),
    ],
)
def test_bad_arrays(bad, message):
    with pytest.raises(AudioError, match=message):
        load_audio(bad)


@pytest.mark.parametrize("rate", [0, -16_000, 999, 1e9, float("nan"), float("inf"), "16000", True, [16_000]])
def test_impossible_rates(rate):
    with pytest.raises(AudioError, match="sample rate"):
        load_audio(sine(1), sample_rate=rate)


def test_impossible_rate_in_a_header(tmp_path):
    with pytest.raises(AudioError, match="sample rate"):
        load_audio(write(tmp_path / "a.wav", sine(1), 10))


def test_rate_is_for_arrays_only(tmp_path):
    with pytest.raises(AudioError, match="sample_rate is for arrays"):
        load_audio(write(tmp_path / "a.wav", sine(1)), sample_rate=RATE)


@pytest.mark.parametrize("downmix", ["left", "", None, 0])
def test_unknown_downmix(downmix):
    with pytest.raises(ConfigError, match="'first' or 'mean'"):
        load_audio(sine(1), downmix=downmix)


# ---- another rate ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [16_000, 24_000, 44_100])
def test_another_rate_on_demand(tmp_path, rate):
    """A tone stays the tone it is, from a file and from samples; nothing is copied where nothing changes."""
    want = sine(1, 24_000)
    for got in (
        load_audio(write(tmp_path / "a.wav", sine(1, rate), rate, "FLOAT"), to=24_000),
        load_audio(sine(1, rate), sample_rate=rate, to=24_000),
    ):
        assert len(got) == 24_000 and np.abs(got - want)[400:-400].max() < 1e-3
    assert load_audio(want, sample_rate=24_000, to=24_000) is want
    for wrong in (0, -1, "fast", None):
        with pytest.raises(AudioError, match="to: sample rate"):
            load_audio(want, to=wrong)


# ---- length and memory ---------------------------------------------------------------------------------------


def traced(function, *arguments):
    """Result of a call and the peak bytes it allocated beyond that result."""
    tracemalloc.start()
    result = function(*arguments)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return result, peak - getattr(result, "nbytes", 0)


def test_native_rate_is_never_whole(tmp_path):
    beyond = []
    for seconds in (30, 300):  # 300 s of 8 channels at 48 kHz are 460 MB as float32
        samples, peak = traced(load_audio, sparse_wav(tmp_path / "a.wav", seconds, 48_000, 8))
        assert len(samples) == seconds * RATE
        beyond.append(peak)
    assert beyond[1] < beyond[0] + 1e5 and beyond[0] < 20e6


@pytest.mark.slow
def test_ten_hours(tmp_path):
    samples, beyond = traced(load_audio, sparse_wav(tmp_path / "a.wav", 36_000, 8000, 1, bits=8))
    assert len(samples) == 36_000 * RATE and beyond < 0.2 * samples.nbytes  # growing past the first allocation
    segments, beyond = traced(cut_points, samples)
    assert segments[-1][1] == len(samples) and max(b - a for a, b in segments) <= 25 * RATE and beyond < 500e6
    mel, beyond = traced(log_mel, samples)
    assert mel.shape == (128, 3_600_002) and beyond < 20e6
