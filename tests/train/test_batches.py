"""Batches by description: prompts, places, silence, labels of phonemes and tokens against a walk through time."""

import corpora
import numpy as np
import pytest

from stepaudio.constants import n_audio_embeddings, n_mel_frames
from stepaudio.errors import DataError
from stepaudio.resources import default_checkpoint
from stepaudio.text.prompts import asr_prompt
from stepaudio.text.tokenizer import Tokenizer
from stepaudio.train import batches
from stepaudio.train.batches import IGNORE, BatchMaker, Bucket, transcription_prompt
from stepaudio.train.recipe import ALL_BUCKETS

RATE = 16_000


def same(a, b):
    return set(a) == set(b) and all(np.array_equal(a[k], b[k]) for k in a)


def test_a_step_decides_its_batch(maker, stock, tokenizer):
    again = BatchMaker(stock, transcription_prompt(tokenizer), list(corpora.BUCKETS), seed=3)
    assert all(same(maker(step), again(step)) for step in (7, 0, 7))
    other = BatchMaker(stock, transcription_prompt(tokenizer), list(corpora.BUCKETS), seed=4)
    assert not same(maker(0), maker(1)) and not same(maker(0), other(0))


def rows_of(maker, steps=40):
    for step in range(steps):
        batch = maker(step)
        for b in range(len(batch["length"])):
            yield batch, b, batch["begin"][b][batch["begin"][b] < 1 << 30]


def test_the_answer_follows_the_reference_s_prompt(maker, tokenizer, stock, monkeypatch):
    monkeypatch.setattr(batches, "CUT", 0)  # whole clips are known by where they start
    for batch, b, placed in rows_of(maker, 10):
        n = n_audio_embeddings(n_mel_frames(int(batch["length"][b])))
        wanted = asr_prompt(tokenizer, [n])
        rows = batch["spoken"].shape[1]
        prompt = transcription_prompt(tokenizer)
        sources = [*prompt.before, *[prompt.patch] * rows, *prompt.after, *batch["answers"][b].tolist()]
        tokens = [sources[i] for i in batch["place"][b] if i >= 0]
        labels = batch["labels"][b]
        assert tuple(tokens[: len(wanted.tokens)]) == wanted.tokens
        (start,) = {s.start for s in wanted.slots}
        np.testing.assert_array_equal(batch["place"][b][start : start + n], start + np.arange(n))
        answer = labels[: np.count_nonzero(labels >= 0)]
        assert batch["asks"][b] == len(wanted.tokens) - 1 and (labels[len(answer) :] == -1).all()
        np.testing.assert_array_equal(answer, tokens[len(wanted.tokens) :])
        assert answer[-1] == tokenizer.eot
        text = tokenizer.decode(answer[:-1].tolist())
        clips = {c["start"]: c["text"] for c in stock.shards[0]}
        said = [clips[s] for s in batch["start"][b][: len(placed)]]
        assert text == "".join(" " + t for t in said)


def test_everything_lies_inside_the_example(maker):
    for batch, b, placed in rows_of(maker):
        bucket, k = corpora.BUCKETS[batch["bucket"]], len(placed)
        assert batch["length"][b] <= bucket.samples
        assert (batch["stop"][b][:k] <= batch["length"][b]).all() and (placed[1:] >= batch["stop"][b][:k][:-1]).all()


def test_an_example_without_words_holds_nobody_else_s(maker, monkeypatch):
    """Neither babble nor an answer but the end; and such examples do come."""
    draw = batches.augmentation

    def everywhere(rng, B):
        return draw(rng, B) | {"babble": np.full(B, 0.5, np.float32)}

    monkeypatch.setattr(batches, "augmentation", everywhere)
    silent = [(batch, b) for batch, b, placed in rows_of(maker, 150) if len(placed) == 0]
    assert len(silent) > 3
    for batch, b in silent:
        assert batch["babble"][b] == 0 and np.count_nonzero(batch["labels"][b] >= 0) == 1
        assert (batch["phonemes"][b] == IGNORE).all() and (batch["spoken"][b] == IGNORE).all()
    assert any(batch["babble"][b] > 0 for batch, b, placed in rows_of(maker, 150) if len(placed))


