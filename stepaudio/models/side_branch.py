"""Layers of fewer bits with a branch of low rank beside them, y = x W^T + (x A) B, as LoRA has it (Hu et al. 2021).

A matrix of floats takes A B into itself and is as fast as before. A quantised one cannot: its sum with A B would have
to be quantised again, which is another matrix. So the branch is computed beside it.
"""

from __future__ import annotations

from collections.abc import Mapping

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map_with_path

from ..errors import WeightsError
from .quantization import PackedLinear

BRANCH = ("branch_a", "branch_b")
Pair = tuple[mx.array, mx.array]


class BranchedLinear(PackedLinear):
    """A quantised linear layer and its branch: A (inputs, rank), B (rank, outputs), the scale in B."""

    def __init__(self, layer: PackedLinear, a: mx.array, b: mx.array):
        nn.Module.__init__(self)
        _take_over(self, layer)
        self.branch_a, self.branch_b = a, b

    def __call__(self, x: mx.array) -> mx.array:
        """(…, inputs) -> (…, outputs)."""
        y = super().__call__(x)
        return y + ((x @ self["branch_a"]) @ self["branch_b"]).astype(y.dtype)


class BranchedEmbedding(nn.QuantizedEmbedding):
    """A quantised table of embeddings and its branch: A (rows, rank), B (rank, channels), the scale in B."""

    def __init__(self, table: nn.QuantizedEmbedding, a: mx.array, b: mx.array):
        nn.Module.__init__(self)
        _take_over(self, table)
        self.num_embeddings, self.dims = table.num_embeddings, table.dims
        self.branch_a, self.branch_b = a, b

    def __call__(self, x: mx.array) -> mx.array:
        """Ids (…) -> (…, channels)."""
        y = super().__call__(x)
        return y + (self["branch_a"][x] @ self["branch_b"]).astype(y.dtype)


def _take_over(made, layer) -> None:
    made.group_size, made.bits, made.mode = layer.group_size, layer.bits, layer.mode
    made.biases = None  # some modes have none
    for name, array in layer.items():
        made[name] = array


def add_branches(net: nn.Module, pairs: Mapping[str, Pair]) -> None:
    """Put a branch beside each of these quantised layers, which otherwise stay what they are.

    Parameters
    ----------
    net : nn.Module
        Changed in place.
    pairs : mapping of str to (mx.array, mx.array)
        Path of a `PackedLinear` or `nn.QuantizedEmbedding` -> A and B as the classes here have them.

    Raises
    ------
    WeightsError
        A layer that is none of these.
    """

    def branched(path: str, module: nn.Module) -> nn.Module:
        if path not in pairs:
            return module
        a, b = pairs[path]
        if type(module) is PackedLinear:
            return BranchedLinear(module, a, b)
        if type(module) is nn.QuantizedEmbedding:
            return BranchedEmbedding(module, a, b)
        raise WeightsError(f"{path}: expected a quantised layer without a branch, found {type(module).__name__}")

    net.update_modules(tree_map_with_path(branched, net.leaf_modules(), is_leaf=nn.Module.is_module))


def branched_layers(net: nn.Module) -> list[str]:
    """Paths of the layers that have a branch."""
    return [path for path, m in net.named_modules() if isinstance(m, (BranchedLinear, BranchedEmbedding))]
