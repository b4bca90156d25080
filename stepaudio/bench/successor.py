"""A net at the cost of any other whose next token is known: what speculative decoding can gain from repeating text."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from ..checkpoints.layout import parameters_of
from ..models.speech_lm import StepAudioNet


def successor_net(net: StepAudioNet, period: int) -> StepAudioNet:
    """A net of the same cost that says after each token the next of its block of `period`, after the last the first.

    What layers add is nothing, so the last state is the token's embedding; the head has the embeddings of the tokens
    before.
    """
    config, own = net.config, parameters_of(net)
    ids = np.arange(config.text_config.vocab_size)
    first = ids // period * period
    size = np.minimum(period, len(ids) - first)
    before = first + (ids - first - 1) % size
    embeddings = own["model.embed_tokens.weight"]
    changed: dict[str, mx.array] = {"lm_head.weight": embeddings[mx.array(before)]}
    changed |= {
        name: mx.zeros_like(a) for name, a in own.items() if name.endswith(("o_proj.weight", "down_proj.weight"))
    }
    made = StepAudioNet(config)
    made.load_weights(list((own | changed).items()))
    return made
