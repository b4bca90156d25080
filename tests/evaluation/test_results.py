"""Evaluations as files, read again, and compared clip by clip."""

import json

import pytest
from scored import evaluation, lines, score

from stepaudio.errors import ConfigError, DataError
from stepaudio.evaluation.intervals import compare
from stepaudio.evaluation.results import read_results
from stepaudio.evaluation.scores import Evaluation

ROWS = (("a/1.wav", "one two three", "one two"), ("a/2.wav", "four five", "four five"), ("b/1.wav", "six", "x x", 1),
        ("s.wav", "", "thank you"), ("今.wav", "今天 Python", "今天python"), ("x.wav", "gone", None))  # fmt: skip
CLIP = {"file": "a.wav", "reference": "one two", "hypothesis": "one"}


def read(tmp_path, *objects, **more):
    return read_results(lines(tmp_path / "r.jsonl", *objects), **more)


def test_what_is_saved_is_read_again(tmp_path):
    found = evaluation(*ROWS)
    again = Evaluation.read(found.save(tmp_path / "r.jsonl"))
    assert [s.to_dict() for s in again if s.transcript] == [s.to_dict() for s in found if s.transcript]
    assert again.totals() == found.totals() and again[5].error == "no sound"
    assert found.against(tmp_path / "r.jsonl").moved == ()


def test_hypotheses_of_any_system(tmp_path):
    (found,) = read(tmp_path, CLIP)
    assert (found.words, found.errors, found.loops, found.normalizer) == (2, 1, 0, "ours")
    assert read(tmp_path, CLIP | {"words": 99, "errors": 7.5})[0].errors == 1  # counted anew from the texts
    (found,) = read(tmp_path, CLIP | {"hypothesis": "one two.", "normalizer": "none"})
    assert (found.errors, found.normalizer) == (1, "none")
    assert read(tmp_path, CLIP | {"normalizer": "none"}, normalizer="ours")[0].normalizer == "ours"
    (found,) = read(tmp_path, {"file": "s", "reference": "", "hypothesis": "谢谢", "audio_seconds": 30})
    assert Evaluation((found,)).totals()["words_per_minute"] == 4
    (found,) = read(tmp_path, CLIP | {"loops": 2, "skipped_seconds": 1.5, "audio_seconds": 9, "language": "en-GB"})
    assert found.to_dict()["loops"] == 2 and found.to_dict()["skipped_seconds"] == 1.5 and found.clip.language == "en"


def test_lines_that_editors_leave(tmp_path):
    (tmp_path / "r.jsonl").write_bytes(
        b"\xef\xbb\xbf" + json.dumps(CLIP).encode() + b"\r\n\r\n  \n" + b'{"measure": "wer", "wer": null, "high": NaN}'
    )
    assert len(read_results(tmp_path / "r.jsonl")) == 1
    assert read(tmp_path, json.dumps(CLIP | {"hypothesis": "one\u2028two"}, ensure_ascii=False))[0].errors == 0


