"""Noise of a seed: the same however it is asked for, kept or drawn anew."""

import numpy as np

from stepaudio.models.token2wav import noise
from stepaudio.models.token2wav.noise import NOISE_BLOCK, noise_frames


def test_seeded_noise_is_the_same_in_any_pieces():
    n = NOISE_BLOCK + 40
    whole = np.array(noise_frames(5, 0, n, 3))
    pieces = [np.array(noise_frames(5, at, min(300, n - at), 3)) for at in range(0, n, 300)]
    assert np.array_equal(whole, np.concatenate(pieces, axis=1))
    assert abs(whole.mean()) < 0.1 and abs(whole.std() - 1) < 0.05
    assert not np.array_equal(whole, np.array(noise_frames(6, 0, n, 3)))


def test_kept_noise_is_what_would_be_drawn_anew(monkeypatch):
    spans = [(0, 3), (5, 2 * NOISE_BLOCK), (NOISE_BLOCK - 1, 2), (3 * NOISE_BLOCK, 1), (0, 3 * NOISE_BLOCK)]
    monkeypatch.setattr(noise, "KEPT", 3 * 4 * NOISE_BLOCK)  # three blocks of width 4
    kept = [np.array(noise_frames(11, start, n, 4)) for start, n in spans]
    assert sorted(noise._kept(11, 4)) == [0, 1, 2]
    monkeypatch.setattr(noise, "KEPT", 0)
    for (start, n), found in zip(spans, kept, strict=True):
        np.testing.assert_array_equal(found, noise_frames(11, start, n, 4))
        blocks = [np.random.default_rng((11, 4, b)).standard_normal((NOISE_BLOCK, 4), np.float32) for b in range(4)]
        np.testing.assert_array_equal(found[0], np.concatenate(blocks)[start : start + n])
