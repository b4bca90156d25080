"""From recordings to text with times: on a decoder made of plain Python, and on the tiny model."""

import json

import numpy as np
import pytest
import soundfile as sf
import tiny

from stepaudio.decoding.generate import Run
from stepaudio.decoding.loop_detector import Loop
from stepaudio.decoding.sampling import Sampling
from stepaudio.errors import AudioError
from stepaudio.model import StepAudio2
from stepaudio.transcribe import transcribe_segments

END = 9


class Decoder:
    """Answers each segment with its length in tenths of a second, and remembers what it was given."""

    def __init__(self, loop=None):
        self.groups, self.loop = [], loop

    def __call__(self, segments):
        self.groups.append([len(p) for p in segments])
        return [Run((round(len(p) / 1600), END), (-1.0, -2.0), "eos", self.loop) for p in segments]


def to_text(tokens):
    return " ".join(f" {i}" for i in tokens)


def run(recordings, batch=8, decode=None, **options):
    return transcribe_segments(recordings, decode or Decoder(), to_text, frozenset([END]), batch, **options)


# ---- cutting, joining, times ----


def test_segments_cover_a_long_recording():
    x = tiny.bursts(70, [(20, 21), (43, 44)])
    (found,) = run([x])
    times = [(s.start, s.end) for s in found.segments]
    assert times[0][0] == 0 and times[-1][1] == pytest.approx(70) == found.audio_seconds
    assert [a for a, _ in times[1:]] == [b for _, b in times[:-1]]
    assert all(end - start <= 25 for start, end in times)
    assert 20 < times[0][1] < 21 and 43 < times[1][1] < 44  # cut in the pauses
    assert [s.tokens for s in found.segments] == [(round((b - a) * 10),) for a, b in times]
    assert found.text == " ".join(str(s.tokens[0]) for s in found.segments)


def test_the_end_mark_is_cut_off_and_counted():
    found = run([tiny.noise(1)])[0].segments[0]
    assert (found.tokens, found.stop, found.mean_logprob, found.loop) == ((10,), "eos", -1.5, None)


def test_the_last_id_of_another_stop_stays():
    def decode(segments):
        return [Run((3, 4), (-1.0, -1.0), "length") for _ in segments]

    assert run([tiny.noise(1)], decode=decode)[0].segments[0].tokens == (3, 4)


def test_silence_is_not_decoded():
    decode = Decoder()
    quiet, loud = run([np.zeros(32_000, np.float32), tiny.noise(1)], decode=decode)
    assert decode.groups == [[16_000]]
    assert (quiet.text, quiet.segments[0].stop, quiet.segments[0].tokens) == ("", "silence", ())
    assert (quiet.segments[0].start, quiet.segments[0].end) == (0, 2) and loud.text == "10"


def test_silent_pieces_leave_no_gap_in_text_or_time():
    x = np.concatenate([tiny.noise(20), np.zeros(16_000 * 25, np.float32), tiny.noise(20, seed=1)])
    (found,) = run([x])
    assert {"silence", "eos"} == {s.stop for s in found.segments}
    assert "  " not in found.text and found.segments[-1].end == 65


def test_speech_keeps_its_times_whatever_silence_lies_around():
    """3 s of sound from 6 s on, 2 s from 20 s on: what is decoded lies there, and the rest is said to be skipped."""
    x = np.zeros(16_000 * 30, np.float32)
    x[6 * 16_000 : 9 * 16_000], x[20 * 16_000 : 22 * 16_000] = tiny.noise(3), tiny.noise(2, seed=1)
    (found,) = run([x])
    spoken = [(s.start, s.end) for s in found.segments if s.stop != "silence"]
    assert np.allclose(spoken, [(5.5, 9.5), (19.5, 22.5)], atol=0.05)
    assert found.skipped == tuple((s.start, s.end) for s in found.segments if s.stop == "silence")
    assert np.allclose(found.skipped, [(0, 5.5), (9.5, 19.5), (22.5, 30)], atol=0.05)
    assert found.skipped_seconds == pytest.approx(23, abs=0.1)
    assert [s.end for s in found.segments[:-1]] == [s.start for s in found.segments[1:]]
    assert (found.segments[0].start, found.segments[-1].end) == (0, 30)
    assert found.to_dict()["skipped"] == found.skipped and json.loads(found.to_json())["skipped_seconds"] > 22
    assert found.to_srt().count("-->") == 2 and "00:00:05,480 --> 00:00:09,520" in found.to_srt()


