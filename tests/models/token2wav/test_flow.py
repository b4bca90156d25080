"""Codes to mel: against the reference's numbers, slow references, and the promises of a stream."""

import json
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from layout_twins import flow_kernels, flow_layout
from mlx.utils import tree_flatten
from tiny_flow import YAML, M, make_prompt, random_net

from stepaudio.checkpoints.arrays import net_arrays
from stepaudio.checkpoints.convert.flow_yaml import flow_config, parse, read_flow_config
from stepaudio.errors import ConfigError, DecodeError, WeightsError
from stepaudio.models.token2wav.conformer import PreLookahead, RelativeAttention, Upsample, relative_positions
from stepaudio.models.token2wav.dit import CausalConvBlock
from stepaudio.models.token2wav.flow import Flow, FlowOptions
from stepaudio.models.token2wav.flow_matching import euler_steps, time_grid
from stepaudio.models.token2wav.noise import noise_frames
from stepaudio.parity.run import _verify_file


@pytest.fixture(scope="module")
def flow():
    return random_net(Flow(flow_config(YAML)))


def close(a, b, tolerance=1e-5):
    np.testing.assert_allclose(np.array(a), np.array(b), rtol=tolerance, atol=tolerance)


# ---------------------------------------------------------------------------------------------- config


def test_published_yaml_has_the_published_tensors(shared):
    config = read_flow_config(shared / "Step-Audio-2-mini" / "token2wav")
    published = json.loads((shared / "published_layout.json").read_text())["flow"]["tensors"]
    assert flow_layout(config) == {name: tuple(shape) for name, shape in published.items()}
    assert len(published) == 605


def test_net_has_the_layout_and_nothing_else(flow):
    kernels = flow_kernels(flow.config)
    expected = {n: tuple(s[i] for i in kernels.get(n, range(len(s)))) for n, s in flow_layout(flow.config).items()}
    assert {name: a.shape for name, a in tree_flatten(flow.parameters())} == expected


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("vocab_size: 30", "vocab_size: 30\n    speed: 2", "unknown key speed"),
        ("depth: 2", "", "estimator: missing key depth"),
        ("depth: 2", "depth: two", "estimator.depth: expected int, found 'two'"),
        ("depth: 2", "depth: 0", "estimator.depth: must be positive"),
        ("key_bias: false", "key_bias: 0", "encoder.key_bias: expected bool"),
        ("in_channels: 24", "in_channels: 25", "estimator.in_channels: only 24"),
        ("up_scale_factor: 2", "up_scale_factor: 3", "up_scale_factor: only 2.0"),
        ("'rel_pos_espnet'", "'abs_pos'", "pos_enc_layer_type: only 'rel_pos_espnet'"),
        ("attention_heads: 2", "attention_heads: 3", "multiple of attention_heads"),
        ("decoder_dit.DiT", "decoder_unet.UNet", "expected !new:cosyvoice2.flow.decoder_dit.DiT"),
        ("!new:cosyvoice2.flow.flow.C", "!apply:os.system.C", "only tags of the form !new:CLASS"),
        ("vocab_size: 30", "vocab_size: [30]", "only plain numbers, words and quoted text"),
        ("vocab_size: 30", "vocab_size: 30\n    vocab_size: 31", "appears twice"),
        ("vocab_size: 30", "vocab_size: 30\n      odd: 3", "indentation"),
        ("vocab_size: 30", "- 30", "expected `key: value`"),
        ("flow: !new", "flaw: !new", "expected one entry 'flow', found ['flaw']"),
    ],
)
def test_flow_yaml_is_a_closed_world(old, new, message):
    assert old in YAML
    with pytest.raises(ConfigError, match=message.replace("[", r"\[")):
        flow_config(YAML.replace(old, new, 1))


