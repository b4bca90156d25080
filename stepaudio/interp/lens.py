"""Logit lens and attention analysis: what each layer would have written, and where in the audio it looked.

Works on what `recorder` recorded.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from ..constants import EMBEDDINGS_PER_SECOND
from ..errors import ConfigError
from .recorder import Trace

LENS_POSITIONS = 64  # positions whose logits are made at a time: 40 MB of float32 at the published vocabulary


class Lens(NamedTuple):
    """What a layer would say: the most probable tokens (positions, top) and their natural log-probabilities."""

    tokens: np.ndarray
    logprobs: np.ndarray


def logit_lens(net, residual: np.ndarray, top: int = 1) -> Lens:
    """Read a residual stream as if the decoder ended there: final norm, then head.

    Method: nostalgebraist, "interpreting GPT: the logit lens" (2020). After the last layer it gives the model's own
    distribution.

    Parameters
    ----------
    net : the model's net, or the model itself
    residual : (positions, D), for example `Trace.residual(layer)`
    top : 1 <= top <= V, how many tokens to keep

    Returns
    -------
    Lens, most probable first.
    """
    net = getattr(net, "net", net)
    width, vocabulary = net.config.text_config.hidden_size, net.config.text_config.vocab_size
    if residual.ndim != 2 or residual.shape[1] != width or not 1 <= top <= vocabulary:
        raise ConfigError(
            f"logit lens: expected residuals (positions, {width}) and top from 1 to {vocabulary}, "
            f"found {residual.shape} and {top}"
        )
    tokens, logprobs = [], []
    for start in range(0, len(residual), LENS_POSITIONS):
        x = mx.array(residual[start : start + LENS_POSITIONS]).astype(net.model.norm.weight.dtype)
        scores = net.lm_head(net.model.norm(x)).astype(mx.float32)
        scores = scores - mx.logsumexp(scores, axis=-1, keepdims=True)
        best = mx.argsort(-scores, axis=-1)[:, :top]
        tokens.append(np.array(best))
        logprobs.append(np.array(mx.take_along_axis(scores, best, axis=-1)))
    if not tokens:
        return Lens(np.zeros((0, top), np.int32), np.zeros((0, top), np.float32))
    return Lens(np.concatenate(tokens).astype(np.int32), np.concatenate(logprobs))


class AudioAttention(NamedTuple):
    """Where each token looked: `weights` (tokens, audio embeddings); `seconds` at which each 0.08 s of them begin.

    A row of weights sums to the share of attention that went to the audio, the rest went to text.
    """

    weights: np.ndarray
    seconds: np.ndarray

    @property
    def peak(self) -> np.ndarray:
        """(tokens,) seconds, middle of the 80 ms that were attended to most."""
        return self.seconds[self.weights.argmax(axis=1)] + 0.5 / EMBEDDINGS_PER_SECOND

    @property
    def share(self) -> np.ndarray:
        """(tokens,) part of the attention that went to the audio, 0 to 1."""
        return self.weights.sum(axis=1)


def audio_attention(
    trace: Trace, layers: Sequence[int] | None = None, heads: Sequence[int] | None = None
) -> AudioAttention:
    """Which 80 ms were attended to when each token was chosen: mean over the chosen layers and heads.

    Parameters
    ----------
    trace : with "decoder.*.pattern" (reduced by `last_query` if memory is short) and "decoder.positions" recorded, of a
        prompt with one recording
    layers, heads : numbers from 0; by default all that were recorded

    Returns
    -------
    AudioAttention; audio that the cache has evicted has weight 0.

    Raises
    ------
    ConfigError
        Something needed was not recorded, or there is no such layer or head, or no audio.
    """
    pattern = re.compile(r"decoder\.(\d+)\.pattern")
    recorded = [int(m[1]) for name in trace.recorder.names if (m := pattern.fullmatch(name))]
    layers = recorded if layers is None else list(layers)
    if not layers or not len(trace.audio_positions):
        raise ConfigError(
            "attention to audio: expected a prompt with audio and a recording of decoder.*.pattern, "
            f"found {len(trace.audio_positions)} audio embeddings and layers {recorded}"
        )
    passes = [trace.writing(f"decoder.{i}.pattern") for i in layers]
    n_heads = passes[0][0].shape[1]
    chosen = list(range(n_heads)) if heads is None else list(heads)
    if not chosen or not set(chosen) <= set(range(n_heads)):
        raise ConfigError(f"heads {chosen}: expected numbers from 0 to {n_heads - 1}")
    weights = np.zeros((len(trace.steps), len(trace.audio_positions)), np.float32)
    for row, slots, *of_layer in zip(weights, trace.writing("decoder.positions"), *passes, strict=True):
        seen = np.mean([a[0, chosen, -1].mean(axis=0) for a in of_layer], axis=0)  # (L,)
        by_position = np.zeros(max(slots.max(), trace.audio_positions.max()) + 1, np.float32)
        by_position[slots] = seen
        row[:] = by_position[trace.audio_positions]
    return AudioAttention(weights, trace.audio_seconds)
