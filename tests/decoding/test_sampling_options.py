"""Sampling as a record: presets, overrides, and what is out of range."""

import math

import pytest

from stepaudio.decoding.sampling import PLANNED, Penalties, Sampling
from stepaudio.errors import DecodeError


def test_defaults_are_the_planned_ones():
    assert Sampling() == Sampling.planned() == Sampling.named("planned")
    assert Sampling().text == Sampling().audio == PLANNED == Penalties(frequency=1.2, no_repeat_ngram=3, window=8)
    assert Sampling().temperature == 0 and Sampling().on_loop == "escape"


def test_the_literal_plan_forgets_nothing_and_only_reports():
    literal = Sampling.named("literal")
    assert literal.text == literal.audio == Penalties(frequency=1.2, no_repeat_ngram=3)
    assert literal == Sampling.literal() and literal.on_loop == "report"


def test_presets_take_single_values_as_an_override_does():
    for name in ("planned", "literal", "greedy"):
        made = getattr(Sampling, name)(temperature=0.5, frequency=0.3, seed=4)
        assert made == Sampling.named(name).override({"temperature": 0.5, "frequency": 0.3, "seed": 4})
        assert (made.text.frequency, made.audio.frequency, made.temperature, made.seed) == (0.3, 0.3, 0.5, 4)


def test_reference_by_task():
    assert Sampling.reference() == Sampling.greedy() == Sampling.named("greedy") == Sampling.named("reference")
    assert Sampling.greedy().text.off and Sampling.greedy().audio.off and Sampling.greedy().on_loop == "report"
    chat = Sampling.named("reference", "chat")
    assert (chat.temperature, chat.top_k, chat.top_p) == (0.7, 50, 0.9)
    assert chat.text == chat.audio == Penalties(repetition=1.05, include_prompt=True)


def test_override():
    s = Sampling().override({"frequency": 0.5, "temperature": 0.9})
    assert s.text == s.audio == Penalties(frequency=0.5, no_repeat_ngram=3, window=8) and s.temperature == 0.9
    with pytest.raises(DecodeError, match="beam_width"):
        Sampling().override({"beam_width": 3})


@pytest.mark.parametrize(
    ("kind", "option"),
    [
        (Sampling, {"temperature": -0.1}),
        (Sampling, {"temperature": math.nan}),
        (Sampling, {"top_k": -1}),
        (Sampling, {"top_k": 2.5}),
        (Sampling, {"top_p": 0.0}),
        (Sampling, {"top_p": 1.1}),
        (Sampling, {"min_p": -0.1}),
        (Sampling, {"min_p": 1.5}),
        (Penalties, {"repetition": 0.0}),
        (Penalties, {"repetition": -1.0}),
        (Penalties, {"frequency": math.inf}),
        (Penalties, {"presence": math.nan}),
        (Penalties, {"no_repeat_ngram": -1}),
        (Penalties, {"no_repeat_ngram": 1.5}),
        (Penalties, {"window": 0}),
        (Penalties, {"window": 1.5}),
        (Penalties, {"repetition": math.inf}),
        (Sampling, {"temperature": math.inf}),
        (Sampling, {"seed": -1}),
        (Sampling, {"seed": 2**64}),
        (Sampling, {"seed": 1.5}),
    ],
    ids=str,
)
def test_refuses_options_out_of_range(kind, option):
    (name,) = option
    with pytest.raises(DecodeError, match=name.split("_")[0]):
        kind(**option)


def test_refuses_unknown_names():
    for call in (lambda: Sampling.named("beam"), lambda: Sampling.reference("sing")):
        with pytest.raises(DecodeError, match="expected"):
            call()
