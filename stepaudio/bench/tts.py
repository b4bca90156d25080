"""Speed and memory of token2wav: seconds of work per second of sound, whole against streamed.

Without a model it runs the published sizes with random weights: time and memory do not depend on their values. Whole
and streamed take turns, and so do the reference's own nets where `step-audio2` is installed, so their ratios hold on a
shared machine; the other numbers depend on its load.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

import mlx.core as mx
import numpy as np

from ..backend import device as backend
from ..checkpoints.layout import TOKEN2WAV, axes_of, to_published
from ..checkpoints.random_weights import random_token2wav
from ..checkpoints.weight_norm import PAIRED, weight_norm_pair
from ..errors import ConfigError
from ..models.parameters import named_arrays
from ..models.token2wav.campplus import SpeakerEncoder
from ..models.token2wav.flow import Flow
from ..models.token2wav.hift import Hift, HiftConfig
from ..models.token2wav.noise import noise_frames
from ..models.token2wav.speech_tokenizer import S3Tokenizer
from ..resources import voice_clip
from ..synthesis.streaming import StreamOptions, chunked
from ..synthesis.synthesizer import AS_REFERENCE, Synthesizer
from ..synthesis.voice import Voice
from .rows import Row, Stage, quiet
from .step_audio2_baseline import INSTALL, ReferenceProcess, missing

N_CODES = 125  # five seconds; the estimator's cache is full from the third chunk on
MIB = 1 << 20


@dataclass(frozen=True)
class Cost:
    """What one run took.

    wall, processor : seconds; the second is of all cores, and without any GPU.
    peak : bytes that MLX held at most, weights included.
    parts : wall seconds of the run's parts, in order. sound : seconds of sound made.
    """

    wall: float
    processor: float
    peak: int
    parts: tuple[float, ...]
    sound: float


def measured(work: Callable[[], tuple[list[float], float]]) -> Cost:
    """Run `work`, which returns the clock at the end of each part, and the seconds of sound made."""
    mx.reset_peak_memory()
    wall, processor = time.perf_counter(), time.process_time()
    ends, sound = work()
    return Cost(
        ends[-1] - wall,
        time.process_time() - processor,
        mx.get_peak_memory(),
        tuple(np.diff([wall, *ends]).tolist()),
        sound,
    )


class Trial:
    """One voice, one sequence of random codes, and the two ways to synthesise them: whole and streamed."""

    def __init__(self, synthesizer: Synthesizer, voice: Voice, n_codes: int, options: StreamOptions = AS_REFERENCE):
        self.synthesizer, self.voice, self.options = synthesizer, voice, options
        known = synthesizer.parts.flow.config.vocab_size
        self.codes = np.random.default_rng(0).integers(0, known, n_codes)

    def whole(self) -> tuple[list[float], float]:
        """Parts: flow, vocoder."""
        flow, hift = self.synthesizer.parts.flow, self.synthesizer.parts.hift
        mel = flow(self.codes[None], self.voice.prompt, 0, self.options.flow)
        mx.eval(mel)
        ends = [time.perf_counter()]
        wave, _ = hift(mel, 0)
        mx.eval(wave)
        return [*ends, time.perf_counter()], wave.shape[1] / self.synthesizer.sample_rate

    def streamed(self) -> tuple[list[float], float]:
        """Parts: reading the voice, then each chunk."""
        state = self.synthesizer.begin(self.voice, options=self.options)
        mx.eval(state.flow.conformer.arrays, [a for step in state.flow.estimator for b in step for a in b.arrays])
        ends, n = [time.perf_counter()], 0
        for chunk in self.synthesizer.stream(self.codes.tolist(), state):
            ends.append(time.perf_counter())
            n += len(chunk.wave)
        return ends, n / self.synthesizer.sample_rate


def run(
    model: str | Path | None = None,
    repeats: int = 3,
    size: str = "published",
    n_codes: int = N_CODES,
    stage: Stage = quiet,
    show: Callable[[Row], None] | None = None,
) -> int:
    """Measure and print. Returns 0.

    Parameters
    ----------
    model : folder with a converted token2wav; None for random weights of `size`.
    repeats : >= 1, after one that warms up. size : "published" or "small". n_codes : >= 29, two chunks.
    stage, show : as in `asr.run`.

    Raises
    ------
    ConfigError : too few repeats or codes, and what loading raises.
    """
    if repeats < 1 or n_codes < 29:
        raise ConfigError(f"expected at least 1 repeat and 29 codes, found {repeats} and {n_codes}")
    synthesizer = Synthesizer(random_token2wav(size)) if model is None else Synthesizer.load(model)
    stage("reading the voice")
    clip = voice_clip()
    began = time.perf_counter()
    trial = Trial(synthesizer, synthesizer.voice(clip), n_codes)
    reading = time.perf_counter() - began
    theirs = Theirs.of(trial)
    try:
        whole, streamed = turns(trial, theirs, repeats, stage)
    finally:
        stage("")
        if theirs is not None:
            theirs.process.close()
    weights = f"the {size} sizes with random weights" if model is None else str(model)
    if show is None:
        print(report(weights, trial, reading, whole[1:], streamed[1:]))
        print("\n".join(beside(trial, whole, streamed, theirs)))
        return 0
    for name, values in figures_of(whole[1:], streamed[1:]).items():
        unit = "MiB" if "MiB" in name else "ratio" if "streamed / whole" in name else "s"
        show(Row("token2wav", name.strip(), "stepaudio", unit, tuple(values)))
    for name, values in ({} if theirs is None else ratios_to(whole, streamed, theirs)).items():
        show(Row("token2wav", name.strip(), "ours / step-audio2", "ratio", tuple(values)))
    return 0


def turns(trial: Trial, theirs: Theirs | None, repeats: int, stage: Stage = quiet) -> tuple[list[Cost], list[Cost]]:
    """Whole, streamed and the reference's nets one after another; the first turn of each warms up."""
    whole, streamed = [], []
    for i in range(repeats + 1):
        turn = f"repeat {i} of {repeats}" if i else "warming up"
        stage(f"whole: {turn}")
        whole.append(measured(trial.whole))
        stage(f"streamed: {turn}")
        streamed.append(measured(trial.streamed))
        if theirs is not None:
            stage(f"step-audio2 on PyTorch: {turn}")
            theirs.turn(trial)
    return whole, streamed


