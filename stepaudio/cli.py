"""The command `stepaudio`: thin verbs over the package.

Errors go to stderr in one line; the exit status says how it went.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
import warnings
from pathlib import Path

from . import backend
from .cache import CachePolicy
from .cli_speaking import add_speaking_verbs
from .errors import AudioError, ConfigError, StepAudioError
from .loops import ON_LOOP
from .prompt import ASR_SYSTEM
from .sampling import Sampling
from .units import MAX_TOKENS


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
    _decoding_options(hear)
    hear.set_defaults(run=_transcribe)

    add_speaking_verbs(verbs)

    score = verbs.add_parser("evaluate", help="word error rate, loops and speed over a table of recordings")
    score.add_argument("manifest", help="TSV or CSV with columns file and text, paths relative to it")
    score.add_argument("--words", help="words.txt of the model, to score apart the clips it covers")
    _decoding_options(score)
    score.set_defaults(run=_evaluate)

    weights = verbs.add_parser("weights", help="account for every tensor of a checkpoint, from its headers")
    weights.add_argument("path", nargs="?", help="folder or file; default: the bundled model")
    weights.add_argument("--values", action="store_true", help="also read the data: NaN, constant, untrained look")
    weights.add_argument("--rename", action="append", default=[], metavar="FOUND=PUBLISHED",
                         help="read tensors (or a prefix ending in a dot) under another name")
    weights.add_argument("--json", action="store_true")
    weights.set_defaults(run=_weights)

    turn = verbs.add_parser("convert", help="published token2wav files to safetensors, once; nothing in them is run")
    turn.add_argument("model_dir", metavar="MODEL_DIR", help="a published model's folder, or its token2wav folder")
    turn.add_argument("--out", metavar="DIR", help="where to write; default: beside the published files")
    turn.add_argument("--json", action="store_true", help="print the manifest")
    turn.set_defaults(run=_convert)

    check = verbs.add_parser("verify", help="compare every stage with recorded outputs of the reference")
    check.add_argument("goldens")
    check.add_argument("--tokenizer", help="folder of the published tokenizer; default: beside the goldens")
    check.add_argument("--json", action="store_true")
    check.set_defaults(run=_verify)

    bench = verbs.add_parser("bench", help="speed, as ratios within one run")
    bench.add_argument("--manifest", help="recordings; default: the bundled ones")
    bench.add_argument("--model")
    bench.add_argument("--repeats", type=int, default=3)
    bench.set_defaults(run=_bench)

    sweep = verbs.add_parser("sweep", help="a grid of clips, settings, seeds and defects; resumes where it stopped")
    sweep.add_argument("grid", help="JSON file; see stepaudio.lab.grid.Grid")
    sweep.add_argument("-o", "--store", required=True, help="JSON lines, one per finished run")
    sweep.add_argument("--table", metavar="FILE", help="also write all runs of the grid as .csv or .parquet")
    sweep.set_defaults(run=_sweep)

    about = verbs.add_parser("info", help="backend, BLAS, dtype, versions")
    about.add_argument("--json", action="store_true")
    about.set_defaults(run=_info)

    demo = verbs.add_parser("demo", help="transcribe the bundled recordings with the bundled model")
    demo.set_defaults(run=_demo)
    return parser


def _decoding_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--model", metavar="DIR",
                      help="checkpoint folder; default: STEPAUDIO_CHECKPOINT or the bundled nano")
    verb.add_argument("--prompt-ids", metavar="IDS", help="ids of the prompt, with AUDIO where the recording goes")
    verb.add_argument("--prompt", default=ASR_SYSTEM, help="system text; default: the reference's transcription prompt")
    verb.add_argument("--max-tokens", type=int, default=MAX_TOKENS)
    verb.add_argument("--downmix", choices=("first", "mean"), default="first")
    verb.add_argument("--batch", type=int, help="pieces decoded together")
    verb.add_argument("--on-loop", choices=ON_LOOP, default="report")
    rules = verb.add_argument_group("sampling")
    rules.add_argument("--sampling", choices=("planned", "reference", "greedy"), default="planned")
    for name, kind in (("temperature", float), ("top-k", int), ("top-p", float), ("min-p", float), ("seed", int),
                       ("repetition", float), ("frequency", float), ("presence", float), ("no-repeat-ngram", int),
                       ("window", int)):
        rules.add_argument(f"--{name}", type=kind)
    rules.add_argument("--penalise-prompt", dest="penalise_prompt", action="store_const", const=True,
                       help="let penalties see the prompt's ids too")
    memory = verb.add_argument_group("cache")
    memory.add_argument("--cache", choices=("full", "window", "sinks", "pinned"), default="sinks")
    memory.add_argument("--max-cache-len", type=int, metavar="POSITIONS")
    memory.add_argument("--sinks", type=int, default=4)
    memory.add_argument("--positions", choices=("absolute", "renumbered"), default="absolute")


SAMPLING_OPTIONS = ("temperature", "top_k", "top_p", "min_p", "seed", "repetition", "frequency", "presence",
                    "no_repeat_ngram", "window")


def _decoding(options) -> dict:
    """What the model's methods take, from the command line."""
    changes = {k: getattr(options, k) for k in SAMPLING_OPTIONS if getattr(options, k) is not None}
    if options.penalise_prompt:
        changes["prompt"] = True
    sampling = Sampling.named(options.sampling).override(changes)
    cache = CachePolicy(options.cache, options.max_cache_len, options.sinks, options.positions)
    if options.batch is not None and options.batch < 1:
        raise ConfigError(f"--batch: expected at least 1, found {options.batch}")
    return {"sampling": sampling, "cache": cache, "max_tokens": options.max_tokens, "on_loop": options.on_loop,
            "prompt": _prompt(options), "batch": options.batch, "downmix": options.downmix}


