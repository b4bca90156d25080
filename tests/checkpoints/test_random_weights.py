"""Nets of random weights: sizes, rates, and that a seed decides all of it."""

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from stepaudio.checkpoints.convert.flow_yaml import read_flow_config
from stepaudio.checkpoints.layout import TOKEN2WAV, net_layout
from stepaudio.checkpoints.random_weights import random_token2wav, sizes
from stepaudio.errors import ConfigError
from stepaudio.synthesis.synthesizer import Synthesizer


def tensors(parts) -> dict[str, np.ndarray]:
    return {f"{c}.{n}": np.array(a) for c in TOKEN2WAV for n, a in tree_flatten(getattr(parts, c).parameters())}


@pytest.fixture(scope="module")
def small():
    return random_token2wav("small", 0)


def test_a_seed_decides_every_tensor(small):
    mx.random.seed(99)  # what MLX draws by itself must not show
    again, other = tensors(random_token2wav("small", 0)), tensors(random_token2wav("small", 1))
    first = tensors(small)
    assert all(np.array_equal(first[n], again[n]) for n in first)
    assert all(np.isfinite(a).all() for a in first.values())
    assert [n for n, a in first.items() if a.ndim > 1 and np.array_equal(a, other[n])] == []


def test_variance_is_one_over_inputs(small):
    found = tensors(small)
    for name in ("flow.decoder.estimator.blocks.0.mlp.fc2.weight", "flow.encoder.up_layer.conv.weight"):
        fan_in = int(np.prod(found[name].shape[1:]))
        assert found[name].std() * fan_in**0.5 == pytest.approx(1, abs=0.03)


def test_published_sizes_are_those_of_flow_yaml(shared):
    assert sizes("published")["flow"] == read_flow_config(shared / "Step-Audio-2-mini" / "token2wav")


def test_published_sizes_count_as_published():
    """The parameters that the published layout holds: those in the nets' own form, without norms' counters."""
    count = {c: sum(int(np.prod(s)) for s in net_layout(config).values()) for c, config in sizes("published").items()}
    assert {c: round(n / 1e6, 1) for c, n in count.items()} == {
        "tokenizer": 123.7,
        "speaker": 6.9,
        "flow": 155.8,
        "hift": 20.8,
    }


def test_small_nets_speak_at_the_published_rates(small):
    from stepaudio.resources import voice_clip

    synthesizer = Synthesizer(small)
    voice = synthesizer.voice(voice_clip("female"))
    sound = synthesizer.decode([1, 6560, 3, 40], voice)
    assert sound.sample_rate == 24_000 and sound.seconds == 4 / 25 and sound.mel.shape == (8, 80)
    assert 0.01 < np.abs(sound.wave).max() < 0.99  # audible, and below full scale
    pitch = np.array(small.hift.f0_predictor(mx.array(sound.mel)[None]))
    assert (pitch > 10).all() and (pitch < 500).all() and np.ptp(pitch) > 5  # voiced, and it moves


@pytest.mark.parametrize(("size", "seed", "message"), [("big", 0, "'small' or 'published'"), ("small", -1, "negative")])
def test_refusals(size, seed, message):
    with pytest.raises(ConfigError, match=message):
        random_token2wav(size, seed)
