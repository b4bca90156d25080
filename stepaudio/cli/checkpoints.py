"""`stepaudio weights`, `convert` and `verify`."""

from __future__ import annotations

import json
import math

from ..errors import ConfigError, StepAudioError


def run_weights(options) -> int:
    from ..checkpoints.load import validate_weights
    from ..checkpoints.report import WeightReport
    from ..resources import default_checkpoint

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


def run_convert(options) -> int:
    from ..checkpoints.convert.convert import convert

    done = convert(options.model_dir, options.out)
    print(json.dumps(done.manifest.raw) if options.json else done.table())
    return 0


def run_verify(options) -> int:
    from ..parity.run import table, verify

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
