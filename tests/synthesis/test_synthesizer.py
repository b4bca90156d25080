"""Codes and voices to sound, whole and streamed: against the reference's own streams, and against themselves."""

import json
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import load_file

from stepaudio.checkpoints.token2wav import Token2Wav
from stepaudio.errors import ConfigError, DataError, DecodeError, WeightsError
from stepaudio.models.token2wav.campplus import SpeakerConfig, SpeakerEncoder
from stepaudio.models.token2wav.flow import FlowOptions
from stepaudio.models.token2wav.speech_tokenizer import S3Config, S3Tokenizer
from stepaudio.parity.golden import Golden
from stepaudio.parity.token2wav import CHAIN_SLACK, PCM_TOLERANCE, WAVE_TOLERANCE, flow_net, hift_net
from stepaudio.resources import VOICES, voice_clip
from stepaudio.synthesis.streaming import StreamOptions, to_pcm
from stepaudio.synthesis.synthesizer import Synthesizer
from stepaudio.synthesis.voice import Voice

PER_CODE = 960  # samples at 24 kHz


def codes(n: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, 81, n).tolist()


def joined(chunks) -> np.ndarray:
    return np.concatenate([c.wave for c in chunks])


# ---- the reference ----


@pytest.fixture
def reference(goldens):
    """The golden chain as a synthesizer (what makes voices is random and not used), its voice, codes and noise."""
    files = {
        n: Golden(json.loads((goldens / f"{n}.json").read_text())["config"], load_file(goldens / f"{n}.safetensors"))
        for n in ("flow", "hift", "token2wav")
    }
    flow, n_steps = flow_net(files["flow"])
    speaker = SpeakerEncoder(
        SpeakerConfig(
            embedding_size=192, growth_rate=2, bn_size=2, init_channels=4, blocks=((1, 3, 1),), fcm_channels=2
        )
    )
    small = S3Config(n_audio_state=16, n_audio_head=2, n_audio_layer=1, n_codebook_size=243)
    made = Synthesizer(Token2Wav(S3Tokenizer(small), speaker, flow, hift_net(files["hift"])))
    golden = files["token2wav"]
    voice = Voice(golden["in.prompt_token"][0], golden["in.prompt_mel"][0], golden["in.speaker"][0], made.weights)
    noise = {"noise": mx.array(files["flow"]["in.rand_noise"]).swapaxes(1, 2), "source_noise": None}
    return made, voice, golden, noise, FlowOptions(n_steps)


def test_whole_equals_the_reference(reference):
    made, voice, golden, noise, options = reference
    found = made.decode(golden["in.token"][0], voice, options=options, **noise)
    want = golden["out.offline.mel"][0].T
    assert np.abs(found.mel - want).max() <= 1e-3 * np.sqrt(np.mean(want**2))
    assert np.abs(found.wave - golden["out.offline.wav"][0]).max() <= WAVE_TOLERANCE * CHAIN_SLACK
    assert (found.n_codes, found.n_padding, found.sample_rate) == (87, 0, 24_000)


def test_stream_equals_the_reference(reference):
    """Chunk by chunk, with padding strewn in, and codes that come one at a time."""
    made, voice, golden, noise, options = reference
    strewn = (c for code in golden["in.token"][0] for c in (6561, int(code), 6655))
    chunks = list(made.stream(strewn, voice, options=StreamOptions(options), **noise))
    for i, chunk in enumerate(chunks):
        want = golden[f"out.stream{i}.pcm"]
        assert np.abs(to_pcm(chunk.wave).astype(int) - want).max() <= PCM_TOLERANCE * CHAIN_SLACK
    assert len(chunks) == 4 and (chunks[-1].n_codes, chunks[-1].n_padding) == (87, 174)


# ---- streams and voices beside each other ----


def test_two_streams_through_one_model(synthesizer, voices):
    """Their chunks taken in turns equal those of each alone, bit for bit."""
    given, quick = [(codes(60, 1), voices[0]), (codes(90, 2), voices[1])], StreamOptions(FlowOptions(3))
    alone = [list(synthesizer.stream(*g, options=quick)) for g in given]
    turns = list(zip_longest(*(synthesizer.stream(*g, options=quick) for g in given)))
    for one, chunks in zip(zip(*turns, strict=True), alone, strict=True):
        one = [c for c in one if c is not None]
        assert len(one) == len(chunks) and all(np.array_equal(a.wave, b.wave) for a, b in zip(one, chunks, strict=True))
    assert not np.array_equal(alone[0][0].wave, alone[1][0].wave)


def test_a_second_voice_is_not_spoken_in_the_first(synthesizer, voices):
    a, b, again = (synthesizer.decode(codes(20), v).wave for v in (voices[0], voices[1], voices[0]))
    assert np.array_equal(a, again) and np.abs(a - b).max() > 0.01


def test_a_begun_state_serves_many_streams(synthesizer, voices):
    state = synthesizer.begin(voices[0], noise=3, source_noise=3)
    runs = [joined(synthesizer.stream(codes(40), state)) for _ in range(2)]
    assert np.array_equal(runs[0], runs[1])
    assert np.array_equal(runs[0], joined(synthesizer.stream(codes(40), voices[0], noise=3, source_noise=3)))
    assert not np.array_equal(runs[0], joined(synthesizer.stream(codes(40), voices[0])))


# ---- the stream itself ----


@pytest.mark.parametrize("n", [1, 3, 4, 27, 28, 29, 53, 56, 60])
def test_a_stream_is_as_long_as_the_whole(synthesizer, voices, n):
    quick = FlowOptions(1)
    chunks = list(synthesizer.stream(codes(n), voices[0], options=StreamOptions(quick)))
    assert len(joined(chunks)) == n * PER_CODE == len(synthesizer.decode(codes(n), voices[0], options=quick).wave)
    assert [c.start for c in chunks] == [sum(len(c.wave) for c in chunks[:i]) for i in range(len(chunks))]
    assert [c.n_codes for c in chunks] == [min(n, 28 + 25 * i) for i in range(len(chunks))]


