"""Direct logit attribution: sums to the logits, by hand in float64, and agrees with taking a part away."""

import numpy as np
import pytest
import tiny

from stepaudio.decoding.sampling import Sampling
from stepaudio.errors import ConfigError
from stepaudio.interp import edits as making
from stepaudio.interp.attribution import logit_parts
from stepaudio.interp.recorder import record
from stepaudio.models.quantization import Bits, quantise_layers

HOW = {"sampling": Sampling.greedy(), "max_tokens": 5, "on_loop": "off"}
NAMES = [
    "decoder.*.resid_pre",
    "decoder.*.resid_post",
    "decoder.*.attn_out",
    "decoder.*.mlp_out",
    "decoder.*.z",
    "logits",
]


@pytest.fixture(scope="module")
def clip():
    return tiny.noise(1.3)


@pytest.fixture(scope="module")
def trace(tiny_model, clip):
    return record(tiny_model, clip, NAMES, **HOW)


def logits(trace) -> np.ndarray:
    return np.concatenate(trace.writing("logits")).astype(np.float64)


@pytest.mark.parametrize("heads", [False, True])
def test_the_parts_sum_to_the_logits(tiny_model, trace, heads):
    found, steps = logit_parts(tiny_model, trace, heads=heads), np.arange(5)
    np.testing.assert_allclose(found.logits, logits(trace)[steps, list(trace.tokens)], rtol=1e-4, atol=1e-4)
    against = logit_parts(tiny_model, trace, [9, 8, 7, 6, 5], 3, heads)
    want = logits(trace)[steps, [9, 8, 7, 6, 5]] - logits(trace)[:, 3]
    np.testing.assert_allclose(against.logits, want, rtol=1e-4, atol=1e-4)
    assert np.abs(against.values[:, -1]).max() < 1e-3 and against.names[-1] == "rest"
    assert len(found.names) == 1 + 2 * (1 + (4 if heads else 1)) + 1 == found.values.shape[1]
    assert found.table(3).count("\n") == 2


def test_heads_by_hand(tiny_model, trace):
    net = tiny_model.net
    head, norm = (np.array(w, np.float64) for w in (net.lm_head.weight, net.model.norm.weight))
    found = logit_parts(tiny_model, trace, 7, 3, heads=True)
    for layer, h in ((0, 1), (1, 3)):
        out = np.array(net.model.layers[layer].self_attn.o_proj.weight, np.float64)[:, 8 * h : 8 * h + 8]
        for step in range(5):
            final = trace.residual(1)[step].astype(np.float64)
            z = trace.writing(f"decoder.{layer}.z")[step][0, h, -1]
            want = (out @ z * norm / np.sqrt(np.mean(final**2) + 1e-6)) @ (head[7] - head[3])
            at = found.names.index(f"decoder.{layer}.z[{h}]")
            assert found.values[step, at] == pytest.approx(want, abs=1e-4)


def test_heads_of_a_layer_sum_to_its_attention(tiny_model, trace):
    whole, split = (logit_parts(tiny_model, trace, 7, heads=heads) for heads in (False, True))
    for layer in range(2):
        heads = [i for i, n in enumerate(split.names) if n.startswith(f"decoder.{layer}.z[")]
        want = whole.values[:, whole.names.index(f"decoder.{layer}.attn_out")]
        np.testing.assert_allclose(split.values[:, heads].sum(axis=1), want, atol=1e-4)


def test_the_last_part_taken_away_is_what_is_missing(tiny_model, clip, trace):
    """Nothing stands behind the last MLP but the norm: its number before and after links the two runs."""
    found = logit_parts(tiny_model, trace, 7)
    less = record(tiny_model, clip, NAMES, edits=making.zero("decoder.1.mlp_out", steps=0), **HOW)
    rms = [np.sqrt(np.mean(t.residual(1)[0].astype(np.float64) ** 2) + 1e-6) for t in (trace, less)]
    part = found.values[0, found.names.index("decoder.1.mlp_out")]
    assert logits(less)[0, 7] * rms[1] == pytest.approx((found.logits[0] - part) * rms[0], abs=1e-3)


def test_what_an_edit_puts_into_the_stream_is_the_rest(tiny_model, clip):
    vector = np.random.default_rng(0).normal(size=32)
    edited = record(tiny_model, clip, NAMES, edits=making.add("decoder.1.resid_mid", vector), **HOW)
    found = logit_parts(tiny_model, edited, 7)
    np.testing.assert_allclose(found.logits, logits(edited)[:, 7], rtol=1e-4, atol=1e-4)
    assert np.abs(found.values[:, -1]).min() > 1e-3


def test_weights_of_fewer_bits(tiny_checkpoint, clip):
    from stepaudio.model import StepAudio2

    model = StepAudio2.load(tiny_checkpoint)
    layers = {f"model.layers.{i}.self_attn.o_proj": Bits(8, 32) for i in range(2)}
    quantise_layers(model.net, layers | {"lm_head": Bits(4, 32)})
    few = record(model, clip, NAMES, **HOW)
    found = logit_parts(model, few, heads=True)
    np.testing.assert_allclose(found.logits, logits(few)[np.arange(5), list(few.tokens)], rtol=1e-3, atol=1e-3)
    assert np.abs(found.values[:, -1]).max() < 1e-2


@pytest.mark.parametrize(("given", "message"), [
    ({"tokens": 448}, "tokens: expected an id from 0 to 447"), ({"tokens": -1}, "tokens"),
    ({"tokens": [1, 2]}, "5 steps"), ({"tokens": "cat"}, "tokens"), ({"against": [1] * 4}, "against"),
    ({"against": True}, "against"),
])  # fmt: skip
def test_what_is_no_token_is_refused(tiny_model, trace, given, message):
    with pytest.raises(ConfigError, match=message):
        logit_parts(tiny_model, trace, **given)


def test_what_was_not_recorded_is_named(tiny_model, clip):
    with pytest.raises(ConfigError, match=r"decoder\.0\.resid_pre was not recorded"):
        logit_parts(tiny_model, record(tiny_model, clip, ["decoder.*.resid_post"], **HOW))
