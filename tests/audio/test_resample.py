"""Resampling: the reference's recorded outputs, its formula summed term by term, and blocks that change nothing."""

import math
import tracemalloc

import numpy as np
import pytest
import soundfile as sf
from safetensors.numpy import load_file

from stepaudio.audio import resample
from stepaudio.audio.load import load_audio
from stepaudio.audio.resample import resampled
from stepaudio.errors import AudioError, ConfigError

PAIRS = [(8000, 16_000), (11_025, 16_000), (22_050, 24_000), (24_000, 16_000), (44_100, 16_000), (48_000, 24_000)]
ODD_PAIRS = [(1000, 16_000), (16_001, 16_000), (44_101, 24_000), (96_000, 16_000), (192_000, 16_000), (7, 5), (1, 1)]


def noise(n, seed=0):
    return np.random.default_rng(seed).normal(0, 0.1, n).astype(np.float32)


def by_kernel(x, rate, to):
    return np.concatenate(list(resampled([x], rate, to, resample.Resampler.REFERENCE)))


def by_definition(x, rate, to, outputs):
    """Samples `outputs` of x at rate `to`, in float64, each as its own sum over all samples near it.

    In units of the zero crossings of the sinc, u, a sample weighs sinc(u) cos^2(pi u / 12), |u| < 6; the cut-off is
    0.99 of the lower Nyquist frequency, and the weights are scaled to keep the level. As in the reference, the place
    of an output within the shortest time after which both rates meet is a float32.
    """
    crossings, meet = 0.99 * min(rate, to), math.gcd(rate, to)  # both a second
    found = []
    for j in outputs:
        block, phase = divmod(j, to // meet)
        at = (block + float(np.float32(phase / (to // meet)))) / meet  # seconds
        reach, middle = math.ceil(6 / crossings * rate) + 1, j * rate // to
        near = np.arange(max(0, middle - reach), min(len(x), middle + reach + 2))
        u = (near / rate - at) * crossings
        weights = np.where(np.abs(u) < 6, np.sinc(u) * np.cos(np.pi * u / 12) ** 2, 0) * crossings / rate
        found.append(float(np.dot(weights, x[near].astype(np.float64))))
    return np.array(found)


def test_recorded_outputs_of_the_reference(goldens):
    tensors = load_file(goldens / "mel.safetensors")
    cases = [name for name in tensors if name.startswith("out.resample.")]
    assert len(cases) == 7
    for name in cases:
        rate, to = map(int, name.rsplit(".", 1)[1].split("_"))
        got = by_kernel(tensors["in.resample.wav"], rate, to)
        assert got.dtype == np.float32 and got.shape == tensors[name].shape
        assert np.abs(got - tensors[name]).max() < 2e-7, name


@pytest.mark.parametrize(("rate", "to"), PAIRS + ODD_PAIRS)
def test_every_sample_is_the_sum_of_its_definition(rate, to):
    n = 3000 if rate < 1e5 else 9000
    x = noise(n)
    got = by_kernel(x, rate, to)
    assert len(got) == math.ceil(n * to / rate)
    some = sorted({*range(40), *range(len(got) - 40, len(got)), *range(0, len(got), max(1, len(got) // 200))})
    assert np.abs(got[some] - by_definition(x, rate, to, some)).max() < 3e-7


@pytest.mark.parametrize(("rate", "to"), [*PAIRS, (44_101, 16_000), (192_000, 16_000)])
def test_blocks_do_not_change_a_bit(rate, to):
    x = noise(150_000, 1)
    whole = by_kernel(x, rate, to)
    rng = np.random.default_rng(2)
    for most in (1, 700, 100_000):
        x_part = x[: 2000 * most] if most == 1 else x
        cuts = np.unique(rng.integers(0, len(x_part), max(3, min(len(x_part), len(x_part) // most))))
        parts = [*np.split(x_part, cuts), x[:0]]
        got = np.concatenate(list(resampled(iter(parts), rate, to, resample.Resampler.REFERENCE)))
        assert np.array_equal(got, whole if most > 1 else by_kernel(x_part, rate, to))


@pytest.mark.parametrize("n", [0, 1, 2, 40, 441, 16_383, 16_384, 16_385])
def test_lengths_round_up(n):
    for rate, to in PAIRS:
        assert len(by_kernel(noise(n), rate, to)) == math.ceil(n * to / rate)


def test_memory_does_not_grow_with_length():
    block, peaks = noise(1 << 17), []
    for n in (8, 64):
        tracemalloc.start()
        made = sum(map(len, resampled((block for _ in range(n)), 44_100, 16_000, resample.Resampler.REFERENCE)))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert made == math.ceil(n * len(block) * 160 / 441)
    assert peaks[1] < 1.1 * peaks[0] < 2e7


def test_a_tone_keeps_pitch_and_level():
    for rate in (8000, 22_050, 44_100, 48_000):
        tone = np.sin(2 * np.pi * 1000 * np.arange(rate) / rate).astype(np.float32)
        got = load_audio(tone, sr=rate, resampler="reference")
        want = np.sin(2 * np.pi * 1000 * np.arange(16_000) / 16_000)
        assert np.abs(got - want)[100:-100].max() < 3e-3


def test_files_and_arrays_of_several_channels(tmp_path):
    x = np.stack([noise(30_000), noise(30_000, 1)], axis=1)
    sf.write(tmp_path / "x.wav", x, 44_100, subtype="FLOAT")
    for downmix, mono in (("first", x[:, 0]), ("mean", x.mean(axis=1))):
        want = by_kernel(mono.astype(np.float32), 44_100, 16_000)
        for source, rate in ((tmp_path / "x.wav", None), (x, 44_100)):
            assert np.abs(load_audio(source, sr=rate, downmix=downmix) - want).max() < 1e-7
            other = load_audio(source, sr=rate, downmix=downmix, resampler="soxr")
            assert np.abs(other[: len(want)] - want[: len(other)]).max() > 1e-3


@pytest.mark.parametrize(("rate", "said"), [
    (44_100.5, "expected a whole rate, as the reference does, found 44100.5"),
    (9_999_991, "is a ratio of 9999991 to 16000, whose kernel has"),
])  # fmt: skip
def test_rates_that_the_kernel_does_not_serve(rate, said):
    with pytest.raises(AudioError, match=said) as caught:
        load_audio(noise(10_000_000 if rate > 1e6 else 44_100), sr=rate, resampler="reference")
    assert "resampler='soxr'" in str(caught.value) and "\n" not in str(caught.value)
    assert len(load_audio(noise(44_100), sr=44_100.5, resampler="soxr")) == pytest.approx(16_000, abs=1)


@pytest.mark.parametrize("word", ["sox", "", None, 3, "REFERENCE"])
def test_another_word_is_refused(word):
    with pytest.raises(ConfigError, match="resampler: expected soxr or reference, found"):
        load_audio(noise(16_000), resampler=word)
