"""The two standard formats of a LoRA, PEFT's and mlx-lm's, as records: which pair of matrices belongs to which layer.

Headers and configs alone are read. Whatever in them would make another sum than y = x W^T + scale (x A) B is refused
with its name; so is a tensor that is no half of a pair.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import WeightsError
from ..reading import is_file, read_object
from ..schema import in_float32, shown
from .dtypes import HELD
from .header import TensorInfo, listed, printable, read_header
from .lora_folder import ADAPTERS, CONFIG, EXPECTED, PEFT_ADAPTERS

MERGE = "merge it where it was trained, and load the merged model"
PREFIXES = ("base_model.model.", "language_model.")
PEFT_NAME = re.compile(r"(.+)\.lora_(embedding_)?([AB])(?:\.default)?(?:\.weight)?")
MLX_NAME = re.compile(r"(.+)\.lora_([ab])")
COPY = re.compile(r"(.+?)(?:\.base_layer)?\.weight")
OF_DORA = re.compile(r".+\.(?:m|lora_magnitude_vector(?:\..+)?)")

# Keys of PEFT's config that change no sum, or that the tensors themselves show.
IDLE = frozenset({
    "auto_mapping", "base_model_name_or_path", "corda_config", "eva_config", "exclude_modules", "inference_mode",
    "init_lora_weights", "layers_pattern", "layers_to_transform", "loftq_config", "lora_dropout", "lora_ga_config",
    "megatron_core", "peft_type", "peft_version", "qalora_group_size", "revision", "target_modules", "task_type",
})  # fmt: skip
READ = frozenset({"r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern"})
PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")  # of A and B, which leave W as it is


@dataclass(frozen=True)
class StoredPair:
    """The two matrices of a layer as they are stored, and their factor.

    a, b : A (inputs, rank) and B (rank, outputs), or with `turned` each with its axes exchanged, as PEFT has them.
    table : whether it is of a table of embeddings; None where the format does not tell.
    """

    a: TensorInfo
    b: TensorInfo
    scale: float
    turned: bool
    table: bool | None = None

    @property
    def inputs(self) -> int:
        """Rows of A: what goes in, or the ids of a table."""
        return self.a.shape[self.turned]

    @property
    def rank(self) -> int:
        """Columns of A."""
        return self.a.shape[not self.turned]

    @property
    def outputs(self) -> int:
        """Columns of B."""
        return self.b.shape[not self.turned]


@dataclass(frozen=True)
class StoredLora:
    """What a folder holds: its format, layer -> pair, and copies of the model's own tensors by published name."""

    format: str
    pairs: dict[str, StoredPair]
    copies: dict[str, TensorInfo] = field(default_factory=dict)


def read_stored(folder: Path) -> StoredLora:
    """The LoRA in a folder, from its config and headers.

    Raises
    ------
    WeightsError
        Files are missing or damaged, the config asks for something else than a LoRA, or a tensor is no half of a pair.
    """
    file = folder / CONFIG
    said = read_object(file, WeightsError, EXPECTED)
    if "peft_type" in said or is_file(folder / PEFT_ADAPTERS, WeightsError):
        scale_of = _peft_scales(file, said)
        return _collected("PEFT", folder / PEFT_ADAPTERS, _peft_half, scale_of)
    scale = _mlx_scale(file, said)
    return _collected("mlx-lm", folder / ADAPTERS, _mlx_half, scale)


# ---- configs ----

ScaleOf = Callable[
    [str, int], float
]  # (layer, rank) -> factor; raises `WeightsError` for another rank than the config's


def _mlx_scale(file: Path, said: Mapping[str, Any]) -> ScaleOf:
    kind = said.get("fine_tune_type", "lora")
    if kind != "lora":
        raise WeightsError(
            f"{file}: fine_tune_type: only 'lora' is read, found {shown(kind)}; fuse it with mlx_lm.fuse, and put the "
            "decoder into a model with `stepaudio export step-audio`"
        )
    about = said.get("lora_parameters")
    if not isinstance(about, Mapping) or "rank" not in about or "scale" not in about:
        raise WeightsError(f"{file}: lora_parameters: expected rank and scale, found {shown(about)}; {EXPECTED}")
    rank, scale = _whole(about["rank"], f"{file}: rank"), _number(about["scale"], f"{file}: scale")

    def scale_of(layer: str, found: int) -> float:
        _require_rank(file, layer, rank, found)
        return scale

    return scale_of


