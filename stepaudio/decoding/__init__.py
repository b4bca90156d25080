"""Logit rules, the sampler, the one decoding loop and what comes out of it. Names are imported lazily."""

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .generate import Alternative, Run, Step
    from .loop_detector import Loop, LoopDetector, find_loop
    from .options import DecodingOptions, merge_options
    from .outputs import Generation
    from .sampling import Penalties, Sampling

__all__ = [
    "Alternative",
    "DecodingOptions",
    "Generation",
    "Loop",
    "LoopDetector",
    "Penalties",
    "Run",
    "Sampling",
    "Step",
    "find_loop",
    "merge_options",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Alternative": "generate",
        "DecodingOptions": "options",
        "Generation": "outputs",
        "Loop": "loop_detector",
        "LoopDetector": "loop_detector",
        "Penalties": "sampling",
        "Run": "generate",
        "Sampling": "sampling",
        "Step": "generate",
        "find_loop": "loop_detector",
        "merge_options": "options",
    },
)
