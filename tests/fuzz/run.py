"""Many hurt files through workers with limits: `python -m fuzz.run 100000` from tests/, or `make fuzz N=100000`.

Seeds are worked off in ranges, each written down when it is done: a run that is stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory

import stepaudio  # noqa: F401  before anything imports mlx, under which it puts a fast BLAS

from .readers import READERS

TESTS = Path(__file__).parents[1]
PROCESSOR_SECONDS, WALL_SECONDS = 4.0, 120.0  # after which a case is taken for a hang and its worker is killed
RANGE = 500
KINDS = ("result", "refusal", "foreign", "long message", "hang", "memory", "crash", "wrong")
GOOD = KINDS[:2]


class Worker:
    """A process that answers one case after another; one that hangs or dies is replaced."""

    def __init__(self):
        self._process: subprocess.Popen | None = None
        self._folder = TemporaryDirectory(prefix="fuzz_")  # what a killed worker leaves lies in it

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_) -> None:
        self._end()
        self._folder.cleanup()

    def ask(self, case: dict) -> dict:
        """What came of {"reader", "seed"} or {"reader", "content"}."""
        if self._process is None:
            self._start()
        assert self._process is not None and self._process.stdin is not None
        began = self._used()
        self._process.stdin.write(json.dumps(case) + "\n")
        self._process.stdin.flush()
        line = self._line(began + PROCESSOR_SECONDS, WALL_SECONDS)
        if line is None:
            self._end()
            return {"kind": "hang", "said": f"more than {PROCESSOR_SECONDS} s; killed"}
        if not line:
            status = self._end()
            return {"kind": "crash", "said": f"the process ended with status {status}"}
        return json.loads(line)

    def _start(self) -> None:
        modules = os.pathsep.join([str(TESTS.parent), str(TESTS)])
        environment = os.environ | {"PYTHONPATH": modules, "OMP_NUM_THREADS": "1", "TMPDIR": self._folder.name}
        command = [sys.executable, "-m", "fuzz.worker"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=TESTS
        )
        if self._line(float("inf"), 600) != "ready\n":
            raise RuntimeError(f"the worker did not start; try: cd {TESTS}; python -m fuzz.worker")

    def _line(self, processor: float, wall: float) -> str | None:
        """The next answer, "" if the process ended, None if it took too long."""
        assert self._process is not None and self._process.stdout is not None
        while wall > 0:
            if select.select([self._process.stdout], [], [], 0.5)[0]:
                return self._process.stdout.readline()
            wall -= 0.5
            if self._used() > processor:
                return None
        return None

    def _used(self) -> float:
        """Seconds of processor time, where the system tells."""
        assert self._process is not None
        try:
            fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        except OSError:
            return 0.0

    def _end(self) -> int | None:
        if self._process is None:
            return None
        self._process.kill()
        status = self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        self._process = None
        return status


def case_of(seed: int, readers: list[str]) -> dict:
    """Readers take turns over the seeds."""
    return {"reader": readers[seed % len(readers)], "seed": seed}


def run(seeds: Iterable[int], readers: list[str], worker: Worker) -> Iterator[tuple[dict, dict]]:
    """(Case, what came of it) of each seed."""
    for seed in seeds:
        case = case_of(seed, readers)
        yield case, worker.ask(case)


def table(counts: dict[str, Counter]) -> str:
    """A row for each reader, the sum below, as Markdown."""
    total = sum(counts.values(), Counter())
    lines = [f"| reader | cases | {' | '.join(KINDS)} |", "|---|" + "--:|" * (len(KINDS) + 1)]
    for name, found in [*counts.items(), ("all", total)]:
        lines.append(f"| {name} | {found.total()} | {' | '.join(str(found[k]) for k in KINDS)} |")
    return "\n".join(lines)


def main() -> int:
    """Work off the seeds, tell failures as they come, print the table; 1 if a case broke the rule."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", type=int)
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) // 2))
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--state", type=Path, default=TESTS.parent / "build" / "fuzz.jsonl", help="what is done")
    parser.add_argument("--reader", choices=READERS, action="append", help="only this one; may be repeated")
    options = parser.parse_args()
    readers, done, counts = options.reader or list(READERS), set(), defaultdict(Counter)
    options.state.parent.mkdir(parents=True, exist_ok=True)
    for line in options.state.read_text(encoding="utf-8").splitlines() if options.state.exists() else ():
        part = json.loads(line)
        if part["readers"] == readers:
            done.add(part["first"])
            for name, found in part["counts"].items():
                counts[name].update(found)
    firsts = [f for f in range(options.first, options.first + options.cases, RANGE) if f not in done]
    results: SimpleQueue = SimpleQueue()

    def work(mine: list[int]) -> None:
        with Worker() as worker:
            for first in mine:
                part = defaultdict(Counter)
                last = min(first + RANGE, options.first + options.cases)
                for case, found in run(range(first, last), readers, worker):
                    part[case["reader"]][found["kind"]] += 1
                    if found["kind"] not in GOOD:
                        results.put(f"{case['reader']}, seed {case['seed']}: {found['kind']}: {found['said']}")
                results.put((first, part))

    with ThreadPoolExecutor(options.workers) as pool, options.state.open("a", encoding="utf-8") as state:
        jobs = [pool.submit(work, firsts[k :: options.workers]) for k in range(options.workers)]
        left = len(firsts)
        while left and not any(job.done() and job.exception() for job in jobs):
            found = results.get()
            if isinstance(found, str):
                print(found, flush=True)
                continue
            first, part = found
            for name, more in part.items():
                counts[name].update(more)
            print(json.dumps({"first": first, "readers": readers, "counts": part}), file=state, flush=True)
            left -= 1
            print(f"{len(firsts) - left} of {len(firsts)} ranges", file=sys.stderr, flush=True)
        for job in jobs:
            job.result()
    print(table({name: counts[name] for name in readers}))
    return int(any(counts[name][kind] for name in readers for kind in KINDS if kind not in GOOD))


if __name__ == "__main__":
    sys.exit(main())
