"""One training batch described by numbers: where each sample comes from, at which speed, which tokens are expected.

`augment` turns the description into log mels on the accelerator. No MLX here: worker processes import this.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..constants import HOP, SAMPLE_RATE, n_audio_embeddings, n_mel_frames
from ..errors import DataError
from ..text.prompts import asr_prompt
from ..text.tokenizer import Tokenizer
from .corpus import Corpus

SEGMENTS = 8  # clips that may follow one another in one training example
ALIGNMENT_SECONDS = 0.025  # length of one phoneme frame in the corpus
IGNORE = 0  # label of frames and embeddings about which nothing is known; real labels are one higher than their ids
BREATHS, BREATH_CHANCE = 3, 0.2  # bursts of noise that an example may hold, and how often each is there
EMPTY = 0.04  # share of examples without speech
SILENT = 0.12  # share of examples with a long silence before, between or behind the clips
TAUGHT = 2.0  # seconds: with a longer silence in it, an example is no lesson of another model's
TIGHT, CUT = 0.5, 0.5  # shares of examples with hardly any silence around, and of aligned clips that are shortened
PHONEME_SPACE = 16  # separates words in the synthesiser's phonemes; lower ids are marks and pauses


@dataclass(frozen=True)
class Bucket:
    """One shape of batch: `rows` examples of at most `seconds`, drawn `share` of the time."""

    seconds: float
    rows: int
    max_text: int  # tokens of the answer, end included
    share: float

    @property
    def samples(self) -> int:
        """Samples of the longest example."""
        return round(self.seconds * SAMPLE_RATE)


@dataclass(frozen=True)
class PromptTokens:
    """Tokens around the audio: all before its first embedding, all after its last, the placeholder, the turn's end."""

    before: list[int]
    after: list[int]
    patch: int
    end: int


def transcription_prompt(tokenizer: Tokenizer) -> PromptTokens:
    """The reference's transcription prompt, divided at its audio embeddings."""
    prompt = asr_prompt(tokenizer, [1])
    tokens, start = list(prompt.tokens), prompt.slots[0].start
    return PromptTokens(tokens[:start], tokens[start + 1 :], tokenizer.audio_patch, tokenizer.eot)


