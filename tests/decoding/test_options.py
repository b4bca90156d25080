"""One record of options, and the merging of short keywords into it."""

import doctest
import inspect
from dataclasses import fields, replace

import pytest

from stepaudio.choices import CacheKind, Choice, LoopAction, Positions, StopReason, alternatives, hint
from stepaudio.decoding.options import KEYWORDS, DecodingKeywords, DecodingOptions, RunOptions, merge_options
from stepaudio.decoding.sampling import Contrast, Penalties, Sampling
from stepaudio.errors import DecodeError
from stepaudio.models.kv_cache import CachePolicy


@pytest.mark.parametrize("path", ["decoding.options", "choices", "text.subtitles"])
def test_doctests(path):
    import importlib

    found = doctest.testmod(importlib.import_module(f"stepaudio.{path}"))
    assert found.failed == 0 and found.attempted > 0


def test_words_become_records():
    made = DecodingOptions("reference", "full", on_loop="stop", stop=["x"])
    assert made == DecodingOptions(Sampling.greedy(), CachePolicy("full"), on_loop=LoopAction.STOP, stop=("x",))
    assert made.rules is made.sampling and made.policy is made.cache and hash(made) == hash(replace(made))


def test_every_single_value_reaches_its_record():
    """One keyword at a time, each with a value that differs from the default."""
    values = {
        "temperature": 0.7, "top_k": 3, "top_p": 0.5, "min_p": 0.1, "seed": 9, "repetition": 1.5, "frequency": 0.3,
        "presence": 0.2, "no_repeat_ngram": 5, "window": 7, "include_prompt": True, "max_cache_len": 77, "sinks": 2,
        "positions": "reindexed", "max_tokens": 5, "on_loop": "off", "stop": ("a",), "batch": 3, "top": 2,
        "sampling": "greedy", "cache": "window", "kv_bits": 8, "speculate": "lookup", "draft_tokens": 7,
        "contrast": Contrast("silence", 0.5), "processors": (max,),
    }  # fmt: skip
    assert set(values) == set(KEYWORDS) == set(DecodingKeywords.__annotations__)
    base = DecodingOptions()
    cache_names = {"max_cache_len": "max_len", "sinks": "sinks", "positions": "positions", "kv_bits": "bits"}
    for name, value in values.items():
        made = merge_options(**{name: value})
        changed = {f.name for f in fields(DecodingOptions) if getattr(made, f.name) != getattr(base, f.name)}
        if name in cache_names:
            assert changed == {"cache"} and getattr(made.cache, cache_names[name]) == value
        elif name in {f.name for f in fields(Penalties)}:
            assert changed == {"sampling"} and made.sampling == Sampling(
                text=replace(base.sampling.text, **{name: value}), audio=replace(base.sampling.audio, **{name: value})
            )
        elif name in {f.name for f in fields(Sampling)} - {"on_loop"}:  # which the options have too, and first
            assert changed == {"sampling"} and made.sampling == replace(base.sampling, **{name: value})
        else:
            assert changed == {name}


@pytest.mark.parametrize("preset, action", [("planned", "escape"), ("literal", "report"), ("reference", "report"),
                                            ("greedy", "report")])  # fmt: skip
def test_what_is_done_about_a_loop_goes_with_the_sampling(preset, action):
    for task in ("transcribe", "chat"):
        assert merge_options(task=task, sampling=preset).loop_action == action
        assert merge_options(DecodingOptions(), task, sampling=preset).loop_action == action
        assert merge_options(task=task, sampling=preset, on_loop="stop").loop_action == "stop"
        kept = merge_options(DecodingOptions(on_loop="off"), task, sampling=preset)
        assert kept.loop_action == "off"
    assert merge_options(sampling=preset, temperature=0.5, frequency=0.1).loop_action == action


def test_single_values_go_on_top_of_records_and_words():
    start = DecodingOptions("greedy", CachePolicy("window", 50), max_tokens=9)
    made = merge_options(start, temperature=0.5, sinks=1, max_tokens=3)
    assert (made.sampling, made.cache) == (Sampling.greedy(temperature=0.5), CachePolicy("window", 50, 1))
    assert made.max_tokens == 3 and start.max_tokens == 9
    assert merge_options(start) == start and merge_options(start, sampling=None, cache=None) == start
    assert merge_options(start, cache="full").cache == CachePolicy("full")
    assert merge_options(task="chat", sampling="reference", seed=4).sampling == replace(
        Sampling.reference("chat"), seed=4
    )


def test_the_loop_gets_the_same_values_and_more():
    start = DecodingOptions("greedy", max_tokens=3, top=2)
    run = RunOptions.of(start, frozenset([1]), None, (5, 9))
    assert all(getattr(run, f.name) == getattr(start, f.name) for f in fields(DecodingOptions))
    assert (run.stop_ids, run.audio_range) == (frozenset([1]), (5, 9))


@pytest.mark.parametrize("wrong", [{"text": Penalties()}, {"tokens": 3}, {"max_len": 3}])
def test_what_is_no_keyword(wrong):
    with pytest.raises(DecodeError, match="unknown option"):
        merge_options(**wrong)


def test_no_other_signature_repeats_the_keywords():
    """The facades take `options` and the keywords; whoever adds one adds it in one place."""
    from stepaudio.model import StepAudio2

    for method in (StepAudio2.transcribe, StepAudio2.stream, StepAudio2.generate_text, StepAudio2.generate_with_audio):
        parameters = inspect.signature(method).parameters
        assert "options" in parameters and not set(parameters) & set(KEYWORDS)
        assert parameters["changes"].annotation == "Unpack[DecodingKeywords]"


def test_choices_are_strings_with_one_spelling():
    assert CacheKind.values() == ("full", "window", "sinks", "pinned") and LoopAction.ESCAPE == "escape"
    assert StopReason.of("stop string", "stop") is StopReason.STOP_STRING and f"{StopReason.EOS}" == "eos"
    assert repr(StopReason.EOS) == "'eos'" and Positions.of("renumbered", "") is Positions.REINDEXED
    with pytest.raises(DecodeError, match=r"cache: expected full, window, sinks or pinned, found 'widnow'; did you"):
        CacheKind.of("widnow", "cache")
    for value in (None, 3, "", "FULL"):
        with pytest.raises(DecodeError):
            CacheKind.of(value, "cache")
    assert issubclass(LoopAction, Choice) and alternatives(("a",)) == "a" and hint("zzz", ["abc"]) == ""
