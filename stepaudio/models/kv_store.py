"""What a cache holds of one layer's keys or values: a growing buffer, of floats or of packed numbers of few bits.

Axes: B sequences of a batch, H key/value heads, L positions, D channels of a head. What is read back is what was
quantised, the newest positions included, so that a prompt gives the same in one step as in many.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from ..errors import DecodeError
from .quantization import Bits

GROWTH = 256  # positions by which a buffer grows
GROUPS = (64, 32)  # channels of a head that share a scale and an offset, the first that divides the head


def bits_of_head(bits: int | None, head_dim: int) -> Bits | None:
    """How the D channels of a head are held; `DecodeError` where no group divides them. None stays None."""
    if bits is None:
        return None
    group = next((g for g in GROUPS if head_dim % g == 0), None)
    if group is None:
        raise DecodeError(
            f"kv_bits={bits}: heads of {head_dim} channels come out in no groups of {' or '.join(map(str, GROUPS))}; "
            "leave it out"
        )
    return Bits(bits, group)


class Store:
    """A buffer of positions, to be written at any of them and read from the first on."""

    def __init__(self, bits: Bits | None = None):
        self._bits = bits
        self.arrays: list[mx.array] = []  # floats; or packed numbers, scales and offsets; (B, H, L, …) each

    def _packed(self, x: mx.array) -> list[mx.array]:
        return [x] if self._bits is None else list(mx.quantize(x, **self._bits.options))

    def write(self, x: mx.array, start: int, limit: int | None = None) -> None:
        """Put (B, H, n, D) at positions start…; the buffer grows by blocks, up to `limit` if there is one."""
        new = self._packed(x)
        held = self.arrays or [None] * len(new)
        self.arrays = [write(buffer, part, start, limit) for buffer, part in zip(held, new, strict=True)]

    def put(self, x: mx.array, slots: np.ndarray, limit: int) -> None:
        """Put (B, H, 1, D) at a position of its own in each sequence, `slots` (B,); the buffer grows as in `write`."""
        if (slots == slots[0]).all():
            return self.write(x, int(slots[0]), limit)
        new, rows = self._packed(x), mx.arange(len(slots))
        self.arrays = [grown(buffer, int(slots.max()) + 1, limit) for buffer in self.arrays]
        for buffer, part in zip(self.arrays, new, strict=True):
            buffer[rows, :, mx.array(slots)] = part[:, :, 0]
        return None

    def extend(self, x: mx.array, held: int) -> None:
        """Put (B, H, n, D) behind the first `held` positions, without room for more."""
        new = self._packed(x)
        if self.arrays:
            pairs = zip(self.arrays, new, strict=True)
            new = [mx.concatenate([buffer[..., :held, :], part], axis=2) for buffer, part in pairs]
        self.arrays = new

    def read(self, n: int) -> mx.array:
        """The first n positions, (B, H, n, D)."""
        parts = [buffer if buffer.shape[2] == n else buffer[..., :n, :] for buffer in self.arrays]
        if self._bits is None:
            return parts[0]
        numbers, scales, offsets = parts
        return mx.dequantize(numbers, scales, offsets, **self._bits.options)

    def keep(self, positions: mx.array) -> None:
        """Drop all positions but these."""
        self.arrays = [buffer[..., positions, :] for buffer in self.arrays]

    def keep_each(self, positions: mx.array) -> None:
        """Drop all positions but these (B, L), which differ from sequence to sequence."""
        index = positions[:, None, :, None]
        self.arrays = [mx.take_along_axis(buffer, index, axis=2) for buffer in self.arrays]

    def keep_rows(self, rows: mx.array) -> None:
        """Drop all sequences of the batch but these."""
        self.arrays = [buffer[rows] for buffer in self.arrays]

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers."""
        return sum(buffer.nbytes for buffer in self.arrays)


class Layers:
    """Keys and values of every layer: what caches of all kinds hold."""

    def __init__(self, n_layers: int, bits: Bits | None = None):
        self._keys = [Store(bits) for _ in range(n_layers)]
        self._values = [Store(bits) for _ in range(n_layers)]

    @property
    def stores(self) -> list[Store]:
        """The keys of all layers, then the values."""
        return [*self._keys, *self._values]

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        return sum(a.nbytes for a in self.arrays)

    @property
    def arrays(self) -> list[mx.array]:
        """The buffers, to be evaluated."""
        return [a for store in self.stores for a in store.arrays]

    def copied(self) -> dict[str, mx.array]:
        """The buffers by the number of their store and of their part; what is written later does not reach them."""
        return {f"{i}.{j}": mx.array(a) for i, store in enumerate(self.stores) for j, a in enumerate(store.arrays)}

    def put_back(self, state: dict[str, mx.array]) -> None:
        """Hold what `copied` gave of a cache of the same kind and size."""
        for i, store in enumerate(self.stores):
            parts = sorted(name for name in state if name.partition(".")[0] == str(i))
            store.arrays = [mx.array(state[name]) for name in parts]


def write(buffer: mx.array | None, new: mx.array, start: int, limit: int | None = None) -> mx.array:
    """`buffer` with `new` (B, H, n, …) at positions start…, grown by a block where it is too short."""
    end = start + new.shape[2]
    buffer = grown(new[:, :, :0] if buffer is None else buffer, end, limit)
    buffer[..., start:end, :] = new
    return buffer


def grown(buffer: mx.array, end: int, limit: int | None = None) -> mx.array:
    """`buffer` with room for positions up to `end`: by a block, or as far as `limit`, where it is too short."""
    if buffer.shape[2] >= end:
        return buffer
    length = -(-end // GROWTH) * GROWTH
    length = max(end, min(length, limit)) if limit else length
    more = mx.zeros((*buffer.shape[:2], length - buffer.shape[2], buffer.shape[3]), buffer.dtype)
    return mx.concatenate([buffer, more], axis=2) if buffer.shape[2] else more
