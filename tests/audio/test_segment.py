"""Boundaries fall into pauses that we put there, segments cover everything, silence is known as such."""

import numpy as np
import pytest

from stepaudio.audio.load import load_audio
from stepaudio.audio.segment import cut_points, is_silent
from stepaudio.errors import AudioError, ConfigError

RATE = 16_000


def noise(seconds: float, amplitude: float = 0.1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, amplitude, round(seconds * RATE)).astype(np.float32)


def speech(seconds: float, pauses: list[tuple[float, float]], background: float = 1e-4) -> np.ndarray:
    """Loud noise with quiet stretches [from, to) in seconds."""
    samples = noise(seconds)
    for start, stop in pauses:
        samples[round(start * RATE) : round(stop * RATE)] *= background / 0.1
    return samples


def covers(segments: list[tuple[int, int]], n: int, longest: int) -> bool:
    joined = [start for start, _ in segments[1:]] == [stop for _, stop in segments[:-1]]
    return joined and segments[0][0] == 0 and segments[-1][1] == n and all(0 < b - a <= longest for a, b in segments)


@pytest.mark.parametrize("n", [1, 159, 16_000, 399_999, 400_000])
def test_short_audio_is_one_segment(n):
    assert cut_points(np.zeros(n, np.float32)) == [(0, n)]


def test_one_sample_over_the_limit_is_cut_near_the_middle():
    (_, cut), (_, end) = cut_points(noise(25 + 1 / RATE))
    assert end == 400_001 and 8 * RATE < cut < 17 * RATE


@pytest.mark.parametrize("background", [0.0, 1e-4, 1e-2, 2.5e-2])
def test_cut_falls_into_the_only_pause(background):
    (_, cut), _ = cut_points(speech(40, [(19.3, 19.7)], background))
    assert 19.35 * RATE <= cut <= 19.65 * RATE


def test_long_pause_beats_later_short_one():
    (_, cut), *_ = cut_points(speech(60, [(19.0, 19.8), (24.0, 24.25)]))
    assert 19.2 * RATE < cut < 19.6 * RATE


def test_latest_of_equal_pauses_wins():
    (_, cut), *_ = cut_points(speech(60, [(18.0, 18.6), (21.0, 21.6), (23.5, 24.1)]))
    assert 23.6 * RATE < cut < 24.0 * RATE


def test_long_pause_beats_a_quieter_moment():
    samples = speech(60, [(19.0, 20.0)], background=1e-3)
    samples[24 * RATE : 24 * RATE + 1600] = 0  # the closure of a consonant: silent, but only 0.1 s
    (_, cut), *_ = cut_points(samples)
    assert 19.2 * RATE < cut < 19.8 * RATE


@pytest.mark.parametrize(("background", "lead"), [(2e-2, 0.0), (1e-3, 0.0), (1e-3, 2.0)])
def test_long_pause_beats_a_slightly_quieter_short_one(background, lead):
    # In loud noise (14 dB below speech), and where two seconds of digital zeros make the noise floor look lower.
    samples = speech(60, [(19.0, 19.8)], background)
    samples[24 * RATE : 24 * RATE + 4000] *= background / 0.1 * 0.8
    samples[: round(lead * RATE)] = 0
    (_, cut), *_ = cut_points(samples)
    assert 19.2 * RATE < cut < 19.6 * RATE


def test_soft_speech_is_no_pause():
    samples = speech(60, [(23.0, 23.4)])
    samples[19 * RATE : 21 * RATE] *= 0.3
    (_, cut), *_ = cut_points(samples)
    assert 23.05 * RATE < cut < 23.35 * RATE


def test_pause_across_the_limit_is_used_up_to_the_limit():
    (_, cut), *_ = cut_points(speech(60, [(24.5, 27.0)]))
    assert 24.7 * RATE < cut <= 25 * RATE


def test_pause_outside_the_search_window_is_not_seen():
    (_, cut), *_ = cut_points(speech(60, [(10.0, 12.0)]))
    assert 17 * RATE <= cut <= 25 * RATE


def test_pause_that_ends_where_the_window_begins_is_not_used():
    samples = speech(60, [(15.5, 17.05)])
    samples[21 * RATE : 21 * RATE + 4000] *= 0.4
    (_, cut), *_ = cut_points(samples)
    assert 21 * RATE < cut < 21.25 * RATE


def test_without_a_pause_the_quietest_place():
    samples = noise(60)
    samples[21 * RATE : 21 * RATE + 4000] *= 0.6  # only 4 dB down: no pause, but the best there is
    (_, cut), *_ = cut_points(samples)
    assert 21 * RATE < cut < 21.25 * RATE


