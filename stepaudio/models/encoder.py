"""Audio encoder and adapter: mel frames in, audio embeddings for the decoder out.

B clips, T mel frames, S = ceil(T / 2) frames after the strided convolution (50 Hz), P = S // 2 after pooling
(25 Hz), R embeddings after the adapter (12.5 Hz), C channels of the encoder, D channels of the decoder. Attribute
names are those of the published checkpoint. Knows no files and no tokens.

Reference: `modeling_step_audio_2.py` of the published model (AudioEncoder, Adaptor).
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import mlx.core as mx
import mlx.nn as nn

from ..backend.ops import gelu, relu
from ..backend.pieces import LAYER, Pieces
from ..backend.process import enter
from ..errors import AudioError
from ..schema import MAX_LAYERS, MAX_STRIDE, require, require_positive
from .attention import attend
from .tap import Tap, emit, named


@dataclass(frozen=True)
class AudioEncoderConfig:
    """Sizes of the Whisper-like encoder and the adapter, as `audio_encoder_config` of `config.json` has them.

    Parameters
    ----------
    n_mels : int > 0
        Mel bands.
    n_audio_ctx : int > 0
        Positions at 50 Hz (1500 are 30 s).
    n_audio_state, n_audio_head, n_audio_layer : int > 0
        Channels, heads (a divisor) and blocks of the encoder.
    llm_dim : int > 0
        Channels of the decoder, which the adapter leads to.
    kernel_size, adapter_stride : int > 0
        Of the adapter's convolution, in frames at 25 Hz.
    n_codebook_size : int, optional
        Published, used by nothing in the published forward pass.
    adapter_hidden : int > 0
        Channels between the adapter's two linears; a literal in the reference code.

    Raises
    ------
    ConfigError
        A size that is not positive or beyond those of `schema`, or heads that do not divide the channels.
    """

    n_mels: int
    n_audio_ctx: int
    n_audio_state: int
    n_audio_head: int
    n_audio_layer: int
    llm_dim: int
    kernel_size: int
    adapter_stride: int
    n_codebook_size: int | None = None
    adapter_hidden: int = 2048

    def __post_init__(self):
        given = (f.name for f in fields(self) if getattr(self, f.name) is not None)
        require_positive(self, "audio_encoder_config", given)
        require_positive(self, "audio_encoder_config", ["n_audio_layer"], MAX_LAYERS)
        require_positive(self, "audio_encoder_config", ("kernel_size", "adapter_stride"), MAX_STRIDE)
        require(
            self.n_audio_state % self.n_audio_head == 0,
            f"audio_encoder_config: n_audio_state {self.n_audio_state} is not a multiple of n_audio_head "
            f"{self.n_audio_head}",
        )


MASKED = -1e10  # what the reference adds to the scores of masked keys


class MultiHeadAttention(nn.Module):
    """Whisper's attention: no bias on the keys, no rotation, every position sees every one that counts."""

    def __init__(self, n_state: int, n_head: int):
        super().__init__()
        self.query = nn.Linear(n_state, n_state)
        self.key = nn.Linear(n_state, n_state, bias=False)
        self.value = nn.Linear(n_state, n_state)
        self.out = nn.Linear(n_state, n_state)
        self._n_head = n_head

    def heads(self, x: mx.array, tap: Tap | None) -> tuple[mx.array, mx.array, mx.array]:
        """Queries, keys and values of (B, S, C), each (B, heads, S, head size)."""
        B, S, _ = x.shape
        pieces = Pieces()
        q, k, v = (
            emit(tap, name, pieces.end(f(x), 1).reshape(B, S, self._n_head, -1).transpose(0, 2, 1, 3))
            for name, f in (("q", self.query), ("k", self.key), ("v", self.value))
        )
        return q, k, v

    def __call__(self, x: mx.array, mask: mx.array, tap: Tap | None = None) -> mx.array:
        """(B, S, C) -> (B, S, C), with `mask` added to the scores."""
        q, k, v = self.heads(x, tap)
        return self.out(attend(q, k, v, q.shape[-1] ** -0.5, mask, tap))


class ResidualAttentionBlock(nn.Module):
    """Attention, then two linears with a GELU, each behind a norm and added to the residual stream."""

    def __init__(self, n_state: int, n_head: int):
        super().__init__()
        self.attn = MultiHeadAttention(n_state, n_head)
        self.attn_ln = nn.LayerNorm(n_state)
        self.mlp = [nn.Linear(n_state, 4 * n_state), gelu, nn.Linear(4 * n_state, n_state)]
        self.mlp_ln = nn.LayerNorm(n_state)

    def __call__(self, x: mx.array, mask: mx.array, tap: Tap | None = None) -> mx.array:
        """(B, S, C) -> (B, S, C); see `interp.names.GLOSSARY` for what the tap receives."""
        x = emit(tap, "resid_pre", x)
        pieces = Pieces()  # of one block: at the published width, of several clips, it takes seconds on a CPU
        x = emit(tap, "resid_mid", x + emit(tap, "attn_out", self.attn(self.attn_ln(x), mask, tap)))
        widen, activate, narrow = self.mlp
        wide = pieces.end(activate(widen(self.mlp_ln(pieces.end(x)))), LAYER / 48)
        added = emit(tap, "mlp_out", narrow(wide))
        return emit(tap, "resid_post", x + added)


