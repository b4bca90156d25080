"""`stepaudio weights`, `convert` and `verify`."""

from __future__ import annotations

import argparse
import contextlib
import os
from pathlib import Path

from ..checkpoints.find import checkpoint_folder
from ..checkpoints.hub_name import TOKEN2WAV
from ..errors import ConfigError, StepAudioError, TokenizerError
from ..targets import Target, check_targets
from .options import add_lora
from .parser import add_force, add_formats, add_option, add_verb, whole
from .progress import busy
from .streams import print_json


def add_checkpoint_verbs(verbs) -> None:
    """Add the verbs to the subparsers of the command."""
    weights = add_verb(
        verbs, "weights", run_weights, "account for every tensor of a checkpoint, from its headers", "[PATH]",
        ["stepaudio weights Step-Audio-2-mini --values --json",
         "stepaudio weights tuned --against Step-Audio-2-mini"],
        {0: "every tensor is there and fits; with --against, all are equal",
         1: "a tensor is missing, mis-shaped or, with --values, not finite; with --against, one is not equal",
         2: "under 50 % of the tensors match, or nothing could be read"},
    )  # fmt: skip
    weights.add_argument(
        "path", nargs="?", metavar="PATH",
        help="folder, file, or ORG/NAME of a model on a hub (default: STEPAUDIO_CHECKPOINT, else the bundled nano)",
    )  # fmt: skip
    add_lora(weights)
    add_formats(weights, ("text", "json"), "text")
    weights.add_argument("--values", action="store_true", help="also read the data: NaN, constant, untrained look")
    add_option(
        weights, "--rename", action="append", default=[], metavar="FOUND=PUBLISHED", shown="none",
        help="read tensors (or a prefix that ends in a dot) under another name; may be given several times",
    )  # fmt: skip
    add_option(
        weights, "--against", metavar="OTHER", shown="none",
        help="compare with another checkpoint, tensor by tensor: equal, changed by how much, and by which rank",
    )  # fmt: skip
    add_option(
        weights, "--rank", type=whole, metavar="N", shown="64",
        help="of --against: highest rank of a change that is looked for; 0 is faster and looks for none",
    )  # fmt: skip

    convert = add_verb(
        verbs, "convert", run_convert, "published token2wav files to safetensors, once; nothing in them is run",
        "MODEL_DIR",
        ["stepaudio convert Step-Audio-2-mini", "stepaudio convert Step-Audio-2-mini --out converted --json"],
        {0: "converted, or already so"},
    )  # fmt: skip
    convert.add_argument(
        "model_dir",
        metavar="MODEL_DIR",
        help="a published model's folder or its name on a hub, or its token2wav folder",
    )
    add_formats(convert, ("text", "json"), "text")
    add_option(convert, "--out", metavar="DIR", help="where to write", shown="beside the published files")
    add_force(convert)

    verify = add_verb(
        verbs, "verify", run_verify, "compare every stage with recorded outputs of the reference", "[GOLDENS]",
        ["stepaudio verify goldens --tokenizer Step-Audio-2-mini --json", "stepaudio verify --published-size"],
        {0: "everything that is covered agrees", 1: "something is off, or a file could not be used"},
    )  # fmt: skip
    verify.add_argument("goldens", nargs="?", metavar="GOLDENS", help="folder of NAME.json and NAME.safetensors")
    add_formats(verify, ("text", "json"), "text")
    add_option(
        verify, "--tokenizer", metavar="DIR", help="folder of the published tokenizer",
        shown="Step-Audio-2-mini beside the goldens",
    )  # fmt: skip
    verify.add_argument(
        "--published-size", action="store_true",
        help="instead, random weights at the published sizes: logits against PyTorch's, which has to be installed",
    )  # fmt: skip
    verify.add_argument("--tiny", action="store_true", help="of --published-size: a rehearsal at small sizes")
    add_option(verify, "--seed", type=whole, metavar="N", shown="0", help="of --published-size: of all that is random")


def run_weights(options: argparse.Namespace) -> int:
    """Print the weight report of a checkpoint; its own exit status."""
    from ..checkpoints.load import validate_weights
    from ..checkpoints.report import WeightReport

    path = options.path
    rename = dict(pair.partition("=")[::2] for pair in options.rename)
    if not all("=" in pair and pair[0] != "=" for pair in options.rename):
        raise ConfigError(f"--rename: expected FOUND=PUBLISHED, found {', '.join(options.rename)}")
    if options.against is not None:
        return _compare(options, rename)
    if options.rank is not None:
        raise ConfigError("--rank: is of --against; give that too")
    choosing: tuple[str, ...] = ()
    try:
        path = checkpoint_folder(path)
        with busy("reading the weights"):
            report = validate_weights(path, values=options.values, rename=rename or None, lora=options.lora)
        choosing = _other_choices(path)
    except StepAudioError as error:
        report = WeightReport.unreadable(path, error)
    if options.format == "json":
        print_json(report.to_dict() | {"generation_config": choosing})
    else:
        print(report.table())
        if choosing:
            print("\nHow tokens are chosen by generation_config.json, and here by default:")
            print("\n".join(f"  {line}" for line in choosing))
    return report.exit_status


