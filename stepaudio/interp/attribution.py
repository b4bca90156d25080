"""Direct logit attribution: what each part of the decoder adds to the logit of a token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from ..choices import is_whole, shown
from ..errors import ConfigError
from ..model import StepAudio2
from ..models.speech_lm import StepAudioNet
from .recorder import Trace


@dataclass(frozen=True)
class LogitParts:
    """Logits as sums.

    Attributes
    ----------
    names : (parts,) "decoder.0.resid_pre" for the embedding, "decoder.{i}.attn_out" or "decoder.{i}.z[head]",
        "decoder.{i}.mlp_out", and "rest": what edits of the residual stream put into it, and rounding.
    values : (steps, parts), what each part adds.
    tokens : (steps,) whose logits they are.
    """

    names: tuple[str, ...]
    values: np.ndarray
    tokens: tuple[int, ...]

    @property
    def logits(self) -> np.ndarray:
        """(steps,) the logits, or differences of logits, that the parts sum to."""
        return self.values.sum(axis=1)

    def table(self, top: int = 10) -> str:
        """The parts that matter most, by mean magnitude over the steps: their mean."""
        order = np.argsort(-np.abs(self.values).mean(axis=0), kind="stable")[:top]
        width = max(len(self.names[i]) for i in order)
        return "\n".join(f"{self.names[i]:{width}} {self.values[:, i].mean():+9.3f}" for i in order)


def logit_parts(
    model: StepAudio2,
    trace: Trace,
    tokens: int | Sequence[int] | None = None,
    against: int | Sequence[int] | None = None,
    heads: bool = False,
) -> LogitParts:
    """Split the logit of a token at each step into what each layer, or each head, adds to it.

    The final norm divides the residual stream by its root mean square; with that number as it was, everything behind
    the stream is linear, and the stream is the sum of the parts (Elhage et al. 2021). So a part's value is what it adds
    directly, not what would change without it.

    Parameters
    ----------
    model : the one that was recorded.
    trace : with "decoder.0.resid_pre", "decoder.*.mlp_out", the last layer's "resid_post", and "decoder.*.attn_out" or,
        for heads, "decoder.*.z".
    tokens : one id for all steps, or one for each; by default the tokens that were chosen.
    against : likewise; the parts are then of the logit less that of these. A logit alone has a level that probabilities
        do not depend on.
    heads : each head by itself instead of each layer's attention.

    Raises
    ------
    ConfigError
        Something needed was not recorded, or there is no such token.
    """
    net, n = model.net, model.config.text_config.num_hidden_layers
    chosen = _tokens(trace.tokens if tokens is None else tokens, "tokens", trace, model)
    other = None if against is None else _tokens(against, "against", trace, model)
    final = _at_the_step(trace, f"decoder.{n - 1}.resid_post")
    scale = np.sqrt((final**2).mean(axis=1, keepdims=True) + model.config.text_config.rms_norm_eps)
    rows = _head_rows(net, {*chosen, *(other or ())})
    reading = np.stack([rows[t] for t in chosen]) - (np.stack([rows[t] for t in other]) if other else 0.0)
    reading = reading * np.array(net.model.norm.weight.astype(mx.float32), np.float64) / scale  # (steps, D)
    parts = {"decoder.0.resid_pre": (_at_the_step(trace, "decoder.0.resid_pre") * reading).sum(axis=1)}
    for i in range(n):
        if heads:
            z = _at_the_step(trace, f"decoder.{i}.z")  # (steps, H, K)
            read = _through(net.model.layers[i].self_attn.o_proj, reading).reshape(z.shape)
            parts |= {f"decoder.{i}.z[{h}]": (z[:, h] * read[:, h]).sum(axis=1) for h in range(z.shape[1])}
        else:
            parts[f"decoder.{i}.attn_out"] = (_at_the_step(trace, f"decoder.{i}.attn_out") * reading).sum(axis=1)
        parts[f"decoder.{i}.mlp_out"] = (_at_the_step(trace, f"decoder.{i}.mlp_out") * reading).sum(axis=1)
    values = np.stack(list(parts.values()), axis=1)
    rest = (final * reading).sum(axis=1) - values.sum(axis=1)
    return LogitParts((*parts, "rest"), np.column_stack([values, rest]), tuple(chosen))


def _tokens(given: int | Sequence[int], what: str, trace: Trace, model: StepAudio2) -> list[int]:
    """One id for each step."""
    n, vocabulary = len(trace.steps), model.config.text_config.vocab_size
    ids: list[Any] = list(given) if isinstance(given, (list, tuple)) else [given] * n
    if len(ids) != n or not n or not all(is_whole(t) and 0 <= t < vocabulary for t in ids):
        raise ConfigError(
            f"{what}: expected an id from 0 to {vocabulary - 1}, or one for each of {n} steps, found {shown(given)}"
        )
    return ids


def _at_the_step(trace: Trace, name: str) -> np.ndarray:
    """(steps, D), or (steps, H, K), where each token was chosen; float64."""
    return np.stack([a[0, ..., -1, :] for a in trace.writing(name)]).astype(np.float64)


def _head_rows(net: StepAudioNet, tokens: set[int]) -> dict[int, np.ndarray]:
    """Rows (D,) of the head, whatever its weights are held in: it is linear, so its gradient is a row."""
    zeros = mx.zeros((net.config.text_config.hidden_size,), net.model.norm.weight.dtype)
    row = mx.grad(lambda x, token: net.lm_head(x)[token].astype(mx.float32))
    return {token: np.array(row(zeros, token).astype(mx.float32), np.float64) for token in tokens}


def _through(layer, reading: np.ndarray) -> np.ndarray:
    """What a linear layer's inputs (steps, C) are multiplied with, for its outputs to be multiplied with `reading`."""
    read = mx.grad(lambda x, by: (layer(x).astype(mx.float32) * by).sum())
    n_inputs = layer.weight.shape[1] if layer.weight.dtype != mx.uint32 else layer.weight.shape[1] * 32 // layer.bits
    by = mx.array(reading.astype(np.float32))
    return np.array(read(mx.zeros((len(reading), n_inputs)), by), np.float64)
