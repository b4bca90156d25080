"""Run the grid `steer.json`: what steering vectors do to speech, to noisy speech, and where no word is said.

    python data/sweeps/steer.py steer.jsonl --table data/sweeps/steer.parquet

Each fault of the grid names a sound, and what is added: "backwards+audio.1+silence+0.5" is half the vector "silence" in
`decoder.1.resid_post` at the audio, with the clips played backwards; "+silence.random2+" is the third random vector of
the same norm. The vectors come from the bundled recordings, the scores from the clips of the sweeps.
"""

from __future__ import annotations

import argparse
from functools import cache
from pathlib import Path
from typing import cast

import numpy as np

from stepaudio.decoding.generate import Run, collect, generate
from stepaudio.decoding.options import merge_options
from stepaudio.evaluation.manifest import Clip, read_manifest
from stepaudio.evaluation.repetition import loop_period_onset
from stepaudio.evaluation.word_errors import count_char_errors, count_errors
from stepaudio.experiments.faulty_sound import rotten
from stepaudio.experiments.grid import Grid, Setting
from stepaudio.experiments.sweep import run_sweep
from stepaudio.interp import Edits, Steering, add, steering_between
from stepaudio.interp.running import edit_tap, lay_out
from stepaudio.model import StepAudio2
from stepaudio.resources import speech_manifest

HERE = Path(__file__).resolve().parent
VECTORS = {"silence": ("noise", "clean"), "clean": ("clean", "white:-5")}  # towards, away
WORDLESS = ("noise", "backwards")
LONGEST = 8  # seconds of the bundled recordings from which vectors are made
LOUDNESS = -5  # dB of the speech over the noise that is left when the speech is taken away


def sound(samples: np.ndarray, name: str) -> np.ndarray:
    """The clip as it is ("clean"), with noise ("white:-5"), that noise without the clip ("noise"), or "backwards"."""
    if name == "clean":
        return samples
    if name == "backwards":
        return samples[::-1].copy()
    if name == "noise":
        return (rotten(samples, "white", LOUDNESS).astype(float) - samples).astype(np.float32)
    kind, _, dose = name.partition(":")
    return rotten(samples, kind, float(dose))


class Steered:
    """The conditions of the grid; each runs all clips as one batch."""

    def __init__(self, model: StepAudio2, clips: tuple[Clip, ...], setting: Setting):
        self.model, self.clips = model, clips
        self.decoding = merge_options(setting.options)
        self.samples = [model.pipeline.load(clip.file) for clip in clips]
        bundled = [clip.file for clip in read_manifest(speech_manifest()) if clip.text]
        loaded = [model.pipeline.load(file) for file in bundled]
        self.donors = [x for x in loaded if len(x) < LONGEST * 16_000]
        self.prompts = cache(self._prompts)
        self.direction = cache(self._direction)

    def _prompts(self, name: str):
        """Layouts and encoded prompts of all clips in this sound."""
        layouts = [lay_out(self.model, sound(x, name)) for x in self.samples]
        requests = [self.model.engine.encode_layout(layout) for layout in layouts]
        return layouts, requests

    def _direction(self, what: str, place: str) -> Steering:
        towards, away = ([sound(x, kind) for x in self.donors] for kind in VECTORS[what])
        at, layer = place.split(".")
        return steering_between(self.model, towards, away, f"decoder.{layer}.resid_post", at=at)

    def edits(self, place: str, what: str, weight: float) -> Edits:
        """Added at every position of the audio, or at every position that chooses a token."""
        what, _, draw = what.partition(".random")
        found = self.direction(what, place)
        vector = found.vector
        if draw:
            drawn = np.random.default_rng([int(draw), *what.encode()]).standard_normal(vector.shape)
            vector = drawn * np.linalg.norm(vector) / np.linalg.norm(drawn)
        audio = self.model.engine.require_tokenizer().encode("<audio_patch>")
        where = {"tokens": audio} if place.startswith("audio") else {"steps": range(self.decoding.max_tokens)}
        return add(found.name, (weight * vector).astype(np.float32), **where)

    def run(self, name: str) -> dict[Path, dict]:
        """Clip -> columns of its row, under a fault of the grid."""
        kind, *steering = name.split("+")
        layouts, requests = self.prompts(kind)
        edits = self.edits(steering[0], steering[1], float(steering[2])) if steering else Edits()
        tap = edit_tap(self.model, edits, layouts, self.decoding.max_tokens)
        options = self.model.engine.run_options(self.decoding)
        runs = collect(generate(self.model.engine.net, requests, options, tap), len(requests))
        return {
            Path(c.file): self.row(r, "" if kind in WORDLESS else c.text) for c, r in zip(self.clips, runs, strict=True)
        }

    def row(self, run: Run, expected: str) -> dict:
        """What was measured; nothing is expected where nothing is said."""
        ids = [t for t in run.tokens if t not in self.model.engine.stop_ids()]
        text = self.model.engine.require_tokenizer().decode(ids).strip()
        period, onset = loop_period_onset(ids)
        counted = zip(("words", "errors", "chars", "char_errors"),
                      (*count_errors(expected, text), *count_char_errors(expected, text)), strict=True)  # fmt: skip
        return {"text": text, **dict(counted), "ids": [ids], "stops": [str(run.stop)], "n_ids": len(ids),
                "loops": int(period is not None), "period": period, "onset": onset}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("store", type=Path)
    parser.add_argument("--table", type=Path, required=True)
    args = parser.parse_args()
    grid = Grid.from_file(HERE / "steer.json")
    (setting,) = grid.settings.values()
    made: list[Steered] = []

    def with_fault(model: StepAudio2, name: str) -> StepAudio2:
        if not made:
            made.append(Steered(model, tuple(cast("tuple[Clip, ...]", grid.clips)), cast(Setting, setting)))
        return cast(StepAudio2, made[0].run(name))  # `run_one` alone looks at it

    def run_one(found, clip: Clip, setting: Setting, seed: int) -> dict:
        return found[Path(clip.file)]

    run_sweep(grid, args.store, run_one=run_one, with_fault=with_fault).write(args.table)


if __name__ == "__main__":
    main()
