"""A research workbench for Step-Audio 2 mini on Apple MLX.

>>> import stepaudio
>>> model = stepaudio.load()                                  # doctest: +SKIP
>>> print(model.transcribe("talk.mp3").text)                  # doctest: +SKIP

Everything public is imported when it is first used. What importing does: it puts a fast BLAS under MLX, which has to
happen before MLX is imported, has the C library keep freed memory and MLX's CUDA caches take any number of
shapes, and watches for forks of a process that used MLX.
"""

from .cli.importing import quiet_while_importing as _quiet_while_importing

_quiet_while_importing()  # before all else: whoever presses Ctrl-C while the rest is imported wants no traceback

# ruff: noqa: E402
from typing import TYPE_CHECKING

from .backend.blas import allow_any_shapes as _allow_any_shapes
from .backend.blas import keep_freed_memory as _keep_freed_memory
from .backend.blas import preload_blas as _preload_blas
from .backend.device import explain_missing_packages as _explain_missing_packages
from .backend.process import watch_forks as _watch_forks
from .lazy import lazy_names as _lazy_names

if not _explain_missing_packages():
    _preload_blas()  # must come before anything that imports mlx
    _keep_freed_memory()
    _allow_any_shapes()
_watch_forks()

__version__ = "0.1.0"

if TYPE_CHECKING:
    from . import (
        audio,
        backend,
        bench,
        checkpoints,
        choices,
        conversation,
        decoding,
        errors,
        evaluation,
        experiments,
        interp,
        models,
        parity,
        resources,
        synthesis,
        text,
        train,
        viz,
    )
    from .checkpoints.load import validate_weights
    from .choices import CacheKind, LoopAction, Positions, StopReason
    from .conversation import Conversation
    from .decoding.options import DecodingOptions
    from .decoding.prompt_cache import PromptCache
    from .decoding.sampling import Contrast, Penalties, Sampling
    from .errors import StepAudioError
    from .evaluation.scores import evaluate
    from .model import StepAudio2, load
    from .models.kv_cache import CachePolicy
    from .parity.run import verify
    from .speech_model import SpeechModel, SpeechOptions
    from .synthesis.voice import Voice
    from .transcript import Segment, Transcript

_NAMES = {
    "load": "model",
    "StepAudio2": "model",
    "SpeechModel": "speech_model",
    "SpeechOptions": "speech_model",
    "DecodingOptions": "decoding.options",
    "PromptCache": "decoding.prompt_cache",
    "Conversation": "conversation.conversation",
    "Contrast": "decoding.sampling",
    "Sampling": "decoding.sampling",
    "Penalties": "decoding.sampling",
    "CachePolicy": "models.kv_cache",
    "CacheKind": "choices",
    "Positions": "choices",
    "LoopAction": "choices",
    "StopReason": "choices",
    "Transcript": "transcript",
    "Segment": "transcript",
    "Voice": "synthesis.voice",
    "evaluate": "evaluation.scores",
    "validate_weights": "checkpoints.load",
    "verify": "parity.run",
    "StepAudioError": "errors",
}
_MODULES = (
    "audio", "backend", "bench", "checkpoints", "choices", "conversation", "decoding", "errors", "evaluation",
    "experiments", "interp", "models", "parity", "resources", "synthesis", "text", "train", "viz",
)  # fmt: skip

__all__ = [
    "CacheKind", "CachePolicy", "Contrast", "Conversation", "DecodingOptions", "LoopAction", "Penalties", "Positions",
    "PromptCache", "Sampling", "Segment",
    "SpeechModel", "SpeechOptions", "StepAudio2", "StepAudioError", "StopReason", "Transcript", "Voice", "__version__",
    "audio", "backend", "bench", "checkpoints", "choices", "conversation", "decoding", "errors", "evaluate",
    "evaluation", "experiments", "interp", "load", "models", "parity", "resources", "synthesis", "text", "train",
    "validate_weights", "verify", "viz",
]  # fmt: skip

__getattr__, __dir__ = _lazy_names(__name__, _NAMES | {name: name for name in _MODULES})
