"""Layouts read off the nets, against lists written by hand, the published list, and the nets' arrays."""

import json
from dataclasses import replace

import layout_twins
import mlx.core as mx
import numpy as np
import published
import pytest

from stepaudio.checkpoints import layout
from stepaudio.checkpoints.arrays import net_arrays
from stepaudio.checkpoints.header import read_header
from stepaudio.checkpoints.layout import (
    axes_of,
    build,
    expected_layout,
    inverse,
    kernel_axes,
    net_layout,
    parameters_of,
    to_net,
    to_published,
)
from stepaudio.checkpoints.random_weights import sizes
from stepaudio.checkpoints.weight_norm import DIRECTION, MAGNITUDE, PAIRED
from stepaudio.errors import ConfigError
from stepaudio.models.speech_lm import StepAudioConfig
from stepaudio.models.token2wav.campplus import SpeakerConfig
from stepaudio.models.token2wav.flow import FlowConfig
from stepaudio.models.token2wav.hift import HiftConfig
from stepaudio.models.token2wav.speech_tokenizer import S3Config
from stepaudio.resources import data_folder
from stepaudio.schema import MAX_SIZE

MAIN = {
    "text_config": {
        "hidden_size": 3584, "intermediate_size": 18944, "num_attention_heads": 28, "num_key_value_heads": 4,
        "num_hidden_layers": 28, "vocab_size": 158720, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
    },
    "audio_encoder_config": {
        "n_mels": 128, "n_audio_ctx": 1500, "n_audio_state": 1280, "n_audio_head": 20, "n_audio_layer": 32,
        "llm_dim": 3584, "kernel_size": 3, "adapter_stride": 2,
    },
}  # fmt: skip
WITNESS = {
    StepAudioConfig: layout_twins.main_layout,
    S3Config: layout_twins.s3_layout,
    SpeakerConfig: layout_twins.speaker_layout,
    FlowConfig: layout_twins.flow_layout,
    HiftConfig: layout_twins.hift_layout,
}
PUBLISHED = [StepAudioConfig.from_dict(MAIN), *sizes("published").values()]
COUNTS = [832, 102, 937, 605, 328]
# Sizes that no two axes share, so that an exchange of axes shows.
SMALL = [
    StepAudioConfig.from_file(data_folder() / "nano"),
    published.TOKENIZER,
    published.SPEAKER,
    FlowConfig.from_dict(published.FLOW),
    published.HIFT,
    *sizes("small").values(),
    replace(published.SPEAKER, blocks=((1, 5, 3),), init_channels=10),
    replace(published.HIFT, source_resblock_kernel_sizes=(7, 3), resblock_dilation_sizes=((1,), (1, 2, 3))),
]


def named(config) -> str:
    return type(config).__name__


@pytest.mark.parametrize("config", [*PUBLISHED, *SMALL], ids=named)
def test_names_and_shapes_are_those_written_by_hand(config):
    assert expected_layout(config) == WITNESS[type(config)](config)


def test_counts_and_bytes_are_the_published_ones():
    assert [len(expected_layout(config)) for config in PUBLISHED] == COUNTS
    values = sum(int(np.prod(shape)) for shape in expected_layout(PUBLISHED[0]).values())
    assert 2 * values == 16_630_358_528  # total_size of the published index, in bfloat16


def test_names_and_shapes_are_the_published_ones(shared):
    listed = json.loads((shared / "published_layout.json").read_text())
    main = {name: tuple(t["shape"]) for name, t in listed["main"]["tensors"].items()}
    assert expected_layout(StepAudioConfig.from_file(shared / "Step-Audio-2-mini")) == main
    for config, name in zip(PUBLISHED[3:], ("flow", "hift"), strict=True):
        assert expected_layout(config) == {n: tuple(s) for n, s in listed[name]["tensors"].items()}


def test_names_and_shapes_are_those_of_a_recorded_checkpoint(goldens):
    config = json.loads((goldens / "llm.json").read_text())["config"]
    stored = read_header(goldens / "llm.safetensors")
    shapes = {name[2:]: info.shape for name, info in stored.items() if name.startswith("w.")}
    wanted = {key: config[key] for key in ("text_config", "audio_encoder_config")}
    assert expected_layout(StepAudioConfig.from_dict(wanted)) == shapes


def test_a_published_shape_is_known_as_the_net_holds_it():
    held = net_layout(SMALL[0])
    assert {name: layout.mlx_shape(name, shape) for name, shape in expected_layout(SMALL[0]).items()} == held


