"""Options that several commands share, and what becomes of them."""

from __future__ import annotations

import argparse

from ..choices import CacheKind, LoopAction, Positions
from ..constants import MAX_TOKENS
from ..decoding.options import merge_options
from ..decoding.sampling import PRESETS
from ..errors import ConfigError
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
    verb.add_argument("--on-loop", choices=LoopAction.values(), default="report")
    rules = verb.add_argument_group("sampling")
    rules.add_argument("--sampling", choices=PRESETS, default="planned")
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
        "--include-prompt",
        "--penalise-prompt",
        dest="include_prompt",
        action="store_const",
        const=True,
        help="let penalties count the prompt's tokens too",
    )
    memory = verb.add_argument_group("cache")
    memory.add_argument("--cache", choices=CacheKind.values(), default="sinks")
    memory.add_argument("--max-cache-len", type=int, metavar="POSITIONS")
    memory.add_argument("--sinks", type=int, default=4)
    memory.add_argument("--positions", choices=(*Positions.values(), "renumbered"), default="absolute")


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
    "include_prompt",
)


def decoding_from(options) -> dict:
    """What the model's methods take, from the command line."""
    rules = {k: getattr(options, k) for k in SAMPLING_OPTIONS if getattr(options, k) is not None}
    decoding = merge_options(
        sampling=options.sampling,
        cache=options.cache,
        max_cache_len=options.max_cache_len,
        sinks=options.sinks,
        positions=options.positions,
        max_tokens=options.max_tokens,
        on_loop=options.on_loop,
        batch=options.batch,
        **rules,
    )
    return {"options": decoding, "prompt": prompt_from(options), "downmix": options.downmix}


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
