"""Taps: watching changes no bit, and what a tap puts in the place of an activation is what the net goes on with."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from reference import decoder_reference, encoder_reference, tiny_net

from stepaudio.decoding.generate import Request, collect, generate
from stepaudio.decoding.options import RunOptions
from stepaudio.decoding.sampling import Sampling
from stepaudio.errors import ConfigError
from stepaudio.interp.names import FIXED, activation_names
from stepaudio.models.kv_cache import CachePolicy, NoCache
from stepaudio.models.tap import beginnings, chain, emit, named, wants

NET = tiny_net(seed=4, scale=1.5)
TOKENS = np.random.default_rng(0).integers(0, 48, 14)
FRAMES = 45
NAMES = list(activation_names(NET.config))
ENCODED = [n for n in NAMES if n.startswith(("encoder", "adapter"))]
DECODED = [n for n in NAMES if n.startswith(("decoder", "logits")) and n not in FIXED]


def off(got, want) -> float:
    got, want = np.array(got), np.array(want)
    assert got.shape == want.shape
    return float(np.abs(got - want).max() / np.sqrt(np.mean(want.astype(np.float64) ** 2)))


def mel(frames: int = FRAMES, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(8, frames)).astype(np.float32)


def logits(tap=None, tokens=TOKENS) -> mx.array:
    return NET.logits(NET.embed(tokens), NoCache(NET.model.rope), tap, mx.array(tokens)[None])


def embeddings(tap=None, x=None) -> mx.array:
    return NET.encode_audio([mel() if x is None else x], independent=False, tap=tap)[0]


def seen(run) -> dict[str, mx.array]:
    found: dict[str, mx.array] = {}
    run(found.__setitem__)
    return found


def only(name: str, value):
    """A tap that puts `value` in the place of one activation."""
    return lambda at, x: value if at == name else None


def moved(name: str, x: mx.array) -> np.ndarray:
    """Another value of the same kind: a pattern stays a pattern, a mask a mask, the rest is shifted at random."""
    x, rng = np.array(x), np.random.default_rng(len(name))
    if name.endswith("pattern"):
        return np.roll(x, 1, axis=-3)  # the heads' patterns change places
    if name.endswith("mask"):
        return np.where(np.arange(x.shape[-1]) < 5, 0.0, -1e10).astype(np.float32)[None, None, None]
    return x + rng.normal(size=x.shape).astype(np.float32) * max(0.3, float(np.std(x)) / 2)


# ------------------------------------------------------------------------------- emit


def test_emit_hands_out_the_name_and_the_array():
    x, calls = mx.ones((2, 3)), []
    assert emit(None, "a", x) is x
    assert emit(lambda *call: calls.append(call), "a", x) is x
    assert emit(lambda name, a: a, "a", x) is x
    assert calls == [("a", x)]


@pytest.mark.parametrize("value", [mx.full((2,), 3, mx.int32), np.full(2, 3.0), mx.full((2,), 3.0, mx.bfloat16)])
def test_a_replacement_takes_the_dtype_of_what_it_replaces(value):
    got = emit(lambda name, a: value, "a", mx.zeros((2,), mx.float16))
    assert got.dtype == mx.float16 and got.tolist() == [3, 3]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (mx.zeros((3, 2)), r"tap at a: .* shape of what it replaces, \(2, 3\); found \(3, 2\)"),
        (mx.zeros((3,)), r"found \(3,\)"),  # would broadcast, and still is another shape
        (mx.zeros((2, 3), mx.complex64), "array of real numbers, found .*complex64"),
        (np.full((2, 3), "x"), "array of real numbers, found <U1"),
        ([[0.0] * 3] * 2, "array of real numbers, found list"),
        (0.0, "array of real numbers, found float"),
    ],
)
def test_a_replacement_of_another_kind_is_refused(value, message):
    with pytest.raises(ConfigError, match=message):
        emit(lambda name, a: value, "a", mx.zeros((2, 3)))


def test_names_of_parts_and_taps_in_a_row():
    assert named(None, "a.") is None and chain(None, None) is None
    calls = []
    tap = named(lambda name, x: calls.append((name, x.item())), "net.")
    last = chain(only("net.x", mx.array(2.0)), None, lambda name, x: calls.append((name, x.item())))
    emit(tap, "x", mx.array(1.0))
    assert emit(named(last, "net."), "x", mx.array(1.0)).item() == 2
    assert calls == [("net.x", 1), ("net.x", 2)]  # the second tap sees what the first has left
    assert chain(None, tap) is tap


class Choosy:
    """A tap that says what it wants, and keeps what it is shown."""

    def __init__(self, *names: str):
        self.names, self.shown = beginnings(names), {}

    def wants(self, name: str) -> bool:
        return name in self.names

    def __call__(self, name, x):
        self.shown[name] = np.array(x)


def test_a_tap_may_say_what_it_wants():
    """It is shown nothing of other layers, and sees the same of its own as one that is shown everything."""
    everything, some = {}, Choosy("decoder.1.z", "encoder.0.q")
    want = logits(lambda name, x: everything.update({name: np.array(x)}))
    assert np.array_equal(logits(some), want)
    assert "decoder.1.z" in some.shown and "decoder.1.pattern" not in some.shown
    assert not [name for name in some.shown if name.startswith("decoder.0.")]
    assert len(some.shown) < len(everything)
    for name, array in some.shown.items():
        np.testing.assert_array_equal(array, everything[name])
    assert named(some, "adapter.") is None and named(named(some, "decoder."), "0.") is None
    embeddings(some)
    assert "encoder.0.q" in some.shown


def test_taps_in_a_row_want_what_any_of_them_wants():
    a, b = Choosy("net.a.x"), Choosy("net.b.x")
    both = chain(a, b)
    assert wants(both, "net.a.") and wants(both, "net.b.x") and not wants(both, "net.c.")
    emit(named(named(both, "net."), "b."), "x", mx.array(1.0))
    assert set(b.shown) == {"net.b.x"}
    assert wants(chain(a, lambda name, x: None), "net.c.")  # one that says nothing is shown everything


# ------------------------------------------------------------------------------- watching


@pytest.mark.parametrize("tap", [lambda name, x: None, lambda name, x: x], ids=["none", "itself"])
def test_watching_changes_no_bit(tap):
    assert np.array_equal(logits(tap), logits())
    assert np.array_equal(embeddings(tap), embeddings())


def test_every_name_of_the_glossary_is_handed_out_once_and_no_other():
    calls: list[str] = []
    logits(lambda name, x: calls.append(name))
    embeddings(lambda name, x: calls.append(name))
    assert sorted(calls) == sorted(NAMES)


# ------------------------------------------------------------------------------- replacing


@pytest.mark.parametrize("name", DECODED)
def test_a_replacement_in_the_decoder_is_what_follows_from_it(name):
    value = moved(name, seen(logits)[name])
    edited = logits(only(name, value))
    assert off(edited, logits()) > 1e-2
    assert off(edited[0], decoder_reference(NET, NET.embed(TOKENS)[0], edits={name: value[0]})) < 1e-4


@pytest.mark.parametrize("name", ENCODED)
def test_a_replacement_in_the_encoder_is_what_follows_from_it(name):
    value = moved(name, seen(embeddings)[name])
    edited = embeddings(only(name, value))
    assert off(edited, embeddings()) > 1e-3
    edit = {name: value[0, 0, 0] if name.endswith("mask") else value[0]}
    want = encoder_reference(NET, mel(), edit)[: len(edited)]
    assert off(edited, want) < 1e-4


def test_the_plain_encoder_is_the_encoder():
    assert off(embeddings(), encoder_reference(NET, mel())[: len(embeddings())]) < 1e-5


@pytest.mark.parametrize("run", [logits, embeddings], ids=["decoder", "encoder"])
def test_everything_of_a_donor_gives_the_donors_run(run):
    donor = {
        logits: lambda tap: logits(tap, TOKENS[::-1].copy()),
        embeddings: lambda tap: embeddings(tap, mel(seed=2)),
    }[run]
    values = {name: x for name, x in seen(donor).items() if name not in FIXED}
    assert off(run(lambda name, x: values.get(name)), donor(None)) < 1e-6
    assert off(run(), donor(None)) > 0.1


@pytest.mark.parametrize("layer", [0, 1])
def test_the_residual_stream_of_a_donor_is_enough(layer):
    """All that a layer passes on is in its residual stream: from there on the run is the donor's."""
    name = f"decoder.{layer}.resid_post"

    def donor(tap):
        return logits(tap, TOKENS[::-1].copy())

    assert off(logits(only(name, seen(donor)[name])), donor(None)) < 1e-6