def test_without_a_detector_everything_is_decoded():
    decode = Decoder()
    found = run([np.zeros(16_000 * 30, np.float32)], decode=decode, vad="off")[0]
    assert sum(map(sum, decode.groups)) == 16_000 * 30 and found.skipped == ()


def test_any_detector():
    decode = Decoder()
    found = run([tiny.noise(20)], decode=decode, vad=lambda samples, rate: [(4 * rate, 5 * rate)])[0]
    assert decode.groups == [[2 * 16_000]] and found.skipped == ((0, 3.5), (5.5, 20))


def test_like_lengths_share_a_batch_and_order_is_kept():
    decode = Decoder()
    lengths = [3, 1, 2, 5, 4]
    found = run([tiny.noise(s, seed=s) for s in lengths], batch=2, decode=decode)
    assert decode.groups == [[80_000, 64_000], [48_000, 32_000], [16_000]]
    assert [t.text for t in found] == ["30", "10", "20", "50", "40"]


def test_wall_time_is_shared_by_length():
    def slow(segments):
        import time

        time.sleep(0.04)
        return Decoder()(segments)

    a, b = run([tiny.noise(3), tiny.noise(1)], decode=slow)
    assert a.wall_seconds == pytest.approx(3 * b.wall_seconds) and a.wall_seconds + b.wall_seconds >= 0.04
    assert a.real_time_factor == pytest.approx(a.wall_seconds / 3)


def test_loops_are_counted_and_told():
    (found,) = run([tiny.noise(1)], decode=Decoder(Loop(2, 5, 4.5)))
    assert found.loops == 1 and found.segments[0].loop == {"period": 2, "onset": 5, "repeats": 4.5}
    assert found.to_dict()["segments"][0]["loop"]["onset"] == 5


def test_no_tokenizer_means_no_text_even_for_silence():
    found = transcribe_segments(
        [tiny.noise(1), np.zeros(16_000, np.float32)], Decoder(), lambda tokens: None, frozenset(), 1
    )
    assert [t.text for t in found] == [None, None] and found[1].segments[0].text is None


def test_no_recording_no_transcript():
    assert run([]) == []


def test_a_short_limit_is_kept():
    """An encoder with few positions: the search for a pause shrinks with the limit."""
    (found,) = run([tiny.noise(3)], max_seconds=0.7)
    assert max(s.end - s.start for s in found.segments) <= 0.7


def test_what_is_no_recording_is_refused():
    for bad in (np.zeros(0, np.float32), np.full(16_000, np.nan, np.float32), np.zeros((2, 16_000), np.float32)):
        with pytest.raises(AudioError):
            run([bad])


# ---- progress ----


def test_bar_only_when_asked_or_long_and_on_a_terminal(capsys, monkeypatch):
    run([tiny.noise(2)])
    run([tiny.noise(70)])  # long, but stderr is no terminal
    out, err = capsys.readouterr()
    assert (out, err) == ("", "")
    run([tiny.noise(2)], progress=True)
    out, err = capsys.readouterr()
    assert out == "" and "s of audio" in err


def test_bar_on_a_terminal(capsys, monkeypatch):
    import sys

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    run([tiny.noise(2)])
    assert capsys.readouterr().err == ""
    run([tiny.noise(70)])
    assert "s of audio" in capsys.readouterr().err
    run([tiny.noise(70)], progress=False)
    assert capsys.readouterr().err == ""


# ---- through the tiny model ----


def answers(transcript):
    return [(s.start, s.end, s.tokens, s.stop) for s in transcript.segments]


def test_file_array_and_rate_go_the_same_way(tiny_model, tmp_path):
    x = tiny.noise(2)
    sf.write(tmp_path / "a.wav", x, 16_000, subtype="FLOAT")
    of_file = tiny_model.transcribe(tmp_path / "a.wav", max_tokens=12)
    for found in (
        tiny_model.transcribe(x, max_tokens=12),
        tiny_model.transcribe(x, sr=16_000, max_tokens=12),
        tiny_model.transcribe(str(tmp_path / "a.wav"), max_tokens=12),
        tiny_model.transcribe([x], max_tokens=12)[0],
    ):
        assert answers(found) == answers(of_file) and found.text == of_file.text
    assert of_file.audio_seconds == 2 and of_file.wall_seconds > 0


def test_another_rate_and_channel(tiny_model):
    x = np.repeat(tiny.noise(1), 2)
    stereo = np.stack([x, tiny.noise(2, seed=5)], axis=1)
    first = tiny_model.transcribe(x, sample_rate=32_000, max_tokens=5)
    assert answers(tiny_model.transcribe(stereo, sr=32_000, max_tokens=5)) == answers(first)
    assert first.audio_seconds == 1


