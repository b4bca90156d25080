"""Net, tokenizer and pipeline together: requests, stop strings, what an engine without parts refuses."""

import numpy as np
import pytest
import tiny

from stepaudio.checkpoints.capabilities import Capabilities
from stepaudio.decoding.options import DecodingOptions
from stepaudio.decoding.stop_strings import StopStrings
from stepaudio.engine import Engine
from stepaudio.errors import PromptError, WeightsError
from stepaudio.text.chat_template import Message
from stepaudio.text.messages import with_audio
from stepaudio.text.prompts import ASR_SYSTEM, asr_turns


@pytest.fixture(scope="module")
def engine(tiny_model) -> Engine:
    return tiny_model.engine


def test_audio_is_encoded_as_if_each_had_been_alone(engine):
    mels = [engine.log_mel(tiny.noise(seconds, seed=i)) for i, seconds in enumerate((1.0, 2.3))]
    together = engine.encode_audio(mels)
    for mel, found in zip(mels, together, strict=True):
        (alone,) = engine.net.encode_audio([mel])
        np.testing.assert_allclose(np.array(found), np.array(alone), atol=1e-5)


def test_one_segment_asks_as_the_messages_of_the_reference_do(engine):
    x = tiny.noise(1.5)
    (encoded,) = engine.encode_audio([engine.log_mel(x)])
    short = engine.transcription_request(encoded, ASR_SYSTEM)
    long = engine.build_request(with_audio(asr_turns(), x))
    assert short.tokens == long.tokens and short.spans == long.spans
    np.testing.assert_allclose(np.array(short.embeddings), np.array(long.embeddings), atol=1e-5)


def test_run_options_follow_from_the_model(engine, tiny_model):
    t, options = engine.tokenizer, DecodingOptions("greedy", stop=["cat"], max_tokens=4)
    run = engine.run_options(options)
    assert run.stop_ids == t.eos_ids and run.audio_range == (t.first_audio_code, t.first_audio_code + t.n_audio)
    ends = run.should_stop()
    assert [ends(i) for i in t.encode("the cat")][-1] and engine.run_options(DecodingOptions()).should_stop is None
    mute = Engine(engine.net, None).run_options(DecodingOptions())
    assert mute.audio_range is None and mute.stop_ids == Engine(engine.net, None).stop_ids()
    with pytest.raises(PromptError, match="needs a tokenizer"):
        Engine(engine.net, None).run_options(options)


def test_decode_leaves_markers_and_codes_out(engine):
    t = engine.tokenizer
    tokens = [*t.encode("the cat"), t.tts_start, t.first_audio_code, t.eot]
    assert engine.decode(tokens) == "the cat" and Engine(engine.net, None).decode(tokens) is None


def test_an_altered_engine_shares_all_but_what_is_given(engine):
    able = Engine(engine.net, engine.tokenizer, capabilities=Capabilities(("speak",)), incomplete="half of it")
    other = able.altered(net=engine.net)
    assert (other.capabilities, other.incomplete, other.tokenizer) == (able.capabilities, "half of it", able.tokenizer)
    with pytest.raises(WeightsError, match="half of it"):
        other.build_request([Message("human", "hi")])


def test_stop_strings_alone(tiny_model):
    t = tiny_model.tokenizer
    tokens = t.encode("the cat sat on the mat")
    watch = StopStrings(t, ["cat s"])
    assert len(t.encode("cat s")) > 1
    first = next(i for i, token in enumerate(tokens) if watch(token))
    assert "cat s" in t.decode(tokens[: first + 1]) and "cat s" not in t.decode(tokens[:first])
    halves = StopStrings(t, ["\u4f60"])  # one character in three bytes, each an id of its own
    assert [halves(i) for i in map(t.id, "\u00e4\u00bd\u0142")] == [False, False, True]
