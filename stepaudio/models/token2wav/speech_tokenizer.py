"""Speech tokenizer v2: log mels at 100 frames/s in, 25 codes/s out, each one of 3^8.

B clips, T mel frames, S = ceil(T / 4) codes, C channels. Attribute names are those of the published checkpoint.
Knows no files, no samples and no speakers. Reference: `model_v2.py` of the package s3tokenizer, 0.3.0; the
quantiser is FSQ (Mentzer et al. 2023), the attention's memory is FSMN's (Zhang et al. 2018).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ...backend.ops import gelu
from ...backend.pieces import Pieces
from ...backend.process import enter
from ...constants import FRAMES_PER_SECOND, N_AUDIO_CODES
from ...errors import AudioError
from ...schema import MAX_LAYERS, MAX_STRIDE, require, require_positive
from ..attention import attend
from ..encoder import MultiHeadAttention, zero_past
from ..tap import Tap, emit, named

LEVELS = 3  # values of each quantised dimension
TANH_SCALE = 0.9990000128746033  # a literal in the reference: keeps round() away from the ends of tanh
ROPE_BASE = 10_000.0
CONV_KERNEL = 3
SECOND_STRIDE = 2  # of conv2; that of conv1 is in the config

WINDOW = 30 * FRAMES_PER_SECOND  # mel frames the net sees at once
OVERLAP = 4 * FRAMES_PER_SECOND  # frames that neighbouring windows share; half of them is dropped on each side
WINDOWS_AT_ONCE = 4  # bounds the memory of long recordings


@dataclass(frozen=True)
class S3Config:
    """Sizes of the speech tokenizer; the defaults are those of `speech_tokenizer_v2_25hz`.

    Parameters
    ----------
    n_mels, n_audio_state, n_audio_head, n_audio_layer : int > 0
        Mel bands, channels, heads (of an even number of channels each), blocks.
    stride : int > 0
        Of the first convolution.
    n_codebook_size : int, power of 3
        Codes.
    fsmn_kernel : int > 0
        Positions that the attention's memory filters over.
    ln_eps : float in (0, 1)
        Of the layer norms.

    Raises
    ------
    ConfigError
        A size outside these ranges.
    """

    n_mels: int = 128
    n_audio_state: int = 1280
    n_audio_head: int = 20
    n_audio_layer: int = 6
    stride: int = 2
    n_codebook_size: int = N_AUDIO_CODES
    fsmn_kernel: int = 31
    ln_eps: float = 1e-5

    def __post_init__(self):
        require_positive(self, "s3 tokenizer", (f.name for f in fields(self)))
        require_positive(self, "s3 tokenizer", ["n_audio_layer"], MAX_LAYERS)
        require_positive(self, "s3 tokenizer", ("stride", "fsmn_kernel"), MAX_STRIDE)
        require(self.ln_eps < 1, f"s3 tokenizer.ln_eps: must be below 1, found {self.ln_eps}")
        require(
            self.n_audio_state % (2 * self.n_audio_head) == 0,
            f"s3 tokenizer: n_audio_state {self.n_audio_state} must be a multiple of twice n_audio_head "
            f"{self.n_audio_head}: rotary turns pairs of channels",
        )
        require(
            LEVELS**self.n_dims == self.n_codebook_size,
            f"s3 tokenizer: n_codebook_size must be a power of {LEVELS}, found {self.n_codebook_size}",
        )

    @property
    def n_dims(self) -> int:
        """Quantised dimensions: 8 for 6561 codes."""
        return max(1, round(np.log(self.n_codebook_size) / np.log(LEVELS)))

    def n_codes(self, n_frames):
        """Codes of `n_frames` mel frames, each convolution rounding up; works on numbers and arrays."""
        return ((n_frames - 1) // self.stride) // SECOND_STRIDE + 1


class FSMNMultiHeadAttention(MultiHeadAttention):
    """Rotary attention, plus a memory of the values' neighbourhood that joins after the output projection."""

    def __init__(self, config: S3Config):
        C, k = config.n_audio_state, config.fsmn_kernel
        super().__init__(C, config.n_audio_head)
        self.fsmn_block = nn.Conv1d(C, C, k, groups=C, bias=False)
        self._pad = ((k - 1) // 2, k - 1 - (k - 1) // 2)

    def memory(self, v: mx.array, length: mx.array) -> mx.array:
        """(B, S, C): each channel of the values filtered over time, plus the values; zero past `length`."""
        v = zero_past(v, length)
        return zero_past(self.fsmn_block(mx.pad(v, [(0, 0), self._pad, (0, 0)])) + v, length)

    def __call__(self, x: mx.array, length: mx.array, tap: Tap | None = None) -> mx.array:
        """(B, S, C) -> (B, S, C), blind to the keys at and after `length` (B,)."""
        S = x.shape[1]
        q, k, v = self.heads(x, tap)
        size = q.shape[-1]
        q, k = (mx.fast.rope(y, size, traditional=False, base=ROPE_BASE, scale=1.0, offset=0) for y in (q, k))
        mask = (mx.arange(S)[None, :] < length[:, None])[:, None, None, :]  # keys only, as in the reference
        memory = emit(tap, "memory", self.memory(v.transpose(0, 2, 1, 3).reshape(x.shape), length))
        return self.out(attend(q, k, v, size**-0.5, mask, tap)) + memory


class ResidualAttentionBlock(nn.Module):
    """Attention with memory, then two linears with a GELU, each behind a norm."""

    def __init__(self, config: S3Config):
        super().__init__()
        C = config.n_audio_state
        self.attn = FSMNMultiHeadAttention(config)
        self.attn_ln = nn.LayerNorm(C, eps=config.ln_eps)
        self.mlp = [nn.Linear(C, 4 * C), gelu, nn.Linear(4 * C, C)]
        self.mlp_ln = nn.LayerNorm(C, eps=config.ln_eps)

    def __call__(self, x: mx.array, length: mx.array, tap: Tap | None = None) -> mx.array:
        """(B, S, C) -> (B, S, C); see `interp.names.TOKEN2WAV_GLOSSARY` for what the tap receives."""
        x = emit(tap, "resid_pre", x)
        x = emit(tap, "resid_mid", x + emit(tap, "attn_out", self.attn(self.attn_ln(x), length, tap)))
        widen, activate, narrow = self.mlp
        added = emit(tap, "mlp_out", narrow(activate(widen(self.mlp_ln(x)))))
        return emit(tap, "resid_post", x + added)


class S3Encoder(nn.Module):
    """Two strided convolutions and the blocks; no norm at the end."""

    def __init__(self, config: S3Config):
        super().__init__()
        C = config.n_audio_state
        self.conv1 = nn.Conv1d(config.n_mels, C, CONV_KERNEL, stride=config.stride, padding=1)
        self.conv2 = nn.Conv1d(C, C, CONV_KERNEL, stride=SECOND_STRIDE, padding=1)
        self.blocks = [ResidualAttentionBlock(config) for _ in range(config.n_audio_layer)]
        self._config = config

    def __call__(self, mel: mx.array, length: mx.array, tap: Tap | None = None) -> mx.array:
        """(B, n_mels, T) log mels of `length` (B,) frames -> (B, S, C).

        Everything past a clip's length is masked before each convolution and in each attention, so that a clip
        comes out of a batch as it does alone; frames past `n_codes(length)` are without meaning.
        """
        x = emit(tap, "conv1", gelu(self.conv1(zero_past(mel.transpose(0, 2, 1), length))))
        x = emit(tap, "conv2", gelu(self.conv2(zero_past(x, (length - 1) // self._config.stride + 1))))
        length = self._config.n_codes(length)
        pieces = Pieces()
        for i, block in enumerate(self.blocks):
            x = pieces.end(block(x, length, named(tap, f"{i}.")))
        return emit(tap, "out", x)


class FSQCodebook(nn.Module):
    """Finite scalar quantiser: every dimension rounds to -1, 0 or 1; dimension 0 is the code's least digit."""

    def __init__(self, config: S3Config):
        super().__init__()
        self.project_down = nn.Linear(config.n_audio_state, config.n_dims)

    def __call__(self, x: mx.array, tap: Tap | None = None) -> mx.array:
        """(..., C) -> (...), int32."""
        h = emit(tap, "project_down", self.project_down(x).astype(mx.float32))
        digits = mx.round(mx.tanh(h) * TANH_SCALE).astype(mx.int32) + 1
        return (digits * mx.array([LEVELS**k for k in range(h.shape[-1])])).sum(axis=-1)


class FSQVectorQuantization(nn.Module):
    """The codebook under the name that the published file gives it."""

    def __init__(self, config: S3Config):
        super().__init__()
        self._codebook = FSQCodebook(config)

    def __call__(self, x: mx.array, tap: Tap | None = None) -> mx.array:
        """(..., C) -> (...), int32 codes."""
        return self._codebook(x, tap)


class S3Tokenizer(nn.Module):
    """Codes of a voice. Keep it in float32: half precision moves values across the borders of the codes."""

    def __init__(self, config: S3Config):
        super().__init__()
        self.encoder = S3Encoder(config)
        self.quantizer = FSQVectorQuantization(config)
        self._config = config

    @property
    def config(self) -> S3Config:
        """Its sizes."""
        return self._config

    @staticmethod
    def valid_parameter_filter(module, key, value):
        """MLX hides names with an underscore in front; the published `quantizer._codebook` is one with weights."""
        return nn.Module.valid_parameter_filter(module, key, value) or key == "_codebook"

    def __call__(
        self, mel: mx.array | np.ndarray, lengths=None, keep_tail: bool = False, tap: Tap | None = None
    ) -> list[np.ndarray]:
        """Codes of a zero-padded batch; a clip's codes do not depend on the other clips.

        Parameters
        ----------
        mel : (B, n_mels, T) log mels as `audio.features.log_mel(samples, padding=0)` makes them, zeros at the right.
        lengths : (B,) integers in 1 … T, mel frames of each clip; by default all T.
        keep_tail : for clips above 30 s, see `windows`.
        tap : called as tap(name, array) with every intermediate result; clips above 30 s come as a row for each window,
            and several times where they are many.

        Returns
        -------
        list of B arrays, int32, (n_i,), each in 0 … 6560; n_i = ceil(length / 4), or fewer where `windows` says so.

        Raises
        ------
        AudioError : wrong shape, or lengths that do not fit.
        """
        enter()
        mel, lengths = self._checked(mel, lengths)
        cuts = [(row, w) for row, n in enumerate(lengths) for w in windows(int(n), self._config, keep_tail)]
        codes: list[list[np.ndarray]] = [[] for _ in lengths]
        for i in range(0, len(cuts), WINDOWS_AT_ONCE):
            group = cuts[i : i + WINDOWS_AT_ONCE]
            for (row, window), found in zip(group, self._encode(mel, group, tap), strict=True):
                codes[row].append(found[window.keep])
        return [np.concatenate(kept) for kept in codes]

    def _encode(self, mel: mx.array, cuts: list, tap: Tap | None) -> np.ndarray:
        """(len(cuts), S) codes of windows, run as one batch."""
        n_frames = [w.stop - w.start for _, w in cuts]
        batch = [
            mx.pad(mel[row, :, w.start : w.stop], [(0, 0), (0, max(n_frames) - n)])
            for (row, w), n in zip(cuts, n_frames, strict=True)
        ]
        return np.array(self.quantizer(self.encoder(mx.stack(batch), mx.array(n_frames), tap), tap))

    def _checked(self, mel, lengths) -> tuple[mx.array, np.ndarray]:
        n_mels = self._config.n_mels
        if mel.ndim != 3 or mel.shape[1] != n_mels or 0 in mel.shape:
            raise AudioError(
                f"s3 tokenizer: expected log mels of shape (clips, {n_mels}, frames), found "
                f"{tuple(mel.shape)}; log_mel(samples, padding=0)[None] makes such of one clip"
            )
        B, _, T = mel.shape
        lengths = np.full(B, T) if lengths is None else np.array(lengths)
        if lengths.shape != (B,) or lengths.dtype.kind not in "iu" or lengths.min() < 1 or lengths.max() > T:
            raise AudioError(f"s3 tokenizer: expected {B} lengths, integers in 1 … {T}, found {lengths.tolist()}")
        return mx.array(mel).astype(self.encoder.conv1.weight.dtype), lengths


@dataclass(frozen=True)
class Window:
    """Mel frames start … stop - 1 of a clip, and which of their codes are kept."""

    start: int
    stop: int
    keep: slice


def windows(n_frames: int, config: S3Config, keep_tail: bool = False) -> Iterator[Window]:
    """How a clip is cut: whole up to 30 s, else 30 s every 26 s, where 2 s of codes are dropped on each inner side.

    The reference opens a window wherever 26 s have passed, even if the one before has already reached the end.
    The last window is then shorter than the overlap, and up to 2 s of codes close to the end are in none of the
    kept parts (5300 frames give 1275 codes, not 1325). `keep_tail` stops at the first window that reaches the
    end, so that every clip gives ceil(n_frames / 4) codes; the default is the reference's.
    """
    if n_frames <= WINDOW:
        yield Window(0, n_frames, slice(0, config.n_codes(n_frames)))
        return
    step, margin = WINDOW - OVERLAP, config.n_codes(OVERLAP) // 2
    last = -(-(n_frames - (OVERLAP if keep_tail else 0)) // step) - 1
    for i in range(last + 1):
        start, stop = i * step, min(i * step + WINDOW, n_frames)
        end = config.n_codes(stop - start) - (margin if i < last else 0)
        yield Window(start, stop, slice(margin if i else 0, end))