@pytest.mark.parametrize(("name", "given"), [("positions", np.arange(14)), ("tokens", TOKENS[None])])
def test_positions_and_tokens_can_be_read_but_not_replaced(name, given):
    with pytest.raises(ConfigError, match="can be read, not replaced"):
        logits(only(f"decoder.{name}", mx.zeros(given.shape, mx.int32)))
    assert np.array_equal(seen(logits)[f"decoder.{name}"], given)


def test_a_wrong_shape_names_its_place():
    with pytest.raises(ConfigError, match=r"tap at decoder\.1\.z: .*\(1, 4, 14, 8\); found \(1, 4, 14, 1\)"):
        logits(only("decoder.1.z", mx.zeros((1, 4, 14, 1))))


# ------------------------------------------------------------------------------- prefill, caches, batches

SHIFT = np.random.default_rng(3).normal(size=32).astype(np.float32)


def shifted_net():
    """NET with a bias behind the first layer's MLP: what adding `SHIFT` to decoder.0.mlp_out must come to."""
    net = tiny_net(seed=4, scale=1.5)
    plain = net.model.layers[0].mlp.down_proj
    biased = nn.Linear(*reversed(plain.weight.shape))
    biased.weight, biased.bias = plain.weight, mx.array(SHIFT)
    net.model.layers[0].mlp.down_proj = biased
    return net


