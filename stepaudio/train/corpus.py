"""The speech corpus on disk, and the recipe of one training batch. No MLX here: worker processes import this.

A corpus is a folder of pairs NAME.pcm (16 kHz int16 samples, one clip after another) and NAME.jsonl (a line a
clip: `offset` and `n_samples`, `text` or the `id` of a line in a list of texts, and where the synthesiser knows
it, `ids` and `durations`: phoneme ids and how many 25 ms frames each lasts). A batch
is described by numbers only (where each sample comes from,
at which speed, which ids are expected); `augment` turns the description into log mels on the accelerator.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from ..constants import SAMPLE_RATE
from ..errors import DataError

SHARD_SAMPLES = 1 << 30  # device arrays stay below 2^31 elements, so that 32-bit indices do


class Corpus:
    """Index of all clips, in shards whose samples fit one device array. Loads no samples by itself."""

    def __init__(
        self, folders: list[Path], encode, texts: Path | None = None, max_seconds: float = 24.0, seed: int = 0
    ):
        spoken = {}
        if texts:
            spoken = {d["id"]: d["text"] for d in map(json.loads, Path(texts).read_text(encoding="utf-8").splitlines())}
        clips = [c for folder in folders for c in _read_index(Path(folder), spoken, max_seconds)]
        if not clips:
            raise DataError(f"no clips in {', '.join(map(str, folders))}: expected pairs NAME.pcm and NAME.jsonl")
        order = np.random.default_rng(seed).permutation(len(clips))
        self.encode = encode
        self.shards: list[list[dict]] = [[]]
        used = 0
        for clip in (clips[i] for i in order):
            if used + clip["n"] > SHARD_SAMPLES:
                self.shards.append([])
                used = 0
            clip["start"], clip["ids"] = used, encode(clip["text"])
            used += clip["n"]
            self.shards[-1].append(clip)
        self.lengths = [np.array([c["n"] for c in shard]) for shard in self.shards]

    @property
    def hours(self) -> float:
        return sum(int(n.sum()) for n in self.lengths) / SAMPLE_RATE / 3600

    def samples(self, shard: int) -> np.ndarray:
        """All samples of a shard, int16, in index order; padded so that all shards have one shape."""
        n = max(int(lengths.sum()) for lengths in self.lengths) + 2
        out = np.zeros(n, dtype=np.int16)
        maps: dict[Path, np.ndarray] = {}
        for clip in self.shards[shard]:
            source = maps.setdefault(clip["file"], np.memmap(clip["file"], dtype=np.int16, mode="r"))
            out[clip["start"] : clip["start"] + clip["n"]] = source[clip["offset"] : clip["offset"] + clip["n"]]
        return out


def _read_index(folder: Path, spoken: dict[str, str], max_seconds: float) -> list[dict]:
    clips = []
    for index in sorted(folder.glob("*.jsonl")):
        pcm = index.with_suffix(".pcm")
        if not pcm.exists():
            continue
        total = pcm.stat().st_size // 2
        for line in index.read_bytes().splitlines():
            try:
                clip = json.loads(line)
            except ValueError:
                continue  # a line that its writer had not finished, perhaps within a character
            n, text = clip["n_samples"], clip.get("text", spoken.get(clip.get("id")))
            if text is not None and clip["offset"] + n <= total and 0.2 <= n / SAMPLE_RATE <= max_seconds:
                clips.append(
                    {
                        "file": pcm,
                        "offset": clip["offset"],
                        "n": n,
                        "text": text,
                        "phonemes": clip.get("ids"),
                        "frames": clip.get("durations"),
                    }
                )
    return clips
