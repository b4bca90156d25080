"""A folder of a model or of token2wav written again with fewer bits: in blocks of rows, whole or not at all.

The layout is that of MLX's own tools (see `packed`); what has no fewer bits is copied byte by byte. All files are
written aside and moved into place with the config last, and `quantised.json` says what became of every tensor.
"""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import mlx.core as mx
import numpy as np
from tqdm import tqdm

from .. import __version__
from ..backend.process import enter
from ..errors import WeightsError
from ..files import reason, staging_folder
from ..models.quantization import Bits
from ..models.speech_lm import CONFIG_FILE
from .capabilities import FILE as CAPABILITIES
from .dtypes import HELD, numpy_dtype
from .header import INDEX_FILE, TensorInfo
from .int8 import SCALE, ScaledTensor
from .joined import JoinedTensor
from .packed import BIASES, KEY, OTHER_KEY, SCALES, WEIGHT, quantization_of
from .planned_folder import begin, finish
from .quantize_nets import NetPlan, manifest_text
from .quantize_plan import MANIFEST, SHARD_BYTES, Plan, is_listed, plan_quantisation, stored_entries
from .recipe import Recipe
from .tensor_file import Entry, TensorFile, copy_stored, index_of

ASIDE = ".quantising-"
FORMAT = 1
BLOCK = 1 << 23  # weights at a time: 32 MiB in float32, about four times that with what is made of them
QUANTISED, KEPT = "quantised", "kept"


@dataclass(frozen=True)
class Fate:
    """What became of a tensor.

    Parameters
    ----------
    name : str
    fate : {"quantised", "kept"}
    before, after : int
        Bytes.
    reason : str
        Why it was kept.
    bits, group_size, mode : optional
        Of a quantised one.
    error : float, optional
        Norm of what quantising changed, by the norm of the values.
    """

    name: str
    fate: str
    before: int
    after: int
    reason: str = ""
    bits: int | None = None
    group_size: int | None = None
    mode: str | None = None
    error: float | None = None


@dataclass(frozen=True)
class Quantised:
    """What `quantise` did: the folder that it wrote, and the manifest in it."""

    folder: Path
    manifest: dict

    def table(self) -> str:
        """Text for a terminal: a line for each component, and what was left out."""
        lines = [f"{self.folder}: quantised from {self.manifest['source']['name']}"]
        parts: dict[str, list[dict]] = {}
        for tensor in self.manifest["tensors"]:
            parts.setdefault(_component(tensor["name"]), []).append(tensor)
        for part, tensors in parts.items():
            done = [t for t in tensors if t["fate"] == QUANTISED]
            kinds = Counter(str(Bits(t["bits"], t["group_size"], t["mode"])) for t in done)
            said = ", ".join(f"{n} x {kind}" for kind, n in kinds.items()) or "kept"
            error = math.sqrt(sum(t["error"] ** 2 for t in done) / len(done)) if done else 0.0
            before, after = (sum(t[key] for t in tensors) for key in ("before", "after"))
            moved = f", error {error:.2%}" if done else ""
            lines.append(f"  {part:11} {before:>14,} -> {after:>14,} bytes  {said}{moved}")
        before, after = (sum(t[key] for t in self.manifest["tensors"]) for key in ("before", "after"))
        lines.append(f"  {'all':11} {before:>14,} -> {after:>14,} bytes")
        return "\n".join([*lines, *(f"note: {note}" for note in self.manifest["notes"])])


def quantise(
    source: str | Path, out: str | Path, recipe: Recipe | int | Mapping, shard_bytes: int = SHARD_BYTES
) -> Quantised:
    """Write the folder of a model, or of token2wav, with fewer bits; memory does not grow with the model.

    Parameters
    ----------
    source, recipe, shard_bytes
        As `plan_quantisation`.
    out : str or Path
        Folder to write, made if need be. An earlier quantised model in it is replaced.

    Raises
    ------
    ConfigError, WeightsError
        As `plan_quantisation`; also values that are not finite, too little room, or a folder that cannot be written.
    """
    enter()
    return write_quantised(plan_quantisation(source, recipe, shard_bytes), Path(out))


def write_quantised(plan: Plan, out: Path) -> Quantised:
    """Do what a plan says. Raises `WeightsError` as `quantise`."""
    try:
        with staging_folder(out, ASIDE) as aside:
            begin(plan, aside, out)
            fates: dict[str, Fate] = {}
            total = sum(info.nbytes for part in (plan, *plan.nets) for info in part.records.values())
            with tqdm(total=total, unit="B", unit_scale=True, disable=not sys.stderr.isatty()) as bar:
                for file, entries in plan.shards.items():
                    with TensorFile(aside / file, entries, {"format": "mlx"}) as stream:
                        for name, info in plan.records.items():
                            parts = stored_entries(name, info, plan.chosen)
                            if next(iter(parts)) in entries:
                                fates[name] = _write(stream, name, info, parts, plan)
                                bar.update(info.nbytes)
                for net in plan.nets:
                    (aside / net.file).parent.mkdir(exist_ok=True)
                    with TensorFile(aside / net.file, net.entries, {"format": "mlx"}) as stream:
                        for name, info in net.records.items():
                            whole = f"{net.component}.{name}"
                            fates[whole] = replace(_write(stream, name, info, net.entries_of(name), net), name=whole)
                            bar.update(info.nbytes)
            named = [*plan.records, *(f"{net.component}.{name}" for net in plan.nets for name in net.records)]
            manifest = _manifest(plan, [fates[name] for name in named])
            _write_texts(aside, plan, manifest)
            finish(plan, aside, out)
    except (OSError, RuntimeError) as error:
        raise WeightsError(f"{out}: the quantised model could not be written ({reason(error)})") from None
    return Quantised(out, manifest)


