"""`stepaudio bench` and `sweep`."""

from __future__ import annotations

import argparse
import json

from ..errors import ConfigError
from .options import add_model
from .parser import add_formats, add_option, add_verb


def add_experiment_verbs(verbs) -> None:
    """Add the verbs to the subparsers of the command."""
    bench = add_verb(
        verbs, "bench", run_bench, "speed, as ratios within one run", "",
        ["stepaudio bench --repeats 5", "stepaudio bench --token2wav --model Step-Audio-2-mini"],
        {0: "measured, and all ways of running gave the same tokens", 1: "two ways of running gave different tokens"},
    )  # fmt: skip
    add_model(bench)
    add_option(bench, "--manifest", metavar="FILE", help="table of recordings to transcribe", shown="the bundled ones")
    add_option(bench, "--repeats", type=int, default=3, metavar="N", help="how often everything is measured")
    bench.add_argument(
        "--token2wav", "--speaking", dest="token2wav", action="store_true",
        help="token2wav instead, of --model, or of the published sizes with random initialisation",
    )  # fmt: skip

    sweep = add_verb(
        verbs, "sweep", run_sweep_grid, "a grid of clips, settings, seeds and faults; resumes where it stopped",
        "GRID -o STORE",
        ["stepaudio sweep grid.json -o runs.jsonl", "stepaudio sweep grid.json -o runs.jsonl --table runs.csv"],
        {0: "every run is in the store", 1: "a run failed; the others are in the store"},
    )  # fmt: skip
    sweep.add_argument("grid", metavar="GRID", help="JSON file; see stepaudio.experiments.grid.Grid")
    add_formats(sweep, ("json",), "json")
    add_option(sweep, "-o", "--store", required=True, metavar="FILE", help="JSON lines, one per finished run")
    add_option(
        sweep, "--table", metavar="FILE", help="also write all runs of the grid as .csv or .parquet", shown="none",
    )  # fmt: skip


def run_bench(options: argparse.Namespace) -> int:
    """Measure; 1 if two ways of running disagree."""
    from ..bench import asr, tts

    if options.token2wav:
        if options.manifest is not None:
            raise ConfigError("--manifest: recordings to transcribe; with --token2wav there is nothing to transcribe")
        return tts.run(options.model, options.repeats)
    return asr.run(options.manifest, options.model, options.repeats)


def run_sweep_grid(options: argparse.Namespace) -> int:
    """Run what is left of a grid; 1 if a run failed."""
    from ..experiments.grid import Grid
    from ..experiments.sweep import is_first_rank, run_sweep

    table = run_sweep(Grid.from_file(options.grid), options.store)
    failed = sum(row["error"] != "" for row in table.rows)
    if not is_first_rank():
        return 1 if failed else 0
    if options.table:
        table.write(options.table)
    print(json.dumps({"store": options.store, "runs": len(table), "failed": failed}))
    return 1 if failed else 0