def _compare(options: argparse.Namespace, rename: dict[str, str]) -> int:
    """Hold a checkpoint against another one; changes are given from the other to this one."""
    from ..checkpoints.compare import MOST, compare_checkpoints

    if options.values:
        raise ConfigError("--values: describes one checkpoint; leave it out, or leave --against out")
    if options.lora is not None:
        raise ConfigError("--lora: --against compares what is stored; leave one of them out")
    here, other = checkpoint_folder(options.path), checkpoint_folder(options.against)
    with busy("comparing"):
        rank = MOST if options.rank is None else options.rank
        found = compare_checkpoints(other, here, rank=rank, rename=rename or None)
    if options.format == "json":
        print_json(found.to_dict())
    else:
        print(found.table())
    return found.exit_status


def _other_choices(path: Path) -> tuple[str, ...]:
    """How the folder's `generation_config.json` differs from what is done by default."""
    from ..decoding.generation_config import FILE, differences
    from ..models.speech_lm import StepAudioConfig
    from ..text.tokenizer import Tokenizer

    if not (path / FILE).is_file():
        return ()
    ends = StepAudioConfig.from_file(path).text_config.end_ids
    with contextlib.suppress(TokenizerError):
        ends |= Tokenizer.from_folder(path).eos_ids
    return differences(path, ends)


def run_convert(options: argparse.Namespace) -> int:
    """Convert a published `token2wav` folder."""
    from ..checkpoints.convert.convert import convert, converted_files, is_converted

    folder = checkpoint_folder(options.model_dir, (TOKEN2WAV,))
    there = [path for path in converted_files(folder, options.out) if os.path.lexists(path)]
    check_targets([Target("--out", path, "of a conversion", is_converted) for path in there], [], options.force)
    with busy("converting"):
        done = convert(folder, options.out)
    if options.format == "json":
        print_json(done.manifest.raw)
    else:
        print(done.table())
    return 0


def run_verify(options: argparse.Namespace) -> int:
    """Compare with golden files; 1 if anything is off or unusable."""
    if options.published_size:
        return _verify_published_size(options)
    if options.goldens is None or options.tiny or options.seed is not None:
        raise ConfigError(
            "expected GOLDENS, a folder of golden files, or --published-size (with --tiny and --seed, if wanted)"
        )
    from ..parity.run import arithmetic, table, verify

    wrong, found = 0, verify(options.goldens, options.tokenizer)
    header = f"{arithmetic()}\n"
    while True:
        with busy("comparing"):
            name, rows = next(found, (None, []))
        if name is None:
            break
        wrong += sum(not row.good for row in rows)
        if options.format == "json":
            print_json({"file": name, "arithmetic": arithmetic(), "rows": [vars(row) for row in rows]})
        else:
            print(f"{header}{table(name, rows)}", flush=True)
            header = ""
    if options.format != "json":
        print(f"\n{f'{wrong} checks are off or unusable' if wrong else 'everything that is covered agrees'}")
    return 1 if wrong else 0


def _verify_published_size(options: argparse.Namespace) -> int:
    """Hold random nets against PyTorch's; 1 if anything is off."""
    if options.goldens is not None or options.tokenizer is not None:
        raise ConfigError("--published-size: takes no files; leave GOLDENS and --tokenizer out")
    os.environ.setdefault("MLX_ENABLE_TF32", "0")  # before MLX computes: whole products of float32
    from ..bench.agreement import compare_with_torch, table, versions
    from ..parity.run import arithmetic

    seed = options.seed or 0
    found = compare_with_torch(options.tiny, seed, busy)
    wrong = sum(not row.good for row in found)
    if options.format == "json":
        about = {"arithmetic": arithmetic(), "against": versions(), "tiny": options.tiny, "seed": seed}
        print_json(about | {"rows": [row.to_dict() for row in found], "good": not wrong})
    else:
        sizes = "small sizes" if options.tiny else "the published sizes"
        print(f"{arithmetic()}; {versions()}; random weights at {sizes}, seed {seed}\n\n{table(found)}")
    return 1 if wrong else 0
