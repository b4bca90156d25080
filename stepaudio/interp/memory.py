"""What a run costs in memory, step by step."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from ..decoding.generate import Step


@dataclass(frozen=True)
class Memory:
    """Bytes after each token of a run.

    Attributes
    ----------
    active : (tokens,) of MLX arrays in use.
    cached : (tokens,) of buffers that MLX keeps for reuse.
    peak : (tokens,) the most in use so far.
    kv : (tokens,) of the key/value cache, a part of `active`.
    """

    active: np.ndarray
    cached: np.ndarray
    peak: np.ndarray
    kv: np.ndarray


def watch_memory(steps: Iterable[Step]) -> tuple[list[Step], Memory]:
    """Run the generation of one answer to its end and note the memory after each token; the peak counts from the first.

    Parameters
    ----------
    steps : as `StepAudio2.stream` gives them.

    Returns
    -------
    The steps, and the memory after each.
    """
    kept, rows = [], []
    mx.reset_peak_memory()
    for step in steps:
        kept.append(step)
        rows.append((mx.get_active_memory(), mx.get_cache_memory(), mx.get_peak_memory(), step.kv_bytes))
    return kept, Memory(*np.array(rows, np.int64).reshape(-1, 4).T)
