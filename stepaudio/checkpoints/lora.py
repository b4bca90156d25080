"""LoRA on disk: a folder with what was learned beside a model's weights (Hu et al. 2021).

Each layer that has one computes y = x W^T + scale (x A) B, with A of (inputs, rank) and B of (rank, outputs); a table
of embeddings takes rows of A by the token's id. Folders are written as mlx-lm writes them, which names A and B
`LAYER.lora_a` and `LAYER.lora_b`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import mlx.core as mx

from ..errors import WeightsError
from ..files import move_into_place, reason, staging_folder
from ..schema import in_float32
from .header import listed, printable

CONFIG = "adapter_config.json"
ADAPTERS = "adapters.safetensors"
A, B = ".lora_a", ".lora_b"  # what mlx-lm writes behind a layer's name
ASIDE = ".saving-lora-"
Pairs = Mapping[str, tuple[mx.array, mx.array]]


def write_lora(folder: Path, pairs: Pairs, scale: float, base: str | None = None) -> None:
    """Write a LoRA in mlx-lm's format, whole or not at all, in float16.

    Parameters
    ----------
    folder : Path
        Made if need be; other files in it are left alone.
    pairs : mapping of str to (mx.array, mx.array)
        Layer, as the published checkpoint names it without `.weight`, -> A (inputs, rank) and B (rank, outputs); of
        `model.embed_tokens` A is (vocabulary, rank). All of one rank.
    scale : float
        Factor of each product A B.
    base : str, optional
        The model that it was trained on, for people to read.

    Raises
    ------
    WeightsError
        No pairs, several ranks, arrays that are no pair, values or a scale beyond the range of float16 and float32, or
        a folder that cannot be written.
    """
    folder, rank = Path(folder), _rank_of(pairs)
    if not in_float32(scale):
        raise WeightsError(f"scale: expected a finite number of float32's range, found {scale!r}")
    halves = {layer: [x.astype(mx.float16) for x in pair] for layer, pair in pairs.items()}
    tensors = {layer + part: x for layer, pair in halves.items() for part, x in zip((A, B), pair, strict=True)}
    mx.eval(tensors)
    if beyond := [name for name, x in tensors.items() if not mx.isfinite(x).all().item()]:
        raise WeightsError(f"{listed(beyond)}: has values that float16 does not hold; nothing was written")
    config = {
        "fine_tune_type": "lora",
        "num_layers": -1,  # mlx-lm then looks into every layer
        "lora_parameters": {"rank": rank, "scale": float(scale), "dropout": 0.0, "keys": _keys(pairs)},
    }
    config |= {} if base is None else {"model": base}
    try:
        with staging_folder(folder, ASIDE) as aside:
            mx.save_safetensors(str(aside / ADAPTERS), tensors, metadata={"format": "mlx"})
            (aside / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
            move_into_place(aside, folder, [ADAPTERS, CONFIG], retire=[CONFIG])
    except (OSError, RuntimeError) as error:  # RuntimeError: how mlx reports a failed write
        raise WeightsError(f"{folder}: the LoRA could not be written ({reason(error)})") from None


def _rank_of(pairs: Pairs) -> int:
    """The rank that all pairs have."""
    if not pairs:
        raise WeightsError("a LoRA without a layer; expected a pair of matrices for one at least")
    for layer, (a, b) in pairs.items():
        if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0]:
            raise WeightsError(
                f"{printable(layer)}: expected A of (inputs, rank) and B of (rank, outputs), found {a.shape} and "
                f"{b.shape}"
            )
    ranks = {a.shape[1] for a, _ in pairs.values()}
    if len(ranks) > 1:
        raise WeightsError(f"expected one rank in all layers, which is what mlx-lm's format holds, found {ranks}")
    return ranks.pop()


def _keys(pairs: Pairs) -> list[str]:
    """The layers as mlx-lm's config names them: those of the decoder's layers by their place in one."""
    inner = {layer.split(".", 3)[3] if layer.startswith("model.layers.") else layer for layer in pairs}
    return sorted(inner)
