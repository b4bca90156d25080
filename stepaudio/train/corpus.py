"""The speech corpus on disk, and the tokens of its texts. No MLX here: worker processes import this.

A corpus is a folder of pairs NAME.pcm (16 kHz int16 samples, one clip after another) and NAME.jsonl (a line a
clip: `offset` and `n_samples`, `text` or the `id` of a line in a list of texts, and where the synthesiser knows
it, `ids` and `durations`: phoneme ids and how many 25 ms frames each lasts).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..constants import SAMPLE_RATE
from ..errors import DataError
from ..text.tokenizer import Tokenizer

SHARD_SAMPLES = 1 << 30  # device arrays stay below 2^31 elements, so that 32-bit indices do


class Corpus:
    """Index of all clips, in shards whose samples fit one device array. Loads no samples by itself.

    Parameters
    ----------
    folders : of pairs NAME.pcm and NAME.jsonl. encode : text -> tokens.
    texts : JSONL with id and text, for clips whose lines only have an id.
    max_seconds : longer clips are left out, and those under 0.2 s. seed : of the order.

    Raises
    ------
    DataError : the folders hold no clip.
    """

    def __init__(
        self,
        folders: list[Path],
        encode: Callable[[str], list[int]],
        texts: Path | None = None,
        max_seconds: float = 24.0,
        seed: int = 0,
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
            clip["start"], clip["tokens"] = used, encode(clip["text"])
            used += clip["n"]
            self.shards[-1].append(clip)
        self.lengths = [np.array([c["n"] for c in shard]) for shard in self.shards]

    @property
    def clips(self) -> list[dict]:
        """The clips of all shards, in their order."""
        return [clip for shard in self.shards for clip in shard]

    @property
    def hours(self) -> float:
        """Length of all clips together, in hours."""
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
    """The usable clips of a folder, in the order of its files."""
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
                        "id": clip.get("id"),
                        "text": text,
                        "phonemes": clip.get("ids"),
                        "frames": clip.get("durations"),
                    }
                )
    return clips


class AnswerEncoder:
    """Tokens of a transcript; the leading space makes a clip's tokens the same wherever it stands in an example.

    The tokenizer never joins words, so a transcript's tokens are its words' tokens, and each word is looked up once.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._words: dict[str, list[int]] = {}

    def __call__(self, text: str) -> list[int]:
        """Tokens of these words, each with a space in front."""
        words = text.split()
        for word in words:
            if word not in self._words:
                self._words[word] = self._tokenizer.encode(" " + word)
        return [token for word in words for token in self._words[word]]