def test_without_contrast_a_long_dip_is_no_pause():
    samples = noise(60)
    samples[20 * RATE : 21 * RATE] *= 0.7  # 3 dB
    samples[23 * RATE : 23 * RATE + 4000] *= 0.56  # 5 dB
    (_, cut), *_ = cut_points(samples)
    assert 23 * RATE < cut < 23.25 * RATE


def test_an_offset_does_not_hide_the_pause():
    (_, cut), *_ = cut_points(speech(60, [(19.0, 19.8), (24.0, 24.25)]) + np.float32(0.3))
    assert 19.2 * RATE < cut < 19.6 * RATE


@pytest.mark.parametrize("signal", ["tone", "zeros", "noise"])
@pytest.mark.parametrize("seconds", [25.001, 33, 33.001, 50, 61.7, 130])
def test_covers_without_any_pause(signal, seconds):
    n = round(seconds * RATE)
    samples = {"tone": 0.5 * np.sin(np.arange(n) * 0.1), "zeros": np.zeros(n), "noise": noise(seconds)}[signal]
    segments = cut_points(samples.astype(np.float32))
    assert covers(segments, n, 25 * RATE)
    assert min(b - a for a, b in segments) >= 8 * RATE


@pytest.mark.parametrize("seed", range(60))
def test_any_length_any_limit(seed):
    rng = np.random.default_rng(seed)
    max_seconds = rng.uniform(0.2, 3)
    search_seconds = rng.uniform(0.1, max_seconds / 2)
    n = int(rng.integers(1, 12 * RATE))
    samples = noise(12, seed=seed)[:n] * np.repeat(rng.choice([0.001, 1], 121), 1600)[:n].astype(np.float32)
    segments = cut_points(samples, max_seconds, search_seconds)
    assert covers(segments, n, int(max_seconds * RATE))
    if len(segments) > 1:
        least = min(search_seconds, (max_seconds - search_seconds) / 2)
        assert min(b - a for a, b in segments) >= int(least * RATE) - 1


def test_recorded_speech_is_cut_where_nobody_speaks(shared):
    folder = shared / "speech"
    parts = [load_audio(folder / f"default_{who}.wav") for who in ("female", "male")]
    gap = np.zeros(RATE // 2, np.float32)
    samples = np.concatenate([part for _ in range(3) for part in (*parts, noise(0.5, 1e-4), gap)])
    for _, cut in cut_points(samples)[:-1]:
        around = samples[cut - 1600 : cut + 1600]
        assert around.std() < 0.1 * samples.std()  # 20 dB under the speech


@pytest.mark.parametrize(("most", "search"), [(25, 13), (25, 0.05), (25, 0), (25, -1), (0.1, 0.1), (0, 8)])
def test_impossible_windows_are_refused(most, search):
    with pytest.raises(ConfigError, match="search_seconds"):
        cut_points(noise(1), most, search)


@pytest.mark.parametrize("bad", [np.zeros((2, 99), np.float32), np.zeros(99, np.int16), np.zeros(0, np.float32)])
@pytest.mark.parametrize("function", [cut_points, is_silent])
def test_refuses_what_is_not_mono_float(function, bad):
    with pytest.raises(AudioError, match="expected float samples"):
        function(bad)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("function", [cut_points, is_silent])
def test_refuses_nan_and_inf(function, value):
    samples = noise(30)
    samples[100_000] = value
    with pytest.raises(AudioError, match="NaN or Inf"):
        function(samples)


def test_nan_after_the_last_whole_frame_is_not_silence():
    samples = np.zeros(16_050, np.float32)
    samples[-1] = np.nan
    with pytest.raises(AudioError, match="NaN or Inf"):
        is_silent(samples)


@pytest.mark.parametrize(("level", "silent"), [(0.0, True), (0.0009, True), (0.0011, False), (0.1, False)])
@pytest.mark.parametrize("n", [100, 320, 16_000, 16_100])
def test_silence_ends_at_sixty_decibels(level, silent, n):
    square = np.where(np.arange(n) % 20 < 10, level, -level).astype(np.float32)  # RMS = level
    assert is_silent(square) is silent
    assert is_silent(square + np.float32(0.25)) is silent  # an offset is not a sound


@pytest.mark.parametrize("start", [0, 5000, 16_000])  # the last: after the last whole frame
def test_one_short_sound_is_not_silence(start):
    samples = np.zeros(16_000 + 50, np.float32)
    samples[start : start + 50] = noise(50 / RATE, 0.01)
    assert not is_silent(samples)
