"""Estimated patches against measured ones, where first order is all there is, and gradients against differences."""

import numpy as np
import pytest
import tiny

from stepaudio.decoding.sampling import Sampling
from stepaudio.errors import ConfigError
from stepaudio.interp import edits as making
from stepaudio.interp.patch_estimates import estimate_patches
from stepaudio.interp.patching import patch_between, run_pair
from stepaudio.interp.recorder import Recorder
from stepaudio.interp.running import forced_logits

HOW = {"sampling": Sampling.greedy(), "max_tokens": 5, "on_loop": "off"}
NAMES = ["decoder.*.resid_mid", "decoder.*.z", "decoder.*.k", "decoder.0.rot_q", "decoder.out"]


@pytest.fixture(scope="module")
def clip():
    return tiny.noise(1.3)


@pytest.mark.parametrize("measure", ["logit_difference", "probability"])
@pytest.mark.parametrize("fault", [
    making.scale("decoder.0.resid_pre", 1.0002), making.scale("adapter.out", 0.99, seconds=(0.2, 0.8)),
], ids=str)  # fmt: skip
def test_where_a_fault_is_small_the_estimate_is_the_measurement(tiny_model, clip, measure, fault):
    found = estimate_patches(tiny_model, clip, None, NAMES, measure, fault=fault, **HOW)
    places = [{"names": "decoder.0.z", "heads": h} for h in range(4)]
    places += [{"names": "decoder.0.resid_mid", "positions": p} for p in (-1, -3, 20, 21)]
    places += [{"names": name} for name in found.values]
    want = patch_between(tiny_model, clip, None, places, measure, fault=fault, **HOW)
    n = len(found.by_position("decoder.0.resid_mid")) - 4
    got = [*found.by_head("decoder.0.z"), *found.by_position("decoder.0.resid_mid")[[n - 1, n - 3, 20, 21]]]
    np.testing.assert_allclose([*got, *found.recovered.values()], want.recovered, atol=0.05)
    assert found.recovered["decoder.out"] == pytest.approx(1.0, abs=0.05)
    assert found.table().count("\n") == len(found.values) - 1


def test_a_number_of_the_gradient_by_differences(tiny_model, clip):
    """Of a large fault: one channel moved a little to either side, by an edit."""
    fault = making.scale("decoder.0.mlp_out", -1.0)
    found = estimate_patches(tiny_model, clip, None, "decoder.1.resid_mid", fault=fault, **HOW)
    pair = run_pair(tiny_model, clip, None, "decoder.1.resid_mid", fault=fault, **HOW)
    nudge = np.eye(32)[5] * 0.01
    sides = [
        pair.corrupt("logit_difference", making.add("decoder.1.resid_mid", s * nudge, steps=pair.step)) for s in (1, -1)
    ]
    at = len(pair.layout.prompt.tokens) - 1 + pair.step
    recorder = Recorder(tiny_model.config, "decoder.1.resid_mid")
    forced_logits(tiny_model, pair.layout, pair.tokens, fault, recorder, pair.embeddings)
    moved = pair.donor["decoder.1.resid_mid"][0, at, 5] - recorder["decoder.1.resid_mid"][0][0, at, 5]
    assert found.values["decoder.1.resid_mid"][at, 5] == pytest.approx(moved * (sides[0] - sides[1]) / 0.02, rel=0.02)


@pytest.mark.parametrize(("names", "measure", "message"), [
    ("decoder.*.pattern", "logit_difference", "channels at every position"),
    ("decoder.*.v_cache", "logit_difference", "channels at every position"),
    ("adapter.out", "logit_difference", "activations of the decoder"),
    ("logits", "logit_difference", "activations of the decoder"),
    ("decoder.positions", "logit_difference", "found none"), ("decoder.9.z", "probability", "decoder.9.z"),
    ("decoder.*.z", "wer", "wer has no gradient"), ("decoder.*.z", "loop", "loop has no gradient"),
])  # fmt: skip
def test_what_has_no_gradient_is_refused(tiny_model, clip, names, measure, message):
    with pytest.raises(ConfigError, match=message):
        estimate_patches(tiny_model, clip, None, names, measure, fault=making.zero("decoder.0.z"), **HOW)


def test_names_of_the_estimates(tiny_model, clip):
    found = estimate_patches(tiny_model, clip, None, NAMES[0], fault=making.zero("decoder.0.z"), **HOW)
    with pytest.raises(ConfigError, match="has no heads"):
        found.by_head("decoder.0.resid_mid")
    with pytest.raises(ConfigError, match="was not estimated"):
        found.by_position("decoder.0.z")
