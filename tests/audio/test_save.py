"""Sound into files: what is loud, what is broken, and what is left behind; soundfile reads it back."""

import subprocess
import sys

import numpy as np
import pytest
import soundfile as sf

from stepaudio.audio.load import load_audio
from stepaudio.audio.save import FLOAT_SUFFIX, audio_writer, save_audio
from stepaudio.errors import AudioError, ConfigError

RATE = 24_000
UNUSUAL = {"RAW", "SD2", "WVE", "XI"}  # no header, a second file, 8 kHz alone, no rate
WRITTEN = ["f32.wav", *sorted(name.lower() for name in sf.available_formats() if name not in UNUSUAL)]
LOUD = np.array([0.5, -1.25, 0.1], np.float32)


def sine(seconds: float, rate: int = RATE, amplitude: float = 0.5) -> np.ndarray:
    return (amplitude * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def files(folder) -> set[str]:
    return {p.name for p in folder.iterdir()}


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_sixteen_bits_round_trip(tmp_path, suffix):
    pcm = np.arange(-(2**15), 2**15, 5, dtype=np.int16)
    save_audio(tmp_path / f"a.{suffix}", load_audio(pcm), RATE)
    assert np.array_equal(sf.read(tmp_path / f"a.{suffix}", dtype="int16")[0], pcm)


def test_save_channels_and_rate(tmp_path):
    samples = np.stack([sine(1, 24_000), np.ones(24_000, np.float32)], axis=1)
    save_audio(tmp_path / "a.wav", samples, 24_000)
    got, rate = sf.read(tmp_path / "a.wav")
    assert rate == 24_000 and np.abs(got - samples).max() <= 2**-15


@pytest.mark.parametrize(
    ("name", "samples", "rate", "message"),
    [
        ("a.wav", sine(1, amplitude=1.25), RATE, "peak 1.25 is beyond full scale and would clip; divide"),
        ("a.wav", np.array([0, np.nan]), RATE, "NaN or Inf"),
        ("a.wav", np.array([0, -np.inf]), RATE, "NaN or Inf"),
        ("a.wav", np.zeros(9, np.int16), RATE, "expected float"),
        ("a.wav", np.zeros(0), RATE, "expected float"),
        ("a.wav", np.zeros((2, 99)), RATE, "transpose"),
        ("a.wav", sine(1), 0, "sample rate"),
        ("a.wav", sine(1), 16_000.5, "whole rates"),
        ("a.txt", sine(1), RATE, "suffix"),
        ("a", sine(1), RATE, "suffix"),
        ("a.mp3", sine(1), 12_345, "cannot be written"),
        ("absent/a.wav", sine(1), RATE, "cannot be written"),
    ],
)
def test_save_refuses(tmp_path, name, samples, rate, message):
    with pytest.raises(AudioError, match=message):
        save_audio(tmp_path / name, samples, rate)


def test_loud_samples_are_scaled_on_demand_and_never_clipped(tmp_path):
    with pytest.raises(AudioError, match="peak 1.25 is beyond full scale"):
        save_audio(tmp_path / "a.wav", LOUD, RATE)
    assert files(tmp_path) == set()
    with pytest.warns(UserWarning, match=r"reach 1.25 of full scale.*-1.9 dB"):
        save_audio(tmp_path / "a.wav", LOUD, RATE, too_loud="scale")
    found, rate = sf.read(tmp_path / "a.wav")
    assert rate == RATE and np.abs(found - LOUD / 1.25).max() <= 2**-15
    with pytest.raises(ConfigError, match="too_loud"):
        save_audio(tmp_path / "a.wav", LOUD, RATE, too_loud="clip")


def test_float_files_hold_what_they_are_given(tmp_path):
    save_audio(tmp_path / f"a{FLOAT_SUFFIX}", LOUD, RATE)
    assert np.array_equal(sf.read(tmp_path / f"a{FLOAT_SUFFIX}", dtype="float32")[0], LOUD)
    assert sf.info(tmp_path / f"a{FLOAT_SUFFIX}").subtype == "FLOAT"


def test_block_by_block_is_as_whole(tmp_path):
    x = np.random.default_rng(0).uniform(-1, 1, 5000).astype(np.float32)
    save_audio(tmp_path / "whole.flac", x, RATE)
    with audio_writer(tmp_path / "blocks.flac", RATE) as writer:
        for start in range(0, 5000, 777):
            writer.write(x[start : start + 777])
        assert "blocks.flac" not in files(tmp_path)
    assert (tmp_path / "blocks.flac").read_bytes() == (tmp_path / "whole.flac").read_bytes()
    assert writer.n_samples == 5000 and files(tmp_path) == {"whole.flac", "blocks.flac"}


def test_a_promised_peak_sets_the_level_of_all(tmp_path):
    with pytest.warns(UserWarning, match="-6.0 dB"), audio_writer(tmp_path / "a.wav", RATE, peak=2.0) as writer:
        writer.write(np.full(10, 0.5))
        writer.write(np.full(10, -2.0))
    assert np.array_equal(sf.read(tmp_path / "a.wav")[0], [0.25] * 10 + [-1.0] * 10)


@pytest.mark.parametrize(("block", "message"), [
    (np.array([0.1, 1.01]), "would clip"), (np.array([np.nan]), "NaN or Inf"), (np.array([np.inf]), "NaN or Inf"),
])  # fmt: skip
def test_a_failed_file_leaves_the_earlier_one(tmp_path, block, message):
    save_audio(tmp_path / "a.wav", np.zeros(9), RATE)
    before = (tmp_path / "a.wav").read_bytes()
    with pytest.raises(AudioError, match=message), audio_writer(tmp_path / "a.wav", RATE) as writer:
        writer.write(np.zeros(99))
        writer.write(block)
    assert (tmp_path / "a.wav").read_bytes() == before and files(tmp_path) == {"a.wav"}


def test_an_error_from_elsewhere_passes_and_leaves_nothing(tmp_path):
    with pytest.raises(OSError, match="not ours"), audio_writer(tmp_path / "a.wav", RATE) as writer:
        writer.write(np.zeros(9))
        raise OSError("not ours")
    assert files(tmp_path) == set()


@pytest.mark.parametrize(("name", "message"), [("a.txt", "suffix"), ("no/a.wav", "no such folder"), ("", "suffix")])
def test_impossible_places(tmp_path, name, message):
    with pytest.raises(AudioError, match=message):
        save_audio(tmp_path / name, np.zeros(9), RATE)


FULL_DISK = """
import resource, sys
import numpy as np
from stepaudio.audio.save import save_audio
from stepaudio.errors import AudioError
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
for argument in sys.argv[2:]:
    name, size = argument.split(":")
    for limit in (int(size) // 2, int(size) - 1):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            save_audio(f"{sys.argv[1]}/{name}", np.random.default_rng(0).uniform(-0.5, 0.5, 24_000), 24_000)
            print(name, limit, "saved")
        except AudioError as error:
            print(error)
"""


def test_a_disk_that_is_full_before_the_last_byte_leaves_nothing(tmp_path):
    """A limit on the size of files stands for the disk; one byte short is where encoders flush last."""
    whole, full = tmp_path / "whole", tmp_path / "full"
    whole.mkdir()
    full.mkdir()
    sound = np.random.default_rng(0).uniform(-0.5, 0.5, 24_000)
    for suffix in WRITTEN:
        save_audio(whole / f"a.{suffix}", sound, 24_000)
    arguments = [f"{path.name}:{path.stat().st_size}" for path in sorted(whole.iterdir())]
    done = subprocess.run([sys.executable, "-c", FULL_DISK, full, *arguments], capture_output=True, text=True)
    said = done.stdout.splitlines()
    assert len(said) == 2 * len(WRITTEN), done.stderr
    assert all("cannot be written ([Errno 27] File too large)" in line for line in said), said
    assert files(full) == set()
