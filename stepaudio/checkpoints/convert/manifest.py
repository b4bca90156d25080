"""The manifest of a converted folder: from which files, by which version, to which sizes, by which steps.

It is written last, so a folder with a manifest is a whole conversion. Knows JSON, and nothing of tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...errors import WeightsError
from ...models.quantization import Quantization
from ...reading import is_file, read_object
from ...schema import read_record, shown
from ..layout import CONFIGS, TOKEN2WAV, Token2WavConfig
from .published import FOLDER

MANIFEST = "converted.json"
QUANTIZATION = "quantization"  # of a component, beside its sizes
FORMAT = 2  # raised whenever the same sources would be converted to something else


def file_of(component: str) -> str:
    """Name of a component's file of weights."""
    return f"{component}.safetensors"


@dataclass(frozen=True)
class Manifest:
    """What `converted.json` says.

    `sources` maps published file names to {"sha256", "bytes"}, `configs` components to sizes; `raw` is the whole file.
    """

    folder: Path
    sources: dict[str, dict]
    configs: dict[str, Token2WavConfig]
    raw: dict

    def bytes_of(self, component: str) -> int:
        """Size of a component's file."""
        return self.raw["components"][component]["bytes"]

    def quantization_of(self, component: str) -> Quantization | None:
        """What is said of fewer bits; None for nothing. Raises `ConfigError` for values that MLX does not have."""
        said = self.raw["components"][component].get(QUANTIZATION)
        where = f"{self.folder / MANIFEST}: {component}.{QUANTIZATION}"
        return None if said is None else Quantization.from_dict(said, where)


def converted_folder(path: str | Path) -> Path | None:
    """`path`, or the token2wav folder in it: whichever holds a finished conversion."""
    return next((f for f in (Path(path) / FOLDER, Path(path)) if is_file(f / MANIFEST, WeightsError)), None)


def read_manifest(folder: Path) -> Manifest:
    """Read and check the manifest in `folder`.

    Raises
    ------
    WeightsError
        Unreadable, of another format, or without one of the components.
    ConfigError
        Sizes that are not those of the nets.
    """
    path = folder / MANIFEST
    again = "run `stepaudio convert` again"
    raw = read_object(path, WeightsError, again)
    if raw.get("format") != FORMAT:
        raise WeightsError(f"{path}: expected format {FORMAT}, found {shown(raw.get('format'))}; {again}")
    sources, parts = raw.get("sources"), raw.get("components")
    if (
        not isinstance(sources, dict)
        or not isinstance(parts, dict)
        or set(parts) != set(TOKEN2WAV)
        or not all(map(_is_part, parts.values()))
    ):
        raise WeightsError(f"{path}: does not describe {', '.join(TOKEN2WAV)} and their sources; {again}")
    configs = {c: read_record(CONFIGS[c], parts[c].get("config"), f"{path}: {c}") for c in TOKEN2WAV}
    return Manifest(folder, sources, configs, raw)


def _is_part(part: object) -> bool:
    if not isinstance(part, dict) or type(part.get("bytes")) is not int:
        return False
    tensors = part.get("tensors")
    return isinstance(tensors, list) and all(isinstance(t, dict) and _is_steps(t.get("steps")) for t in tensors)


def _is_steps(steps: object) -> bool:
    return isinstance(steps, list) and all(isinstance(step, str) for step in steps)
