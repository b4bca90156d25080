"""Long runs of the bundled model with the memory watched: `python -m soak` from tests/, or `make soak`.

Each run is a process of its own and is written down when it has ended: what is stopped goes on with the next one.
Memory is the resident set of the process, which shows what no count of arrays does: graphs, buffers, Python.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import soundfile

import stepaudio
from stepaudio.audio.load import load_audio
from stepaudio.constants import SAMPLE_RATE
from stepaudio.decoding.generate import generate
from stepaudio.decoding.options import DecodingOptions
from stepaudio.decoding.sampling import Sampling
from stepaudio.models.kv_cache import CachePolicy

TESTS = Path(__file__).parent
SPEECH = TESTS.parent / "data" / "speech"
PROMPT = SPEECH / "word_emma.flac"  # a second: what encoding frees would hide what decoding takes
TOKENS, CLIPS, HOURS = 20_000, 500, 3.0
LIMIT = 1024  # positions of the caches that have a limit: nine tenths of a run are beyond it
MB = 1e6
FLAT = 4.0  # MB that the second half of a run may add to what the cache adds: the allocator's, not a token's
BEYOND_SAMPLES = 300.0  # MB that transcribing a long file may take beside its samples and the loaded model

CACHES = {
    "full": CachePolicy("full"),
    "window": CachePolicy("window", LIMIT),
    "sinks": CachePolicy("sinks", LIMIT),
    "sinks, re-indexed": CachePolicy("sinks", LIMIT, positions="reindexed"),
}
SAMPLINGS = {
    "greedy": Sampling.greedy(),
    "planned": Sampling(),
    "drawn, top-p 0.9": Sampling.reference("chat"),  # and top-k 50, and a penalty over the prompt too
}


def resident() -> float:
    """Megabytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MB


@contextmanager
def highest() -> Iterator[Callable[[], float]]:
    """Watch the resident set from beside; what is handed out tells its peak in megabytes."""
    peak, ended = [resident()], threading.Event()

    def watch() -> None:
        while not ended.wait(0.05):
            peak[0] = max(peak[0], resident())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield lambda: peak[0]
    finally:
        ended.set()
        watcher.join()


