"""Published tensors in memory, turned into what a net holds: weight norm merged, axes of kernels in MLX's order."""

from __future__ import annotations

from collections.abc import Mapping

import mlx.core as mx
import numpy as np

from ..errors import WeightsError
from ..models.token2wav.campplus import COUNTER
from .layout import Config, axes_of, expected_layout, to_net
from .match import match
from .weight_norm import DIRECTION, MAGNITUDE, merge_weight_norm


def net_arrays(tensors: Mapping[str, np.ndarray], config: Config) -> list[tuple[str, mx.array]]:
    """Turn published tensors into a net's, ready for `Module.load_weights`.

    Parameters
    ----------
    tensors : mapping of str to array
        Exactly the names and shapes of `expected_layout(config)`, or of the merged one. Counters of training batches
        may be there or not; no net holds them.
    config : config of a net
        Its sizes.

    Raises
    ------
    WeightsError
        A tensor is missing, unexpected or mis-shaped, by name; or a weight norm has a direction of length zero.
    """
    tensors = {published_name(name): array for name, array in tensors.items() if not name.endswith(COUNTER)}
    merged = not any(name.endswith(DIRECTION) for name in tensors)
    shapes = {name: np.shape(array) for name, array in tensors.items()}
    expected = {name: shape for name, shape in expected_layout(config, merged).items() if not name.endswith(COUNTER)}
    faults = match(shapes, expected).faults()
    if faults:
        raise WeightsError(f"{type(config).__name__.removesuffix('Config').lower()}: {faults}")
    found: dict[str, np.ndarray] = {}
    for name, array in tensors.items():
        if name.endswith(DIRECTION):
            stem = name.removesuffix(DIRECTION)
            found[f"{stem}.weight"] = merge_weight_norm(tensors[stem + MAGNITUDE], array)
        elif not name.endswith(MAGNITUDE):
            found[name] = np.asarray(array)
    return [(name, mx.array(to_net(array, axes_of(type(config), name)))) for name, array in found.items()]


def published_name(name: str) -> str:
    """A name of `hift.pt` without "generator.", which the reference drops wherever it stands; others as they are."""
    return name.replace("generator.", "")
