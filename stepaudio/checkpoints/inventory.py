"""What a folder holds of token2wav, converted or as published, as records that a weight report can judge.

Reads headers, graphs and archive directories, no tensors. Names carry their component in front: `flow.encoder…`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import WeightsError
from ..models.token2wav.campplus import COUNTER, SpeakerConfig
from ..models.token2wav.hift import HiftConfig
from ..models.token2wav.speech_tokenizer import S3Config
from ..reading import is_file
from .convert.flow_yaml import read_flow_config
from .convert.manifest import converted_folder, file_of, read_manifest
from .convert.published import FLOW_YAML, describe, published_folder
from .header import TensorInfo
from .layout import SOURCES, TOKEN2WAV, Shape, expected_layout, net_layout, prefixed
from .net_records import net_records


@dataclass(frozen=True)
class Inventory:
    """Records and expected shapes of a folder, by prefixed name.

    A conversion that is there is listed instead of what it came from. Of a conversion, `expected` has the shapes of
    the nets; of published files, those of PyTorch.
    """

    folder: Path
    converted: bool
    records: dict[str, TensorInfo]
    expected: dict[str, Shape]


def take_inventory(path: str | Path) -> Inventory | None:
    """List a model's folder or its token2wav folder; None where no file of token2wav is there.

    A published file that is not there counts as one whose tensors are all missing.

    Raises
    ------
    WeightsError, ConfigError
        A file that is there but cannot be read or trusted, or from which no sizes can be inferred.
    """
    home = converted_folder(path)
    if home is not None:
        manifest = read_manifest(home)
        found, layouts = {}, {c: net_layout(manifest.configs[c]) for c in TOKEN2WAV}
        for component in TOKEN2WAV:
            file = home / file_of(component)
            found[component] = net_records(manifest, component) if is_file(file, WeightsError) else {}
        return Inventory(home, True, prefixed(found), prefixed(layouts))
    folder = published_folder(path)
    if folder is None:
        return None
    found, layouts = {}, {}
    for component, source in SOURCES.items():
        if is_file(folder / source, WeightsError):
            part = describe(folder, component)
            found[component], layouts[component] = part.tensors, part.layout
        else:
            found[component], layouts[component] = {}, _usual_layout(folder, component)
    return Inventory(folder, False, prefixed(found), prefixed(layouts))


def _usual_layout(folder: Path, component: str) -> dict[str, Shape]:
    """What a file that is not there should hold: the published sizes, the flow's from its own config."""
    usual = {"tokenizer": S3Config, "speaker": SpeakerConfig, "hift": HiftConfig}
    config = read_flow_config(folder / FLOW_YAML) if component == "flow" else usual[component]()
    return {name: shape for name, shape in expected_layout(config).items() if not name.endswith(COUNTER)}
