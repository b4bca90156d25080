"""A decoder that stays as it is, with a LoRA learnt beside it (Hu et al. 2021).

Each linear layer of the decoder, the output layer and the table of embeddings get the product of two thin matrices
added; these alone are trained, so the model without them is what it was.

R is the rank, D_in and D_out are a layer's sizes, V the vocabulary, D the channels.
"""

from __future__ import annotations

from typing import cast

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten

from ...checkpoints.lora import TABLES
from ...models.parameters import named_arrays
from ...models.speech_lm import StepAudioNet
from ...text.tokenizer import Tokenizer
from . import decoder

SCALE = 2.0  # of the product, as it is added
PARTS = tuple(f"{part}." for part in decoder.TRAINED)


def begin(net: StepAudioNet, rank: int, tokenizer: Tokenizer, seed: int) -> dict:
    """Initial weights: of each layer `a` drawn and `b` zero, so that nothing changes yet; and the heads' own.

    Of a linear layer `a` is (D_in, R) and `b` (R, D_out), of the table (V, R) and (R, D).
    """
    mx.random.seed(seed)
    pairs = []
    for name, (rows, columns) in layers(net).items():
        inputs, outputs = (rows, columns) if name in TABLES else (columns, rows)
        summed = rank if name in TABLES else inputs  # numbers that make one of what comes out
        drawn = mx.random.normal((inputs, rank)) * summed**-0.5
        pairs += [(f"{name}.a", drawn), (f"{name}.b", mx.zeros((rank, outputs)))]
    return {"pairs": tree_unflatten(pairs), "heads": decoder.heads(net.config, tokenizer)}


def layers(net: StepAudioNet) -> dict[str, tuple[int, int]]:
    """Name -> shape of the weight, of each layer that gets a pair: all matrices of the decoder."""
    found = {}
    for name, value in named_arrays(net.parameters()):
        if name.startswith(PARTS) and value.ndim == 2:
            found[name.removesuffix(".weight")] = cast(tuple[int, int], value.shape)
    return found


def pairs_of(params: dict) -> dict[str, tuple[mx.array, mx.array]]:
    """Name of a layer -> its `a` and `b`."""
    found = dict(cast(list[tuple[str, mx.array]], tree_flatten(params["pairs"])))
    return {name[:-2]: (a, found[f"{name[:-2]}.b"]) for name, a in found.items() if name.endswith(".a")}


class Added:
    """weights of a LoRA -> weights of the decoder by their published names.

    Parameters
    ----------
    net : StepAudioNet
        The model at the beginning; its own arrays are used as they are.
    dtype : of the decoder's weights.
    """

    def __init__(self, net: StepAudioNet, dtype: mx.Dtype):
        kept = {part: net[part].parameters() for part in decoder.TRAINED}
        self.kept = {name: value.astype(dtype) for name, value in named_arrays(kept)}

    def __call__(self, params: dict) -> dict:
        """The decoder's weights, as a tree."""
        found = dict(self.kept)
        for name, (a, b) in pairs_of(params).items():
            weight = found[f"{name}.weight"]
            change = a @ b if name in TABLES else (a @ b).T
            found[f"{name}.weight"] = weight + (SCALE * change).astype(weight.dtype)
        return cast(dict, tree_unflatten(list(found.items())))
