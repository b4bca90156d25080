"""Tensor parallelism: every process of a group holds a share of the decoder's heads and of its MLPs.

Each layer of the decoder is divided as in Shoeybi et al. 2019 (Megatron-LM): the first matrices of attention and MLP by
their outputs, the last ones by their inputs, so that a layer needs two sums over the group. Norms, embeddings, head,
encoder and adapter are whole in every process, which all compute the same with them.
"""

from __future__ import annotations

import copy
from typing import cast

import mlx.core as mx
import mlx.nn as nn

from ..errors import ConfigError
from .decoder import Decoder, DecoderLayer, TextConfig
from .parameters import named_arrays
from .side_branch import branched_layers
from .speech_lm import StepAudioNet

FIRST = {"self_attn": ("q_proj", "k_proj", "v_proj"), "mlp": ("gate_proj", "up_proj")}
LAST = {"self_attn": "o_proj", "mlp": "down_proj"}


class SummedLinear(nn.Module):
    """A linear layer of which each process has some inputs; what comes out is summed over the group."""

    def __init__(self, part: nn.Module, group: mx.distributed.Group):
        super().__init__()
        self.part, self._group = part, group

    def __call__(self, x: mx.array) -> mx.array:
        """(..., inputs of this process) -> (..., outputs), the same in every process."""
        return mx.distributed.all_sum(self.part(x), group=self._group)


def sharded(net: StepAudioNet, group: mx.distributed.Group | None = None) -> StepAudioNet:
    """A net that computes what `net` does, together with the other processes of a group; `net` stays as it is.

    All of them have to run the same calls in the same order. Logits differ from those of one process as sums in another
    order do.

    Parameters
    ----------
    net : StepAudioNet
        Of the same weights in every process; may be quantised.
    group : mx.distributed.Group, optional
        By default all processes that `mlx.launch` started.

    Raises
    ------
    ConfigError
        Heads, heads of keys and values, or channels of the MLP do not divide by the number of processes; or a quantised
        layer has a branch beside it.
    """
    group = mx.distributed.init() if group is None else group
    if group.size() > 1 and (branched := branched_layers(net)):
        raise ConfigError(
            f"tensor parallelism: {branched[0]} is quantised and has a LoRA beside it, which is not divided; load a "
            "model of floats, which takes it in"
        )
    _require_division(net.config.text_config, group.size())
    if group.size() == 1:
        return net
    made, decoder = copy.copy(net), copy.copy(cast(Decoder, net.model))
    decoder.layers = [_shard_layer(layer, group) for layer in decoder.layers]
    made.model = decoder
    mx.eval(decoder.parameters())  # the whole matrices can be freed
    return made


def _require_division(text: TextConfig, ranks: int) -> None:
    for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
        if (value := getattr(text, name)) % ranks:
            raise ConfigError(
                f"tensor parallelism: {name} {value} does not divide by {ranks} processes; start a number that divides "
                "heads, heads of keys and values, and channels of the MLP"
            )


def _shard_layer(layer: DecoderLayer, group: mx.distributed.Group) -> DecoderLayer:
    made = copy.copy(layer)
    for block in FIRST:
        own = copy.copy(getattr(layer, block))
        for name in FIRST[block]:
            setattr(own, name, _share(own[name], group, axis=0))
        name = LAST[block]
        setattr(own, name, SummedLinear(_share(own[name], group, axis=-1), group))
        setattr(made, block, own)
    made.self_attn.keep_share(group.size())
    return made


def _share(linear: nn.Module, group: mx.distributed.Group, axis: int) -> nn.Module:
    """Its rows (axis 0) or columns (axis -1) for this process, quantised or not."""
    made, ranks, rank = copy.copy(linear), group.size(), group.rank()
    for name, array in named_arrays(linear.parameters()):
        if array.shape[axis] % ranks:
            raise ConfigError(
                f"tensor parallelism: {name} {tuple(array.shape)} of a quantised layer does not divide by {ranks} "
                "processes in whole groups of weights; use smaller groups, or fewer processes"
            )
        size = array.shape[axis] // ranks
        own = slice(rank * size, (rank + 1) * size)
        made[name] = mx.contiguous(array[own] if axis == 0 else array[:, own])
    return made
