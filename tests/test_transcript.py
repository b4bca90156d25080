"""A transcript shows itself and is written in every format, as the formats' own readers see it."""

import io
import json
import xml.dom.minidom

import pytest
import tiny

import stepaudio

FEW = {"max_tokens": 6}


def test_a_transcript_shows_itself(tiny_model):
    found = tiny_model.transcribe(tiny.bursts(40, [(19, 20)]), sr=16_000, **FEW)
    assert str(found) == found.text and len(found.segments) == 2 and found._repr_html_().count("<tr>") == 3
    table = xml.dom.minidom.parseString(f"<div>{TWO._repr_html_()}</div>")
    head, *rows = [
        [cell.firstChild.data if cell.firstChild else "" for cell in row.childNodes]
        for row in table.getElementsByTagName("tr")
    ]
    assert head == ["start", "end", "text", "stop", "logprob"]
    assert rows == [
        ["0.00", "1.50", "yes & <no>", "eos", "-0.10"],
        ["1.50", "2.00", "", "silence", ""],
        ["3661.06", "3662.00", "two\nlines", "eos", "-0.10"],
    ]


TWO = stepaudio.Transcript(
    "yes & <no> two\nlines",
    (
        stepaudio.Segment(0, 1.5, "yes & <no>", (1,), "eos", -0.1),
        stepaudio.Segment(1.5, 2, "", (), "silence", 0.0),
        stepaudio.Segment(3661.0625, 3662, "two\nlines", (2,), "eos", -0.1),
    ),
    3662.0,
    1.0,
)


def test_formats_of_a_transcript(tmp_path):
    """The shapes that the formats' own documents show: SubRip, WebVTT, a table that `csv` reads."""
    import csv

    files = {
        form: TWO.save(tmp_path / f"a.{form}").read_text(encoding="utf-8")
        for form in ("txt", "json", "srt", "vtt", "tsv")
    }
    assert files["srt"] == (
        "1\n00:00:00,000 --> 00:00:01,500\nyes & <no>\n\n2\n01:01:01,062 --> 01:01:02,000\ntwo\nlines\n\n"
    )
    assert files["vtt"].startswith("WEBVTT\n\n00:00:00.000 --> 00:00:01.500\nyes &amp; &lt;no&gt;\n\n01:01:01.062")
    rows = list(csv.DictReader(io.StringIO(files["tsv"]), delimiter="\t"))
    assert [(r["start"], r["end"], r["text"]) for r in rows] == [
        ("0", "1500", "yes & <no>"),
        ("3661062", "3662000", "two lines"),
    ]
    assert json.loads(files["json"])["segments"][2]["tokens"] == [2] and files["txt"] == "yes & <no> two\nlines\n"
    assert files["srt"] == TWO.to_srt() == TWO.to("srt") and TWO.to("text") == TWO.to_txt()


def test_places_and_names_that_cannot_be_saved(tmp_path, tiny_checkpoint):
    from stepaudio.errors import DataError

    for name, message in (("a.doc", ".txt, .json"), ("none/a.srt", "cannot be written")):
        with pytest.raises(DataError, match=message):
            TWO.save(tmp_path / name)
    mute = stepaudio.Transcript(None, (), 1.0, 1.0)
    with pytest.raises(DataError, match="tokenizer=None"):
        mute.to_srt()
    assert json.loads(mute.to_json())["text"] is None and list(tmp_path.iterdir()) == []
