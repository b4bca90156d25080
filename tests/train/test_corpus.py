"""The corpus on disk: what is indexed, what is left out, shards."""

import corpora
import numpy as np
import pytest

from stepaudio.errors import DataError
from stepaudio.train import corpus
from stepaudio.train.corpus import Corpus

RATE = 16_000


def test_clips_and_samples(tmp_path, encode):
    samples = corpora.write(tmp_path / "c")
    stock = Corpus([tmp_path / "c"], encode)
    assert stock.hours == pytest.approx(5 * 0.6 / 3600) and len(stock.shards) == 1
    pcm = stock.samples(0)
    for clip in stock.shards[0]:
        i = corpora.TEXTS.index(clip["text"])
        np.testing.assert_array_equal(
            pcm[clip["start"] : clip["start"] + clip["n"]], samples[i * 9600 : (i + 1) * 9600]
        )
        assert clip["tokens"] == encode(corpora.TEXTS[i])


@pytest.mark.parametrize("tail", [b'{"id": "9", "offset": 0, "n_sam', b'{"id": "9", "text": "caf\xc3', b"\n"])
def test_an_unfinished_last_line_is_left_out(tmp_path, encode, tail):
    corpora.write(tmp_path / "c", tail=tail)
    assert sum(map(len, Corpus([tmp_path / "c"], encode).shards)) == 5


def test_clips_whose_samples_are_not_yet_there(tmp_path, encode):
    samples = corpora.write(tmp_path / "c")
    samples[:-1].tofile(tmp_path / "c" / "a.pcm")
    corpora.write(tmp_path / "c", name="b")
    (tmp_path / "c" / "b.pcm").unlink()
    assert sorted(c["text"] for c in Corpus([tmp_path / "c"], encode).shards[0]) == sorted(corpora.TEXTS[:4])


def test_texts_by_id_and_lengths(tmp_path, encode):
    lines = corpora.clip_lines()
    for line in lines[:3]:
        del line["text"]
    del lines[4]["id"]  # its text stands in the line
    corpora.write(tmp_path / "c", lines)
    (tmp_path / "t.jsonl").write_text('{"id": "0", "text": "the time now"}\n{"id": "1", "text": "what is"}\n')
    found = Corpus([tmp_path / "c"], encode, tmp_path / "t.jsonl").shards[0]
    assert sorted(c["text"] for c in found) == sorted(["the time now", "what is", "what is", "the time now"])
    with pytest.raises(DataError, match="no clips"):
        Corpus([tmp_path / "c"], encode, max_seconds=0.5)


def test_shards_hold_every_clip_once(tmp_path, encode, monkeypatch):
    monkeypatch.setattr(corpus, "SHARD_SAMPLES", 20_000)
    corpora.write(tmp_path / "c")
    stock = Corpus([tmp_path / "c"], encode)
    assert [len(s) for s in stock.shards] == [2, 2, 1]
    assert sorted(c["text"] for s in stock.shards for c in s) == sorted(corpora.TEXTS)
    assert len({stock.samples(i).shape for i in range(3)}) == 1
