"""How a bench lets programs take turns over random nets of the published sizes, or of small ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from ..backend.device import default_dtype
from ..constants import SAMPLE_RATE
from ..decoding.generate import Request, generate
from ..decoding.options import RunOptions, merge_options
from ..engine import Engine
from ..errors import ConfigError
from ..models.kv_cache import CachePolicy
from ..models.speech_lm import StepAudioNet
from ..models.tap import Tap
from . import peers
from .agreement import sizes_named
from .memory import PROMPT, random_engine
from .rows import Row

OURS = "stepaudio"
Sides = dict[tuple[str, str], Callable[[], float]]  # (what, whose) -> what measures it once


class Bench:
    """Random nets of these sizes, and how often and how long things are measured."""

    def __init__(self, small: bool = False, repeats: int = 3, seed: int = 0):
        if repeats < 1:
            raise ConfigError(f"repeats: expected at least 1, found {repeats}")
        self.small, self.repeats, self.seed = small, repeats, seed
        self.n_tokens = 24 if small else 128
        self.config, self.dtype = sizes_named(small), default_dtype()

    @cached_property
    def engine(self) -> Engine:
        """The language model, made when it is first asked for: parts about sound alone need none."""
        return random_engine(self.config, self.dtype, seed=self.seed)

    @cached_property
    def peers(self) -> list[Any]:
        """Other programs over the same weights."""
        return peers.found(self.engine.net)

    def noise(self, seconds: float) -> np.ndarray:
        """Samples at 16 kHz."""
        return np.random.default_rng(self.seed).normal(0, 0.1, round(seconds * SAMPLE_RATE)).astype(np.float32)

    def mel(self, seconds: float) -> np.ndarray:
        """Log mel of noise."""
        return self.engine.log_mel(self.noise(seconds))

    def request(self, seconds: float) -> Request:
        """To transcribe so much noise."""
        (encoded,) = self.engine.encode_audio([self.mel(seconds)])
        return self.engine.transcription_request(encoded, PROMPT)

    def words(self, n: int) -> Request:
        """A prompt of `n` random tokens."""
        tokens = np.random.default_rng(self.seed).integers(0, self.config.text_config.vocab_size, n)
        return Request(tokens.tolist(), self.engine.net.embed(tokens)[0])

    def rate(
        self,
        requests: Sequence[Request],
        n: int = 0,
        net: StepAudioNet | None = None,
        tap: Tap | None = None,
        **options,
    ) -> float:
        """Tokens per second of all requests together."""
        run = run_options(n or self.n_tokens, **options)
        ends = [time.perf_counter() for s in generate(net or self.engine.net, requests, run, tap) if s.row == 0]
        return len(requests) * peers.rate(ends)

    def first(self, request: Request, tap: Tap | None = None, **options) -> float:
        """Seconds from a request to its first token."""
        began = time.perf_counter()
        next(generate(self.engine.net, [request], run_options(1, **options), tap))
        return time.perf_counter() - began

    def rows(self, part: str, unit: str, sides: Mapping[tuple[str, str], Callable[[], float]]) -> Iterator[Row]:
        """Let (what, side) take turns; the first round warms up and does not count."""
        values: dict[tuple[str, str], list[float]] = {name: [] for name in sides}
        for i in range(self.repeats + 1):
            for name, side in sides.items():
                value = side()
                if i:
                    values[name].append(value)
        for (what, side), found in values.items():
            yield Row(part, what, side, unit, tuple(found))


def run_options(n: int, **options) -> RunOptions:
    """Greedy over a full cache unless told otherwise, and `n` tokens whatever they are."""
    chosen = {"sampling": "greedy", "cache": CachePolicy("full")} | options
    return RunOptions.of(merge_options(on_loop="off", max_tokens=n, **chosen), frozenset())


def gb(n: int) -> tuple[float]:
    """Bytes as the value of a row in GB."""
    return (n / 1e9,)
