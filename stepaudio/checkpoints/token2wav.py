"""The four nets that read a voice and speak, filled from a converted `token2wav` folder.

Needs nothing but mlx: the published files are turned into safetensors once, by `stepaudio convert`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..backend.process import enter
from ..errors import WeightsError
from ..models.token2wav.campplus import SpeakerEncoder
from ..models.token2wav.flow import Flow
from ..models.token2wav.hift import Hift
from ..models.token2wav.speech_tokenizer import S3Tokenizer
from ..reading import is_file, is_folder
from .convert.flow_yaml import read_flow_config
from .convert.manifest import MANIFEST, converted_folder, file_of, read_manifest
from .convert.published import FLOW_YAML, published_folder
from .dtypes import HELD
from .header import TensorInfo, read_header
from .int8 import widened_pairs, with_scales
from .layout import TOKEN2WAV, Token2WavConfig, build, net_layout
from .match import match_stored
from .tensors import lazy_arrays


@dataclass(frozen=True)
class Token2Wav:
    """Nets with their weights; each knows its sizes as `.config`. They hold no state and may serve many voices."""

    tokenizer: S3Tokenizer
    speaker: SpeakerEncoder
    flow: Flow
    hift: Hift


def load_token2wav(folder: str | Path, dtype: mx.Dtype | None = None) -> Token2Wav:
    """Load the nets from a model's folder or from the converted `token2wav` folder in it.

    Parameters
    ----------
    folder : str or Path
        What `stepaudio convert` was given, or wrote to.
    dtype : mx.Dtype, optional
        float32 (the default), float16 or bfloat16 of the flow's weights. Tokenizer, speaker encoder and vocoder
        are always float32: half precision moves codes, and the vocoder's phase reaches thousands of radians.

    Raises
    ------
    WeightsError
        Not converted yet, converted from another `flow.yaml` than the one beside it, or a tensor that is missing,
        unexpected or mis-shaped, by name.
    ConfigError
        Sizes that contradict each other.
    """
    enter()
    if dtype is not None and dtype not in HELD.values():
        raise WeightsError(f"dtype {dtype}: the flow can be held in float32, float16 or bfloat16")
    home = converted_folder(folder)
    if home is None:
        raise WeightsError(_unconverted(Path(folder)))
    manifest = read_manifest(home)
    _check_yaml(home, manifest.configs["flow"])
    kinds = {"flow": dtype or mx.float32}
    nets = {c: _load(home / file_of(c), manifest.configs[c], kinds.get(c, mx.float32)) for c in TOKEN2WAV}
    return Token2Wav(**nets)


def _unconverted(folder: Path) -> str:
    if not is_folder(folder, WeightsError):
        return f"{folder}: no such folder; expected a model's folder, or its converted token2wav folder"
    if published_folder(folder) is None:
        return (
            f"{folder}: no token2wav is here: neither {MANIFEST} nor the published files of token2wav; "
            "download them, then run `stepaudio convert` on the folder"
        )
    return f"{folder}: token2wav is not converted yet; run `stepaudio convert {folder}` once"


def _check_yaml(home: Path, config: Token2WavConfig) -> None:
    """A `flow.yaml` that lies beside must still be the one that was converted."""
    if is_file(home / FLOW_YAML, WeightsError) and read_flow_config(home / FLOW_YAML) != config:
        raise WeightsError(f"{home / FLOW_YAML}: not the sizes that were converted; run `stepaudio convert` again")


def _load(path: Path, config: Token2WavConfig, dtype: mx.Dtype) -> Any:
    """One net, filled."""
    check_header(path, with_scales(read_header(path)), config)
    net = build(config)
    try:
        stored = widened_pairs(lazy_arrays(path))
        arrays = [(name, array.astype(dtype)) for name, array in stored.items()]
        for _, array in arrays:
            mx.eval(array)  # one by one, so that an interrupt is seen in between
        net.load_weights(arrays)
    except (OSError, RuntimeError, ValueError) as error:
        raise WeightsError(f"{path}: cannot be read ({error}); run `stepaudio convert` again") from None
    return net


def check_header(path: Path, found: Mapping[str, TensorInfo], config: Token2WavConfig) -> None:
    """Refuse with `WeightsError` a converted file that is not exactly what the net holds; it names every fault."""
    faults = match_stored(found, net_layout(config)).faults()
    if faults:
        raise WeightsError(f"{path}: {faults}; run `stepaudio convert` again")
