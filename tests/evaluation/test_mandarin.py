"""The bundled sentences of Mandarin: counted by hand, and scored from sound to table."""

import json
from pathlib import Path

import pytest
import soundfile as sf
from scored import evaluation

from stepaudio.cli.main import main
from stepaudio.evaluation.manifest import read_manifest
from stepaudio.evaluation.scores import Evaluation

TABLE = Path(__file__).resolve().parents[2] / "data" / "mandarin" / "manifest.tsv"
# What somebody might hear, and what it costs, by hand: units, mixed errors, characters, character errors.
HEARD = {
    "weather.ogg": ("今天天气很好我们去公园吧", 12, 0, 12, 0),
    "book.ogg": ("请 把 这 本 书 放 在 桌子 上", 10, 0, 10, 0),
    "python.ogg": ("我喜欢用 python 些程序", 8, 1, 13, 1),  # 写 → 些
    "morning.ogg": ("他每天早上6点半起床", 10, 1, 10, 1),  # 六 → 6
    "noodles.ogg": ("这家餐厅面条非常好吃", 11, 1, 11, 1),  # 的 is missing
    "train.ogg": ("火车晚了20分钟", 8, 2, 8, 2),  # 二 → 20 and 十 missing; of characters, 2 and 0
    "english.ogg": ("你会说 English 吗？", 6, 2, 6, 7),  # 英 → english and 语 missing; seven letters for two characters
    "meeting.ogg": ("", 11, 11, 11, 11),
    "pause.ogg": ("谢谢观看", 0, 4, 0, 4),
}


def test_counts_by_hand():
    clips = read_manifest(TABLE)
    assert [clip.file.name for clip in clips] == list(HEARD) and {clip.language for clip in clips} == {"zh"}
    found = evaluation(*[(c.file.name, c.text, HEARD[c.file.name][0]) for c in clips], language="zh")
    for score in found:
        assert (*score.mixed_counts, *score.char_counts) == HEARD[score.name][1:], score.name
    t = found.totals()
    assert (t["measure"], t["mixed_units"], t["mixed_errors"]) == ("mixed", 76, 18)
    assert (t["chars"], t["char_errors"]) == (81, 23)
    assert (t["mixed"], t["cer"]) == (round(18 / 76, 4), round(23 / 81, 4))
    assert (t["hallucinated"], t["clips_without_speech"]) == (1, 1)


def test_normalisers_agree_but_for_punctuation():
    pytest.importorskip("whisper_normalizer")
    clips = read_manifest(TABLE)
    rows = [(c.file.name, c.text, HEARD[c.file.name][0]) for c in clips]
    t = evaluation(*rows, language="zh").totals()
    assert t["by_normalizer"]["whisper"]["mixed_errors"] == 18 and t["by_normalizer"]["whisper"]["kind"] == "basic"
    # 。，？ of the references are heard in one clip alone, and "Python" is written as "python": 9 - 1 + 1 more.
    assert evaluation(*rows, language="zh", normalizer="none").totals()["mixed_errors"] == 18 + 8 + 1


def test_sound_is_small_and_whole():
    files = sorted(TABLE.parent.glob("*.ogg"))
    assert {f.name for f in files} == set(HEARD) and sum(f.stat().st_size for f in files) < 300_000
    assert all(sf.info(f).samplerate == 16_000 and sf.info(f).channels == 1 for f in files)


def test_from_sound_to_table(nano, tmp_path, capsys):
    """The bundled model knows no Chinese and gets all of it wrong; the arithmetic must not."""
    status = main(["evaluate", str(TABLE), "--model", str(nano), "--sampling", "reference", "--json"])
    out, err = capsys.readouterr()
    *lines, last = map(json.loads, out.splitlines())
    assert (status, err) == (0, "")
    assert (last["measure"], last["mixed_units"], last["chars"], last["clips"]) == ("mixed", 76, 81, 9)
    (tmp_path / "r.jsonl").write_text(out, encoding="utf-8")
    again = Evaluation.read(tmp_path / "r.jsonl")
    assert [s.mixed_counts for s in again] == [(x["mixed_units"], x["mixed_errors"]) for x in lines]
    assert again.totals()["mixed_errors"] == last["mixed_errors"] and "mixed error rate" in str(again).splitlines()[-1]
