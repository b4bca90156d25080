"""Speed and memory of token2wav: seconds of work per second of sound, whole against streamed.

Without a model it runs the published sizes with random weights: time and memory do not depend on their values. Whole
and streamed take turns, so their ratio holds on a shared machine; the other numbers depend on its load.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np

from ..backend import device as backend
from ..checkpoints.layout import TOKEN2WAV
from ..checkpoints.random_weights import random_token2wav
from ..errors import ConfigError
from ..models.parameters import named_arrays
from ..resources import voice_clip
from ..synthesis.streaming import StreamOptions
from ..synthesis.synthesizer import AS_REFERENCE, Synthesizer
from ..synthesis.voice import Voice

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


def run(model: str | Path | None = None, repeats: int = 3, size: str = "published", n_codes: int = N_CODES) -> int:
    """Measure and print. Returns 0.

    Parameters
    ----------
    model : folder with a converted token2wav; None for random weights of `size`.
    repeats : >= 1, after one that warms up. size : "published" or "small". n_codes : >= 29, two chunks.

    Raises
    ------
    ConfigError : too few repeats or codes, and what loading raises.
    """
    if repeats < 1 or n_codes < 29:
        raise ConfigError(f"expected at least 1 repeat and 29 codes, found {repeats} and {n_codes}")
    synthesizer = Synthesizer(random_token2wav(size)) if model is None else Synthesizer.load(model)
    clip = voice_clip()
    began = time.perf_counter()
    trial = Trial(synthesizer, synthesizer.voice(clip), n_codes)
    reading = time.perf_counter() - began
    whole, streamed = [], []
    for _ in range(repeats + 1):  # the first round warms up and does not count
        whole.append(measured(trial.whole))
        streamed.append(measured(trial.streamed))
    weights = f"the {size} sizes with random weights" if model is None else str(model)
    print(report(weights, trial, reading, whole[1:], streamed[1:]))
    return 0


def report(weights: str, trial: Trial, reading: float, whole: list[Cost], streamed: list[Cost]) -> str:
    """The table; `whole` and `streamed` in pairs."""
    found, prompt = backend.info(), len(trial.voice.codes) / 25
    parts = trial.synthesizer.parts
    held = [sum(a.nbytes for _, a in named_arrays(getattr(parts, c).parameters())) for c in TOKEN2WAV]
    rows = [
        f"MLX {found['versions']['mlx']}, {found['backend']}, BLAS {found['blas']}; {weights}",
        f"{whole[0].sound:.1f} s of sound in a voice of {prompt:.1f} s, {trial.options.flow.n_steps} Euler steps, "
        f"chunks of {trial.options.chunk_codes} codes; least, median, most of {len(whole)} repeats",
        "",
    ]

    def row(name: str, values) -> None:
        values = np.array(list(values))
        rows.append(f"{name:58}{values.min():8.2f} {np.median(values):8.2f} {values.max():8.2f}")

    row("whole: seconds for a second of sound", (c.wall / c.sound for c in whole))
    row("  of these, flow", (c.parts[0] / c.sound for c in whole))
    row("  of these, vocoder", (c.parts[1] / c.sound for c in whole))
    row("streamed: seconds for a second of sound, voice read before", (sum(c.parts[1:]) / c.sound for c in streamed))
    row("streamed / whole", ((b.wall - b.parts[0]) / a.wall for a, b in zip(whole, streamed, strict=True)))
    row("reading the voice into a stream, once (s)", (c.parts[0] for c in streamed))
    row("first chunk: seconds from its codes to its sound", (c.parts[1] for c in streamed))
    row("slowest chunk (s)", (max(c.parts[1:]) for c in streamed))
    row("processor seconds of all cores for a second, whole", (c.processor / c.sound for c in whole))
    row("processor seconds of all cores, streamed, voice read too", (c.processor / c.sound for c in streamed))
    row("  streamed / whole, of these", (b.processor / a.processor for a, b in zip(whole, streamed, strict=True)))
    row("peak memory, whole (MiB, weights included)", (c.peak / MIB for c in whole))
    row("peak memory, streamed (MiB, weights included)", (c.peak / MIB for c in streamed))
    rows += [
        f"weights: {sum(held) / MIB:.0f} MiB ("
        + ", ".join(f"{c} {n / MIB:.0f}" for c, n in zip(TOKEN2WAV, held, strict=True))
        + ")",
        f"making the voice from its clip took {reading / prompt:.2f} s for a second, once and cold",
        "no row for PyTorch: the reference implementation of these nets is in no installable package",
    ]
    return "\n".join(rows)
