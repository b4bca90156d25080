"""Mels of training against the front end of inference, and conditions against what was asked for."""

import mlx.core as mx
import numpy as np
import pytest
import tiny

from stepaudio.audio.features import log_mel
from stepaudio.constants import n_mel_frames
from stepaudio.train import augment

RATE = 16_000


def test_mels_of_a_batch_equal_the_front_end_of_each_row():
    N, lengths = 24_000, [24_000, 23_999, 9000, 4000]
    wave = np.stack([tiny.noise(1.5, seed=i, level=10.0**-i) for i in range(4)])
    for row, n in zip(wave, lengths, strict=True):
        row[n:] = 0.5  # what stands past an example's end must have no effect
    found = np.array(augment.log_mel_batch(mx.array(wave), mx.array(lengths), augment.clean_filters()))
    assert found.shape == (4, n_mel_frames(N), 128)
    for row, mel, n in zip(wave, found, lengths, strict=True):
        np.testing.assert_allclose(mel[: n_mel_frames(n)], log_mel(row[:n]).T, atol=1e-4)
        assert not mel[n_mel_frames(n) :].any()


def test_filters_of_each_row():
    wave, n = mx.array(np.stack([tiny.noise(1)] * 2)), mx.array([RATE, RATE])
    filters = mx.stack([augment.clean_filters(), augment.warped_filters()[0]])
    a, b = augment.log_mel_batch(wave, n, filters)
    alone = augment.log_mel_batch(wave[:1], n[:1], augment.clean_filters())[0]
    np.testing.assert_allclose(np.array(a), np.array(alone), atol=1e-5)
    assert mx.abs(a - b).max() > 0.05


def test_clips_are_put_in_their_places_at_their_speeds(maker, stock):
    pcm = stock.samples(0)
    batch = {k: np.array([v]) for k, v in {"begin": [100, 9000], "stop": [4000, 9500], "start": [20, 50]}.items()}
    batch["rate"] = np.array([[1.0, 0.5]], np.float32)
    wave = np.array(augment.gather_wave(mx.array(pcm), {k: mx.array(v) for k, v in batch.items()}, 12_000))[0]
    wanted = np.zeros(12_000)
    wanted[100:4000] = pcm[20:3920] / 32768
    wanted[9000:9500] = np.interp(np.arange(500) / 2, np.arange(400), pcm[50:450]) / 32768
    np.testing.assert_allclose(wave, wanted, atol=1e-4)


def test_breaths_sound_where_they_are_put_and_as_loud_as_asked():
    wave = np.zeros((2, 2 * RATE), np.float32)
    wave[:, 16_000:] = np.sin(np.arange(16_000) * 0.3)  # root mean square 0.71 where there is sound
    batch = {
        "breath_begin": mx.array([[2000, 12_000, 0]] * 2),
        "breath_length": mx.array([[4000, 1000, 1]] * 2),
        "breath_level": mx.array([[0.1, 0.5, 0.0], [0.0, 0.0, 0.0]]),
        "breath_hertz": mx.array([1000.0, 1000.0]),
        "floor": mx.array([0.0, 0.0]),
    }
    mx.random.seed(0)
    added = np.array(augment.breathing(mx.array(wave), augment.loudness(mx.array(wave)), batch)) - wave
    assert not added[1].any() and np.flatnonzero(added[0])[[0, -1]].tolist() == [2000, 12_999]
    assert not added[0, 6000:12_000].any()
    swell = np.sqrt(3 / 8) * np.sqrt(0.5)  # of a squared sine, times the loudness
    assert added[0, 2000:6000].std() == pytest.approx(0.1 * swell, rel=0.3)
    assert added[0, 12_000:13_000].std() == pytest.approx(0.5 * swell, rel=0.5)
    power = np.abs(np.fft.rfft(added[0, 2000:6000])) ** 2
    hertz = np.arange(len(power)) * RATE / 4000
    assert power[(hertz > 350) & (hertz < 2800)].sum() > 0.8 * power.sum()  # an octave and a half to either side


def test_a_breath_is_added_and_nothing_else_without_other_conditions():
    wave = mx.array(np.stack([tiny.noise(1, seed=1)] * 2))
    calm = {name: mx.zeros(2) for name in ("reverb", "babble", "noise", "floor", "colour")}
    calm |= {"decay": mx.ones(2), "gain": mx.abs(wave).max(1), "clip": mx.full(2, 10.0)}
    breath = {"breath_begin": mx.array([[4000]] * 2), "breath_length": mx.array([[800]] * 2)}
    breath |= {"breath_level": mx.array([[0.1], [0.0]]), "breath_hertz": mx.array([1000.0] * 2)}
    added = np.abs(np.array(augment.room_and_noise(wave, calm | breath) - wave))
    assert added[1].max() < 1e-5 and added[0, 4000:4800].max() > 1e-3
    assert np.delete(added[0], np.s_[4000:4800]).max() < 1e-5


def test_masks_hide_only_their_own_row():
    mel = mx.array(np.random.default_rng(0).normal(size=(2, 50, 128)).astype(np.float32))
    batch = {
        "length": mx.array([50 * 160 - 479 + 160, 20 * 160]),
        "time_mask": mx.array([[[60, 5]], [[3, 0]]]),
        "band_mask": mx.array([[[7, 2]], [[1, 0]]]),
    }
    found = np.array(augment.mask_some(mel, batch))
    hidden = found != np.array(mel)
    assert hidden[0, 10:15].all() and hidden[0, :, 7:9][:48].all() and not hidden[1].any()
    assert hidden[0].sum() <= 5 * 128 + 50 * 2
