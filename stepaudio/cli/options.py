"""Options that several commands share, and what becomes of them. Named as the fields of `DecodingOptions` are."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoints.find import checkpoint_folder
from ..checkpoints.hub_name import HubName
from ..choices import CacheKind, LoopAction, Positions, Resampler, Speculation, SpeechDetector, hint
from ..constants import DRAFT_TOKENS, MAX_CACHE_LEN, MAX_TOKENS, SINKS
from ..decoding.sampling import PRESETS
from ..errors import AudioError, ConfigError
from ..targets import Target, check_targets
from .parser import Parser, add_choice, add_option, number, whole
from .progress import busy

if TYPE_CHECKING:
    from ..decoding.options import DecodingOptions
    from ..model import StepAudio2

STANDARD = "-"  # instead of a path: standard input, or standard output
DOWNMIX = ("first", "mean")

# Values of single rules: name, type, metavar, help. Without them those of --sampling hold.
RULES = (
    ("temperature", number, "T", "0 takes the most probable token, above 0 a token is drawn"),
    ("top-k", whole, "N", "keep the N most probable tokens; 0 is off"),
    ("top-p", number, "P", "keep the smallest set of tokens of this probability; 1 is off"),
    ("min-p", number, "P", "drop tokens less probable than this share of the best; 0 is off"),
    ("repetition", number, "X", "divide or multiply the logits of tokens seen before; 1 is off"),
    ("frequency", number, "X", "subtract from a logit once per earlier occurrence; 0 is off"),
    ("presence", number, "X", "subtract from the logit of a token that occurred at all; 0 is off"),
    ("no-repeat-ngram", whole, "N", "no N tokens in a row a second time; 0 is off"),
    ("window", whole, "N", "penalties and ban count the latest N tokens only"),
)


def add_model(verb: Parser, help: str = "checkpoint folder, or ORG/NAME[@REVISION] of a model on a hub") -> None:
    """`--model`, where the default is what `stepaudio.load()` takes."""
    add_option(verb, "--model", metavar="DIR", help=help, shown="STEPAUDIO_CHECKPOINT, else the bundled nano")


def add_lora(verb: Parser) -> None:
    """`--lora`, of what is loaded as a language model."""
    add_option(
        verb, "--lora", metavar="FOLDER", shown="none",
        help="a LoRA to put on, of PEFT or mlx-lm: a folder within the model's, by its name, or a path",
    )  # fmt: skip


def add_recording(verb: Parser) -> None:
    """How a recording is read and asked about."""
    from ..text.prompts import ASR_SYSTEM

    add_choice(verb, "--downmix", choices=DOWNMIX, default="first", help="which of several channels is read")
    add_resampler(verb, "what brings a recording to 16 kHz")
    add_choice(
        verb, "--vad", choices=SpeechDetector.values(), default=SpeechDetector.ENERGY.value,
        help="what finds long silence, which is not decoded; off decodes everything",
    )  # fmt: skip
    add_option(verb, "--batch", type=whole, metavar="N", help="segments decoded together", shown="8 on a CPU, else 32")
    add_option(
        verb, "--prompt", default=ASR_SYSTEM, metavar="TEXT", help="system text",
        shown="the reference's transcription prompt",
    )  # fmt: skip
    add_option(
        verb, "--prompt-ids", metavar="IDS", help="the prompt as token ids, with AUDIO where the recording goes",
        shown="--prompt",
    )  # fmt: skip


def add_resampler(verb, help: str) -> None:
    """`--resampler`. verb : a parser, or a group of its options. help : what it does there."""
    add_choice(verb, "--resampler", choices=Resampler.values(), default=Resampler.REFERENCE.value, help=help)


def add_decoding(verb: Parser, sampling: str = "planned", seed: str = "of the draw") -> None:
    """Every field of `DecodingOptions` but the batch size. sampling : default preset. seed : what it is of."""
    add_option(
        verb, "--max-tokens", type=whole, default=MAX_TOKENS, metavar="N", help="most tokens of a segment or answer"
    )
    add_option(
        verb, "--stop", action="append", default=[], metavar="TEXT", shown="none",
        help="end a run once this text was written; may be given several times",
    )  # fmt: skip
    add_choice(
        verb, "--on-loop", choices=LoopAction.values(), shown="that of --sampling",
        help="what is done about a repetition loop; escape raises the penalties from there",
    )  # fmt: skip
    speed = verb.add_argument_group("speed")
    add_option(
        speed, "--speculate", type=_proposer, metavar="{lookup,MODEL}", shown="off",
        help="propose tokens that came before, or let a smaller model propose them; the tokens stay the same",
    )  # fmt: skip
    add_option(
        speed,
        "--draft-tokens",
        type=whole,
        metavar="N",
        shown=str(DRAFT_TOKENS),
        help="of --speculate: most tokens proposed at a time",
    )
    add_option(
        speed, "--prompt-cache", metavar="FILE", shown="none",
        help="keep what was computed of prompts and recordings in a file, for the next time",
    )  # fmt: skip
    rules = verb.add_argument_group("sampling")
    add_choice(rules, "--sampling", choices=PRESETS, default=sampling, help="preset that the next options change")
    for name, kind, metavar, text in RULES:
        add_option(rules, f"--{name}", type=kind, metavar=metavar, help=text, shown="that of --sampling")
    rules.add_argument(
        "--include-prompt", "--penalise-prompt", dest="include_prompt", action="store_const", const=True,
        help="penalties count the prompt's tokens too",
    )  # fmt: skip
    add_option(rules, "--seed", type=whole, default=0, metavar="N", help=seed)
    memory = verb.add_argument_group("cache")
    add_choice(
        memory, "--cache", choices=CacheKind.values(), default=CacheKind.SINKS.value,
        help="which positions stay once the limit is reached",
    )  # fmt: skip
    add_option(
        memory, "--max-cache-len", type=whole, metavar="N", help="the limit, in positions",
        shown=f"that of the model's config, else {MAX_CACHE_LEN}",
    )  # fmt: skip
    add_option(
        memory, "--sinks", type=whole, metavar="N", shown=str(SINKS),
        help="of --cache sinks and pinned: first positions that are always kept",
    )  # fmt: skip
    add_choice(
        memory, "--positions", choices=Positions.values(), also=("renumbered",), default=Positions.ABSOLUTE.value,
        help="where a kept key stands: where it was read, or at its rank among those kept",
    )  # fmt: skip
    add_option(
        memory, "--kv-bits", type=whole, metavar="N", help="of a number in the cache: 8 or 4",
        shown="those of the weights' dtype",
    )  # fmt: skip


def decoding_from(options: argparse.Namespace, task: str = "transcribe") -> DecodingOptions:
    """The decoding options that the command line means; `task` says whose reference `--sampling reference` is."""
    from ..decoding.options import merge_options

    _check_owners(options)
    names = ("include_prompt", *(name.replace("-", "_") for name, *_ in RULES))
    rules: dict[str, Any] = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    return merge_options(
        task=task,
        sampling=options.sampling,
        seed=options.seed,
        cache=options.cache,
        max_cache_len=options.max_cache_len,
        sinks=SINKS if options.sinks is None else options.sinks,
        positions=options.positions,
        kv_bits=options.kv_bits,
        max_tokens=options.max_tokens,
        on_loop=options.on_loop,
        stop=options.stop,
        batch=getattr(options, "batch", None),
        speculate=_speculation(options.speculate),
        draft_tokens=DRAFT_TOKENS if options.draft_tokens is None else options.draft_tokens,
        **rules,
    )


def _check_owners(options: argparse.Namespace) -> None:
    """Raise `ConfigError` for an option that would mean nothing beside the others."""
    if options.draft_tokens is not None and options.speculate is None:
        raise ConfigError("--draft-tokens: is of --speculate; give that too, or leave it out")
    if options.sinks is not None and options.cache not in (CacheKind.SINKS, CacheKind.PINNED):
        raise ConfigError(f"--sinks: is of --cache sinks and pinned, found {options.cache}; leave it out")
    check_limit(options)


def check_limit(options: argparse.Namespace) -> None:
    """Raise `ConfigError` where --cache has no limit and one is given."""
    if options.max_cache_len is not None and options.cache == CacheKind.FULL:
        raise ConfigError("--max-cache-len: a full cache has no limit; leave it out, or choose another --cache")


def _proposer(word: str) -> str:
    """A word of --speculate: a choice, or a model that lies somewhere or may be fetched."""
    known = (Speculation.LOOKUP.value, Speculation.OFF.value)
    if word not in known and HubName.of(word) is None and not Path(word).exists():
        expected = f"expected lookup, off, or a folder or name of a model, found {word!r}"
        raise argparse.ArgumentTypeError(expected + hint(word, known))
    return word


def _speculation(word: str | None) -> Speculation:
    """What --speculate means: a word that is no choice is a draft model."""
    word = word or Speculation.OFF
    return Speculation(word) if word in (Speculation.OFF, Speculation.LOOKUP) else Speculation.DRAFT


def with_prompts(model: StepAudio2, options: argparse.Namespace) -> StepAudio2:
    """The model with the prompt cache of --prompt-cache, which is written when the command has ended."""
    from ..decoding.prompt_cache import PromptCache

    if options.prompt_cache is None:
        return model
    path = Path(options.prompt_cache)
    check_targets([Target("--prompt-cache", path, "a prompt cache", PromptCache.is_ours)], [])
    cache = PromptCache.load(path) if path.exists() and path.stat().st_size else PromptCache()
    options.at_the_end = partial(cache.save, path)
    return model.altered(prompt_cache=cache)


def with_draft(model: StepAudio2, options: argparse.Namespace) -> StepAudio2:
    """The model with the prompt cache and the draft model that the options name, if they do."""
    from ..model import StepAudio2

    model = with_prompts(model, options)
    if _speculation(options.speculate) != Speculation.DRAFT:
        return model
    folder = checkpoint_folder(options.speculate)
    with busy("loading the draft model"):
        draft = StepAudio2.load(folder, tokenizer=None if model.tokenizer is None else "beside")
    return model.altered(draft=draft)


def transcription_from(options: argparse.Namespace) -> dict[str, Any]:
    """What `StepAudio2.transcribe` takes, from the command line."""
    asks = options.no_tokenizer or options.prompt_ids is not None
    prompt = prompt_ids(options.prompt_ids) if asks else options.prompt
    return {"options": decoding_from(options), "prompt": prompt, **reading_from(options), "vad": options.vad}


def reading_from(options: argparse.Namespace) -> dict[str, str]:
    """How recordings are read, from the command line."""
    return {"downmix": options.downmix, "resampler": options.resampler}


def prompt_ids(text: str | None) -> tuple[list[int], list[int]]:
    """Token ids before and after the word AUDIO.

    >>> prompt_ids("1 2 AUDIO 3")
    ([1, 2], [3])
    """
    parts = (text or "").replace(",", " ").split("AUDIO")
    try:
        before, after = ([int(t) for t in part.split()] for part in parts)
    except ValueError:
        raise ConfigError(
            "--prompt-ids, which --no-tokenizer needs: expected whole numbers with AUDIO once among "
            "them, for instance "
            f"'1 2 AUDIO 3'; found {text!r}"
        ) from None
    return before, after


def load_model(options: argparse.Namespace) -> StepAudio2:
    """The model that `--model` names."""
    from ..model import StepAudio2

    folder = checkpoint_folder(options.model)  # may have to be fetched, which says so itself
    with busy("loading the model"):
        tokenizer = None if options.no_tokenizer else "beside"
        model = StepAudio2.load(folder, tokenizer=tokenizer, lora=options.lora)
    return with_draft(model, options)


def divided(model: StepAudio2, options: argparse.Namespace) -> tuple[StepAudio2, bool]:
    """The model divided among the processes of `mlx.launch`, and whether this process is the one that speaks.

    Raises
    ------
    ConfigError
        No other process is there, or an option would have the processes read or keep different things.
    """
    import mlx.core as mx

    group = mx.distributed.init()
    if group.size() == 1:
        raise ConfigError(
            "--tensor-parallel: expected two processes or more, found one; start them with mlx.launch -n 2 -- "
            "stepaudio …, and their number after -n"
        )
    if options.prompt_cache is not None:
        raise ConfigError("--tensor-parallel: each process would write its own --prompt-cache; leave one of them out")
    return model.sharded(group), group.rank() == 0


def recording(name: str):
    """The recording that a word of the command line names: standard input for "-"; `AudioError` if that is closed."""
    if name != STANDARD:
        return name
    if sys.stdin is None:
        raise AudioError("standard input: is closed, so there is nothing to read; use < FILE, or name the file")
    return sys.stdin.buffer
