"""Reading a prompt into a cache, in steps that cache and memory allow."""

from __future__ import annotations

import mlx.core as mx

from ..backend.device import on_cpu
from ..models.speech_lm import StepAudioNet
from ..models.tap import Tap, named

ON_CPU, ON_GPU = 512, 2048  # positions per step: bounds score matrices on a CPU, what layers hold on a GPU


def positions_at_once(batch: int, cpu: bool) -> int:
    """Positions of each prompt of a batch that are read in one step; on a GPU prompts share what makes it fast."""
    return ON_CPU if cpu else max(ON_CPU, ON_GPU // batch)


def prefill(net: StepAudioNet, x: mx.array, cache, tap: Tap | None = None, tokens: mx.array | None = None) -> mx.array:
    """Feed embeddings (B, n, D), n at least 1; logits (B, V) after the last position.

    `tokens` (B, n), the ids that `x` embeds, are for the tap alone.
    """
    done, n, most = 0, x.shape[1], positions_at_once(x.shape[0], on_cpu())
    while True:
        take = min(cache.room(n - done), most)
        part, ids = x[:, done : done + take], None if tokens is None else tokens[:, done : done + take]
        done += take
        if done >= n:
            return net.next_logits(part, cache, tap, ids)
        net.model(part, cache, named(tap, "decoder."), ids)
        mx.eval(cache.arrays)