def test_yaml_values():
    text = "a: !new:x.Y\n  b: 3\n  c: 1e-5 # why\n  d: 'q # r'\n  e: True\n\n# nothing\nf: word\n"
    assert parse(text.replace(" # r", ""), "f") == {
        "a": {"!new": "x.Y", "b": 3, "c": 1e-5, "d": "q", "e": True},
        "f": "word",
    }


@pytest.mark.parametrize("text", ["", "flow:", "\t", "flow: 3", "%YAML 1.2", "flow: !new:a.B\n", "\x00"])
def test_other_texts_are_refused(text):
    with pytest.raises(ConfigError):
        flow_config(text)


# ------------------------------------------------------------------------------------------ the reference


def test_goldens(goldens):
    rows = _verify_file(goldens / "flow.json", goldens.parent)
    assert len(rows) > 30 and [r for r in rows if r.verdict != "ok"] == []
    assert max(r.relative for r in rows) < 1e-4  # far inside the tolerance, which would pass another epsilon


# ------------------------------------------------------------------------------------------------ references


@pytest.mark.parametrize(("n", "L"), [(1, 1), (4, 4), (3, 8), (1, 5)])
def test_relative_attention_equals_its_definition(n, L):
    H, D = 2, 3
    net = random_net(RelativeAttention(H * D, H, key_bias=True))
    rng = np.random.default_rng(1)
    x = rng.normal(size=(1, n, H * D)).astype(np.float32)
    past = tuple(rng.normal(size=(1, H, L - n, D)).astype(np.float32) for _ in range(2))
    got, (k, v) = net(mx.array(x), relative_positions(n, L, H * D), tuple(map(mx.array, past)) if n < L else None)
    q = np.array(net.linear_q(mx.array(x)))[0].reshape(n, H, D)
    k, v = np.array(k)[0], np.array(v)[0]
    u, w = np.array(net.pos_bias_u), np.array(net.pos_bias_v)
    rows = np.zeros((n, H, D))
    for h in range(H):
        for i in range(n):
            scores = np.zeros(L)
            for j in range(L):
                distance = (L - n + i) - j
                angle = distance * 10_000.0 ** (-np.arange(0, H * D, 2) / (H * D))
                p = np.stack([np.sin(angle), np.cos(angle)], 1).reshape(-1) @ np.array(net.linear_pos.weight).T
                scores[j] = ((q[i, h] + u[h]) @ k[h, j] + (q[i, h] + w[h]) @ p.reshape(H, D)[h]) / np.sqrt(D)
            weights = np.exp(scores - scores.max())
            rows[i, h] = weights / weights.sum() @ v[h]
    close(got[0], np.array(net.linear_out(mx.array(rows.reshape(n, H * D).astype(np.float32)))), 1e-4)


