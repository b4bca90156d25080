"""Microphone and speaker, through the package sounddevice: an extra, imported when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..constants import SAMPLE_RATE
from ..errors import AudioError, BackendError


def require_devices() -> Any:
    """The module; `BackendError` where it, or the library of the system under it, is not installed."""
    try:
        import sounddevice
    except (ImportError, OSError) as error:  # OSError: no PortAudio
        raise BackendError(
            f"microphone and speaker need the package sounddevice ({error}): pip install 'stepaudio[mic]', or use files"
        ) from None
    return sounddevice


def recorded(until: Callable[[], object]) -> np.ndarray:
    """What the microphone takes while `until` runs: (n,) float32 at 16 kHz. `AudioError` if there is none."""
    blocks: list[np.ndarray] = []

    def take(block: np.ndarray, *_about: object) -> None:
        blocks.append(block[:, 0].copy())

    with _opened("microphone", lambda sd: sd.InputStream(SAMPLE_RATE, channels=1, dtype="float32", callback=take)):
        until()
    return np.concatenate([np.zeros(0, np.float32), *blocks])


@contextmanager
def speaker(rate: int) -> Iterator[Callable[[np.ndarray], None]]:
    """A function that plays samples (n,) at this rate; the block ends when all were played."""
    with _opened("speaker", lambda sd: sd.OutputStream(rate, channels=1, dtype="float32")) as stream:
        yield lambda wave: stream.write(np.ascontiguousarray(wave[:, None], np.float32))


@contextmanager
def _opened(what: str, make: Callable[[Any], Any]) -> Iterator[Any]:
    devices = require_devices()
    try:
        with make(devices) as stream:
            yield stream
    except devices.PortAudioError as error:
        expected = "choose another in the settings of the system, or use files"
        raise AudioError(f"{what}: cannot be used ({error}); {expected}") from None