def is_quantised(path: Path) -> bool:
    """Whether a file was written by `quantise`: the manifest of its folder, or of the one above, names it."""
    return is_listed(path, MANIFEST)


# ---- what is written ----


def _write(stream: TensorFile, name: str, info: TensorInfo, parts: Mapping[str, Entry], plan: Plan | NetPlan) -> Fate:
    layer = name.removesuffix(WEIGHT)
    bits = plan.chosen.get(layer) if name.endswith(WEIGHT) else None
    after = sum(entry.nbytes for entry in parts.values())
    if bits is None:
        own = info.nbytes - info.scale.nbytes if isinstance(info, ScaledTensor) else info.nbytes
        copy_stored(stream, name, info.file, info.offset, own)
        if isinstance(info, ScaledTensor):
            copy_stored(stream, name + SCALE, info.scale.file, info.scale.offset, info.scale.nbytes)
        return Fate(name, KEPT, info.nbytes, after, plan.reason(layer, info))
    moved = whole = 0.0
    for block in _blocks(info, bits):
        if not mx.isfinite(block).all().item():
            raise WeightsError(f"{info.file}: {name} holds values that are not finite; such have no scale")
        packed = mx.quantize(block, **bits.options)
        values = block.astype(mx.float32)
        means = mx.dequantize(*packed, **bits.options, dtype=block.dtype).astype(mx.float32)
        moved += float(np.array(mx.square(means - values).sum()))
        whole += float(np.array(mx.square(values).sum()))
        for part, array in zip((WEIGHT, SCALES, BIASES), packed, strict=False):
            stream.write(layer + part, _bytes_of(array))
    error = math.sqrt(moved / whole) if whole else 0.0
    return Fate(name, QUANTISED, info.nbytes, after, "", bits.bits, bits.group_size, bits.mode, error)


def _blocks(info: TensorInfo, bits: Bits) -> Iterator[mx.array]:
    """Blocks of a tensor in its stored type: some rows, or the groups in them where rows are no whole groups."""
    rows, width = info.shape[0], math.prod(info.shape[1:])
    unit = bits.group_size // math.gcd(bits.group_size, width)  # rows that come out in whole groups together
    step = max(1, BLOCK // max(width * unit, 1)) * unit
    for first in range(0, rows, step):
        stop = min(first + step, rows)
        if isinstance(info, JoinedTensor):
            block = mx.array(info.rows(first, stop))
        else:
            items = np.memmap(info.file, numpy_dtype(info.dtype), "r", info.offset, (rows, width))[first:stop]
            block = mx.array(np.ascontiguousarray(items)).view(HELD[info.dtype])
        yield block.reshape(-1, width if unit == 1 else bits.group_size)


def _bytes_of(array: mx.array) -> bytes:
    return np.array(array.view(mx.uint16) if array.dtype == mx.bfloat16 else array).tobytes()


def _manifest(plan: Plan, fates: list[Fate]) -> dict:
    """What became of every tensor, and of what it was made."""
    sources = sorted({info.file for part in (plan, *plan.nets) for info in part.records.values()})
    tensors = [{key: value for key, value in asdict(fate).items() if value not in (None, "")} for fate in fates]
    return {
        "format": FORMAT,
        "stepaudio": __version__,
        "source": {"name": plan.name, "files": {file.name: file.stat().st_size for file in sources}},
        "default": None if plan.recipe.default is None else plan.recipe.default.options,
        "rules": [[pattern, None if bits is None else bits.options] for pattern, bits in plan.recipe.rules],
        "notes": list(plan.notes),
        "files": list(plan.files),
        "tensors": tensors,
    }


def _write_texts(aside: Path, plan: Plan, manifest: dict) -> None:
    texts: dict[str, object] = {MANIFEST: manifest}
    if plan.shards:
        said = quantization_of(plan.chosen, plan.layers).to_dict() if plan.chosen else None
        texts[CONFIG_FILE] = plan.config | ({KEY: said, OTHER_KEY: said} if said else {})
    if plan.capabilities is not None:
        texts[CAPABILITIES] = plan.capabilities.to_dict()
    if len(plan.shards) > 1:
        texts[INDEX_FILE] = index_of(plan.shards)
    for name, content in texts.items():
        (aside / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    if plan.manifest is not None and plan.nets:
        (aside / plan.seal).write_text(manifest_text(plan.manifest, plan.nets, aside), encoding="utf-8")


def _component(name: str) -> str:
    if name.startswith("model."):
        return "embeddings" if name.startswith("model.embed_tokens") else "decoder"
    return {"lm_head": "head"}.get(name.partition(".")[0], name.partition(".")[0])
