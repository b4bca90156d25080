"""`stepaudio bench` and `sweep`."""

from __future__ import annotations

import json

from ..errors import ConfigError


def run_bench(options) -> int:
    from ..bench import asr as bench
    from ..bench import tts as bench_speaking

    if options.speaking:
        if options.manifest is not None:
            raise ConfigError("--manifest is for the hearing half; with --speaking nothing is heard")
        return bench_speaking.run(options.model, options.repeats)
    return bench.run(options.manifest, options.model, options.repeats)


def run_sweep_grid(options) -> int:
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
