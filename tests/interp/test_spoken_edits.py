"""Edits in the language model while its answer is spoken: the stream is that of the edited run."""

import numpy as np
import pytest
import tiny

from stepaudio.decoding.options import DecodingOptions
from stepaudio.decoding.outputs import answer_of
from stepaudio.decoding.sampling import Sampling
from stepaudio.errors import ConfigError
from stepaudio.interp import run_with_edits, steps_with_edits
from stepaudio.interp.edits import Edits, add, scale, zero
from stepaudio.models.token2wav.flow import FlowOptions
from stepaudio.speech_model import SpeechModel, SpeechOptions
from stepaudio.synthesis.streaming import StreamOptions

DECODING = DecodingOptions(Sampling(temperature=1.5, seed=3), max_tokens=90)
VOICING = StreamOptions(FlowOptions(2))
OPTIONS = SpeechOptions(DECODING, seed=3, voicing=VOICING)
LATER = 20  # steps that stay as they are


@pytest.fixture(scope="module")
def speech(speaking_checkpoint) -> SpeechModel:
    return SpeechModel.load(speaking_checkpoint)


@pytest.fixture(scope="module")
def asked(speech):
    return [speech.question(tiny.noise(1)), *speech.reading("the cat")]


@pytest.fixture(scope="module")
def plain(speech, asked, voices):
    return list(speech.stream(asked, voices[0], OPTIONS))


def streamed(speech, asked, voice, edits):
    runs = (steps_with_edits(speech.model, one, edits, options=DECODING) for one in asked)
    return list(speech.voiced(runs, voice, OPTIONS))


def tokens_of(chunks):
    return [c.answer.tokens for c in chunks if c.answer]


def sound_of(chunks):
    return np.concatenate([c.wave for c in chunks])


def test_an_edit_that_changes_nothing_changes_no_bit(speech, asked, voices, plain):
    for edits in (Edits(), scale("decoder.*.z", 1.0) + add("decoder.1.resid_pre", 0) + scale("logits", 1.0)):
        found = streamed(speech, asked, voices[0], edits)
        assert tokens_of(found) == tokens_of(plain) and [c.text for c in found] == [c.text for c in plain]
        assert [len(c.wave) for c in found] == [len(c.wave) for c in plain]
        np.testing.assert_array_equal(sound_of(found), sound_of(plain))
    assert len(sound_of(plain)) > 10_000


def test_an_edit_changes_the_stream_as_it_changes_the_run(speech, asked, voices, plain, synthesizer):
    """The tokens of the whole run with the edit, the sound of these tokens; and until the edit, what came without."""
    moved = zero("decoder.1.z", heads=0, steps=slice(LATER, None)) + scale("decoder.0.mlp_out", -1, steps=LATER)
    found = streamed(speech, asked, voices[0], moved)
    runs = [run_with_edits(speech.model, [one], moved, options=DECODING)[0] for one in asked]
    assert [c.answer for c in found if c.answer] == [answer_of(run, speech.model.tokenizer) for run in runs]
    for one, other in zip(tokens_of(found), tokens_of(plain), strict=True):
        assert one != other and one[:LATER] == other[:LATER]
    codes = [c.answer.codes for c in found if c.answer]
    voiced = [synthesizer.stream(c, voices[0], noise=3, source_noise=3, options=VOICING) for c in codes]
    np.testing.assert_array_equal(sound_of(found), sound_of(chunk for one in voiced for chunk in one))


@pytest.mark.parametrize("edits, message", [
    (zero("decoder.9.z"), "no activation"),
    (zero("decoder.0.z", steps=90), "at most 90 tokens"),
    (zero("flow.mu"), "no activation"),
])  # fmt: skip
def test_what_cannot_apply_is_refused_before_the_run(speech, asked, edits, message):
    with pytest.raises(ConfigError, match=message):
        steps_with_edits(speech.model, asked[0], edits, options=DECODING)