def test_a_batch_gives_the_ids_of_each_alone(tiny_model):
    clips = [tiny.noise(s, seed=i, level=0.02 * (i + 1)) for i, s in enumerate((1, 2.2, 0.7, 3, 1.5))]
    options = {"max_tokens": 15, "sampling": Sampling.greedy()}
    together = tiny_model.transcribe(clips, batch=8, **options)
    alone = tiny_model.transcribe(clips, batch=1, **options)
    assert [answers(t) for t in together] == [answers(t) for t in alone]
    assert len({t.segments[0].tokens for t in alone}) > 1  # the answers do depend on the audio


def test_a_cache_limit_that_could_bite_runs_one_by_one(tiny_model):
    from stepaudio.models.kv_cache import CachePolicy

    clips = [tiny.noise(1, seed=i) for i in range(2)]
    found = tiny_model.transcribe(clips, batch=2, cache=CachePolicy("sinks", 64), max_tokens=30)
    one = tiny_model.transcribe(clips[1], cache=CachePolicy("sinks", 64), max_tokens=30)
    assert answers(found[1]) == answers(one)


def test_long_recording_through_the_model(tiny_model):
    x = tiny.bursts(60, [(22, 23), (44, 45)])
    found = tiny_model.transcribe(x, max_tokens=4, progress=False)
    assert len(found.segments) >= 3 and found.segments[-1].end == 60
    segment = found.segments[1]
    alone = tiny_model.transcribe(x[round(segment.start * 16_000) : round(segment.end * 16_000)], max_tokens=4)
    assert alone.segments[0].tokens == segment.tokens
    assert found.text == " ".join(s.text for s in found.segments if s.text)


def test_markers_and_codes_are_no_text(tiny_model):
    found = tiny_model.transcribe(tiny.noise(2), max_tokens=60, sampling=Sampling(temperature=1.5))
    assert any(i >= tiny_model.tokenizer.text_limit for s in found.segments for i in s.tokens)
    assert "<audio_" not in found.text and "<|" not in found.text


def test_seed_decides(tiny_model):
    def tokens(seed):
        return answers(
            tiny_model.transcribe(tiny.noise(1), max_tokens=20, sampling=Sampling(temperature=1.0, seed=seed))
        )

    assert tokens(4) == tokens(4) != tokens(5)


# ---- the bundled model ----


def test_nano_reads_a_bundled_recording(nano):
    from stepaudio.evaluation.manifest import read_manifest
    from stepaudio.evaluation.word_errors import count_errors
    from stepaudio.resources import speech_manifest

    model = StepAudio2.load(nano)
    clip = next(c for c in read_manifest(speech_manifest()) if c.text)
    words, errors = count_errors(clip.text, model.transcribe(clip.file, sampling=Sampling.reference()).text)
    assert errors <= words / 2


def test_nano_says_nothing_on_silence(nano):
    assert StepAudio2.load(nano).transcribe(np.zeros(32_000, np.float32)).text == ""


QUIET, LOUD = 0.01, 0.8
NOISE = [(colour, level) for colour in (0, 1, 2) for level in (QUIET, LOUD)]  # white, pink, brown


def noise_segments(seconds: int, kinds: list[tuple[int, float]]) -> list[np.ndarray]:
    rng, segments = np.random.default_rng(seconds), []
    for colour, level in kinds:
        x = np.fft.rfft(rng.standard_normal(seconds * 16_000))
        x = np.fft.irfft(x * (np.arange(len(x)) / seconds + 6.0) ** (-0.5 * colour))
        segments.append((level * x / np.abs(x).max()).astype(np.float32))
    return segments


@pytest.mark.parametrize(
    ("seconds", "kinds"),
    [
        (1, NOISE),
        (6, NOISE),
        (15, [(0, LOUD), (2, QUIET)]),
        (24, [(1, LOUD)]),
        *(pytest.param(seconds, NOISE, marks=pytest.mark.slow) for seconds in (15, 21, 24)),
    ],
)
def test_nano_says_nothing_on_noise(nano, seconds, kinds):
    """Of lengths that a segment may have, white, pink and brown, loud and quiet."""
    found = StepAudio2.load(nano).transcribe(noise_segments(seconds, kinds), sampling=Sampling.reference())
    assert [t.text for t in found] == [""] * len(kinds)
