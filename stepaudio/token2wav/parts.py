"""The four nets that read a voice and speak, filled from a converted `token2wav` folder.

Needs nothing but mlx: the published files are turned into safetensors once, by `stepaudio convert`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from ..errors import WeightsError
from .flow import Flow
from .hift import Hift
from .s3 import S3Tokenizer
from .speaker import SpeakerEncoder


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
    WeightsError : not converted yet, or a tensor that is missing, unexpected or mis-shaped, by name.
    ConfigError : sizes that contradict each other.
    """
    raise WeightsError(f"{folder}: not converted; run `stepaudio convert {folder}` once")
