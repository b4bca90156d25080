"""Options that several commands share, and what becomes of them."""

from __future__ import annotations

import argparse

from ..constants import MAX_TOKENS
from ..decoding.loop_detector import ON_LOOP
from ..decoding.sampling import Sampling
from ..errors import ConfigError
from ..models.kv_cache import CachePolicy
from ..text.prompts import ASR_SYSTEM


def decoding_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--model", metavar="DIR", help="checkpoint folder; default: STEPAUDIO_CHECKPOINT or the bundled nano"
    )
    verb.add_argument("--prompt-ids", metavar="IDS", help="ids of the prompt, with AUDIO where the recording goes")
    verb.add_argument("--prompt", default=ASR_SYSTEM, help="system text; default: the reference's transcription prompt")
    verb.add_argument("--max-tokens", type=int, default=MAX_TOKENS)
    verb.add_argument("--downmix", choices=("first", "mean"), default="first")
    verb.add_argument("--batch", type=int, help="pieces decoded together")
    verb.add_argument("--on-loop", choices=ON_LOOP, default="report")
    rules = verb.add_argument_group("sampling")
    rules.add_argument("--sampling", choices=("planned", "reference", "greedy"), default="planned")
    for name, kind in (
        ("temperature", float),
        ("top-k", int),
        ("top-p", float),
        ("min-p", float),
        ("seed", int),
        ("repetition", float),
        ("frequency", float),
        ("presence", float),
        ("no-repeat-ngram", int),
        ("window", int),
    ):
        rules.add_argument(f"--{name}", type=kind)
    rules.add_argument(
        "--penalise-prompt",
        dest="penalise_prompt",
        action="store_const",
        const=True,
        help="let penalties see the prompt's ids too",
    )
    memory = verb.add_argument_group("cache")
    memory.add_argument("--cache", choices=("full", "window", "sinks", "pinned"), default="sinks")
    memory.add_argument("--max-cache-len", type=int, metavar="POSITIONS")
    memory.add_argument("--sinks", type=int, default=4)
    memory.add_argument("--positions", choices=("absolute", "renumbered"), default="absolute")


SAMPLING_OPTIONS = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "seed",
    "repetition",
    "frequency",
    "presence",
    "no_repeat_ngram",
    "window",
)


def decoding_from(options) -> dict:
    """What the model's methods take, from the command line."""
    changes = {k: getattr(options, k) for k in SAMPLING_OPTIONS if getattr(options, k) is not None}
    if options.penalise_prompt:
        changes["prompt"] = True
    sampling = Sampling.named(options.sampling).override(changes)
    cache = CachePolicy(options.cache, options.max_cache_len, options.sinks, options.positions)
    if options.batch is not None and options.batch < 1:
        raise ConfigError(f"--batch: expected at least 1, found {options.batch}")
    return {
        "sampling": sampling,
        "cache": cache,
        "max_tokens": options.max_tokens,
        "on_loop": options.on_loop,
        "prompt": prompt_from(options),
        "batch": options.batch,
        "downmix": options.downmix,
    }


def prompt_from(options):
    no_tokenizer = getattr(options, "no_tokenizer", False)
    return _prompt_ids(options.prompt_ids) if no_tokenizer or options.prompt_ids is not None else options.prompt


def _prompt_ids(text: str | None):
    """ "1 2 AUDIO 3" -> ([1, 2], [3])"""
    parts = (text or "").replace(",", " ").split("AUDIO")
    try:
        if len(parts) != 2:
            raise ValueError
        return tuple([int(t) for t in part.split()] for part in parts)
    except ValueError:
        raise ConfigError(
            "--prompt-ids, which --no-tokenizer needs: expected whole numbers with AUDIO once among "
            "them, for instance "
            f"'1 2 AUDIO 3'; found {text!r}"
        ) from None


def load_model(options):
    from ..model import StepAudio2

    return StepAudio2.load(options.model, **({"tokenizer": None} if getattr(options, "no_tokenizer", False) else {}))
