"""Parameters of a net as a flat list: MLX's own `tree_flatten`, with the one type that a tree of arrays can give."""

from __future__ import annotations

from typing import Any, cast

import mlx.core as mx
from mlx.utils import tree_flatten


def named_arrays(tree: Any) -> list[tuple[str, mx.array]]:
    """(dotted name, array) of every leaf of a tree of dicts and lists, in the tree's own order."""
    return cast(list[tuple[str, mx.array]], tree_flatten(tree))
