"""Taps: how a caller sees what a net computes."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx

Tap = Callable[[str, mx.array], None]


def no_tap(name: str, array: mx.array) -> None:
    pass


def named(tap: Tap | None, prefix: str) -> Tap | None:
    return None if tap is None else lambda name, array: tap(prefix + name, array)
