"""Taps of the nets of token2wav: every name of the glossary, watching without a trace, replacing with effect."""

import re

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_map_with_path
from tiny_flow import YAML, M, make_prompt, random_net

from stepaudio.checkpoints.convert.flow_yaml import flow_config
from stepaudio.interp.names import TOKEN2WAV_GLOSSARY
from stepaudio.models.token2wav.campplus import SpeakerConfig, SpeakerEncoder
from stepaudio.models.token2wav.flow import Flow, FlowOptions
from stepaudio.models.token2wav.hift import Hift, HiftConfig, IstftConfig
from stepaudio.models.token2wav.noise import noise_frames
from stepaudio.models.token2wav.speech_tokenizer import S3Config, S3Tokenizer

STEPS = FlowOptions(2)
VOICE = HiftConfig(
    in_channels=M,
    base_channels=16,
    f0_cond_channels=8,
    nb_harmonics=3,
    upsample_rates=(4, 5),
    upsample_kernel_sizes=(8, 9),
    istft=IstftConfig(12, 3),
    resblock_kernel_sizes=(3,),
    resblock_dilation_sizes=((1,),),
    source_resblock_kernel_sizes=(3, 5),
    source_resblock_dilation_sizes=((1,), (1,)),
)
SPEAKER = SpeakerConfig(
    feat_dim=16,
    embedding_size=5,
    growth_rate=3,
    bn_size=2,
    init_channels=7,
    blocks=((2, 3, 1), (3, 5, 2)),
    fcm_channels=4,
    seg_pool=6,
)


