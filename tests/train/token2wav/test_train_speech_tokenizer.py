"""Training the speech tokenizer: rounding, labels, codes of long recordings, and the terms of the loss."""

from copy import copy
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from speech_corpus import TOKENIZER, some_sound, tokenizer_batch

from stepaudio.audio.features import log_mel
from stepaudio.errors import DataError
from stepaudio.train.token2wav import speech_tokenizer


def test_rounding_passes_the_gradient():
    x = mx.array([-0.9, -0.2, 0.4, 0.6])
    rounded = speech_tokenizer.straight_through_round
    assert np.array(rounded(x)).tolist() == [-1, 0, 0, 1]
    slope = mx.grad(lambda x: (rounded(x) * mx.array([1.0, 2.0, 3.0, 4.0])).sum())(x)
    assert np.array(slope).tolist() == [1, 2, 3, 4]


def test_trained_values_are_the_digits_of_the_codes():
    """What the loss rounds are the digits of the code that the net gives at inference."""
    net, params = speech_tokenizer.begin(TOKENIZER, 0)
    net.update(params["net"])
    mel = log_mel(some_sound(16_000), padding=0)
    values = speech_tokenizer.continuous_codes(net, mx.array(mel.T)[None])
    digits = np.array(mx.round(values))[0].astype(int) + 1
    assert ((digits * 3 ** np.arange(8)).sum(1) == net(mel[None])[0]).all()
    assert len(np.unique(digits)) > 1


def test_a_deepened_net_begins_with_the_codes_of_the_trained_one():
    (net, params), (deep, fresh) = (
        speech_tokenizer.begin(replace(TOKENIZER, n_audio_layer=n), seed) for n, seed in ((1, 0), (3, 1))
    )
    net.update(params["net"])
    deep.update(speech_tokenizer.deepened(params["net"], fresh["net"]))
    mel = log_mel(some_sound(16_000), padding=0)[None]
    assert len(deep.encoder.blocks) == 3 and (net(mel)[0] == deep(mel)[0]).all()
    with pytest.raises(DataError, match="3 or more"):
        speech_tokenizer.deepened(deep.parameters(), params["net"])


def test_labels_are_the_phonemes_of_each_mel_frame(corpus):
    """Frame i of an example that begins at sample s of 16 kHz has the phoneme at s + 320 (i + 1/2) rate."""
    corpus = copy(corpus)
    corpus.phonemes = (np.arange(len(corpus.phonemes)) % 250 + 1).astype(np.uint8)  # tells every frame from the next
    batches = speech_tokenizer.Batches(corpus, 3, 12, seed=1)
    drawn = batches.drawn(5)
    found = batches(5)
    for row in range(3):
        seconds = (drawn["start"][row] + (np.arange(24) + 0.5) * 320 * drawn["rate"][row]) / 16_000
        expected = corpus.phonemes[(seconds / 0.025 + 1e-4).astype(int)]
        assert (np.array(found["phonemes"])[row] == expected).mean() > 0.95
        assert (np.array(found["phonemes"])[row] == np.array(found["phonemes"])[row + 3]).all()
    assert found["mel"].shape == (6, 48, 128)


def test_codes_of_a_long_recording_are_those_of_the_clip():
    """Overlapping windows give what one clip gives, except near its ends."""
    net, params = speech_tokenizer.begin(TOKENIZER, 0)
    net.update(params["net"])
    pcm = (some_sound(16_000 * 6) * 32767).astype(np.int16)
    found = speech_tokenizer.codes_of(net, mx.array(pcm), batch_size=2, seconds=3.2, margin=0.8)
    whole = net(log_mel(pcm.astype(np.float32) / 32768, padding=0)[None])[0]
    assert found.shape == whole.shape and (found == whole)[25:-25].mean() > 0.6


def test_more_and_more_examples_are_rounded(corpus):
    batches = speech_tokenizer.Batches(corpus, 64, 12, seed=1)
    shares = [batches.rounded(step).mean() for step in (0, speech_tokenizer.GROWN_AT // 2, 10**6)]
    assert shares[0] == 0 and 0.25 < shares[1] < 0.55 and 0.7 < shares[2] < 0.9


def test_codes_that_are_all_alike_cost_something(corpus):
    """With the net's last layer at zero every code is the same, and `spread` is all that is asked for."""
    net, params = speech_tokenizer.begin(TOKENIZER, 0)
    batch, shown = tokenizer_batch(corpus), []
    for gain in (1.0, 0.0):
        narrow = params["net"]["quantizer"]["_codebook"]["project_down"]
        narrow["weight"] = narrow["weight"] * gain
        shown.append(speech_tokenizer.loss(params, batch, net)[1]["spread"].item())
    assert shown[0] < 0.3 and shown[1] == pytest.approx(speech_tokenizer.SPREAD, abs=0.01)


def test_coarse_spectra_are_levels_relative_to_the_mean():
    """A sound ten times as loud has the same spectra; in bands of silence and sound in turn they are half the step."""
    mel = np.zeros((1, 8, 128), np.float32)
    mel[0, 4:, :64] = 0.5  # 20 dB
    spectra, mean = (np.array(x) for x in speech_tokenizer.coarse_spectra(mx.array(mel)))
    assert spectra.shape == (1, 4, 32) and mean.shape == (1, 1, 32)
    step = np.log(10)  # 20 dB of amplitude
    assert np.allclose(spectra[0, :2, :16], -step / 2, atol=1e-5) and np.allclose(
        spectra[0, 2:, :16], step / 2, atol=1e-5
    )
    assert (spectra[0, :, 16:] == 0).all()
    louder, louder_mean = (np.array(x) for x in speech_tokenizer.coarse_spectra(mx.array(mel + 0.5)))
    assert np.allclose(louder, spectra, atol=1e-5) and np.allclose(louder_mean - mean, step, atol=1e-5)


def test_spectra_come_from_the_codes_around(corpus):
    """A code changes the spectra of its neighbours within the convolutions' reach, and no others."""
    _, params = speech_tokenizer.begin(TOKENIZER, 0)
    values = mx.zeros((1, 20, 8))
    changed = mx.array(np.eye(20, dtype=np.float32)[10][None, :, None]) + values
    mean = mx.zeros((1, 1, speech_tokenizer.COARSE))
    a, b = (np.array(speech_tokenizer.predict_spectra(params["head"], v, mean)) for v in (values, changed))
    touched = np.flatnonzero(np.abs(a - b).max((0, 2)) > 1e-7) // 2
    reach = speech_tokenizer.DEPTH * (speech_tokenizer.KERNEL // 2)
    assert touched.min() == 10 - reach and touched.max() == 10 + reach


def test_a_run_that_goes_on_rounds_from_the_start(corpus):
    batches = speech_tokenizer.Batches(corpus, 64, 12, seed=1, ahead=speech_tokenizer.GROWN_AT)
    assert batches.rounded(0).mean() > 0.7 and batches(0)["pull"].item() == pytest.approx(speech_tokenizer.PULL)
