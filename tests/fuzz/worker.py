"""A process that reads hurt files, one for each line of its input, and says what came of each. Made to be killed."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
import time
import warnings
from pathlib import Path

from stepaudio.errors import StepAudioError

from .mutate import mutated
from .readers import READERS, prepared

SECONDS, MEGABYTES, CHARACTERS = 2.0, 200, 1000
HEADROOM = 2 << 30  # bytes of addresses beyond those at the start; the growth that counts is that of resident memory


def outcome(name: str, content: bytes) -> dict:
    """What a reader makes of the content: the kind, what was said, seconds of processor time, megabytes."""
    reader, (path, whole) = READERS[name], prepared(name)
    path.write_bytes(content)
    before, began = _memory("VmRSS"), time.process_time()
    try:
        found, kind, said = reader.read(path), "result", ""
    except StepAudioError as error:
        kind, said = "refusal", str(error)
        if "\n" in said or len(said) > CHARACTERS:
            kind, said = "long message", f"{len(said)} characters: {said[:200]!r}"
    except BaseException as error:  # a panic of a library is no Exception
        kind, said = "foreign", f"{type(error).__module__}.{type(error).__name__}: {str(error)[:200]}"
    seconds, megabytes = time.process_time() - began, max(0, _memory("VmHWM") - before) // 1024
    if kind == "result":
        try:
            wrong = reader.check(whole, content, found)
        except (ValueError, KeyError, RecursionError, UnicodeDecodeError) as error:  # the other reader refuses it
            wrong = f"accepted, where the witness says {type(error).__name__}: {error!s:.100}"
        kind, said = ("wrong", wrong) if wrong else (kind, said)
    if seconds > SECONDS:
        kind, said = "hang", f"{seconds:.1f} s; {kind}: {said[:100]}"
    elif megabytes > MEGABYTES:
        kind, said = "memory", f"{megabytes} MB; {kind}: {said[:100]}"
    return {"kind": kind, "said": said, "seconds": round(seconds, 3), "megabytes": megabytes}


def _memory(name: str) -> int:
    """Kilobytes of this process, where the system tells; "VmRSS" starts the search for the peak "VmHWM" anew."""
    try:
        if name == "VmRSS":
            Path("/proc/self/clear_refs").write_text("5")
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
    except OSError:
        return 0


def main() -> None:
    """Answer each line {"reader", "seed"} or {"reader", "content"} (latin-1) with one line."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    warnings.simplefilter("ignore")
    for name in READERS:
        outcome(name, prepared(name)[1])  # what is imported or built once is no case's doing
    with contextlib.suppress(OSError, ValueError):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * os.sysconf("SC_PAGE_SIZE") + HEADROOM
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        case = json.loads(line)
        reader = READERS[case["reader"]]
        if "content" in case:
            content = case["content"].encode("latin-1")
        else:
            content = mutated(prepared(case["reader"])[1], reader.form, case["seed"])
        print(json.dumps(outcome(case["reader"], content)), file=answers, flush=True)


if __name__ == "__main__":
    main()
