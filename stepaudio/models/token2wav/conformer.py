"""Upsampling conformer encoder: audio codes' embeddings in, twice as many frames out, whole or in chunks.

B batch, n new positions, L positions in all (cached and new), C channels, H heads, D channels of a head. Each new
position attends to all that is there, cached or new; positions count by signed distance. Attribute names are those
of the published checkpoint. Knows no codes and no files.

Reference: `upsample_encoder_v2.py` of StepFun's token2wav; relative positions after Dai et al. 2019 (appendix B).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ...backend.ops import leaky_relu, silu
from ...backend.pieces import Pieces
from ...schema import MAX_LAYERS, MAX_STRIDE, require, require_only, require_positive
from ..attention import attend
from ..tap import Tap, emit, named
from .layers import with_past


@dataclass(frozen=True)
class ConformerConfig:
    """Sizes of the upsampling conformer encoder, as `flow.yaml` has them.

    Parameters
    ----------
    input_size, output_size, linear_units : int > 0
        Channels of the embeddings, of the blocks, and inside a feed-forward layer.
    pre_lookahead_len : int > 0
        Codes that the first convolution looks ahead.
    num_blocks, num_up_blocks, attention_heads : int > 0
        Blocks before and after upsampling, and their heads (a divisor of the channels).
    up_stride : int > 0
        Frames that a code becomes; `up_scale_factor` is the same number.
    key_bias : bool
        Whether keys have a bias.
    input_layer, pos_enc_layer_type, selfattention_layer_type, normalize_before
        Only the published choices are supported.
    dropout_rate, positional_dropout_rate, attention_dropout_rate : float
        Of training; nothing here reads them.

    Raises
    ------
    ConfigError
        A size that is not positive, beyond those of `schema` or contradicts another, or a choice that is not supported.
    """

    input_size: int
    output_size: int
    input_layer: str
    pre_lookahead_len: int
    num_blocks: int
    num_up_blocks: int
    up_stride: int
    up_scale_factor: float
    attention_heads: int
    pos_enc_layer_type: str
    selfattention_layer_type: str
    key_bias: bool
    linear_units: int
    dropout_rate: float
    positional_dropout_rate: float
    attention_dropout_rate: float
    normalize_before: bool

    def __post_init__(self):
        path = "encoder"
        require_positive(
            self,
            path,
            ("input_size", "output_size", "attention_heads", "linear_units"),
        )
        require_positive(self, path, ("num_blocks", "num_up_blocks"), MAX_LAYERS)
        require_positive(self, path, ("pre_lookahead_len", "up_stride"), MAX_STRIDE)
        # After upsampling a layer of the same input_size is applied to output_size channels.
        require_only(
            self,
            path,
            {
                "input_layer": "linear",
                "pos_enc_layer_type": "rel_pos_espnet",
                "selfattention_layer_type": "rel_selfattn",
                "normalize_before": True,
                "input_size": self.output_size,
                "up_scale_factor": float(self.up_stride),
            },
        )
        require(
            self.output_size % self.attention_heads == 0 and self.output_size % 2 == 0,
            f"{path}: output_size {self.output_size} must be even and a multiple of attention_heads "
            f"{self.attention_heads}",
        )


BLOCK_EPS = 1e-12  # ESPnet's; the embedding and the last norm have PyTorch's 1e-5
LOOKAHEAD_MEMORY = 2  # past frames that the second look-ahead convolution sees
LOOKAHEAD_SLOPE = 0.01

Pair = tuple[mx.array, mx.array]  # keys and values, each (B, H, L, D), oldest first


@dataclass(frozen=True)
class ConformerState:
    """What the encoder remembers between chunks. It grows with the stream: every later frame may look back here."""

    lookahead: mx.array  # (B, 2, C)
    upsample: mx.array  # (B, 2 * stride, C)
    attention: tuple[Pair, ...]  # one per block before upsampling, L positions
    up_attention: tuple[Pair, ...]  # one per block after it, stride * L positions

    @property
    def arrays(self) -> list[mx.array]:
        """All of it, to be evaluated or counted."""
        return [self.lookahead, self.upsample, *(a for pair in self.attention + self.up_attention for a in pair)]


@lru_cache(maxsize=16)
def _distances(first: int, last: int, channels: int) -> np.ndarray:
    distance = np.arange(first, last - 1, -1, dtype=np.float64)[:, None]
    frequency = 10_000.0 ** (-np.arange(0, channels, 2) / channels)
    table = np.empty((len(distance), channels), np.float32)
    table[:, 0::2], table[:, 1::2] = np.sin(distance * frequency), np.cos(distance * frequency)
    return table


def relative_positions(n: int, L: int, channels: int) -> mx.array:
    """Sinusoids of the distances query - key, from L-1 (oldest key, newest query) down to -(n-1): (1, L+n-1, C)."""
    return mx.array(_distances(L - 1, -(n - 1), channels))[None]


def by_distance_to_by_key(scores: mx.array, L: int) -> mx.array:
    """(B, H, n, L+n-1) scores by distance -> (B, H, n, L) scores by key: row i moves left by n-1-i.

    A column of padding makes rows one longer than the shift, so a reshape does the shifting.
    """
    B, H, n, width = scores.shape
    padded = mx.pad(scores, [(0, 0), (0, 0), (0, 0), (1, 0)]).reshape(B, H, width + 1, n)
    return padded[:, :, 1:].reshape(B, H, n, width)[..., :L]


class RelativeAttention(nn.Module):
    """Attention whose scores add a term for the distance between query and key."""

    def __init__(self, channels: int, n_head: int, key_bias: bool):
        super().__init__()
        self.linear_q = nn.Linear(channels, channels)
        self.linear_k = nn.Linear(channels, channels, bias=key_bias)
        self.linear_v = nn.Linear(channels, channels)
        self.linear_out = nn.Linear(channels, channels)
        self.linear_pos = nn.Linear(channels, channels, bias=False)
        self.pos_bias_u = mx.zeros((n_head, channels // n_head))
        self.pos_bias_v = mx.zeros((n_head, channels // n_head))
        self._n_head = n_head

    def _heads(self, x: mx.array) -> mx.array:
        return x.reshape(*x.shape[:2], self._n_head, -1).transpose(0, 2, 1, 3)  # (B, H, n, D)

    def __call__(
        self, x: mx.array, positions: mx.array, past: Pair | None = None, tap: Tap | None = None
    ) -> tuple[mx.array, Pair]:
        """(B, n, C) with the sinusoids of all distances -> (B, n, C), and all keys and values."""
        q, k, v = (
            emit(tap, name, self._heads(f(x)))
            for name, f in (("q", self.linear_q), ("k", self.linear_k), ("v", self.linear_v))
        )
        if past is not None:
            k, v = mx.concatenate([past[0], k], axis=2), mx.concatenate([past[1], v], axis=2)
        p = self._heads(self.linear_pos(positions))  # (1, H, L+n-1, D)
        scale = q.shape[-1] ** -0.5
        bias = by_distance_to_by_key((q + self.pos_bias_v[:, None]) @ p.swapaxes(-1, -2), k.shape[2]) * scale
        y = attend(q + self.pos_bias_u[:, None], k, v, scale, bias, tap)
        return self.linear_out(y), (k, v)


class FeedForward(nn.Module):
    """Two linears with a SiLU between them."""

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.w_1 = nn.Linear(channels, hidden)
        self.w_2 = nn.Linear(hidden, channels)

    def __call__(self, x: mx.array) -> mx.array:
        """(B, n, C) -> (B, n, C)."""
        return self.w_2(silu(self.w_1(x)))


class ConformerLayer(nn.Module):
    """Attention and feed-forward; the conformer's convolution and second feed-forward are switched off here."""

    def __init__(self, config: ConformerConfig):
        super().__init__()
        C = config.output_size
        self.self_attn = RelativeAttention(C, config.attention_heads, config.key_bias)
        self.feed_forward = FeedForward(C, config.linear_units)
        self.norm_ff = nn.LayerNorm(C, eps=BLOCK_EPS)
        self.norm_mha = nn.LayerNorm(C, eps=BLOCK_EPS)

    def __call__(
        self, x: mx.array, positions: mx.array, past: Pair | None = None, tap: Tap | None = None
    ) -> tuple[mx.array, Pair]:
        """(B, n, C) -> (B, n, C), and all keys and values."""
        x = emit(tap, "resid_pre", x)
        y, pair = self.self_attn(self.norm_mha(x), positions, past, tap)
        x = emit(tap, "resid_mid", x + emit(tap, "attn_out", y))
        return emit(tap, "resid_post", x + emit(tap, "mlp_out", self.feed_forward(self.norm_ff(x)))), pair


