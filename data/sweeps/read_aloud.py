"""Run the grid `aloud.json`: what a limited cache does to texts that the bundled model reads aloud.

    python data/sweeps/read_aloud.py aloud.jsonl --table data/sweeps/aloud.parquet [--sounds sounds]

The "clips" of the grid are texts. Each is read as one answer, in the two bundled voices by turns, voiced whole, and
transcribed by the same model with a full cache, greedily. So `text` is what nano hears in its own speech, and `ids` is
the answer, written text and codes. Loops and `rep_4` are those of the codes alone. With --sounds the sounds are kept
as SOUNDS/SETTING/TEXT.wav, for another judge (`hear_aloud.py`).
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import cast

from stepaudio.audio.save import save_audio
from stepaudio.decoding.options import merge_options
from stepaudio.decoding.outputs import Generation, answer_of
from stepaudio.evaluation.manifest import Clip
from stepaudio.evaluation.repetition import loop_period_onset, rep_n
from stepaudio.evaluation.word_errors import count_char_errors, count_errors
from stepaudio.experiments.grid import Grid, Setting
from stepaudio.experiments.sweep import run_sweep
from stepaudio.model import StepAudio2
from stepaudio.synthesis.synthesizer import Sound, Synthesizer
from stepaudio.text.prompts import reading_turns

HERE = Path(__file__).resolve().parent
VOICES = ("female", "male")
JUDGE = {"sampling": "reference", "cache": "full"}


class Aloud:
    """The runs of the grid. All texts of a setting are read together, as soon as one of them is asked for."""

    def __init__(self, grid: Grid, sounds: Path | None):
        self.clips = cast(Sequence[Clip], grid.clips)
        self.names = {setting: name for name, setting in cast(Mapping[str, Setting], grid.settings).items()}
        self.sounds, self.synthesizer = sounds, Synthesizer.load(grid.model)
        self.voices = [self.synthesizer.voice(name) for name in VOICES]
        self.rows: dict[tuple[Setting, int], dict[Path, dict]] = {}
        self.heard: dict[tuple, tuple[Sound, str]] = {}

    def run(self, model: StepAudio2, clip: Clip, setting: Setting, seed: int) -> dict:
        """The row of one text."""
        if (setting, seed) not in self.rows:
            found = self.read(model, setting, seed)
            self.rows[setting, seed] = {c.file: row for c, row in zip(self.clips, found, strict=True)}
        return self.rows[setting, seed][clip.file]

    def read(self, model: StepAudio2, setting: Setting, seed: int) -> list[dict]:
        """The rows of all texts; answers that share codes and voice share their sound and what is heard in it."""
        began = time.perf_counter()
        lengths, answers = self.answers(model, setting, seed)
        keys = [(answer.codes, i % len(VOICES), seed) for i, answer in enumerate(answers)]
        new = {
            key: self.synthesizer.decode(key[0], self.voices[key[1]], noise=seed, source_noise=seed)
            for key in dict.fromkeys(keys)
            if key not in self.heard
        }
        voiced = {key: sound for key, sound in new.items() if len(sound.wave)}
        waves = [sound.wave for sound in voiced.values()]
        texts = model.transcribe(waves, sr=self.synthesizer.sample_rate, progress=False, **JUDGE) if waves else []
        said = dict(zip(voiced, (t.text or "" for t in texts), strict=True))
        self.heard |= {key: (sound, said.get(key, "")) for key, sound in new.items()}
        seconds = (time.perf_counter() - began) / len(self.clips)
        rows = []
        for clip, key, length, answer in zip(self.clips, keys, lengths, answers, strict=True):
            sound, text = self.heard[key]
            rows.append({"wall_seconds": round(seconds, 4), **measured(model, setting, clip, length, answer, text)})
            rows[-1]["audio_seconds"] = sound.seconds
            if self.sounds is not None:
                folder = self.sounds / self.names[setting]
                folder.mkdir(parents=True, exist_ok=True)
                save_audio(folder / f"{clip.file.stem}.wav", sound.wave, sound.sample_rate)
        return rows

    def answers(self, model: StepAudio2, setting: Setting, seed: int) -> tuple[list[int], list[Generation]]:
        """Positions of each prompt, and the answers, decoded together where the cache allows it."""
        engine, tokenizer = model.engine, model.engine.require_tokenizer()
        requests = [engine.build_request(reading_turns(clip.text, tokenizer)) for clip in self.clips]
        options = merge_options(setting.options, seed=seed)
        lengths = [len(request.tokens) for request in requests]
        found: dict[int, Generation] = {}
        # keys of few bits only share a batch with those of prompts as long
        alike = lengths.__getitem__ if setting.cache.bits else lambda _: 0
        for _, group in groupby(sorted(range(len(requests)), key=alike), alike):
            mine = list(group)
            runs = engine.run([requests[i] for i in mine], options)
            found |= {i: answer_of(run, tokenizer) for i, run in zip(mine, runs, strict=True)}
        return lengths, [found[i] for i in range(len(requests))]


def measured(
    model: StepAudio2, setting: Setting, clip: Clip, length: int, answer: Generation, text: str
) -> dict[str, object]:
    """The columns of a row, of an answer to a prompt of so many positions in which this text was heard."""
    (words, errors), (chars, wrong) = count_errors(clip.text, text), count_char_errors(clip.text, text)
    period, onset = loop_period_onset(answer.codes)
    repeats, limit = rep_n(answer.codes, 4), setting.cache.limit(model.config.max_cache_len)
    positions = length + len(answer.tokens) + (answer.stop == "eos")
    size = model.config.text_config.kv_bytes_per_position(model.net.dtype.size, setting.cache.bits)
    return {
        "text": text,
        "words": words,
        "errors": errors,
        "chars": chars,
        "char_errors": wrong,
        "ids": [list(answer.tokens)],
        "stops": [str(answer.stop)],
        "n_ids": len(answer.tokens),
        "loops": int(period is not None),
        "period": period,
        "onset": onset,
        "rep_4": None if math.isnan(repeats) else repeats,
        "mean_logprob": answer.mean_logprob,
        "kv_bytes": size * (positions if limit is None else min(positions, limit)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("store", type=Path)
    parser.add_argument("--table", type=Path, required=True)
    parser.add_argument("--sounds", type=Path, help="folder for the sounds; by default they are not kept")
    args = parser.parse_args()
    grid = Grid.from_file(HERE / "aloud.json")
    run_sweep(grid, args.store, run_one=Aloud(grid, args.sounds).run).write(args.table)


if __name__ == "__main__":
    main()