class BatchMaker:
    """Draws descriptions of batches; the same seed and step give the same description.

    Parameters
    ----------
    corpus, prompt, buckets : what to draw from, what stands around the audio, which shapes of batch there are.
    block : steps for which the bucket stays the same, so that an accelerator holds buffers for one shape at a time.
    empty : share of examples without speech.

    Raises
    ------
    DataError : shares that are no shares.
    """

    def __init__(
        self,
        corpus: Corpus,
        prompt: PromptTokens,
        buckets: list[Bucket],
        seed: int,
        block: int = 1,
        empty: float = EMPTY,
    ):
        self.corpus, self.prompt, self.buckets, self.seed, self.block = corpus, prompt, buckets, seed, block
        self.empty = empty
        shares = [b.share for b in buckets]
        if not (0 <= empty <= 1 and min(shares) >= 0 and sum(shares) > 0):
            raise DataError(
                f"shares of buckets {shares}, of examples without speech {empty}; expected none below 0, some "
                "bucket above 0, and at most 1 of the examples without speech"
            )
        self.share = np.array(shares) / sum(shares)
        sizes = np.array([n.sum() for n in corpus.lengths], dtype=float)
        self.shard_share = sizes / sizes.sum()

    def __call__(self, step: int) -> dict:
        """Arrays of a batch by name, its `bucket` and its `shard`."""
        rng = np.random.default_rng((self.seed, step))
        turn = np.random.default_rng((self.seed, step // self.block, 1))
        bucket = int(turn.choice(len(self.buckets), p=self.share))
        shard = int(rng.choice(len(self.shard_share), p=self.shard_share))
        rows = [self._row(rng, self.buckets[bucket], shard) for _ in range(self.buckets[bucket].rows)]
        conditions = augmentation(rng, len(rows)) | breaths(rng, rows)
        empty = np.array([not r["segments"] for r in rows])
        conditions["babble"][empty] = 0  # no words of others in an example without words
        conditions["floor"][empty] = 10 ** (-rng.uniform(8, 90, int(empty.sum())) / 20)
        return {"bucket": bucket, "shard": shard, **self._stack(rows, self.buckets[bucket]), **conditions}

    def _row(self, rng, bucket: Bucket, shard: int) -> dict:
        """Clips at their own speed, one after another with pauses, until the example is about full; often only one."""
        around = 0.04 if rng.random() < TIGHT else 0.5  # seconds of silence, at most, before and after the words
        before, pause, behind = rng.uniform(0, around), 0.25, rng.uniform(0, around)
        want = 0 if rng.random() < self.empty else 1 if rng.random() < 0.55 else SEGMENTS
        if rng.random() < SILENT:
            where = int(rng.integers(3))
            before = before if where else rng.uniform(0, 0.9 * bucket.seconds)
            pause, want = (0.3 * bucket.seconds, SEGMENTS if want else 0) if where == 1 else (pause, want)
            behind = rng.uniform(0, bucket.seconds) if where == 2 else behind
        segments, tokens, cursor = [], [], int(before * SAMPLE_RATE)
        for _ in range(40):
            if len(segments) >= want:
                break
            clip = self._some_words(rng, self.corpus.shards[shard][int(rng.integers(len(self.corpus.shards[shard])))])
            rate = float(np.clip(np.exp(rng.normal(0, 0.10)), 0.75, 1.35))
            n = int((clip["n"] - 2) / rate)
            if cursor + n > bucket.samples or len(tokens) + len(clip["tokens"]) + 1 > bucket.max_text:
                if segments:
                    break
                continue
            segments.append((cursor, cursor + n, clip, rate))
            tokens += clip["tokens"]
            cursor += n + int(rng.exponential(pause) * SAMPLE_RATE)
        if not segments:  # silence or noise, answered with nothing
            cursor = int(rng.uniform(0.2, bucket.seconds) * SAMPLE_RATE)
        length = segments[-1][1] if segments else cursor
        length = min(bucket.samples, max(length + int(behind * SAMPLE_RATE), SAMPLE_RATE // 5))
        return {"segments": segments, "tokens": tokens, "length": length}

    def _some_words(self, rng, clip: dict) -> dict:
        """Mostly the clip; else a few of its words, often one, or all of them without the silence around.

        Whole sentences with pauses around them would teach that short recordings hold no speech.
        """
        ranges = _word_ranges(clip) if clip["phonemes"] and rng.random() < CUT else None
        if not ranges:
            return clip
        size = len(ranges) if rng.random() < 0.5 else min(len(ranges), 1 + int(rng.exponential(2.5)))
        first = int(rng.integers(len(ranges) - size + 1))
        part = cut_words(clip, ranges, first, first + size, self.corpus.encode)
        return part if part["n"] >= SAMPLE_RATE // 8 else clip

    def _stack(self, rows: list[dict], bucket: Bucket) -> dict:
        """Fixed-shape arrays of one batch.

        `place` (B, L) says what stands at each position: an index into [tokens before the audio, its embeddings,
        tokens after it, the answer], or -1 past the end.
        """
        B, n_before, n_after = len(rows), len(self.prompt.before), len(self.prompt.after)
        max_rows, A = n_audio_embeddings(n_mel_frames(bucket.samples)), bucket.max_text
        place = np.full((B, n_before + max_rows + n_after + A), -1, np.int32)
        sources = np.split(np.arange(place.shape[1]), np.cumsum([n_before, max_rows, n_after]))
        answers, labels = np.full((B, A), self.prompt.end, np.int32), np.full((B, A), -1, np.int32)
        begin = np.full((B, SEGMENTS), 1 << 30, np.int32)
        stop, start = np.zeros((B, SEGMENTS), np.int32), np.zeros((B, SEGMENTS), np.int32)
        rate = np.ones((B, SEGMENTS), np.float32)
        phonemes = np.full((B, -(-n_mel_frames(bucket.samples) // 4)), IGNORE, np.int32)
        spoken = np.full((B, max_rows), IGNORE, np.int32)
        length = np.array([r["length"] for r in rows], np.int32)
        taught = np.zeros(B, np.int32)  # 1 where there are words and no long silence: what any model hears well
        asks = np.zeros(B, np.int32)  # the position after which the answer is wanted
        for b, row in enumerate(rows):
            answer, n = [*row["tokens"], self.prompt.end], n_audio_embeddings(n_mel_frames(row["length"]))
            whole = np.concatenate([sources[0], sources[1][:n], sources[2], sources[3][: len(answer)]])
            place[b, : len(whole)] = whole
            asks[b] = len(whole) - len(answer) - 1
            answers[b, : len(answer)] = labels[b, : len(answer)] = answer
            for s, (first, last, clip, speed) in enumerate(row["segments"]):
                begin[b, s], stop[b, s], start[b, s], rate[b, s] = first, last, clip["start"], speed
                if clip["phonemes"]:
                    _align(phonemes[b], clip, first, speed)
                    spans = token_spans(clip, self.corpus.encode)
                    if spans is not None:
                        _align_tokens(spoken[b], spans, first, speed)
            edges = [0, *(edge for first, last, _, _ in row["segments"] for edge in (first, last)), row["length"]]
            taught[b] = bool(row["segments"]) and np.diff(edges)[::2].max() <= TAUGHT * SAMPLE_RATE
        return {
            "place": place,
            "answers": answers,
            "labels": labels,
            "asks": asks,
            "begin": begin,
            "stop": stop,
            "start": start,
            "rate": rate,
            "length": length,
            "phonemes": phonemes,
            "spoken": spoken,
            "taught": taught,
        }


def _word_ranges(clip: dict) -> list[tuple[int, int]] | None:
    """Phonemes of each word, first and one past the last; None where spoken and written words differ in number.

    A space in the phonemes separates words; marks at a word's end are left out.
    """
    phonemes = clip["phonemes"]
    gaps = [i for i, p in enumerate(phonemes) if p == PHONEME_SPACE]
    if len(gaps) + 1 != len(clip["text"].split()):
        return None
    ranges = []
    for first, last in zip([1, *(g + 1 for g in gaps)], [*(g - 1 for g in gaps), len(phonemes) - 2], strict=True):
        while last > first and phonemes[last] <= PHONEME_SPACE:
            last -= 1
        ranges.append((first, max(first, last) + 1))  # ids open and close with a mark for silence
    return ranges


def token_spans(clip: dict, encode) -> np.ndarray | None:
    """(n, 3): text token, first and last phoneme frame of it; the tokens of one word share its time evenly.

    None as in `_word_ranges`, or where the tokens of the words are not those of the text.
    """
    ranges = _word_ranges(clip)
    if ranges is None:
        return None
    ends, spans = np.cumsum(clip["frames"]), []
    for word, (first, stop) in zip(clip["text"].split(), ranges, strict=True):
        tokens = encode(word)
        edges = np.linspace(ends[first - 1], ends[stop - 1], len(tokens) + 1)
        spans += list(zip(tokens, edges[:-1], edges[1:], strict=True))
    return np.array(spans) if [t for t, _, _ in spans] == clip["tokens"] else None


def cut_words(clip: dict, ranges: list[tuple[int, int]], first: int, stop: int, encode) -> dict:
    """The clip of words first … stop-1 alone, without the silence around them; `ranges` of all its words."""
    a, b = ranges[first][0], ranges[stop - 1][1]
    frame = round(ALIGNMENT_SECONDS * SAMPLE_RATE)
    text = " ".join(clip["text"].split()[first:stop])
    frames = clip["frames"][a:b]
    return {
        "start": clip["start"] + frame * sum(clip["frames"][:a]),
        "n": frame * sum(frames),
        "text": text,
        "tokens": encode(text),
        "phonemes": [0, *clip["phonemes"][a:b], 0],
        "frames": [0, *frames, 0],
    }


def _align(labels: np.ndarray, clip: dict, first: int, rate: float) -> None:
    """Write the phoneme of every 40 ms encoder frame that a clip covers."""
    ends = np.cumsum(clip["frames"]) * ALIGNMENT_SECONDS * SAMPLE_RATE / rate + first
    step = 4 * HOP
    i = np.arange(int(first // step) + 1, min(len(labels), int(ends[-1] // step)))
    which = np.searchsorted(ends, i * step + step // 2)
    labels[i] = np.asarray(clip["phonemes"])[np.minimum(which, len(ends) - 1)] + 1


def _align_tokens(labels: np.ndarray, spans: np.ndarray, first: int, rate: float) -> None:
    """Write the text token that is being spoken in the middle of every 80 ms audio embedding of a clip."""
    edge = spans[:, 1:] * ALIGNMENT_SECONDS * SAMPLE_RATE / rate + first
    step = 8 * HOP
    rows = np.arange(int(edge[0, 0] // step), min(len(labels), int(edge[-1, 1] // step) + 1))
    middle = rows * step + step // 2
    which = np.searchsorted(edge[:, 1], middle)
    inside = which < len(spans)
    rows, middle, which = rows[inside], middle[inside], which[inside]
    inside = middle >= edge[which, 0]
    labels[rows[inside]] = spans[which[inside], 0].astype(np.int32) + 1


def augmentation(rng, B: int) -> dict:
    """Random conditions of B examples: loudness, noise, babble, room, band, warp, masks. Many voices from few.

    Strengths are shares of an example's loudness (root mean square) unless a comment says otherwise.
    """

    def on(p: float) -> np.ndarray:
        return rng.random(B) < p

    def quiet(x: np.ndarray, keep: np.ndarray) -> np.ndarray:
        return np.where(keep, x, 0.0).astype(np.float32)

    snr = rng.uniform(0, 35, B)
    return {
        "gain": (10 ** (rng.uniform(-25, 3, B) / 20)).astype(np.float32),
        "noise": quiet(10 ** (-snr / 20), on(0.6)),
        "colour": rng.uniform(0, 2, B).astype(np.float32),  # 0 white, 1 pink, 2 brown
        "floor": (10 ** (rng.uniform(-90, -55, B) / 20)).astype(np.float32),
        "babble": quiet(10 ** (-rng.uniform(8, 30, B) / 20), on(0.15)),
        "reverb": quiet(rng.uniform(0.05, 0.8, B), on(0.45)),
        "decay": rng.uniform(0.02, 0.25, B).astype(np.float32),  # seconds to 1/e
        "warp": rng.integers(0, 9, B).astype(np.int32),
        "tilt": rng.normal(0, 4, (B, 8)).astype(np.float32),  # dB at eight knots
        "top": np.where(on(0.2), rng.uniform(3300, 4000, B), np.where(on(0.1), 5500, 8000)).astype(np.float32),
        "bottom": np.where(on(0.15), rng.uniform(100, 350, B), 0).astype(np.float32),
        "clip": np.where(on(0.12), 10 ** rng.uniform(-1, -0.15, B), 10.0).astype(np.float32),  # of the peak
        "time_mask": np.stack([rng.integers(0, 1 << 20, (B, 3)), rng.integers(0, 30, (B, 3))], -1).astype(np.int32),
        "band_mask": np.stack([rng.integers(0, 118, (B, 2)), rng.integers(0, 28, (B, 2))], -1).astype(np.int32),
    }


def breaths(rng, rows: list[dict]) -> dict:
    """Bursts of noise between the words, as people breathe, smack their lips and touch things.

    Begins, lengths (in samples) and levels (B, BREATHS), the levels relative to the example's loudness and 0 where
    there is none; centres of their spectra in Hz (B,). A burst may reach a seventh of a second into the
    words, whose clips mostly begin and end with silence of their own.
    """
    shape, overlap = (len(rows), BREATHS), SAMPLE_RATE // 7
    begin, n = np.empty(shape, np.int32), np.empty(shape, np.int32)
    for b, row in enumerate(rows):
        edges = [0, *(edge for first, last, _, _ in row["segments"] for edge in (first, last)), row["length"]]
        for k in range(BREATHS):
            gap = 2 * int(rng.integers(len(edges) // 2))
            first, last = max(0, edges[gap] - overlap * (gap > 0)), edges[gap + 1] + overlap
            n[b, k] = min(int(SAMPLE_RATE * np.exp(rng.uniform(np.log(0.01), np.log(0.6)))), last - first)
            begin[b, k] = first + int(rng.integers(last - first - n[b, k] + 1))
    level = np.where(rng.random(shape) < BREATH_CHANCE, 10 ** (-rng.uniform(3, 30, shape) / 20), 0.0)
    return {
        "breath_begin": begin,
        "breath_length": n,
        "breath_level": level.astype(np.float32),
        "breath_hertz": np.exp(rng.uniform(np.log(300), np.log(5000), len(rows))).astype(np.float32),
    }
