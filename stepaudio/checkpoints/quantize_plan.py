"""What quantising a model's folder would write, worked out from headers alone: tensors, files, and why each is kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import ConfigError, WeightsError
from ..models.quantization import Bits, require_backend
from ..models.speech_lm import CONFIG_FILE, FLAT_FILE, StepAudioConfig
from ..reading import is_file, read_object
from .alignment_heads import FILE as HEADS
from .capabilities import FILE as CAPABILITIES
from .capabilities import Capabilities
from .convert.manifest import MANIFEST as CONVERTED
from .convert.manifest import Manifest, converted_folder
from .convert.published import FOLDER, published_folder
from .header import TensorInfo, listed
from .hub import OTHERS, TOKENIZERS
from .hub_name import repository_of
from .layout import expected_layout
from .lora_folder import lora_files, loras_in
from .packed import WEIGHT, PackedTensor, quantisable, read_tensors, stored_parts
from .planned_folder import files_of, nbytes_of
from .quantize_nets import NetPlan, holds_nets, layers_of_nets, plan_nets, read_nets
from .recipe import Recipe
from .report import compare
from .tensor_file import Entry, split_into_files

MANIFEST = "quantised.json"
BESIDE_NETS = (".json", ".yaml")  # of the files in a token2wav folder, those that are copied as they are
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
    nets: tuple[NetPlan, ...] = ()  # of token2wav, where any of them gets fewer bits
    manifest: Manifest | None = None  # of these nets

    @property
    def files(self) -> tuple[str, ...]:
        """Names of all files that will be written, the config last."""
        return files_of(self, MANIFEST, [net.file for net in self.nets] + ([self.seal] if self.nets else []))

    def reason(self, layer: str, info: TensorInfo) -> str:
        """Why a tensor is kept, in words."""
        if len(info.shape) < 2:
            return "a vector"
        if layer not in self.layers:
            return "a kernel of a convolution"
        bits, width = self.recipe.of(layer), self.layers[layer][1]
        return "not asked for" if bits is None else f"rows of {width} are no multiple of {bits.group_size}"

    @property
    def seal(self) -> str:
        """Name of the nets' manifest in what is written."""
        return str(Path(self.nets[0].file).with_name(CONVERTED))

    @property
    def nbytes(self) -> int:
        """Bytes of all files, nearly."""
        return nbytes_of(self) + sum(entry.nbytes for net in self.nets for entry in net.entries.values())


def plan_quantisation(source: str | Path, recipe: Recipe | int | Mapping, shard_bytes: int = SHARD_BYTES) -> Plan:
    """Work out from headers alone what `quantise` would do.

    Parameters
    ----------
    source : str or Path
        A model's folder, or the converted `token2wav` folder of one.
    recipe : Recipe, int or mapping
        As `Recipe.meant` takes it. Of a model the default is for its language model, and token2wav is for rules; of
        token2wav it is for all nets.
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
    source, recipe = Path(source), Recipe.meant(recipe)
    if not any(is_file(source / name, ConfigError) for name in (CONFIG_FILE, FLAT_FILE)) and holds_nets(source):
        return _plan_nets_alone(source, recipe)
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
    manifest = read_nets(source, recipe)
    chosen = _chosen(recipe, layers, manifest)
    entries = {name: stored_entries(name, info, chosen) for name, info in records.items()}
    spoken = manifest is not None and any(layer not in layers for layer in chosen)
    nets = plan_nets(manifest, recipe, chosen, f"{FOLDER}/") if manifest and spoken else ()
    copied, notes = beside_weights(source)
    copied += _beside_loras(source)
    if nets:
        copied = tuple(name for name in copied if name not in (f"{FOLDER}/{CONVERTED}", *(net.file for net in nets)))
    file = source / (CONFIG_FILE if is_file(source / CONFIG_FILE, ConfigError) else FLAT_FILE)
    return Plan(
        source=source,
        name=repository_of(source) or source.resolve().name,
        config=read_object(file, ConfigError, "expected the config of a model"),
        recipe=recipe,
        records=records,
        chosen={layer: bits for layer, bits in chosen.items() if layer in layers},
        layers=layers,
        shards=split_into_files(entries, shard_bytes),
        copied=copied,
        capabilities=to_be_stated(source, copied),
        notes=notes,
        nets=nets,
        manifest=manifest,
    )


def _beside_loras(source: Path) -> tuple[str, ...]:
    """Files of the LoRAs within a model's folder, which are put on the quantised model as on this one."""
    found = [file for folder in loras_in(source).values() for file in (*lora_files(folder), folder / CAPABILITIES)]
    return tuple(file.relative_to(source).as_posix() for file in found if is_file(file, ConfigError))


