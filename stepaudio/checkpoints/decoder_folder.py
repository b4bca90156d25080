"""The decoder as a folder of its own, in the layout of mlx-lm's Qwen2; and such a folder put into a model again.

Names and numbers of the decoder are alike on both sides, so tensors are copied byte by byte, those of fewer bits too.
What is stored in eight bits with scales (`int8`) is written as the float32 values that it means; and where a model
stores several types of floats all are written as float32, since mlx-lm would compute in each of them, and here a model
computes in one. Which layers have fewer bits follows mlx-lm's rule for its folders: those that have scales.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from math import prod
from pathlib import Path

import numpy as np

from .. import __version__
from ..errors import ConfigError, TokenizerError, WeightsError
from ..files import reason, staging_folder
from ..models.decoder import TextConfig
from ..models.quantization import Bits, Quantization
from ..models.speech_lm import CONFIG_FILE, FLAT_FILE, StepAudioConfig
from ..reading import is_file, is_folder, read_object
from ..text.tokenizer import Tokenizer
from .capabilities import FILE as CAPABILITIES
from .capabilities import Capabilities
from .dtypes import HELD, SCALED, as_values, numpy_dtype
from .header import INDEX_FILE, TensorInfo, listed, read_checkpoint
from .int8 import SCALE, ScaledTensor
from .joined import JoinedTensor
from .layout import Shape, expected_layout
from .packed import (
    BIASES,
    KEY,
    OTHER_KEY,
    SCALES,
    WEIGHT,
    PackedTensor,
    joined,
    packed_width,
    quantisable,
    quantization_of,
    read_tensors,
)
from .planned_folder import begin, files_of, finish, nbytes_of
from .quantize_plan import SHARD_BYTES, beside_weights, is_listed, to_be_stated
from .report import WeightReport, compare
from .tensor_file import Entry, TensorFile, copy_stored, index_of, split_into_files

MANIFEST = "exported.json"
ASIDE = ".exporting-"
FORMAT = 1
PARTS = ("model.", "lm_head.")  # how names of the decoder begin
QWEN2 = "qwen2"
BLOCK = 1 << 23  # values widened at a time
SIZES = (
    "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "num_hidden_layers", "vocab_size",
    "rms_norm_eps", "rope_theta",
)  # fmt: skip
OURS = (CAPABILITIES, "words.txt")  # files that mlx-lm has no use for


@dataclass(frozen=True)
class Export:
    """A folder to be written, known before a tensor is read: what is copied, what is written, and notes on it."""

    source: Path
    config: dict
    records: Mapping[str, TensorInfo]
    copied: tuple[str, ...]
    decoder: Path | None
    notes: tuple[str, ...]
    widened: bool  # all floats as float32
    capabilities: Capabilities | None = None  # to be stated, where they are known by the name of the folder alone

    @property
    def shards(self) -> dict[str, dict[str, Entry]]:
        """File name -> its tensors."""
        return split_into_files({n: self.entries_of(n, info) for n, info in self.records.items()}, SHARD_BYTES)

    def entries_of(self, name: str, info: TensorInfo) -> dict[str, Entry]:
        """The tensors that a record is written as."""
        return {part: Entry(self.kind_of(kind), shape) for part, kind, shape, _ in self.parts_of(name, info)}

    def kind_of(self, kind: str) -> str:
        """The type in which one that is stored so is written."""
        return "F32" if self.widened and kind in (*HELD, SCALED) else kind

    def parts_of(self, name: str, info: TensorInfo) -> list[tuple[str, str, Shape, TensorInfo]]:
        """Name, stored type, shape and record of each tensor that a record is written as."""
        if isinstance(info, PackedTensor):
            layer, width = name.removesuffix(WEIGHT), packed_width(info.shape[1], info.bits.bits)
            more = [(layer + s, part) for s, part in ((SCALES, info.scales), (BIASES, info.biases)) if part is not None]
            return [(name, "U32", (info.shape[0], width), info), *((n, i.dtype, i.shape, i) for n, i in more)]
        if isinstance(info, ScaledTensor) and not self.widened:
            scale = info.scale
            return [(name, "I8", info.shape, info), (name + SCALE, scale.dtype, scale.shape, scale)]
        return [(name, info.dtype, info.shape, info)]

    @property
    def files(self) -> tuple[str, ...]:
        """Names of all files that will be written, the config last."""
        return files_of(self, MANIFEST)

    @property
    def nbytes(self) -> int:
        """Bytes of all files, nearly."""
        return nbytes_of(self)


def plan_decoder(source: str | Path, float32: bool = False) -> Export:
    """Work out the folder for mlx-lm: the decoder and head of a model, and its tokenizer.

    Parameters
    ----------
    source : str or Path
        A model's folder.
    float32 : bool
        Write all floats as float32, in which mlx-lm then computes; else as they are stored, unless their types differ.

    Raises
    ------
    ConfigError, WeightsError
        A folder that is no model, is not whole, or has values of a type that mlx-lm's Qwen2 does not hold.
    """
    source = Path(source)
    config = StepAudioConfig.from_file(source)
    records = _decoder_of(read_tensors(source))
    _require_whole(source, records, config)
    layers = {name: size for name, size in quantisable(config).items() if _is_decoder(name)}
    said = _qwen2(config.text_config, source)
    if chosen := _bits(records):
        written = quantization_of(chosen, layers).to_dict()
        said |= {KEY: written, OTHER_KEY: written}
    copied, _ = beside_weights(source)
    copied = tuple(name for name in copied if "/" not in name and name not in OURS)
    plan = Export(source, said, records, copied, None, (), widened=True)
    kinds = {kind for name, info in records.items() for _, kind, _, _ in plan.parts_of(name, info)} & {*HELD, SCALED}
    return replace(plan, widened=float32 or len(kinds) > 1 or SCALED in kinds)


def plan_return(source: str | Path, decoder: str | Path) -> Export:
    """Work out a model whose decoder and head come from a folder of mlx-lm, and all else from `source`.

    Parameters
    ----------
    source : str or Path
        A model's folder.
    decoder : str or Path
        What mlx-lm wrote of the decoder: fused with its adapters, quantised, or both.

    Raises
    ------
    ConfigError
        A config that is none of mlx-lm's Qwen2, has other sizes, or says something that is not computed here.
    WeightsError
        Tensors are missing, mis-shaped, or too many, such as adapters that are not fused.
    """
    source, decoder = Path(source), Path(decoder)
    config = StepAudioConfig.from_file(source)
    said, text = _read_qwen2(decoder, config)
    stored = read_checkpoint(decoder)
    layers = quantisable(config)
    inner = {name: size for name, size in layers.items() if _is_decoder(name)}
    quantised = said.get(KEY)
    if quantised is not None:
        found = Quantization.from_dict(quantised, f"{decoder / CONFIG_FILE}.{KEY}")
        whole = {name: None for name in inner if name + SCALES not in stored}
        found = replace(found, layers={name: bits for name, bits in found.layers.items() if name in inner} | whole)
        stored = joined(decoder, stored, found, inner)
    elif packed := [name for name in stored if name.endswith(SCALES)]:
        raise WeightsError(
            f"{decoder}: {listed(packed)} are of quantised layers, and no {KEY} in {CONFIG_FILE} says with how many "
            "bits; bring the config that was written with it"
        )
    spare = [name for name in stored if not _is_decoder(name) or name not in expected_layout(config)]
    if spare:
        raise WeightsError(
            f"{decoder}: has {len(spare)} tensors that are none of the decoder's ({listed(spare)}); adapters have to "
            "be fused first (mlx_lm.fuse)"
        )
    _require_whole(decoder, stored, config)
    own = read_tensors(source)
    records = {name: info for name, info in own.items() if not _is_decoder(name)} | stored
    unfit = compare(source, records, expected_layout(config))
    _refuse(source, unfit)
    file = source / (CONFIG_FILE if is_file(source / CONFIG_FILE, ConfigError) else FLAT_FILE)
    raw = read_object(file, ConfigError, "expected the config of a model")
    raw = {key: value for key, value in raw.items() if key not in (KEY, OTHER_KEY)}
    if chosen := _bits(records):
        written = quantization_of(chosen, layers).to_dict()
        raw |= {KEY: written, OTHER_KEY: written}
    copied, notes = beside_weights(source)
    ordered = {name: records[name] for name in expected_layout(config)}
    if text.end_ids and text.end_ids != _end_ids(source, config.text_config):
        notes = (*notes, f"end marks stay those of {source.name}; the decoder's folder has {sorted(text.end_ids)}")
    return Export(source, raw, ordered, copied, decoder, notes, False, to_be_stated(source, copied))


def write_export(plan: Export, out: Path) -> dict:
    """Write the folder, whole or not at all; memory does not grow with the model.

    Returns
    -------
    dict
        The manifest, `exported.json` in the folder.

    Raises
    ------
    WeightsError
        Too little room, or a folder or file that cannot be read or written.
    """
    manifest = _manifest(plan)
    try:
        with staging_folder(out, ASIDE) as aside:
            begin(plan, aside, out)
            for file, entries in plan.shards.items():
                with TensorFile(aside / file, entries, {"format": "mlx"}) as stream:
                    for name, info in plan.records.items():
                        if name in entries:
                            _write(stream, name, info, plan)
            texts: dict[str, object] = {CONFIG_FILE: plan.config, MANIFEST: manifest}
            if plan.capabilities is not None:
                texts[CAPABILITIES] = plan.capabilities.to_dict()
            if len(plan.shards) > 1:
                texts[INDEX_FILE] = index_of(plan.shards)
            for name, content in texts.items():
                (aside / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
            finish(plan, aside, out)
    except (OSError, RuntimeError) as error:
        raise WeightsError(f"{out}: the folder could not be written ({reason(error)})") from None
    return manifest


def is_exported(path: Path) -> bool:
    """Whether a file was written by `write_export`: the manifest of its folder, or of the one above, names it."""
    return is_listed(path, MANIFEST)


# ---- what is read and written ----


def _is_decoder(name: str) -> bool:
    return f"{name}.".startswith(PARTS)


def _decoder_of(records: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    return {name: info for name, info in records.items() if _is_decoder(name)}


def _bits(records: Mapping[str, TensorInfo]) -> dict[str, Bits]:
    """Layer -> bits of those records that have fewer."""
    return {n.removesuffix(WEIGHT): info.bits for n, info in records.items() if isinstance(info, PackedTensor)}


def _require_whole(path: Path, records: Mapping[str, TensorInfo], config: StepAudioConfig) -> None:
    _refuse(path, compare(path, records, {n: s for n, s in expected_layout(config).items() if _is_decoder(n)}))


def _refuse(path: Path, report: WeightReport) -> None:
    if report.unfilled or report.error:
        raise WeightsError(f"{path}: not whole: {report.summary}; `stepaudio weights` says more of a model's folder")


def _end_ids(folder: Path, text: TextConfig) -> frozenset[int]:
    """Ids that end an answer, by the config and by the tokenizer if there is one."""
    try:
        return frozenset(text.end_ids | Tokenizer.from_folder(folder).eos_ids)
    except TokenizerError:
        return frozenset(text.end_ids)


def _qwen2(text: TextConfig, folder: Path) -> dict:
    """The config of mlx-lm's Qwen2 that has these sizes."""
    said = {"model_type": QWEN2, "architectures": ["Qwen2ForCausalLM"], "hidden_act": "silu"}
    said |= {name: getattr(text, name) for name in SIZES}
    said |= {"tie_word_embeddings": False, "rope_scaling": None}
    if text.max_position_embeddings or text.max_seq_len:
        said["max_position_embeddings"] = text.max_position_embeddings or text.max_seq_len
    if ends := sorted(_end_ids(folder, text)):
        said["eos_token_id"] = ends
    return said


