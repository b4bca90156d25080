"""Training the vocoder: its source, its fused activation, its spectral loss and its batches."""

import mlx.core as mx
import numpy as np
import pytest
from speech_corpus import HIFT, some_sound

from stepaudio.backend.device import on_cuda
from stepaudio.models.token2wav.hift import HiftConfig
from stepaudio.train.token2wav import features, snake, vocoder


def test_the_source_is_the_nets_own():
    """Without noise the source on the accelerator is that of the net at inference, for a short example."""
    net, params = vocoder.begin(HIFT, 0)
    net.update(params)
    f0 = mx.array(np.array([[0, 0, 120, 130, 140, 150, 0, 0, 200, 210]], np.float32))
    quiet = HiftConfig(base_channels=16, f0_cond_channels=16, nsf_sigma=0.0, nsf_alpha=0.1)
    found = np.array(vocoder.source_signal(net.m_source, f0, quiet, mx.random.key(0)))
    expected = np.array(net.m_source(f0, None))
    voiced = np.repeat(np.array(f0)[0] > 0, 480)
    assert np.abs(found - expected)[0, voiced].max() < 2e-3 and np.abs(found[0, ~voiced]).max() > 0


@pytest.mark.skipif(not on_cuda(), reason="needs CUDA")
def test_the_fused_snake_equals_the_nets_own_and_so_does_its_gradient():
    assert snake.can_fuse()


def test_spectral_loss_is_torchs():
    torch = pytest.importorskip("torch")
    a, b = some_sound(6_000, 0), some_sound(6_000, 1) * 0.5
    total = 0.0
    for size, hop in vocoder.RESOLUTIONS:
        spectra = []
        for x in (a, b):
            s = torch.stft(torch.tensor(x[: len(x) // hop * hop]), size, hop, window=torch.hann_window(size),
                           center=False, return_complex=True)  # fmt: skip
            spectra.append(torch.sqrt(s.real**2 + s.imag**2 + 1e-9))
        floor = vocoder.QUIET * (size / 1024) ** 0.5
        total += (torch.log(spectra[0] + floor) - torch.log(spectra[1] + floor)).abs().mean()
        total += torch.linalg.norm(spectra[0] - spectra[1]) / torch.linalg.norm(spectra[1])
    found = vocoder.spectral_loss(mx.array(a)[None], mx.array(b)[None]).item()
    assert found == pytest.approx(total.item() / len(vocoder.RESOLUTIONS), rel=1e-3)
    assert vocoder.spectral_loss(mx.array(a)[None], mx.array(a)[None]).item() < 1e-4


def test_batches_hold_the_mel_the_sound_and_the_f0_of_one_place(corpus):
    """The clean mel is that of the sound of the example, and F0 that of its speaker."""
    batch, n = vocoder.Batches(corpus, 3, 20, seed=2, noise=0.0)(0), len(corpus.pcm) + 1 - 9600 - 720
    again = features.flow_mel_batch(features.mirrored(batch["wave"], 720))
    assert np.abs(np.array(again - batch["mel_clean"]))[:, 2:-2].max() < 1e-3
    assert (np.array(batch["mel"]) == np.array(batch["mel_clean"])).all()
    assert (np.array(batch["f0"]) > 100).all() and batch["wave"].shape == (3, 9600)
    for wave, first in zip(np.array(batch["wave"]), np.random.default_rng((2, 0)).integers(720, n, 3), strict=True):
        true = corpus.pcm[first : first + 9600] / 32768
        gain = (wave * true).sum() / (true * true).sum()
        assert 0.1 < gain < 1.5 and np.abs(wave - gain * true).max() < 1e-5
