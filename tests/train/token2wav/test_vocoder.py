"""Training the vocoder: its source, its fused activation, its losses, its adversary and its batches."""

import mlx.core as mx
import numpy as np
import pytest
from speech_corpus import HIFT, some_sound

from stepaudio.backend.device import on_cuda
from stepaudio.models.token2wav.hift import HiftConfig
from stepaudio.train.token2wav import adversary, features, snake, vocoder
from stepaudio.train.token2wav.fit import Schedule


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


def test_energy_distance_is_torchs():
    torch = pytest.importorskip("torch")
    sounds = [some_sound(6_000, seed) * level for seed, level in ((0, 1.0), (1, 0.5), (2, 0.8))]
    total = 0.0
    for size, hop in vocoder.RESOLUTIONS:
        spectra = []
        for x in sounds:
            s = torch.stft(torch.tensor(x[: len(x) // hop * hop]), size, hop, window=torch.hann_window(size),
                           center=False, return_complex=True)  # fmt: skip
            spectra.append(torch.sqrt(s.real**2 + s.imag**2 + 1e-9) + vocoder.QUIET * (size / 1024) ** 0.5)
        for i, j, sign in ((0, 2, 1), (1, 2, 1), (0, 1, -1)):
            apart = (spectra[i].log() - spectra[j].log()).square().mean(0).sqrt().mean()
            total += sign * (apart + (spectra[i] - spectra[j]).abs().mean() / spectra[2].mean())
    found = vocoder.energy_distance(*(mx.array(x)[None] for x in sounds)).item()
    assert found == pytest.approx(total.item() / len(vocoder.RESOLUTIONS), rel=1e-3)


def test_smoothed_noise_is_further_from_noise_than_noise_is():
    """By the energy distance; by the distance from the truth alone it is the other way round."""
    noise = [mx.random.normal((8, 6_000), key=mx.random.key(k)) * 0.1 for k in range(3)]
    pulses = mx.zeros((8, 6_000)).at[:, ::96].add(0.1 * 96**0.5)  # the same level in every frame, and no noise
    alike, smooth = (
        vocoder.energy_distance(a, b, noise[2]).item() for a, b in ((noise[0], noise[1]), (pulses, pulses))
    )
    assert alike < 0.8 * smooth


def test_the_adversary_learns_to_tell_sounds_apart(monkeypatch):
    """Noise from tones, after a few steps; its word counts only from the step at which it is said to."""
    monkeypatch.setattr(adversary, "RESOLUTIONS", ((64, 32),))
    noise = mx.random.normal((4, 960), key=mx.random.key(0)) * 0.1
    tone = mx.broadcast_to(0.1 * mx.sin(mx.arange(960) * 0.3), (4, 960))
    one = adversary.Adversary(Schedule(steps=40, warmup=1, peak_rate=2e-3), 0.5, lambda p, b: p, lambda b: b["true"])
    assert one.shown({})["weight"].item() == 0
    found = [one.step(noise, {"true": tone}, i / 40) for i in range(30)]
    right, wrong = (found[-1][name].item() for name in ("critics_right", "critics_wrong"))
    assert right < 0.2 and wrong < 0.2 and found[0]["critics_right"].item() > 0.6
    batch = one.shown({}) | {"weight": mx.array(0.5)}
    bad, seen = one.opinion(noise, tone, batch)
    good, _ = one.opinion(tone, tone, batch)
    assert good.item() < 0.3 * bad.item() and seen["scores"].item() > 0.6


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
