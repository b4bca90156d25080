"""What a training run depends on beside its corpus, and what it writes down about itself."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..files import replaced_file
from ..models.speech_lm import StepAudioConfig
from .batches import EMPTY, Bucket
from .corpus import Corpus

# Encoder and decoder then see 256 and 128, 512 and 256, 1280 and 512 positions: where these are no multiples of 128,
# MLX's CUDA backend has no fused gradient of attention.
ALL_BUCKETS = (Bucket(5.1, 96, 49, 0.5), Bucket(10.22, 48, 113, 0.33), Bucket(25.575, 20, 177, 0.17))
LOG, RECIPE, WORDS = "log.jsonl", "recipe.json", "words.txt"


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters of a run. `seconds` ends the run early, with the schedule squeezed to it."""

    steps: int = 30_000
    seconds: float = 1e9
    peak_rate: float = 1.2e-3
    warmup: int = 800
    weight_decay: float = 0.03
    smoothing: float = 0.05
    phoneme_weight: float = 0.5
    spoken_weight: float = 0.5
    token_noise: float = 0.1
    weight_noise: float = 0.0  # share of each matrix's root mean square
    teacher_weight: float = 1.0
    decoder_rate: float = 1.0  # factor on the decoder's learning rate; at 0 it stays as it is
    dropout: float = 0.0  # share of a kept encoder's channels that an example goes without
    average: float = 0.9995
    empty: float = EMPTY  # share of examples without speech
    seed: int = 7
    workers: int = 8
    block: int = 100  # steps between changes of bucket
    log_every: int = 250
    save_every: float = 60.0  # seconds
    compile: bool = False
    buckets: tuple[Bucket, ...] = field(default=ALL_BUCKETS)

    def rate(self, progress: float, step: int) -> float:
        """Learning rate: linear warm-up, then cosine to one hundredth, over `progress` 0..1."""
        # In Python's own floats: a scalar of NumPy times an array of MLX is computed by NumPy, on the host.
        cosine = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        return self.peak_rate * min(1.0, (step + 1) / self.warmup) * cosine


def record(out: Path, recipe: Recipe, config: StepAudioConfig, corpus: Corpus) -> None:
    """Write what the run rests on to `out`: recipe.json, and words.txt with every training word and its count."""
    out.mkdir(parents=True, exist_ok=True)
    clips = corpus.clips
    words = Counter(word for clip in clips for word in clip["text"].split())
    lines = sorted(words.items(), key=lambda item: (-item[1], item[0]))
    with replaced_file(out / WORDS) as aside:
        aside.write_text("".join(f"{word}\t{count}\n" for word, count in lines), encoding="utf-8")
    facts = {
        "recipe": asdict(recipe),
        "config": config.to_dict(),
        "hours": round(corpus.hours, 2),
        "clips": len(clips),
        "words": sum(words.values()),
        "distinct_words": len(words),
    }
    with replaced_file(out / RECIPE) as aside:
        aside.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def say(out: Path, **event) -> None:
    """Print one JSON object and append it to `out`/log.jsonl; floats are rounded to four places."""
    line = json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in event.items()})
    print(line, flush=True)
    out.mkdir(parents=True, exist_ok=True)
    with open(out / LOG, "a", encoding="utf-8") as file:
        file.write(line + "\n")
