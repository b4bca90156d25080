"""What the verbs of training write at once: never over what they read, and over other files only with --force."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import ConfigError, StepAudioError
from ..targets import Target, check_targets
from .recipe import LOG

LONGEST = 1 << 16  # characters of a line of a log


def add_force(verb: argparse.ArgumentParser) -> None:
    """Add `--force`."""
    verb.add_argument("--force", action="store_true", help="replace files of another kind that are there")


def check_outputs(
    files: Iterable[Path], inputs: Iterable[Path], force: bool, is_ours: Callable[[Path], bool] = lambda path: False
) -> None:
    """Raise `ConfigError` if a file that is to be written is read too, or is there and may not be replaced.

    Parameters
    ----------
    files : iterable of Path
        To be written; those that are not there are no matter.
    inputs : iterable of Path
        As `targets.check_targets`.
    force : bool
        Whether files may be replaced that are not `is_ours`; never one that is read.
    is_ours : callable
        Whether a file that is there may be replaced all the same.
    """
    there = [path for path in files if os.path.lexists(path)]
    check_targets([Target("output", path, "what this verb replaces", is_ours) for path in there], inputs, force)


def check_run(out: Path, files: Iterable[str], inputs: Iterable[Path | None], force: bool) -> None:
    """As `check_outputs`, for a run that writes its log and `files` to the folder `out`.

    A run replaces what a run wrote: in a folder with the log of one. What it resumes from is no input.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"output {out}: expected a folder, or a name that is free")
    read = [path for path in inputs if path is not None]
    check_outputs([out / name for name in (LOG, *files)], read, force, lambda path: _is_log(out / LOG))


def _is_log(path: Path) -> bool:
    """Whether a run wrote this file; its last line may be torn."""
    try:
        with path.open(encoding="utf-8") as lines:
            first = json.loads(lines.readline(LONGEST))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(first, dict) and bool({"event", "step"} & set(first))


@contextmanager
def refusals_in_one_line(program: str) -> Iterator[None]:
    """An error of the user, or of the disk, ends the process with one line and status 2."""
    try:
        yield
    except StepAudioError as error:
        print(f"{program}: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except OSError as error:
        print(f"{program}: {error.filename or 'a file'}: {error.strerror or error}", file=sys.stderr)
        raise SystemExit(2) from None
