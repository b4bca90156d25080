"""Training the speaker encoder: batch norms in training, the margin of the loss, classes and vectors."""

import mlx.core as mx
import numpy as np
import pytest
from speech_corpus import SPEAKER, write_clips

from stepaudio.models.token2wav.campplus import BatchNorm, statistics
from stepaudio.train.token2wav import campplus, features
from stepaudio.train.token2wav.corpus import SpeechCorpus


def test_training_norms_are_torchs_and_keep_the_statistics_that_they_saw():
    torch = pytest.importorskip("torch")
    net, _ = campplus.begin(SPEAKER, 4, 0)
    x = mx.array(np.random.default_rng(0).normal(2, 3, (4, 50, 8)).astype(np.float32))
    norm = net.xvector.tdnn.nonlinear.batchnorm
    reference = torch.nn.BatchNorm1d(8)
    expected = reference(torch.tensor(np.array(x)).transpose(1, 2)).transpose(1, 2).detach().numpy()
    assert np.abs(np.array(norm(x)) - expected).max() < 1e-4
    examples = mx.array(np.random.default_rng(1).normal(0, 1, (6, 120, 80)).astype(np.float32))
    before = np.array(net(examples))
    campplus.estimate_statistics(net, [examples])
    assert type(norm) is BatchNorm and np.abs(np.array(net(examples)) - before).max() < 1e-2
    assert np.abs(np.array(norm.running_mean)).max() > 0


def test_a_constant_channel_has_a_finite_gradient():
    """A silent channel's standard deviation is 0, the others' are NumPy's, and no gradient is infinite."""
    x = np.random.default_rng(0).normal(0, 1, (2, 9, 3)).astype(np.float32)
    x[:, :, 1] = 0.0
    assert np.allclose(np.array(statistics(mx.array(x)))[:, 3:], x.std(1, ddof=1), atol=1e-5)
    slope = mx.grad(lambda x: statistics(x).sum())(mx.array(x))
    assert mx.isfinite(slope).all().item() and (np.array(slope)[:, :, 1] == np.float32(1 / 9)).all()


def test_the_margin_enlarges_the_angle_to_the_true_class():
    """As the formula says, cos(angle + margin), in PyTorch."""
    torch = pytest.importorskip("torch")
    net, params = campplus.begin(SPEAKER, 5, 0)
    batch = {
        "features": mx.random.normal((3, 60, 80), key=mx.random.key(0)),
        "label": mx.array([0, 3, 4]),
        "margin": mx.array(0.3),
    }
    found, shown = campplus.loss(params, batch, net)
    x = torch.tensor(np.array(net(batch["features"])))
    angle = torch.acos(
        torch.nn.functional.cosine_similarity(x[:, None], torch.tensor(np.array(params["classes"]))[None], dim=-1)
    )
    angle[torch.arange(3), torch.tensor([0, 3, 4])] += 0.3
    expected = torch.nn.functional.cross_entropy(campplus.SCALE * torch.cos(angle), torch.tensor([0, 3, 4]))
    assert found.item() == pytest.approx(expected.item(), rel=1e-3) and "accuracy" in shown


def test_the_margin_comes_late_and_gradually(corpus):
    batches = campplus.Batches(corpus, 2, 0.5, seed=0)
    half = campplus.MARGIN_FROM + campplus.MARGIN_STEPS // 2
    found = [batches(step)["margin"].item() for step in (0, campplus.MARGIN_FROM, half, 10 * half)]
    assert found == pytest.approx([0, 0, campplus.MARGIN / 2, campplus.MARGIN])


def test_each_speed_is_a_class_of_its_own(corpus, monkeypatch):
    monkeypatch.setattr(campplus, "SPEEDS", (0.88, 1.0, 1.13))
    batches = campplus.Batches(corpus, 16, 0.5, seed=0)
    assert batches.n_classes == 2 * len(campplus.SPEEDS)
    assert len(np.unique(np.array(batches(0)["label"]))) > 2 and batches(0)["features"].shape == (16, 48, 80)


def test_vectors_come_from_each_speaker(tmp_path):
    """Excerpts of the speaker who is silent are all alike, those of the other are not."""
    corpus = SpeechCorpus([write_clips(tmp_path / "s")])
    corpus.pcm[corpus.edges[1] :] = 0
    net, _ = campplus.begin(SPEAKER, 4, 0)
    pcm = features.at_16k(corpus.pcm)
    campplus.estimate_statistics(net, [features.fbank_batch(pcm[None, :16_000].astype(mx.float32) / 32768)])
    found = campplus.speaker_vectors(net, corpus, pcm, 3, 0.5)
    assert found.shape == (2, 3, 8)
    assert np.abs(found[1] - found[1, :1]).max() < 1e-5 < np.abs(found[0] - found[0, :1]).max()