class Embedding(nn.Module):
    """Linear and LayerNorm, then times sqrt(C), as every input of a stack with sinusoidal positions."""

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        self.out = [nn.Linear(in_channels, channels), nn.LayerNorm(channels, eps=1e-5)]
        self._scale = channels**0.5

    def __call__(self, x: mx.array) -> mx.array:
        """(B, n, in) -> (B, n, C)."""
        linear, norm = self.out
        return norm(linear(x)) * self._scale


class PreLookahead(nn.Module):
    """Lets each position see the next few, then two past ones; the last `ahead` positions serve as view only."""

    def __init__(self, channels: int, ahead: int):
        super().__init__()
        self.conv1 = nn.Conv1d(channels, channels, kernel_size=ahead + 1)
        self.conv2 = nn.Conv1d(channels, channels, kernel_size=LOOKAHEAD_MEMORY + 1)

    def __call__(self, x: mx.array, past: mx.array | None) -> tuple[mx.array, mx.array]:
        """(B, n + ahead, C) -> (B, n, C), and the frames that the next chunk looks back on."""
        y = leaky_relu(self.conv1(x), LOOKAHEAD_SLOPE)
        n = y.shape[1]
        y, past = with_past(y, past, LOOKAHEAD_MEMORY)
        return self.conv2(y) + x[:, :n], past