def test_silence_lasts_as_long_as_speech_may(stock, tokenizer):
    bucket = Bucket(25.575, 8, 177, 1.0)
    silent = BatchMaker(stock, transcription_prompt(tokenizer), [bucket], seed=3, empty=1.0)
    batches = [silent(step) for step in range(12)]
    lengths = np.concatenate([b["length"] for b in batches]) / RATE
    assert all((b["labels"][:, 1:] < 0).all() and (b["begin"] == 1 << 30).all() for b in batches)
    assert all(np.histogram(lengths, 5, (0, 25.6))[0] > 8)  # of 96 rows


def test_long_silences_stand_before_between_and_behind_the_words(stock, tokenizer, monkeypatch):
    """Each in a third of such examples; without them no gap of whole clips lasts more than a few seconds."""
    bucket = Bucket(25.575, 8, 177, 1.0)
    longest = []
    for share in (1.0, 0.0):
        monkeypatch.setattr(batches, "SILENT", share)
        gaps = []
        draws = BatchMaker(stock, transcription_prompt(tokenizer), [bucket], seed=3, empty=0.0)
        for batch, b, placed in rows_of(draws, 12):
            stops = batch["stop"][b][: len(placed)]
            assert len(placed) and stops[-1] <= batch["length"][b] <= bucket.samples
            inner = np.max(placed[1:] - stops[:-1], initial=0)
            gaps.append((placed[0], inner, batch["length"][b] - stops[-1]))
        longest.append(np.array(gaps) / RATE)
    assert ((longest[0] > 8).mean(0) > 0.1).all() and (longest[0].max(0) > 15).all()
    assert (longest[1] < 4).all()


@pytest.mark.parametrize(("share", "empty"), [(0.0, 0.1), (-1.0, 0.1), (1.0, 1.5), (1.0, float("nan"))])
def test_shares_are_shares(stock, tokenizer, share, empty):
    with pytest.raises(DataError, match="shares of buckets"):
        BatchMaker(stock, transcription_prompt(tokenizer), [Bucket(5.1, 8, 49, share)], seed=3, empty=empty)


def test_the_bucket_stays_for_a_block_of_steps(stock, tokenizer):
    prompt = transcription_prompt(tokenizer)
    blocks = BatchMaker(stock, prompt, list(corpora.BUCKETS), seed=3, block=5)
    found = [blocks(step)["bucket"] for step in range(60)]
    assert all(len(set(found[i : i + 5])) == 1 for i in range(0, 60, 5)) and len(set(found)) == 2
    assert not same(blocks(0), blocks(1))


def test_breaths_stand_between_the_words():
    rows = [{"segments": [(4000, 20_000, None, 1.0), (30_000, 50_000, None, 1.0)], "length": 56_000}] * 500
    rows += [{"segments": [], "length": 9000}] * 500
    found = batches.breaths(np.random.default_rng(0), rows)
    begin, n, level = (found["breath_" + name] for name in ("begin", "length", "level"))
    assert (begin >= 0).all() and (n >= 1).all() and (n <= 0.6 * RATE).all()
    assert 0.17 < (level > 0).mean() < 0.23 and level.max() < 10 ** (-3 / 20)
    reach = RATE // 7
    gaps = [(0, 4000 + reach), (20_000 - reach, 30_000 + reach), (50_000 - reach, 56_000 + reach)]
    within = [(begin[:500] >= a) & (begin[:500] + n[:500] <= b) for a, b in gaps]
    assert np.logical_or.reduce(within).all() and all(w.mean() > 0.25 for w in within)
    assert (begin[500:] + n[500:] <= 9000 + reach).all()