def decode(cache: CachePolicy, sampling: Sampling, n: int) -> dict:
    """One answer of n tokens: end marks do not end it, loops are looked for and left alone."""
    model = stepaudio.load()
    turn = {"role": "human", "content": [{"type": "audio", "audio": PROMPT}]}
    request = model.request([turn])
    options = DecodingOptions(sampling=sampling, cache=cache, max_tokens=n)
    marks, distinct = [], set()
    for step in generate(model.net, [request], replace(model.engine.run_options(options), stop_ids=frozenset())):
        distinct.add(step.token)
        if (step.index + 1) % (n // 20) == 0:
            marks.append((step.index + 1, resident(), step.kv_bytes / MB))
    return {"unit": "tokens", "marks": marks, "distinct": len(distinct)}


def transcriptions(n: int) -> dict:
    """Short clips one after the other, all controls as they come."""
    model = stepaudio.load()
    clips = [file for file in sorted(SPEECH.glob("*.flac")) if soundfile.info(file).duration < 8]
    marks, texts = [], {}
    for k in range(n):
        clip = clips[k % len(clips)]
        text = model.transcribe(clip).text
        assert texts.setdefault(clip, text) == text, clip
        if (k + 1) % max(1, n // 20) == 0:
            marks.append((k + 1, resident(), 0.0))
    return {"unit": "clips", "marks": marks}


def long_file(hours: float) -> dict:
    """A WAV of so many hours, made of the bundled recordings one after the other; the peak beside its samples."""
    clips = [load_audio(file) for file in sorted(SPEECH.glob("*.flac"))]
    n = int(hours * 3600 * SAMPLE_RATE)
    with TemporaryDirectory(prefix="soak_") as folder:
        path, left, k = Path(folder) / "long.wav", n, 0
        with soundfile.SoundFile(path, "w", SAMPLE_RATE, 1, "PCM_16") as file:
            while left:
                part = clips[k % len(clips)][:left]
                file.write(np.clip(part, -1, 1))
                left, k = left - len(part), k + 1
        del clips
        model = stepaudio.load()
        before = resident()
        with highest() as peak:
            transcript = model.transcribe(path, sampling="reference")
            most = peak()
    samples = 4 * n / MB
    return {
        "unit": "hours", "marks": [(hours, most, samples)], "before": before, "beyond_samples": most - before - samples,
        "segments": len(transcript.segments), "words": len(transcript.text.split()),
    }  # fmt: skip


RUNS: dict[str, Callable[[], dict]] = {
    **{
        f"{cache}, {sampling}": lambda c=CACHES[cache], s=SAMPLINGS[sampling]: decode(c, s, TOKENS)
        for cache in CACHES
        for sampling in SAMPLINGS
    },
    f"{CLIPS} transcriptions": lambda: transcriptions(CLIPS),
    f"a file of {HOURS:g} hours": lambda: long_file(HOURS),
}


def growth(found: dict) -> float:
    """Megabytes that the second half of the run added, beside what a growing cache did.

    It grows by copying, and what it leaves free behind is as large again: too small for its next buffers.
    """
    marks = found["marks"]
    (_, middle, cache), (_, end, cache_then) = marks[len(marks) // 2 - 1], marks[-1]
    return end - middle - 2 * (cache_then - cache)


def verdict(found: dict) -> str:
    """ "flat", or by how much it is not."""
    if "beyond_samples" in found:
        beyond = found["beyond_samples"]
        return f"{found['before']:.0f} before it, {beyond:.0f} more beside the samples" + (
            "" if beyond <= BEYOND_SAMPLES else ": too much"
        )
    more, marks = growth(found), found["marks"]
    well = "flat" if marks[-1][2] == marks[len(marks) // 2][2] else "grows with its cache"
    return well if more <= FLAT else f"grew by {more:.0f}: too much"


def table(results: dict[str, dict]) -> str:
    """A row for each run, as Markdown: resident megabytes a tenth, half and all of the way through."""
    lines = ["| run | a tenth | half | end | of it cache or samples | |", "|---|--:|--:|--:|--:|---|"]
    for name, found in results.items():
        marks = found["marks"]
        at = [marks[max(0, round(share * len(marks)) - 1)][1] for share in (0.1, 0.5, 1)]
        shown = [f"{x:.0f}" for x in at] if len(marks) > 1 else ["", "", f"{at[-1]:.0f}"]
        lines.append(f"| {name} | {' | '.join(shown)} | {marks[-1][2]:.0f} | {verdict(found)} |")
    return "\n".join(lines)


def main() -> int:
    """Do the runs that are not written down yet, print the table; 1 if one was not flat."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--state", type=Path, default=TESTS.parent / "build" / "soak.jsonl", help="what is done")
    parser.add_argument("--run", choices=RUNS, help="only this one, here and now; its figures as JSON")
    options = parser.parse_args()
    if options.run:
        print(json.dumps(RUNS[options.run]()))
        return 0
    options.state.parent.mkdir(parents=True, exist_ok=True)
    lines = options.state.read_text(encoding="utf-8").splitlines() if options.state.exists() else []
    results = {found["run"]: found for found in map(json.loads, lines)}
    for name in RUNS:
        if name in results:
            continue
        began = time.perf_counter()
        words = [sys.executable, "-m", "soak", "--run", name]
        done = subprocess.run(words, check=True, cwd=TESTS, stdout=subprocess.PIPE, text=True)
        results[name] = {"run": name, "seconds": time.perf_counter() - began} | json.loads(done.stdout)
        with options.state.open("a", encoding="utf-8") as state:
            print(json.dumps(results[name]), file=state)
        print(f"{name}: {verdict(results[name])}, {results[name]['seconds']:.0f} s", file=sys.stderr, flush=True)
    results = {name: results[name] for name in RUNS}
    print(table(results))
    return int(any("too much" in verdict(found) for found in results.values()))


if __name__ == "__main__":
    sys.exit(main())