class Upsample(nn.Module):
    """Every frame `stride` times, then a causal convolution."""

    def __init__(self, channels: int, stride: int):
        super().__init__()
        self.conv = nn.Conv1d(channels, channels, kernel_size=2 * stride + 1)
        self._stride = stride

    def __call__(self, x: mx.array, past: mx.array | None) -> tuple[mx.array, mx.array]:
        """(B, n, C) -> (B, n * stride, C), and the frames that the next chunk looks back on."""
        x, past = with_past(mx.repeat(x, self._stride, axis=1), past, 2 * self._stride)
        return self.conv(x), past


class UpsampleConformer(nn.Module):
    """Two stacks of blocks with an upsampling between them."""

    def __init__(self, config: ConformerConfig):
        super().__init__()
        C = config.output_size
        self.embed = Embedding(config.input_size, C)
        self.after_norm = nn.LayerNorm(C, eps=1e-5)
        self.pre_lookahead_layer = PreLookahead(C, config.pre_lookahead_len)
        self.encoders = [ConformerLayer(config) for _ in range(config.num_blocks)]
        self.up_layer = Upsample(C, config.up_stride)
        self.up_embed = Embedding(config.input_size, C)
        self.up_encoders = [ConformerLayer(config) for _ in range(config.num_up_blocks)]
        self._ahead = config.pre_lookahead_len

    def __call__(
        self, x: mx.array, past: ConformerState | None = None, last: bool = True, tap: Tap | None = None
    ) -> tuple[mx.array, ConformerState]:
        """Encode a whole sequence, or the next chunk of one.

        Parameters
        ----------
        x : (B, n, C) embeddings of codes. If not `last`, the final `pre_lookahead_len` of them are only looked at;
            they come again as the first of the next chunk.
        past : what the chunk before returned; None at the start.
        last : nothing follows. The whole sequence in one call is the first chunk and the last.

        Returns
        -------
        (B, stride * m, C) and the new state; m = n if `last`, else n - pre_lookahead_len.
        """
        x = emit(tap, "embed", self.embed(x))
        if last:  # what lies ahead is zeros, put in after the embedding
            x = mx.pad(x, [(0, 0), (0, self._ahead), (0, 0)])
        x, lookahead = self.pre_lookahead_layer(x, past and past.lookahead)
        x = emit(tap, "pre_lookahead", x)
        x, attention = self._stack(self.encoders, x, past and past.attention, tap)
        x, upsample = self.up_layer(x, past and past.upsample)
        x = emit(tap, "up.embed", self.up_embed(emit(tap, "up.conv", x)))
        x, up_attention = self._stack(self.up_encoders, x, past and past.up_attention, named(tap, "up."))
        x = emit(tap, "out", self.after_norm(x))
        return x, ConformerState(lookahead, upsample, attention, up_attention)

    def _stack(self, layers, x: mx.array, past: tuple[Pair, ...] | None, tap: Tap | None):
        n = x.shape[1]
        L = n + (past[0][0].shape[2] if past else 0)
        positions = emit(tap, "pos_embed", relative_positions(n, L, x.shape[2]).astype(x.dtype))
        pairs, pieces = [], Pieces()
        for i, layer in enumerate(layers):
            x, pair = layer(x, positions, past[i] if past else None, named(tap, f"{i}."))
            x = pieces.end(x)
            pairs.append(pair)
        return x, tuple(pairs)