class AudioEncoder(nn.Module):
    """Two convolutions, Whisper's transformer blocks, pooling and then the norm (in that order)."""

    def __init__(self, config: AudioEncoderConfig):
        super().__init__()
        C = config.n_audio_state
        self.conv1 = nn.Conv1d(config.n_mels, C, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(C, C, kernel_size=3, stride=2, padding=1)
        self.positional_embedding = nn.Embedding(config.n_audio_ctx, C)
        self.blocks = [ResidualAttentionBlock(C, config.n_audio_head) for _ in range(config.n_audio_layer)]
        self.after_norm = nn.LayerNorm(C)
        self._config = config

    def key_mask(self, T: int, x_len: mx.array, independent: bool) -> mx.array:
        """(B, 1, 1, S) additive. Key j counts while its mel frame (T+1) % 2 + 2j is below `x_len`.

        T is the padded length of the batch in the reference, so that a clip's mask depends on the other clips;
        `independent` takes each clip's own length instead.
        """
        own = x_len + 2 if independent else mx.full(x_len.shape, T)
        frame = (own[:, None] + 1) % 2 + 2 * mx.arange((T - 1) // 2 + 1)[None, :]
        return mx.where(frame < x_len[:, None], 0.0, MASKED)[:, None, None, :]

    def __call__(self, mel: mx.array, x_len: mx.array, independent: bool = False, tap: Tap | None = None) -> mx.array:
        """Encode a zero-padded batch.

        Parameters
        ----------
        mel : (B, n_mels, T) log mels, padded with zeros at the right.
        x_len : (B,) integers, mel frames of each clip minus 2, as the reference passes them.
        independent : if true, every clip comes out as if it had been alone (what no padding would have given);
            if false, as in the reference, where the clips of one prompt influence each other at their ends.
        tap : called as tap(name, array) with every intermediate result, see `tap.emit`.

        Returns
        -------
        (B, P, C); frames past (x_len + 1) // 2 // 2 are without meaning.

        Raises
        ------
        AudioError : longer than the positions that the checkpoint has (1500 published, 30 s).
        """
        enter()
        T = mel.shape[2]
        S = (T - 1) // 2 + 1
        if self._config.n_audio_ctx < S:
            raise AudioError(
                f"audio of {T} mel frames needs {S} encoder positions, the checkpoint has "
                f"{self._config.n_audio_ctx}: cut it into shorter segments (transcribe does)"
            )
        mel = emit(tap, "mel", mel)
        mask = emit(tap, "mask", self.key_mask(T, x_len, independent).astype(mel.dtype))
        pieces = Pieces()
        x = gelu(self.conv1(mel.transpose(0, 2, 1)))  # (B, T, C)
        x = emit(tap, "conv1", zero_past(x, x_len + 2) if independent else x)
        x = emit(tap, "conv2", gelu(self.conv2(x)))  # (B, S, C)
        x = x + self.positional_embedding(mx.arange(S)).astype(x.dtype)
        x = pieces.end(x, 4)  # kernels of three, the first from fewer channels
        for i, block in enumerate(self.blocks):
            x = pieces.end(block(x, mask, named(tap, f"{i}.")))
        x = self.after_norm(emit(tap, "pooled", average_pairs(x)))  # (B, P, C)
        # A lone clip of S frames has S // 2 of these.
        return emit(tap, "out", zero_past(x, (x_len + 3) // 4) if independent else x)


def zero_past(x: mx.array, length: mx.array) -> mx.array:
    """(B, n, C) with the frames at and after each clip's `length` set to zero: what convolution padding would be."""
    return x * (mx.arange(x.shape[1])[None, :] < length[:, None])[..., None].astype(x.dtype)


def average_pairs(x: mx.array) -> mx.array:
    """(B, S, C) -> (B, S // 2, C), means of neighbours; an odd last frame is dropped, as AvgPool1d(2, 2) does."""
    B, S, C = x.shape
    return x[:, : S // 2 * 2].reshape(B, S // 2, 2, C).mean(axis=2)


class Adapter(nn.Module):
    """Strided convolution, then two linears with a ReLU between them: 25 Hz -> 12.5 Hz, C -> D channels."""

    def __init__(self, config: AudioEncoderConfig):
        super().__init__()
        C = config.n_audio_state
        self.conv = nn.Conv1d(C, C, config.kernel_size, stride=config.adapter_stride, padding=1)
        self.linear1 = nn.Linear(C, config.adapter_hidden)
        self.linear2 = nn.Linear(config.adapter_hidden, config.llm_dim)

    def __call__(self, x: mx.array, tap: Tap | None = None) -> mx.array:
        """(B, P, C) -> audio embeddings (B, R, D)."""
        x = emit(tap, "conv", gelu(self.conv(x)))  # (B, R, C)
        return emit(tap, "out", self.linear2(relu(self.linear1(x))))


def n_rows(x_len, stride: int = 2):
    """Audio embeddings that the prompt takes of a clip of `x_len` + 2 mel frames; works on numbers and arrays."""
    return ((x_len + 1) // 4 - 1) // stride + 1