def test_sound_comes_as_soon_as_its_codes(synthesizer, voices):
    taken = []

    def source():
        for code in codes(60):
            taken.append(code)
            yield code

    stream = synthesizer.stream(source(), voices[0])
    assert taken == []
    next(stream)
    assert len(taken) == 28  # a chunk of 25 and the look-ahead of 3
    next(stream)
    assert len(taken) == 53


def test_noise_by_position_differs_once_the_cache_is_full(synthesizer, voices):
    """The reference starts every chunk from the same noise from then on; the option does not."""
    runs = {kind: list(synthesizer.stream([7] * 260, voices[0], options=StreamOptions(FlowOptions(2, noise=kind))))
            for kind in ("cache", "position")}  # fmt: skip
    same = [np.array_equal(a.wave, b.wave) for a, b in zip(*runs.values(), strict=True)]
    # cache and position part when more than 100 frames lie behind the prompt: after two chunks of 50
    assert same[:2] == [True, True] and not any(same[3:])


def test_loudest_bounds_a_stream(synthesizer, voices):
    """The tiny vocoder shouts at its limit, so cross-fades reach beyond full scale, as the reference's may."""
    wave = joined(synthesizer.stream(codes(200), voices[0], options=StreamOptions(FlowOptions(2))))
    assert 0.99 < np.abs(wave).max() <= synthesizer.loudest() == pytest.approx(0.99 * 1.08, abs=1e-3)
    assert synthesizer.loudest(StreamOptions(cross_fade="even")) == pytest.approx(0.99)


# ---- codes that are none ----


def test_padding_is_dropped_and_counted(synthesizer, voices):
    plain = synthesizer.decode([1, 2, 3], voices[0])
    found = synthesizer.decode([6561, 1, 2, 6655, 3, 6600], voices[0])
    assert np.array_equal(found.wave, plain.wave) and (found.n_codes, found.n_padding, plain.n_padding) == (3, 3, 0)


@pytest.mark.parametrize("none", [[], [6561, 6561]])
def test_no_codes_are_no_sound(synthesizer, voices, none):
    found = synthesizer.decode(none, voices[0])
    assert (found.wave.shape, found.mel.shape, found.seconds, found.n_padding) == ((0,), (0, 4), 0, len(none))
    assert list(synthesizer.stream(none, voices[0])) == []


@pytest.mark.parametrize(("bad", "message"), [
    ([1, 81], "audio code 81 is outside 0…80"), ([-1], "code -1 is outside.*no padding"),
    ([6656], "code 6656 is outside"),
    ([151_700], "ids of the language model"), ([1.5], "whole numbers"), ([True], "whole numbers"), (["1"], "whole"),
    ("12", "whole numbers"), (5, "whole numbers"), ([None], "whole numbers"),
])  # fmt: skip
def test_codes_that_are_refused(synthesizer, voices, bad, message):
    with pytest.raises(DecodeError, match=message):
        synthesizer.decode(bad, voices[0])
    with pytest.raises(DecodeError, match=message):
        list(synthesizer.stream(bad, voices[0]))


def test_a_bad_code_ends_a_stream_where_it_stands(synthesizer, voices):
    stream = synthesizer.stream([*codes(30), 99], voices[0])
    next(stream)
    with pytest.raises(DecodeError, match="code 99"):
        next(stream)


def test_noise_that_is_none(synthesizer, voices):
    with pytest.raises(DecodeError, match="seed must not be negative"):
        synthesizer.decode([1], voices[0], noise=-1)


# ---- loading ----


def test_nets_that_do_not_belong_together(synthesizer):
    parts, other = (
        synthesizer.parts,
        SpeakerEncoder(
            SpeakerConfig(
                feat_dim=16,
                embedding_size=7,
                growth_rate=4,
                bn_size=2,
                init_channels=6,
                blocks=((2, 3, 1),),
                fcm_channels=4,
            )
        ),
    )
    with pytest.raises(ConfigError, match="7 and 6 numbers of a speaker vector"):
        Synthesizer(Token2Wav(parts.tokenizer, other, parts.flow, parts.hift))
    with pytest.raises(ConfigError, match="gives 243 codes, the flow knows 81"):
        Synthesizer(
            Token2Wav(
                S3Tokenizer(S3Config(n_audio_state=16, n_audio_head=2, n_audio_layer=1, n_codebook_size=243)),
                parts.speaker,
                parts.flow,
                parts.hift,
            )
        )


def test_a_model_without_a_speaking_half(tiny_checkpoint, monkeypatch):
    monkeypatch.setenv("STEPAUDIO_CHECKPOINT", str(tiny_checkpoint))
    with pytest.raises(WeightsError, match="no token2wav.*stepaudio convert"):
        Synthesizer.load()


@pytest.mark.parametrize("name", VOICES)
def test_default_voices_are_voices(synthesizer, name):
    assert 3 < len(synthesizer.voice(voice_clip(name)).codes) / 25 < 10


def test_a_default_voice_that_is_none():
    with pytest.raises(DataError, match="female or male"):
        voice_clip("robot")


def test_a_stream_may_be_read_in_other_threads(synthesizer, voices):
    want = joined(synthesizer.stream(codes(60), voices[0]))
    chunks = synthesizer.stream(codes(60), voices[0])
    found = []
    for _ in range(3):
        with ThreadPoolExecutor(1) as pool:
            found.append(pool.submit(next, chunks).result())
    assert next(chunks, None) is None and np.array_equal(joined(found), want)
