"""The optimiser of one net, and the nets under it: AdamW, gradients, saved states."""

from functools import partial

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from speech_corpus import FLOW, HIFT, SPEAKER, TOKENIZER, flow_batch, tokenizer_batch

from stepaudio.errors import DataError
from stepaudio.train.token2wav import campplus, fit, flow, speech_tokenizer, vocoder


def tokenizer(corpus):
    net, params = speech_tokenizer.begin(TOKENIZER, 0)
    return params, partial(speech_tokenizer.loss, net=net), tokenizer_batch(corpus)


def speaker(corpus):
    batches = campplus.Batches(corpus, 8, 0.5, seed=0)
    net, params = campplus.begin(SPEAKER, batches.n_classes, 0)
    return params, partial(campplus.loss, net=net), batches(0)


def hift(corpus):
    net, params = vocoder.begin(HIFT, 0)
    return params, partial(vocoder.loss, net=net), vocoder.Batches(corpus, 2, 12, seed=2)(0)


def flow_net(corpus):
    net, params = flow.begin(FLOW, np.zeros(80), 0)
    return params, partial(flow.loss, net=net), flow_batch(corpus)[1]


@pytest.mark.parametrize("case", [tokenizer, speaker, hift, flow_net])
def test_the_gradient_reaches_every_weight_and_the_loss_falls(corpus, case):
    """After a few steps (the flow's blocks begin as identities), every weight has a gradient, one batch is learnt."""
    params, loss, batch = case(corpus)
    trained = fit.Fit(fit.Schedule(peak_rate=3e-3, warmup=3, average=0.5), params, loss, compiled=False)
    first = loss(params, batch)[0].item()
    for _ in range(12):
        trained.step(batch, 0.0)
    assert loss(trained.average, batch)[0].item() < 0.9 * first
    gradient = mx.grad(lambda p: loss(p, batch)[0])(trained.flat.split(trained.state["params"]))
    idle = [n for n, g in tree_flatten(gradient) if not mx.isfinite(g).all().item() or mx.abs(g).max().item() == 0]
    assert not idle


def test_a_fit_is_adamw_as_torch_has_it():
    """One matrix and one vector, three steps: the same weights as torch.optim.AdamW, decay on the matrix alone."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    w, b, x = rng.normal(0, 1, (3, 4)), rng.normal(0, 1, 3), rng.normal(0, 1, (5, 4))
    w, b, x = (a.astype(np.float32) for a in (w, b, x))

    def loss(p, batch):
        return mx.square(batch["x"] @ p["w"].T + p["b"]).mean(), {"a": mx.zeros(())}

    schedule = fit.Schedule(peak_rate=0.01, warmup=1, weight_decay=0.1, clip=1e9)
    ours = fit.Fit(schedule, {"w": mx.array(w), "b": mx.array(b)}, loss, compiled=False)
    tw, tb = (torch.tensor(a, requires_grad=True) for a in (w, b))
    groups = [{"params": [tw], "weight_decay": 0.1}, {"params": [tb], "weight_decay": 0.0}]
    theirs = torch.optim.AdamW(groups, lr=0.01, betas=(fit.FIRST_DECAY, fit.SECOND_DECAY))
    for _ in range(3):
        ours.step({"x": mx.array(x)}, 0.0)
        theirs.zero_grad()
        (torch.tensor(x) @ tw.T + tb).square().mean().backward()
        theirs.step()
    found = ours.flat.split(ours.state["params"])
    assert np.abs(np.array(found["w"]) - tw.detach().numpy()).max() < 1e-5
    assert np.abs(np.array(found["b"]) - tb.detach().numpy()).max() < 1e-5


def test_a_gradient_that_is_not_finite_changes_no_weight():
    def loss(p, batch):
        return mx.log(p["w"] - 1).sum(), {}

    trained = fit.Fit(fit.Schedule(weight_decay=0.0), {"w": mx.ones((2, 2))}, loss, compiled=False)
    trained.step({}, 0.0)
    assert (np.array(trained.flat.split(trained.state["params"])["w"]) == 1).all()


def test_a_resumed_fit_continues_exactly(tmp_path):
    def loss(p, batch):
        return mx.square(p["w"] - batch["x"]).sum(), {"a": mx.zeros(())}

    def make():
        return fit.Fit(fit.Schedule(), {"w": mx.zeros((2, 3))}, loss, compiled=False)

    batch = {"x": mx.ones((2, 3))}
    one, other = make(), make()
    one.step(batch, 0.1)
    one.save(tmp_path)
    assert other.resume(tmp_path) and not make().resume(tmp_path / "none")
    for trained in (one, other):
        trained.step(batch, 0.2)
    assert (np.array(one.state["params"]) == np.array(other.state["params"])).all()


def test_a_state_of_other_weights_is_refused(tmp_path):
    def made(rows):
        return fit.Fit(fit.Schedule(), {"w": mx.zeros((rows, 64))}, lambda p, batch: (p["w"].sum(), {}), compiled=False)

    made(2).save(tmp_path)
    with pytest.raises(DataError, match="state is of 128 numbers, this run trains 192"):
        made(3).resume(tmp_path)
    assert made(2).resume(tmp_path)
