"""How to decode and when to stop, as one frozen record, and the one place where short keywords are merged into it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypedDict, Unpack, cast

from ..choices import MAX_COUNT, CacheKind, LoopAction, Positions, Speculation, hint, is_count, shown
from ..constants import DRAFT_TOKENS, MAX_TOKENS
from ..errors import DecodeError
from ..models.kv_cache import CachePolicy
from .sampling import PENALTY_FIELDS, SAMPLING_FIELDS, Contrast, Sampling


@dataclass(frozen=True)
class DecodingOptions:
    """How to decode and when to stop. Every way of generating takes this record, or the same names as keywords.

    Parameters
    ----------
    sampling : Sampling or the name of a preset
        How the next token is chosen; "planned" (the default), "reference" or "greedy".
    cache : CachePolicy or the name of a kind
        What the decoder keeps; by default sinks and the last `max_cache_len` positions.
    max_tokens : int >= 1
        Most tokens of a run: of an answer, or of a segment of at most 25 s.
    on_loop : LoopAction or its name, optional
        "off", "report" (note it in the result), "stop" (end the run) or "escape" (adaptive penalty); None for what
        `sampling` says.
    stop : sequence of str
        Strings that end a run, in the text without special tokens; the one that was met stays in it.
    batch : int >= 1, optional
        Segments decoded together; None lets the backend decide. The tokens do not depend on it.
    top : int >= 0
        How many of the most probable tokens each `Step` lists with their probabilities.
    speculate : Speculation or its name
        "off", "lookup" or "draft": who proposes tokens, which the decoder then checks several at a time. The tokens
        of the run stay what they are; the segments of a batch are decoded one after another.
    draft_tokens : int >= 1
        Most tokens that are proposed at a time.

    Raises
    ------
    DecodeError
        A value outside its range, or a name that is none.
    """

    sampling: Sampling | str = field(default_factory=Sampling)
    cache: CachePolicy | str = field(default_factory=CachePolicy)
    max_tokens: int = MAX_TOKENS
    on_loop: LoopAction | str | None = None
    stop: Sequence[str] = ()
    batch: int | None = None
    top: int = 0
    speculate: Speculation | str = Speculation.OFF
    draft_tokens: int = DRAFT_TOKENS

    def __post_init__(self):
        def put(name: str, value: object) -> None:  # frozen, but words become records here
            object.__setattr__(self, name, value)

        put("sampling", named_sampling(self.sampling, "transcribe"))
        put("cache", _named_cache(self.cache))
        if self.on_loop is not None:
            put("on_loop", LoopAction.of(self.on_loop, "on_loop"))
        if isinstance(self.stop, str) or not isinstance(self.stop, Sequence):
            raise DecodeError(f"stop: expected a list of non-empty strings, found {shown(self.stop)}")
        if not all(isinstance(s, str) and s for s in self.stop):
            raise DecodeError(f"stop: expected a list of non-empty strings, found {shown(self.stop)}")
        put("stop", tuple(self.stop))
        put("speculate", Speculation.of(self.speculate, "speculate"))
        if self.speculate != Speculation.OFF and self.rules.contrasts:
            raise DecodeError(
                f"contrast with speculate={str(self.speculate)!r}: expected one of the two, since proposed tokens are "
                "not contrasted; leave speculate at 'off'"
            )
        _at_least(self.draft_tokens, 1, "draft_tokens")
        _at_least(self.max_tokens, 1, "max_tokens")
        _at_least(self.top, 0, "top")
        if self.batch is not None:
            _at_least(self.batch, 1, "batch")

    @property
    def rules(self) -> Sampling:
        """`sampling` as the record that it has become."""
        return cast(Sampling, self.sampling)

    @property
    def loop_action(self) -> LoopAction:
        """What is done about a repetition loop: `on_loop`, or else what `sampling` says."""
        return cast(LoopAction, self.on_loop or self.rules.on_loop)

    @property
    def policy(self) -> CachePolicy:
        """`cache` as the policy that it has become."""
        return cast(CachePolicy, self.cache)


def _at_least(value: object, least: int, name: str) -> None:
    if not is_count(value, least):
        raise DecodeError(
            f"{name}: expected a whole number of at least {least} and at most {MAX_COUNT}, found {shown(value)}"
        )


def named_sampling(sampling: Sampling | str, task: str) -> Sampling:
    """A `Sampling` as it is, or the preset of that name as `task` has it."""
    return sampling if isinstance(sampling, Sampling) else Sampling.named(sampling, task)


def _named_cache(cache: CachePolicy | str) -> CachePolicy:
    if isinstance(cache, str):
        return CachePolicy(CacheKind.of(cache, "cache"))
    if not isinstance(cache, CachePolicy):
        raise DecodeError(
            f"cache: expected a CachePolicy or one of {', '.join(CacheKind.values())}, found {shown(cache)}"
        )
    return cache


class DecodingKeywords(TypedDict, total=False):
    """The short keywords of every way of generating: fields of `DecodingOptions`, and single values of its records."""

    sampling: Sampling | str | None
    cache: CachePolicy | str | None
    max_tokens: int
    on_loop: LoopAction | str | None
    stop: Sequence[str]
    batch: int | None
    top: int
    speculate: Speculation | str
    draft_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int
    contrast: Contrast | None
    processors: Sequence[Callable[..., Any]]
    repetition: float
    frequency: float
    presence: float
    no_repeat_ngram: int
    window: int | None
    include_prompt: bool
    max_cache_len: int | None
    sinks: int
    positions: Positions | str
    kv_bits: int | None


OPTION_FIELDS = tuple(f.name for f in fields(DecodingOptions))
CACHE_FIELDS = {"max_cache_len": "max_len", "sinks": "sinks", "positions": "positions", "kv_bits": "bits"}
RULE_FIELDS = (*(n for n in SAMPLING_FIELDS if n not in ("text", "audio", "escape", "on_loop")), *PENALTY_FIELDS)
KEYWORDS = (*OPTION_FIELDS, *RULE_FIELDS, *CACHE_FIELDS)


def merge_options(
    options: DecodingOptions | None = None, task: str = "transcribe", **changes: Unpack[DecodingKeywords]
) -> DecodingOptions:
    """The options that a caller means: a record, and on top of it short keywords.

    Parameters
    ----------
    options : DecodingOptions, optional
        Where to start; by default the planned values.
    task : {"transcribe", "translate", "chat", "speak"}
        Whose reference is meant by sampling="reference".
    **changes
        Fields of `DecodingOptions`, single values of `Sampling` and `Penalties` (text and audio alike), and
        `max_cache_len`, `sinks`, `positions` and `kv_bits` of the cache. A whole record or its name is set first,
        single values on top of it. None for sampling or cache leaves what `options` has.

    Returns
    -------
    DecodingOptions

    Raises
    ------
    DecodeError
        An unknown keyword, or a value outside its range.

    Examples
    --------
    >>> merge_options(temperature=0.7).sampling == Sampling(temperature=0.7)
    True
    >>> merge_options(sampling="greedy", cache="window", max_cache_len=512).cache.max_len
    512
    """
    given: dict = dict(changes)
    refuse_unknown(given)
    if not (options is None or isinstance(options, DecodingOptions)):
        raise DecodeError(f"options: expected a DecodingOptions, found {options!r:.80}")
    options = options or DecodingOptions()
    own = {name: given[name] for name in OPTION_FIELDS if name in given}
    sampling, cache = own.pop("sampling", None), own.pop("cache", None)
    sampling = options.rules if sampling is None else named_sampling(sampling, task)
    cache = options.policy if cache is None else _named_cache(cache)
    rules = {name: given[name] for name in RULE_FIELDS if name in given}
    limits = {field_: given[name] for name, field_ in CACHE_FIELDS.items() if name in given}
    return replace(
        options,
        sampling=sampling.override(rules) if rules else sampling,
        cache=replace(cache, **limits) if limits else cache,
        **own,
    )


def refuse_unknown(given: Mapping, also: Sequence[str] = ()) -> None:
    """Raise `DecodeError` for a keyword that is neither one of `KEYWORDS` nor one that the caller names in `also`."""
    for name in given:
        if name not in KEYWORDS and name not in also:
            known = (*also, *KEYWORDS)
            raise DecodeError(
                f"unknown option {shown(name)}" + (hint(name, known) or f"; expected one of {', '.join(known)}")
            )


@dataclass(frozen=True)
class RunOptions(DecodingOptions):
    """What the decoding loop gets: the caller's options, and what follows from the model.

    Parameters
    ----------
    stop_ids : frozenset of int
        Token ids that end a run (the id itself is part of the run).
    should_stop : callable, optional
        Called once per run to make a function `stop(id) -> bool`, for stop strings.
    audio_range : (int, int), optional
        First id of the audio codes, and the one after the last; they have penalties of their own.
    """

    stop_ids: frozenset[int] = frozenset()
    should_stop: Callable[[], Callable[[int], bool]] | None = None
    audio_range: tuple[int, int] | None = None

    @classmethod
    def of(
        cls,
        options: DecodingOptions,
        stop_ids: frozenset[int],
        should_stop: Callable[[], Callable[[int], bool]] | None = None,
        audio_range: tuple[int, int] | None = None,
    ) -> RunOptions:
        """These options for a model with these ids."""
        own = {name: getattr(options, name) for name in OPTION_FIELDS}
        return cls(**own, stop_ids=stop_ids, should_stop=should_stop, audio_range=audio_range)
