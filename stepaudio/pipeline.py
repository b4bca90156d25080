"""The functions around the nets: reading, mel, segment length, prompt, sampling, each as the reference has it.

A model holds one such record and calls what is in it, so that an experiment can put something else in its place
without a branch anywhere. Owns no arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .audio.features import log_mel
from .audio.load import load_audio
from .constants import CHUNK_SAMPLES
from .decoding.sampling import Sampling
from .text.chat_template import Prompt, build_prompt


def as_asked(sampling: Sampling) -> Sampling:
    """The sampling that the caller asked for."""
    return sampling


@dataclass(frozen=True)
class Pipeline:
    """The exchangeable functions of a model; the defaults are those of the reference.

    Parameters
    ----------
    load : callable
        As `audio.load.load_audio`: (source, downmix=, sample_rate=, resampler=) -> float32 (n,) at 16 kHz.
    mel : callable
        As `audio.features.log_mel`: (samples (n,), n_mels) -> float32 (n_mels, T).
    chunk_samples : int > 0
        Longest segment in samples at 16 kHz.
    build_prompt : callable
        As `text.chat_template.build_prompt`: (messages, tokenizer, n_rows) -> Prompt.
    sampling : callable
        The sampling asked for -> the sampling that is done.
    """

    load: Callable[..., np.ndarray] = load_audio
    mel: Callable[..., np.ndarray] = log_mel
    chunk_samples: int = CHUNK_SAMPLES
    build_prompt: Callable[..., Prompt] = build_prompt
    sampling: Callable[[Sampling], Sampling] = as_asked


@dataclass(frozen=True)
class Layout:
    """A prompt before the net has seen any of it.

    Parameters
    ----------
    prompt : token ids, and the places of its audio embeddings.
    mels : (M, T_i), the log mel of each of these places.
    segments : (n_i,) the samples at 16 kHz of which they are.
    began : when work on it began, by `time.perf_counter`.
    """

    prompt: Prompt
    mels: tuple[np.ndarray, ...]
    segments: tuple[np.ndarray, ...]
    began: float