@dataclass(frozen=True)
class Theirs:
    """The reference's nets on the same weights, voice, codes and noise, and what each of their turns gave."""

    process: ReferenceProcess
    whole: list[dict] = field(default_factory=list)
    streamed: list[dict] = field(default_factory=list)

    @classmethod
    def of(cls, trial: Trial) -> Self | None:
        """Started, or None where something is not installed."""
        if missing():
            return None
        parts = trial.synthesizer.parts
        tensors = {"flow": published_tensors(parts.flow), "hift": published_tensors(parts.hift)}
        frames = trial.synthesizer.parts.flow.up * (len(trial.voice.codes) + len(trial.codes)) + 200
        noise = np.array(noise_frames(0, 0, frames, parts.flow.config.output_size))
        noise = noise * parts.flow.config.decoder.temperature  # theirs is 1
        sizes = asdict(parts.flow.config), asdict(parts.hift.config)
        return cls(ReferenceProcess(tensors, *sizes, noise, backend.float32_products() != "whole"))

    def turn(self, trial: Trial) -> None:
        """Once whole, once streamed."""
        prompt = trial.voice.prompt
        voice = np.array(prompt.codes, np.int32), np.array(prompt.mel), np.array(prompt.speaker)
        self.whole.append(self.process.whole(voice, trial.codes[None].astype(np.int32)))
        look_ahead = trial.synthesizer.parts.flow.look_ahead
        chunks = list(chunked(trial.codes.tolist(), trial.options.chunk_codes, look_ahead))
        self.streamed.append(self.process.streamed(voice, chunks))

    def difference(self, trial: Trial) -> float:
        """Norm of the difference of our mel and theirs, by the norm of theirs."""
        ours = trial.synthesizer.parts.flow(trial.codes[None], trial.voice.prompt, 0, trial.options.flow)
        mel = self.whole[0]["mel"].astype(np.float64)
        return float(np.linalg.norm(np.array(ours.astype(mx.float32)) - mel) / np.linalg.norm(mel))


def published_tensors(net: Flow | Hift | S3Tokenizer | SpeakerEncoder) -> dict[str, np.ndarray]:
    """Every parameter in float32, by its published name and in PyTorch's axes; kernels of weight norm as pairs."""
    found, kind = {}, type(net.config)
    for name, array in named_arrays(net.parameters()):
        value = np.array(mx.contiguous(to_published(array, axes_of(kind, name))).astype(mx.float32))
        if kind is HiftConfig and PAIRED.fullmatch(name):
            magnitude, direction = weight_norm_pair(name, value.shape)
            length = np.sqrt((value.astype(np.float64) ** 2).sum(axis=tuple(range(1, value.ndim)), keepdims=True))
            found |= {magnitude: length.astype(np.float32), direction: value}
        else:
            found[name] = value
    return found