@pytest.mark.parametrize(("objects", "said"), [
    ((), "holds no clip"), (("",), "holds no clip"), (({"measure": "wer"},), "holds no clip"),
    (("no json",), "line 1: not readable as JSON"), (("[1]",), "line 1: expected a JSON object, found list"),
    (("{",), "line 1: not readable"), ((CLIP, '{"file": "a"'), "line 2: not readable"),
    (({"text": "x"},), "line 1: names no file"), (({"file": "a.wav", "text": "x"},), "reference: expected a text"),
    ((CLIP | {"hypothesis": None},), "hypothesis: expected a text, found None"),
    ((CLIP | {"file": 3},), "file: expected a text, found 3"), ((CLIP | {"reference": ["a"]},), "reference: expected"),
    ((CLIP | {"loops": -1},), "loops: expected a whole number from 0"), ((CLIP | {"loops": True},), "loops: expected"),
    ((CLIP | {"loops": 10**30},), "loops: expected"), ((CLIP | {"audio_seconds": "9"},), "audio_seconds: expected"),
    ((json.dumps(CLIP)[:-1] + ', "audio_seconds": NaN}',), "audio_seconds: expected seconds"),
    ((json.dumps(CLIP)[:-1] + ', "wall_seconds": 1e999}',), "wall_seconds: expected seconds"),
    ((CLIP | {"segments": 3},), "segments: expected a list"),
    ((CLIP | {"segments": [3]},), "segments: expected objects"),
    ((CLIP | {"segments": [{"start": 0, "end": 1, "text": 5}]},), "text: expected a text, found 5"),
    ((CLIP | {"segments": [{"start": 0, "end": 1, "stop": "end"}]},), "stop: expected eos, length"),
    ((CLIP | {"segments": [{"start": 0, "end": 1, "loops": 3}]},), "loops of a segment: expected true or false"),
    ((CLIP | {"normalizer": "mine"},), "normalizer: expected ours, whisper or none, found 'mine'"),
    ((CLIP | {"normalizer": ["ours"]},), "normalizer: expected"), ((CLIP | {"task": "sing"},), "task: expected"),
    ((CLIP | {"language": 4},), "language: expected a text"),
    ((CLIP, CLIP | {"file": "b", "normalizer": "none"}), "clips scored by none and ours"),
    ((CLIP, {"measure": "wer"}, CLIP, {"measure": "wer"}), "two evaluations in one file"),
    ((CLIP, {"measure": "wer"}, CLIP), "two evaluations in one file"),
    (('{"file": "a", "file": "b"}',), "names 'file' twice"),
    (('{"file": "a", "reference": "\\ud800", "hypothesis": ""}',), "not readable as JSON"),
    (("[" * 100_000,), "not readable as JSON"),
])  # fmt: skip
def test_odd_lines_are_one_error(tmp_path, objects, said):
    with pytest.raises(DataError, match="expected the JSON lines") as left:
        read(tmp_path, *objects)
    assert said in str(left.value) and len(str(left.value)) < 1000 and "\n" not in str(left.value)


def test_files_that_are_no_results(tmp_path):
    (tmp_path / "b.jsonl").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "none.jsonl", tmp_path, tmp_path / "b.jsonl", "/dev/zero"):
        with pytest.raises(DataError, match="expected the JSON lines"):
            read_results(path)
    with pytest.raises(ConfigError, match="normalizer: expected"):
        read(tmp_path, CLIP, normalizer="theirs")
    with pytest.raises(DataError, match="cannot be written"):
        evaluation(*ROWS).save(tmp_path / "no" / "r.jsonl")


# ---- against ----

HERE = [(f"c{i:02}", "one two three four", "one two three four") for i in range(30)]
THERE = [(f"c{i:02}", "one two three four", "one and and and and" if i < 12 else "one two three", int(i < 12))
         for i in range(30)]  # fmt: skip


def test_what_moved_is_what_compare_says():
    found = evaluation(*HERE).against(evaluation(*THERE))
    rows = [[{"clip": s.name, "words": 4, "errors": s.errors, "loops": s.loops} for s in side]
            for side in (evaluation(*HERE), evaluation(*THERE))]  # fmt: skip
    wanted = compare(*rows)
    assert [(d.estimate, d.low, d.high) for d in found.differences()] == [
        (d.estimate, d.low, d.high) for d in (wanted.loop_rate, wanted.loop_free, wanted.total)
    ]
    assert found.moved == wanted.moved == ("loop_rate", "loop_free_wer", "wer")
    assert found.here == (0, 0, 0) and found.there == pytest.approx((0.4, 0.25, (12 * 4 + 18) / 120))
    assert found.to_dict()["differences"]["loop_rate"]["difference"] == pytest.approx(-0.4)
    back = evaluation(*THERE).against(evaluation(*HERE))
    assert [d.estimate for d in back.differences()] == pytest.approx([-d.estimate for d in found.differences()])
    assert "errors that changed most (there → here): c00 4 → 0" in str(found) and "clips in both: 30" in str(found)


def test_the_order_of_the_clips_does_not_count():
    found = evaluation(*HERE).against(evaluation(*THERE[::-1]))
    assert found.to_dict() == evaluation(*HERE).against(evaluation(*THERE)).to_dict()


