"""Logit rules and the choice of the next id. Everything stays on the device; nothing is copied to the host.

Order of rules, as in HF transformers (`generation/utils.py`): repetition penalty, frequency and presence
penalty (not in HF; the OpenAI definition), no-repeat n-gram, then, if a temperature is set: temperature, top-k,
top-p, min-p, draw. Text ids and audio codes have histories and strengths of their own.
Axes: B rows, V ids, N slots of a history. Knows no nets and no text.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace

import mlx.core as mx
import numpy as np

from .errors import DecodeError

HISTORY_BLOCK = 512  # ids by which a history grows


@dataclass(frozen=True)
class Penalties:
    """How hard repeats are punished. The defaults punish nothing.

    repetition : > 0. Logits of ids seen before are divided by it if positive, multiplied if negative (Keskar et
        al. 2019); 1 is off.
    frequency : subtracted once per earlier occurrence (HF has none; OpenAI's definition); 0 is off.
    presence : subtracted once if the id occurred at all; 0 is off.
    no_repeat_ngram : >= 0. An id that would complete an n-gram of this length seen before is banned; 0 is off.
    window : only the last so many ids count; None for all.
    prompt : whether the prompt's ids count as seen (HF: always; here by default not, since a prompt full of
        `<audio_patch>` says nothing about repetition).
    """

    repetition: float = 1.0
    frequency: float = 0.0
    presence: float = 0.0
    no_repeat_ngram: int = 0
    window: int | None = None
    prompt: bool = False

    def __post_init__(self):
        _need(0 < self.repetition < np.inf, "repetition penalty", "above 0, finite", self.repetition)
        _need(np.isfinite([self.frequency, self.presence]).all(), "frequency and presence penalty", "finite",
              (self.frequency, self.presence))
        _need(isinstance(self.no_repeat_ngram, int) and self.no_repeat_ngram >= 0, "no_repeat_ngram",
              "0 (off) or a length", self.no_repeat_ngram)
        _need(self.window is None or isinstance(self.window, int) and self.window > 0, "penalty window",
              "a whole number of at least 1 id, or None", self.window)

    @property
    def off(self) -> bool:
        return self.repetition == 1 and not self.frequency and not self.presence and not self.no_repeat_ngram


def _need(ok: bool, what: str, expected: str, found) -> None:
    if not ok:
        raise DecodeError(f"{what}: expected {expected}, found {found!r}")


PLANNED = Penalties(frequency=1.2, no_repeat_ngram=3)


@dataclass(frozen=True)
class Sampling:
    """How the next id is chosen. The plain constructor gives the project's planned defaults.

    temperature : >= 0; 0 takes the most probable id (greedy) and ignores top_k, top_p, min_p and seed.
    top_k : >= 0 ids to keep, ties with the last kept; 0 is off.
    top_p : 0 < p <= 1, smallest set of ids with that much probability; 1 is off.
    min_p : 0 <= p <= 1, ids less probable than p times the best are dropped; 0 is off.
    text, audio : `Penalties` of text ids and of audio codes, each with its own history.
    escape : `Penalties` that replace `text` and `audio` once a run is to escape from a loop.
    seed : of the draw; the same seed gives the same ids.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    text: Penalties = field(default=PLANNED)
    audio: Penalties = field(default=PLANNED)
    escape: Penalties = field(default=Penalties(frequency=2.0, no_repeat_ngram=2))
    seed: int = 0

    def __post_init__(self):
        _need(0 <= self.temperature < np.inf, "temperature", "0 (greedy) or more, finite", self.temperature)
        _need(isinstance(self.top_k, int) and self.top_k >= 0, "top_k", "0 (off) or a count", self.top_k)
        _need(0 < self.top_p <= 1, "top_p", "above 0 and at most 1", self.top_p)
        _need(0 <= self.min_p <= 1, "min_p", "between 0 and 1", self.min_p)
        _need(isinstance(self.seed, int) and 0 <= self.seed < 2**64, "seed", "a whole number of 64 bits", self.seed)

    @classmethod
    def planned(cls, **changes) -> Sampling:
        """Greedy with frequency penalty 1.2 and no repeated 3-gram: the defaults planned for this project."""
        return cls(**changes)

    @classmethod
    def greedy(cls, **changes) -> Sampling:
        """The most probable id, no penalties."""
        return cls(text=Penalties(), audio=Penalties(), **changes)

    @classmethod
    def reference(cls, task: str = "transcribe") -> Sampling:
        """What StepFun's examples use: plain greedy to transcribe; for chat and speech a temperature of 0.7, top-p
        0.9, repetition penalty 1.05 over prompt and answer, and HF's silent top-k of 50."""
        if task in ("transcribe", "translate"):
            return cls.greedy()
        _need(task in ("chat", "speak"), "task", "transcribe, translate, chat or speak", task)
        penalties = Penalties(repetition=1.05, prompt=True)
        return cls(temperature=0.7, top_k=50, top_p=0.9, text=penalties, audio=penalties)

    @classmethod
    def named(cls, name: str, task: str = "transcribe") -> Sampling:
        """`planned`, `reference` or `greedy`, as the commands spell it."""
        makers = {"planned": cls.planned, "greedy": cls.greedy, "reference": lambda: cls.reference(task)}
        _need(name in makers, "sampling", "planned, reference or greedy", name)
        return makers[name]()

    def override(self, changes: dict) -> Sampling:
        """A copy with single values changed; penalty names change the text's and the audio codes' alike."""
        penalties = {k: v for k, v in changes.items() if k in {f.name for f in fields(Penalties)}}
        own = {k: v for k, v in changes.items() if k not in penalties}
        unknown = set(own) - {f.name for f in fields(Sampling)}
        _need(not unknown, "sampling option", "a field of Sampling or Penalties", ", ".join(sorted(unknown)))
        if penalties:
            own = {"text": replace(self.text, **penalties), "audio": replace(self.audio, **penalties), **own}
        return replace(self, **own)


