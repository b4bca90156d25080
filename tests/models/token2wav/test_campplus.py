"""The speaker encoder against the reference's numbers, a plain numpy version, and itself in chunks and batches."""

import json
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from layout_twins import speaker_kernels, speaker_layout
from mlx.utils import tree_flatten
from safetensors.numpy import load_file

from stepaudio.audio.features import kaldi_fbank
from stepaudio.errors import AudioError, ConfigError
from stepaudio.models.token2wav import campplus as speaker
from stepaudio.models.token2wav.campplus import SpeakerConfig, SpeakerEncoder, segment_means, statistics
from stepaudio.parity.golden import Golden
from stepaudio.parity.voice import speaker_checks

SMALL = SpeakerConfig(
    feat_dim=16,
    embedding_size=5,
    growth_rate=3,
    bn_size=2,
    init_channels=7,
    blocks=((2, 3, 1), (3, 5, 2)),
    fcm_channels=4,
    seg_pool=6,
)


def weights(config: SpeakerConfig) -> dict[str, np.ndarray]:
    """Random tensors in the published layout, counters left out; variances are positive."""
    rng = np.random.default_rng(0)
    return {
        n: (rng.uniform(0.5, 2, s) if n.endswith("running_var") else rng.normal(0, 0.5, s)).astype(np.float32)
        for n, s in speaker_layout(config).items()
        if not n.endswith(speaker.COUNTER)
    }


def net_of(config: SpeakerConfig, tensors: dict[str, np.ndarray]) -> SpeakerEncoder:
    kernels, net = speaker_kernels(config), SpeakerEncoder(config)
    net.load_weights([(n, mx.array(t.transpose(kernels[n]) if n in kernels else t)) for n, t in tensors.items()])
    return net


@pytest.fixture(scope="module")
def small() -> SpeakerEncoder:
    return net_of(SMALL, weights(SMALL))


def features(n: int, frames: int) -> np.ndarray:
    return np.random.default_rng(frames).normal(0, 1, (n, frames, SMALL.feat_dim)).astype(np.float32)


def relative(got, want) -> float:
    got, want = np.array(got), np.array(want)
    assert got.shape == want.shape
    return float(np.abs(got - want).max() / np.sqrt(np.mean(want**2)))


def test_goldens_whole(goldens):
    sidecar = json.loads((goldens / "campplus.json").read_text())
    golden = Golden(sidecar["config"], load_file(goldens / "campplus.safetensors"))
    speaker_checks(golden, None)
    rows = golden.finish()
    assert {"embedding", "embedding_short", "head", "transit3"} <= {r.stage for r in rows}
    assert [r for r in rows if r.verdict != "ok"] == []


def test_clip_to_embedding_equals_the_reference(goldens):
    config = json.loads((goldens / "campplus.json").read_text())["config"]
    tensors = load_file(goldens / "campplus.safetensors")
    sizes = {k: config[k] for k in ("growth_rate", "bn_size", "init_channels", "embedding_size")}
    net = net_of(SpeakerConfig(**sizes), {n[2:]: t for n, t in tensors.items() if n.startswith("w.")})
    found = kaldi_fbank(tensors["in.wav"])
    assert np.abs(found - tensors["in.feat"][0]).max() < 1e-3
    assert relative(net(found[None]), tensors["out.embedding"]) < 1e-4


def test_layout_is_the_published_one(shared):
    published = json.loads((shared / "published_layout.json").read_text())["campplus"]
    layout = speaker_layout(SpeakerConfig())
    assert layout == {name: tuple(shape) for name, shape in published["tensors"].items()}
    assert sum(int(np.prod(shape)) for shape in layout.values()) == published["parameters"]


@pytest.mark.parametrize("config", [SMALL, replace(SMALL, blocks=((1, 3, 1),)), SpeakerConfig()])
def test_net_holds_the_layout_without_counters(config):
    kernels = speaker_kernels(config)
    want = {
        n: tuple(s[a] for a in kernels[n]) if n in kernels else s
        for n, s in speaker_layout(config).items()
        if not n.endswith(".num_batches_tracked")
    }
    assert {n: p.shape for n, p in tree_flatten(SpeakerEncoder(config).parameters())} == want


