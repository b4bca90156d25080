"""The four nets that read a voice and speak, filled from a converted `token2wav` folder.

Needs nothing but mlx: the published files are turned into safetensors once, by `stepaudio convert`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..backend.device import on_cpu
from ..backend.process import enter
from ..errors import WeightsError
from ..models.quantization import Bits, layers_of, quantise_layers, require_backend
from ..models.token2wav.campplus import SpeakerEncoder
from ..models.token2wav.flow import Flow
from ..models.token2wav.hift import Hift
from ..models.token2wav.speech_tokenizer import S3Tokenizer
from ..reading import is_file, is_folder
from .convert.flow_yaml import read_flow_config
from .convert.manifest import MANIFEST, Manifest, converted_folder, file_of, read_manifest
from .convert.published import FLOW_YAML, published_folder
from .dtypes import held_dtype
from .header import TensorInfo
from .layout import TOKEN2WAV, Token2WavConfig, build, net_layout
from .match import match_stored
from .net_records import arrays_of, net_records
from .packed import WEIGHT, PackedTensor, layer_arrays


@dataclass(frozen=True)
class Token2Wav:
    """Nets with their weights; each knows its sizes as `.config`. They hold no state and may serve many voices."""

    tokenizer: S3Tokenizer
    speaker: SpeakerEncoder
    flow: Flow
    hift: Hift


def load_token2wav(folder: str | Path, dtype: mx.Dtype | str | None = None) -> Token2Wav:
    """Load the nets from a model's folder or from the converted `token2wav` folder in it.

    Parameters
    ----------
    folder : str or Path
        What `stepaudio convert` was given, or wrote to.
    dtype : mx.Dtype or its name, optional
        float32 (the default), float16 or bfloat16 of the flow's weights. Tokenizer, speaker encoder and vocoder
        are always float32: half precision moves codes, and the vocoder's phase reaches thousands of radians.
        Tensors of fewer bits are widened to it; but the flow's linear layers stay packed on a GPU.

    Raises
    ------
    WeightsError
        Not converted yet, converted from another `flow.yaml` than the one beside it, or a tensor that is missing,
        unexpected or mis-shaped, by name; a manifest and files that do not call the same tensors quantised.
    ConfigError
        Sizes that contradict each other, or bits that MLX has not got.
    """
    enter()
    dtype = held_dtype(dtype)
    home = converted_folder(folder)
    if home is None:
        raise WeightsError(_unconverted(Path(folder)))
    manifest = read_manifest(home)
    _check_yaml(home, manifest.configs["flow"])
    kinds = {"flow": dtype or mx.float32}
    nets = {c: _load(manifest, c, kinds.get(c, mx.float32)) for c in TOKEN2WAV}
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


def _load(manifest: Manifest, component: str, dtype: mx.Dtype) -> Any:
    """One net, filled."""
    path, config = manifest.folder / file_of(component), manifest.configs[component]
    records = net_records(manifest, component)
    check_header(path, records, config)
    net = build(config)
    kept = {} if component != "flow" or on_cpu() else _stay_packed(net, records)
    quantise_layers(net, {name.removesuffix(WEIGHT): info.bits for name, info in kept.items()})
    try:
        arrays = [part for name, info in kept.items() for part in layer_arrays(name, info, dtype)]
        for name, array in arrays_of(path, {name: info for name, info in records.items() if name not in kept}):
            arrays.append((name, array.astype(dtype)))
            mx.eval(arrays[-1][1])  # one by one, so that an interrupt is seen in between
        net.load_weights(arrays)
    except (OSError, RuntimeError, ValueError) as error:
        raise WeightsError(f"{path}: cannot be read ({error}); run `stepaudio convert` again") from None
    return net


def _stay_packed(net: Any, records: Mapping[str, TensorInfo]) -> dict[str, PackedTensor]:
    """The matrices of fewer bits that a layer of the net can hold as they are: stored by rows, known to the backend."""
    layers = layers_of(net)
    found = {
        name: info
        for name, info in records.items()
        if isinstance(info, PackedTensor) and info.matrix == layers.get(name.removesuffix(WEIGHT))
    }
    computed = {bits: _is_computed(bits) for bits in {info.bits for info in found.values()}}
    return {name: info for name, info in found.items() if computed[info.bits]}


def _is_computed(bits: Bits) -> bool:
    with contextlib.suppress(WeightsError):
        require_backend(bits)
        return True
    return False


def check_header(path: Path, found: Mapping[str, TensorInfo], config: Token2WavConfig) -> None:
    """Refuse with `WeightsError` a converted file that is not exactly what the net holds; it names every fault."""
    faults = match_stored(found, net_layout(config)).faults()
    if faults:
        raise WeightsError(f"{path}: {faults}; run `stepaudio convert` again")