def _read_qwen2(folder: Path, model: StepAudioConfig) -> tuple[dict, TextConfig]:
    """The config of a folder of mlx-lm, and its sizes, which are those of the model."""
    if not is_folder(folder, ConfigError):
        raise ConfigError(f"{folder}: no such folder; expected one that mlx-lm wrote")
    file = folder / CONFIG_FILE
    said = read_object(file, ConfigError, "expected the config of an mlx-lm folder")
    if said.get("model_type") != QWEN2:
        found = str(said.get("model_type"))
        raise ConfigError(f"{file}: model_type: expected {QWEN2!r}, found {found!r:.60}; only such a decoder fits")
    own = {key: value for key, value in said.items() if key not in (KEY, OTHER_KEY)}
    if said.get(OTHER_KEY) is not None and said.get(KEY) is None:
        own[OTHER_KEY] = said[OTHER_KEY]  # of another tool than MLX's, which is refused where all keys are looked at
    whole = {"text_config": own, "audio_encoder_config": model.to_dict()["audio_encoder_config"]}
    text = StepAudioConfig.from_dict(whole | {"model_type": model.model_type}, str(file)).text_config
    for field in fields(TextConfig):
        mine, theirs = getattr(model.text_config, field.name), getattr(text, field.name)
        if field.name in SIZES and mine != theirs:
            raise ConfigError(f"{file}: {field.name} is {theirs}, that of the model {mine}; they do not fit together")
    return said, text


