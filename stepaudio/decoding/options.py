"""How to generate and when to stop, as one frozen record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ..constants import MAX_TOKENS
from ..errors import DecodeError
from ..models.kv_cache import CachePolicy
from .loop_detector import ON_LOOP
from .sampling import Sampling


@dataclass(frozen=True)
class Options:
    """How to generate and when to stop.

    max_tokens : most ids per row. stop_ids : ids that end a row (the id itself is part of the run).
    on_loop : "off", "report" (note it in the result), "stop" (end the row), "escape" (raise the penalties).
    should_stop : called once per row to make a function `stop(id) -> bool`, for stop strings.
    audio_range : (first, stop) ids that are audio codes, with penalties of their own.
    """

    sampling: Sampling = field(default_factory=Sampling)
    cache: CachePolicy = field(default_factory=CachePolicy)
    max_tokens: int = MAX_TOKENS
    stop_ids: frozenset[int] = frozenset()
    on_loop: str = "report"
    should_stop: Callable[[], Callable[[int], bool]] | None = None
    audio_range: tuple[int, int] | None = None

    def __post_init__(self):
        if not isinstance(self.max_tokens, int) or self.max_tokens < 1:
            raise DecodeError(f"max_tokens: expected a whole number of at least 1, found {self.max_tokens!r}")
        if self.on_loop not in ON_LOOP:
            raise DecodeError(f"on_loop: expected one of {', '.join(ON_LOOP)}, found {self.on_loop!r}")
