"""`stepaudio bench` and `sweep`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from ..targets import Target, check_targets
from .options import add_model
from .parser import add_force, add_formats, add_option, add_verb, whole
from .progress import message, stages
from .streams import print_json

if TYPE_CHECKING:
    from ..bench.rows import Row
    from ..experiments.grid import Grid


def add_experiment_verbs(verbs) -> None:
    """Add the verbs to the subparsers of the command."""
    bench = add_verb(
        verbs, "bench", run_bench, "speed, as ratios within one run", "",
        ["stepaudio bench --repeats 5", "stepaudio bench --token2wav --model Step-Audio-2-mini"],
        {0: "measured, and all ways of running gave the same tokens", 1: "two ways of running gave different tokens"},
    )  # fmt: skip
    add_model(bench)
    add_option(
        bench, "--manifest", metavar="FILE", help="table or JSON lines of recordings", shown="8 of the bundled ones"
    )
    add_option(
        bench, "--repeats", type=whole, metavar="N", shown="2; 3 with --token2wav or --published",
        help="how often everything is measured",
    )  # fmt: skip
    bench.add_argument(
        "--token2wav", "--speaking", dest="token2wav", action="store_true",
        help="token2wav instead, of --model, or of the published sizes with random initialisation",
    )  # fmt: skip

    bench.add_argument(
        "--published", action="store_true",
        help="instead, all nets at the published sizes with random weights, beside the same in mlx-lm and PyTorch",
    )  # fmt: skip
    bench.add_argument("--tiny", action="store_true", help="of --published and --token2wav: a rehearsal at small sizes")
    add_option(
        bench, "--part", action="append", default=[], metavar="NAME", shown="all of them",
        help="of --published: load, encoder, prefill, decode, samplers, caches, bits, batches, speculative, "
        "first-token, first-sound, edits, token2wav or voice alone; may be given several times",
    )  # fmt: skip
    add_formats(bench, ("text", "json"), "text")

    sweep = add_verb(
        verbs, "sweep", run_sweep_grid, "a grid of clips, settings, seeds, faults and edits; resumes where it stopped",
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
    add_force(sweep)


def run_bench(options: argparse.Namespace) -> int:
    """Measure; 1 if two ways of running disagree."""
    if options.published:
        return _bench_published(options)
    if options.part:
        raise ConfigError("--part: is of --published; add it, or leave it out")
    if options.tiny and (not options.token2wav or options.model is not None):
        raise ConfigError("--tiny: of --published, or of --token2wav without --model; add one of them, or leave it out")
    from ..bench import asr, tts

    if options.token2wav and options.manifest is not None:
        raise ConfigError("--manifest: recordings to transcribe; with --token2wav there is nothing to transcribe")
    how: dict[str, Any] = {} if options.repeats is None else {"repeats": options.repeats}
    if options.format == "json":
        how["show"] = _print_row
    with stages() as stage:
        if options.token2wav:
            size = "small" if options.tiny else "published"
            return tts.run(options.model, size=size, stage=stage, **how)
        return asr.run(options.manifest, options.model, stage=stage, **how)


def _bench_published(options: argparse.Namespace) -> int:
    """Print each line as it is measured."""
    if options.token2wav or options.manifest is not None or options.model is not None:
        raise ConfigError("--published: takes no model and no recordings; leave --model, --manifest, --token2wav out")
    from ..bench import published

    if options.format == "text":
        print(published.about(options.tiny) + "\n", flush=True)
    repeats = 3 if options.repeats is None else options.repeats
    for i, row in enumerate(published.run(options.part, options.tiny, repeats)):
        if i == 0:  # what is refused is refused by then
            for line in published.without(options.part):
                message(line)
        if options.format == "json":
            _print_row(row)
        else:
            print(row, flush=True)
    return 0


def _print_row(row: Row) -> None:
    from ..backend.device import info

    print_json(row.to_dict() | {"backend": info()["backend"]})


def run_sweep_grid(options: argparse.Namespace) -> int:
    """Run what is left of a grid; 1 if a run failed."""
    from ..experiments.grid import Grid
    from ..experiments.sweep import is_first_rank, run_sweep

    grid = Grid.from_file(options.grid)
    _check_outputs(options, grid)
    table = run_sweep(grid, options.store)
    failed = sum(row["error"] != "" for row in table.rows)
    if not is_first_rank():
        return 1 if failed else 0
    if options.table:
        table.write(options.table)
    print_json({"store": options.store, "runs": len(table), "failed": failed})
    return 1 if failed else 0


def _check_outputs(options: argparse.Namespace, grid: Grid) -> None:
    """Refuse a store or table that cannot be, before the first run; --force removes a file in the store's place."""
    from ..checkpoints.find import checkpoint_folder
    from ..experiments.store import is_store, store_files
    from ..experiments.table import check_table_name, is_table

    store = Path(options.store)
    names = dict.fromkeys([store, *store_files(store)])
    targets = [Target("--store", path, "a store of a sweep", is_store) for path in names]
    if options.table:
        check_table_name(options.table)
        targets.append(Target("--table", Path(options.table), "a table of a sweep", is_table))
    check_targets(targets, [options.grid, *grid.files, checkpoint_folder(grid.model)], options.force)
    for path in names:
        if path.exists() and not is_store(path):
            path.unlink()
