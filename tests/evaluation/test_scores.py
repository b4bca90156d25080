"""Scores of recordings: manifests, order, failures, totals."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import tiny

from stepaudio.audio.load import load_audio
from stepaudio.checkpoints.capabilities import Capabilities
from stepaudio.decoding.options import DecodingOptions
from stepaudio.errors import ConfigError, DataError, DecodeError, PromptError
from stepaudio.evaluation.manifest import Clip, distinct_names, read_manifest
from stepaudio.evaluation.scores import Evaluation, Score, evaluate, score_clips, totals
from stepaudio.pipeline import Pipeline
from stepaudio.text.prompts import translation_system
from stepaudio.transcribe import batch_size
from stepaudio.transcript import Segment, Transcript


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


@pytest.mark.parametrize(("name", "text"), [("m.tsv", "file\ttext\na.wav\t\n"), ("m.csv", "file,text\na.wav,\n"),
                                            ("q.csv", 'file,text\na.wav,""\n')])  # fmt: skip
def test_an_empty_text_is_silence(tmp_path, name, text):
    assert [c.text for c in read_manifest(manifest(tmp_path, text, name))] == [""]


@pytest.mark.parametrize(("name", "text", "line"), [
    ("m.tsv", "file\ttext\na.wav\tx\nb.wav\nc.wav\t\n", 3), ("m.csv", "file,text\na.wav\n", 2),
    ("n.tsv", "file\tvoice\ttext\na.wav\tjoe\n", 2),
])  # fmt: skip
def test_a_missing_text_is_no_silence(tmp_path, name, text, line):
    with pytest.raises(DataError, match=f"line {line}: ends before the column text"):
        read_manifest(manifest(tmp_path, text, name))


@pytest.mark.parametrize("text", [None, float("nan"), 5, b"x"])
def test_a_clip_of_code_needs_its_text_too(text):
    with pytest.raises(DataError, match="a.wav: expected the text that is said"):
        Clip(Path("a.wav"), text)


def test_names_of_clips_tell_them_apart():
    files = ["x/a/1.wav", "x/b/1.wav", "y/b/1.wav", "x/b/2.wav", "3.wav", "x/b/2.wav", "/3.wav"]
    names = ["a/1.wav", "x/b/1.wav", "y/b/1.wav", "2.wav", "3.wav", "2.wav (2)", "//3.wav"]
    assert distinct_names(map(Path, files)) == names


def test_odd_line_separators_stay_in_the_text(tmp_path):
    assert (
        read_manifest(manifest(tmp_path, "file\ttext\na.wav\tone\u2028two\x0bthree\n"))[0].text
        == "one\u2028two\x0bthree"
    )


@pytest.mark.parametrize(("text", "message"), [
    ("", "expected columns file and text, each once, found nothing"), ("speaker\ttext\na\tb\n", "found speaker, text"),
    ("file\ttext\n", "no line"), ("file,text\na.wav,hello, world\n", "line 2: more cells"),
    ("file\ttext\n\thello\n", "line 2: file: expected the path of a recording, found ''"),
    ("file\ttext\ttext\na.wav\tx\ty\n", "each once, found file, text, text"),
    ('file,text\na.wav,"hello\nb.wav,there\n', "unexpected end of data"),
])  # fmt: skip
def test_bad_manifests(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        read_manifest(manifest(tmp_path, text))


@pytest.mark.parametrize("line", [
    {"file": "a.wav", "text": "one"},
    {"audio_filepath": "a.wav", "duration": 1.5, "offset": 0.0, "text": "one"},  # NeMo
    {"audio": {"path": "a.wav", "sampling_rate": 16000}, "sentence": "one", "path": "elsewhere"},  # datasets
    {"audio": {"path": "a.wav", "bytes": None, "array": [0.0, 0.1]}, "text": "one", "transcript": "1"},
    {"file_name": "a.wav", "transcription": "one"}, {"key": "7", "wav": "a.wav", "txt": "one"},  # audiofolder, WeNet
    {"path": "a.wav", "transcript": "one", "text": None, "speaker": {"id": 3}},
    {"audio_path": "a.wav", "normalized_text": "one", "raw_text": "One!"},
])  # fmt: skip
def test_json_lines_as_other_tools_write_them(tmp_path, line):
    """pandas writes the lines; beside them a table with the same columns, where a cell can hold them."""
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame([line, line])
    frame.to_json(tmp_path / "m.jsonl", orient="records", lines=True)
    wanted = [Clip(tmp_path / "a.wav", "one")] * 2
    assert read_manifest(tmp_path / "m.jsonl") == wanted
    (tmp_path / "m.jsonl").rename(tmp_path / "named_otherwise.txt")
    assert read_manifest(tmp_path / "named_otherwise.txt") == wanted
    if not any(isinstance(value, dict) or value is None for value in line.values()):
        frame.to_csv(tmp_path / "m.csv", index=False)
        assert read_manifest(tmp_path / "m.csv") == wanted


def test_what_json_lines_say_besides(tmp_path):
    text = (
        '\ufeff{"audio": "/x/a.wav", "text": "Einen.", "lang": "de-DE"}\r\n\n'
        '{"audio": "b.wav", "text": "\\u4eca\\n", "locale": null}\n{"audio": "c.wav", "sentence": ""}'
    )
    found = read_manifest(manifest(tmp_path, text, "m.json"))
    assert [(str(c.file), c.text, c.language) for c in found] == [
        ("/x/a.wav", "Einen.", "de"), (str(tmp_path / "b.wav"), "今\n", None), (str(tmp_path / "c.wav"), "", None)
    ]  # fmt: skip
    both = manifest(tmp_path, '{"file": "a", "sentence": "x", "translation": "y", "target_lang": "zh"}', "t.jsonl")
    assert [(c.text, c.task, c.language) for c in read_manifest(both, None)] == [("y", "translate", "zh")]
    assert [(c.text, c.task) for c in read_manifest(both)] == [("x", "transcribe")]


@pytest.mark.parametrize(("lines", "message"), [
    (['{"file": "a.wav", "text": "one"}', '{"file": "a.wav", "duration": 1}'], "line 2: .*found file, duration"),
    (['{"text": "one"}'], "line 1: expected columns file and text, each once, found text"),
    (['{"file": "a.wav", "text": null}'], "found file$"),
    (['{"file": "a.wav", "text": 5}'], "text: expected a text, found 5"),
    (['{"file": "a.wav", "text": NaN}'], "text: expected a text, found nan"),
    (['{"file": 7, "text": "one"}'], "file: expected the path of a recording, found 7"),
    (['{"audio": {"bytes": "UklGRg=="}, "text": "one"}'], "audio: expected the path of a recording, found None"),
    (['{"audio": ["a.wav", "b.wav"], "text": "one"}'], "audio: expected the path of a recording"),
    (['{"file": "a.wav", "sentence": "one", "transcript": "1"}'], "two texts, sentence and transcript; call .* text"),
    (['{"audio_filepath": "a.wav", "text": "one", "offset": 12.5}'], "offset 12.5: means a part of 'a.wav'"),
    (['{"audio_filepath": "a.wav", "text": "one", "offset": [1]}'], r"offset \[1\]: means a part"),
    (['{"file": "a.wav", "text": "one", "language": 3}'], "language: expected a word, found 3"),
    (['{"file": "a.wav", "text": "one", "file": "b.wav"}'], "names 'file' twice"),
    (['{"file": "a.wav", "text": "one"', '}'], "line 1: not readable as JSON"),
    (['[{"file": "a.wav", "text": "one"}]'], "expected a JSON object, found list"), ([""], "holds no line"),
])  # fmt: skip
def test_bad_json_lines(tmp_path, lines, message):
    with pytest.raises(DataError, match=message) as found:
        read_manifest(manifest(tmp_path, "\n".join(lines), "m.jsonl"))
    assert len(str(found.value)) < 1000 and "\n" not in str(found.value)


def test_a_table_may_name_parts_of_recordings_too(tmp_path):
    with pytest.raises(DataError, match="line 3: offset '2.5': means a part of 'a.wav'"):
        read_manifest(manifest(tmp_path, "path\tsentence\toffset\na.wav\tx\t0.00\na.wav\ty\t2.5\n"))


def test_manifest_that_cannot_be_read(tmp_path):
    utf16 = manifest(tmp_path, "file\ttext\na.wav\tx\n", encoding="utf-16")
    for path in (tmp_path / "none.tsv", tmp_path, utf16, "/dev/zero"):
        with pytest.raises(DataError, match="expected a table with the columns file and text"):
            read_manifest(path)


@pytest.mark.parametrize(("text", "asked", "wanted"), [
    ("file\ttext\na\tx\n", None, ("x", "transcribe", None)),
    ("file\ttext\na\tx\n", "translate", ("x", "translate", None)),
    ("file\ttranslation\na\ty\n", None, ("y", "translate", None)),
    ("file\ttext\ttranslation\tlanguage\tto\na\tx\ty\ten\tzh-CN\n", None, ("y", "translate", "zh")),
    ("file\ttext\ttranslation\tlanguage\tto\na\tx\ty\tEnglish\tzh\n", "transcribe", ("x", "transcribe", "en")),
    ("file\ttext\ttask\na\tx\tS2TT\n", None, ("x", "translate", None)),
    ("file\ttext\ttask\na\tx\tasr\n", None, ("x", "transcribe", None)),
    ("file\ttext\ttask\tlanguage\na\tx\t\t-\n", None, ("x", "transcribe", None)),
    ("file,translation\na,\n", None, ("", "translate", None)),
])  # fmt: skip
def test_what_a_table_says_about_its_task(tmp_path, text, asked, wanted):
    (clip,) = read_manifest(manifest(tmp_path, text), asked)
    assert (clip.text, clip.task, clip.language) == wanted


def test_other_readers_of_tables_take_what_is_said(tmp_path):
    (clip,) = read_manifest(manifest(tmp_path, "file\ttext\ttranslation\ttask\na\tx\ty\ttranslate\n"))
    assert (clip.text, clip.task) == ("x", "transcribe")


@pytest.mark.parametrize(("text", "message"), [
    ("file\ttranslation\na\n", "line 2: ends before the column translation"),
    ("file\ttext\ttask\na\tx\tsing\n", "line 2: task: expected transcribe or translate, found 'sing'"),
    ("file\ttranslation\ttranslation\na\tx\ty\n", "expected columns file and translation, each once"),
])  # fmt: skip
def test_bad_tables_of_translations(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        read_manifest(manifest(tmp_path, text), None)


@pytest.mark.parametrize(
    ("text", "target"), [("今天", "zh"), ("今日はいい", "ja"), ("good day", "en"), ("Привет", "en")]
)
def test_the_target_is_found_by_its_letters(text, target):
    assert Clip(Path("a"), text).target == target and Clip(Path("a"), text, language="fr_FR").target == "fr"


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


@pytest.mark.parametrize("options", [{"batch": 2}, {"options": DecodingOptions(batch=2)}])
def test_no_more_is_held_than_is_decoded_together(tmp_path, options):
    model = FixedModel({1: "one"})
    assert len(evaluate(model, clips(tmp_path, *[(1, "one")] * 5), **options)) == 5
    assert [n for n, _ in model.calls] == [2, 2, 1]


@pytest.mark.parametrize("batch", [1, None])
def test_a_score_comes_before_the_next_batch_is_read(tmp_path, batch):
    """Whoever interrupts a long table keeps what was decoded."""
    model, read = FixedModel({1: "one", 2: "two"}), []
    model.pipeline = Pipeline(load=lambda *a, **k: (read.append(a), load_audio(*a, **k))[1])
    size = batch or batch_size(DecodingOptions())
    table = clips(tmp_path, (1, "one"), *[(2, "two")] * (3 * size))
    first = next(score_clips(model, table, **({} if batch is None else {"batch": batch})))
    assert first.clip.text == "one" and len(model.calls) == 1 and len(read) == size < 64


def test_a_batch_that_is_none_is_refused(tmp_path):
    with pytest.raises(DecodeError, match="batch"):
        evaluate(FixedModel({1: "one"}), clips(tmp_path, (1, "one")), batch=0)


def test_scores_of_a_batch_are_those_of_single_recordings(tiny_model, tmp_path):
    table = [Clip(tmp_path / f"{n}.wav", "a b c") for n in range(5)]
    for n, clip in enumerate(table):
        sf.write(clip.file, tiny.noise(0.4 + 0.3 * (n * 2 % 5), n), 16_000, subtype="FLOAT")
    one, two, many = ([s.transcript.segments[0].tokens for s in evaluate(tiny_model, table, max_tokens=6, batch=b)]
                      for b in (1, 2, 8))  # fmt: skip
    assert one == two == many and len(set(one)) > 1


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


def test_chinese_is_scored_by_characters_and_says_so(tmp_path):
    model = FixedModel({1: "今天天气很好我们去公园吗", 2: "我用 python", 3: "a cap"})
    table = clips(tmp_path, (1, "今天天气很好，我们去公园吧。"), (2, "我 用Python 吗"), (3, "a cat"))
    found = evaluate(model, table)
    t = found.totals()
    assert t["measure"] == "mixed" and (t["mixed_units"], t["mixed_errors"]) == (12 + 4 + 2, 1 + 1 + 1)
    assert (t["chars"], t["char_errors"]) == (12 + 9 + 5, 1 + 1 + 1)
    assert found.mixed == t["mixed"] == pytest.approx(3 / 18, abs=1e-4) and found.cer == pytest.approx(3 / 26, abs=1e-4)
    line = found[0].to_dict()
    assert [line[k] for k in ("words", "errors", "chars", "char_errors", "mixed_units")] == [2, 2, 12, 1, 12]
    shown = str(found)
    assert "1.wav  1 of 12 characters and words wrong" in shown and "3.wav  1 of 2 words wrong" in shown
    assert shown.splitlines()[-1].startswith(
        "mixed error rate 16.7% (3 of 18 characters and words), character error rate"
    )
    english = evaluate(model, table[2:]).totals()
    assert english["measure"] == "wer" and english["mixed"] == english["wer"] == 0.5 and english["cer"] == 0.2


def test_clips_of_one_name_are_told_apart(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        sf.write(tmp_path / folder / "1.wav", tiny.noise(1), 16_000)
    table = manifest(tmp_path, "file\ttext\na/1.wav\tone\nb/1.wav\ttwo\n")
    shown = str(evaluate(FixedModel({1: "one"}), table))
    assert "\na/1.wav  0 of" in f"\n{shown}" and "\nb/1.wav  1 of" in shown


class Translating(FixedModel):
    capabilities = Capabilities()


def test_a_table_of_translations_asks_for_them(tmp_path):
    pytest.importorskip("sacrebleu")
    (clip,), model = clips(tmp_path, (1, "今天天气很好。")), Translating({1: "今天天气很好。"})
    found = evaluate(model, [Clip(clip.file, clip.text, "translate")])
    assert model.calls[0][1]["prompt"] == translation_system("zh") and found.totals()["bleu"] == 100
    evaluate(model, [Clip(clip.file, "good day", "translate")])
    assert model.calls[1][1]["prompt"] == translation_system("en") != translation_system("zh")
    evaluate(model, [Clip(clip.file, "good day", "translate")], prompt="of my own")
    assert model.calls[2][1]["prompt"] == "of my own"
    with pytest.raises(PromptError, match="expected one of zh, en, ja, found 'fr'"):
        evaluate(model, [Clip(clip.file, "bonne", "translate", "fr")])
    with pytest.raises(DataError, match="score them as two tables"):
        evaluate(model, [clip, Clip(clip.file, "good", "translate")])
    with pytest.raises(DataError, match="translations into en, zh"):
        evaluate(model, [Clip(clip.file, t, "translate") for t in ("好", "good")])


def test_the_normaliser_is_asked_for(tmp_path):
    model = FixedModel({1: "one, two"})
    (score,) = evaluate(model, clips(tmp_path, (1, "One two")), normalizer="none")
    assert (score.errors, score.normalizer, score.to_dict()["normalizer"]) == (1, "none", "none")
    with pytest.raises(ConfigError, match="normalizer: expected ours"):
        evaluate(model, [], normalizer="mine")


def test_only_clips_are_scored():
    with pytest.raises(DataError, match="found tuple"):
        evaluate(FixedModel({}), [("a.wav", "x")])


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
