"""Convolutions over time in the forms that these nets need. Axes (B rows, T time, C channels).

Kernels are held as MLX wants them, (out, taps, in). MLX's CPU backend multiplies matrices only for convolutions
that neither spread their taps nor run backwards; the two others are written here as matrix products.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from ...backend.device import on_cpu


def overlap_add(pieces: mx.array, hop: int) -> mx.array:
    """(B, T, n, C) pieces of n samples, each `hop` after the one before -> their sum, (B, (T-1) hop + n, C)."""
    B, T, n, C = pieces.shape
    m = -(-n // hop)
    pieces = mx.pad(pieces, [(0, 0), (0, 0), (0, m * hop - n), (0, 0)]).reshape(B, T, m, hop, C)
    total = sum(mx.pad(pieces[:, :, j], [(0, 0), (j, m - 1 - j), (0, 0), (0, 0)]) for j in range(m))
    return total.reshape(B, (T + m - 1) * hop, C)[:, : (T - 1) * hop + n]


class Conv1d(nn.Conv1d):
    """`nn.Conv1d`; spread taps become one matrix product each on the CPU, about ten times faster there."""

    def __call__(self, x: mx.array) -> mx.array:
        if self.dilation == 1 or not on_cpu():
            return super().__call__(x)
        x = mx.pad(x, [(0, 0), (self.padding, self.padding), (0, 0)])
        taps, d = self.weight.shape[1], self.dilation
        n = x.shape[1] - (taps - 1) * d
        return sum(x[:, j * d : j * d + n] @ self.weight[:, j].T for j in range(taps)) + self.bias


class ConvTranspose1d(nn.Module):
    """PyTorch's transposed convolution: every input frame adds `taps` output frames, `stride` apart; ends cut."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int, padding: int):
        super().__init__()
        scale = (in_channels * kernel_size) ** -0.5
        self.weight = mx.random.uniform(-scale, scale, (out_channels, kernel_size, in_channels))
        self.bias = mx.zeros((out_channels,))
        self._stride, self._padding = stride, padding

    def __call__(self, x: mx.array) -> mx.array:
        (B, T, C), (out, taps, _) = x.shape, self.weight.shape
        pieces = x @ self.weight.swapaxes(0, 1).reshape(taps * out, C).T  # (B, T, taps * out)
        y = overlap_add(pieces.reshape(B, T, taps, out), self._stride)
        return y[:, self._padding : y.shape[1] - self._padding] + self.bias


def with_past(x: mx.array, past: mx.array | None, n: int) -> tuple[mx.array, mx.array]:
    """Put `past` (B, n, C), or n frames of zeros, before x: what a causal convolution of n+1 taps needs.

    Returns the longer array and its own last n frames, the past of the next chunk.
    """
    past = mx.zeros((x.shape[0], n, x.shape[2]), x.dtype) if past is None else past
    x = mx.concatenate([past, x], axis=1)
    return x, x[:, x.shape[1] - n :]


class SpreadConv1d(nn.Conv1d):
    """Convolution of few taps, a matrix product for each: MLX's CPU backend is 30 times slower at spread taps."""

    def __call__(self, x: mx.array) -> mx.array:
        taps, d = self.weight.shape[1], self.dilation
        N = x.shape[1]
        x = mx.pad(x, ((0, 0), (taps // 2 * d, taps // 2 * d), (0, 0)))
        return sum(x[:, j * d : j * d + N] @ self.weight[:, j].T for j in range(taps))
