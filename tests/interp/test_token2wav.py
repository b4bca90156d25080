"""What the laboratory says of speech: text between codes, stages, round trips, streams beside the whole."""

import warnings
from itertools import groupby

import mlx.core as mx
import numpy as np
import pytest
from tiny import noise

from stepaudio.decoding.outputs import Generation, Piece
from stepaudio.errors import AudioError, ConfigError, DecodeError, WeightsError
from stepaudio.interp import streaming
from stepaudio.interp import token2wav as speaking
from stepaudio.models.token2wav.flow import FlowOptions
from stepaudio.models.token2wav.noise import noise_frames
from stepaudio.synthesis.streaming import StreamOptions
from stepaudio.synthesis.voice import Voice

QUICK = FlowOptions(2)
STREAM = StreamOptions(QUICK)
RATE = 24_000


def codes(n: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, 81, n).tolist()


# ---- text between codes ----


def answer(letters_in_order: str, stop: str = "eos") -> Generation:
    """`tcpm`: one text id, one code, one padding code, one marker."""
    kind = {"t": "text", "c": "codes", "p": "padding", "m": "marker"}
    pieces, start = [], 0
    for letters in ["".join(g) for _, g in groupby(letters_in_order)]:
        pieces.append(Piece(kind[letters[0]], start, tuple(range(start, start + len(letters)))))
        start += len(letters)
    return Generation(tuple(range(len(letters_in_order))), None, (), stop, 0.0, pieces=tuple(pieces))


def test_interleaving_by_hand():
    found = speaking.interleaving(answer("mttcccpcctt", "length"))
    assert [speaking.KINDS[k] for k in found.kinds] == [
        "marker",
        "text",
        "text",
        "codes",
        "codes",
        "codes",
        "padding",
        "codes",
        "codes",
        "text",
        "text",
    ]
    np.testing.assert_allclose(found.seconds * 25, [0, 0, 0, 0, 1, 2, 3, 3, 4, 5, 5])
    assert (found.n_text, found.n_codes, found.n_padding, found.codes_per_text) == (4, 5, 1, 1.25)
    assert found.unvoiced_text == 2 and found.end_is_missing


def test_an_answer_that_ended_and_one_without_text():
    found = speaking.interleaving(answer("mtc"))
    assert not found.end_is_missing and found.unvoiced_text == 0
    assert np.isnan(speaking.interleaving(answer("mcc")).codes_per_text)
    assert speaking.interleaving(answer("tt")).unvoiced_text == 2
    with pytest.raises(ConfigError, match="no tokens"):
        speaking.interleaving(answer(""))


# ---- stages ----


def test_stages_end_as_decode_does(synthesizer, voices):
    found = speaking.stages(synthesizer, codes(9), voices[0], noise=4, source_noise=5, options=QUICK)
    sound = synthesizer.decode(codes(9), voices[0], noise=4, source_noise=5, options=QUICK)
    assert np.array_equal(found.wave, sound.wave) and np.array_equal(found.mel, sound.mel)
    assert found.steps.shape == (3, 18, 4) and found.mu.shape == (18, 4) and found.f0.shape == (18,)
    assert found.source.shape == found.wave.shape == (9 * 960,) and found.frames_per_second == 50


def test_stages_follow_from_each_other(synthesizer, voices):
    """Each stage recomputed from the one before by the net that makes it."""
    found = speaking.stages(synthesizer, codes(9), voices[0], noise=4, source_noise=5, options=QUICK)
    parts, skip = synthesizer.parts, len(voices[0].mel)
    np.testing.assert_array_equal(found.steps[0], np.array(noise_frames(4, skip, 18, 4))[0])
    mel = mx.array(found.mel)[None]
    np.testing.assert_allclose(found.f0, np.array(parts.hift.f0_predictor(mel))[0], rtol=1e-5)
    again = parts.hift.decode(mel, mx.array(found.source)[None])
    np.testing.assert_allclose(found.wave, np.array(again)[0], atol=1e-5)
    flow, rows = parts.flow, np.concatenate([voices[0].codes, codes(9)])[None]
    h, _ = flow.encoder(flow.embed(rows))
    np.testing.assert_allclose(found.mu, np.array(flow.encoder_proj(h))[0, skip:], rtol=1e-4, atol=1e-5)


def test_the_table_of_stages(synthesizer, voices):
    lines = speaking.stages(synthesizer, codes(9), voices[0], options=QUICK).table().splitlines()
    assert [line.split()[0] for line in lines] == ["stage", "codes", "mu", "noise", "mel", "f0", "source", "wave"]
    assert [line.split()[2] for line in lines[1:]] == ["25", "50", "50", "50", "50", "24000", "24000"]
    assert lines[3].split()[1] == "18×4" and lines[-1].split()[1] == "8640"


@pytest.mark.parametrize("bad", [[], [1.5], [[1, 2]]])
def test_stages_of_no_codes(synthesizer, voices, bad):
    with pytest.raises(DecodeError, match="at least one"):
        speaking.stages(synthesizer, bad, voices[0])


