"""Names and shapes of every tensor, published and held, read off the nets themselves; and the order of kernels' axes.

A net's parameters carry the published names, so building one of the wanted sizes, without computing anything, gives
its layout. Three things the nets do not know are declared here and in `weight_norm`: which tensors PyTorch stores with
other axes (by name and never by shape, since sizes may happen to agree), which kernels are published as a pair of
weight-norm tensors, and the counters of training batches that no net holds.

Shapes of published tensors are PyTorch's: Linear `(out, in)`, Conv1d `(out, in, k)`, Embedding `(rows, dim)`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from ..errors import ConfigError
from ..models.speech_lm import StepAudioConfig, StepAudioNet
from ..models.token2wav.campplus import COUNTER, SpeakerConfig, SpeakerEncoder
from ..models.token2wav.flow import Flow, FlowConfig
from ..models.token2wav.hift import Hift, HiftConfig
from ..models.token2wav.speech_tokenizer import S3Config, S3Tokenizer
from .weight_norm import PAIRED, weight_norm_pair

Shape = tuple[int, ...]
Axes = tuple[int, ...]
Token2WavConfig = S3Config | SpeakerConfig | FlowConfig | HiftConfig
Config = StepAudioConfig | Token2WavConfig

COMPONENTS = ("encoder", "adapter", "model", "lm_head")  # first segment of every name of the language model
TOKEN2WAV = ("tokenizer", "speaker", "flow", "hift")  # nets of token2wav; in reports they stand in front of a name
SOURCES: dict[str, str] = {
    "tokenizer": "speech_tokenizer_v2_25hz.onnx", "speaker": "campplus.onnx", "flow": "flow.pt", "hift": "hift.pt"
}  # fmt: skip
CONFIGS: dict[str, type[Token2WavConfig]] = {
    "tokenizer": S3Config, "speaker": SpeakerConfig, "flow": FlowConfig, "hift": HiftConfig
}  # fmt: skip
NETS: dict[type, type[nn.Module]] = {
    StepAudioConfig: StepAudioNet, S3Config: S3Tokenizer, SpeakerConfig: SpeakerEncoder, FlowConfig: Flow,
    HiftConfig: Hift,
}  # fmt: skip

# PyTorch's axes in the order in which MLX holds them: (out, in, k) -> (out, k, in), and so on.
CONV1D, CONV2D, TRANSPOSED = (0, 2, 1), (0, 2, 3, 1), (1, 2, 0)
KERNELS: dict[type, dict[str, Axes]] = {
    StepAudioConfig: {r"encoder\.conv[12]|adapter\.conv": CONV1D},
    S3Config: {r"encoder\.conv[12]|encoder\.blocks\.\d+\.attn\.fsmn_block": CONV1D},
    SpeakerConfig: {
        r"head\.(conv\d|layer\d+\.\d+\.(conv\d|shortcut\.0))": CONV2D,
        r"xvector\.(tdnn|dense|transit\d+)\.linear": CONV1D,
        r"xvector\.block\d+\.tdnnd\d+\.(linear1|cam_layer\.linear(_local|1|2))": CONV1D,
    },
    FlowConfig: {
        r"encoder\.(pre_lookahead_layer\.conv[12]|up_layer\.conv)": CONV1D,
        r"decoder\.estimator\.blocks\.\d+\.conv\.block\.[16]": CONV1D,
    },
    HiftConfig: {
        r"ups\.\d+": TRANSPOSED,
        r"conv_(pre|post)|source_downs\.\d+|f0_predictor\.condnet\.\d+": CONV1D,
        r"(source_)?resblocks\.\d+\.convs[12]\.\d+": CONV1D,
    },
}


def build(config: Config) -> nn.Module:
    """The net of these sizes, not filled yet.

    Raises
    ------
    ConfigError
        Sizes that no array can have.
    """
    try:
        make = cast(Callable[[Config], nn.Module], NETS[type(config)])
        return make(config)
    except (OverflowError, TypeError, ValueError) as error:  # how mlx meets sizes beyond 31 bits
        reason = str(error).split("\n")[0]
        raise ConfigError(f"{type(config).__name__}: a size is beyond what arrays can have ({reason:.80})") from error


def parameters_of(net: nn.Module) -> dict[str, mx.array]:
    """Every parameter of a net by its dotted name, in the order in which the net names them."""
    return dict(cast(list[tuple[str, mx.array]], tree_flatten(net.parameters())))


def net_layout(config: Config) -> dict[str, Shape]:
    """Name -> shape of every tensor that the net of these sizes holds, and a converted file with it.

    Nothing is allocated or computed, and MLX's random state is as it was before. Raises as `build`.
    """
    return dict(_net_layout(config))


@lru_cache(maxsize=32)
def _net_layout(config: Config) -> dict[str, Shape]:
    high, low = cast(Any, mx.random.state)[
        0
    ].tolist()  # constructing a net asks for random numbers, though none is drawn
    try:
        return {name: array.shape for name, array in parameters_of(build(config)).items()}
    finally:
        mx.random.seed(high << 32 | low)


def expected_layout(config: Config, merged: bool = False) -> dict[str, Shape]:
    """Every tensor that is published for these sizes.

    Parameters
    ----------
    config : StepAudioConfig, S3Config, SpeakerConfig, FlowConfig or HiftConfig
        Sizes of the language model, or of one net of token2wav.
    merged : bool
        Whether a weight-norm pair counts as the one kernel that it makes (only the vocoder has such pairs).

    Returns
    -------
    dict of str to tuple of int
        Published name -> shape on disk. For the published sizes 832 names of the language model, 102 of the speech
        tokenizer, 937 of the speaker encoder (122 of them counters), 605 of the flow, 328 of the vocoder.

    Raises
    ------
    ConfigError
        As `build`.
    """
    return dict(_expected_layout(config, merged))


@lru_cache(maxsize=32)
def _expected_layout(config: Config, merged: bool) -> dict[str, Shape]:
    layout: dict[str, Shape] = {}
    for name, shape in _net_layout(config).items():
        axes = axes_of(type(config), name)
        shape = shape if axes is None else tuple(shape[i] for i in inverse(axes))
        paired = isinstance(config, HiftConfig) and not merged and PAIRED.fullmatch(name)
        layout |= weight_norm_pair(name, shape) if paired else {name: shape}
        if isinstance(config, SpeakerConfig) and name.endswith(".running_mean"):
            layout[name.removesuffix(".running_mean") + COUNTER] = ()
    return layout


def axes_of(kind: type, name: str) -> Axes | None:
    """Axes that turn the published tensor `name` into the net's; None where both are alike.

    Parameters
    ----------
    kind : type
        Of the config of the net, such as `StepAudioConfig`.
    name : str
        The net's own name, weight norm merged.
    """
    stem, _, last = name.rpartition(".")
    if last != "weight":
        return None
    return next((axes for pattern, axes in KERNELS[kind].items() if re.fullmatch(pattern, stem)), None)


def kernel_axes(config: Config) -> dict[str, Axes]:
    """Name -> axes, as `axes_of`, of all tensors of a net that have other axes than their published ones."""
    found = {name: axes_of(type(config), name) for name in net_layout(config)}
    return {name: axes for name, axes in found.items() if axes is not None}


def inverse(axes: Axes) -> Axes:
    """Axes that undo a transposition by `axes`."""
    return tuple(sorted(range(len(axes)), key=axes.__getitem__))


def to_net(array: Any, axes: Axes | None) -> Any:
    """A published array (of numpy or MLX) with its axes in the net's order."""
    return array if axes is None else array.transpose(axes)


def to_published(array: Any, axes: Axes | None) -> Any:
    """An array of a net with its axes in PyTorch's order."""
    return array if axes is None else array.transpose(inverse(axes))


def mlx_shape(name: str, shape: Shape) -> Shape:
    """Shape that the language model holds for its published tensor `name` of shape `shape`."""
    axes = axes_of(StepAudioConfig, name)
    return tuple(shape) if axes is None else tuple(shape[axis] for axis in axes)


def component_of(name: str) -> str:
    """One of `COMPONENTS` or `TOKEN2WAV` by the first segment of `name`; anything else is `other`."""
    first = name.split(".", 1)[0]
    return first if first in COMPONENTS or first in TOKEN2WAV else "other"


def prefixed(parts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """{component: {name: value}} as {component.name: value}, the names of reports."""
    return {f"{component}.{name}": value for component, part in parts.items() for name, value in part.items()}
