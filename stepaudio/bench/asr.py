"""Speed as ratios within one run: this project, PyTorch on the CPU, and decoding without a cache.

All sides get the same weights, the same log mels and the same prompts, take turns, and must give the same tokens.
Gives no times: a shared machine makes them worthless, while ratios of interleaved runs hold.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path

import mlx.core as mx
import numpy as np

from ..audio.features import log_mel
from ..audio.load import load_audio
from ..audio.segment import cut_points, is_silent
from ..backend import device as backend
from ..backend.memory import memory_use
from ..checkpoints.layout import axes_of, to_published
from ..constants import SAMPLE_RATE
from ..decoding.generate import Request, collect, generate
from ..decoding.options import RunOptions
from ..decoding.sampling import Sampling
from ..engine import PromptTokens
from ..errors import ConfigError, DataError
from ..evaluation.manifest import read_manifest
from ..model import StepAudio2
from ..models.kv_cache import NoCache
from ..models.quantization import whole_parameters
from ..models.speech_lm import StepAudioConfig
from ..resources import speech_manifest
from ..text.prompts import ASR_SYSTEM
from ..transcribe import CPU_BATCH
from . import torch_baseline
from .rows import Row, Stage, quiet

STAGES = ("encoder", "prefill", "decode", "total")
MAX_TOKENS = 200  # per clip: a clip that loops must not outweigh the others
CACHE_TOKENS = 25  # of the comparison with decoding without a cache, which encodes anew for each
FEW = CPU_BATCH  # of the bundled clips, those of middle length, are measured where no manifest is named
THREADS = (1, 2)  # of PyTorch; the better counts
PAUSE = 0.3  # seconds in which the worker threads of the last turn stop spinning


@dataclass(frozen=True)
class Turn:
    """One pass over all clips: the tokens of each, and seconds (n, 3) in the three stages, n clips or n batches."""

    tokens: list[tuple[int, ...]]
    seconds: np.ndarray


class Comparison:
    """All sides over the same clips. `turns` holds, per side, one `Turn` per repeat.

    Parameters
    ----------
    model : the model under test, whose weights the baseline gets too. segments : samples at 16 kHz, <= 25 s each.
    prompt : as in `StepAudio2.transcribe`.
    """

    def __init__(self, model: StepAudio2, segments: Sequence[np.ndarray], prompt: str | PromptTokens = ASR_SYSTEM):
        self.model, self.prompt = model, prompt
        self.options = RunOptions(
            Sampling.greedy(), max_tokens=MAX_TOKENS, stop_ids=model.engine.stop_ids(), on_loop="off"
        )
        self.mels = [log_mel(p, model.config.audio_encoder_config.n_mels) for p in segments]
        self.requests = [self.requests_of([mel])[0] for mel in self.mels]
        self.baseline: torch_baseline.TorchProcess | None = None
        if torch_baseline.available():
            self.baseline = torch_baseline.TorchProcess(torch_weights(model), model.config.to_dict())
        self.turns: dict[str, list[Turn]] = {}

    def requests_of(self, mels: list[np.ndarray]) -> list[Request]:
        """Encode log mels together; one request to the decoder for each."""
        encoded = self.model.engine.encode_audio(mels)
        mx.eval(encoded)
        return [self.model.engine.transcription_request(e, self.prompt) for e in encoded]

    def ours(self, batch: int) -> Turn:
        """`batch` clips at a time. A stage ends when its result is on the host."""
        tokens, seconds = [], []
        for i in range(0, len(self.mels), batch):
            clock = [time.perf_counter()]
            requests = self.requests_of(self.mels[i : i + batch])
            clock.append(time.perf_counter())
            steps = generate(self.model.net, requests, self.options)
            first = next(steps)
            clock.append(time.perf_counter())
            runs = collect(chain([first], steps), len(requests))
            clock.append(time.perf_counter())
            tokens += [run.tokens for run in runs]
            seconds.append(np.diff(clock))
        return Turn(tokens, np.array(seconds))

    def theirs(self, baseline: torch_baseline.TorchProcess, threads: int) -> Turn:
        """PyTorch, one clip at a time."""
        stop, most = self.options.stop_ids, self.options.max_tokens
        answers = [
            baseline.transcribe(mel, r.tokens, r.spans[0][0], stop, most, threads)
            for mel, r in zip(self.mels, self.requests, strict=True)
        ]
        return Turn([tuple(tokens) for tokens, _ in answers], np.array([seconds for _, seconds in answers]))

    def measure(self, repeats: int, stage: Stage = quiet) -> None:
        """Let the sides take turns; the first round warms up and does not count."""
        sides = {"alone": partial(self.ours, 1), "batch": partial(self.ours, CPU_BATCH)}
        if self.baseline:
            sides |= {f"torch {n}": partial(self.theirs, self.baseline, n) for n in THREADS}
        self.turns = {name: [] for name in sides}
        for i in range(repeats + 1):
            for name, side in sides.items():
                stage(f"{name}: {f'repeat {i} of {repeats}' if i else 'warming up'}")
                time.sleep(PAUSE)
                self.turns[name].append(side())
        self.turns = {name: turns[1:] for name, turns in self.turns.items()}

    def differing(self) -> list[int]:
        """Clips for which some side or some repeat gave other tokens."""
        turns = [turn for side in self.turns.values() for turn in side]
        return [i for i in range(len(self.mels)) if len({turn.tokens[i] for turn in turns}) > 1]

    def close(self) -> None:
        """End the baseline's process."""
        if self.baseline:
            self.baseline.close()


