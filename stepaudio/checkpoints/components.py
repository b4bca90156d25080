"""The four nets of `token2wav`, each with its published file, its config and the tensors that it holds.

Names of components are those of `Token2Wav`'s fields. Shapes are the nets' own, kernels as MLX has them. Opens no
file.
"""

from __future__ import annotations

import mlx.nn as nn

from ..models.token2wav.campplus import COUNTER, SpeakerConfig, SpeakerEncoder
from ..models.token2wav.flow import Flow, FlowConfig
from ..models.token2wav.hift import Hift, HiftConfig
from ..models.token2wav.speech_tokenizer import S3Config, S3Tokenizer
from ..schema import read_record
from .layout import SPEAKING, Shape
from .s3_layout import s3_kernels, s3_layout
from .speaker_layout import speaker_kernels, speaker_layout
from .token2wav_layout import CONV, flow_kernels, flow_layout, hift_kernels, hift_layout

COMPONENTS = SPEAKING
SOURCES = dict(zip(COMPONENTS, ("speech_tokenizer_v2_25hz.onnx", "campplus.onnx", "flow.pt", "hift.pt"), strict=True))
Config = S3Config | SpeakerConfig | FlowConfig | HiftConfig


def read_config(component: str, data: object, path: str) -> Config:
    """The config of one component from a mapping; `ConfigError`, opened by `path`, where it has other keys."""
    kinds = {"tokenizer": S3Config, "speaker": SpeakerConfig, "flow": FlowConfig, "hift": HiftConfig}
    return read_record(kinds[component], data, path)


def build(config: Config) -> nn.Module:
    """The net of these sizes, not filled yet."""
    nets = {S3Config: S3Tokenizer, SpeakerConfig: SpeakerEncoder, FlowConfig: Flow, HiftConfig: Hift}
    return nets[type(config)](config)


def published_layout(config: Config) -> dict[str, Shape]:
    """Published name -> shape on disk, as PyTorch has it."""
    layouts = {S3Config: s3_layout, SpeakerConfig: speaker_layout, FlowConfig: flow_layout, HiftConfig: hift_layout}
    return layouts[type(config)](config)


def kernel_axes(config: Config) -> dict[str, tuple[int, ...]]:
    """Name in the net -> order of axes, for every tensor that the net holds in another order than PyTorch."""
    if isinstance(config, S3Config):
        return dict.fromkeys(s3_kernels(config), CONV)
    kernels = {SpeakerConfig: speaker_kernels, FlowConfig: flow_kernels, HiftConfig: hift_kernels}
    return kernels[type(config)](config)


def net_layout(config: Config) -> dict[str, Shape]:
    """Name -> shape of every tensor that the net holds, and a converted file with it."""
    layout = hift_layout(config, merged=True) if isinstance(config, HiftConfig) else published_layout(config)
    axes = kernel_axes(config)
    return {
        name: tuple(shape[i] for i in axes[name]) if name in axes else shape
        for name, shape in layout.items()
        if not name.endswith(COUNTER)
    }
