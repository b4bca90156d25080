"""The history that the rules count in, and the choice of the next token on the device."""

from __future__ import annotations

from copy import copy

import mlx.core as mx
import numpy as np

from ..errors import DecodeError
from .logits import ban_repeated_ngrams, contrasted, penalise, seen_counts, warp
from .sampling import Penalties, Sampling

REAL = (mx.float32, mx.float16, mx.bfloat16)  # what logits may be
HISTORY_BLOCK = 512  # ids of a new history; it doubles, since arrays of ever new sizes leave freed memory in pieces


def _from_the_best(logits: mx.array) -> mx.array:
    """The same logits with the highest of each sequence at 0: probabilities stay, and no temperature overflows."""
    return logits - logits.max(axis=-1, keepdims=True)


# ---------------------------------------------------------------- histories and the sampler that uses them


class History:
    """Token ids of one kind (text, or audio codes) per sequence, packed to the left, on the device.

    Whether an id is of this kind is only known on the device, and asking would stall it: so the fill counts are
    device arrays as well, and the host keeps an upper bound that tells when to grow.
    """

    def __init__(self, rows: int):
        self.ids = mx.full((rows, HISTORY_BLOCK), -1, dtype=mx.int32)
        self.length = mx.zeros((rows,), dtype=mx.int32)
        self.bound = 0

    def preload(self, prompts: list[list[int]]) -> None:
        """Start with known ids, one list per sequence."""
        self.bound = max(map(len, prompts), default=0)
        width = -(-(self.bound + 1) // HISTORY_BLOCK) * HISTORY_BLOCK
        table = np.full((len(prompts), width), -1, dtype=np.int32)
        for row, ids in zip(table, prompts, strict=True):
            row[: len(ids)] = ids
        self.ids, self.length = mx.array(table), mx.array([len(p) for p in prompts], dtype=mx.int32)

    def push(self, ids: mx.array, mine: mx.array) -> None:
        """Append ids (B,) where `mine` (B,) is true."""
        if self.bound + 1 >= self.ids.shape[1]:
            self.ids = mx.concatenate([self.ids, mx.full(self.ids.shape, -1, dtype=mx.int32)], axis=1)
        here = (mx.arange(self.ids.shape[1])[None, :] == self.length[:, None]) & mine[:, None]
        self.ids = mx.where(here, ids[:, None], self.ids)
        self.length = self.length + mine
        self.bound += 1

    def recent(self, window: int | None) -> mx.array:
        """The ids with everything before the last `window` blanked to -1."""
        if window is None or window >= self.ids.shape[1]:
            return self.ids
        return mx.where(mx.arange(self.ids.shape[1])[None, :] >= self.length[:, None] - window, self.ids, -1)

    def keep_rows(self, rows: mx.array) -> None:
        """Drop all sequences of the batch but these."""
        self.ids, self.length = self.ids[rows], self.length[rows]

    def continued(self, rows: list[list[int]]) -> History:
        """Of one sequence, a history for each way to go on with it: row i has the ids `rows[i]` behind it."""
        longest = max(map(len, rows))
        new = History(0)
        new.ids, new.length, new.bound = self.ids, self.length, self.bound + longest
        while new.bound + 1 >= new.ids.shape[1]:
            new.ids = mx.concatenate([new.ids, mx.full(new.ids.shape, -1, dtype=mx.int32)], axis=1)
        if not longest:
            new.ids, new.length = mx.repeat(new.ids, len(rows), axis=0), mx.repeat(new.length, len(rows), axis=0)
            return new
        table = np.full((len(rows), longest), -1, dtype=np.int32)
        for row, ids in zip(table, rows, strict=True):
            row[: len(ids)] = ids
        counts = mx.array([len(ids) for ids in rows], dtype=mx.int32)
        behind = mx.arange(new.ids.shape[1])[None, :] - new.length[:, None]  # (1, N): how far behind its end
        said = mx.array(table)[:, mx.clip(behind[0], 0, longest - 1)]
        new.ids = mx.where((behind >= 0) & (behind < counts[:, None]), said, new.ids)
        new.length = new.length + counts
        return new


class Line:
    """Prompt and answer of each sequence for processors: `ids` (B, N), packed to the right, -1 in front."""

    def __init__(self, prompts: list[list[int]]):
        self._bound = max(map(len, prompts), default=0)
        width = (self._bound // HISTORY_BLOCK + 1) * HISTORY_BLOCK
        table = np.full((len(prompts), width), -1, dtype=np.int32)
        for row, ids in zip(table, prompts, strict=True):
            row[width - len(ids) :] = ids
        self.ids = mx.array(table)

    def push(self, ids: mx.array) -> None:
        """Append ids (B,)."""
        if self._bound == self.ids.shape[1]:
            self.ids = mx.concatenate([mx.full(self.ids.shape, -1, dtype=mx.int32), self.ids], axis=1)
        self.ids = mx.concatenate([self.ids[:, 1:], ids[:, None]], axis=1)
        self._bound += 1

    def continued(self, proposed: list[int]) -> Line:
        """Of one sequence, row i with the first i proposed ids behind it."""
        new, width = copy(self), self.ids.shape[1]
        if new._bound + len(proposed) > width:
            new.ids = mx.concatenate([mx.full(new.ids.shape, -1, dtype=mx.int32), new.ids], axis=1)
            width *= 2
        whole = mx.concatenate([new.ids[0], mx.array(proposed, dtype=mx.int32)])
        new.ids = mx.stack([whole[i : i + width] for i in range(len(proposed) + 1)])
        new._bound += len(proposed)
        return new


class Sampler:
    """The state of one batch: histories, random keys, and which sequences have the adaptive penalty.

    audio_range : (first id of the audio codes, one after the last), None if the model has none; all other ids are text.
    escapes : whether sequences may get the escape penalties. Without these or others no history is kept.
    """

    def __init__(
        self,
        sampling: Sampling,
        prompts: list[list[int]],
        audio_range: tuple[int, int] | None = None,
        escapes: bool = True,
    ):
        self.sampling, self._audio = sampling, audio_range or (1 << 30, 1 << 30)
        self._escaping = np.zeros(len(prompts), dtype=bool)
        self._histories: dict[str, History] = {}
        for kind, penalties in (("text", sampling.text), ("audio", sampling.audio)):
            counts = not penalties.off or (escapes and not sampling.escape.off)
            if not counts or (kind == "audio" and audio_range is None):
                continue
            history = History(len(prompts))
            if penalties.include_prompt:
                history.preload([[t for t in p if self._is_audio(t) == (kind == "audio")] for p in prompts])
            self._histories[kind] = history
        self._keys = [mx.random.key(sampling.seed) for _ in prompts]
        self._line = Line(prompts) if sampling.processors else None

    def _is_audio(self, ids):
        return (ids >= self._audio[0]) & (ids < self._audio[1])

    @property
    def _needs_history(self) -> bool:
        s = self.sampling
        return not (s.text.off and s.audio.off and (s.escape.off or not self._escaping.any()))

    @property
    def arrays(self) -> list[mx.array]:
        """All that the next choice starts from. Evaluate it with each choice, or the graph grows by every token."""
        line = [] if self._line is None else [self._line.ids]
        return [*self._keys, *line, *(a for h in self._histories.values() for a in (h.ids, h.length))]

    def escape(self, row: int) -> None:
        """From the next choice on, use the escape penalties for this sequence of the batch."""
        self._escaping[row] = True

    def rules(self, logits: mx.array, of: str | None = None) -> mx.array:
        """Penalties and bans over both histories. `of` = "escape" for the strengths of sequences that loop."""
        alike: dict[Penalties, list[History]] = {}  # no id is in two histories, so they are counted in one go
        for kind, history in self._histories.items():
            alike.setdefault(self.sampling.escape if of else getattr(self.sampling, kind), []).append(history)
        for p, histories in alike.items():
            recent = [history.recent(p.window) for history in histories] if not p.off else []
            if recent and (p.repetition != 1 or p.frequency or p.presence):
                counts = seen_counts(mx.concatenate(recent, axis=1), logits.shape[1])
                logits = penalise(logits, counts, p.repetition, p.frequency, p.presence)
            for history, ids in zip(histories, recent, strict=False):
                if 0 < p.no_repeat_ngram <= history.bound + 1:
                    logits = ban_repeated_ngrams(logits, ids, history.length, p.no_repeat_ngram)
        return logits

    def __call__(self, logits: mx.array, other: mx.array | None = None) -> mx.array:
        """Choose ids (B,) from float32 logits (B, V) and append them to the histories.

        other : logits (B, V) that these are contrasted with. An id is -1 where processors leave nothing to choose from.
        """
        contrast = self.sampling.contrasts
        if contrast is not None and other is not None:
            logits = contrasted(logits, other, contrast.weight, contrast.plausible)
        ruled = self.rules(logits) if self._needs_history else logits
        if self._escaping.any():
            ruled = mx.where(mx.array(self._escaping)[:, None], self.rules(logits, "escape"), ruled)
        ruled, possible = self._processed(ruled)
        greedy = self.sampling.temperature == 0
        ids = mx.argmax(ruled, axis=-1) if greedy else self._draw(warp(_from_the_best(ruled), self.sampling))
        ids = ids.astype(mx.int32) if possible is None else mx.where(possible, ids.astype(mx.int32), -1)
        if self._line is not None:
            self._line.push(ids)
        audio = self._is_audio(ids)
        for kind, history in self._histories.items():
            history.push(ids, audio if kind == "audio" else ~audio)
        return ids

    def _processed(self, logits: mx.array) -> tuple[mx.array, mx.array | None]:
        """Logits behind the processors, and in which sequences (B,) they leave something to choose from."""
        if self._line is None:
            return logits, None
        for i, processor in enumerate(self.sampling.processors):
            found = processor(self._line.ids, logits)
            if not isinstance(found, mx.array) or found.shape != logits.shape or found.dtype not in REAL:
                is_array = isinstance(found, mx.array)
                seen = f"{found.dtype} {found.shape}" if is_array else type(found).__name__
                raise DecodeError(
                    f"processors[{i}]: expected an mx.array of floats of the shape it was given, {logits.shape}, found "
                    f"{seen:.80}"
                )
            logits = found.astype(mx.float32)
        return logits, mx.isfinite(logits.max(axis=-1)) & ~mx.isnan(logits).any(axis=-1)

    def _draw(self, logits: mx.array) -> mx.array:
        """One draw per sequence, with random keys of its own: the composition of the batch must not matter."""
        noise = []
        for row in range(logits.shape[0]):
            self._keys[row], key = mx.random.split(self._keys[row])
            noise.append(mx.random.gumbel((logits.shape[1],), key=key))
        return mx.argmax(logits + mx.stack(noise), axis=-1)

    def continued(self, proposed: list[int], escaping: list[bool]) -> Sampler:
        """Of one sequence, a sampler whose row i chooses as this one will once the first i proposed ids were chosen.

        proposed : n ids. escaping : for each of the n + 1 rows, whether it has the escape penalties.
        """
        new = copy(self)
        ways = [proposed[:i] for i in range(len(proposed) + 1)]
        new._histories = {
            kind: history.continued([[t for t in way if self._is_audio(t) == (kind == "audio")] for way in ways])
            for kind, history in self._histories.items()
        }
        new._line = None if self._line is None else self._line.continued(proposed)
        new._escaping = np.array(escaping)
        new._keys = list(self._keys)
        for _ in proposed:
            new._keys.append(mx.random.split(new._keys[-1])[0] if self.sampling.temperature else new._keys[-1])
        return new

    def keep_rows(self, rows: list[int]) -> None:
        """Drop all sequences of the batch but these."""
        for history in self._histories.values():
            history.keep_rows(mx.array(rows))
        if self._line is not None:
            self._line.ids = self._line.ids[mx.array(rows)]
        self._escaping = self._escaping[rows]
        self._keys = [self._keys[r] for r in rows]
