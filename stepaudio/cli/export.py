"""`stepaudio export`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from ..checkpoints.find import checkpoint_folder
from ..choices import alternatives, hint
from ..errors import ConfigError
from ..targets import Target, check_targets
from .parser import add_force, add_formats, add_option, add_verb
from .streams import print_json

FORMS = ("mlx-lm", "step-audio")


def add_export_verb(verbs) -> None:
    """Add the verb to the subparsers of the command."""
    verb = add_verb(
        verbs, "export", run_export, "write the decoder as a folder of mlx-lm, or a model with such a decoder",
        "FORM MODEL OUT",
        ["stepaudio export mlx-lm Step-Audio-2-mini mini-decoder",
         "stepaudio export step-audio Step-Audio-2-mini tuned --decoder mini-decoder-fused"],
        {0: "written"},
    )  # fmt: skip
    verb.add_argument(
        "form", metavar="FORM",
        help="mlx-lm: decoder, head and tokenizer alone; step-audio: MODEL with the decoder of --decoder",
    )  # fmt: skip
    verb.add_argument("model", metavar="MODEL", help="a model's folder, or ORG/NAME[@REVISION] of a model on a hub")
    verb.add_argument("out", metavar="OUT", help="folder to write; an earlier export in it is replaced")
    add_option(
        verb, "--decoder", metavar="DIR", shown="none",
        help="of step-audio: what mlx-lm wrote of the decoder, quantised, or with its adapters fused",
    )  # fmt: skip
    verb.add_argument(
        "--float32", action="store_true",
        help="of mlx-lm: write all floats as float32, the type that mlx-lm then computes in, and not as stored",
    )  # fmt: skip
    add_formats(verb, ("text", "json"), "text")
    add_force(verb)


def run_export(options: argparse.Namespace) -> int:
    """Write the folder; nothing is written before all of it is known to fit."""
    from ..checkpoints.decoder_folder import is_exported, plan_decoder, plan_return, write_export

    if options.form not in FORMS:
        expected = f"FORM: expected {alternatives(FORMS)}, found {options.form!r:.60}"
        raise ConfigError(expected + hint(options.form, FORMS))
    back = options.form == FORMS[1]
    if back != (options.decoder is not None):
        raise ConfigError(
            "--decoder: expected the folder that mlx-lm wrote, with step-audio" if back else
            "--decoder: mlx-lm takes the decoder of MODEL; leave it out"
        )  # fmt: skip
    if back and options.float32:
        raise ConfigError("--float32: a model is loaded in the type that is asked for then; leave it out")
    source, out = checkpoint_folder(options.model), Path(options.out)
    plan = plan_return(source, options.decoder) if back else plan_decoder(source, options.float32)
    there = [out / name for name in plan.files if os.path.lexists(out / name)]
    targets = [Target("OUT", path, "of an export", is_exported) for path in there]
    check_targets(targets, [source, *([options.decoder] if back else [])], options.force)
    manifest = write_export(plan, out)
    if options.format == "json":
        print_json(manifest)
        return 0
    print(f"{out}: {len(manifest['tensors'])} tensors, {plan.nbytes:,} bytes, from {manifest['source']}")
    for note in manifest["notes"]:
        print(f"note: {note}")
    return 0
