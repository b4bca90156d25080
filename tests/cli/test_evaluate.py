"""`evaluate`: what is printed in which format, normalisers, listings, comparisons, and results scored again."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from commands import FEW, one_line, table
from scored import evaluation, lines

TWO = "file\ttext\na.wav\tone two three\nq.wav\t\nnone.wav\tx\n"
ROWS = (("a.wav", "one two three", "one too three"), ("b.wav", "four five", "four five"), ("s.wav", "", "hm"))


@pytest.fixture
def quiet(tmp_path):
    sf.write(tmp_path / "q.wav", np.zeros(16_000), 16_000)


def test_ends_with_the_totals(run, wav, tmp_path, tiny_model, quiet):
    text = " ".join(tiny_model.transcribe(wav, max_tokens=6).text.split())
    status, out, err = run("evaluate", table(tmp_path, f"file\ttext\na.wav\t{text} x\nq.wav\t\n"), *FEW)
    *clips, last = map(json.loads, out)
    assert (status, err) == (0, "") and [Path(line["file"]).name for line in clips] == ["a.wav", "q.wav"]
    assert {"wer", "clips", "loops", "rtf"} <= set(last) and last["clips"] == 2 and last["sampling"] == "planned"
    assert last["errors"] == sum(line["errors"] for line in clips) and last["words"] == clips[0]["words"]
    assert last["wer"] == pytest.approx(last["errors"] / last["words"], abs=1e-4) and last["rtf"] > 0
    assert last["clips_without_speech"] == 1 and last["hallucination_rate"] == 0
    assert clips[0]["segments"][0]["start"] == 0


def test_as_text(run, wav, tmp_path):
    status, out, _ = run("evaluate", table(tmp_path, "file\ttext\nnone.wav\tx\na.wav\tx\n"), "--text", *FEW)
    assert status == 1 and out[0].startswith("none.wav  failed: ") and out[1].startswith("a.wav  ")
    assert "word error rate" in out[-1] and "1 could not be used" in out[-1]


def test_counts_what_it_could_not_read(run, wav, tmp_path):
    status, out, _ = run("evaluate", table(tmp_path, "file\ttext\nnone.wav\tx\na.wav\tx\n"), *FEW)
    first, _, last = map(json.loads, out)
    assert status == 1 and "none.wav" in first["error"] and (last["failed"], last["clips"]) == (1, 1)


def test_by_known_words(run, wav, tmp_path):
    (tmp_path / "w.txt").write_text("yes\t3\n", encoding="utf-8")
    words = ("--words", tmp_path / "w.txt")
    out = run("evaluate", table(tmp_path, "file\ttext\na.wav\tYes!\na.wav\tno\n"), *words, *FEW)[1]
    assert json.loads(out[-1])["clips_known"] == 1


@pytest.mark.parametrize("text", ["", "a\tb\n", "file\ttext\n", '{"file": "a.wav"}\n'])
def test_bad_tables(run, tmp_path, text):
    status, out, err = run("evaluate", table(tmp_path, text))
    assert (status, out) == (2, []) and "m.tsv" in one_line(err)


def test_a_table_for_a_screen(run, wav, tmp_path, quiet, monkeypatch):
    status, out, err = run("evaluate", table(tmp_path, TWO), "--format", "table", *FEW)
    assert status == 1 and "none.wav" in one_line(err) and len(out) <= 20
    assert out[0].split() == ["rate", "95", "%", "interval", "counted"] and out[1].startswith("loops ")
    assert any(line.startswith("words in silence ") for line in out) and out[-1].startswith("word error rate ")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert run("evaluate", table(tmp_path, TWO), *FEW)[1][:-1] == out[:-1]


def test_listing(run, tmp_path):
    path = evaluation(*ROWS).save(tmp_path / "r.jsonl")
    status, out, _ = run("evaluate", path, "--show", "errors")
    assert status == 0 and out[0] == "a.wav  1 of 3 words wrong (1 S, 0 D, 0 I)"
    assert [line.split() for line in out[2:5]] == [
        ["ref", "one", "two", "three"],
        ["hyp", "one", "too", "three"],
        ["S"],
    ]
    assert not any(line.startswith("b.wav") for line in out)
    assert run("evaluate", path, "--listing")[1][:-1] == out[:-1]
    assert any(line.startswith("b.wav") for line in run("evaluate", path, "--show", "all")[1])
    clip = json.loads(run("evaluate", path, "--show", "errors", "--json")[1][0])
    edit = {"kind": "substitution", "reference": "two", "hypothesis": "too", "start": 0.0, "end": 10.0}
    assert clip["alignment"][1] == edit


def test_results_are_scored_again(run, tmp_path):
    path = evaluation(*ROWS, ("n.wav", "Six!", "six")).save(tmp_path / "r.jsonl")
    assert json.loads(run("evaluate", path)[1][-1])["errors"] == 1
    out = run("evaluate", path, "--normaliser", "none", "--json")[1]
    assert json.loads(out[-1])["errors"] == 2 and json.loads(out[0])["normalizer"] == "none"
    pytest.importorskip("whisper_normalizer")
    last = json.loads(run("evaluate", path, "--normalizer", "whisper")[1][-1])
    assert last["normalizer"] == "whisper" and last["by_normalizer"]["ours"]["errors"] == 1


def test_a_manifest_of_json_lines_is_no_earlier_evaluation(run, wav, tmp_path):
    tabs = table(tmp_path, "file\ttext\na.wav\tone two\n")
    path = lines(tmp_path / "m.jsonl", {"audio_filepath": "a.wav", "text": "one two", "duration": 9, "speaker": "x"})
    runs = [run("evaluate", manifest, *FEW) for manifest in (tabs, path)]
    assert all((status, err, len(out)) == (0, "", 2) for status, out, err in runs)
    clips = [json.loads(out[0]) for _, out, _ in runs]
    assert clips[0]["hypothesis"] and clips[0] | {"wall_seconds": 0} == clips[1] | {"wall_seconds": 0}


def test_against(run, wav, tmp_path, quiet):
    manifest = table(tmp_path, "file\ttext\na.wav\tone two\nq.wav\t\n")
    before = lines(tmp_path / "before.jsonl", *run("evaluate", manifest, *FEW)[1])
    status, out, err = run("evaluate", manifest, "--against", before, *FEW)
    found = json.loads(out[-1])["against"]
    assert (status, err) == (0, "") and found["clips"] == 2 and found["moved"] == [] and found["file"] == str(before)
    assert found["differences"]["loop_rate"]["difference"] == 0 and found["differences"]["wer"]["low"] is None
    out = run("evaluate", manifest, "--against", before, "--format", "table", *FEW)[1]
    assert any("here" in line and "there" in line for line in out) and out[-1].startswith("word error rate")


@pytest.mark.parametrize(("more", "said"), [
    (("--against", "none.jsonl"), "none.jsonl: no such file"),
    (("--against", "m.tsv"), "m.tsv: line 1: not readable as JSON"),
    (("--against", "other.jsonl"), "a.wav: the reference text is not that"),
    (("--against", "same.jsonl", "--normalizer", "none"), "scored by normalizer ours, this one by none"),
    (("--words", "none.txt"), "none.txt"),
])  # fmt: skip
def test_what_cannot_be_compared_is_refused_before_the_work(run, wav, tmp_path, monkeypatch, more, said):
    monkeypatch.chdir(tmp_path)
    table(tmp_path, "file\ttext\na.wav\tone two\nb.wav\tthree\n")
    evaluation(("a.wav", "one six", "one"), ("b.wav", "three", "three")).save(tmp_path / "other.jsonl")
    evaluation(("a.wav", "one two", "one"), ("b.wav", "three", "three")).save(tmp_path / "same.jsonl")
    monkeypatch.setattr("stepaudio.cli.evaluate.load_model", lambda *_: pytest.fail("loaded"))
    status, out, err = run("evaluate", "m.tsv", *more)
    assert (status, out) == (2, []) and said in one_line(err)


def test_a_recording_that_got_lost_leaves_a_comparison_of_the_rest(run, wav, tmp_path):
    manifest = table(tmp_path, "file\ttext\na.wav\tone two\nlost.wav\tthree\n")
    there = evaluation((f"{tmp_path}/a.wav", "one two", "one"), (f"{tmp_path}/lost.wav", "three", "three"))
    status, out, _ = run("evaluate", manifest, "--against", there.save(tmp_path / "t.jsonl"), *FEW)
    last = json.loads(out[-1])
    assert (status, last["clips"], last["against"]["clips"]) == (1, 1, 1) and last["against"]["moved"] == []
    assert last["against"]["differences"]["wer"] == dict.fromkeys(["here", "there", "difference", "low", "high"])


def test_translations(run, wav, tmp_path):
    manifest = table(tmp_path, "file\ttranslation\na.wav\t今天天气很好。\n")
    pytest.importorskip("sacrebleu")
    status, out, _ = run("evaluate", manifest, *FEW)
    clip, last = map(json.loads, out)
    assert status == 0 and clip["to"] == "zh" and "words" not in clip
    assert last["measure"] == "bleu" and last["bleu_tokenizer"] == "zh" and last["wer"] is None
    path = lines(tmp_path / "r.jsonl", clip | {"hypothesis": "今天天气很好。"})
    out = run("evaluate", path, "--format", "table")[1]
    assert out[-1].startswith("BLEU 100.0, tokenizer zh, chrF 100.0, 1 clips")


def test_stored_translations_are_compared(run, tmp_path):
    pytest.importorskip("sacrebleu")
    here, there = ([("a.wav", "Good day.", text), ("b.wav", "So long.", "So long.")] for text in ("Good day.", "Good."))
    paths = [evaluation(*rows, task="translate").save(tmp_path / f"{n}.jsonl") for n, rows in enumerate((here, there))]
    status, out, _ = run("evaluate", paths[0], "--against", paths[1])
    found = json.loads(out[-1])["against"]["differences"]
    assert status == 0 and found["loop_free_chrf"]["here"] == 100 > found["loop_free_chrf"]["there"] > 0
    assert found["loop_free_bleu"]["low"] is None and found["loop_rate"]["difference"] == 0
    out = run("evaluate", paths[0], "--against", paths[1], "--format", "table")[1]
    assert any(line.startswith("chrF without loops  100.0") for line in out)


def test_the_bundled_model_refuses_to_translate(run, tmp_path, nano):
    pytest.importorskip("sacrebleu")
    sf.write(tmp_path / "a.wav", np.zeros(16_000), 16_000)
    manifest = table(tmp_path, "file\ttext\na.wav\t好\n")
    status, out, err = run("evaluate", manifest, "--task", "translate", "--model", nano)
    assert (status, out) == (2, []) and "cannot translate" in one_line(err) and "--task transcribe" in err


def test_without_its_library_a_translation_is_refused_at_once(run, tmp_path, monkeypatch):
    known, absent = importlib.util.find_spec, ("sacrebleu", "whisper_normalizer")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name in absent else known(name))
    status, out, err = run("evaluate", table(tmp_path, "file\ttranslation\na.wav\tgood\n"))
    assert (status, out) == (2, []) and 'pip install "stepaudio[scoring]"' in one_line(err)
    status, out, err = run("evaluate", table(tmp_path, "file\ttext\na.wav\tgood\n"), "--normalizer", "whisper")
    assert (status, out) == (2, []) and 'pip install "stepaudio[scoring]"' in one_line(err)
