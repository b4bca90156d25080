"""How much of a context a conversation takes, turn by turn, and what a cache with a limit would evict of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..backend.device import on_cpu
from ..constants import n_audio_embeddings, n_mel_frames
from ..decoding.options import DecodingOptions
from ..decoding.prefill import positions_at_once
from ..engine import Engine
from ..text.chat_template import Message, Prompt
from .recording import Recording
from .turns import Turn


@dataclass(frozen=True)
class TurnSpan:
    """Where a turn lies in the prompt, and what goes of it.

    Parameters
    ----------
    role : str
        Of the turn; the open answer is "answer".
    start, length : int
        In positions.
    evicted : int
        Positions of it that the cache no longer holds when the answer begins.
    evicted_later : int
        The same once the answer took all its tokens.
    """

    role: str
    start: int
    length: int
    evicted: int
    evicted_later: int


@dataclass(frozen=True)
class Context:
    """The context budget of the next answer.

    Parameters
    ----------
    spans : tuple of TurnSpan
        Of the turns, and of the answer's opening.
    max_tokens : int
        Most tokens of the answer.
    limit : int or None
        Most positions that the cache holds; None for no limit.
    """

    spans: tuple[TurnSpan, ...]
    max_tokens: int
    limit: int | None

    @property
    def n_prompt(self) -> int:
        """Positions of the prompt."""
        return sum(span.length for span in self.spans)

    @property
    def room(self) -> int | None:
        """Tokens that the answer may have before anything is evicted; negative if the prompt alone is too long."""
        return None if self.limit is None else self.limit - self.n_prompt

    def __str__(self) -> str:
        of = "no limit" if self.limit is None else f"of {self.limit}"
        lines = [f"{self.n_prompt} positions {of}, answer up to {self.max_tokens}"]
        lines.append(f"{'turn':>4}  {'role':7} {'positions':>9}  {'evicted':>7}  {'by its end':>10}")
        for n, s in enumerate(self.spans):
            lines.append(f"{n:4}  {s.role:7} {s.length:9}  {s.evicted:7}  {s.evicted_later:10}")
        return "\n".join(lines)


def context_of(engine: Engine, turns: Sequence[Turn], opening: Message, options: DecodingOptions) -> Context:
    """The budget of an answer to these turns; nothing is encoded and nothing is computed by a net."""
    lengths, spans, start = [], [], 0
    for prompt in prompts_of(engine, turns, opening):
        spans += [(start + slot.start, slot.length) for slot in prompt.slots]
        lengths.append(prompt.n_prompt)
        start += prompt.n_prompt
    limit = engine.config.max_cache_len
    cache = options.policy.build(0, engine.net.model.rope, limit, spans)
    _fill(cache, start)
    now = set(cache.held.tolist())
    _fill(cache, options.max_tokens)
    later, found, start = set(cache.held.tolist()), [], 0
    for turn, length in zip([*turns, None], lengths, strict=True):
        own = range(start, start + length)
        role = str(turn.role) if turn is not None else "answer"
        gone = [sum(p not in held for p in own) for held in (now, later)]
        found.append(TurnSpan(role, start, length, *gone))
        start += length
    return Context(tuple(found), options.max_tokens, options.policy.limit(limit))


def prompts_of(engine: Engine, turns: Sequence[Turn], opening: Message) -> list[Prompt]:
    """The prompt of each turn, and that of the answer's opening: all tokens joined are those of the whole."""
    tokenizer, found = engine.require_tokenizer(), []
    for turn in turns:
        recordings = [part for part in turn.parts if isinstance(part, Recording)]
        rows = [_rows(recording, engine.pipeline.chunk_samples) for recording in recordings]
        found.append(engine.pipeline.build_prompt([turn.message(tokenizer)], tokenizer, rows))
    return [*found, engine.pipeline.build_prompt([opening], tokenizer, [])]


def _rows(recording: Recording, size: int) -> list[int]:
    """Audio embeddings of each segment of a recording."""
    n = len(recording.values)
    return [n_audio_embeddings(n_mel_frames(min(size, n - i))) for i in range(0, n, size)]


def _fill(cache, n: int) -> None:
    """Let a cache without layers count `n` positions, in the steps of a prompt."""
    while n > 0:
        step = min(cache.room(n), positions_at_once(1, on_cpu()))
        cache.plan(step)
        cache.advance()
        n -= step
