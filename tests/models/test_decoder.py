"""The decoder against the reference's numbers, with and without caches, and against its float64 reference."""

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from reference import decoder_reference, golden_net, tiny_net
from safetensors.numpy import load_file

from stepaudio.models.kv_cache import FullCache, NoCache

TENSORS = load_file(Path(__file__).parents[1] / "assets" / "llm.safetensors")
NET = golden_net(TENSORS)
TOLERANCE = 1e-4  # largest difference over the root mean square


def off(got, want) -> float:
    got, want = np.array(got), np.array(want)
    assert got.shape == want.shape
    return float(np.abs(got - want).max() / np.sqrt(np.mean(want.astype(np.float64) ** 2)))


OURS = {"norm": "decoder.out", "logits": "logits"} | {f"layer{i}": f"decoder.{i}.resid_post" for i in range(4)}


@pytest.mark.parametrize("stage", OURS)
def test_stages_equal_the_reference(stage):
    found: dict[str, mx.array] = {}
    NET.logits(NET.embed(TENSORS["in.text.ids"]), NoCache(NET.model.rope), found.__setitem__)
    assert off(found[OURS[stage]], TENSORS[f"out.text.{stage}"]) < TOLERANCE


def test_logits_after_audio_equal_the_reference():
    x = mx.array(TENSORS["out.audio1.embeds"])
    assert off(NET.logits(x, NoCache(NET.model.rope)), TENSORS["out.audio1.logits"]) < TOLERANCE


@pytest.mark.parametrize("lengths", [[23], [1] * 23, [5, 1, 7, 10], [22, 1]], ids=str)
def test_parts_through_a_cache_equal_the_reference(lengths):
    x, cache, out, done = NET.embed(TENSORS["in.text.ids"]), FullCache(4, NET.model.rope), [], 0
    for n in lengths:
        out.append(NET.logits(x[:, done : done + n], cache))
        done += n
    assert off(mx.concatenate(out, axis=1), TENSORS["out.text.logits"]) < TOLERANCE


def test_the_plain_decoder_equals_the_published_one():
    # The plain decoder that the caches are judged by is itself judged by the reference.
    x = NET.embed(TENSORS["in.text.ids"])[0]
    assert off(decoder_reference(NET, x), TENSORS["out.text.logits"][0]) < TOLERANCE


def test_next_logits_are_the_last_ones():
    x = NET.embed(TENSORS["in.text.ids"])
    got = NET.next_logits(x, NoCache(NET.model.rope))
    assert got.dtype == mx.float32 and off(got[0], TENSORS["out.text.logits"][0, -1]) < TOLERANCE


def test_attention_with_a_tap_agrees_and_is_causal():
    found: dict[str, mx.array] = {}
    net = tiny_net(seed=4, scale=1.5)
    x = net.embed(np.arange(20))
    tapped = net.logits(x, NoCache(net.model.rope), found.__setitem__)
    assert np.array_equal(tapped, net.logits(x, NoCache(net.model.rope)))
    weights = np.array(found["decoder.1.pattern"])
    assert weights.shape == (1, 4, 20, 20) and np.abs(weights.sum(-1) - 1).max() < 1e-6
    assert not weights[0, :, ~np.tril(np.ones((20, 20), bool))].any()


def test_half_precision_stays_half_until_the_logits_are_sampled():
    net = tiny_net(seed=4)
    want = np.array(net.next_logits(net.embed(np.arange(9)), NoCache(net.model.rope)))
    net.set_dtype(mx.bfloat16)
    x = net.embed(np.arange(9))
    assert x.dtype == net.dtype == mx.bfloat16
    cache = FullCache(2, net.model.rope)
    got = net.next_logits(x, cache)
    assert got.dtype == mx.float32 and {a.dtype for a in cache.arrays} == {mx.bfloat16}
    assert off(got, want) < 0.2
