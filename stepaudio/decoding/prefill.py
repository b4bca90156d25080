"""Reading a prompt into a cache, in steps that cache and memory allow."""

from __future__ import annotations

import mlx.core as mx

from ..models.speech_lm import StepAudioNet
from ..models.tap import Tap, named

PREFILL = 512  # positions per step: bounds the score matrices


def prefill(net: StepAudioNet, x: mx.array, cache, tap: Tap | None = None, tokens: mx.array | None = None) -> mx.array:
    """Feed embeddings (B, n, D), n at least 1; logits (B, V) after the last position.

    `tokens` (B, n), the ids that `x` embeds, are for the tap alone.
    """
    done, n = 0, x.shape[1]
    while True:
        take = min(cache.room(n - done), PREFILL)
        part, ids = x[:, done : done + take], None if tokens is None else tokens[:, done : done + take]
        done += take
        if done >= n:
            return net.next_logits(part, cache, tap, ids)
        net.model(part, cache, named(tap, "decoder."), ids)
        mx.eval(cache.arrays)