def _write(stream: TensorFile, name: str, info: TensorInfo, plan: Export) -> None:
    for part, kind, shape, record in plan.parts_of(name, info):
        if plan.kind_of(kind) == kind:
            copy_stored(stream, part, record.file, record.offset, Entry(kind, shape).nbytes)
            continue
        for block in _blocks(record):
            stream.write(part, block.tobytes())


def _blocks(info: TensorInfo) -> Iterator[np.ndarray]:
    """The values, flat, as float32."""
    if isinstance(info, JoinedTensor):
        yield from info.blocks(BLOCK)
        return
    stored = np.memmap(info.file, numpy_dtype(info.dtype), "r", info.offset, (prod(info.shape),))
    for first in range(0, len(stored), BLOCK):
        yield as_values(stored[first : first + BLOCK], info.dtype, float32=True)


def _manifest(plan: Export) -> dict:
    return {
        "format": FORMAT,
        "stepaudio": __version__,
        "source": plan.source.resolve().name,
        "decoder": None if plan.decoder is None else plan.decoder.resolve().name,
        "notes": list(plan.notes),
        "files": list(plan.files),
        "tensors": {
            name: str(info.bits) if isinstance(info, PackedTensor) else plan.kind_of(info.dtype)
            for name, info in plan.records.items()
        },
    }
