"""What quantising writes of the nets of token2wav, worked out from headers: files, tensors, and what the manifest says.

All four files are written anew where a rule reaches one of them, so that one list says of every tensor what became of
it. Kept tensors keep their bytes.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError, WeightsError
from ..models.quantization import Bits
from .convert.manifest import QUANTIZATION, Manifest, converted_folder, file_of, read_manifest
from .convert.published import published_folder
from .header import TensorInfo, listed
from .layout import TOKEN2WAV
from .net_records import groupable, net_records, stored_matrix
from .packed import WEIGHT, PackedTensor, quantization_of, stored_parts
from .recipe import Recipe
from .tensor_file import Entry
from .token2wav import check_header

NETS = [f"{component}." for component in TOKEN2WAV]  # how layers of the nets are named
SPEAKING = ("tokenizer", "speaker", "flow", "vocoder", "token2wav")  # words for them in rules


@dataclass(frozen=True)
class NetPlan:
    """One net: records and layers by their names in it, and the bits of the layers that get fewer."""

    component: str
    file: str  # its name in the folder that is written
    records: Mapping[str, TensorInfo]
    layers: Mapping[str, tuple[int, int]]
    chosen: Mapping[str, Bits]
    recipe: Recipe

    def reason(self, layer: str, info: TensorInfo) -> str:
        """Why a tensor is kept, in words."""
        if len(info.shape) < 2:
            return "a vector"
        if layer not in self.layers:
            return "no matrix of a layer"
        bits = self.recipe.of(f"{self.component}.{layer}")
        return "not asked for" if bits is None else f"its {self.layers[layer][1]} are no multiple of {bits.group_size}"

    def entries_of(self, name: str) -> dict[str, Entry]:
        """The tensors that one of the net will be stored as."""
        info, layer = self.records[name], name.removesuffix(WEIGHT)
        bits = self.chosen.get(layer) if name.endswith(WEIGHT) else None
        matrix = info.shape if bits is None else stored_matrix(info.shape, bits)
        return stored_parts(name, info, matrix, bits)

    @property
    def entries(self) -> dict[str, Entry]:
        """All tensors of the file."""
        return {part: entry for name in self.records for part, entry in self.entries_of(name).items()}


def holds_nets(source: Path) -> bool:
    """Whether a folder holds token2wav, converted or as it is published."""
    return converted_folder(source) is not None or published_folder(source) is not None


def read_nets(source: Path, recipe: Recipe) -> Manifest | None:
    """The manifest of the converted nets in a folder; None where there are none, and no rule needs them.

    Raises
    ------
    ConfigError
        A rule names token2wav, and none is converted there.
    """
    home = converted_folder(source)
    if home is not None:
        return read_manifest(home)
    named = [pattern for pattern, _ in recipe.rules if pattern in SPEAKING or pattern.startswith(tuple(NETS))]
    if named:
        there = published_folder(source) is not None
        what = f"run `stepaudio convert {source}` first" if there else "leave the rule out, or name another folder"
        raise ConfigError(f"{named[0]}: no converted token2wav lies in {source}; {what}")
    return None


def layers_of_nets(manifest: Manifest) -> dict[str, tuple[int, int]]:
    """`groupable` of all four nets, the net's name in front."""
    return {f"{c}.{layer}": size for c in TOKEN2WAV for layer, size in groupable(manifest.configs[c]).items()}


def plan_nets(manifest: Manifest, recipe: Recipe, chosen: Mapping[str, Bits], folder: str) -> tuple[NetPlan, ...]:
    """What becomes of each net.

    Parameters
    ----------
    manifest : Manifest
    recipe : Recipe
    chosen : mapping of str to Bits
        What it chooses, by names with that of the net in front; others than of these nets are passed over.
    folder : str
        Where the files will lie in what is written, with a slash behind it, or empty.

    Raises
    ------
    WeightsError
        A net that is not whole, or has fewer bits already.
    """
    plans = []
    for component in TOKEN2WAV:
        file = manifest.folder / file_of(component)
        records = net_records(manifest, component)
        packed = [name for name, info in records.items() if isinstance(info, PackedTensor)]
        if packed:
            raise WeightsError(
                f"{file}: {len(packed)} layers are quantised already ({listed(packed)}); start from the nets that "
                "they were made of"
            )
        check_header(file, records, manifest.configs[component])
        start = f"{component}."
        own = {layer.removeprefix(start): bits for layer, bits in chosen.items() if layer.startswith(start)}
        layers = groupable(manifest.configs[component])
        plans.append(NetPlan(component, folder + file_of(component), records, layers, own, recipe))
    return tuple(plans)


def manifest_text(manifest: Manifest, plans: tuple[NetPlan, ...], written: Path) -> str:
    """The manifest of the nets as they lie in `written`: what it said before, with their bits and sizes."""
    said = copy.deepcopy(manifest.raw)
    for plan in plans:
        part = said["components"][plan.component]
        part["bytes"] = (written / plan.file).stat().st_size
        if plan.chosen:
            part[QUANTIZATION] = quantization_of(plan.chosen, plan.layers).to_dict()
    return json.dumps(said, indent=1) + "\n"