def test_time_runs_from_noise_to_mel():
    for n in (1, 4, 10):
        steps = euler_steps(n)
        assert len(steps) == n and steps[0][0] == 0
        assert sum(dt for _, dt in steps) == pytest.approx(1, abs=1e-6)
        assert time_grid(n)[n // 2] == pytest.approx(1 - np.cos(np.pi * (n // 2) / (2 * n)), abs=1e-6)


# ---------------------------------------------------------------------------------------------- streams


@pytest.mark.parametrize("sizes", [[11], [1] * 11, [3, 1, 7], [5, 6]])
def test_convolutions_in_chunks_equal_whole(sizes):
    C, ahead = 6, 2
    look, up, block = (random_net(n) for n in (PreLookahead(C, ahead), Upsample(C, 2), CausalConvBlock(C)))
    x = mx.random.normal((1, sum(sizes) + ahead, C), key=mx.random.key(0))
    whole = look(x, None)[0], up(x, None)[0], block(x, None)[0]
    parts, past, at = ([], [], []), [None, None, None], 0
    for n in sizes:
        y, past[0] = look(x[:, at : at + n + ahead], past[0])
        parts[0].append(y)
        y, past[1] = up(x[:, at : at + n], past[1])
        parts[1].append(y)
        y, *tails = block(x[:, at : at + n], past[2])
        past[2] = _Tails(*tails)
        parts[2].append(y)
        at += n
    for w, p in zip(whole, parts, strict=True):
        p = mx.concatenate(p, axis=1)
        close(w[:, : p.shape[1]], p)


class _Tails:
    def __init__(self, conv1, conv2):
        self.conv1, self.conv2 = conv1, conv2


def test_encoder_chunk_without_past_equals_whole(flow):
    """Before there is a past, the only difference of a chunk is that what lies ahead is known."""
    x = mx.random.normal((1, 9, 16), key=mx.random.key(0))
    stages = {}
    zeros_ahead, _ = flow.encoder(x, tap=stages.__setitem__)
    seen_ahead, state = flow.encoder(x, None, last=False)
    assert zeros_ahead.shape == (1, 18, 16) and seen_ahead.shape == (1, 14, 16)
    assert state.attention[0][0].shape[2] == 7 and state.up_attention[0][0].shape[2] == 14
    assert not np.allclose(np.array(zeros_ahead[:, :14]), np.array(seen_ahead), atol=1e-3)
    close(stages["pos_embed"][0, :, 0], np.sin(np.arange(8, -9, -1)), 1e-6)  # oldest key as the newest sees it, first
    close(stages["up.pos_embed"][0, :, 0], np.sin(np.arange(17, -18, -1)), 1e-6)


CODES = np.random.default_rng(9).integers(0, 30, (1, 40))


def run(flow, state, codes=CODES, chunk=6):
    found, at = [], 0
    while at + chunk + flow.look_ahead < codes.shape[1]:
        mel, state = flow.step(codes[:, at : at + chunk + flow.look_ahead], state)
        found.append(mel)
        at += chunk
    mel, state = flow.step(codes[:, at:], state, last=True)
    return mx.concatenate([*found, mel], axis=1), state


@pytest.mark.parametrize("memory", ["reference", "recent"])
@pytest.mark.parametrize("chunk", [1, 5, 50])
def test_every_code_becomes_two_frames(flow, chunk, memory):
    options = FlowOptions(n_steps=2, recent_frames=12, memory=memory, noise="position")
    mel, state = run(flow, flow.begin(make_prompt(), 0, options), chunk=chunk)
    assert mel.shape == (1, 80, M) and state.position == 80 + 14
    assert state.cache_frames == 26


def test_streams_do_not_disturb_each_other(flow):
    options = FlowOptions(n_steps=2, recent_frames=12)
    alone = [run(flow, flow.begin(make_prompt(s), s, options))[0] for s in (0, 1)]
    states = [flow.begin(make_prompt(s), s, options) for s in (0, 1)]
    found = ([], [])
    for at in range(0, 40, 6):
        last = at + 6 + flow.look_ahead >= 40
        for s in (0, 1):
            codes = CODES[:, at:] if last else CODES[:, at : at + 6 + flow.look_ahead]
            mel, states[s] = flow.step(codes, states[s], last)
            found[s].append(mel)
        if last:
            break
    for s in (0, 1):
        assert mx.array_equal(mx.concatenate(found[s], axis=1), alone[s])


def test_steps_are_those_of_the_config_unless_a_run_asks_for_others():
    config = flow_config(YAML)
    assert config.decoder.n_steps == 10  # what the reference takes; the published file does not say
    ten, three = (random_net(Flow(c)) for c in (config, replace(config, decoder=replace(config.decoder, n_steps=3))))
    for net, n in ((ten, 10), (three, 3)):
        own, asked = (net(CODES, make_prompt(), 0, options) for options in (FlowOptions(), FlowOptions(n_steps=n)))
        assert mx.array_equal(own, asked) and net.n_steps(FlowOptions()) == n
        begun = net.begin(make_prompt(), 0)
        chunk, _ = net.step(CODES[:, :8], begun)
        assert len(begun.estimator) == n and mx.array_equal(
            chunk, net.step(CODES[:, :8], net.begin(make_prompt(), 0, FlowOptions(n_steps=n)))[0]
        )
    assert mx.array_equal(ten(CODES, make_prompt(), 0, FlowOptions(n_steps=3)), three(CODES, make_prompt(), 0))
    assert not mx.array_equal(ten(CODES, make_prompt(), 0), three(CODES, make_prompt(), 0))


def test_the_temperature_of_the_config_multiplies_the_noise_of_seeds_and_arrays_whole_and_streamed():
    config = flow_config(YAML)
    assert config.decoder.temperature == 1.0  # the reference's; the published file does not say
    quiet = replace(config, decoder=replace(config.decoder, temperature=0.25))
    one, quarter = (random_net(Flow(c)) for c in (config, quiet))
    prompt, options = make_prompt(), FlowOptions(n_steps=2)
    noise = noise_frames(3, 0, one.up * (prompt.codes.shape[1] + CODES.shape[1]), config.output_size)
    expected, seen = one(CODES, prompt, 0.25 * noise, options), {}
    assert mx.array_equal(expected, quarter(CODES, prompt, noise, options, seen.__setitem__))
    assert mx.array_equal(seen["noise"], 0.25 * noise)
    assert mx.array_equal(expected, quarter(CODES, prompt, 3, options))
    assert not mx.array_equal(expected, one(CODES, prompt, 3, options))
    chunks = [
        net.step(CODES[:, :8], net.begin(prompt, n, options))[0] for net, n in ((one, 0.25 * noise), (quarter, 3))
    ]
    assert mx.array_equal(*chunks)


def test_a_state_may_be_used_again(flow):
    state = flow.begin(make_prompt(), 0, FlowOptions(n_steps=2))
    first, _ = flow.step(CODES[:, :8], state)
    again, _ = flow.step(CODES[:, :8], state)
    other, _ = flow.step(CODES[:, 8:16], state)
    assert mx.array_equal(first, again) and not mx.array_equal(first, other)


def test_full_memory_of_the_reference_keeps_the_end_of_the_prompt(flow):
    options = FlowOptions(n_steps=2, recent_frames=10)
    begun = flow.begin(make_prompt(), 0, options)
    _, state = run(flow, begun)
    keys, prompt = state.estimator[1][0].k, begun.estimator[1][0].k
    assert mx.array_equal(keys[:, :, -10:], prompt[:, :, -10:])
    assert keys.shape[2] == 24 and not mx.array_equal(keys[:, :, :14], prompt)


def test_recent_memory_keeps_the_whole_prompt_and_what_came_last(flow):
    options = FlowOptions(n_steps=2, recent_frames=10, memory="recent")
    begun = flow.begin(make_prompt(), 0, options)
    _, before = flow.step(CODES[:, :6], begun)  # 4 codes, 8 frames: all kept
    _, after = flow.step(CODES[:, 4:10], before)
    prompt, first, second = (s.estimator[1][1].v for s in (begun, before, after))
    assert mx.array_equal(first[:, :, :14], prompt) and mx.array_equal(second[:, :, :14], prompt)
    assert first.shape[2] == 22 and second.shape[2] == 24
    assert mx.array_equal(second[:, :, 14:16], first[:, :, 20:22])


def test_where_noise_begins(flow):
    """The reference starts every chunk from the same noise once its cache is full; "position" never does."""
    noise = mx.random.normal((1, 200, M), key=mx.random.key(3))
    options = FlowOptions(n_steps=1, recent_frames=10)
    altered = mx.concatenate([noise[:, :24], mx.zeros((1, 16, M)), noise[:, 40:]], axis=1)
    same = {}
    for kind in ("cache", "position"):
        _, state = run(flow, flow.begin(make_prompt(), noise, replace(options, noise=kind)))  # 24 cached, 94 past
        one, other = (flow.step(CODES[:, :4], replace(state, noise=n))[0] for n in (noise, altered))
        same[kind] = mx.array_equal(one, other).item()
    assert same == {"cache": False, "position": True}
    begun = flow.begin(make_prompt(), noise[:, :50], options)
    run(flow, begun)  # 24 cached frames and 12 new ones need no more, however long the stream
    with pytest.raises(DecodeError, match="noise: expected shape"):
        run(flow, flow.begin(make_prompt(), noise[:, :50], replace(options, noise="position")))


def test_whole_uses_prompt_speaker_and_seed(flow):
    base = flow(CODES, make_prompt(0), 0, FlowOptions(n_steps=2))
    p, other = make_prompt(0), make_prompt(1)
    assert base.shape == (1, 80, M)
    assert mx.array_equal(base, flow(CODES, p, 0, FlowOptions(n_steps=2)))
    for changed in (
        (p._replace(mel=other.mel), 0),
        (p._replace(speaker=other.speaker), 0),
        (p._replace(codes=other.codes), 0),
        (p, 1),
    ):
        assert not np.allclose(np.array(base), np.array(flow(CODES, *changed, FlowOptions(n_steps=2))), atol=1e-4)
    louder = p._replace(speaker=3 * p.speaker)
    close(base, flow(CODES, louder, 0, FlowOptions(n_steps=2)), 1e-4)  # only the direction counts


# --------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("codes", "change", "message"),
    [
        ([[3, 30]], {}, "audio code 30 is outside 0…29"),
        ([[-1]], {}, "audio code -1"),
        ([[]], {}, "non-empty rows of integers"),
        ([1, 2], {}, "expected 1 non-empty rows"),
        ([[1], [2]], {}, "expected 1 non-empty rows"),
        ([[1]], {"mel": mx.zeros((1, 13, M))}, "voice prompt of 7 codes: expected mel"),
        ([[1]], {"speaker": mx.zeros((1, 4))}, "speaker"),
        ([[1]], {"codes": np.zeros(7, int)}, "voice prompt: expected codes"),
    ],
)
def test_bad_input_is_named(flow, codes, change, message):
    codes = np.array(codes, dtype=int)
    with pytest.raises(DecodeError, match=message):
        flow(codes, make_prompt()._replace(**change), 0)


