"""`make demo`: the bundled model reads the bundled recordings aloud to the terminal, so to speak."""

from __future__ import annotations

import time

from ..backend import device as backend
from ..decoding.sampling import Sampling
from ..evaluation.manifest import read_manifest
from ..evaluation.scores import evaluate, totals
from ..model import StepAudio2
from ..resources import default_checkpoint, speech_manifest


def run() -> int:
    """Print what was said, what was heard, times and word error rates. Returns 1 if a recording could not be read."""
    began = time.perf_counter()
    model = StepAudio2.load()
    found = backend.info()
    print(
        f"model {default_checkpoint().name}, loaded in {time.perf_counter() - began:.1f} s; {found['backend']}, "
        f"{found['dtype']}, BLAS {found['blas']}\n"
    )
    clips, lines = read_manifest(speech_manifest()), {}
    for name in ("reference", "planned"):
        scores = list(evaluate(model, clips, sampling=Sampling.named(name), progress=False))
        lines[name] = totals(scores)
        if name == "reference":
            for s in scores:
                t = s.transcript
                if t is None:
                    print(f"{s.clip.file.name}  failed: {s.error}")
                    continue
                print(
                    f"{s.clip.file.name}  {t.audio_seconds:.1f} s in {t.wall_seconds:.2f} s, {s.errors} of {s.words} "
                    "words "
                    f"wrong\n  said   {s.clip.text or '(nothing)'}\n  heard  {t.text or '(nothing)'}"
                )
    print()
    for name, line in lines.items():
        print(
            f"--sampling {name:9}  word error rate {_shown(line['wer'], '.1%')}  real-time factor "
            f"{_shown(line['rtf'], '.3f')}  "
            f"loops {line['loops']} of {line['clips']}"
        )
    print("planned forbids repeats (frequency penalty 1.2, no 3-gram twice): that costs words where speech repeats.")
    return 1 if any(line["failed"] for line in lines.values()) else 0


def _shown(share: float | None, form: str) -> str:
    return "-" if share is None else format(share, form)