# ---------------------------------------------------------------- rules: (B, V) logits in, (B, V) logits out


def seen_counts(history: mx.array, n_ids: int) -> mx.array:
    """(B, N) ids, -1 where empty -> (B, V) how often each id occurs."""
    B = history.shape[0]
    counts = mx.zeros((B, n_ids + 1))  # the last column swallows the empty slots
    index = mx.where(history < 0, n_ids, history)
    return counts.at[mx.arange(B)[:, None], index].add(1.0)[:, :n_ids]


def penalise(logits: mx.array, counts: mx.array, repetition=1.0, frequency=0.0, presence=0.0) -> mx.array:
    """Repetition, then frequency and presence penalties, on ids with a count above 0."""
    if repetition != 1:
        punished = mx.where(logits > 0, logits / repetition, logits * repetition)
        logits = mx.where(counts > 0, punished, logits)
    if frequency:
        logits = logits - frequency * counts
    if presence:
        logits = logits - presence * (counts > 0)
    return logits


def ban_repeated_ngrams(logits: mx.array, history: mx.array, length: mx.array, n: int) -> mx.array:
    """-inf for every id that would complete an n-gram already in the history.

    history (B, N), its first `length` (B,) entries in use, -1 behind them.
    """
    B, N = history.shape
    if N < n:
        return logits
    V = logits.shape[1]
    spots = mx.arange(N - n + 1)  # where an earlier n-gram may start
    match = spots[None, :] + n <= length[:, None]
    for k in range(n - 1):
        tail = mx.take_along_axis(history, mx.maximum(length - (n - 1) + k, 0)[:, None], axis=1)
        match = match & (history[:, k : N - n + 1 + k] == tail)
    last = mx.where(match, history[:, n - 1 :], V)
    banned = mx.zeros((B, V + 1)).at[mx.arange(B)[:, None], last].add(1.0)[:, :V]
    return mx.where(banned > 0, -mx.inf, logits)


def keep_top_k(logits: mx.array, k: int) -> mx.array:
    """-inf below the k-th highest logit; ties with it stay."""
    if k >= logits.shape[-1]:
        return logits
    kth = mx.min(mx.topk(logits, k, axis=-1), axis=-1, keepdims=True)
    return mx.where(logits < kth, -mx.inf, logits)


def keep_top_p(logits: mx.array, p: float) -> mx.array:
    """-inf outside the smallest set of ids whose probability reaches p; the best id always stays."""
    order = mx.argsort(logits, axis=-1)
    cumulative = mx.cumsum(mx.softmax(mx.take_along_axis(logits, order, axis=-1), axis=-1), axis=-1)
    drop = cumulative <= 1 - p
    drop = drop & (mx.arange(logits.shape[-1]) < logits.shape[-1] - 1)
    back = mx.argsort(order, axis=-1)
    return mx.where(mx.take_along_axis(drop, back, axis=-1), -mx.inf, logits)


def keep_min_p(logits: mx.array, p: float) -> mx.array:
    """-inf where the probability is below p times the highest."""
    probability = mx.softmax(logits, axis=-1)
    return mx.where(probability < p * probability.max(axis=-1, keepdims=True), -mx.inf, logits)


def warp(logits: mx.array, s: Sampling) -> mx.array:
    """Temperature, top-k, top-p, min-p, in that order; s.temperature must be above 0."""
    logits = logits / s.temperature
    if s.top_k:
        logits = keep_top_k(logits, s.top_k)
    if s.top_p < 1:
        logits = keep_top_p(logits, s.top_p)
    return keep_min_p(logits, s.min_p) if s.min_p else logits


# ---------------------------------------------------------------- histories and the sampler that uses them