def run(
    manifest: str | Path | None = None,
    model: str | Path | StepAudio2 | None = None,
    repeats: int = 2,
    prompt: str | PromptTokens = ASR_SYSTEM,
    stage: Stage = quiet,
    show: Callable[[Row], None] | None = None,
) -> int:
    """Compare and print. Returns 0, or 1 if any two ways of running gave different tokens.

    Parameters
    ----------
    manifest : table of recordings; by default `FEW` of the bundled ones. model : by default the bundled one.
    repeats : >= 1, after one that warms up. prompt : as in `StepAudio2.transcribe`.
    stage : is told what is measured next, and "" before anything is printed.
    show : gets each figure instead of the printed table.

    Raises
    ------
    ConfigError : repeats below 1.
    DataError : no clip holds sound; and what loading raises.
    """
    if repeats < 1:
        raise ConfigError(f"repeats: expected at least 1, found {repeats}")
    segments = read_segments(manifest or speech_manifest())
    model = model if isinstance(model, StepAudio2) else StepAudio2.load(model)
    stage("loading PyTorch where that is installed")
    if manifest is None:
        start = max(0, (len(segments) - FEW) // 2)
        segments = segments[start : start + FEW]
    comparison = Comparison(model, segments, prompt)

    def said(text: str) -> None:
        stage("")
        if show is None:
            print(text, flush=True)

    try:
        found = backend.info()
        said(
            f"MLX {found['versions']['mlx']}, {found['backend']}, {found['dtype']}, BLAS {found['blas']}\n"
            f"{len(segments)} clips, {sum(map(len, segments)) / SAMPLE_RATE:.0f} s of sound, greedy, at most "
            f"{MAX_TOKENS} tokens a "
            f"clip\nratios of time: least, median, most of {repeats} repeats\n"
        )
        comparison.measure(repeats, stage)
        said(table(comparison))
        rows, same = comparison_rows(comparison), True
        for name, ratios, equal in compare_caches(comparison, repeats, stage):
            said(line(name, ratios) + ("" if equal else "  and the tokens DIFFER"))
            rows.append(Row("caches", name, "ratio", "", tuple(ratios[:, 0])))
            same &= equal
        use = memory_use()
        held = {"in use": use.active, "kept for reuse": use.cached, "at most so far": use.peak}
        said("memory: " + ", ".join(f"{n / 1e9:.3f} GB {what}" for what, n in held.items()))
        rows += [Row("memory", what, "stepaudio", "GB", (n / 1e9,)) for what, n in held.items()]
        if show is not None:
            for row in rows:
                show(row)
    finally:
        stage("")
        comparison.close()
    return 0 if same and not comparison.differing() else 1


def read_segments(manifest: str | Path) -> list[np.ndarray]:
    """Samples of all clips in the segments of transcription, without silence, longest first."""
    segments = []
    for clip in read_manifest(manifest):
        x = load_audio(clip.file)
        segments += [x[start:stop] for start, stop in cut_points(x) if not is_silent(x[start:stop])]
    if not segments:
        raise DataError(f"{manifest}: nothing but silence, so there is nothing to time")
    return sorted(segments, key=len, reverse=True)


def torch_weights(model: StepAudio2) -> dict[str, np.ndarray]:
    """The loaded weights in float32 and PyTorch's axis order, by their published names."""
    held = whole_parameters(model.net).items()
    return {n: np.array(to_published(a, axes_of(StepAudioConfig, n)).astype(mx.float32)) for n, a in held}


# ---------------------------------------------------------------- the report


def with_total(seconds: np.ndarray) -> np.ndarray:
    """(…, 3) -> (…, 4): the sum beside the stages."""
    return np.concatenate([seconds, seconds.sum(axis=-1, keepdims=True)], axis=-1)


def manifest_ratios(ours: list[Turn], theirs: list[Turn]) -> np.ndarray:
    """(repeats, 4): time of the whole manifest over theirs, by stage."""
    pairs = zip(ours, theirs, strict=True)
    return np.array([with_total(a.seconds.sum(0)) / with_total(b.seconds.sum(0)) for a, b in pairs])


def clip_ratios(ours: list[Turn], theirs: list[Turn]) -> np.ndarray:
    """(repeats, 4): per stage, the median over the clips of each clip's ratio. Stages of no time are left out."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.array(
            [
                np.nanmedian(with_total(a.seconds) / with_total(b.seconds), axis=0)
                for a, b in zip(ours, theirs, strict=True)
            ]
        )


def line(name: str, ratios: np.ndarray) -> str:
    """One row of the table; ratios (repeats, stages)."""
    cells = [
        f"{low:6.2f} {mid:6.2f} {high:6.2f}"
        for low, mid, high in zip(ratios.min(0), np.median(ratios, axis=0), ratios.max(0), strict=True)
    ]
    return f"{name:34}" + "  ".join(cells)


def ratios_of(comparison: Comparison) -> dict[str, np.ndarray]:
    """(repeats, stages) by name: ours over PyTorch's where that is installed; batches over single clips in any case."""
    turns, found = comparison.turns, {}
    if comparison.baseline:
        theirs = turns[f"torch {best_threads(comparison)}"]
        found["one clip, ours / PyTorch"] = clip_ratios(turns["alone"], theirs)
        found[f"manifest in batches of {CPU_BATCH} / PyTorch"] = manifest_ratios(turns["batch"], theirs)
    found[f"batches of {CPU_BATCH} / one by one, both ours"] = manifest_ratios(turns["batch"], turns["alone"])
    return found


def best_threads(comparison: Comparison) -> int:
    """Of `THREADS`, those with which PyTorch was faster."""
    turns = comparison.turns
    return min(THREADS, key=lambda t: np.median([turn.seconds.sum() for turn in turns[f"torch {t}"]]))


def comparison_rows(comparison: Comparison) -> list[Row]:
    """The table's figures, and how many clips gave the same tokens everywhere."""
    rows = [
        Row(stage, name, "ratio", "", tuple(ratios[:, i]))
        for name, ratios in ratios_of(comparison).items()
        for i, stage in enumerate(STAGES)
    ]
    n = len(comparison.mels)
    return [*rows, Row("tokens", f"equal, of {n} clips", "all sides", "clips", (n - len(comparison.differing()),))]


def table(comparison: Comparison) -> str:
    """The ratios by stage, and whether all sides gave the same tokens."""
    n = len(comparison.mels)
    rows = [" " * 34 + "  ".join(f"{stage:^20}" for stage in STAGES)]
    rows += [line(name, ratios) for name, ratios in ratios_of(comparison).items()]
    if comparison.baseline:
        best = best_threads(comparison)
        rows.append(f"\n{torch_baseline.versions()}, clip after clip, on {best} threads, the better of {THREADS}")
    else:
        rows.append("\nno rows for PyTorch: torch and transformers are not installed")
    different = comparison.differing()
    rows.append(f"tokens equal on {n - len(different)} of {n} clips, over all sides and repeats")
    return "\n".join(rows)


def compare_caches(
    comparison: Comparison, repeats: int, stage: Stage = quiet
) -> Iterator[tuple[str, np.ndarray, bool]]:
    """How many times longer it takes without a cache: name, ratios (repeats, 1), whether the tokens are the same.

    First: from the mel on, as the published code runs, encoder and whole prefix again for each token. Second: the
    decoder alone.
    """
    middle = len(comparison.mels) // 2
    mel, request = comparison.mels[middle], comparison.requests[middle]
    options = replace(comparison.options, max_tokens=CACHE_TOKENS, stop_ids=frozenset())

    def cached(request: Request) -> tuple[int, ...]:
        return collect(generate(comparison.model.net, [request], options), 1)[0].tokens

    ways = {
        "no cache, encoder again": (
            lambda: cached(comparison.requests_of([mel])[0]),
            lambda: without_cache(comparison.model, lambda: comparison.requests_of([mel])[0], CACHE_TOKENS),
        ),
        "no cache, decoder only": (
            lambda: cached(request),
            lambda: without_cache(comparison.model, lambda: request, CACHE_TOKENS),
        ),
    }
    for name, (quick, slow) in ways.items():
        ratios, same = [], True
        for i in range(repeats):
            stage(f"{name}: repeat {i + 1} of {repeats}")
            time.sleep(PAUSE)
            clock, tokens = [time.perf_counter()], []
            for way in (quick, slow):
                tokens.append(way())
                clock.append(time.perf_counter())
            ratios.append(np.diff(clock)[1:] / np.diff(clock)[:1])
            same &= tokens[0] == tokens[1]
        yield f"{name} / cache, {CACHE_TOKENS} tokens", np.array(ratios), same


def without_cache(model: StepAudio2, make_request: Callable[[], Request], n_tokens: int) -> tuple[int, ...]:
    """Greedy tokens without a cache: the request and all tokens so far go through the decoder again for each token."""
    net, tokens = model.net, []
    for _ in range(n_tokens):
        x = make_request().embeddings[None]
        if tokens:
            x = mx.concatenate([x, net.model.embed(mx.array([tokens]))], axis=1)
        tokens.append(mx.argmax(net.next_logits(x, NoCache(net.model.rope)), axis=-1).item())
    return tuple(tokens)
