"""`stepaudio plan`."""

from __future__ import annotations

import argparse
import re

from ..choices import CacheKind
from ..constants import MAX_TOKENS
from ..errors import ConfigError
from .options import check_limit
from .parser import add_choice, add_formats, add_option, add_verb, number, whole
from .streams import print_json

DTYPES = ("float32", "float16", "bfloat16")
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def add_plan_verb(verbs) -> None:
    """Add the verb to the subparsers of the command."""
    verb = add_verb(
        verbs, "plan", run_plan, "what fits into memory, by bits, before anything is loaded", "[MODEL]",
        ["stepaudio plan stepfun-ai/Step-Audio-2-mini --memory 16G --seconds 600",
         "stepaudio plan data/nano --bits 4 --kv-bits 8 --measure"],
        {0: "it fits, in at least one column; or nothing was said about --memory", 1: "nothing fits"},
    )  # fmt: skip
    verb.add_argument(
        "model", nargs="?", metavar="MODEL",
        help="folder, or ORG/NAME of a model on a hub, which is not fetched (default: STEPAUDIO_CHECKPOINT, else nano)",
    )  # fmt: skip
    add_option(verb, "--memory", type=amount, metavar="SIZE", help="what there is, such as 16G", shown="not judged")
    add_option(verb, "--seconds", type=number, default=60.0, metavar="S", help="of audio")
    add_option(
        verb, "--tokens", type=whole, default=MAX_TOKENS, metavar="N", help="most tokens of an answer or segment"
    )
    verb.add_argument(
        "--whole", action="store_true", help="all audio in one prompt, as in a conversation, not in segments"
    )
    add_option(verb, "--batch", type=whole, metavar="N", help="segments decoded together", shown="8 on a CPU, else 32")
    add_option(verb, "--bits", type=whole, metavar="N", help="plan this quantisation alone", shown="16, 8, 6 and 4")
    add_choice(verb, "--dtype", choices=DTYPES, help="of what is not quantised", shown="that of this backend")
    add_choice(verb, "--cache", choices=CacheKind.values(), default=CacheKind.SINKS.value, help="which positions stay")
    add_option(verb, "--max-cache-len", type=whole, metavar="N", help="the limit, in positions", shown="the model's")
    add_option(
        verb, "--kv-bits", type=whole, metavar="N", help="of a number in the cache: 8 or 4", shown="those of --dtype"
    )
    verb.add_argument(
        "--measure", action="store_true", help="also run it here, with random weights, and print what was shown"
    )
    add_option(
        verb, "--lengths", type=whole, default=0, metavar="N",
        help="of --measure: so many lengths of audio one after another, and what memory grew by",
    )  # fmt: skip
    add_formats(verb, ("text", "json"), "text")


def amount(word: str) -> int:
    """Bytes of a size such as 16G, in powers of two.

    >>> amount("1.5G")
    1610612736
    """
    found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,6})?) ?([KMGT])(?:i?B)?", word, re.IGNORECASE | re.ASCII)
    if found is None or not float(found[1]):
        raise argparse.ArgumentTypeError(f"expected a size with its unit, such as 16G or 800M, found {word!r}")
    return round(float(found[1]) * UNITS[found[2].upper()])


def run_plan(options: argparse.Namespace) -> int:
    """Print what a run would take; 1 if it does not fit."""
    from ..backend.device import default_dtype, on_cpu
    from ..bench.memory_plan import VARIANTS, Task, dtype_named, plan_memory, sizes_of, table
    from ..checkpoints.recipe import Recipe
    from ..models.kv_cache import CachePolicy
    from ..models.quantization import Bits
    from ..transcribe import batch_size_of

    if options.lengths and not options.measure:
        raise ConfigError("--lengths: is of --measure; give that too")
    check_limit(options)
    dtype = dtype_named(options.dtype) if options.dtype else default_dtype()
    policy = CachePolicy(options.cache, options.max_cache_len, bits=options.kv_bits)
    task = Task(
        options.seconds, options.tokens, options.whole, batch_size_of(options.batch), policy, on_cpu(), dtype.size
    )
    plain = sizes_of(options.model, dtype.size)
    name = f"{8 * dtype.size} bits"
    if options.bits is not None:
        recipes = {f"{options.bits} bits": Recipe(Bits(options.bits))}
    elif plain.widest:
        recipes = {"as it is": None}
    else:
        recipes = {name: None} | {word: recipe for word, recipe in VARIANTS.items() if recipe is not None}
    sizes = {word: sizes_of(options.model, dtype.size, recipe) if recipe else plain for word, recipe in recipes.items()}
    plans = {word: plan_memory(found, task) for word, found in sizes.items()}
    fits = options.memory is None or any(plan.all <= options.memory for plan in plans.values())
    said: dict = {"model": plain.name, "plans": {word: plan.to_dict() for word, plan in plans.items()}, "fits": fits}
    if options.format == "text":
        first = next(iter(plans.values()))
        how = "one prompt" if options.whole else f"batches of {first.batch} segments"
        held = f"{str(dtype).removeprefix('mlx.core.')} on {'a CPU' if on_cpu() else 'a GPU'}"
        print(f"{plain.name}: {options.seconds:g} s of audio, {how}, {first.positions} positions each, {held}; GB\n")
        print(table(plans, options.memory), flush=True)
    if options.measure:
        word = next(iter(plans))
        said["shown"] = _measure(options, plain.config, recipes[word], dtype, task, plans[word])
    if options.format == "json":
        print_json(said)
    return 0 if fits else 1


def _measure(options: argparse.Namespace, config, recipe, dtype, task, plan) -> dict:
    """The first column, run with random weights."""
    from dataclasses import asdict

    from ..bench.memory import compared, growth, measure, random_engine
    from .progress import busy

    with busy("measuring"):
        engine = random_engine(config, dtype, recipe)
        shown = measure(engine, task, plan.batch)
        uses = growth(engine, [0.5 + 25 * i / options.lengths for i in range(options.lengths)])
    found = asdict(shown)
    if options.format == "text":
        print("\n" + compared(plan, shown))
    if uses:
        found["growth"] = uses[-1].active - uses[0].active
        if options.format == "text":
            most = max(use.cached for use in uses)
            print(f"\n{len(uses)} lengths of audio: {found['growth']:,} bytes more in use, at most {most:,} kept")
    return found