def test_stages_in_a_voice_of_other_weights(synthesizer, voices):
    other = Voice(voices[0].codes, voices[0].mel, voices[0].speaker, "0" * 64)
    for run in (speaking.stages, streaming.streamed):
        with pytest.raises(WeightsError, match="other weights"):
            run(synthesizer, [1], other)


# ---- round trip ----


def test_round_trip_is_the_way_by_hand(synthesizer):
    clip = noise(1.5, 3)
    found = speaking.round_trip(synthesizer, clip, options=QUICK)
    sound = synthesizer.decode(found.before.codes.tolist(), found.before, options=QUICK)
    again = Voice.from_clip(synthesizer.parts, sound.wave, sample_rate=RATE)
    assert found.before == synthesizer.voice(clip) and found.after == again
    assert found.agreement == np.mean(found.before.codes == again.codes)
    assert found.mel_distance_db == pytest.approx(8.6859 * np.abs(found.before.mel - again.mel).mean(), rel=1e-4)
    assert [line.split()[-2 if line.endswith("dB") else -1] for line in found.table().splitlines()] == [
        f"{found.agreement:.1%}",
        f"{found.by_chance:.1%}",
        f"{found.speaker_cosine:.2f}",
        f"{found.mel_distance_db:.1f}",
    ]


def test_a_voice_compared_with_itself_and_with_another():
    rng = np.random.default_rng(0)
    a = Voice(np.arange(10), rng.normal(size=(20, 4)), np.array([1.0, 2, 0]), "w")
    same = speaking.compare_voices(a, a)
    assert (same.agreement, same.by_chance, same.mel_distance_db) == (1, 0, 0)
    assert same.speaker_cosine == pytest.approx(1)
    b = Voice([0, 1, 9, 3], a.mel[:8] + np.log(10) / 20, np.array([-4.0, 2, 1]), "w")  # 1 dB up, at right angles
    other = speaking.compare_voices(a, b)
    assert other.agreement == 0.75 and other.speaker_cosine == pytest.approx(0, abs=1e-7)
    assert other.mel_distance_db == pytest.approx(1, rel=1e-5)


def test_silence_has_no_round_trip(synthesizer):
    with pytest.raises(AudioError, match="silent"):
        speaking.round_trip(synthesizer, np.zeros(32_000, np.float32))


# ---- streams ----


@pytest.fixture(scope="module")
def run(synthesizer, voices):
    return streaming.streamed(synthesizer, codes(110), voices[0], options=STREAM)


def test_a_traced_stream_is_the_stream(synthesizer, voices, run):
    chunks = list(synthesizer.stream(codes(110), voices[0], options=STREAM))
    assert np.array_equal(run.wave, np.concatenate([c.wave for c in chunks]))
    assert [c.start for c in run.chunks] == [c.start for c in chunks]
    assert [c.codes_taken for c in run.chunks] == [c.n_codes for c in chunks]
    assert run.boundaries.tolist() == [c.start for c in chunks[1:]] and run.first_sound == run.chunks[0].seconds > 0
    assert run.mel.shape == (220, 4) and (run.frame_samples, run.sample_rate) == (480, RATE)


def test_where_the_noise_of_a_stream_begins(synthesizer, voices, run):
    """Reported by the trace, and true: the noise given there alone makes the same sound."""
    prompt = len(voices[0].mel)
    assert [c.noise_start for c in run.chunks] == [prompt, prompt + 50, prompt + 100, prompt + 100, prompt + 100]
    assert [c.cache_frames for c in run.chunks] == [c.noise_start for c in run.chunks]
    by_place = streaming.streamed(
        synthesizer, codes(110), voices[0], options=StreamOptions(FlowOptions(2, noise="position"))
    )
    assert [c.noise_start for c in by_place.chunks] == [prompt + 50 * i for i in range(5)]
    few = noise_frames(0, 0, prompt + 150, 4)  # all that the reference's way ever asks for
    assert np.array_equal(
        run.mel, streaming.streamed(synthesizer, codes(110), voices[0], noise=few, options=STREAM).mel
    )
    with pytest.raises(DecodeError, match="too short|at least"):
        streaming.streamed(
            synthesizer, codes(110), voices[0], noise=few, options=StreamOptions(FlowOptions(2, noise="position"))
        )


def traced(*chunks) -> streaming.Streamed:
    """Chunks of (codes taken, seconds of sound, seconds of computing)."""
    made = [streaming.ChunkTrace(taken, 0, round(sound * RATE), 0, 0, 0, 0, took) for taken, sound, took in chunks]
    return streaming.Streamed(np.zeros((0, 4)), np.zeros(0), tuple(made), 0.0, 480, RATE)