def _plan_nets_alone(source: Path, recipe: Recipe) -> Plan:
    """Of a converted token2wav folder; what is written has its files at the top."""
    if recipe.default is not None:
        recipe = replace(recipe, rules=(("token2wav", recipe.default), *recipe.rules))
    manifest = read_nets(source, recipe)
    if manifest is None:
        raise WeightsError(f"{source}: token2wav is not converted yet; run `stepaudio convert` on the model first")
    nets = plan_nets(manifest, recipe, _chosen(recipe, {}, manifest), "")
    written = {CONVERTED, MANIFEST, *(net.file for net in nets)}
    beside = (p for p in sorted(manifest.folder.iterdir()) if p.suffix in BESIDE_NETS and p.name not in written)
    return Plan(
        source=manifest.folder,
        name=source.resolve().name,
        config={},
        recipe=recipe,
        records={},
        chosen={},
        layers={},
        shards={},
        copied=tuple(path.name for path in beside),
        capabilities=None,
        notes=(),
        nets=nets,
        manifest=manifest,
    )


def _chosen(recipe: Recipe, layers: Mapping[str, tuple[int, int]], manifest: Manifest | None) -> dict[str, Bits]:
    """Layer -> bits, of the language model and of token2wav; `ConfigError` or `WeightsError` as `plan_quantisation`."""
    chosen = recipe.choose(layers, layers_of_nets(manifest) if manifest else {})
    for bits in dict.fromkeys(chosen.values()):
        require_backend(bits)
    return chosen


def to_be_stated(source: Path, copied: tuple[str, ...]) -> Capabilities | None:
    """What a folder of another name has to say of itself; None where a copied file says it, or nothing is to say."""
    stated = Capabilities.of(source)
    return None if CAPABILITIES in copied or stated == Capabilities() else stated


def stored_entries(name: str, info: TensorInfo, chosen: Mapping[str, Bits]) -> dict[str, Entry]:
    """The tensors that one of the language model will be stored as."""
    bits = chosen.get(name.removesuffix(WEIGHT)) if name.endswith(WEIGHT) else None
    return stored_parts(name, info, info.shape, bits)


def beside_weights(source: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Files to be copied as they are, and what is to be said of what is not."""
    others = (n for n in OTHERS if n not in (CONFIG_FILE, FLAT_FILE, HEADS))
    found = [n for n in (*others, *(n for group in TOKENIZERS for n in group)) if is_file(source / n, ConfigError)]
    notes: tuple[str, ...] = ()
    if is_file(source / HEADS, ConfigError):
        notes = (f"{HEADS} was left out: its heads were found on other weights (data/recipe/alignment_heads.py)",)
    home = converted_folder(source)
    if home is not None and home != source:
        beside = (*BESIDE_NETS, ".safetensors")
        found += [f"{FOLDER}/{p.name}" for p in sorted(home.iterdir()) if p.suffix in beside]
    elif published_folder(source) is not None:
        notes += (
            f"{FOLDER} is not converted yet and was left out: run `stepaudio convert` on the model and this again, or "
            "take it from there",
        )
    return tuple(found), notes


def is_listed(path: Path, manifest: str) -> bool:
    """Whether the manifest of this name in a file's folder, or in the one above, names the file."""
    for folder in (path.parent, path.parent.parent):
        if is_file(folder / manifest, WeightsError):
            files = read_object(folder / manifest, WeightsError, "name another folder").get("files")
            return isinstance(files, list) and path.relative_to(folder).as_posix() in files
    return False
