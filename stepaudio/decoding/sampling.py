"""How the next token is chosen: penalties, contrast and sampling values as frozen records, with the presets.

Order of the rules, as in HF transformers (`generation/utils.py`): contrast, repetition penalty, frequency and presence
penalty (not in HF; the OpenAI definition), no-repeat n-gram, the caller's own processors; then, if a temperature is
set, temperature, top-k, top-p, min-p, draw. `logits` holds the rules as functions of arrays, `sampler` applies them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from ..choices import MAX_COUNT, Against, LoopAction, alternatives, hint, is_count, is_number, is_whole, shown
from ..constants import SAMPLE_RATE
from ..errors import DecodeError

PRESETS = ("planned", "literal", "reference", "greedy")
# What float32 can carry, in which the rules count. Beside a penalty of 4096 a logit keeps three decimals; beyond, sums
# of penalties would swallow the logits, and at last overflow. A temperature must have a reciprocal.
STRONGEST = 4096.0
COLDEST, HOTTEST = float(np.finfo(np.float32).tiny), float(1 / np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Penalties:
    """How strongly repetition is penalised. The defaults penalise nothing.

    Parameters
    ----------
    repetition : number, 1/4096 … 4096
        Logits of tokens seen before are divided by it if positive, multiplied if negative (Keskar et al. 2019); 1 is
        off.
    frequency : number, -4096 … 4096
        Subtracted once per earlier occurrence (HF has none; OpenAI's definition); 0 is off.
    presence : number, -4096 … 4096
        Subtracted once if the token occurred at all; 0 is off.
    no_repeat_ngram : int >= 0
        A token that would complete an n-gram of this length seen before is banned; 0 is off.
    window : int >= 1, optional
        Only this many of the latest tokens count, for the penalties and for the ban; None for all.
    include_prompt : bool
        Whether the prompt's tokens count as seen (HF: always; here by default not, since a prompt full of
        `<audio_patch>` says nothing about repetition).

    Raises
    ------
    DecodeError
        A value outside its range.
    """

    repetition: float = 1.0
    frequency: float = 0.0
    presence: float = 0.0
    no_repeat_ngram: int = 0
    window: int | None = None
    include_prompt: bool = False

    def __post_init__(self):
        strongest = f"{STRONGEST:.0f}"
        fits = f"a number from 1/{strongest} to {strongest}"
        _number(self.repetition, "repetition penalty", fits, lambda x: 1 / STRONGEST <= x <= STRONGEST)
        for name in ("frequency", "presence"):
            fits = f"a number from -{strongest} to {strongest}"
            _number(getattr(self, name), f"{name} penalty", fits, lambda x: -STRONGEST <= x <= STRONGEST)
        fits = f"0 (off) or a length of at most {MAX_COUNT}"
        _need(is_count(self.no_repeat_ngram), "no_repeat_ngram", fits, self.no_repeat_ngram)
        fits = f"a whole number of at least 1 token and at most {MAX_COUNT}, or None"
        _need(self.window is None or is_count(self.window, 1), "penalty window", fits, self.window)
        _need(isinstance(self.include_prompt, bool), "include_prompt", "true or false", self.include_prompt)

    @property
    def off(self) -> bool:
        """Whether nothing is penalised."""
        return self.repetition == 1 and not self.frequency and not self.presence and not self.no_repeat_ngram


def _need(ok: bool, what: str, expected: str, found) -> None:
    if not ok:
        raise DecodeError(f"{what}: expected {expected}, found {shown(found)}")


def _takes_two(function: object) -> bool:
    """Whether it can be called with two arguments, as far as can be seen."""
    if not callable(function):
        return False
    try:
        inspect.signature(function).bind(None, None)
    except TypeError:
        return False
    except ValueError:  # a function of C that does not say what it takes
        return True
    return True


def _number(value, what: str, expected: str, fits) -> None:
    """Refuse what is no number, or is one that does not fit. NaN fits nowhere."""
    _need(is_number(value) and bool(fits(value)), what, expected, value)


PLANNED = Penalties(frequency=1.2, no_repeat_ngram=3, window=8)


@dataclass(frozen=True)
class Contrast:
    """Contrast decoding: what another distribution finds likely as well counts less.

    Each logit becomes logit + weight x (log p - log q), where p is the model's distribution and q the other one. The
    other one is the same model along the same tokens on altered audio, which doubles time and cache (Whisper-CD; for
    images, VCD), or what its own earlier layers would say through the final norm and the head (DoLa).

    Parameters
    ----------
    against : Against or its name
        "silence"; "noise", white and as loud as the segment of audio it replaces; "shift", the segment `seconds` later,
        silence before it, its end cut off; "layers".
    weight : number, 0 … 4096
        0 is off.
    plausible : number, 0 … 1
        Tokens less probable under p than so many times the best are dropped first, or else the least likely tokens
        could win; 0 keeps all. The default is that of Li et al. 2023.
    seconds : number > 0
        Of "shift", which alone needs it.
    layers : sequence of int >= 0
        Of "layers", which alone needs them: numbers of decoder layers. Of several, each token takes the one whose
        distribution is furthest from the model's own, by Jensen-Shannon divergence.
    seed : int >= 0
        Of "noise".

    Raises
    ------
    DecodeError
        A value outside its range, or one that `against` needs and lacks, or has no use for.
    """

    against: Against | str
    weight: float
    plausible: float = 0.1
    seconds: float | None = None
    layers: tuple[int, ...] = ()
    seed: int = 0

    def __post_init__(self):
        object.__setattr__(self, "against", Against.of(self.against, "contrast against"))
        fits = f"a number from 0 (off) to {STRONGEST:.0f}"
        _number(self.weight, "contrast weight", fits, lambda w: 0 <= w <= STRONGEST)
        _number(self.plausible, "contrast plausible", "a number from 0 to 1", lambda p: 0 <= p <= 1)
        fits, shifts = "a number above 0 with 'shift', and None otherwise", self.against == Against.SHIFT
        _need((self.seconds is not None) == shifts, "contrast seconds", fits, self.seconds)
        if shifts:
            _number(self.seconds, "contrast seconds", fits, lambda s: 0 < s <= MAX_COUNT)
        fits = "different numbers of layers, at least one, with 'layers', and none otherwise"
        listed = isinstance(self.layers, (list, tuple, range)) and all(is_count(i) for i in self.layers)
        _need(listed and bool(self.layers) == self.early, "contrast layers", fits, self.layers)
        _need(len(set(self.layers)) == len(self.layers), "contrast layers", fits, self.layers)
        object.__setattr__(self, "layers", tuple(self.layers))
        _need(is_count(self.seed), "contrast seed", f"a whole number from 0 to {MAX_COUNT}", self.seed)

    @property
    def early(self) -> bool:
        """Whether the other distribution is that of earlier layers, which needs no second run."""
        return self.against == Against.LAYERS

    def altered(self, samples: np.ndarray) -> np.ndarray:
        """What the other run gets in the place of a segment of audio; float32 (n,) at 16 kHz, as it is itself."""
        x = np.zeros_like(samples)
        if self.against == Against.NOISE:
            x = np.random.default_rng(self.seed).normal(0, np.sqrt(np.mean(samples.astype(float) ** 2)), samples.shape)
        elif self.against == Against.SHIFT and self.seconds is not None:
            late = min(round(self.seconds * SAMPLE_RATE), len(samples))
            x[late:] = samples[: len(samples) - late]
        return x.astype(samples.dtype)


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. The plain constructor gives the project's planned defaults.

    Parameters
    ----------
    temperature : number, 0, or 1.2e-38 … 8.5e37
        0 takes the most probable token (greedy) and ignores top_k, top_p, min_p and seed.
    top_k : int >= 0
        Tokens to keep, ties with the last kept; 0 is off.
    top_p : number, 0 < p <= 1
        Smallest set of tokens with that much probability; 1 is off.
    min_p : number, 0 <= p <= 1
        Tokens less probable than p times the best are dropped; 0 is off.
    text, audio : Penalties
        Of text tokens and of audio codes, each with its own history.
    escape : Penalties
        Replace `text` and `audio` once a run is to escape from a repetition loop.
    seed : int >= 0
        Of the draw; the same seed gives the same tokens.
    on_loop : LoopAction or its name
        What is done about a repetition loop, unless `DecodingOptions.on_loop` says otherwise.
    contrast : Contrast, optional
        What the logits are contrasted with, before all other rules.
    processors : sequence of callables
        Rules of the caller's own, in their order, behind the penalties and before the temperature: (ids, logits) ->
        logits. `logits` is float32 (B, V), `ids` int32 (B, N): prompt and answer of each sequence of the batch, the
        newest token last, -1 in front of those that are shorter. Both are arrays of MLX, and so is the result, of the
        shape of `logits`; what stays on the device costs no wait. -inf bans a token. A processor must go by its
        arguments alone, and treat each sequence by itself: sequences that have ended leave the batch.

    Raises
    ------
    DecodeError
        A value outside its range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    text: Penalties = field(default=PLANNED)
    audio: Penalties = field(default=PLANNED)
    escape: Penalties = field(default=Penalties(frequency=2.0, no_repeat_ngram=2))
    seed: int = 0
    on_loop: LoopAction | str = LoopAction.ESCAPE
    contrast: Contrast | None = None
    processors: Sequence[Callable[..., Any]] = ()

    def __post_init__(self):
        object.__setattr__(
            self, "on_loop", LoopAction.of(self.on_loop, "on_loop")
        )  # frozen, but a word becomes a choice
        fits = f"0 (greedy) or a number from {COLDEST:.3g} to {HOTTEST:.3g}"
        _number(self.temperature, "temperature", fits, lambda t: t == 0 or COLDEST <= t <= HOTTEST)
        _need(is_count(self.top_k), "top_k", f"0 (off) or a count of at most {MAX_COUNT}", self.top_k)
        _number(self.top_p, "top_p", "above 0 and at most 1", lambda p: 0 < p <= 1)
        _number(self.min_p, "min_p", "between 0 and 1", lambda p: 0 <= p <= 1)
        for name in ("text", "audio", "escape"):
            _need(isinstance(getattr(self, name), Penalties), name, "Penalties", getattr(self, name))
        _need(is_whole(self.seed) and 0 <= self.seed < 2**64, "seed", "a whole number of 64 bits", self.seed)
        _need(isinstance(self.contrast, Contrast | None), "contrast", "a Contrast or None", self.contrast)
        listed = isinstance(self.processors, (list, tuple)) and all(map(_takes_two, self.processors))
        _need(listed, "processors", "a list of functions (ids, logits) -> logits", self.processors)
        object.__setattr__(self, "processors", tuple(self.processors))

    @property
    def contrasts(self) -> Contrast | None:
        """The contrast, if it has any weight."""
        return self.contrast if self.contrast is not None and self.contrast.weight else None

    @classmethod
    def planned(cls, **changes) -> Sampling:
        """The default: the plan's numbers over the latest tokens. `changes` as in `override`, in all three presets."""
        return cls().override(changes)

    @classmethod
    def literal(cls, **changes) -> Sampling:
        """The plan's numbers over everything that was generated, however long ago; loops are only reported."""
        everything = replace(PLANNED, window=None)
        return cls(text=everything, audio=everything, on_loop=LoopAction.REPORT).override(changes)

    @classmethod
    def greedy(cls, **changes) -> Sampling:
        """The most probable token, no penalties; loops are only reported."""
        return cls(text=Penalties(), audio=Penalties(), on_loop=LoopAction.REPORT).override(changes)

    @classmethod
    def reference(cls, task: str = "transcribe") -> Sampling:
        """What StepFun's examples use.

        Plain greedy to transcribe and translate; for chat and speech a temperature of 0.7, top-p 0.9, repetition
        penalty 1.05 over prompt and answer, and HF's silent top-k of 50.
        """
        if task in ("transcribe", "translate"):
            return cls.greedy()
        _need(task in ("chat", "speak"), "task", "transcribe, translate, chat or speak", task)
        penalties = Penalties(repetition=1.05, include_prompt=True)
        drawn = {"temperature": 0.7, "top_k": 50, "top_p": 0.9}
        return cls(**drawn, text=penalties, audio=penalties, on_loop=LoopAction.REPORT)

    @classmethod
    def named(cls, name: str, task: str = "transcribe") -> Sampling:
        """A preset by its name: `planned`, `literal`, `reference` or `greedy`; `task` as in `reference`."""
        if name not in PRESETS:
            raise DecodeError(
                f"sampling: expected {alternatives(PRESETS)}, or a Sampling, found {name!r}{hint(name, PRESETS)}"
            )
        return cls.reference(task) if name == "reference" else getattr(cls, name)()

    def override(self, changes: Mapping) -> Sampling:
        """A copy with single values changed; penalty names change the text's and the audio codes' alike.

        `changes` maps names of fields of `Sampling` or `Penalties` to values. Raises `DecodeError` for another name.
        """
        penalties = {k: v for k, v in changes.items() if k in PENALTY_FIELDS}
        own = {k: v for k, v in changes.items() if k not in penalties}
        unknown = sorted(set(own) - set(SAMPLING_FIELDS))
        if unknown:
            known = (*SAMPLING_FIELDS, *PENALTY_FIELDS)
            raise DecodeError(
                f"sampling option: expected a field of Sampling or Penalties, found {', '.join(map(repr, unknown))}"
                f"{hint(unknown[0], known)}"
            )
        if penalties:
            own = {"text": replace(self.text, **penalties), "audio": replace(self.audio, **penalties), **own}
        return replace(self, **own)


PENALTY_FIELDS = tuple(f.name for f in fields(Penalties))
SAMPLING_FIELDS = tuple(f.name for f in fields(Sampling))