class History:
    """Ids of one kind (text, or audio codes) per row, packed to the left, on the device.

    Whether an id is of this kind is only known on the device, and asking would stall it: so the fill counts are
    device arrays as well, and the host keeps an upper bound that tells when to grow.
    """

    def __init__(self, rows: int):
        self.ids = mx.full((rows, HISTORY_BLOCK), -1, dtype=mx.int32)
        self.length = mx.zeros((rows,), dtype=mx.int32)
        self._bound = 0

    def preload(self, prompts: list[list[int]]) -> None:
        """Start with known ids, one list a row."""
        self._bound = max(map(len, prompts), default=0)
        width = -(-(self._bound + 1) // HISTORY_BLOCK) * HISTORY_BLOCK
        table = np.full((len(prompts), width), -1, dtype=np.int32)
        for row, ids in zip(table, prompts, strict=True):
            row[: len(ids)] = ids
        self.ids, self.length = mx.array(table), mx.array([len(p) for p in prompts], dtype=mx.int32)

    def push(self, ids: mx.array, mine: mx.array) -> None:
        """Append ids (B,) where `mine` (B,) is true."""
        if self._bound + 1 >= self.ids.shape[1]:
            more = mx.full((self.ids.shape[0], HISTORY_BLOCK), -1, dtype=mx.int32)
            self.ids = mx.concatenate([self.ids, more], axis=1)
        here = (mx.arange(self.ids.shape[1])[None, :] == self.length[:, None]) & mine[:, None]
        self.ids = mx.where(here, ids[:, None], self.ids)
        self.length = self.length + mine
        self._bound += 1

    def recent(self, window: int | None) -> mx.array:
        """The ids with everything before the last `window` blanked to -1."""
        if window is None:
            return self.ids
        return mx.where(mx.arange(self.ids.shape[1])[None, :] >= self.length[:, None] - window, self.ids, -1)

    def keep_rows(self, rows: mx.array) -> None:
        self.ids, self.length = self.ids[rows], self.length[rows]


class Sampler:
    """The state of one run: histories, random keys, and which rows are escaping from a loop.

    audio_range (first, stop): ids that are audio codes; everything else is text.
    """

    def __init__(self, sampling: Sampling, prompts: list[list[int]], audio_range: tuple[int, int] | None = None):
        self.sampling, self._audio = sampling, audio_range or (1 << 30, 1 << 30)
        self._escaping = np.zeros(len(prompts), dtype=bool)
        self._histories: dict[str, History] = {}
        for kind, penalties in (("text", sampling.text), ("audio", sampling.audio)):
            if kind == "audio" and audio_range is None:
                continue
            history = History(len(prompts))
            if penalties.prompt:
                history.preload([[t for t in p if self._is_audio(t) == (kind == "audio")] for p in prompts])
            self._histories[kind] = history
        self._keys = [mx.random.key(sampling.seed) for _ in prompts]

    def _is_audio(self, ids):
        return (ids >= self._audio[0]) & (ids < self._audio[1])

    @property
    def _needs_history(self) -> bool:
        s = self.sampling
        return not (s.text.off and s.audio.off and (s.escape.off or not self._escaping.any()))

    def escape(self, row: int) -> None:
        """From the next choice on, use the escape penalties for this row."""
        self._escaping[row] = True

    def rules(self, logits: mx.array, of: str | None = None) -> mx.array:
        """Penalties and bans over both histories. `of` = "escape" for the strengths of rows that loop."""
        for kind, history in self._histories.items():
            p = self.sampling.escape if of else getattr(self.sampling, kind)
            if p.off:
                continue
            ids = history.recent(p.window)
            if p.repetition != 1 or p.frequency or p.presence:
                counts = seen_counts(ids, logits.shape[1])
                logits = penalise(logits, counts, p.repetition, p.frequency, p.presence)
            if p.no_repeat_ngram:
                logits = ban_repeated_ngrams(logits, ids, history.length, p.no_repeat_ngram)
        return logits

    def __call__(self, logits: mx.array) -> mx.array:
        """Choose ids (B,) from float32 logits (B, V) and remember them."""
        ruled = self.rules(logits) if self._needs_history else logits
        if self._escaping.any():
            ruled = mx.where(mx.array(self._escaping)[:, None], self.rules(logits, "escape"), ruled)
        if self.sampling.temperature == 0:
            ids = mx.argmax(ruled, axis=-1)
        else:
            ids = self._draw(warp(ruled, self.sampling))
        ids = ids.astype(mx.int32)
        audio = self._is_audio(ids)
        for kind, history in self._histories.items():
            history.push(ids, audio if kind == "audio" else ~audio)
        return ids

    def _draw(self, logits: mx.array) -> mx.array:
        """One draw a row, each row with keys of its own, so that company does not change a row's luck."""
        noise = []
        for row in range(logits.shape[0]):
            self._keys[row], key = mx.random.split(self._keys[row])
            noise.append(mx.random.gumbel((logits.shape[1],), key=key))
        return mx.argmax(logits + mx.stack(noise), axis=-1)

    def keep_rows(self, rows: list[int]) -> None:
        """Drop all rows but these."""
        for history in self._histories.values():
            history.keep_rows(mx.array(rows))
        self._escaping = self._escaping[rows]
        self._keys = [self._keys[r] for r in rows]