def test_rows_of_all_buckets_fill_whole_tiles():
    """Where they do not, attention has no fused gradient on CUDA, which nothing but the clock would tell."""
    prompt = transcription_prompt(Tokenizer.from_folder(default_checkpoint()))
    for bucket in ALL_BUCKETS:
        frames = n_mel_frames(bucket.samples)
        rows = len(prompt.before) + n_audio_embeddings(frames) + len(prompt.after) + bucket.max_text
        assert -(-frames // 2) % 128 == 0 and rows % 128 == 0, bucket


def test_phonemes_stand_at_the_middle_of_their_frames():
    """Against a walk through time, frame by frame."""
    clip = {"phonemes": [0, 40, 16, 41, 0], "frames": [2, 5, 1, 9, 3]}
    for first, rate in ((0, 1.0), (5000, 1.0), (3333, 1.25), (777, 0.8)):
        labels = np.zeros(60, np.int32)
        batches._align(labels, clip, first, rate)
        spoken = np.repeat(clip["phonemes"], clip["frames"])
        for i, label in enumerate(labels):
            at = ((i * 640 + 320) - first) * rate / RATE / 0.025
            if label != IGNORE:
                assert label == spoken[min(int(at), len(spoken) - 1)] + 1, (i, at)
        covered = np.flatnonzero(labels)
        assert covered[0] * 640 >= first - 640 and abs(len(covered) - 20 * 0.025 / 0.04 / rate) <= 2


def test_spoken_tokens_pair_with_their_words(tokenizer, encode, stock):
    for clip in stock.shards[0]:
        spans = batches.token_spans(clip, encode)
        assert [int(t) for t in spans[:, 0]] == clip["tokens"]
        assert spans[0, 1] == 2 and (spans[1:, 1] >= spans[:-1, 2]).all() and (spans[:, 2] > spans[:, 1]).all()
        labels = np.zeros(40, np.int32)
        batches._align_tokens(labels, spans, 3200, 1.0)
        for i, label in enumerate(labels):
            at = (i * 1280 + 640 - 3200) / RATE / 0.025
            here = [int(t) for t, a, b in spans if a <= at <= b]
            assert (label - 1 in here) if label else not here or at >= spans[-1, 2]


def test_words_are_cut_where_they_are_spoken(encode):
    """Phonemes and samples of a part are those of the whole, at the same place."""
    clip = {
        "start": 1000,
        "n": 400 * 20,
        "text": "the cat sat",
        "tokens": encode("the cat sat"),
        "phonemes": [0, 40, 41, 16, 42, 5, 16, 43, 44, 0],
        "frames": [3, 1, 2, 1, 4, 1, 2, 2, 1, 3],
    }
    ranges = batches._word_ranges(clip)
    assert ranges == [(1, 3), (4, 5), (7, 9)]
    spoken = np.repeat(clip["phonemes"], clip["frames"])
    for first, stop in ((0, 1), (1, 2), (1, 3), (0, 3)):
        part = batches.cut_words(clip, ranges, first, stop, encode)
        assert part["text"] == " ".join(clip["text"].split()[first:stop]) and part["tokens"] == encode(part["text"])
        place, size = (part["start"] - 1000) // 400, part["n"] // 400
        inside = np.repeat(part["phonemes"], part["frames"])
        np.testing.assert_array_equal(inside, spoken[place : place + size])
        assert inside[0] >= 40 and inside[-1] >= 40
        spans, whole = batches.token_spans(part, encode), batches.token_spans(clip, encode)
        wanted = [s for s in whole if place <= s[1] and s[2] <= place + size]
        np.testing.assert_allclose(spans[:, 1:] + place, np.array(wanted)[:, 1:])


def test_short_examples_hold_words(maker):
    """Examples shorter than any clip hold words more often than silence does."""
    short = [len(placed) for batch, b, placed in rows_of(maker, 300) if batch["length"][b] < 0.44 * RATE]
    assert len(short) > 20 and np.mean(np.array(short) > 0) > 0.5


def test_words_that_do_not_pair_up_are_left_alone(encode):
    clip = {
        "text": "one two three",
        "phonemes": [0, 40, 16, 41, 0],
        "frames": [1] * 5,
        "tokens": encode("one two three"),
    }
    assert batches.token_spans(clip, encode) is None


def test_another_model_teaches_words_without_long_silences(stock, tokenizer):
    """The longest stretch of an example in which no clip sounds, found sample by sample."""
    wide, seen = [Bucket(8.0, 4, 20, 1.0)], set()
    for batch, b, placed in rows_of(BatchMaker(stock, transcription_prompt(tokenizer), wide, seed=0, empty=0.2), 25):
        silent = np.ones(batch["length"][b], bool)
        for first, last in zip(placed, batch["stop"][b], strict=False):
            silent[first:last] = False
        edges = np.flatnonzero(np.diff([0, *silent, 0]))
        longest = max(edges[1::2] - edges[::2], default=0) / RATE
        assert batch["taught"][b] == (len(placed) > 0 and longest <= 2), (longest, len(placed))
        seen.add((int(batch["taught"][b]), len(placed) > 0))
    assert seen == {(1, True), (0, True), (0, False)}
