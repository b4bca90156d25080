"""Sound as it leaves a command: to a file, or to standard output as raw floats, with an account of the run."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import soundfile as sf

from ..audio.features import FLOW_SAMPLE_RATE
from ..audio.save import audio_writer
from .options import STANDARD
from .progress import message
from .streams import print_json


class Account:
    """When sound came, counted from when model and voice were read, how much of it, and where it went."""

    def __init__(self, target: str, rate: int):
        self.target, self.rate, self.began = target, rate, time.perf_counter()
        self.n_samples, self.first = 0, None

    def add(self, n: int) -> None:
        """Count samples that were just written."""
        self.n_samples += n
        if n and self.first is None:
            self.first = time.perf_counter() - self.began

    def report(self, **more) -> int:
        """Print the run as one JSON object; the exit status."""
        found = {
            "file": self.target if self.n_samples else None,
            "seconds": round(self.n_samples / self.rate, 3),
            "sample_rate": self.rate,
            **more,
            "first_sound_seconds": None if self.first is None else round(self.first, 3),
            "wall_seconds": round(time.perf_counter() - self.began, 3),
        }
        print_json(found, sys.stderr if self.target == STANDARD else sys.stdout)
        if not self.n_samples:
            message("no sound: the answer holds no audio codes; nothing was written")
        return 0 if self.n_samples else 1


def written(chunks: Iterable, account: Account, peak: float = 1.0) -> Iterator:
    """Pass chunks on, each once its sound is written; the file is there, whole, when they end."""
    with ExitStack() as stack:
        write = None
        for chunk in chunks:
            if len(chunk.wave):
                write = write or _writer(stack, account.target, account.rate, peak)
                write(chunk.wave)
                account.add(len(chunk.wave))
            yield chunk


def is_ours(path: Path) -> bool:
    """Whether a file is sound as token2wav gives it: in the format of its suffix, one channel, 24 kHz."""
    try:
        found = sf.info(path)
    except (RuntimeError, OSError, ValueError):
        return False
    return (found.format, found.channels, found.samplerate) == (path.suffix[1:].upper(), 1, FLOW_SAMPLE_RATE)


def _writer(stack: ExitStack, target: str, rate: int, peak: float):
    """A function that writes samples to a file, or to standard output."""
    if target != STANDARD:
        return stack.enter_context(audio_writer(target, rate, peak=peak)).write

    def write(wave: np.ndarray) -> None:
        sys.stdout.buffer.write(wave.astype("<f4").tobytes())
        sys.stdout.buffer.flush()

    return write
