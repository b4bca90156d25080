"""Steering vectors: means by hand, a step from one run to another, separation of sets that differ and that do not."""

import numpy as np
import pytest
import tiny

from stepaudio.decoding.sampling import Sampling
from stepaudio.errors import ConfigError
from stepaudio.interp.recorder import record
from stepaudio.interp.running import activations
from stepaudio.interp.steering import Steering, steering_between

HOW = {"sampling": Sampling.greedy(), "max_tokens": 1, "on_loop": "off"}
LAST = "decoder.1.resid_post"


@pytest.fixture(scope="module")
def sets():
    """Quiet noise and loud noise, of several lengths."""
    lengths = (1.3, 1.1)
    return [[tiny.noise(s, i, level) for i, s in enumerate(lengths)] for level in (0.01, 0.3)]


@pytest.mark.parametrize(("name", "at"), [
    (LAST, "last"), (LAST, "audio"), ("decoder.0.z", "all"), ("adapter.out", "audio"), ("encoder.0.z", "all"),
])  # fmt: skip
def test_the_mean_difference_by_hand(tiny_model, sets, name, at):
    found, means = steering_between(tiny_model, *sets, name, at), []
    for clips in sets:
        own = []
        for clip in clips:
            trace = record(tiny_model, clip, name, **HOW)
            array = trace[name][0][0]  # encoder, or the pass over the prompt
            if name == "adapter.out":
                array = array[: len(trace.audio_positions)]
            if name == "encoder.0.z":
                array = array[:, : (trace.frames[0] + 1) // 2]
            where = (
                {"last": [-1], "audio": trace.audio_positions}.get(at, slice(None))
                if "decoder" in name
                else slice(None)
            )
            own.append(array[..., where, :].mean(axis=-2))
        means.append(np.mean(own, axis=0))
    np.testing.assert_allclose(found.vector, means[0] - means[1], atol=1e-5)


def test_the_whole_step_leads_to_the_other_run(tiny_model):
    """Behind the last layer, at the last position, one recording each: what is added makes the one into the other."""
    a, b = tiny.noise(1.3), tiny.noise(1.3, 7)
    found = steering_between(tiny_model, [b], [a], LAST)
    assert found.edit() == found.edit(1.0) and str(found.edit(0.5, steps=0)).startswith(f"add {LAST}; steps 0")
    run = record(tiny_model, a, "logits", edits=found.edit(steps=0), **HOW)
    other, plain = (activations(tiny_model, x, "logits", **HOW)["logits"][0, 0] for x in (b, a))
    np.testing.assert_allclose(run["logits"][0][0], other, atol=1e-3)
    assert np.abs(other - plain).max() > 0.1


def test_separation():
    rng = np.random.default_rng(0)
    alike = rng.normal(size=(12, 8)).astype(np.float32)
    moved = alike[6:] + np.float32(5) * np.eye(8, dtype=np.float32)[2]
    assert Steering(LAST, moved, alike[:6]).separation == 1.0
    assert np.mean([Steering(LAST, *np.split(rng.normal(size=(12, 8)), 2)).separation for _ in range(40)]) < 0.6
    same = np.ones((3, 4), np.float32)
    assert Steering(LAST, same, same).separation == 0.5


def test_loud_and_quiet_are_apart(tiny_model, sets):
    assert steering_between(tiny_model, *sets, "encoder.0.resid_post", "audio").separation == 1.0
    with pytest.raises(ConfigError, match="at least two recordings"):
        _ = steering_between(tiny_model, sets[0], sets[1][:1], LAST).separation


@pytest.mark.parametrize(("call", "message"), [
    (lambda m, a, b: steering_between(m, [], b, LAST), "towards: expected a list"),
    (lambda m, a, b: steering_between(m, a, b[0], LAST), "away: expected a list"),
    (lambda m, a, b: steering_between(m, a, b, "decoder.*.resid_post"), "name of one activation"),
    (lambda m, a, b: steering_between(m, a, b, 3), "name of one activation"),
    (lambda m, a, b: steering_between(m, a, b, "decoder.0.pattern"), "channels at every position"),
    (lambda m, a, b: steering_between(m, a, b, "encoder.0.pattern"), "channels at every position"),
    (lambda m, a, b: steering_between(m, a, b, "decoder.0.k_cache"), "channels at every position"),
    (lambda m, a, b: steering_between(m, a, b, "logits"), "channels at every position"),
    (lambda m, a, b: steering_between(m, a, b, "decoder.tokens"), "channels at every position"),
    (lambda m, a, b: steering_between(m, a, b, "encoder.mel"), "channels at every position"),
    (lambda m, a, b: steering_between(m, a, b, "adapter.out"), "expected at='audio'"),
    (lambda m, a, b: steering_between(m, a, b, LAST, "first"), "at: expected last, audio or all"),
    (lambda m, a, b: steering_between(m, [[{"role": "human", "content": "Hi"}]], b, LAST, "audio"), "without"),
])  # fmt: skip
def test_what_gives_no_direction_is_refused(tiny_model, sets, call, message):
    with pytest.raises(ConfigError, match=message):
        call(tiny_model, *sets)
