"""`stepaudio demo`: the bundled model transcribes the bundled recordings, then reads a sentence aloud and hears it."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ..audio.save import check_target
from ..targets import Target, check_targets
from .parser import add_force, add_option, add_verb
from .progress import busy
from .sound import is_ours

if TYPE_CHECKING:
    from ..evaluation.scores import Evaluation, Score
    from ..model import StepAudio2

PRESETS = ("reference", "planned")  # the first is shown clip by clip
CAVEAT = """planned forbids repeats among the last 8 tokens (frequency penalty 1.2, no 3-gram twice):
that can cost words where speech repeats."""


SENTENCE = "The window was open and the birds were singing."
LONGEST = 400  # tokens of the sentence read aloud: an answer that does not end by itself stops here


def add_demo_verb(verbs) -> None:
    """Add the verb to the subparsers of the command."""
    demo = add_verb(
        verbs, "demo", run, "transcribe the bundled recordings, and read a sentence aloud", "",
        ["stepaudio demo", "STEPAUDIO_CHECKPOINT=Step-Audio-2-mini stepaudio demo -o sentence.flac"],
        {0: "every recording was transcribed", 1: "a recording could not be used"},
    )  # fmt: skip
    add_option(demo, "-o", "--output", metavar="FILE", default="demo.wav", help="where the sentence's sound goes")
    add_force(demo)


def run(options: argparse.Namespace) -> int:
    """Print texts, times and error rates, and read a sentence aloud; 1 if a recording could not be read."""
    from .. import __version__
    from ..backend.device import info
    from ..checkpoints.find import checkpoint_folder
    from ..evaluation.scores import evaluate
    from ..model import StepAudio2
    from ..resources import speech_manifest

    why_silent = _why_silent()
    if not why_silent:
        check_target(options.output)
        target = Target("--output", Path(options.output), "sound as this command writes it", is_ours)
        check_targets([target], [checkpoint_folder()], options.force)  # before the model is read
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
    print(f"\n{totals_table(found)}\n\n{CAVEAT}\n", flush=True)
    print(f"no sentence is read aloud: {why_silent}" if why_silent else read_aloud(model, options.output))
    return 1 if any(scores.totals()["failed"] for scores in found.values()) else 0


def _why_silent() -> str | None:
    """Why the model cannot read aloud, as far as its folder tells; None if it can."""
    from ..checkpoints.capabilities import Capabilities
    from ..checkpoints.convert.manifest import converted_folder
    from ..checkpoints.find import checkpoint_folder

    folder = checkpoint_folder()
    if not Capabilities.of_folder(folder).allow("speak"):
        return "the model was not trained to speak"
    return None if converted_folder(folder) else "no converted token2wav lies beside the model"


def read_aloud(model: StepAudio2, target: str) -> str:
    """Have the model read a sentence into a file and transcribe that file; what was said, and what it wrote.

    No file is written if the model gives no sound.
    """
    from ..audio.save import save_audio
    from ..evaluation.word_errors import count_errors
    from ..resources import voice_clip
    from ..speech_model import SpeechModel
    from ..synthesis.synthesizer import Synthesizer

    began = time.perf_counter()
    with busy("reading a sentence aloud"):
        speaker = SpeechModel(model, Synthesizer.load())
        spoken = speaker.synthesize(SENTENCE, voice_clip(), seed=0, max_tokens=LONGEST)
    if not len(spoken.wave):
        return f"no sound: the model wrote no audio codes for {SENTENCE!r}"
    save_audio(target, spoken.wave, spoken.sample_rate)
    took, seconds = time.perf_counter() - began, len(spoken.wave) / spoken.sample_rate
    with busy("transcribing it"):
        written = model.transcribe(target, sampling=PRESETS[0]).text or ""
    words, errors = count_errors(SENTENCE, written)
    return "\n".join(
        [
            f"read aloud into {target}: {seconds:.1f} s of sound in {took:.1f} s; {errors} of {words} words wrong",
            f"  said   {SENTENCE}",
            f"  wrote  {written or '(nothing)'}",
        ]
    )


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
