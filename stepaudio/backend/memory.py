"""What MLX has of the memory: arrays in use, buffers kept for reuse, the most so far; and a limit for those kept.

MLX keeps the buffers of arrays that are gone, so that the next of the same size costs nothing. Unlimited, they grow
with every new length of audio until the machine is full; so a model that is loaded sets a limit, and what is kept is
given back between batches of segments.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

KEPT_BUFFERS = 1 << 30  # bytes; what one step of the published model frees and asks for again is below that


@dataclass(frozen=True)
class MemoryUse:
    """Bytes.

    Parameters
    ----------
    active : int
        Of arrays in use.
    cached : int
        Of buffers that MLX keeps for reuse.
    peak : int
        The most in use since the process began, or since `mx.reset_peak_memory()`.
    kv : int
        Of keys and values at their most, a part of `peak`.
    """

    active: int
    cached: int
    peak: int
    kv: int = 0


def memory_use(kv: int = 0) -> MemoryUse:
    """As it is now."""
    return MemoryUse(mx.get_active_memory(), mx.get_cache_memory(), mx.get_peak_memory(), kv)


def limit_buffers(most: int = KEPT_BUFFERS) -> None:
    """Let MLX keep at most so many bytes of buffers; a lower limit that somebody set stays."""
    before = mx.set_cache_limit(most)
    if before < most:
        mx.set_cache_limit(before)


def free_buffers() -> None:
    """Give back what MLX keeps."""
    mx.clear_cache()


def device_memory() -> int | None:
    """Bytes that the device has, where MLX knows it: of a GPU."""
    found = mx.device_info()
    for name in ("memory_size", "total_memory"):
        if isinstance(found.get(name), int):
            return int(found[name])
    return None
