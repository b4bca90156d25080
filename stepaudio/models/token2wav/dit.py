"""DiT estimator: the velocity that carries noise towards a mel, given codes, speaker and prompt mel.

B batch, T new frames, C hidden channels, H heads, D channels of a head. Attention is full and knows no positions;
order comes from causal convolutions alone. Attribute names are those of the published checkpoint.

Reference: `decoder_dit.py` of StepFun's token2wav; adaptive layer norm after Peebles and Xie 2023.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ...backend.ops import gated_sum, gelu_tanh, mish, silu
from ...backend.pieces import Pieces
from ...schema import MAX_LAYERS, MAX_SIZE, require, require_positive
from ..attention import attend
from ..tap import Tap, emit, named
from .layers import with_past


@dataclass(frozen=True)
class DitConfig:
    """Sizes of the DiT estimator, as `flow.yaml` has them.

    Parameters
    ----------
    in_channels, out_channels : int > 0
        Noisy mel, mu, speaker and prompt mel side by side; mel bands.
    mlp_ratio : float > 0
        Channels inside an MLP for each one outside.
    depth, num_heads, head_dim, hidden_size : int > 0
        Blocks, heads, channels of a head, channels between blocks.

    Raises
    ------
    ConfigError
        A size that is not positive, or beyond those of `schema`.
    """

    in_channels: int
    out_channels: int
    mlp_ratio: float
    depth: int
    num_heads: int
    head_dim: int
    hidden_size: int

    def __post_init__(self):
        require_positive(self, "estimator", tuple(f.name for f in fields(self)))
        require_positive(self, "estimator", ["depth"], MAX_LAYERS)
        require(
            1 <= self.hidden_size * self.mlp_ratio <= MAX_SIZE,
            f"estimator.mlp_ratio: hidden_size {self.hidden_size} times it must lie in 1 … {MAX_SIZE}, "
            f"found {self.mlp_ratio}",
        )

    @property
    def mlp_size(self) -> int:
        """Channels inside an MLP."""
        return int(self.hidden_size * self.mlp_ratio)


BLOCK_EPS = 1e-6  # of the norms without weights; those with weights have PyTorch's 1e-5
KERNEL = 3
TIME_CHANNELS = 256
TIME_SCALE = 1000.0
MODULATIONS = 9  # shift, scale, gate for attention, MLP and convolution, stored in this order


@dataclass(frozen=True)
class BlockState:
    """What one block remembers of the frames before: keys and values NEWEST FIRST, and the tails of two inputs."""

    k: mx.array  # (B, H, L, D)
    v: mx.array  # (B, H, L, D)
    conv1: mx.array  # (B, 2, C)
    conv2: mx.array  # (B, 2, C)

    @property
    def arrays(self) -> list[mx.array]:
        """All four, to be evaluated or counted."""
        return [self.k, self.v, self.conv1, self.conv2]


DitState = tuple[BlockState, ...]  # one per block


@dataclass(frozen=True)
class Moment:
    """A time as the net sees it: numbers for each channel, (C,) where all rows have this time, else (B, 1, C)."""

    embedding: mx.array  # (B, C) or (1, C)
    blocks: list[list[mx.array]]  # `MODULATIONS` a block
    last: list[mx.array]  # shift and gain of the last norm


def modulate(x: mx.array, shift: mx.array, gain: mx.array) -> mx.array:
    """Layer norm of (B, T, C), times `gain`, plus `shift`: as its own weights, where they are the same for all rows."""
    if gain.ndim == 1:
        return mx.fast.layer_norm(x, gain, shift, BLOCK_EPS)
    return mx.fast.layer_norm(x, None, None, BLOCK_EPS) * gain + shift


def add_gated(x: mx.array, gate: mx.array, y: mx.array, name: str, tap: Tap | None) -> mx.array:
    """X + gate * y. The tap receives the product by that name; watching changes no bit of the sum."""
    if tap is not None:
        product = gate * y
        if (found := emit(tap, name, product)) is not product:
            return x + found
    return gated_sum(x, gate, y)


def _modulations(layers: list[Any], c: mx.array) -> list[mx.array]:
    """What SiLU and a linear make of embedded times (S, C): arrays (S, C), with gains in the place of scales."""
    activate, linear = layers
    y = linear(activate(c))
    made = cast(list[mx.array], mx.split(y, y.shape[1] // c.shape[1], axis=-1))
    made[1::3] = [1 + scale for scale in made[1::3]]
    return made


def time_features(t: mx.array) -> mx.array:
    """(B,) times in 0…1 -> (B, 256): cosines, then sines, of 1000 t at falling frequencies."""
    half = TIME_CHANNELS // 2
    frequency = mx.array(np.exp(-np.log(10_000.0) * np.arange(half) / half).astype(np.float32))
    angle = (t.astype(mx.float32) * TIME_SCALE)[:, None] * frequency
    return mx.concatenate([mx.cos(angle), mx.sin(angle)], axis=-1)


class TimeEmbedder(nn.Module):
    """Two linears over the features of a time."""

    def __init__(self, channels: int):
        super().__init__()
        self.mlp = [nn.Linear(TIME_CHANNELS, channels), silu, nn.Linear(channels, channels)]

    def __call__(self, t: mx.array) -> mx.array:
        """(S,) -> (S, C)."""
        into, activate, out = self.mlp
        return out(activate(into(time_features(t).astype(into.bias.dtype))))


class Attention(nn.Module):
    """Full attention with norms over the channels of each head; it knows no positions."""

    def __init__(self, config: DitConfig):
        super().__init__()
        C, inner = config.hidden_size, config.num_heads * config.head_dim
        self.to_q = nn.Linear(C, inner)
        self.to_k = nn.Linear(C, inner)
        self.to_v = nn.Linear(C, inner)
        self.q_norm = nn.LayerNorm(config.head_dim, eps=1e-5)
        self.k_norm = nn.LayerNorm(config.head_dim, eps=1e-5)
        self.proj = nn.Linear(inner, C)
        self._n_head = config.num_heads

    def __call__(
        self, x: mx.array, past: BlockState | None, tap: Tap | None = None
    ) -> tuple[mx.array, mx.array, mx.array]:
        """(B, T, C) -> (B, T, C), and all keys and values, the new ones in front."""
        B, T, _ = x.shape
        q, k, v = (
            emit(tap, name, f(x).reshape(B, T, self._n_head, -1).transpose(0, 2, 1, 3))
            for name, f in (("q", self.to_q), ("k", self.to_k), ("v", self.to_v))
        )
        q, k = self.q_norm(q), self.k_norm(k)
        if past is not None:  # in front, as in the reference: trimming counts from there
            k, v = mx.concatenate([k, past.k], axis=2), mx.concatenate([v, past.v], axis=2)
        return self.proj(attend(q, k, v, q.shape[-1] ** -0.5, None, tap)), k, v


class Mlp(nn.Module):
    """Two linears with a GELU between them."""

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def __call__(self, x: mx.array) -> mx.array:
        """(B, T, C) -> (B, T, C)."""
        return self.fc2(gelu_tanh(self.fc1(x)))


def _transpose(x: mx.array) -> mx.array:
    """Stands where the reference swaps axes, which keeps the published numbering; frames lead channels here."""
    return x


class CausalConvBlock(nn.Module):
    """Two causal convolutions with norm and Mish between them."""

    def __init__(self, channels: int):
        super().__init__()
        self.block = [
            _transpose,
            nn.Conv1d(channels, channels, KERNEL),
            _transpose,
            nn.LayerNorm(channels, eps=1e-5),
            mish,
            _transpose,
            nn.Conv1d(channels, channels, KERNEL),
        ]

    def __call__(self, x: mx.array, past: BlockState | None) -> tuple[mx.array, mx.array, mx.array]:
        """(B, T, C) -> (B, T, C), and the tails that the next chunk starts from."""
        _, conv1, _, norm, activate, _, conv2 = self.block
        x, tail1 = with_past(x, past and past.conv1, KERNEL - 1)
        x, tail2 = with_past(activate(norm(conv1(x))), past and past.conv2, KERNEL - 1)
        return conv2(x), tail1, tail2


class DitBlock(nn.Module):
    """Attention, then convolution, then MLP; the modulations are stored attention, MLP, convolution."""

    def __init__(self, config: DitConfig):
        super().__init__()
        C = config.hidden_size
        self.attn = Attention(config)
        self.mlp = Mlp(C, config.mlp_size)
        self.conv = CausalConvBlock(C)
        self.adaLN_modulation = [silu, nn.Linear(C, MODULATIONS * C)]

    def __call__(
        self, x: mx.array, modulations: list[mx.array], past: BlockState | None, tap: Tap | None = None
    ) -> tuple[mx.array, BlockState]:
        """(B, T, C) with the numbers of a `Moment` -> (B, T, C), and what is remembered."""
        shift_a, gain_a, gate_a, shift_m, gain_m, gate_m, shift_c, gain_c, gate_c = modulations
        x = emit(tap, "resid_pre", x)
        y, k, v = self.attn(modulate(x, shift_a, gain_a), past, tap)
        x = add_gated(x, gate_a, y, "attn_out", tap)
        y, tail1, tail2 = self.conv(modulate(x, shift_c, gain_c), past)
        x = emit(tap, "resid_mid", add_gated(x, gate_c, y, "conv_out", tap))
        x = add_gated(x, gate_m, self.mlp(modulate(x, shift_m, gain_m)), "mlp_out", tap)
        return emit(tap, "resid_post", x), BlockState(k, v, tail1, tail2)


class FinalLayer(nn.Module):
    """Modulated norm and a linear."""

    def __init__(self, channels: int, out_channels: int):
        super().__init__()
        self.adaLN_modulation = [silu, nn.Linear(channels, 2 * channels)]
        self.linear = nn.Linear(channels, out_channels)

    def __call__(self, x: mx.array, shift: mx.array, gain: mx.array) -> mx.array:
        """(B, T, C) -> (B, T, M)."""
        return self.linear(modulate(x, shift, gain))


class DiT(nn.Module):
    """The estimator."""

    def __init__(self, config: DitConfig):
        super().__init__()
        self.t_embedder = TimeEmbedder(config.hidden_size)
        self.in_proj = nn.Linear(config.in_channels, config.hidden_size)
        self.blocks = [DitBlock(config) for _ in range(config.depth)]
        self.final_layer = FinalLayer(config.hidden_size, config.out_channels)

    def moments(self, t: mx.array) -> list[Moment]:
        """Times (S,) in 0…1, for all rows of a batch each: every matrix that they go through is read once for all."""
        c = self.t_embedder(t)
        whole = self._moment(c)
        return [
            Moment(c[i : i + 1], [[a[i] for a in block] for block in whole.blocks], [a[i] for a in whole.last])
            for i in range(t.size)
        ]

    def _moment(self, c: mx.array) -> Moment:
        """Embedded times (S, C), with all numbers (S, C)."""
        blocks = [_modulations(block.adaLN_modulation, c) for block in self.blocks]
        return Moment(c, blocks, _modulations(self.final_layer.adaLN_modulation, c))

    def _row_by_row(self, c: mx.array) -> Moment:
        """The same of a time (B, C) for each row of a batch."""
        m = self._moment(c)
        return Moment(c, [[a[:, None] for a in block] for block in m.blocks], [a[:, None] for a in m.last])

    def __call__(
        self,
        x: mx.array,
        mu: mx.array,
        t: mx.array | Moment,
        speaker: mx.array,
        cond: mx.array,
        past: DitState | None = None,
        tap: Tap | None = None,
    ) -> tuple[mx.array, DitState]:
        """Velocity of x at time t.

        Parameters
        ----------
        x, mu, cond : (B, T, M) noisy mel, the encoder's mel, and the prompt mel (zeros where there is none).
        t : (B,) in 0…1, or one of `moments` for all rows. speaker : (B, M) projected speaker vector.
        past : state after the frames before these, at the same t; None for a whole sequence.

        Returns
        -------
        (B, T, M) and the state after these frames.
        """
        at = t if isinstance(t, Moment) else self._row_by_row(self.t_embedder(t))
        if tap is not None:
            seen = mx.broadcast_to(at.embedding, (x.shape[0], at.embedding.shape[1]))
            if (found := emit(tap, "time", seen)) is not seen:
                at = self._row_by_row(found)
        speaker = mx.broadcast_to(speaker[:, None], (*x.shape[:2], speaker.shape[1]))
        x = self.in_proj(mx.concatenate([x, mu, speaker, cond], axis=-1))
        states, pieces = [], Pieces()
        for i, (block, modulations) in enumerate(zip(self.blocks, at.blocks, strict=True)):
            x, state = block(x, modulations, past[i] if past else None, named(tap, f"{i}."))
            x = pieces.end(x)
            states.append(state)
        return emit(tap, "out", self.final_layer(x, *at.last)), tuple(states)