def _peft_scales(file: Path, said: Mapping[str, Any]) -> ScaleOf:
    if said.get("peft_type") != "LORA":
        raise WeightsError(f"{file}: peft_type: only LORA is read, found {shown(said.get('peft_type'))}")
    if said.get("bias", "none") != "none":
        raise WeightsError(f"{file}: bias: only 'none' is read, found {shown(said['bias'])}; {MERGE}")
    start = said.get("init_lora_weights")
    if start not in PLAIN_STARTS:
        raise WeightsError(
            f"{file}: init_lora_weights {shown(start)} changes the model's own weights before training; save it as a "
            "plain LoRA (path_initial_model_for_weight_conversion of PEFT's save_pretrained)"
        )
    asked = {k: v for k, v in said.items() if k not in IDLE | READ | {"bias"} and v not in (None, False, [], {}, 0)}
    if asked:
        key = min(asked)
        raise WeightsError(f"{file}: {printable(key)}: is not computed here, found {shown(asked[key])}; {MERGE}")
    rank, alpha = _whole(said.get("r"), f"{file}: r"), _number(said.get("lora_alpha"), f"{file}: lora_alpha")
    ranks = {k: _whole(v, f"{file}: rank_pattern") for k, v in _patterns(file, said, "rank_pattern").items()}
    alphas = {k: _number(v, f"{file}: alpha_pattern") for k, v in _patterns(file, said, "alpha_pattern").items()}
    root = said.get("use_rslora") is True

    def scale_of(layer: str, found: int) -> float:
        _require_rank(file, layer, _matching(ranks, layer, rank), found)
        return _matching(alphas, layer, alpha) / (math.sqrt(found) if root else found)

    return scale_of


def _patterns(file: Path, said: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Pattern of a layer's name -> value, as PEFT writes them: regular expressions, matched at the end of the name."""
    patterns = said.get(key) or {}
    if not isinstance(patterns, Mapping):
        raise WeightsError(f"{file}: {key}: expected an object of layers, found {shown(patterns)}")
    for pattern in patterns:
        try:
            re.compile(pattern)
        except (re.error, RecursionError, OverflowError) as error:
            raise WeightsError(f"{file}: {key}: {pattern!r:.80} is no regular expression ({error!s:.80})") from None
    return dict(patterns)


def _matching(values: Mapping[str, Any], layer: str, default: Any) -> Any:
    """The value of the first pattern that a layer's name ends in."""
    return next((value for p, value in values.items() if re.fullmatch(rf"(.*\.)?({p})", layer)), default)


def _require_rank(file: Path, layer: str, expected: int, found: int) -> None:
    if found != expected:
        raise WeightsError(f"{file}: {printable(layer)}: the config says rank {expected}, its tensors have {found}")


def _whole(value: object, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise WeightsError(f"{what}: expected a whole number above 0, found {shown(value)}")
    return value


def _number(value: object, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not in_float32(value):
        raise WeightsError(f"{what}: expected a number of float32's range, found {shown(value)}")
    return float(value)


# ---- tensors ----

Half = tuple[str, str, bool | None]  # layer, "a" or "b", whether it is of a table


def _peft_half(name: str) -> Half | None:
    found = PEFT_NAME.fullmatch(name)
    return found and (found[1], found[3].lower(), found[2] is not None)


def _mlx_half(name: str) -> Half | None:
    found = MLX_NAME.fullmatch(name)
    return found and (found[1], found[2], None)


def _collected(form: str, file: Path, half: Callable[[str], Half | None], scale_of: ScaleOf) -> StoredLora:
    """Every tensor of a file at its place."""
    halves: dict[str, dict[str, TensorInfo]] = {}
    tables, copies, spare = {}, {}, []
    for name, info in read_header(file).items():
        found = half(_plain(name))
        if found is None:
            copy = COPY.fullmatch(_plain(name)) if form == "PEFT" else None
            if copy is None:
                spare.append(name)
            else:
                copies[f"{copy[1]}.weight"] = info
            continue
        layer, letter, table = found
        if letter in halves.setdefault(layer, {}) or tables.setdefault(layer, table) != table:
            raise WeightsError(f"{file}: {printable(layer)} has a half of its pair twice; {EXPECTED}")
        halves[layer][letter] = info
    if dora := [name for name in spare if OF_DORA.fullmatch(name)]:
        raise WeightsError(f"{file}: {listed(dora)}: is of DoRA, which is not computed here; {MERGE}")
    if spare:
        raise WeightsError(f"{file}: {len(spare)} tensors are of no LoRA: {listed(spare)}; {EXPECTED}")
    if not halves:
        raise WeightsError(f"{file}: holds no LoRA: no layer has a pair of matrices; {EXPECTED}")
    pairs = {n: _pair(file, n, there, form == "PEFT", tables[n], scale_of) for n, there in halves.items()}
    return StoredLora(form, pairs, copies)


def _pair(
    file: Path, layer: str, halves: Mapping[str, TensorInfo], turned: bool, table: bool | None, scale_of: ScaleOf
) -> StoredPair:
    what = f"{file}: {printable(layer)}"
    if len(halves) < 2:
        there = next(iter(halves.values()))
        raise WeightsError(f"{what}: has {printable(there.name)} and not the other half of the pair; {EXPECTED}")
    for info in halves.values():
        if info.dtype not in HELD or len(info.shape) != 2:
            raise WeightsError(
                f"{file}: {printable(info.name)}: expected a matrix of {', '.join(HELD)}, found {info.dtype} of shape "
                f"{info.shape}"
            )
    found = StoredPair(halves["a"], halves["b"], 1.0, turned, table)
    if found.rank != found.b.shape[turned] or not found.rank:
        raise WeightsError(
            f"{what}: its two matrices, {found.a.shape} and {found.b.shape}, have no rank in common; {EXPECTED}"
        )
    return replace(found, scale=scale_of(layer, found.rank))


def _plain(name: str) -> str:
    """A name without what the libraries put in front of the published one."""
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name
