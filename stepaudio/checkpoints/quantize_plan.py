"""What quantising a model's folder would write, worked out from headers alone: tensors, files, and why each is kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError, WeightsError
from ..models.quantization import AFFINE, Bits, Quantization, require_backend
from ..models.speech_lm import CONFIG_FILE, FLAT_FILE, StepAudioConfig
from ..reading import is_file, read_object
from .capabilities import FILE as CAPABILITIES
from .capabilities import Capabilities
from .convert.manifest import converted_folder
from .convert.published import FOLDER, published_folder
from .dtypes import HELD
from .header import TensorInfo, listed
from .hub import OTHERS, TOKENIZERS
from .hub_name import repository_of
from .int8 import SCALE, ScaledTensor
from .layout import expected_layout
from .packed import BIASES, SCALES, WEIGHT, PackedTensor, packed_width, quantisable, read_tensors
from .planned_folder import files_of, nbytes_of
from .recipe import Recipe
from .report import compare
from .tensor_file import Entry, split_into_files

MANIFEST = "quantised.json"
SHARD_BYTES = 5_000_000_000  # of one file, as MLX's tools have it


@dataclass(frozen=True)
class Plan:
    """All that is known before a number is read: tensors, what each gets, files and their tensors."""

    source: Path
    name: str
    config: dict
    recipe: Recipe
    records: Mapping[str, TensorInfo]
    chosen: Mapping[str, Bits]
    layers: Mapping[str, tuple[int, int]]
    shards: Mapping[str, Mapping[str, Entry]]
    copied: tuple[str, ...]
    capabilities: Capabilities | None
    notes: tuple[str, ...]

    @property
    def files(self) -> tuple[str, ...]:
        """Names of all files that will be written, the config last."""
        return files_of(self, MANIFEST)

    @property
    def nbytes(self) -> int:
        """Bytes of all files, nearly."""
        return nbytes_of(self)


def plan_quantisation(source: str | Path, recipe: Recipe, shard_bytes: int = SHARD_BYTES) -> Plan:
    """Work out from headers alone what `quantise` would do.

    Parameters
    ----------
    source : str or Path
        A model's folder.
    recipe : Recipe
    shard_bytes : int
        Greatest size of the data of one file.

    Raises
    ------
    ConfigError
        A recipe that does not fit the model, or its config.
    WeightsError
        A checkpoint that is not whole, cannot be trusted, or is quantised already; a mode that this backend does not
        compute.
    """
    source = Path(source)
    config = StepAudioConfig.from_file(source)
    records = read_tensors(source)
    already = [name for name, info in records.items() if isinstance(info, PackedTensor)]
    if already:
        raise WeightsError(
            f"{source}: {len(already)} layers are quantised already ({listed(already)}); start from the model that "
            "they were made of"
        )
    report = compare(source, records, expected_layout(config))
    if report.unfilled or report.error:
        raise WeightsError(f"{source}: not whole, so it is not quantised: {report.summary}")
    layers = dict(sorted(quantisable(config).items()))
    chosen = recipe.choose(layers)
    for bits in dict.fromkeys(chosen.values()):
        require_backend(bits)
    entries = {name: stored_entries(name, info, chosen) for name, info in records.items()}
    copied, notes = beside_weights(source)
    file = source / (CONFIG_FILE if is_file(source / CONFIG_FILE, ConfigError) else FLAT_FILE)
    return Plan(
        source=source,
        name=repository_of(source) or source.resolve().name,
        config=read_object(file, ConfigError, "expected the config of a model"),
        recipe=recipe,
        records=records,
        chosen=chosen,
        layers=layers,
        shards=split_into_files(entries, shard_bytes),
        copied=copied,
        capabilities=to_be_stated(source, copied),
        notes=notes,
    )


def to_be_stated(source: Path, copied: tuple[str, ...]) -> Capabilities | None:
    """What a folder of another name has to say of itself; None where a copied file says it, or nothing is to say."""
    stated = Capabilities.of(source)
    return None if CAPABILITIES in copied or stated == Capabilities() else stated


def stored_entries(name: str, info: TensorInfo, chosen: Mapping[str, Bits]) -> dict[str, Entry]:
    """The tensors that one published tensor will be stored as."""
    layer = name.removesuffix(WEIGHT)
    bits = chosen.get(layer) if name.endswith(WEIGHT) else None
    if bits is None:
        whole = Entry("I8" if isinstance(info, ScaledTensor) else info.dtype, info.shape)
        scale = {name + SCALE: Entry(info.scale.dtype, info.scale.shape)} if isinstance(info, ScaledTensor) else {}
        return {name: whole} | scale
    rows, width = info.shape
    groups = (rows, width // bits.group_size)
    found = {name: Entry("U32", (rows, packed_width(width, bits.bits)))}
    if bits.mode != AFFINE:
        return found | {layer + SCALES: Entry("U8", groups)}
    kind = info.dtype if info.dtype in HELD else "F32"
    return found | {layer + SCALES: Entry(kind, groups), layer + BIASES: Entry(kind, groups)}


def beside_weights(source: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Files to be copied as they are, and what is to be said of what is not."""
    names = [*(n for n in OTHERS if n not in (CONFIG_FILE, FLAT_FILE)), *(n for group in TOKENIZERS for n in group)]
    found = [name for name in names if is_file(source / name, ConfigError)]
    home = converted_folder(source)
    if home is not None and home != source:
        found += [
            f"{FOLDER}/{p.name}" for p in sorted(home.iterdir()) if p.suffix in (".json", ".safetensors", ".yaml")
        ]
        return tuple(found), ()
    if published_folder(source) is not None:
        return tuple(found), (
            f"{FOLDER} is not converted yet and was left out: run `stepaudio convert` on the model and this again, or "
            "take it from there",
        )
    return tuple(found), ()


def quantization_of(chosen: Mapping[str, Bits], layers: Mapping[str, tuple[int, int]]) -> Quantization:
    """What the config is to say: the commonest bits for all, and every layer that has others or none."""
    default = Counter(chosen.values()).most_common(1)[0][0]
    said = Quantization(default)
    odd = {name: chosen.get(name) for name, (_, width) in layers.items() if said.of(name, width) != chosen.get(name)}
    return Quantization(default, odd)


def is_listed(path: Path, manifest: str) -> bool:
    """Whether the manifest of this name in a file's folder, or in the one above, names the file."""
    for folder in (path.parent, path.parent.parent):
        if is_file(folder / manifest, WeightsError):
            files = read_object(folder / manifest, WeightsError, "name another folder").get("files")
            return isinstance(files, list) and path.relative_to(folder).as_posix() in files
    return False
