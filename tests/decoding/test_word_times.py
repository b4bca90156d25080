"""Word times: the path against every path, tokens into words, and clips whose times are known by construction."""

import csv
import dataclasses
import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
import tiny

import stepaudio
from stepaudio.audio.load import load_audio
from stepaudio.checkpoints.alignment_heads import AlignmentHeads
from stepaudio.decoding.word_times import Word, median_filtered, token_starts, warp, words_of
from stepaudio.engine import Engine
from stepaudio.errors import ConfigError, PromptError
from stepaudio.model import StepAudio2
from stepaudio.text import subtitles
from stepaudio.transcript import Segment, Transcript

TIMED = Path(__file__).resolve().parents[2] / "data" / "timed"


# ---- dynamic time warping ----


def every_path(n, m, row=0, column=0):
    """All paths from a corner to the other, written down one by one."""
    if (row, column) == (n - 1, m - 1):
        yield [(row, column)]
        return
    steps = [(1, 1), (0, 1)] + ([(1, 0)] if n > m else [])
    for down, right in steps:
        if row + down < n and column + right < m:
            for rest in every_path(n, m, row + down, column + right):
                yield [(row, column), *rest]


@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 5), (3, 3), (3, 7), (4, 6), (5, 3), (6, 1)])
def test_the_path_is_the_cheapest_of_all(n, m):
    rng = np.random.default_rng(n * 10 + m)
    for _ in range(5):
        cost = rng.normal(size=(n, m))
        best = min(every_path(n, m), key=lambda path: sum(cost[at] for at in path))
        assert warp(cost).tolist() == [min(c for r, c in best if r == row) for row in range(n)]


