"""Several matrices that multiply the same input as one product, while each stays a layer with its published name.

At one position a product takes about as long to start as to compute. So queries, keys and values come out of one
product, and gate and up of the MLP out of another. The joined matrix is what is held in memory; the weights of the
layers it is made of are views of its rows. Whoever replaces them or writes into them gets other memory, and from the
next run on that layer is multiplied by itself again: the layers are what counts, always.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..backend.device import on_cuda
from ..backend.memory import free_buffers
from .quantization import PackedLinear, bits_of

FEW = 8  # rows up to which products are joined: with more, a product takes longer than its start
JOINABLE = (nn.Linear, nn.QuantizedLinear, PackedLinear)
Key = tuple[int, str]  # number of a layer of the decoder, and a block of it


class Joined:
    """Linear layers of one kind as one, and what they were when they were joined."""

    def __init__(self, parts: Sequence[nn.Module]):
        self._whole, self._seen = copy.copy(parts[0]), [dict[str, mx.array]() for _ in parts]
        rows = [part["weight"].shape[0] for part in parts]
        self._ends = list(accumulate(rows))
        for name in _arrays(parts[0]):
            self._whole[name] = mx.concatenate([part[name] for part in parts])
            for part, seen, end, n in zip(parts, self._seen, self._ends, rows, strict=True):
                part[name] = seen[name] = self._whole[name][end - n : end]
        mx.eval(self._whole.parameters(), self._seen)  # what was joined can be freed

    def __call__(self, x: mx.array) -> list[mx.array]:
        """(…, D) -> what each layer makes of it."""
        return cast(list[mx.array], mx.split(self._whole(x), self._ends[:-1], axis=-1))

    def has(self, parts: Sequence[nn.Module]) -> bool:
        """Whether these are the layers, and their arrays the ones that were joined."""
        return all(
            type(part) is type(self._whole) and _arrays(part) == list(seen) and all(part[k] is seen[k] for k in seen)
            for part, seen in zip(parts, self._seen, strict=True)
        )

    def beside(self) -> list[tuple[mx.array, mx.array]]:
        """Each array of the layers, and the rows that it was a view of."""
        spans = zip(self._seen, [0, *self._ends], self._ends, strict=False)
        return [(seen[name], self._whole[name][start:end]) for seen, start, end in spans for name in seen]


class Products:
    """The joined layers of a decoder, by layer and block."""

    def __init__(self, found: Mapping[Key, Joined] | None = None):
        self._found = dict(found or {})

    def get(self, layer: int, block: str) -> Joined | None:
        """What is joined there, if anything is."""
        return self._found.get((layer, block))

    @classmethod
    def of(cls, blocks: Mapping[Key, Sequence[nn.Module]]) -> Products:
        """Join the layers of each block that are of one kind; what they hold is laid elsewhere in memory."""
        found = {}
        for key, parts in blocks.items():
            if _alike(parts):
                found[key] = Joined(parts)
                free_buffers()  # those of the layers as they were, or all of them would add up
        return cls(found)

    def that_hold(self, blocks: Mapping[Key, Sequence[nn.Module]]) -> Products:
        """Those whose layers are still what they were when they were joined."""
        there = {key: one for key, one in self._found.items() if key in blocks and one.has(blocks[key])}
        same = _untouched(list(there.values()))
        return Products({key: one for (key, one), kept in zip(there.items(), same, strict=True) if kept})


def _alike(parts: Sequence[nn.Module]) -> bool:
    first = parts[0]
    return type(first) in JOINABLE and all(
        type(part) is type(first)
        and bits_of(part) == bits_of(first)
        and [(name, part[name].dtype) for name in _arrays(part)] == [(n, first[n].dtype) for n in _arrays(first)]
        for part in parts
    )


def _untouched(found: Sequence[Joined]) -> list[bool]:
    """Of each, whether nothing was written into its layers since.

    Arrays of MLX can be written into, and do not tell; but what is written goes into other memory. On a GPU with memory
    of its own there are no addresses to be seen, and numbers are compared, which takes less time than a step.
    """
    pairs = [one.beside() for one in found]
    if on_cuda():
        same = [mx.all(mx.stack([mx.array_equal(a, b) for a, b in some])) for some in pairs]
        return cast(list[bool], np.array(mx.stack(same)).tolist()) if same else []
    mx.eval(pairs)
    return [all(_address(a) == _address(b) for a, b in some) for some in pairs]


def _arrays(layer: nn.Module) -> list[str]:
    return sorted(name for name, value in layer.items() if isinstance(value, mx.array))


def _address(array: mx.array) -> int | None:
    """Where its numbers begin; None if they do not lie one behind another, as views of rows do."""
    view = memoryview(cast(bytes, array))
    return np.asarray(view.cast("B")).__array_interface__["data"][0] if view.c_contiguous else None