def test_clips_of_one_side_are_left_out_and_named():
    there = [*THERE[:20], ("c20", "one two three four", None), ("other", "x", "x")]
    found = evaluation(*HERE).against(evaluation(*there))
    assert found.clips == 20 and found.only_here == tuple(f"c{i}" for i in range(20, 30))
    assert found.only_there == ("c20", "other") or found.only_there == ("other",)
    assert "clips in both: 20; left out: 10 only here (c20, c21, c22 and 7 more)" in str(found)


def test_folders_that_moved_do_not_count_but_those_that_tell_clips_apart_do():
    here = [(f"/new/home/{p}", "one two", "one") for p in ("a/1.wav", "b/1.wav", "b/2.wav")]
    there = [(f"old/{p}", "one two", "one two" if p == "b/1.wav" else "one") for p in ("b/1.wav", "a/1.wav", "b/2.wav")]
    found = evaluation(*here).against(evaluation(*there))
    assert found.clips == 3 and found.changed == (("/new/home/b/1.wav", 1, 0),)


def test_a_recording_that_comes_twice_is_paired_in_order():
    rows = [("a.wav", "one", "one"), ("a.wav", "two", "two"), ("b.wav", "three", "three")]
    assert evaluation(*rows).against(evaluation(*rows)).clips == 3


@pytest.mark.parametrize(("there", "said"), [
    ([("c00", "one two three five", "one"), *THERE[1:]], "c00: the reference text is not that of the other evaluation"),
    ([("c00", "", ""), *THERE[1:]], "c00: the reference text"),
    ([("c00", "...", ""), *THERE[1:]], "c00: the reference text"),
    ([("d", "x", "x"), ("e", "y", "y")], "0 clips in common"),
    (THERE[:1], "1 clips in common"), ([], "0 clips in common"),
])  # fmt: skip
def test_what_cannot_be_compared(there, said):
    with pytest.raises(DataError) as left:
        evaluation(*HERE).against(evaluation(*there))
    assert said in str(left.value) and len(str(left.value)) < 1000


def test_silence_is_not_a_text_without_words():
    with pytest.raises(DataError, match="c00: the reference text"):
        evaluation(("c00", "...", ""), *HERE[1:]).against(evaluation(("c00", "", ""), *THERE[1:]))


def test_spelling_that_the_normaliser_makes_alike_is_the_same_text():
    there = [(n, "One two, three four!", heard) for n, _, heard in HERE]
    assert evaluation(*HERE).against(evaluation(*there)).clips == 30


def test_another_normaliser_is_refused():
    with pytest.raises(DataError, match="scored by normalizer none, this one by ours: give the same to both"):
        evaluation(*HERE).against(evaluation(*THERE, normalizer="none"))


def test_where_everything_loops_errors_without_loops_are_unknown():
    looping = [(n, said, "and " * 40, 1) for n, said, _ in HERE]
    found = evaluation(*HERE).against(evaluation(*looping))
    assert found.moved == ("loop_rate", "wer") and found.change.loop_free.n_clips == 0
    assert "no bound" in str(found) and not found.change.loop_free.is_bounded


def test_silence_is_compared_apart():
    quiet = [(f"s{i}", "", "") for i in range(12)]
    loud = [(f"s{i}", "", "thank you") for i in range(12)]
    found = evaluation(*HERE, *quiet).against(evaluation(*HERE, *loud))
    assert found.moved == ("hallucination_rate",) and found.silence.estimate == -1
    assert found.change.total.n_clips == 30 and found.change.loop_rate.n_clips == 42
    assert "words in silence           0.0%  100.0%" in str(found)


def test_chinese_is_compared_by_characters():
    said = ["今天天气很好", "我们去公园吧", "你好"]
    here, there = ([(str(i), t, t[:-1] if cut else t) for i, t in enumerate(said)] for cut in (True, False))
    found = evaluation(*here).against(evaluation(*there))
    assert [d.measure for d in found.differences()] == ["loop_rate", "loop_free_mixed", "mixed"]
    assert found.here[2] == pytest.approx(3 / 14) and score("0", said[0], said[0][:-1]).mixed_counts == (6, 1)
