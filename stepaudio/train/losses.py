"""Cross-entropies of padded labels, and products in place of lookups."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from .batches import IGNORE


def one_hot(index: mx.array, n: int, dtype: mx.Dtype) -> mx.array:
    """(…) indices -> (…, n), zero where an index lies outside.

    Products with it look things up, and their gradients are products too, where a lookup's gradient adds position
    after position into one row.
    """
    return (index[..., None] == mx.arange(n)).astype(dtype)


def linear(head: dict, x: mx.array) -> mx.array:
    """(…, in) -> (…, out) through the `weight` (out, in) and `bias` (out,) of a linear layer."""
    return x @ head["weight"].T + head["bias"]


def labelled(labels: mx.array, n: int) -> tuple[mx.array, mx.array]:
    """Labels (B, m) trimmed or padded to (B, n), and a mask of those that are known."""
    labels = mx.pad(labels, [(0, 0), (0, max(0, n - labels.shape[1]))])[:, :n]
    return labels, labels != IGNORE


def distance(found: mx.array, wanted: mx.array, counts: mx.array) -> mx.array:
    """Mean squared distance of (B, R, D) over the places that count (B, R), in variances of each channel of `wanted`.

    0 where both agree, 1 where `found` is the mean of `wanted`; 0 if no place counts.
    """
    found, wanted = found.astype(mx.float32), wanted.astype(mx.float32)
    share = counts[..., None] / mx.maximum(counts.sum(), 1)
    mean = (wanted * share).sum((0, 1))
    variance = (mx.square(wanted - mean) * share).sum((0, 1))
    return ((mx.square(found - wanted) * share).sum((0, 1)) / (variance + 1e-6)).mean()


def mean_entropy(logits: mx.array, labels: mx.array, known: mx.array, smoothing: float = 0.0) -> mx.array:
    """Mean cross-entropy over the known positions, in float32: logits (B, n, V), labels and known (B, n)."""
    each = nn.losses.cross_entropy(logits.astype(mx.float32), labels, label_smoothing=smoothing)
    return (each * known).sum() / mx.maximum(known.sum(), 1)