def _prompt(options):
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
        raise ConfigError("--prompt-ids, which --no-tokenizer needs: expected whole numbers with AUDIO once among "
                          "them, for instance "
                          f"'1 2 AUDIO 3'; found {text!r}") from None


def _load(options):
    from .model import StepAudio2

    return StepAudio2.load(options.model, **({"tokenizer": None} if getattr(options, "no_tokenizer", False) else {}))


def _transcribe(options) -> int:
    decoding = _decoding(options)
    model, failed = _load(options), 0
    for name in options.files:
        try:
            found = model.transcribe(name, **decoding)
        except AudioError as error:  # this file only; anything else would befall every file
            failed += 1
            print(f"stepaudio: {error}", file=sys.stderr)
            if not options.text:
                print(json.dumps({"file": name, "error": str(error)}, ensure_ascii=False), flush=True)
            continue
        shown = found.text if options.text and found.text is not None else json.dumps(
            {"file": name, **found.to_dict()}, ensure_ascii=False)
        print(shown, flush=True)
    return 1 if failed else 0


def _evaluate(options) -> int:
    from .evaluate import evaluate, read_manifest, read_words, totals
    from .samples import default_checkpoint

    decoding, clips = _decoding(options), read_manifest(options.manifest)
    beside = Path(options.model or default_checkpoint()) / "words.txt"
    words = options.words or (beside if beside.exists() else None)
    known = read_words(words) if words else None
    model, scores, began = _load(options), [], time.perf_counter()
    for score in evaluate(model, clips, **decoding):
        scores.append(score)
        print(json.dumps(score.to_dict(), ensure_ascii=False), flush=True)
    last = totals(scores, known) | {"sampling": options.sampling, "wall_seconds": round(time.perf_counter() - began, 2)}
    print(json.dumps(last), flush=True)
    return 1 if last["failed"] else 0


def _weights(options) -> int:
    from .report import WeightReport
    from .samples import default_checkpoint
    from .weights import validate_weights

    path = options.path or default_checkpoint()
    rename = dict(pair.partition("=")[::2] for pair in options.rename)
    if not all("=" in pair and pair[0] != "=" for pair in options.rename):
        raise ConfigError(f"--rename: expected FOUND=PUBLISHED, found {', '.join(options.rename)}")
    try:
        report = validate_weights(path, values=options.values, rename=rename or None)
    except StepAudioError as error:
        report = WeightReport.unreadable(path, error)
    print(json.dumps(report.to_dict()) if options.json else report.table())
    return report.exit_status


def _convert(options) -> int:
    from .token2wav.convert import convert

    done = convert(options.model_dir, options.out)
    print(json.dumps(done.manifest.raw) if options.json else done.table())
    return 0


def _verify(options) -> int:
    from .verify import table, verify

    bad = 0
    for name, rows in verify(options.goldens, options.tokenizer):
        bad += sum(not row.good for row in rows)
        if options.json:
            print(json.dumps({"file": name, "rows": [_plain(vars(row)) for row in rows]}))
        else:
            print(table(name, rows), flush=True)
    if not options.json:
        print(f"\n{'everything that is covered agrees' if not bad else f'{bad} checks are off or unusable'}")
    return 1 if bad else 0


def _plain(row: dict) -> dict:
    """JSON knows no infinity; the verdict and its note say what happened."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}


def _bench(options) -> int:
    from .bench import run

    return run(options.manifest, options.model, options.repeats)


def _sweep(options) -> int:
    from .lab.grid import Grid
    from .lab.sweep import is_first_rank, run_sweep

    table = run_sweep(Grid.from_file(options.grid), options.store)
    failed = sum(row["error"] != "" for row in table.rows)
    if not is_first_rank():
        return 1 if failed else 0
    if options.table:
        table.write(options.table)
    print(json.dumps({"store": options.store, "runs": len(table), "failed": failed}))
    return 1 if failed else 0


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
