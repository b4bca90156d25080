"""The four nets that read a voice and speak, filled from a converted `token2wav` folder.

Needs nothing but mlx: the published files are turned into safetensors once, by `stepaudio convert`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from ..errors import WeightsError
from ..models.token2wav.campplus import SpeakerEncoder
from ..models.token2wav.flow import Flow
from ..models.token2wav.hift import Hift
from ..models.token2wav.speech_tokenizer import S3Tokenizer
from .components import COMPONENTS, Config, build, net_layout
from .convert.flow_yaml import read_flow_config
from .convert.manifest import MANIFEST, converted_folder, file_of, read_manifest
from .convert.published import FLOW_YAML, published_folder
from .header import TensorInfo, listed, read_header

FLOATS = {"F32": mx.float32, "F16": mx.float16, "BF16": mx.bfloat16}


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
    WeightsError : not converted yet, converted from another `flow.yaml` than the one beside it, or a tensor that is
        missing, unexpected or mis-shaped, by name.
    ConfigError : sizes that contradict each other.
    """
    if dtype is not None and dtype not in FLOATS.values():
        raise WeightsError(f"dtype {dtype}: the flow can be held in float32, float16 or bfloat16")
    home = converted_folder(folder)
    if home is None:
        raise WeightsError(_unconverted(Path(folder)))
    manifest = read_manifest(home)
    _check_yaml(home, manifest.configs["flow"])
    kinds = {"flow": dtype or mx.float32}
    return Token2Wav(**{c: _load(home / file_of(c), manifest.configs[c], kinds.get(c, mx.float32))
                        for c in COMPONENTS})  # fmt: skip


def _unconverted(folder: Path) -> str:
    if not folder.exists():
        return f"{folder}: no such folder; expected a model's folder, or its converted token2wav folder"
    if published_folder(folder) is None:
        return (
            f"{folder}: no speaking half is here: neither {MANIFEST} nor the published files of token2wav; "
            "download them, then run `stepaudio convert` on the folder"
        )
    return f"{folder}: token2wav is not converted yet; run `stepaudio convert {folder}` once"


def _check_yaml(home: Path, config: Config) -> None:
    """A `flow.yaml` that lies beside must still be the one that was converted."""
    if (home / FLOW_YAML).is_file() and read_flow_config(home / FLOW_YAML) != config:
        raise WeightsError(f"{home / FLOW_YAML}: not the sizes that were converted; run `stepaudio convert` again")


def _load(path: Path, config: Config, dtype: mx.Dtype):
    """One net, filled."""
    check_header(path, read_header(path), config)
    net = build(config)
    try:
        stored = mx.load(str(path), format="safetensors")
        net.load_weights([(name, array.astype(dtype)) for name, array in stored.items()])
        mx.eval(net.parameters())
    except (OSError, RuntimeError, ValueError) as error:
        raise WeightsError(f"{path}: cannot be read ({error}); run `stepaudio convert` again") from None
    return net


def check_header(path: Path, found: dict[str, TensorInfo], config: Config) -> None:
    """Refuse a converted file that is not exactly what the net holds; the message names every fault."""
    layout = net_layout(config)
    missing, spare = [n for n in layout if n not in found], sorted(found.keys() - layout)
    wrong = [f"{n} has shape {found[n].shape}, expected {layout[n]}" for n in layout
             if n in found and found[n].shape != layout[n]]  # fmt: skip
    odd = [f"{n} ({found[n].dtype})" for n in layout if n in found and found[n].dtype not in FLOATS]
    faults = [f"{len(names)} of {len(layout)} tensors {fault}: {listed(names)}" for fault, names in (
        ("are missing", missing), ("have no place in the net", spare), ("have other shapes", wrong),
        ("have an unusable type", odd)) if names]  # fmt: skip
    if faults:
        raise WeightsError(f"{path}: {'; '.join(faults)}; run `stepaudio convert` again")
