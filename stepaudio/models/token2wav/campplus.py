"""CAM++ speaker encoder: kaldi filterbank frames of one clip in, one vector that says who speaks out.

B clips of equal length, T feature frames, F bands, C channels, N = ceil(T / 2) frames after the first strided
layer. Batch norms always use their running statistics: nothing here trains. Attribute names are those of the
published network. Knows no files and no samples.

Reference: CAM++ (Wang et al. 2023), the PyTorch network of 3D-Speaker.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import mlx.core as mx
import mlx.nn as nn

from ...backend.device import on_cpu
from ...backend.ops import relu
from ...backend.pieces import Pieces
from ...backend.process import enter
from ...errors import AudioError
from ...schema import MAX_LAYERS, MAX_STRIDE, require, require_positive, shown
from ..tap import Tap, emit
from .layers import SpreadConv1d

HEAD_LAYERS, HEAD_BLOCKS = 2, 2  # residual layers of the 2-D front end, blocks in each: literals in the reference
BAND_STRIDE = 8  # three strides of two over the bands
HEAD_CONTEXT = 2 + 2 * HEAD_LAYERS * HEAD_BLOCKS  # 3 x 3 convolutions in a row: frames an output sees on a side
FRAMES_ON_CPU, FRAMES_ON_GPU = 500, 3000  # that the front end takes at a time: on a GPU each part waits for the host
TDNN_KERNEL, TDNN_STRIDE = 5, 2
REDUCTION = 2  # of channels inside the context mask
MIN_FRAMES = TDNN_STRIDE + 1  # leaves the two frames that a standard deviation needs
COUNTER = ".num_batches_tracked"  # published bookkeeping of training, which no forward pass reads


@dataclass(frozen=True)
class SpeakerConfig:
    """Sizes of CAM++; the defaults are those of `campplus`.

    Parameters
    ----------
    feat_dim : int, multiple of 8
        Bands of the features.
    embedding_size : int > 0
        Numbers of a speaker embedding.
    growth_rate, bn_size, init_channels : int > 0
        Channels that a dense layer adds, the factor of its bottleneck, and channels before the first block.
    blocks : tuple of (layers, odd kernel size, dilation)
        The dense blocks.
    fcm_channels : int > 0
        Channels of the 2-D front end.
    bn_eps : float in (0, 1)
        Of the batch norms.
    seg_pool : int > 0
        Frames of a pooled segment.

    Raises
    ------
    ConfigError
        A size outside these ranges.
    """

    feat_dim: int = 80
    embedding_size: int = 192
    growth_rate: int = 32
    bn_size: int = 4
    init_channels: int = 128
    blocks: tuple[tuple[int, int, int], ...] = ((12, 3, 1), (24, 3, 2), (16, 3, 2))
    fcm_channels: int = 32
    bn_eps: float = 1e-5
    seg_pool: int = 100

    def __post_init__(self):
        require_positive(self, "speaker encoder", (f.name for f in fields(self)))
        require_positive(self, "speaker encoder", ("blocks", "seg_pool"), MAX_STRIDE)
        require(self.bn_eps < 1, f"speaker encoder.bn_eps: must be below 1, found {self.bn_eps}")
        require(
            self.feat_dim % BAND_STRIDE == 0,
            f"speaker encoder: feat_dim {self.feat_dim} is not a multiple of {BAND_STRIDE}",
        )
        require(
            all(len(block) == 3 and block[1] % 2 == 1 for block in self.blocks),
            f"speaker encoder: blocks must hold (layers, odd kernel, dilation), found {shown(self.blocks)}",
        )
        layers = sum(block[0] for block in self.blocks)
        require(layers <= MAX_LAYERS, f"speaker encoder: at most {MAX_LAYERS} layers are possible, found {layers}")

    @property
    def bn_channels(self) -> int:
        """Channels of a dense layer's bottleneck."""
        return self.bn_size * self.growth_rate

    @property
    def head_channels(self) -> int:
        """Channels that leave the 2-D front end, its bands laid side by side."""
        return self.fcm_channels * (self.feat_dim // BAND_STRIDE)

    def widths(self) -> list[tuple[int, int, int]]:
        """(into, before transit, after transit) channels of each dense block; a transit halves, rounding down."""
        found, width = [], self.init_channels
        for layers, _, _ in self.blocks:
            grown = width + layers * self.growth_rate
            found.append((width, grown, grown // 2))
            width = grown // 2
        return found


class BatchNorm(nn.Module):
    """(x - running mean) / sqrt(running variance + eps), scaled; always in evaluation."""

    def __init__(self, channels: int, eps: float, affine: bool = True):
        super().__init__()
        if affine:
            self.weight, self.bias = mx.ones((channels,)), mx.zeros((channels,))
        self.running_mean, self.running_var = mx.zeros((channels,)), mx.ones((channels,))
        self._eps = eps

    def __call__(self, x: mx.array) -> mx.array:
        """(…, channels) -> the same shape."""
        x = (x - self.running_mean) * mx.rsqrt(self.running_var + self._eps)
        return x * self.weight + self.bias if "weight" in self else x


class Nonlinear(nn.Module):
    """Batch norm, then ReLU; the last one of the network has neither scale nor ReLU."""

    def __init__(self, channels: int, eps: float, plain: bool = False):
        super().__init__()
        self.batchnorm = BatchNorm(channels, eps, affine=not plain)
        self._plain = plain

    def __call__(self, x: mx.array) -> mx.array:
        """(…, channels) -> the same shape."""
        x = self.batchnorm(x)
        return x if self._plain else relu(x)


class BasicResBlock(nn.Module):
    """Two 3 x 3 convolutions over (bands, frames); the stride is over bands only."""

    def __init__(self, channels: int, stride: int, eps: float):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, stride=(stride, 1), padding=1, bias=False)
        self.bn1 = BatchNorm(channels, eps)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = BatchNorm(channels, eps)
        if stride != 1:
            project = nn.Conv2d(channels, channels, 1, stride=(stride, 1), bias=False)
            self.shortcut = [project, BatchNorm(channels, eps)]

    def __call__(self, x: mx.array) -> mx.array:
        """(B, bands, T, C) -> (B, bands / stride, T, C)."""
        y = self.bn2(self.conv2(relu(self.bn1(self.conv1(x)))))
        if "shortcut" in self:
            project, norm = self.shortcut
            x = norm(project(x))
        return relu(y + x)


class FCM(nn.Module):
    """Front-end convolutions over the spectrum as a picture: (B, T, F) -> (B, T, channels x F / 8)."""

    def __init__(self, config: SpeakerConfig):
        super().__init__()
        C, eps = config.fcm_channels, config.bn_eps
        self.conv1 = nn.Conv2d(1, C, 3, padding=1, bias=False)
        self.bn1 = BatchNorm(C, eps)
        for i in range(HEAD_LAYERS):
            strides = [2] + [1] * (HEAD_BLOCKS - 1)
            self[f"layer{i + 1}"] = [BasicResBlock(C, stride, eps) for stride in strides]
        self.conv2 = nn.Conv2d(C, C, 3, stride=(2, 1), padding=1, bias=False)
        self.bn2 = BatchNorm(C, eps)

    def __call__(self, x: mx.array) -> mx.array:
        """(B, T, F) in parts, each with the frames that it sees around it, so that memory is bounded."""
        T, n, parts = x.shape[1], FRAMES_ON_CPU if on_cpu() else FRAMES_ON_GPU, []
        for start in range(0, T, n):
            stop = min(start + n, T)
            first = max(0, start - HEAD_CONTEXT)
            part = self.whole(x[:, first : stop + HEAD_CONTEXT])
            parts.append(part[:, start - first : stop - first])
        return mx.concatenate(parts, axis=1)

    def whole(self, x: mx.array) -> mx.array:
        """All frames at once."""
        B, T, _ = x.shape
        x = x.swapaxes(1, 2)[..., None]  # (B, F, T, 1)
        x = relu(self.bn1(self.conv1(x)))
        for i in range(HEAD_LAYERS):
            for block in self[f"layer{i + 1}"]:
                x = block(x)
        x = relu(self.bn2(self.conv2(x)))  # (B, F / 8, T, C)
        return x.transpose(0, 2, 3, 1).reshape(B, T, -1)  # channel-major, as PyTorch folds (B, C, F / 8, T)


class TDNN(nn.Module):
    """Strided convolution over time, norm, ReLU."""

    def __init__(self, config: SpeakerConfig):
        super().__init__()
        self.linear = nn.Conv1d(
            config.head_channels,
            config.init_channels,
            TDNN_KERNEL,
            stride=TDNN_STRIDE,
            padding=TDNN_KERNEL // 2,
            bias=False,
        )
        self.nonlinear = Nonlinear(config.init_channels, config.bn_eps)

    def __call__(self, x: mx.array) -> mx.array:
        """(B, T, head_channels) -> (B, N, init_channels)."""
        return self.nonlinear(self.linear(x))


class CAMLayer(nn.Module):
    """Local convolution, gated by what the whole clip and the surrounding segment are like."""

    def __init__(self, config: SpeakerConfig, kernel: int, dilation: int):
        super().__init__()
        C = config.bn_channels
        self.linear_local = SpreadConv1d(C, config.growth_rate, kernel, dilation=dilation, bias=False)
        self.linear1 = nn.Conv1d(C, C // REDUCTION, 1)
        self.linear2 = nn.Conv1d(C // REDUCTION, config.growth_rate, 1)
        self._segment = config.seg_pool

    def __call__(self, x: mx.array) -> mx.array:
        """(B, N, bn_channels) -> (B, N, growth_rate)."""
        context = x.mean(axis=1, keepdims=True) + segment_means(x, self._segment)  # (B, segments, C)
        gate = mx.sigmoid(self.linear2(relu(self.linear1(context))))
        return self.linear_local(x) * mx.repeat(gate, self._segment, axis=1)[:, : x.shape[1]]


def segment_means(x: mx.array, length: int) -> mx.array:
    """(B, N, C) -> (B, ceil(N / length), C): means of consecutive segments, the last over what there is of it."""
    B, N, C = x.shape
    n = -(-N // length)
    sums = mx.pad(x, [(0, 0), (0, n * length - N), (0, 0)]).reshape(B, n, length, C).sum(axis=2)
    counts = mx.array([length] * (n - 1) + [N - (n - 1) * length], dtype=x.dtype)
    return sums / counts[:, None]


class CAMDenseTDNNLayer(nn.Module):
    """Bottleneck, then context-aware masking."""

    def __init__(self, config: SpeakerConfig, into: int, kernel: int, dilation: int):
        super().__init__()
        self.nonlinear1 = Nonlinear(into, config.bn_eps)
        self.linear1 = nn.Conv1d(into, config.bn_channels, 1, bias=False)
        self.nonlinear2 = Nonlinear(config.bn_channels, config.bn_eps)
        self.cam_layer = CAMLayer(config, kernel, dilation)

    def __call__(self, x: mx.array) -> mx.array:
        """(B, N, into) -> (B, N, growth_rate)."""
        return self.cam_layer(self.nonlinear2(self.linear1(self.nonlinear1(x))))


class CAMDenseTDNNBlock(nn.Module):
    """Every layer sees all channels so far and adds `growth_rate` of its own."""

    def __init__(self, config: SpeakerConfig, into: int, layers: int, kernel: int, dilation: int):
        super().__init__()
        for i in range(layers):
            self[f"tdnnd{i + 1}"] = CAMDenseTDNNLayer(config, into + i * config.growth_rate, kernel, dilation)
        self._n_layers = layers

    def __call__(self, x: mx.array) -> mx.array:
        """(B, N, into) -> (B, N, into + layers * growth_rate)."""
        pieces = Pieces()
        for i in range(self._n_layers):
            x = pieces.end(mx.concatenate([x, self[f"tdnnd{i + 1}"](x)], axis=-1), 1)
        return x


class Transit(nn.Module):
    """Norm, ReLU, and fewer channels."""

    def __init__(self, into: int, out: int, eps: float):
        super().__init__()
        self.nonlinear = Nonlinear(into, eps)
        self.linear = nn.Conv1d(into, out, 1, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        """(B, N, into) -> (B, N, out)."""
        return self.linear(self.nonlinear(x))


class Dense(nn.Module):
    """Pooled statistics (B, 2 C) -> (B, embedding_size)."""

    def __init__(self, config: SpeakerConfig, into: int):
        super().__init__()
        self.linear = nn.Conv1d(into, config.embedding_size, 1, bias=False)
        self.nonlinear = Nonlinear(config.embedding_size, config.bn_eps, plain=True)

    def __call__(self, x: mx.array) -> mx.array:
        """(B, 2 C) -> (B, embedding_size)."""
        return self.nonlinear(self.linear(x[:, None]))[:, 0]


def statistics(x: mx.array) -> mx.array:
    """(B, N, C) -> (B, 2 C): mean over time, then the unbiased standard deviation (N - 1)."""
    mean = x.mean(axis=1, keepdims=True)
    variance = mx.square(x - mean).sum(axis=1) / (x.shape[1] - 1)
    varies = variance > 0  # the square root has no finite gradient at 0, where a channel is constant
    deviation = mx.where(varies, mx.sqrt(mx.where(varies, variance, 1.0)), 0.0)
    return mx.concatenate([mean[:, 0], deviation], axis=-1)


class XVector(nn.Module):
    """Dense blocks over time, pooled to one vector."""

    def __init__(self, config: SpeakerConfig):
        super().__init__()
        self.tdnn = TDNN(config)
        sizes = zip(config.blocks, config.widths(), strict=True)
        for i, ((layers, kernel, dilation), (into, grown, out)) in enumerate(sizes, 1):
            self[f"block{i}"] = CAMDenseTDNNBlock(config, into, layers, kernel, dilation)
            self[f"transit{i}"] = Transit(grown, out, config.bn_eps)
        self.out_nonlinear = Nonlinear(out, config.bn_eps)
        self.dense = Dense(config, 2 * out)
        self._n_blocks = len(config.blocks)

    def __call__(self, x: mx.array, tap: Tap | None = None) -> mx.array:
        """(B, T, head_channels) -> (B, embedding_size)."""
        x = emit(tap, "tdnn", self.tdnn(x))
        for i in range(1, self._n_blocks + 1):
            x = emit(tap, f"transit{i}", self[f"transit{i}"](self[f"block{i}"](x)))
        return self.dense(emit(tap, "stats", statistics(self.out_nonlinear(x))))


class SpeakerEncoder(nn.Module):
    """CAM++: front end over bands and frames, then `XVector`."""

    def __init__(self, config: SpeakerConfig):
        super().__init__()
        self.head = FCM(config)
        self.xvector = XVector(config)
        self._config = config

    @property
    def config(self) -> SpeakerConfig:
        """Its sizes."""
        return self._config

    def __call__(self, features: mx.array, tap: Tap | None = None) -> mx.array:
        """Voice vectors of clips of one length; there is no mask, so clips of other lengths go in by themselves.

        Parameters
        ----------
        features : (B, T, feat_dim), T >= 3, as `audio.features.kaldi_fbank(samples, subtract_mean=True)` makes them.
        tap : called as tap(name, array) with every intermediate result, (B, frames, channels).

        Returns
        -------
        (B, embedding_size), not normalised.

        Raises
        ------
        AudioError : wrong shape, or too few frames for a standard deviation.
        """
        enter()
        F = self._config.feat_dim
        if features.ndim != 3 or features.shape[2] != F or features.shape[0] == 0:
            raise AudioError(
                f"speaker encoder: expected features of shape (clips, frames, {F}), found "
                f"{tuple(features.shape)}; kaldi_fbank(samples)[None] makes such of one clip"
            )
        if features.shape[1] < MIN_FRAMES:
            raise AudioError(
                f"speaker encoder: {features.shape[1]} feature frames are too few to tell a voice; "
                f"expected {MIN_FRAMES} or more: use a longer clip"
            )
        x = self.head(mx.array(features).astype(self.head.conv1.weight.dtype))
        return emit(tap, "embedding", self.xvector(emit(tap, "head", x), tap))