def test_arrivals_and_waits_by_hand():
    quick = traced((28, 0.84, 0.1), (53, 1.0, 0.1), (60, 0.56, 0.1))
    np.testing.assert_allclose(quick.arrivals(28), [1.1, 53 / 28 + 0.1, 60 / 28 + 0.1])
    np.testing.assert_allclose(quick.waits(28), [0, 53 / 28 + 0.1 - 1.1 - 0.84, 0], atol=1e-12)
    early = traced((28, 2.0, 0.1), (30, 2.0, 0.1), (32, 2.0, 0.1), (140, 1.0, 0.1))  # played at 1.1, 3.1, 5.1 s
    np.testing.assert_allclose(early.arrivals(28), [1.1, 1.2, 1.3, 5.1])
    np.testing.assert_allclose(early.waits(28), 0)  # sound that is there early still plays in its turn
    slow = traced((28, 0.84, 2.0), (53, 1.0, 2.0), (60, 0.56, 2.0))  # computing holds up the next chunk
    np.testing.assert_allclose(slow.arrivals(28), [3, 5, 7])
    np.testing.assert_allclose(slow.waits(28), [0, 2 - 0.84, 1])


def test_a_stream_without_codes(synthesizer, voices):
    with pytest.raises(ConfigError, match="no codes"):
        streaming.streamed(synthesizer, [], voices[0])


def test_gap_says_what_its_parts_say(synthesizer, voices, run):
    found, again = streaming.gap(synthesizer, codes(110), voices[0], options=STREAM)
    assert np.array_equal(again.wave, run.wave)
    whole = synthesizer.decode(codes(110), voices[0], options=QUICK)
    assert found.mel == pytest.approx(8.6859 * np.abs(whole.mel - run.mel).mean(), rel=1e-4)
    assert found.mel_relative == pytest.approx(np.linalg.norm(whole.mel - run.mel) / np.linalg.norm(whole.mel))
    difference = whole.wave - run.wave
    assert found.wave == pytest.approx(10 * np.log10(np.sum(difference**2) / np.sum(whole.wave**2)), abs=1e-3)
    near = streaming.near_boundaries(run)
    assert np.flatnonzero(near).tolist() == [f for j in (50, 100, 150, 200) for f in range(j - 5, j + 6)]
    weighted = (found.mel_near * near.sum() + found.mel_far * (~near).sum()) / len(near)
    assert weighted == pytest.approx(found.mel)


def test_a_stream_of_one_chunk_has_no_boundaries(synthesizer, voices):
    found, run = streaming.gap(synthesizer, codes(20), voices[0], options=STREAM)
    assert len(run.chunks) == 1 and np.isnan(found.mel_near) and found.mel == found.mel_far
    # one chunk: the same codes, all at once, but in front of a prompt that was read alone
    assert found.vocoder_alone == 0


def test_a_vocoder_that_takes_one_chunk_changes_nothing(synthesizer, voices):
    whole = synthesizer.decode(codes(20), voices[0], options=QUICK)
    assert np.array_equal(streaming.vocoded_in_chunks(synthesizer, whole.mel, 1000), whole.wave)
    assert not np.array_equal(streaming.vocoded_in_chunks(synthesizer, whole.mel, 16), whole.wave)


# ---- differences ----


@pytest.mark.parametrize("shift", [0, 7, -300, 2_000])
def test_a_shifted_copy_is_found_and_differs_nowhere(shift):
    x = noise(1.0, 1)
    second = np.concatenate([np.zeros(shift, np.float32), x]) if shift >= 0 else x[-shift:]
    found = streaming.listening_difference(x, second, RATE)
    assert found.shift == shift and found.correlation == pytest.approx(1, abs=1e-6)
    assert np.abs(found.difference).max() == 0 and found.relative_db == streaming.FLOOR_DB
    assert len(found.first) == len(found.second) == min(len(x), len(second) - max(0, shift))


def test_a_difference_of_known_level():
    x, y = noise(1.0, 1), noise(1.0, 2)
    found = streaming.listening_difference(x, x + y / 10, RATE)
    assert found.shift == 0 and found.relative_db == pytest.approx(-20, abs=0.2)
    assert streaming.listening_difference(x, x, RATE, 0).shift == 0


@pytest.mark.parametrize("bad", [(np.zeros(0), np.ones(3)), (np.ones((2, 2)), np.ones(3))])
def test_differences_that_are_refused(bad):
    with pytest.raises(ConfigError, match="two waves"):
        streaming.listening_difference(*bad, RATE)
    with pytest.raises(ConfigError, match="one shape"):
        streaming.mel_distance_db(np.zeros((3, 4)), np.zeros((2, 4)))
    with pytest.raises(ConfigError, match="24000 Hz"):
        streaming.wave_mel_distance_db(np.zeros(2_000), np.zeros(2_000), 16_000)


def test_levels_in_db():
    half = np.full(960, 0.5, np.float32)
    found = streaming.level_db(np.concatenate([half, np.zeros(480, np.float32), half[:100]]), RATE)
    np.testing.assert_allclose(found, [-6.0206, -6.0206, -120, -6.0206], atol=1e-3)


def test_distances_are_decibels():
    """Sound ten times as loud is 20 dB away, up to the floor under the magnitudes."""
    x = noise(1.5, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_allclose(streaming.wave_mel_distance_db(x, 10 * x), 20, atol=0.05)
