"""LoRA on disk: a folder with what was learned beside a model's weights (Hu et al. 2021).

Each layer that has one computes y = x W^T + scale (x A) B, with A of (inputs, rank) and B of (rank, outputs); a table
of embeddings takes rows of A by the token's id. Read are the formats of PEFT and of mlx-lm, written is mlx-lm's.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from ..errors import WeightsError
from ..files import move_into_place, reason, staging_folder
from ..models.speech_lm import StepAudioConfig
from ..schema import in_float32
from .header import TensorInfo, listed, printable
from .layout import component_of
from .lora_folder import ADAPTERS, CONFIG, lora_folder
from .lora_formats import StoredLora, StoredPair, read_stored
from .low_rank import Pair
from .packed import WEIGHT, PackedTensor, quantisable
from .tensors import lazy_arrays

A, B = ".lora_a", ".lora_b"  # what mlx-lm writes behind a layer's name
ASIDE = ".saving-lora-"
TABLES = ("model.embed_tokens", "encoder.positional_embedding")  # of embeddings; all other layers are linear
Pairs = Mapping[str, tuple[mx.array, mx.array]]


@dataclass(frozen=True)
class LoraReport:
    """What is known of a LoRA that is on: its folder, its format, and what it changes.

    ranks, scales : those that its layers have, ascending. values : numbers in its matrices.
    components : component of the model -> layers that have a pair.
    beside : layers of fewer bits, whose pair is computed beside them; all others have it in their weights.
    """

    path: str
    format: str
    layers: int
    ranks: tuple[int, ...]
    scales: tuple[float, ...]
    values: int
    components: dict[str, int]
    beside: int

    def __str__(self) -> str:
        ranks = ", ".join(map(str, self.ranks))
        held = f", {self.beside} of them beside quantised weights" if self.beside else ""
        of = ", ".join(f"{name} {n}" for name, n in self.components.items())
        return f"{Path(self.path).name} ({self.format}, rank {ranks}, {self.layers} layers: {of}{held})"


class Lora:
    """A LoRA that fits a model: every tensor of it belongs to a layer, and none is over.

    Parameters
    ----------
    folder : Path
    config : StepAudioConfig
        Sizes of the model.

    Raises
    ------
    WeightsError
        As `lora_formats.read_stored`; or a pair that belongs to no layer, or to one of another shape.
    """

    def __init__(self, folder: Path, config: StepAudioConfig):
        self.folder = folder
        self._stored: StoredLora = read_stored(folder)
        layers = quantisable(config)
        if unknown := [name for name in self._stored.pairs if name not in layers]:
            raise WeightsError(
                f"{folder}: {len(unknown)} of {len(self._stored.pairs)} layers of the LoRA are not in this model: "
                f"{listed(unknown)}; expected names of its linear layers and of {TABLES[0]}, such as "
                f"{_example(layers)}. Was it trained on another model?"
            )
        if unknown := [name for name in self._stored.copies if name.removesuffix(WEIGHT) not in layers]:
            raise WeightsError(f"{folder}: {listed(unknown)}: is of no LoRA and of no layer of this model")
        for name, pair in self._stored.pairs.items():
            _require_fit(folder, name, pair, layers[name])

    @classmethod
    def of(cls, named: str | Path, model: Path, config: StepAudioConfig) -> Lora:
        """The LoRA that `lora_folder` finds for a model in this folder."""
        return cls(lora_folder(named, model), config)

    def report(self, records: Mapping[str, TensorInfo]) -> LoraReport:
        """What it does to a checkpoint with these records, by published name."""
        pairs = self._stored.pairs
        return LoraReport(
            path=str(self.folder),
            format=self._stored.format,
            layers=len(pairs),
            ranks=tuple(sorted({pair.rank for pair in pairs.values()})),
            scales=tuple(sorted({pair.scale for pair in pairs.values()})),
            values=sum(pair.rank * (pair.inputs + pair.outputs) for pair in pairs.values()),
            components=dict(Counter(component_of(name) for name in pairs)),
            beside=sum(isinstance(records.get(name + WEIGHT), PackedTensor) for name in pairs),
        )

    def require_base(self, records: Mapping[str, TensorInfo]) -> None:
        """Raise `WeightsError` unless a checkpoint has the weights that this belongs to.

        A layer that has a pair must be there; and a copy of a tensor of the model, which PEFT saves with a LoRA of the
        embeddings or the head, must be the checkpoint's own up to rounding.
        """
        absent = [
            name for name in (*(n + WEIGHT for n in self._stored.pairs), *self._stored.copies) if name not in records
        ]
        if absent:
            raise WeightsError(f"{self.folder}: changes {listed(absent)}, which the checkpoint lacks; load a whole one")
        for name, copy in self._stored.copies.items():
            own = records[name]
            if own.shape != copy.shape or not Pair(own, copy).measure().one_step:
                raise WeightsError(
                    f"{copy.file}: {printable(copy.name)} is not the model's own {name}, so it was trained whole, or "
                    "on other weights; merge it where it was trained, and load the merged model"
                )

    def merged(self, name: str, weight: mx.array) -> mx.array:
        """A weight of the model by its published name, with its pair in it: float32 if it has one, else as it is."""
        layer = name.removesuffix(WEIGHT)
        if layer not in self._stored.pairs or name == layer:
            return weight
        a, b = self.arrays(layer)
        change = a @ b
        return weight.astype(mx.float32) + (change if layer in TABLES else change.T)

    def arrays(self, layer: str) -> tuple[mx.array, mx.array]:
        """A (inputs, rank) and B (rank, outputs) of a layer, float32, the scale in B."""
        pair = self._stored.pairs[layer]
        a, b = (_read(info) for info in (pair.a, pair.b))
        return (a.T, b.T * pair.scale) if pair.turned else (a, b * pair.scale)

    def beside(self, records: Mapping[str, TensorInfo]) -> list[str]:
        """Layers of fewer bits in these records that have a pair."""
        return [name for name in self._stored.pairs if isinstance(records[name + WEIGHT], PackedTensor)]


def _example(layers: Mapping[str, object]) -> str:
    return next((name for name in layers if name.startswith("model.layers.")), "lm_head")


def _require_fit(folder: Path, name: str, pair: StoredPair, matrix: tuple[int, int]) -> None:
    rows, width = matrix
    is_table = name in TABLES
    expected = (rows, width) if is_table else (width, rows)
    if pair.table is not None and pair.table != is_table:
        kinds = ("a linear layer", "a table of embeddings")
        raise WeightsError(
            f"{folder}: {name} is {kinds[is_table]}, the pair that the LoRA has for it is of {kinds[pair.table]}"
        )
    if (pair.inputs, pair.outputs) != expected:
        what = "ids and channels" if is_table else "inputs and outputs"
        raise WeightsError(
            f"{folder}: {name} has {expected[0]} {what.split(' and ')[0]} and {expected[1]} {what.split(' and ')[1]}, "
            f"its pair in the LoRA {pair.inputs} and {pair.outputs} (shapes {pair.a.shape} and {pair.b.shape}). Was it "
            "trained on another model?"
        )


def _read(info: TensorInfo) -> mx.array:
    """The values, float32."""
    try:
        array = lazy_arrays(info.file)[info.name].astype(mx.float32)
        mx.eval(array)
    except (OSError, RuntimeError, ValueError) as error:
        raise WeightsError(f"{info.file}: cannot be read ({error}); write or download it again") from None
    return array


# ---- writing ----


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