def normal(*shape, seed=0) -> mx.array:
    return mx.array(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def small_flow() -> Flow:
    return random_net(Flow(flow_config(YAML)))


def vocoder() -> Hift:
    net = random_net(Hift(VOICE))
    net.f0_predictor.classifier.bias = mx.array([120.0])  # Hz, so that frames are voiced
    return net


def tokenizer_run(net: S3Tokenizer):
    """The hidden states and the dimensions behind them; codes are rounded, so they say less."""
    lengths = mx.array([40])

    def run(tap=None, seed=0):
        hidden = net.encoder(normal(1, 6, 40, seed=seed), lengths, tap)
        kept = {}

        def last(name, x):
            kept[name] = x if tap is None else tap(name, x)
            kept[name] = x if kept[name] is None else kept[name]
            return kept[name]

        net.quantizer(hidden, last)
        return kept["project_down"]

    return run


@pytest.fixture(scope="module")
def runs():
    """By net: a function (tap, seed of the input) -> its output."""
    flow, hift = small_flow(), vocoder()
    speaker = random_net(SpeakerEncoder(SPEAKER))
    speaker.update(tree_map_with_path(lambda n, a: mx.ones_like(a) if "_var" in n else a * 2, speaker.parameters()))
    s3 = random_net(S3Tokenizer(S3Config(6, 16, 2, 2, n_codebook_size=27, fsmn_kernel=5)))
    codes = np.random.default_rng(0).integers(0, 30, (1, 5))

    def flow_run(tap=None, seed=0):
        return flow((codes + seed) % 30, make_prompt(seed), seed, STEPS, tap)

    return {
        "speech_tokenizer": tokenizer_run(s3),
        "speaker_encoder": lambda tap=None, seed=0: speaker(normal(1, 30, 16, seed=seed), tap),
        "flow": flow_run,
        "vocoder": lambda tap=None, seed=0: hift(normal(1, 6, M, seed=seed), seed, tap=tap)[0],
    }


def seen(run, seed=0) -> dict[str, mx.array]:
    found: dict[str, mx.array] = {}
    run(found.__setitem__, seed)
    return found


def pattern_of(net: str, name: str) -> str:
    """The glossary's name of one with numbers."""
    if net == "flow" and name.startswith("euler"):
        name = re.sub(r"dit\.\d+\.", "dit.{j}.", name)
    return re.sub(r"\d+", "{i}", name, count=1) if name not in ("conv1", "conv2", "f0") else name


def off(a, b) -> float:
    a, b = np.array(a), np.array(b)
    assert a.shape == b.shape
    return float(np.abs(a - b).max() / max(np.sqrt(np.mean(b.astype(np.float64) ** 2)), 1e-9))


NETS = list(TOKEN2WAV_GLOSSARY)


@pytest.mark.parametrize("net", NETS)
def test_names_and_axes_are_those_of_the_glossary(runs, net):
    found = seen(runs[net])
    assert {pattern_of(net, name) for name in found} == set(TOKEN2WAV_GLOSSARY[net])
    for name, x in found.items():
        assert x.ndim == len(TOKEN2WAV_GLOSSARY[net][pattern_of(net, name)].axes), name
        if name.endswith("pattern"):
            np.testing.assert_allclose(np.array(x).sum(-1), 1, atol=1e-5)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("tap", [lambda name, x: None, lambda name, x: x], ids=["none", "itself"])
def test_watching_changes_no_bit(runs, net, tap):
    assert np.array_equal(runs[net](tap), runs[net]())


@pytest.mark.parametrize("net", NETS)
def test_whatever_is_replaced_changes_the_result(runs, net):
    plain = runs[net]()
    for name, x in seen(runs[net]).items():
        value = mx.roll(x, 1, axis=-1) if name.endswith("pattern") else x + normal(*x.shape, seed=9) * mx.abs(x).max()
        changed = runs[net](lambda at, _, name=name, value=value: value if at == name else None)
        assert off(changed, plain) > 1e-6, name


@pytest.mark.parametrize("net", NETS)
def test_everything_of_a_donor_gives_the_donors_run(runs, net):
    values = seen(runs[net], seed=1)
    assert off(runs[net](lambda name, x: values[name]), runs[net](seed=1)) < 1e-5
    assert off(runs[net](), runs[net](seed=1)) > 0.05


# What all that follows depends on, and nothing else: the donor's value alone gives the donor's result.
BOTTLENECKS = [
    ("speech_tokenizer", "conv1"),
    ("speech_tokenizer", "0.resid_post"),
    ("speech_tokenizer", "1.resid_post"),
    ("speech_tokenizer", "out"),
    ("speaker_encoder", "head"),
    ("speaker_encoder", "transit1"),
    ("speaker_encoder", "stats"),
    ("flow", "euler.1.x"),
    ("vocoder", "before_conv_post"),
    ("vocoder", "1.out"),
    ("vocoder", "conv_post"),
]


@pytest.mark.parametrize(("net", "name"), BOTTLENECKS)
def test_a_bottleneck_of_a_donor_is_enough(runs, net, name):
    value = seen(runs[net], seed=1)[name]
    assert off(runs[net](lambda at, x: value if at == name else None), runs[net](seed=1)) < 1e-5


def test_an_euler_step_goes_on_from_the_state_that_it_is_given():
    """The last step by hand: x + dt ((1 + r) conditional - r unconditional), with the velocity that was put in."""
    flow, prompt, codes = small_flow(), make_prompt(), np.arange(5)[None]
    found: dict[str, mx.array] = {}
    flow(codes, prompt, 0, STEPS, found.__setitem__)
    velocity, state = normal(*found["euler.1.velocity"].shape, seed=5), normal(*found["euler.0.x"].shape, seed=6)
    edits = {"euler.0.x": state, "euler.1.velocity": velocity}
    mel = flow(codes, prompt, 0, STEPS, lambda name, x: edits.get(name))
    dt, rate = 1 - (1 - np.cos(np.pi / 4)), 0.7
    want = np.array(state) + dt * ((1 + rate) * np.array(velocity[:1]) - rate * np.array(velocity[1:]))
    np.testing.assert_allclose(np.array(mel), want[:, 14:], atol=1e-5)


def test_noise_that_is_replaced_is_the_noise_of_that_seed():
    flow, prompt, codes = small_flow(), make_prompt(), np.arange(5)[None]
    other = noise_frames(8, 0, 24, M)
    edited = flow(codes, prompt, 0, STEPS, lambda name, x: other if name == "noise" else None)
    assert np.array_equal(edited, flow(codes, prompt, 8, STEPS))


def test_a_stream_can_be_edited_too():
    """The same edit in begin and step as in a whole run of one chunk: speaker of another prompt."""
    flow, prompt = small_flow(), make_prompt()
    speaker = flow.project_speaker(make_prompt(1).speaker)
    other = prompt._replace(speaker=make_prompt(1).speaker)
    tap = {"speaker": speaker}.get
    state = flow.begin(prompt, 0, STEPS, lambda name, x: tap(name))
    by_hand = flow.begin(other, 0, STEPS)
    codes = np.arange(6)[None]
    mu = normal(1, 8, M, seed=4)
    for run in (state, by_hand):
        mel, _ = flow.step(codes, run, tap=lambda name, x: mu if name == "mu" else None)
        assert off(mel, flow.step(codes, by_hand)[0]) > 1e-3
    plain = flow.step(codes, by_hand)[0]
    assert np.array_equal(flow.step(codes, state)[0], plain)
    last = flow.step(codes, state, tap=lambda name, x: mx.zeros_like(x) if name == "euler.1.x" else None)[0]
    assert not np.array(last).any() and np.array(plain).any()
