"""The command `stepaudio`: thin verbs over the package.

Errors go to stderr in one line; the exit status says how it went.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings

from ..backend import device as backend
from ..errors import StepAudioError
from .checkpoints import run_convert, run_verify, run_weights
from .experiments import run_bench, run_sweep_grid
from .options import decoding_options
from .speak import add_speaking_verbs
from .transcribe import run_evaluate, run_transcribe


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    options = _parser().parse_args(argv)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            return options.run(options)
    except StepAudioError as error:
        print(f"stepaudio: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stepaudio: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 141


def _show_warning(message, *_args, **_more) -> None:
    """A warning is for the user: one line, without the source line that raised it."""
    print(f"stepaudio: warning: {message}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="stepaudio", description="Workbench for Step-Audio 2 mini on MLX.")
    verbs = parser.add_subparsers(required=True, metavar="COMMAND")

    hear = verbs.add_parser("transcribe", help="speech to text, one JSON object per file")
    hear.add_argument("files", nargs="+", metavar="FILE")
    hear.add_argument("--text", action="store_true", help="print plain text instead of JSON")
    hear.add_argument("--json", action="store_true", help="print JSON (the default; kept for scripts)")
    hear.add_argument("--no-tokenizer", action="store_true", help="give ids instead of text (needs --prompt-ids)")
    decoding_options(hear)
    hear.set_defaults(run=run_transcribe)

    add_speaking_verbs(verbs)

    score = verbs.add_parser("evaluate", help="word error rate, loops and speed over a table of recordings")
    score.add_argument("manifest", help="TSV or CSV with columns file and text, paths relative to it")
    score.add_argument("--words", help="words.txt of the model, to score apart the clips it covers")
    decoding_options(score)
    score.set_defaults(run=run_evaluate)

    weights = verbs.add_parser("weights", help="account for every tensor of a checkpoint, from its headers")
    weights.add_argument("path", nargs="?", help="folder or file; default: the bundled model")
    weights.add_argument("--values", action="store_true", help="also read the data: NaN, constant, untrained look")
    weights.add_argument(
        "--rename",
        action="append",
        default=[],
        metavar="FOUND=PUBLISHED",
        help="read tensors (or a prefix ending in a dot) under another name",
    )
    weights.add_argument("--json", action="store_true")
    weights.set_defaults(run=run_weights)

    turn = verbs.add_parser("convert", help="published token2wav files to safetensors, once; nothing in them is run")
    turn.add_argument("model_dir", metavar="MODEL_DIR", help="a published model's folder, or its token2wav folder")
    turn.add_argument("--out", metavar="DIR", help="where to write; default: beside the published files")
    turn.add_argument("--json", action="store_true", help="print the manifest")
    turn.set_defaults(run=run_convert)

    check = verbs.add_parser("verify", help="compare every stage with recorded outputs of the reference")
    check.add_argument("goldens")
    check.add_argument("--tokenizer", help="folder of the published tokenizer; default: beside the goldens")
    check.add_argument("--json", action="store_true")
    check.set_defaults(run=run_verify)

    bench = verbs.add_parser("bench", help="speed, as ratios within one run")
    bench.add_argument("--manifest", help="recordings; default: the bundled ones")
    bench.add_argument("--model")
    bench.add_argument("--repeats", type=int, default=3)
    bench.add_argument(
        "--speaking",
        action="store_true",
        help="the speaking half instead, of --model, or of the published sizes with drawn weights",
    )
    bench.set_defaults(run=run_bench)

    sweep = verbs.add_parser("sweep", help="a grid of clips, settings, seeds and defects; resumes where it stopped")
    sweep.add_argument("grid", help="JSON file; see stepaudio.lab.grid.Grid")
    sweep.add_argument("-o", "--store", required=True, help="JSON lines, one per finished run")
    sweep.add_argument("--table", metavar="FILE", help="also write all runs of the grid as .csv or .parquet")
    sweep.set_defaults(run=run_sweep_grid)

    about = verbs.add_parser("info", help="backend, BLAS, dtype, versions")
    about.add_argument("--json", action="store_true")
    about.set_defaults(run=_info)

    demo = verbs.add_parser("demo", help="transcribe the bundled recordings with the bundled model")
    demo.set_defaults(run=_demo)
    return parser


def _info(options) -> int:
    found = backend.info()
    if options.json:
        print(json.dumps(found))
        return 0
    for key, value in found.items():
        print(f"{key:9} {', '.join(f'{k} {v}' for k, v in value.items()) if isinstance(value, dict) else value}")
    return 0


def _demo(options) -> int:
    from .demo import run

    return run()
