"""`stepaudio demo`: the bundled model transcribes the bundled recordings, and the errors are counted."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from .parser import add_verb
from .progress import busy

if TYPE_CHECKING:
    from ..evaluation.scores import Evaluation, Score

PRESETS = ("reference", "planned")  # the first is shown clip by clip
CAVEAT = """planned forbids repeats among the last 8 tokens (frequency penalty 1.2, no 3-gram twice):
that costs words where speech repeats."""


def add_demo_verb(verbs) -> None:
    """Add the verb to the subparsers of the command."""
    add_verb(
        verbs, "demo", run, "transcribe the bundled recordings with the bundled model", "",
        ["stepaudio demo", "STEPAUDIO_CHECKPOINT=Step-Audio-2-mini stepaudio demo"],
        {0: "every recording was transcribed", 1: "a recording could not be used"},
    )  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Print texts, times and word error rates. Returns 1 if a recording could not be read."""
    from .. import __version__
    from ..backend.device import info
    from ..checkpoints.find import checkpoint_folder
    from ..evaluation.scores import evaluate
    from ..model import StepAudio2
    from ..resources import speech_manifest

    began = time.perf_counter()
    with busy("loading the model"):
        model = StepAudio2.load()
    machine = info()
    print(
        f"stepaudio {__version__}, model {checkpoint_folder().name}, {machine['dtype']} on {machine['backend']} (BLAS "
        f"{Path(machine['blas']).name}), loaded in {time.perf_counter() - began:.1f} s\n"
    )
    found = {}
    for name in PRESETS:
        with busy(f"transcribing with --sampling {name}"):
            found[name] = evaluate(model, speech_manifest(), progress=False, sampling=name)
        if name == PRESETS[0]:
            print(clip_table(found[name]), flush=True)
    print(f"\n{totals_table(found)}\n\n{CAVEAT}")
    return 1 if any(scores.totals()["failed"] for scores in found.values()) else 0


def clip_table(scores: Evaluation) -> str:
    """One row per clip, below it what the model wrote, and what was said where that is something else."""
    width = max([len("recording"), *(len(s.name) for s in scores)])
    lines = [f"{'recording':{width}}   audio     took  words wrong"]
    for score in scores:
        lines += _clip_lines(score, width)
    return "\n".join(lines)


def _clip_lines(score: Score, width: int) -> list[str]:
    name, made = f"{score.name:{width}}", score.transcript
    if made is None:
        return [f"{name}  failed: {score.error}"]
    wrong = f"{score.errors} of {score.words}"
    row = f"{name}  {made.audio_seconds:4.1f} s  {made.wall_seconds:5.2f} s  {wrong:>11}"
    said = [f"  said   {score.clip.text or '(nothing)'}"] if score.errors else []
    return [row, *said, f"  wrote  {made.text or '(nothing)'}"]


def totals_table(found: dict[str, Evaluation]) -> str:
    """One row per preset: word error rate, real-time factor, loops."""
    lines = ["--sampling  word error rate  real-time factor  clips with a loop"]
    for name, scores in found.items():
        t = scores.totals()
        wer, rtf = (("-" if v is None else format(v, form)) for v, form in ((t["wer"], ".1%"), (t["rtf"], ".3f")))
        loops = f"{t['loops']} of {t['clips']}"
        lines.append(f"{name:10}  {wer:>15}  {rtf:>16}  {loops:>17}")
    return "\n".join(lines)
