"""Logit lens and attention to audio, held against what is computed by hand."""

import numpy as np
import pytest
from recorded_run import GREEDY, N_IDS

from stepaudio.errors import ConfigError
from stepaudio.interp import lens
from stepaudio.interp import recorder as recording
from stepaudio.models.kv_cache import CachePolicy


def test_the_lens_on_the_last_layer_is_the_model_itself(tiny_model, trace):
    last = tiny_model.config.text_config.num_hidden_layers - 1
    found = lens.logit_lens(tiny_model.net, trace.residual(last), top=3)
    assert found.tokens[:, 0].tolist() == list(trace.tokens)  # greedy
    np.testing.assert_allclose(found.logprobs[:, 0], [s.logprob for s in trace.steps], atol=1e-4)
    assert (np.diff(found.logprobs, axis=1) <= 0).all()


def test_the_lens_on_an_earlier_layer_is_norm_and_head_by_hand(tiny_model, trace):
    x = trace.residual(0)
    scaled = x / np.sqrt((x**2).mean(axis=1, keepdims=True) + 1e-6) * np.array(tiny_model.net.model.norm.weight)
    scores = scaled @ np.array(tiny_model.net.lm_head.weight).T
    found = lens.logit_lens(tiny_model.net, x)
    assert found.tokens[:, 0].tolist() == scores.argmax(axis=1).tolist()
    best = np.exp(scores.max(1)) / np.exp(scores).sum(1)
    np.testing.assert_allclose(np.exp(found.logprobs[:, 0]), best, rtol=1e-3)


def test_the_lens_works_in_blocks(tiny_model):
    x = np.random.default_rng(0).normal(size=(lens.LENS_POSITIONS + 5, 32)).astype(np.float32)
    both = lens.logit_lens(tiny_model.net, x)
    assert both.tokens[-5:].tolist() == lens.logit_lens(tiny_model.net, x[-5:]).tokens.tolist()
    assert lens.logit_lens(tiny_model.net, x[:0], top=2).tokens.shape == (0, 2)


@pytest.mark.parametrize("shape, top", [((4, 31), 1), ((32,), 1), ((4, 32), 0), ((4, 32), 10**9)])
def test_the_lens_refuses_what_is_no_residual(tiny_model, shape, top):
    with pytest.raises(ConfigError, match="logit lens"):
        lens.logit_lens(tiny_model.net, np.zeros(shape, np.float32), top)


def test_attention_to_audio_by_hand(trace):
    reading = lens.audio_attention(trace, layers=[1], heads=[0, 2])
    start, length = trace.spans[0]
    for i in range(N_IDS):
        seen = trace["decoder.1.pattern"][i][0, [0, 2], -1, start : start + length].mean(axis=0)
        np.testing.assert_allclose(reading.weights[i], seen, atol=1e-6)
    assert reading.weights.shape == (N_IDS, length) and (reading.share <= 1 + 1e-5).all()
    np.testing.assert_allclose(reading.peak, (reading.weights.argmax(axis=1) + 0.5) * 0.08)


def test_attention_to_audio_is_the_mean_over_layers_and_heads(trace):
    single = [lens.audio_attention(trace, [i], [h]).weights for i in range(2) for h in range(4)]
    np.testing.assert_allclose(lens.audio_attention(trace).weights, np.mean(single, axis=0), atol=1e-6)


def test_audio_that_was_forgotten_has_no_weight(tiny_model, messages):
    """A window shorter than what follows the audio: nothing of it can be read."""
    trace = recording.record(
        tiny_model,
        messages,
        ("decoder.*.pattern", "decoder.positions"),
        cache=CachePolicy("window", 8),
        sampling=GREEDY,
        max_tokens=N_IDS,
    )
    reading = lens.audio_attention(trace)
    for i in range(N_IDS):
        reachable = trace.audio_positions > trace.n_prompt - 1 + i - 8
        assert (reading.weights[i, ~reachable] == 0).all() and (reading.weights[i, reachable] > 0).all()


def test_a_planted_reader_is_found_where_it_reads(tiny_model, messages, trace):
    """Put all attention of every pass on one row, another for each id, and read it back in seconds."""
    start, length = trace.spans[0]
    for name in ("decoder.0.pattern", "decoder.1.pattern"):
        for i, array in enumerate(trace[name]):
            planted = np.zeros_like(array)
            planted[..., start + i % length] = 1
            trace.recorder._arrays[name][i] = planted
    reading = lens.audio_attention(trace)
    np.testing.assert_allclose(reading.peak, 0.04 + 0.08 * (np.arange(N_IDS) % length))
    np.testing.assert_allclose(reading.share, 1)


def test_attention_needs_its_recordings(tiny_model, messages):
    trace = recording.record(tiny_model, messages, "decoder.out", max_tokens=1)
    with pytest.raises(ConfigError, match="attention to audio"):
        lens.audio_attention(trace)
    spoken = recording.record(tiny_model, messages, ("decoder.*.pattern", "decoder.positions"), max_tokens=1)
    with pytest.raises(ConfigError, match="heads"):
        lens.audio_attention(spoken, heads=[4])
