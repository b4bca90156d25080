"""The published `token2wav` folder, described file by file: names, sizes, where each tensor lies, what is expected.

Reads headers and graphs, of tensors only the few values that decide whether one may be dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ...errors import WeightsError
from ...models.token2wav.campplus import COUNTER, SpeakerConfig
from ...reading import is_file
from ..arrays import published_name
from ..header import listed
from ..layout import SOURCES, Shape, Token2WavConfig, expected_layout
from ..tensors import StoredTensor, read_values
from .batch_norm import UNSCALED, as_exported, folded
from .flow_yaml import read_flow_config
from .infer_config import hift_sizes, s3_sizes, speaker_sizes
from .onnx_file import read_onnx
from .onnx_names import named_tensors
from .torch_file import read_pt

FLOW_YAML = "flow.yaml"
FOLDER = "token2wav"


@dataclass(frozen=True)
class PublishedPart:
    """One published file.

    `tensors` and `layout` are by published name, `tensors[n].name` is the file's own; `dropped` says for names of the
    file why they are left out; `folded` maps convolutions to the batch norm that was folded into them.
    """

    component: str
    file: Path
    config: Token2WavConfig
    tensors: dict[str, StoredTensor]
    layout: dict[str, Shape]
    dropped: dict[str, str]
    folded: dict[str, str]


def published_folder(path: str | Path) -> Path | None:
    """`path`, or the token2wav folder in it: whichever holds at least one of the four published files of weights."""
    for folder in (Path(path) / FOLDER, Path(path)):
        if any(is_file(folder / name, WeightsError) for name in SOURCES.values()):
            return folder
    return None


def describe(folder: Path, component: str) -> PublishedPart:
    """Describe one file of the published folder, without judging whether it is whole.

    Raises
    ------
    WeightsError
        Missing, unreadable, hostile, or of no sizes at all.
    ConfigError
        `flow.yaml` is missing or not the published kind, or sizes contradict each other.
    """
    file = folder / SOURCES[component]
    if component in ("tokenizer", "speaker"):
        return _graph(file, component)
    content = read_pt(file)
    dropped = {name: f"{kind}, not a tensor" for name, kind in content.others.items()}
    if component == "flow":
        config, tensors = read_flow_config(folder / FLOW_YAML), content.tensors
    else:
        tensors = _renamed(content.tensors, file)
        config = _sized(file, hift_sizes, tensors)
    return PublishedPart(component, file, config, tensors, expected_layout(config), dropped, {})


def _sized(file: Path, sizes, tensors: Mapping[str, StoredTensor], *graph) -> Token2WavConfig:
    try:
        return sizes({name: tensor.shape for name, tensor in tensors.items()}, *graph)
    except WeightsError as error:
        raise WeightsError(f"{file}: {error}") from None


def _renamed(tensors: dict[str, StoredTensor], file: Path) -> dict[str, StoredTensor]:
    found: dict[str, StoredTensor] = {}
    for name, tensor in tensors.items():
        new = published_name(name)
        if new in found:
            raise WeightsError(f"{file}: {listed([found[new].name, name])} would both become {new}")
        found[new] = tensor
    return found


def _graph(file: Path, component: str) -> PublishedPart:
    graph = read_onnx(file)
    try:
        tensors = named_tensors(graph, component)
        config = _sized(file, s3_sizes if component == "tokenizer" else speaker_sizes, tensors, graph)
    except WeightsError as error:
        raise WeightsError(f"{file}: {str(error).removeprefix(f'{file}: ')}") from None
    layout, dropped, folds = expected_layout(config), {}, {}
    if isinstance(config, SpeakerConfig):
        folds = folded(config, tensors)
        layout = as_exported(layout, folds)
        dropped = _droppable(tensors)
        tensors = {name: tensor for name, tensor in tensors.items() if tensor.name not in dropped}
    return PublishedPart(component, file, config, tensors, layout, dropped, folds)


def _droppable(tensors: Mapping[str, StoredTensor]) -> dict[str, str]:
    """Names in the file -> why they need not come along."""
    dropped = {t.name: "counts training batches; nothing reads it" for n, t in tensors.items() if n.endswith(COUNTER)}
    for kind, value in (("weight", 1.0), ("bias", 0.0)):
        tensor = tensors.get(f"{UNSCALED}.{kind}")
        if tensor is not None and (read_values(tensor) == value).all():
            dropped[tensor.name] = f"{value:g} throughout: this batch norm has neither scale nor shift"
    return dropped
