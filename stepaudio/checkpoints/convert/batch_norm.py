"""Batch norms that an exporter folded into the convolution before them, and how they come back.

PyTorch's ONNX exporter puts most of CAM++'s batch norms into kernels, which then have a bias. The net keeps norms of
its own, so a folded one becomes a norm that only adds that bias.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from ...models.token2wav.campplus import COUNTER, HEAD_BLOCKS, HEAD_LAYERS, SpeakerConfig
from ..layout import Shape

NORM_KINDS = ("weight", "bias", "running_mean", "running_var")
UNSCALED = "xvector.dense.nonlinear.batchnorm"  # the one batch norm without scale and shift


def foldable(config: SpeakerConfig) -> dict[str, str]:
    """Convolution -> the batch norm right behind it: pairs that an exporter may fold into one kernel with a bias."""
    pairs = {"head.conv1": "head.bn1", "head.conv2": "head.bn2"}
    for i in range(1, HEAD_LAYERS + 1):
        for j in range(HEAD_BLOCKS):
            block = f"head.layer{i}.{j}"
            pairs |= {f"{block}.conv{k}": f"{block}.bn{k}" for k in (1, 2)}
            pairs |= {f"{block}.shortcut.0": f"{block}.shortcut.1"} if j == 0 else {}
    pairs["xvector.tdnn.linear"] = "xvector.tdnn.nonlinear.batchnorm"
    for i, (layers, _, _) in enumerate(config.blocks, 1):
        for j in range(1, layers + 1):
            pairs[f"xvector.block{i}.tdnnd{j}.linear1"] = f"xvector.block{i}.tdnnd{j}.nonlinear2.batchnorm"
    pairs[f"xvector.transit{len(config.blocks)}.linear"] = "xvector.out_nonlinear.batchnorm"
    return pairs | {"xvector.dense.linear": "xvector.dense.nonlinear.batchnorm"}


def folded(config: SpeakerConfig, names: Mapping[str, object]) -> dict[str, str]:
    """Which pairs of `foldable` are folded in a graph that has tensors of these names.

    Those without any tensor of the norm, if at least one of their convolutions has the bias: in such a graph a
    convolution that lacks bias and norm lacks the bias.
    """
    bare = {
        conv: norm
        for conv, norm in foldable(config).items()
        if not any(f"{norm}.{kind}" in names for kind in NORM_KINDS)
    }
    return bare if any(f"{conv}.bias" in names for conv in bare) else {}


def as_exported(layout: Mapping[str, Shape], folds: Mapping[str, str]) -> dict[str, Shape]:
    """The published layout as a graph has it: no counters, and a bias in place of each folded norm."""
    gone = tuple(f"{norm}." for norm in folds.values())
    found = {n: s for n, s in layout.items() if not n.endswith(COUNTER) and not n.startswith(gone or ("\0",))}
    return found | {f"{conv}.bias": layout[f"{conv}.weight"][:1] for conv in folds}


def unfolded(norm: str, bias: np.ndarray, config: SpeakerConfig) -> Iterator[tuple[str, np.ndarray]]:
    """(name, values) of the batch norm that only adds `bias`: what is left of one that was folded."""
    ones, zeros = np.ones_like(bias), np.zeros_like(bias)
    values = {"weight": ones, "bias": bias, "running_mean": zeros, "running_var": ones - np.float32(config.bn_eps)}
    if norm == UNSCALED:
        values = {"running_mean": -bias, "running_var": values["running_var"]}
    for kind in NORM_KINDS:
        if kind in values:
            yield f"{norm}.{kind}", values[kind]