def beside(trial: Trial, whole: list[Cost], streamed: list[Cost], theirs: Theirs | None) -> list[str]:
    """Lines that hold ours against theirs; the first turn of each warmed up."""
    if theirs is None:
        return [f"no rows for PyTorch: {', '.join(missing())} not installed ({INSTALL})"]
    title = f"ours / step-audio2 on PyTorch ({theirs.process.device}), same weights, voice, codes and noise"
    moved = f"mels differ by {theirs.difference(trial):.1e} of their norm"
    rows = [line(name, values) for name, values in ratios_to(whole, streamed, theirs).items()]
    return ["", title, *rows, moved]


def ratios_to(whole: list[Cost], streamed: list[Cost], theirs: Theirs) -> dict[str, list[float]]:
    """Ours over theirs by name, without the turns that warmed up."""
    pairs = list(zip(whole, theirs.whole, strict=True))[1:]
    chunks = list(zip(streamed, theirs.streamed, strict=True))[1:]
    ratios = {
        "time, whole": [a.wall / (b["flow"] + b["vocoder"]) for a, b in pairs],
        "  of these, flow": [a.parts[0] / b["flow"] for a, b in pairs],
        "  of these, vocoder": [a.parts[1] / b["vocoder"] for a, b in pairs],
        "time, streamed, voice read before": [sum(a.parts[1:]) / sum(b["chunks"]) for a, b in chunks],
        "reading the voice into a stream": [a.parts[0] / b["voice"] for a, b in chunks],
    }
    if pairs[0][1]["peak"]:
        ratios["peak memory, whole"] = [a.peak / b["peak"] for a, b in pairs]
        ratios["peak memory, streamed"] = [a.peak / b["peak"] for a, b in chunks]
    return ratios


def line(name: str, values: list[float]) -> str:
    """Least, median and most, aligned."""
    return f"{name:58}{min(values):8.2f} {np.median(values):8.2f} {max(values):8.2f}"


def figures_of(whole: list[Cost], streamed: list[Cost]) -> dict[str, list[float]]:
    """What the two ways cost, by name and repeat; `whole` and `streamed` in pairs."""
    pairs = list(zip(whole, streamed, strict=True))
    return {
        "whole: seconds for a second of sound": [c.wall / c.sound for c in whole],
        "  of these, flow": [c.parts[0] / c.sound for c in whole],
        "  of these, vocoder": [c.parts[1] / c.sound for c in whole],
        "streamed: seconds for a second of sound, voice read before": [sum(c.parts[1:]) / c.sound for c in streamed],
        "streamed / whole": [(b.wall - b.parts[0]) / a.wall for a, b in pairs],
        "reading the voice into a stream, once (s)": [c.parts[0] for c in streamed],
        "first chunk: seconds from its codes to its sound": [c.parts[1] for c in streamed],
        "slowest chunk (s)": [max(c.parts[1:]) for c in streamed],
        "processor seconds of all cores for a second, whole": [c.processor / c.sound for c in whole],
        "processor seconds of all cores, streamed, voice read too": [c.processor / c.sound for c in streamed],
        "  streamed / whole, of these": [b.processor / a.processor for a, b in pairs],
        "peak memory, whole (MiB, weights included)": [c.peak / MIB for c in whole],
        "peak memory, streamed (MiB, weights included)": [c.peak / MIB for c in streamed],
    }


def report(weights: str, trial: Trial, reading: float, whole: list[Cost], streamed: list[Cost]) -> str:
    """The table; `whole` and `streamed` in pairs."""
    found, prompt = backend.info(), len(trial.voice.codes) / 25
    parts = trial.synthesizer.parts
    n_steps = parts.flow.n_steps(trial.options.flow)
    held = [sum(a.nbytes for _, a in named_arrays(getattr(parts, c).parameters())) for c in TOKEN2WAV]
    rows = [
        f"MLX {found['versions']['mlx']}, {found['backend']}, BLAS {found['blas']}; {weights}",
        f"{whole[0].sound:.1f} s of sound in a voice of {prompt:.1f} s, {n_steps} Euler steps, "
        f"chunks of {trial.options.chunk_codes} codes; least, median, most of {len(whole)} repeats",
        "",
    ]
    rows += [line(name, values) for name, values in figures_of(whole, streamed).items()]
    rows += [
        f"weights: {sum(held) / MIB:.0f} MiB ("
        + ", ".join(f"{c} {n / MIB:.0f}" for c, n in zip(TOKEN2WAV, held, strict=True))
        + ")",
        f"making the voice from its clip took {reading / prompt:.2f} s for a second, once and cold",
    ]
    return "\n".join(rows)
