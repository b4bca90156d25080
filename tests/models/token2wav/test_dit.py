"""The estimator against the reference's numbers."""

from pathlib import Path

import mlx.core as mx
import numpy as np

from stepaudio.checkpoints.tensors import read_arrays
from stepaudio.models.token2wav.dit import DiT, DitConfig

ASSETS = Path(__file__).parents[2] / "assets"


def close(a, b, tolerance=1e-5):
    np.testing.assert_allclose(np.array(a), np.array(b), rtol=tolerance, atol=tolerance)


def reference_estimator():
    """An estimator that the reference has computed, and all arrays of that file."""
    t = {name: mx.array(a) for name, a in read_arrays(ASSETS / "flow_estimator.safetensors").items()}
    C, M = t["w.decoder.estimator.blocks.0.mlp.fc1.weight"].shape[1], t["in.est.x"].shape[1]
    config = DitConfig(
        in_channels=4 * M, out_channels=M, mlp_ratio=2.0, depth=2, num_heads=3, head_dim=16, hidden_size=C
    )
    net, prefix = DiT(config), "w.decoder.estimator."
    kernels = {f"{prefix}blocks.{i}.conv.block.{j}.weight" for i in (0, 1) for j in (1, 6)}
    net.load_weights(
        [
            (n.removeprefix(prefix), a.swapaxes(1, 2) if n in kernels else a)
            for n, a in t.items()
            if n.startswith(prefix)
        ]
    )
    return net, t


def test_estimator_equals_the_reference():
    net, t = reference_estimator()
    stages = {}
    x, mu, cond = (t[f"in.est.{n}"].swapaxes(1, 2) for n in ("x", "mu", "cond"))
    out, _ = net(x, mu, t["in.est.t"], t["in.est.spk"], cond, tap=stages.__setitem__)
    for name, theirs in (("time", "t_emb"), ("0.resid_post", "block0"), ("1.resid_post", "block1")):
        close(stages[name], t[f"out.est.{theirs}"], 1e-4)
    close(out.swapaxes(1, 2), t["out.est.out"], 1e-4)


def test_moments_are_what_the_reference_makes_of_their_times():
    net, t = reference_estimator()
    x, mu, cond = (t[f"in.est.{n}"].swapaxes(1, 2) for n in ("x", "mu", "cond"))
    times = t["in.est.t"]
    moments = net.moments(mx.concatenate([times, times[:1] * 0.5]))
    assert len(moments) == len(times) + 1
    for row, moment in enumerate(moments[:-1]):  # each for all rows, of which this one has that time
        stages = {}
        watched, _ = net(x, mu, moment, t["in.est.spk"], cond, tap=stages.__setitem__)
        out, _ = net(x, mu, moment, t["in.est.spk"], cond)
        assert mx.array_equal(out, watched)
        close(stages["time"][row], t["out.est.t_emb"][row], 1e-4)
        close(out[row].T, t["out.est.out"][row], 1e-4)
    other, _ = net(x, mu, moments[-1], t["in.est.spk"], cond)
    embedding = {"time": mx.broadcast_to(net.t_embedder(times[:1] * 0.5), stages["time"].shape)}
    replaced, _ = net(x, mu, moments[0], t["in.est.spk"], cond, tap=lambda name, _: embedding.get(name))
    close(replaced, other, 1e-5)
    assert float(mx.abs(other - out).max()) > 1e-3