def test_stream_refusals(flow):
    with pytest.raises(DecodeError, match="streaming needs 2 or more"):
        flow.begin(make_prompt(P=1), 0)
    state = flow.begin(make_prompt(P=2), 0, FlowOptions(n_steps=1))
    with pytest.raises(DecodeError, match="a chunk of 2 codes holds nothing beyond"):
        flow.step(CODES[:, :2], state)
    assert flow.step(CODES[:, :1], state, last=True)[0].shape == (1, 2, M)
    for bad in ({"n_steps": 0}, {"noise": "fresh"}, {"memory": "all"}, {"recent_frames": 0}):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            FlowOptions(**bad)
    with pytest.raises(DecodeError, match="negative"):
        noise_frames(-1, 0, 3, 3)


def published(flow):
    rng = np.random.default_rng(0)
    return {n: rng.normal(size=s).astype(np.float32) for n, s in flow_layout(flow.config).items()}


def test_published_tensors_load_and_misfits_are_named(flow):
    tensors = published(flow)
    net = Flow(flow.config)
    net.load_weights(net_arrays(tensors, flow.config))
    name = "decoder.estimator.blocks.1.conv.block.6.weight"  # (8, 8, 3): out and in could be taken for each other
    close(net.decoder.estimator.blocks[1].conv.block[6].weight[:, 1], tensors[name][:, :, 1], 0)
    for change, message in (
        ({n: a for n, a in tensors.items() if n != name}, f"1 of {len(tensors)} tensors are missing: {name}"),
        ({**tensors, "rand_noise": np.zeros(3)}, "no place in the net: rand_noise"),
        ({**tensors, name: tensors[name][:, :, :2]}, f"{name} has shape"),
    ):
        with pytest.raises(WeightsError, match=message):
            net_arrays(change, flow.config)