def shift(name: str, x: mx.array):
    return x + mx.array(SHIFT) if name == "decoder.0.mlp_out" else None


def generated(net, prompts, cache, tap=None):
    options = RunOptions(Sampling.greedy(), cache, max_tokens=12, on_loop="off")
    requests = [Request(p, net.embed(np.array(p))[0]) for p in prompts]
    return [(r.tokens, np.array(r.logprobs)) for r in collect(generate(net, requests, options, tap), len(requests))]


PROMPTS = [TOKENS.tolist(), TOKENS[:5].tolist(), TOKENS[3:12].tolist()]
CACHES = {
    "full": CachePolicy("full"),
    "window": CachePolicy("window", 9),  # shorter than the prompt: it is read in several passes
    "sinks": CachePolicy("sinks", 9, sinks=2),
}


@pytest.mark.parametrize("cache", CACHES)
def test_an_edit_holds_in_prefill_and_at_every_step(cache):
    edited = generated(NET, PROMPTS[:1], CACHES[cache], shift)
    by_hand = generated(shifted_net(), PROMPTS[:1], CACHES[cache])
    plain = generated(NET, PROMPTS[:1], CACHES[cache])
    assert edited[0][0] == by_hand[0][0] and np.abs(edited[0][1] - by_hand[0][1]).max() < 1e-4
    assert edited[0][0] != plain[0][0]


def test_an_edit_holds_for_every_row_of_a_batch():
    edited, by_hand = (
        generated(net, PROMPTS, CACHES["full"], tap) for net, tap in ((NET, shift), (shifted_net(), None))
    )
    for i, (tokens, logprobs) in enumerate(edited):
        assert tokens == by_hand[i][0] and np.abs(logprobs - by_hand[i][1]).max() < 1e-4
        assert tokens == generated(NET, [PROMPTS[i]], CACHES["full"], shift)[0][0]


def test_watching_a_generation_changes_no_bit():
    for cache in CACHES.values():
        watched, alone = (generated(NET, PROMPTS[:1], cache, tap)[0] for tap in (lambda name, x: x, None))
        assert watched[0] == alone[0] and np.array_equal(watched[1], alone[1])


def test_keys_and_values_that_are_replaced_go_into_the_cache():
    """Values of nothing at the prompt's positions: later steps read nothing there, too."""
    gone = {}

    def forget(name, x):
        if name == "decoder.1.v" and x.shape[2] > 1:
            return mx.zeros_like(x)
        if name == "decoder.1.v_cache":
            gone[x.shape[2]] = np.array(x)
        return None

    generated(NET, PROMPTS[:1], CACHES["full"], forget)
    assert sorted(gone) == list(range(14, 26))
    assert all(not v[:, :, :14].any() and v[:, :, 14:].any() == (n > 14) for n, v in gone.items())


def test_an_edit_of_some_clips_leaves_the_others():
    """A batch of clips, the second of which is encoded with a bias behind the first block's MLP."""
    bias = np.zeros((2, 1, 16), np.float32)
    bias[1] = SHIFT[:16]

    def tap(name, x):
        return x + mx.array(bias) if name == "encoder.0.mlp_out" else None

    other = NET.encoder.blocks[0].mlp[2].bias
    plain = NET.encode_audio([mel(), mel(30)])
    edited = NET.encode_audio([mel(), mel(30)], tap=tap)
    net = tiny_net(seed=4, scale=1.5)
    net.encoder.blocks[0].mlp[2].bias = other + mx.array(SHIFT[:16])
    assert off(edited[0], plain[0]) < 1e-6
    assert off(edited[1], net.encode_audio([mel(), mel(30)])[1]) < 1e-5 and off(edited[1], plain[1]) > 1e-2
