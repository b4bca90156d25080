"""Every option against the ends of its range: a value is refused by one error, or gives what float64 gives."""

import math

import mlx.core as mx
import numpy as np
import pytest
from reference import drawn_reference, rules_reference

from stepaudio.choices import MAX_COUNT
from stepaudio.decoding.options import merge_options
from stepaudio.decoding.sampler import Sampler
from stepaudio.decoding.sampling import COLDEST, HOTTEST, STRONGEST, Penalties, Sampling
from stepaudio.errors import ConfigError, DecodeError
from stepaudio.models.kv_cache import CachePolicy
from stepaudio.models.rope import Rope
from stepaudio.models.token2wav.dit import DitConfig
from stepaudio.models.token2wav.flow import FlowOptions
from stepaudio.models.token2wav.flow_matching import CfmConfig
from stepaudio.models.token2wav.noise import noise_frames
from stepaudio.synthesis.streaming import StreamOptions

ODD = (1e-46, 1e39, math.nan, math.inf, -math.inf, -0.0, 0.0, 10**400, 1e-30, 1e30, -1e30, True, None, "1")
ENDS = {
    "temperature": (COLDEST, HOTTEST),
    "top_p": (5e-324, 1.0),
    "min_p": (0.0, 1.0),
    "repetition": (1 / STRONGEST, STRONGEST),
    "frequency": (-STRONGEST, STRONGEST),
    "presence": (-STRONGEST, STRONGEST),
}
V, STEPS = 12, 30
PENALTIES = ("repetition", "frequency", "presence")


def name_of(value: object) -> str:
    """Of a test; numbers of more digits than Python prints have no other."""
    return "huge" if isinstance(value, int) and value > 10**30 else str(value)


