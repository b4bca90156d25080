"""Logit rules and the choice of the next id. Everything stays on the device; nothing is copied to the host.

Order of rules, as in HF transformers (`generation/utils.py`): repetition penalty, frequency and presence
penalty (not in HF; the OpenAI definition), no-repeat n-gram, then, if a temperature is set: temperature, top-k,
top-p, min-p, draw. Text ids and audio codes have histories and strengths of their own.
Axes: B rows, V ids, N slots of a history. Knows no nets and no text.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace

import numpy as np

from ..errors import DecodeError


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
        _need(
            np.isfinite([self.frequency, self.presence]).all(),
            "frequency and presence penalty",
            "finite",
            (self.frequency, self.presence),
        )
        _need(
            isinstance(self.no_repeat_ngram, int) and self.no_repeat_ngram >= 0,
            "no_repeat_ngram",
            "0 (off) or a length",
            self.no_repeat_ngram,
        )
        _need(
            self.window is None or (isinstance(self.window, int) and self.window > 0),
            "penalty window",
            "a whole number of at least 1 id, or None",
            self.window,
        )

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
        0.9, repetition penalty 1.05 over prompt and answer, and HF's silent top-k of 50.
        """
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