@pytest.mark.parametrize(("n", "width"), [(11, 1), (11, 3), (11, 5), (2, 3), (1, 5)])
def test_the_median_filter_sorts_each_neighbourhood(n, width):
    x = np.random.default_rng(0).normal(size=(2, n))
    half = min(width // 2, n - 1)
    mirrored = [[row[abs(k) if k < n else 2 * n - 2 - k] for k in range(-half, n + half)] for row in x]
    expected = [[sorted(row[k : k + 2 * half + 1])[half] for k in range(n)] for row in mirrored]
    np.testing.assert_array_equal(median_filtered(x, width), expected)


def test_a_planted_attention_gives_its_times_back():
    starts, n = [3, 5, 6, 11], 15  # nobody speaks before 3; the last is the end mark
    attention = np.zeros((2, 4, n))
    for i, (a, b) in enumerate(itertools.pairwise([*starts, n])):
        attention[:, i, a:b] = 1.0
    assert token_starts(attention, 1).tolist() == starts


# ---- tokens into words ----


@pytest.mark.parametrize("text", ["the cat sat", " the  cat\nsat ", "café on the mat", "天气 is 好", "", "  "])
def test_words_are_those_of_the_text(tiny_model, text):
    tokens = tiny_model.tokenizer.encode(text)
    words = words_of(tokens, tiny_model.tokenizer)
    assert "".join(word for word, _, _ in words) == re.sub(r"\s", "", text)
    spans = [span for _, *span in words]
    assert all(a < b for a, b in spans) and all(b <= c for (_, b), (c, _) in itertools.pairwise(spans))
    if text.isascii():
        assert [word for word, _, _ in words] == text.split()


def test_chinese_has_a_word_for_each_character_that_is_a_token_of_its_own(tiny_model):
    assert [w for w, _, _ in words_of(tiny_model.tokenizer.encode("天气"), tiny_model.tokenizer)] == ["天", "气"]


def test_markers_are_no_words(tiny_model):
    tokenizer = tiny_model.tokenizer
    end = tokenizer.id("<|EOT|>")
    tokens = [end, *tokenizer.encode("the cat"), end]
    assert [w for w, _, _ in words_of(tokens, tokenizer)] == ["the", "cat"]


# ---- clips with known times ----


@pytest.fixture(scope="module")
def model():
    return stepaudio.load(Path(__file__).resolve().parents[2] / "data" / "nano")


@pytest.fixture(scope="module")
def known():
    """Name of a clip -> (word, start, end) of its words."""
    with open(TIMED / "words.tsv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    names = sorted({row["clip"] for row in rows})[::7]
    return {n: [(r["word"], float(r["start"]), float(r["end"])) for r in rows if r["clip"] == n] for n in names}


@pytest.fixture(scope="module")
def joined(model, known):
    """Clips with 1.5 s of silence before each, as one recording; its words; with words and without."""
    samples, words, at = [], [], 0
    for name, times in known.items():
        clip = np.concatenate([np.zeros(24_000, np.float32), load_audio(TIMED / name)])
        words += [(w, at / 16_000 + 1.5 + a, at / 16_000 + 1.5 + b) for w, a, b in times]
        samples.append(clip)
        at += len(clip)
    x = np.concatenate(samples)
    return x, words, model.transcribe(x, sr=16_000, words=True), model.transcribe(x, sr=16_000)


def errors_of(found, known):
    same = [(w, k) for w, k in zip(found, known, strict=False) if w.text == k[0]]
    return np.abs([(w.start - a, w.end - b) for w, (_, a, b) in same])


def test_known_times_are_found_in_a_recording_with_silence(joined):
    _, words, found, _ = joined
    got = [w for s in found.segments for w in s.words or ()]
    assert found.skipped_seconds > 0 and len(got) == len(words)
    errors = errors_of(got, words)
    assert len(errors) > 0.7 * len(words)
    assert np.median(errors) < 0.16 and np.quantile(errors, 0.9) < 0.6


def test_shuffled_attention_finds_nothing(model, joined, monkeypatch):
    x, words, _, _ = joined
    rng, real = np.random.default_rng(0), Engine.audio_attention

    def shuffled(self, *args):
        found = real(self, *args)
        order = rng.permutation(next(iter(found.values())).shape[-1])
        return {layer: pattern[..., order] for layer, pattern in found.items()}

    monkeypatch.setattr(Engine, "audio_attention", shuffled)
    control = model.transcribe(x, sr=16_000, words=True)
    assert np.median(errors_of([w for s in control.segments for w in s.words or ()], words)) > 0.3


def test_words_change_nothing_else(joined):
    *_, found, plain = joined
    bare = dataclasses.replace(found, segments=tuple(dataclasses.replace(s, words=None) for s in found.segments))
    assert bare == plain and all("words" not in s for s in plain.to_dict()["segments"])


def test_times_lie_in_their_segment_and_never_go_back(joined):
    for segment in joined[2].segments:
        times = [t for w in segment.words or () for t in (w.start, w.end)]
        assert times == sorted(times) and all(segment.start <= t <= segment.end for t in times)
        assert [w.text for w in segment.words or ()] == (segment.text or "").split()
        assert all(0 < w.probability <= 1 for w in segment.words or ())


# ---- any model, any length ----


@pytest.fixture(scope="module")
def random_model(tiny_model):
    """Random weights with heads that are merely named."""
    heads = AlignmentHeads(((0, 1), (1, 3)), 3)
    return StepAudio2(Engine(tiny_model.net, tiny_model.tokenizer, alignment=heads), tiny_model.report)


def test_a_batch_gives_what_each_gives_alone(random_model):
    clips = [tiny.noise(2, 1), tiny.noise(30, 2), tiny.noise(0.3, 3)]
    options = {"sr": 16_000, "words": True, "max_tokens": 30, "vad": "off"}
    together = random_model.transcribe(clips, **options)
    alone = [random_model.transcribe(clip, **options) for clip in clips]
    words = [[w for t in found for s in t.segments for w in s.words] for found in (together, alone)]
    for one, other in zip(*words, strict=True):
        assert (one.text, one.start, one.end) == (other.text, other.start, other.end)
        assert one.probability == pytest.approx(other.probability, rel=1e-4)


def test_more_tokens_than_positions_still_have_times(random_model):
    (segment,) = random_model.transcribe(tiny.noise(0.3), sr=16_000, words=True, max_tokens=60, vad="off").segments
    assert len(segment.tokens) > 4 and all(0 <= w.start <= w.end <= 0.3 for w in segment.words)


def test_silence_has_no_words(random_model):
    (segment,) = random_model.transcribe(np.zeros(40_000, np.float32), sr=16_000, words=True).segments
    assert segment.stop == "silence" and segment.words == ()


def test_a_model_without_heads_is_one_clear_error(tiny_model):
    with pytest.raises(ConfigError, match="alignment_heads.json"):
        tiny_model.transcribe(tiny.noise(1), sr=16_000, words=True)


def test_without_a_tokenizer_there_are_no_words(tiny_model):
    mute = StepAudio2(Engine(tiny_model.net, None, alignment=AlignmentHeads(((0, 0),))), tiny_model.report)
    with pytest.raises(PromptError, match="tokenizer"):
        mute.transcribe(tiny.noise(1), sr=16_000, words=True, prompt=([1], [2]))


@pytest.mark.parametrize(
    "content",
    [
        "[]", "{}", '{"heads": []}', '{"heads": [[0]]}', '{"heads": [[0, 4]]}', '{"heads": [[-1, 0]]}',
        '{"heads": [[2, 0]]}', '{"heads": [[0, 1], [0, 1]]}', '{"heads": [[0, 1.5]]}', '{"heads": [[0, 1]], "x": 1}',
        '{"heads": [[0, 1]], "filter_width": 2}', '{"heads": [[0, 1]], "filter_width": -1}', "no json",
    ],
)  # fmt: skip
def test_a_file_of_heads_that_cannot_be_is_refused(tmp_path, tiny_model, content):
    (tmp_path / "alignment_heads.json").write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match="alignment_heads.json"):
        AlignmentHeads.of_folder(tmp_path, tiny_model.config.text_config)


# ---- formats ----

TWO = Transcript(
    "yes <no>",
    (
        Segment(0.0, 1.0, "", (), "silence", 0.0),
        Segment(
            1.0, 3.0, "yes <no>", (1, 2), "eos", -0.1, None, (Word("yes", 1.0, 1.48, 0.9), Word("<no>", 2.0, 2.5, 0.2))
        ),
    ),
    3.0,
    1.0,
)


def test_every_format_has_the_words_and_marks_doubt():
    assert "00:00:01,000 --> 00:00:01,480\nyes\n" in TWO.to_srt() and "<no> (?)" in TWO.to_srt()
    assert "<00:00:01.000>yes <00:00:02.000><c.doubt>&lt;no&gt;</c>" in TWO.to_vtt()
    assert TWO.to_tsv().splitlines()[1:] == ["1000\t1480\tyes\t0.900\t", "2000\t2500\t<no>\t0.200\t?"]
    words = json.loads(TWO.to_json())["segments"][1]["words"]
    assert words[0] == {"text": "yes", "start": 1.0, "end": 1.48, "probability": 0.9}
    assert subtitles.is_srt(TWO.to_srt()) and subtitles.is_vtt(TWO.to_vtt()) and subtitles.is_tsv(TWO.to_tsv())