def accepted(name: str, value: object) -> bool:
    """The rule in words: a number, no truth value, within the ends; 0 where it turns the rule off."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    low, high = ENDS[name]
    return bool(low <= value <= high) or (name == "temperature" and value == 0)


@pytest.mark.parametrize("name", ENDS)
@pytest.mark.parametrize("value", ODD, ids=name_of)
def test_odd_values(name, value):
    if accepted(name, value):
        compare(name, value)
        return
    with pytest.raises(DecodeError) as refused:
        merge_options(**{name: value})
    told = str(refused.value)
    assert name in told and "expected" in told and "found" in told and "\n" not in told and len(told) < 300


@pytest.mark.parametrize("name", ENDS)
def test_the_ends_are_accepted_and_nothing_beyond(name):
    for value, direction in zip(ENDS[name], (-math.inf, math.inf), strict=True):
        compare(name, value)
        beyond = math.nextafter(value, direction)
        if accepted(name, beyond):  # below the least temperature and the least top_p lies 0
            continue
        with pytest.raises(DecodeError, match=name):
            merge_options(**{name: beyond})


def compare(name: str, value: float) -> None:
    """Runs of the sampler on random logits, the largest that float16 holds among them, against float64."""
    given = {name: value} if name in ("temperature", *PENALTIES) else {name: value, "temperature": 1.0}
    s = merge_options(sampling=Sampling.greedy(), seed=3, **given).rules
    rng = np.random.default_rng(0)
    for scale in (1.0, 30.0, 65504.0):
        sampler, key, said = Sampler(s, [[]], escapes=False), mx.random.key(3), []
        for _ in range(STEPS):
            logits = rng.uniform(-scale, scale, V).astype(np.float32)
            key, drawing = mx.random.split(key)
            noise = np.array(mx.random.gumbel((V,), key=drawing), dtype=np.float64)
            ruled = rules_reference(logits, said, s.text.repetition, s.text.frequency, s.text.presence)
            want = drawn_reference(ruled, s.temperature, s.top_p, s.min_p, noise)
            got = int(sampler(mx.array(logits)[None]).item())
            assert got == want, (name, value, scale, said)
            said.append(got)


def test_logits_that_tie_are_still_drawn_between_at_the_lowest_temperature():
    # Dividing first would give 1e38 + noise, which float32 rounds to one of the two for ever.
    sampler = Sampler(Sampling.greedy(temperature=1e-30), [[]])
    drawn = [int(sampler(mx.array([[3.0, 9.0, 9.0, 1.0]])).item()) for _ in range(40)]
    assert set(drawn) == {1, 2}


COUNTS = {"top_k": 0, "no_repeat_ngram": 0, "window": 1, "max_tokens": 1, "batch": 1, "top": 0, "max_cache_len": 1,
          "sinks": 0}  # fmt: skip


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("value", [10**6, MAX_COUNT, 2**31, 10**30, 10**400, 10**5000, -1, 1.5, True, "1"],
                         ids=lambda v: "huge" if isinstance(v, int) and v > 10**30 else str(v))  # fmt: skip
def test_counts(name, value):
    if isinstance(value, int) and not isinstance(value, bool) and COUNTS[name] <= value < 2**31:
        merge_options(**{name: value})
        return
    with pytest.raises(DecodeError) as refused:
        merge_options(**{name: value})
    assert len(str(refused.value)) < 300


def test_the_largest_counts_change_nothing_and_cost_nothing():
    plain = Sampling(temperature=1.0, text=Penalties(frequency=0.5))
    wide = plain.override({"top_k": MAX_COUNT, "no_repeat_ngram": MAX_COUNT, "window": MAX_COUNT})
    logits = mx.array(np.random.default_rng(1).normal(size=(1, V)).astype(np.float32))
    runs = [[int(sampler(logits).item()) for _ in range(20)] for sampler in (Sampler(s, [[]]) for s in (plain, wide))]
    assert runs[0] == runs[1]
    cache = CachePolicy("window", MAX_COUNT).build(2, Rope(4, 1e4))
    assert cache.room(10) == 10 and cache.nbytes == 0


@pytest.mark.parametrize("kind", ["sinks", "pinned"])
@pytest.mark.parametrize("sinks", [4096, 10**6, MAX_COUNT])
def test_sinks_are_counted_before_they_are_made(kind, sinks):
    with pytest.raises(DecodeError, match=f"4096 positions cannot hold the {sinks} positions"):
        CachePolicy(kind, sinks=sinks).build(2, Rope(4, 1e4))


@pytest.mark.parametrize("value", [0, -1, 1.5, math.nan, math.inf, 2**31, 10**30, 10**5000, True, "6"], ids=name_of)
@pytest.mark.parametrize("make", [
    lambda v: FlowOptions(n_steps=v), lambda v: FlowOptions(recent_frames=v), lambda v: StreamOptions(chunk_codes=v),
    lambda v: StreamOptions(mel_frames=v),
])  # fmt: skip
def test_counts_of_synthesis(make, value):
    with pytest.raises(ConfigError) as refused:
        make(value)
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize("value", [-1e-46, -1, 4097, 1e39, math.nan, math.inf])
def test_guidance(value):
    with pytest.raises(ConfigError, match="inference_cfg_rate"):
        CfmConfig(value, DitConfig(8, 8, 2, 1, 2, 4, 2.0))


@pytest.mark.parametrize("value", [0.0, -0.5, 16.5, 1e39, math.nan, math.inf, "1", True], ids=name_of)
def test_temperature_of_the_flow(value):
    with pytest.raises(ConfigError, match="decoder.temperature"):
        CfmConfig(0.7, DitConfig(8, 8, 2, 1, 2, 4, 2.0), temperature=value)


@pytest.mark.parametrize("seed", [-1, 1.5, math.nan, 2**64, 10**5000, True], ids=name_of)
def test_seeds_of_noise(seed):
    with pytest.raises(DecodeError, match="seed"):
        noise_frames(seed, 0, 4, 3)