class PlainNet:
    """The network in float64, (channels, frames), one output at a time; PyTorch's weights as they are."""

    def __init__(self, config: SpeakerConfig, tensors: dict[str, np.ndarray]):
        self.config, self.w = config, {n: t.astype(np.float64) for n, t in tensors.items()}

    def norm(self, name: str, x):
        shape = (-1,) + (1,) * (x.ndim - 1)
        mean, var = (self.w[f"{name}.running_{k}"].reshape(shape) for k in ("mean", "var"))
        y = (x - mean) / np.sqrt(var + self.config.bn_eps)
        if f"{name}.weight" in self.w:
            y = y * self.w[f"{name}.weight"].reshape(shape) + self.w[f"{name}.bias"].reshape(shape)
        return y

    def conv2d(self, name: str, x, stride: int):
        kernel = self.w[f"{name}.weight"]
        k = kernel.shape[-1]
        x = np.pad(x, ((0, 0), (k // 2, k // 2), (k // 2, k // 2)))
        bands, frames = range(0, x.shape[1] - k + 1, stride), range(x.shape[2] - k + 1)
        return np.stack(
            [[np.einsum("iab,oiab->o", x[:, f : f + k, t : t + k], kernel) for t in frames] for f in bands]
        ).transpose(2, 0, 1)

    def conv1d(self, name: str, x, stride: int = 1, dilation: int = 1):
        kernel, reach = self.w[f"{name}.weight"], (self.w[f"{name}.weight"].shape[-1] - 1) * dilation
        x = np.pad(x, ((0, 0), (reach // 2, reach // 2)))
        y = np.stack(
            [
                np.einsum("ik,oik->o", x[:, t : t + reach + 1 : dilation], kernel)
                for t in range(0, x.shape[1] - reach, stride)
            ],
            axis=1,
        )
        return y + self.w[f"{name}.bias"][:, None] if f"{name}.bias" in self.w else y

    def block(self, name: str, x, stride: int):
        y = np.maximum(self.norm(f"{name}.bn1", self.conv2d(f"{name}.conv1", x, stride)), 0)
        y = self.norm(f"{name}.bn2", self.conv2d(f"{name}.conv2", y, 1))
        if stride == 2:
            x = self.norm(f"{name}.shortcut.1", self.conv2d(f"{name}.shortcut.0", x, 2))
        return np.maximum(y + x, 0)

    def cam(self, name: str, x, dilation: int):
        length, context = self.config.seg_pool, np.empty_like(x)
        for t in range(x.shape[1]):
            start = t // length * length
            context[:, t] = x[:, start : start + length].mean(axis=1) + x.mean(axis=1)
        gate = self.conv1d(f"{name}.linear2", np.maximum(self.conv1d(f"{name}.linear1", context), 0))
        return self.conv1d(f"{name}.linear_local", x, dilation=dilation) / (1 + np.exp(-gate))

    def activated(self, name: str, x):
        return np.maximum(self.norm(f"{name}.batchnorm", x), 0)

    def __call__(self, features) -> np.ndarray:
        x = np.maximum(self.norm("head.bn1", self.conv2d("head.conv1", features.T[None].astype(np.float64), 1)), 0)
        for name, stride in (("1.0", 2), ("1.1", 1), ("2.0", 2), ("2.1", 1)):
            x = self.block(f"head.layer{name}", x, stride)
        x = np.maximum(self.norm("head.bn2", self.conv2d("head.conv2", x, 2)), 0)
        x = x.reshape(-1, x.shape[2])
        x = self.activated("xvector.tdnn.nonlinear", self.conv1d("xvector.tdnn.linear", x, stride=2))
        for i, (layers, _, dilation) in enumerate(self.config.blocks, 1):
            for j in range(1, layers + 1):
                name = f"xvector.block{i}.tdnnd{j}"
                y = self.conv1d(f"{name}.linear1", self.activated(f"{name}.nonlinear1", x))
                y = self.cam(f"{name}.cam_layer", self.activated(f"{name}.nonlinear2", y), dilation)
                x = np.concatenate([x, y])
            name = f"xvector.transit{i}"
            x = self.conv1d(f"{name}.linear", self.activated(f"{name}.nonlinear", x))
        x = self.activated("xvector.out_nonlinear", x)
        x = np.concatenate([x.mean(axis=1), x.std(axis=1, ddof=1)])[:, None]
        return self.norm("xvector.dense.nonlinear.batchnorm", self.conv1d("xvector.dense.linear", x))[:, 0]


@pytest.mark.parametrize("frames", [3, 4, 11, 12, 13, 25, 40])
def test_embedding_equals_a_plain_reference(small, frames):
    clip = features(1, frames)
    assert relative(small(clip)[0], PlainNet(SMALL, weights(SMALL))(clip[0])) < 1e-4


@pytest.mark.parametrize("frames", [1, 7, 16, 39])
def test_front_end_in_parts_equals_whole(small, monkeypatch, frames):
    clip = mx.array(features(2, 40))
    monkeypatch.setattr(speaker, "FRAMES_ON_CPU", frames)
    assert relative(small.head(clip), small.head.whole(clip)) < 1e-5


def test_front_end_takes_more_at_once_on_a_gpu(small, monkeypatch):
    """And finds the same bits."""
    clip, seen = mx.array(features(1, 1100)), []
    whole = speaker.FCM.whole
    monkeypatch.setattr(speaker.FCM, "whole", lambda net, x: seen.append(x.shape[1]) or whole(net, x))
    in_parts = small.head(clip)
    assert len(seen) == 3
    monkeypatch.setattr(speaker, "on_cpu", lambda: False)
    assert np.array_equal(small.head(clip), in_parts)
    assert seen[3:] == [1100]


def test_batch_equals_alone(small):
    clips = features(3, 31)
    together = small(clips)
    for clip, vector in zip(clips, together, strict=True):
        assert relative(small(clip[None])[0], vector) < 1e-5


def test_training_mode_changes_nothing(small):
    clip = features(1, 20)
    small.eval()
    want = np.array(small(clip))
    small.train()  # MLX's own batch norm would take the clip's statistics now
    assert np.array_equal(np.array(small(clip)), want)


def test_last_segment_is_divided_by_its_own_length():
    x = mx.array([[[1.0], [3.0], [5.0], [7.0], [20.0]]])
    assert segment_means(x, 2).tolist() == [[[2.0], [6.0], [20.0]]]
    assert segment_means(x, 5).tolist() == [[[pytest.approx(7.2)]]]
    assert segment_means(x, 100).tolist() == [[[pytest.approx(7.2)]]]


def test_deviation_is_unbiased():
    assert statistics(mx.array([[[1.0], [3.0]]])).tolist() == [[2.0, pytest.approx(2**0.5)]]


@pytest.mark.parametrize("frames", [1, 2])
def test_refuses_clips_without_a_deviation(small, frames):
    with pytest.raises(AudioError, match="too few to tell a voice; expected 3"):
        small(features(1, frames))


@pytest.mark.parametrize("shape", [(20, 16), (1, 20, 15), (0, 20, 16), (1, 16, 20)])
def test_refuses_other_shapes(small, shape):
    with pytest.raises(AudioError, match=r"expected features of shape \(clips, frames, 16\)"):
        small(np.zeros(shape, np.float32))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("feat_dim", 20),
        ("growth_rate", 0),
        ("bn_eps", 0.0),
        ("blocks", ()),
        ("blocks", ((2, 4, 1),)),
        ("blocks", ((2, 3),)),
        ("seg_pool", -1),
    ],
)
def test_refuses_impossible_sizes(field, value):
    with pytest.raises(ConfigError, match="speaker encoder"):
        replace(SMALL, **{field: value})
