"""What a folder holds of the speaking half, converted or as published, as records that a weight report can judge.

Reads headers, graphs and archive directories, no tensors. Names carry their component in front: `flow.encoder…`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..models.token2wav.campplus import COUNTER, SpeakerConfig
from ..models.token2wav.hift import HiftConfig
from ..models.token2wav.speech_tokenizer import S3Config
from .components import COMPONENTS, SOURCES, net_layout, published_layout
from .convert.flow_yaml import read_flow_config
from .convert.manifest import converted_folder, file_of, read_manifest
from .convert.published import FLOW_YAML, describe, published_folder
from .header import TensorInfo, read_header
from .layout import Shape


@dataclass(frozen=True)
class Survey:
    """`records` and `expected` by prefixed name. A conversion that is there is surveyed instead of what it came from.

    Of a conversion, `expected` has the shapes of the nets; of published files, those of PyTorch.
    """

    folder: Path
    converted: bool
    records: dict[str, TensorInfo]
    expected: dict[str, Shape]


def survey(path: str | Path) -> Survey | None:
    """Survey a model's folder or its token2wav folder; None where no file of the speaking half is there.

    A published file that is not there counts as one whose tensors are all missing.

    Raises
    ------
    WeightsError, ConfigError : a file that is there but cannot be read, trusted, or told the sizes of.
    """
    home = converted_folder(path)
    if home is not None:
        manifest = read_manifest(home)
        found, layouts = {}, {c: net_layout(manifest.configs[c]) for c in COMPONENTS}
        for component in COMPONENTS:
            file = home / file_of(component)
            found[component] = read_header(file) if file.is_file() else {}
        return Survey(home, True, _prefixed(found), _prefixed(layouts))
    folder = published_folder(path)
    if folder is None:
        return None
    found, layouts = {}, {}
    for component, source in SOURCES.items():
        if (folder / source).is_file():
            part = describe(folder, component)
            found[component], layouts[component] = part.tensors, part.layout
        else:
            found[component], layouts[component] = {}, _usual_layout(folder, component)
    return Survey(folder, False, _prefixed(found), _prefixed(layouts))


def _usual_layout(folder: Path, component: str) -> dict[str, Shape]:
    """What a file that is not there should hold: the published sizes, the flow's from its own config."""
    if component == "flow":
        return published_layout(read_flow_config(folder / FLOW_YAML))
    usual = {"tokenizer": S3Config, "speaker": SpeakerConfig, "hift": HiftConfig}
    return {n: s for n, s in published_layout(usual[component]()).items() if not n.endswith(COUNTER)}


def _prefixed(parts: Mapping[str, Mapping]) -> dict:
    return {f"{component}.{name}": value for component, part in parts.items() for name, value in part.items()}
