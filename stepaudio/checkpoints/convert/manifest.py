"""The manifest of a converted folder: from which files, by which version, to which sizes, by which steps.

It is written last, so a folder with a manifest is a whole conversion. Knows JSON, and nothing of tensors.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ...errors import WeightsError
from ...schema import read_record
from ..layout import CONFIGS, TOKEN2WAV, Token2WavConfig
from .published import FOLDER

MANIFEST = "converted.json"
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


def converted_folder(path: str | Path) -> Path | None:
    """`path`, or the token2wav folder in it: whichever holds a finished conversion."""
    return next((f for f in (Path(path) / FOLDER, Path(path)) if (f / MANIFEST).is_file()), None)


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
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: cannot be read ({str(error)[:80]}); {again}") from None
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        found = raw.get("format") if isinstance(raw, dict) else type(raw).__name__
        raise WeightsError(f"{path}: expected format {FORMAT}, found {found!r}; {again}")
    sources, parts = raw.get("sources"), raw.get("components")
    if (
        not isinstance(sources, dict)
        or not isinstance(parts, dict)
        or not all(_is_part(parts.get(c)) for c in TOKEN2WAV)
    ):
        raise WeightsError(f"{path}: does not describe {', '.join(TOKEN2WAV)} and their sources; {again}")
    configs = {c: read_record(CONFIGS[c], parts[c].get("config"), f"{path}: {c}") for c in TOKEN2WAV}
    return Manifest(folder, sources, configs, raw)


def _is_part(part: object) -> bool:
    return isinstance(part, dict) and type(part.get("bytes")) is int
