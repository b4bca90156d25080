"""What a run costs in memory, step by step."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from ..decoding.generate import Step


@dataclass(frozen=True)
class Memory:
    """Bytes after each id of a run, each (ids,): of MLX arrays in use, of buffers kept for reuse, the most in use
    so far, and of the key/value cache (a part of those in use).
    """

    active: np.ndarray
    cached: np.ndarray
    peak: np.ndarray
    kv: np.ndarray


def watch_memory(steps: Iterable[Step]) -> tuple[list[Step], Memory]:
    """Run a generation of one row to its end and note the memory after each id; the peak counts from the first."""
    kept, rows = [], []
    mx.reset_peak_memory()
    for step in steps:
        kept.append(step)
        rows.append((mx.get_active_memory(), mx.get_cache_memory(), mx.get_peak_memory(), step.kv_bytes))
    return kept, Memory(*np.array(rows, np.int64).reshape(-1, 4).T)
