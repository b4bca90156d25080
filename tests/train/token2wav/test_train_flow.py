"""Training the flow: its batches, the velocity that inference follows, and examples without conditions."""

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten
from speech_corpus import FLOW, flow_batch

from stepaudio.train.token2wav import features, flow


def test_batches_are_codes_and_mels_of_one_place(corpus):
    """Nearly all codes stand in the example as in the corpus; the mel has two frames for each."""
    codes, batch = flow_batch(corpus)
    row, mel = np.array(batch["codes"])[0], np.array(batch["mel"])[0]
    mels = np.array(features.flow_mels(mx.array(corpus.pcm)).astype(mx.float32))
    at = next(i for i in range(len(codes) - len(row)) if (codes[i : i + len(row)] == row).mean() > 0.8)
    assert (mels[2 * at : 2 * at + len(mel)] == mel).all() and len(mel) == 2 * len(row)
    assert (np.array(batch["prompt"]) <= flow.MOST_PROMPT * len(mel)).all()


def test_inference_follows_the_velocity_that_training_taught(corpus):
    """A net that always predicts mel - noise, the target of training, ends at the mel, guided or not."""
    _, batch = flow_batch(corpus)
    net, params = flow.begin(FLOW, np.zeros(80), 0)
    net.update(params)
    mel, noise = batch["mel"][:1], batch["noise"][:1]

    class Perfect:
        def moments(self, t):
            return t.tolist()

        def __call__(self, x, mu, t, speaker, cond, past=None, tap=None):
            doubled = mx.concatenate([mel, mel])
            return doubled - mx.concatenate([noise, noise]), ()

    net.decoder.estimator = Perfect()
    found, _ = net.decoder(noise, mel, mx.zeros((1, 80)), mel, 4)
    assert np.abs(np.array(found - mel)).max() < 1e-3


def test_examples_without_conditions_have_none(corpus):
    """Codes, speaker and prompt change nothing where `conditioned` is 0, and something where it is 1."""
    _, batch = flow_batch(corpus)
    net, params = flow.begin(FLOW, np.zeros(80), 0)
    weights = [(k, v + 0.1 * mx.random.normal(v.shape, key=mx.random.key(1))) for k, v in tree_flatten(params)]
    params = tree_unflatten(weights)
    other = batch | {
        "codes": (batch["codes"] + 1) % 6561,
        "speaker": batch["speaker"] + 1,
        "prompt": batch["prompt"] * 0,
    }
    for conditioned, same in ((0.0, True), (1.0, False)):
        given = {"conditioned": mx.full(batch["conditioned"].shape, conditioned)}
        a, b = (flow.loss(params, x | given, net)[1]["velocity"].item() for x in (batch, other))
        assert (abs(a - b) < 1e-6) == same
