"""Features of batches: equal to those of the host, and independent of the blocks in which they are made."""

import mlx.core as mx
import numpy as np
from speech_corpus import some_sound

from stepaudio.audio.features import flow_mel, kaldi_fbank
from stepaudio.train.token2wav import features


def test_flow_mels_are_the_hosts():
    """A mirrored example is `flow_mel`; a long recording agrees with it away from its ends."""
    x = some_sound(24_000)
    mirrored = features.flow_mel_batch(features.mirrored(mx.array(x)[None], 720))[0]
    assert np.abs(np.array(mirrored).T - flow_mel(x)).max() < 2e-3
    pcm = (x * 32767).astype(np.int16)
    whole = np.array(features.flow_mels(mx.array(pcm)).astype(mx.float32))
    assert whole.shape == (50, 80) and np.abs(whole[2:-2].T - flow_mel(x)[:, 2:-2]).max() < 0.05


def test_flow_mels_do_not_depend_on_blocks(monkeypatch):
    pcm = mx.array((some_sound(48_000) * 32767).astype(np.int16))
    whole = np.array(features.flow_mels(pcm))
    monkeypatch.setattr(features, "BLOCK", 480 * 7)
    assert (np.array(features.flow_mels(pcm)) == whole).all()


def test_filterbanks_are_kaldis():
    for n in (8_000, 8_079, 8_160):
        x = some_sound(n)
        found = np.array(features.fbank_batch(mx.array(np.stack([x, 2 * x]))))
        assert found.shape[1:] == kaldi_fbank(x).shape
        assert np.abs(found[0] - kaldi_fbank(x)).max() < 2e-3


def test_resampling_keeps_what_16k_can_hold(monkeypatch):
    """A tone of 3 kHz comes out as itself, one of 9 kHz not at all; blocks do not show."""
    t24, t16 = np.arange(48_000) / 24_000, np.arange(32_000) / 16_000
    for hertz, gain in ((3_000, 1), (9_000, 0)):
        x = (8_000 * np.sin(2 * np.pi * hertz * t24)).astype(np.int16)
        y = np.array(features.at_16k(x)).astype(float)
        assert np.abs(y - gain * 8_000 * np.sin(2 * np.pi * hertz * t16))[200:-200].max() < 30
    monkeypatch.setattr(features, "BLOCK", 999)
    assert (np.array(features.at_16k(x)) == y).all()


def test_frames_are_numpys_sliding_windows():
    x = np.arange(100, dtype=np.float32)[None]
    found = np.array(features.frames_of(mx.array(x), 20, 5))
    assert (found == np.lib.stride_tricks.sliding_window_view(x, 20, axis=1)[:, ::5]).all()
