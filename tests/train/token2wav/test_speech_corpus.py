"""The corpus of token2wav: clips in one array by speaker, bounds, refusals, places of excerpts."""

import json

import numpy as np
import pytest
from speech_corpus import RATE, write_clips

from stepaudio.errors import DataError
from stepaudio.train.token2wav.corpus import (
    CODE_HOP,
    F0_HOP,
    LEAD,
    PHONEME_HOP,
    SpeechCorpus,
    relative_log_f0,
    sounding,
)


def test_clips_are_sorted_by_speaker_with_all_that_belongs_to_them(tmp_path):
    """Each stretch of the array is a clip of the file, its F0 and its phonemes beside it."""
    folder = write_clips(tmp_path / "s", speakers=3, each=2)
    found = SpeechCorpus([folder])
    assert found.speakers == [0, 1, 2] and found.edges.tolist() == [0, 2 * RATE, 4 * RATE, 6 * RATE]
    assert found.hours == pytest.approx(6 / 3600)
    raw, f0 = np.fromfile(folder / "a.pcm", np.int16), np.fromfile(folder / "a.f0", np.float16)
    for at in range(0, 6 * RATE, RATE):
        hertz = found.f0[at // F0_HOP]
        clip = int(np.flatnonzero(f0 == hertz)[0]) // (RATE // F0_HOP)
        assert (found.pcm[at : at + RATE] == raw[clip * RATE : (clip + 1) * RATE]).all()
        labels = found.phonemes[at // PHONEME_HOP : (at + RATE) // PHONEME_HOP]
        assert set(labels[: -1 - LEAD]) == {61 + clip % 3} and set(labels[-1 - LEAD :]) == {1}


SPACE, STRESS, K, A, R, LONG, STOP = 16, 156, 53, 69, 123, 158, 4


@pytest.mark.parametrize(
    ("ids", "durations", "expected"),
    [
        ([0, K, STRESS, A, 0], [1, 2, 2, 3, 1], [0, K, K, K, A, A, A, A, 0]),
        ([0, K, STRESS, A, 0], [1, 1, 3, 1, 1], [0, K, K, K, A, A, 0]),
        ([0, A, SPACE, K, 0], [1, 1, 1, 1, 1], [0, A, A, K, 0]),
        ([0, R, SPACE, STRESS, A, 0], [1, 1, 1, 3, 1, 1], [0, R, R, R, A, A, A, 0]),
        ([0, STRESS, A, LONG, SPACE, K, 0], [2, 2, 1, 3, 2, 1, 1], [0, 0, 0, A, A, A, A, A, A, K, K, 0]),
        ([0, A, STOP, SPACE, K, STOP, 0], [1, 1, 3, 2, 1, 2, 1], [0, A, 0, 0, 0, 0, K, K, 0, 0, 0]),
    ],
)
def test_frames_of_marks_belong_to_the_sounds_beside_them(ids, durations, expected):
    """A run of marks is halved, a length mark is its vowel's, all pauses are silence."""
    assert sounding(ids, durations).tolist() == expected


def test_hours_bound_the_corpus_and_unfinished_lines_are_left_out(tmp_path):
    folder = write_clips(tmp_path / "s", speakers=1, each=6)
    assert SpeechCorpus([folder], hours=2.5 / 3600).hours == pytest.approx(2 / 3600)
    text = (folder / "a.jsonl").read_text()
    (folder / "a.jsonl").write_text(text[:-20])
    assert SpeechCorpus([folder]).hours == pytest.approx(5 / 3600)


def test_a_clip_that_is_no_whole_number_of_codes_is_refused(tmp_path):
    folder = write_clips(tmp_path / "s", speakers=1, each=1, seconds=1.0)
    line = json.loads((folder / "a.jsonl").read_text())
    (folder / "a.jsonl").write_text(json.dumps(line | {"n_samples": RATE - 600}) + "\n")
    with pytest.raises(DataError, match="whole number of codes"):
        SpeechCorpus([folder])
    with pytest.raises(DataError, match="no clips"):
        SpeechCorpus([tmp_path])


def test_windows_lie_within_one_speaker(corpus):
    """Starts are whole codes; a window and its speaker agree; too long a window is refused."""
    start, who = corpus.windows(np.random.default_rng(0), 200, 2 * RATE)
    assert (start % CODE_HOP == 0).all() and set(who) == {0, 1}
    assert (start >= corpus.edges[who]).all() and (start + 2 * RATE <= corpus.edges[who + 1]).all()
    with pytest.raises(DataError, match=r"no speaker has 5\.0 s"):
        corpus.windows(np.random.default_rng(0), 4, 5 * RATE)


def test_log_f0_is_relative_to_the_mean_of_the_clip():
    assert np.allclose(
        relative_log_f0(np.array([0, 100, 400, 0], np.float32)), [0, -np.log(2), np.log(2), 0], atol=1e-6
    )
    assert (relative_log_f0(np.zeros(5, np.float32)) == 0).all()
