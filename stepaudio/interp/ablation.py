"""What the heads of a model are worth to its own answers: silence one after another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Unpack

import mlx.core as mx
import numpy as np

from ..decoding.options import DecodingKeywords, DecodingOptions, merge_options
from ..errors import ConfigError
from ..evaluation.repetition import log_softmax
from ..model import StepAudio2
from ..pipeline import Layout
from ..text.messages import is_conversation
from ..text.prompts import ASR_SYSTEM
from .donor import Activations
from .edit_targets import HEADS
from .edits import Edits, mean, zero
from .names import GLOSSARY, activation_names, axis_sizes, matching, pattern_of
from .running import forced_logits, generated, lay_out


@dataclass(frozen=True)
class HeadTable:
    """What each head is worth to the model's own answers.

    Attributes
    ----------
    names : (layers,) activations.
    lost : (clips, layers, heads) nats per token that the answer's log-probability falls by without the head.
    """

    names: tuple[str, ...]
    lost: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """(layers, heads) over clips."""
        return self.lost.mean(axis=0)

    def table(self) -> str:
        """Layers down, heads across."""
        width = max(map(len, self.names))
        rows = [" " * width + "".join(f"{h:>8}" for h in range(self.lost.shape[2]))]
        rows += [
            f"{n:{width}}" + "".join(f"{x:8.3f}" for x in row) for n, row in zip(self.names, self.mean, strict=True)
        ]
        return "\n".join(rows)


def ablate_heads(
    model: StepAudio2,
    sources: Sequence,
    names: str = "decoder.*.z",
    *,
    donors: Activations | Sequence[Activations] | None = None,
    prompt: str = ASR_SYSTEM,
    sample_rate: float | None = None,
    options: DecodingOptions | None = None,
    **changes: Unpack[DecodingKeywords],
) -> HeadTable:
    """Silence one head after another and see what the model's own answers lose.

    Parameters
    ----------
    model : StepAudio2
    sources : recordings or lists of messages, at least one.
    names : a pattern for what the heads read, of one net: "decoder.*.z" or "encoder.*.z".
    donors : runs whose mean takes a head's place; by default zeros do.
    prompt, sample_rate, options, **changes : as in `record`.

    Raises
    ------
    ConfigError : no source, or names without heads.
    """
    meant = matching([names], model.config)[names] if isinstance(names, str) else frozenset()
    layers = [n for n in activation_names(model.config) if n in meant]
    axes = {GLOSSARY[pattern_of(n)].axes[1] for n in layers}
    if len(axes) != 1 or not axes <= set(HEADS) or not isinstance(sources, (list, tuple)) or not sources:
        raise ConfigError(f"ablate_heads: expected a list of recordings and heads of one net, found {names!r:.80}")
    heads = range(axis_sizes(model.config)[axes.pop()])
    silent = [[zero(n, heads=h) if donors is None else mean(n, donors, heads=h) for h in heads] for n in layers]
    lost = []
    for source in sources:
        decoding = merge_options(options, "chat" if is_conversation(source) else "transcribe", **changes)
        layout = lay_out(model, source, prompt, sample_rate)
        tokens = generated(model, layout, decoding)
        embeddings = model.engine.encode_layout(layout).embeddings
        whole = _score(model, layout, tokens, None, embeddings)
        lost.append([[whole - _score(model, layout, tokens, one, embeddings) for one in row] for row in silent])
    return HeadTable(tuple(layers), np.array(lost))


def _score(
    model: StepAudio2, layout: Layout, tokens: Sequence[int], edits: Edits | None, embeddings: mx.array
) -> float:
    """Mean log-probability of the tokens, nats."""
    logprobs = log_softmax(forced_logits(model, layout, tokens, edits, embeddings=embeddings))
    return float(logprobs[np.arange(len(tokens)), list(tokens)].mean())
