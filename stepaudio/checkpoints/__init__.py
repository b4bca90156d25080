"""Tensors on disk: headers, layouts, reports, loading, saving. What is most used is imported when it is first used."""

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .compare import Comparison, compare_checkpoints
    from .layout import expected_layout, parameters_of
    from .load import load_weights, validate_weights
    from .random_weights import random_token2wav
    from .report import WeightReport
    from .save import save_checkpoint
    from .token2wav import Token2Wav, load_token2wav

__all__ = [
    "Comparison", "Token2Wav", "WeightReport", "compare_checkpoints", "expected_layout", "load_token2wav",
    "load_weights", "parameters_of", "random_token2wav", "save_checkpoint", "validate_weights",
]  # fmt: skip

_NAMES = {
    "Comparison": "compare",
    "compare_checkpoints": "compare",
    "Token2Wav": "token2wav",
    "WeightReport": "report",
    "expected_layout": "layout",
    "load_token2wav": "token2wav",
    "load_weights": "load",
    "parameters_of": "layout",
    "random_token2wav": "random_weights",
    "save_checkpoint": "save",
    "validate_weights": "load",
}
__getattr__, __dir__ = lazy_names(__name__, _NAMES)
