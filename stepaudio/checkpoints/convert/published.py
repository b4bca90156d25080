"""The published `token2wav` folder, described file by file: names, sizes, where each tensor lies, what is expected.

Reads headers and graphs, of tensors only the few values that decide whether one may be dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ...errors import WeightsError
from ...models.token2wav.campplus import COUNTER, SpeakerConfig
from ..components import SOURCES, Config, published_layout
from ..header import listed
from ..layout import Shape
from ..speaker_layout import foldable
from ..tensors import StoredTensor, read_values
from ..token2wav_layout import published_hift_name
from .flow_yaml import read_flow_config
from .infer_config import hift_sizes, s3_sizes, speaker_sizes
from .onnx_file import read_onnx
from .onnx_names import named_tensors
from .torch_file import read_pt

FLOW_YAML = "flow.yaml"
FOLDER = "token2wav"
NORM_KINDS = ("weight", "bias", "running_mean", "running_var")
UNSCALED = "xvector.dense.nonlinear.batchnorm"  # the one batch norm without scale and shift


@dataclass(frozen=True)
class PublishedPart:
    """One published file. `tensors` and `layout` are by published name, `tensors[n].name` is the file's own;
    `dropped` tells for names of the file why they are left out; `folded` are convolutions with a batch norm in them.
    """

    component: str
    file: Path
    config: Config
    tensors: dict[str, StoredTensor]
    layout: dict[str, Shape]
    dropped: dict[str, str]
    folded: dict[str, str]


def published_folder(path: str | Path) -> Path | None:
    """`path`, or the token2wav folder in it: whichever holds at least one of the four published files of weights."""
    for folder in (Path(path) / FOLDER, Path(path)):
        if any((folder / name).is_file() for name in SOURCES.values()):
            return folder
    return None


def describe(folder: Path, component: str) -> PublishedPart:
    """Describe one file of the published folder, without judging whether it is whole.

    Raises
    ------
    WeightsError : missing, unreadable, hostile, or of no sizes at all.
    ConfigError : `flow.yaml` is missing or not the published kind, or sizes contradict each other.
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
    return PublishedPart(component, file, config, tensors, published_layout(config), dropped, {})


def _sized(file: Path, sizes, tensors: Mapping[str, StoredTensor], *graph) -> Config:
    try:
        return sizes({name: tensor.shape for name, tensor in tensors.items()}, *graph)
    except WeightsError as error:
        raise WeightsError(f"{file}: {error}") from None


def _renamed(tensors: dict[str, StoredTensor], file: Path) -> dict[str, StoredTensor]:
    found: dict[str, StoredTensor] = {}
    for name, tensor in tensors.items():
        new = published_hift_name(name)
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
    layout, dropped, folded = published_layout(config), {}, {}
    if isinstance(config, SpeakerConfig):
        folded = _folded(config, tensors)
        layout = _as_exported(layout, folded)
        dropped = _droppable(tensors)
        tensors = {name: tensor for name, tensor in tensors.items() if tensor.name not in dropped}
    return PublishedPart(component, file, config, tensors, layout, dropped, folded)


def _folded(config: SpeakerConfig, tensors: Mapping[str, StoredTensor]) -> dict[str, str]:
    """Convolutions whose batch norm is in them. In a graph where any is, one that lacks bias and norm lacks the bias."""
    bare = {conv: norm for conv, norm in foldable(config).items()
            if not any(f"{norm}.{kind}" in tensors for kind in NORM_KINDS)}  # fmt: skip
    return bare if any(f"{conv}.bias" in tensors for conv in bare) else {}


def _as_exported(layout: dict[str, Shape], folded: Mapping[str, str]) -> dict[str, Shape]:
    """Without counters, which no graph needs; a bias in place of each batch norm that was folded."""
    gone = tuple(f"{norm}." for norm in folded.values())
    found = {n: s for n, s in layout.items() if not n.endswith(COUNTER) and not n.startswith(gone or ("\0",))}
    return found | {f"{conv}.bias": layout[f"{conv}.weight"][:1] for conv in folded}


def _droppable(tensors: Mapping[str, StoredTensor]) -> dict[str, str]:
    """Names in the file -> why they need not come along."""
    dropped = {t.name: "counts training batches; nothing reads it" for n, t in tensors.items() if n.endswith(COUNTER)}
    for kind, value in (("weight", 1.0), ("bias", 0.0)):
        tensor = tensors.get(f"{UNSCALED}.{kind}")
        if tensor is not None and (read_values(tensor) == value).all():
            dropped[tensor.name] = f"{value:g} throughout: this batch norm has neither scale nor shift"
    return dropped
