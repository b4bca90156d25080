"""What a recorded run says: what each layer would have written, where in the audio it looked, what memory it took.

Works on what `probes` recorded; draws nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from ..errors import ConfigError
from .recorder import ROWS_PER_SECOND, Trace

LENS_POSITIONS = 64  # positions whose logits are made at a time: 40 MB of float32 at the published vocabulary


class Lens(NamedTuple):
    """What a layer would say: the most probable ids (positions, top) and their natural log-probabilities."""

    ids: np.ndarray
    logprobs: np.ndarray


def logit_lens(net, residual: np.ndarray, top: int = 1) -> Lens:
    """Read a residual stream as if the decoder ended there: final norm, then head.

    Method: nostalgebraist, "interpreting GPT: the logit lens" (2020). After the last layer it gives the model's own
    distribution.

    Parameters
    ----------
    net : StepAudioNet
    residual : (positions, D), for example `Trace.residual(layer)`
    top : 1 <= top <= V, how many ids to keep

    Returns
    -------
    Lens, most probable first.
    """
    width, vocabulary = net.config.text_config.hidden_size, net.config.text_config.vocab_size
    if residual.ndim != 2 or residual.shape[1] != width or not 1 <= top <= vocabulary:
        raise ConfigError(
            f"logit lens: expected residuals (positions, {width}) and top from 1 to {vocabulary}, "
            f"found {residual.shape} and {top}"
        )
    ids, logprobs = [], []
    for start in range(0, len(residual), LENS_POSITIONS):
        x = mx.array(residual[start : start + LENS_POSITIONS]).astype(net.model.norm.weight.dtype)
        scores = net.lm_head(net.model.norm(x)).astype(mx.float32)
        scores = scores - mx.logsumexp(scores, axis=-1, keepdims=True)
        best = mx.argsort(-scores, axis=-1)[:, :top]
        ids.append(np.array(best))
        logprobs.append(np.array(mx.take_along_axis(scores, best, axis=-1)))
    if not ids:
        return Lens(np.zeros((0, top), np.int32), np.zeros((0, top), np.float32))
    return Lens(np.concatenate(ids).astype(np.int32), np.concatenate(logprobs))


class AudioReading(NamedTuple):
    """Where each id looked: `weights` (ids, audio rows); `seconds` (audio rows,) at which each 0.08 s begin.

    A row of weights sums to the share of attention that went to the audio, the rest went to text.
    """

    weights: np.ndarray
    seconds: np.ndarray

    @property
    def peak(self) -> np.ndarray:
        """(ids,) seconds, middle of the 80 ms that were read most."""
        return self.seconds[self.weights.argmax(axis=1)] + 0.5 / ROWS_PER_SECOND

    @property
    def share(self) -> np.ndarray:
        """(ids,) part of the attention that went to the audio, 0 to 1."""
        return self.weights.sum(axis=1)


def audio_attention(
    trace: Trace, layers: Sequence[int] | None = None, heads: Sequence[int] | None = None
) -> AudioReading:
    """Which 80 ms were being read when each id was chosen: mean over the chosen layers and heads.

    Parameters
    ----------
    trace : with "layer*.attention" (reduced by `last_query` if memory is short) and "positions" recorded, of a
        prompt with one recording
    layers, heads : numbers from 0; by default all that were recorded

    Returns
    -------
    AudioReading; audio rows that the cache has forgotten have weight 0.

    Raises
    ------
    ConfigError
        Something needed was not recorded, or there is no such layer or head, or no audio.
    """
    pattern = re.compile(r"layer(\d+)\.attention")
    recorded = [int(m[1]) for name in trace.recorder.names if (m := pattern.fullmatch(name))]
    layers = recorded if layers is None else list(layers)
    if not layers or not len(trace.row_positions):
        raise ConfigError(
            "attention to audio: expected a prompt with audio and a recording of layer*.attention, "
            f"found {len(trace.row_positions)} audio rows and layers {recorded}"
        )
    passes = [trace.writing(f"layer{i}.attention") for i in layers]
    n_heads = passes[0][0].shape[1]
    chosen = list(range(n_heads)) if heads is None else list(heads)
    if not chosen or not set(chosen) <= set(range(n_heads)):
        raise ConfigError(f"heads {chosen}: expected numbers from 0 to {n_heads - 1}")
    weights = np.zeros((len(trace.steps), len(trace.row_positions)), np.float32)
    for row, slots, *of_layer in zip(weights, trace.writing("positions"), *passes, strict=True):
        seen = np.mean([a[0, chosen, -1].mean(axis=0) for a in of_layer], axis=0)  # (L,)
        by_position = np.zeros(max(slots.max(), trace.row_positions.max()) + 1, np.float32)
        by_position[slots] = seen
        row[:] = by_position[trace.row_positions]
    return AudioReading(weights, trace.row_seconds)
