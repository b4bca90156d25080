"""`stepaudio quantize`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from ..checkpoints.find import checkpoint_folder
from ..choices import QuantizationMode
from ..errors import ConfigError
from ..targets import Target, check_targets
from .parser import add_choice, add_force, add_formats, add_option, add_verb, whole
from .streams import print_json


def add_quantize_verb(verbs) -> None:
    """Add the verb to the subparsers of the command."""
    verb = add_verb(
        verbs, "quantize", run_quantize, "write a model again with fewer bits, as MLX's tools do", "MODEL OUT",
        ["stepaudio quantize Step-Audio-2-mini mini-4bit --bits 4",
         "stepaudio quantize data/nano nano-mixed --bits 4 --layer head=8 --layer encoder=off"],
        {0: "written"},
    )  # fmt: skip
    verb.add_argument(
        "model", metavar="MODEL",
        help="a folder of a model or of converted token2wav, or ORG/NAME[@REVISION] of a model on a hub",
    )  # fmt: skip
    verb.add_argument("out", metavar="OUT", help="folder to write; an earlier quantised model in it is replaced")
    add_option(
        verb, "--bits", type=whole, metavar="N", shown="what the mode has; with --recipe or --layer, those alone",
        help="bits of a weight: 2, 3, 4, 5, 6 or 8",
    )  # fmt: skip
    add_option(
        verb, "--group", type=whole, metavar="N", shown="what the mode has, 64 if affine",
        help="weights of a row that share a scale: 32, 64 or 128",
    )  # fmt: skip
    add_choice(
        verb,
        "--mode",
        choices=QuantizationMode.values(),
        default=QuantizationMode.AFFINE.value,
        help="how numbers are held, as MLX has it",
    )
    add_option(
        verb, "--recipe", metavar="FILE", shown="none",
        help="rules for components and patterns of layers: a JSON object of PATTERN to BITS",
    )  # fmt: skip
    add_option(
        verb, "--layer", action="append", default=[], metavar="PATTERN=BITS", shown="none",
        help="one rule more (encoder, adapter, decoder, head, embeddings; tokenizer, speaker, flow, vocoder, "
        "token2wav; or a pattern of names; 8, 4/32, off, mxfp4, …); may be given several times",
    )  # fmt: skip
    add_formats(verb, ("text", "json"), "text")
    add_force(verb)


def run_quantize(options: argparse.Namespace) -> int:
    """Quantise a folder; nothing is written before all of it is known to fit."""
    from ..checkpoints.quantize import is_quantised, write_quantised
    from ..checkpoints.quantize_plan import plan_quantisation
    from ..checkpoints.recipe import Recipe, parse_rules
    from ..models.quantization import Bits

    given = options.bits is not None or options.group is not None or options.mode != QuantizationMode.AFFINE
    ruled = options.recipe is not None or bool(options.layer)
    if not given and not ruled:
        raise ConfigError("expected --bits, --mode, --recipe or --layer, which say how many bits which layers get")
    default = Bits.usual(options.bits, options.group, options.mode) if given else None
    recipe = Recipe(default) if options.recipe is None else Recipe.from_file(options.recipe, default)
    recipe = parse_rules(options.layer, recipe, "--layer")
    source, out = checkpoint_folder(options.model), Path(options.out)
    plan = plan_quantisation(source, recipe)
    there = [out / name for name in plan.files if os.path.lexists(out / name)]
    targets = [Target("OUT", path, "of a quantised model", is_quantised) for path in there]
    inputs = [source, *([options.recipe] if options.recipe else [])]
    check_targets(targets, inputs, options.force)
    done = write_quantised(plan, out)
    if options.format == "json":
        print_json(done.manifest)
    else:
        print(done.table())
    return 0
