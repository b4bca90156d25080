"""Scores of recordings: manifests, order, failures, totals."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import tiny

from stepaudio.audio.load import load_audio
from stepaudio.errors import DataError
from stepaudio.evaluation import scores as module
from stepaudio.evaluation.manifest import Clip, read_manifest
from stepaudio.evaluation.scores import Evaluation, Score, evaluate, score_clips, totals
from stepaudio.pipeline import Pipeline
from stepaudio.transcribe import Segment, Transcript


def manifest(folder, text, name="m.tsv", encoding="utf-8"):
    (folder / name).write_bytes(text.encode(encoding))
    return folder / name


class FixedModel:
    """A model that gives a fixed text per recording length in seconds."""

    def __init__(self, texts, loop=None):
        self.texts, self.loop, self.tokenizer, self.calls = texts, loop, object(), []
        self.pipeline = Pipeline()

    def transcribe(self, recordings, sr, **options):
        self.calls.append((len(recordings), options))
        return [self._one(len(x) / 16_000) for x in recordings]

    def _one(self, seconds):
        text = self.texts[round(seconds)]
        loop = self.loop if text.startswith("loop") else None
        return Transcript(text, (Segment(0, seconds, text, (), "eos", 0.0, loop),), seconds, seconds / 10)


def clips(folder, *pairs):
    found = []
    for seconds, text in pairs:
        path = folder / f"{seconds}.wav"
        if not path.exists() and seconds:
            sf.write(path, tiny.noise(seconds), 16_000)
        found.append(Clip(path, text))
    return found


# ---- manifests ----


@pytest.mark.parametrize(("name", "text"), [
    ("a.tsv", "file\ttext\na.wav\tsay \"it\", please\n"), ("a.csv", 'file,text\na.wav,"say ""it"", please"\n'),
    ("b.tsv", "\ufefffile\ttext\r\na.wav\tsay \"it\", please\r\n"),
    ("c.tsv", "voice\ttext\tfile\nx\tsay \"it\", please\ta.wav\n\n"),
    ("d.csv", 'file,text\na.wav,"say ""it"", please"'),
])  # fmt: skip
def test_manifests(tmp_path, name, text):
    assert read_manifest(manifest(tmp_path, text, name)) == [Clip(tmp_path / "a.wav", 'say "it", please')]


def test_paths_are_relative_to_the_manifest_or_absolute(tmp_path):
    path = manifest(tmp_path, f"file\ttext\nsub/a.wav\tx\n{tmp_path}/b.wav\ty\n")
    assert [c.file for c in read_manifest(str(path))] == [tmp_path / "sub/a.wav", tmp_path / "b.wav"]


def test_a_line_without_text_is_silence(tmp_path):
    assert [c.text for c in read_manifest(manifest(tmp_path, "file\ttext\na.wav\t\nb.wav\n"))] == ["", ""]


def test_odd_line_separators_stay_in_the_text(tmp_path):
    assert (
        read_manifest(manifest(tmp_path, "file\ttext\na.wav\tone\u2028two\x0bthree\n"))[0].text
        == "one\u2028two\x0bthree"
    )


@pytest.mark.parametrize(("text", "message"), [
    ("", "expected columns file and text, found nothing"), ("path\ttext\na\tb\n", "found path, text"),
    ("file\ttext\n", "no line"), ("file,text\na.wav,hello, world\n", "line 2: more cells"),
    ("file\ttext\n\thello\n", "line 2: the column file is empty"),
])  # fmt: skip
def test_bad_manifests(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        read_manifest(manifest(tmp_path, text))


def test_manifest_that_cannot_be_read(tmp_path):
    utf16 = manifest(tmp_path, "file\ttext\na.wav\tx\n", encoding="utf-16")
    for path in (tmp_path / "none.tsv", tmp_path, utf16):
        with pytest.raises(DataError, match="not readable"):
            read_manifest(path)


# ---- scores ----


def test_scores_in_order_with_their_errors(tmp_path):
    model = FixedModel({1: "one too three", 2: "", 3: "hm"})
    found = list(score_clips(model, clips(tmp_path, (2, "all lost"), (1, "One, two, three."), (3, "")), batch=5))
    assert [(s.words, s.errors) for s in found] == [(2, 2), (3, 1), (0, 1)]
    assert model.calls == [(3, {"batch": 5})]
    line = found[1].to_dict()
    assert (
        (line["reference"], line["hypothesis"]) == ("One, two, three.", "one too three")
        and line["audio_seconds"] == 1
        and Path(line["file"]).name == "1.wav"
    )


def test_an_unreadable_clip_is_reported_and_the_others_go_on(tmp_path):
    (tmp_path / "bad.wav").write_text("no sound")
    table = [*clips(tmp_path, (1, "one")), Clip(tmp_path / "bad.wav", "x"), Clip(tmp_path / "none.wav", "x")]
    found = evaluate(FixedModel({1: "one"}), table)
    assert [s.error is None for s in found] == [True, False, False] and "none.wav" in found[2].to_dict()["error"]
    last = totals(found)
    assert (last["clips"], last["failed"], last["wer"]) == (1, 2, 0)


def test_nothing_but_unreadable_clips(tmp_path):
    last = totals(evaluate(FixedModel({}), [Clip(tmp_path / "none.wav", "x")]))
    assert (last["wer"], last["rtf"], last["clips"], last["failed"]) == (None, None, 0, 1)


def test_groups_bound_what_is_held(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "GROUP", 2)
    model = FixedModel({1: "one"})
    assert len(evaluate(model, clips(tmp_path, *[(1, "one")] * 5))) == 5
    assert [n for n, _ in model.calls] == [2, 2, 1]


def test_a_score_comes_before_the_next_group_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "GROUP", 1)
    model = FixedModel({1: "one", 2: "two"})
    first = next(iter(score_clips(model, clips(tmp_path, (1, "one"), (2, "two")))))
    assert first.clip.text == "one" and len(model.calls) == 1


def test_from_a_manifest_to_a_table_that_shows_itself(tmp_path):
    clips(tmp_path, (1, ""), (2, ""))
    path = manifest(tmp_path, "file\ttext\n1.wav\tone two three\n2.wav\t\nnone.wav\tx\n")
    found = evaluate(FixedModel({1: "one too three", 2: ""}), str(path))
    assert isinstance(found, Evaluation) and found.wer == pytest.approx(1 / 3, abs=1e-4)
    assert [s.clip.file.name for s in found] == ["1.wav", "2.wav", "none.wav"] and found[1:] == (found[1], found[2])
    shown = str(found)
    assert "1.wav  1 of 3 words wrong" in shown and "one too three" in shown and "(nothing)" in shown
    assert "none.wav  failed: " in shown and shown.splitlines()[-1].startswith("word error rate 33.3% (1 of 3 words)")
    assert "1 could not be used" in shown


def test_totals_weigh_by_words(tmp_path):
    model = FixedModel({1: "loop loop", 2: "a b c d"}, loop={"period": 1, "onset": 0, "repeats": 9.0})
    last = evaluate(model, clips(tmp_path, (1, "x"), (2, "a b c d"))).totals({"a", "b", "c", "d"})
    assert last["wer"] == pytest.approx(2 / 5) and last["loops"] == 1 and last["clips"] == 2
    assert last["wer_known"] == 0 and last["clips_known"] == 1
    assert last["audio_seconds"] == 3 and 0.1 <= last["rtf"] < 5
    json.dumps(last, allow_nan=False)


def test_wall_time_includes_reading(tmp_path):
    model = FixedModel({1: "one"})
    model.pipeline = Pipeline(load=lambda *a, **k: (time.sleep(0.05), load_audio(*a, **k))[1])
    (score,) = evaluate(model, clips(tmp_path, (1, "one")))
    assert score.transcript.wall_seconds >= 0.1 + 0.05


def test_errors_need_text(tmp_path):
    model = FixedModel({})
    model.tokenizer = None
    with pytest.raises(DataError, match="tokenizer=None"):
        evaluate(model, clips(tmp_path, (1, "one")))


def test_a_failed_score_says_only_why():
    assert Score(Clip(Path("a"), "x"), None, error="broken").to_dict() == {"file": "a", "error": "broken"}


def test_through_the_tiny_model(tiny_model, tmp_path):
    x = tiny.noise(1)
    sf.write(tmp_path / "a.wav", x, 16_000, subtype="FLOAT")
    text = tiny_model.transcribe(x, max_tokens=9).text
    sf.write(tmp_path / "b.wav", np.zeros(16_000), 16_000)
    found = list(evaluate(tiny_model, [Clip(tmp_path / "a.wav", text), Clip(tmp_path / "b.wav", "")], max_tokens=9))
    assert [s.errors for s in found] == [0, 0] and found[1].transcript.segments[0].stop == "silence"