@pytest.mark.parametrize("config", SMALL, ids=named)
def test_axes_of_kernels_are_those_written_by_hand(config):
    witness = {
        S3Config: lambda c: dict.fromkeys(layout_twins.s3_kernels(c), layout_twins.CONV),
        SpeakerConfig: layout_twins.speaker_kernels,
        FlowConfig: layout_twins.flow_kernels,
        HiftConfig: layout_twins.hift_kernels,
        StepAudioConfig: lambda c: dict.fromkeys(
            ("encoder.conv1.weight", "encoder.conv2.weight", "adapter.conv.weight"), layout_twins.CONV
        ),
    }
    assert kernel_axes(config) == witness[type(config)](config)


@pytest.mark.parametrize("config", SMALL, ids=named)
def test_every_tensor_of_three_axes_or_more_is_declared_and_no_other(config):
    assert set(kernel_axes(config)) == {name for name, shape in net_layout(config).items() if len(shape) > 2}


@pytest.mark.parametrize("config", SMALL, ids=named)
def test_published_arrays_fill_the_net(config):
    """Every published tensor is one of a kind, and each arrives in the net under its name, its axes in order."""
    rng = np.random.default_rng(0)
    witness = WITNESS[type(config)](config)
    tensors = {name: rng.normal(size=shape).astype(np.float32) for name, shape in witness.items()}
    net = build(config)
    net.load_weights(net_arrays(tensors, config))
    held = parameters_of(net)
    for name, array in tensors.items():
        if not name.endswith((MAGNITUDE, DIRECTION, layout_twins.COUNTER)):
            back = np.array(to_published(held[name], axes_of(type(config), name)))
            np.testing.assert_array_equal(back, array)


@pytest.mark.parametrize("axes", [layout.CONV1D, layout.CONV2D, layout.TRANSPOSED])
def test_turning_to_the_net_and_back_is_nothing(axes):
    array = np.arange(2 * 3 * 5 * 7).reshape((2, 3, 5, 7)[: len(axes)] if len(axes) == 4 else (2, 3, 35))
    np.testing.assert_array_equal(to_published(to_net(array, axes), axes), array)
    assert tuple(axes[i] for i in inverse(axes)) == tuple(range(len(axes)))
    assert to_net(array, None) is array and to_published(array, None) is array


def test_kernels_are_pytorchs_seen_by_mlx():
    """MLX's convolutions of a kernel turned by its axes are numpy's sums over the kernel as PyTorch lays it out."""
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(6, 3)).astype(np.float32), rng.normal(size=(4, 3, 2)).astype(np.float32)
    slow = np.array([[(kernel[o] * x[t : t + 2].T).sum() for o in range(4)] for t in range(5)])
    fast = mx.conv1d(mx.array(x)[None], mx.array(to_net(kernel, layout.CONV1D)))[0]
    np.testing.assert_allclose(np.array(fast), slow, rtol=1e-5, atol=1e-5)


def test_reading_a_layout_draws_no_number_and_allocates_nothing():
    layout._net_layout.cache_clear()
    mx.random.seed(7)
    first = mx.random.normal((3,)).tolist()
    mx.random.seed(7)
    before = mx.get_active_memory()
    assert len(net_layout(PUBLISHED[0])) == 832
    assert mx.get_active_memory() - before < 1 << 20  # the published weights take 16.6 GB
    assert mx.random.normal((3,)).tolist() == first


def test_a_layout_is_the_callers_own():
    expected_layout(SMALL[1]).clear()
    net_layout(SMALL[1]).clear()
    assert len(net_layout(SMALL[1])) == len(WITNESS[S3Config](SMALL[1]))


def test_sizes_beyond_arrays_are_an_error_of_ours():
    """Each size is possible, and their product is none of an array."""
    flow = sizes("small")["flow"]
    estimator = replace(flow.decoder.estimator, num_heads=MAX_SIZE, head_dim=MAX_SIZE)
    with pytest.raises(ConfigError, match="FlowConfig: a size is beyond what arrays can have"):
        net_layout(replace(flow, decoder=replace(flow.decoder, estimator=estimator)))


def test_weight_norm_pairs_are_all_kernels_but_those_that_thin_the_source():
    kernels = set(kernel_axes(published.HIFT))
    assert {n for n in kernels if not PAIRED.fullmatch(n)} == {"source_downs.0.weight", "source_downs.1.weight"}
