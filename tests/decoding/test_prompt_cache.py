"""The prompt cache: the same bits whether a beginning was found or computed; whatever differs is another entry."""

import json
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import tiny
from decoded import NET, POLICIES, request
from mlx.utils import tree_map

from stepaudio.decoding.generate import Request, collect, generate
from stepaudio.decoding.options import RunOptions
from stepaudio.decoding.prompt_cache import Prefixes, PromptCache, digest, identity_of
from stepaudio.decoding.sampling import Sampling
from stepaudio.errors import DataError, DecodeError
from stepaudio.models.speech_lm import StepAudioNet

FIRST = {"role": "human", "content": [{"type": "audio", "audio": tiny.noise(0.9)}, {"type": "text", "text": "what?"}]}
ANSWER = {"role": "assistant", "content": "the cat sat"}
SECOND = {"role": "human", "content": "what is the time now"}


def bits(steps) -> Any:
    """Tokens and log-probabilities to the last bit."""
    return [(s.token, s.logprob, s.top) for s in steps]


def answer(model, turns, **options):
    return bits(model.stream(turns, sampling="greedy", max_tokens=8, **options))


# ------------------------------------------------------------------------------- the same bits


@pytest.mark.parametrize("speculate", ["off", "lookup"])
@pytest.mark.parametrize("policy", POLICIES)
def test_every_cache_policy_goes_on_with_the_same_bits(policy, speculate):
    cache, ids = POLICIES[policy][0], np.random.default_rng(2).integers(0, 48, 41)
    options = RunOptions(Sampling.greedy(), cache, max_tokens=12, speculate=speculate)
    one = request(NET, ids, ((9, 7),))

    def run(store, marks):
        prefixes = Prefixes(store, tuple((end, digest(ids[:end].tolist())) for end in marks))
        return bits(generate(NET, [Request(one.tokens, one.embeddings, one.spans, prefixes=prefixes)], options))

    store = PromptCache()
    first = run(store, (8, 30))
    assert (store.hits, store.misses, len(store)) == (0, 2, 2)
    assert run(store, (8, 30)) == first and (store.hits, store.misses) == (1, 2)
    half = PromptCache()
    run(half, (8,))
    assert run(half, (8, 30)) == first and half.hits == 1  # only the first turn was known
    plain = collect(generate(NET, [one], options), 1)[0]
    assert [token for token, *_ in first] == list(plain.tokens)


def test_turns_and_recordings_are_found_again(tiny_model):
    store = PromptCache()
    model = tiny_model.altered(prompt_cache=store)
    first = answer(model, [FIRST])
    assert store.hits == 0 and answer(model, [FIRST]) == first and store.hits == 2  # the recording, and the turn
    longer = [FIRST, ANSWER, SECOND]
    found = answer(model, longer)
    assert store.hits == 4
    assert found == answer(tiny_model.altered(prompt_cache=PromptCache()), longer)
    assert [t for t, *_ in found] == [t for t, *_ in answer(tiny_model, longer)]


def test_transcripts_have_the_same_bits(tiny_model):
    store, x = PromptCache(), tiny.noise(1.2, 3)
    model = tiny_model.altered(prompt_cache=store)
    first = model.transcribe(x, vad="off", max_tokens=8)
    assert (store.hits, store.misses) == (0, 1)
    assert model.transcribe(x, vad="off", max_tokens=8) == first and store.hits == 1
    assert first.text == tiny_model.transcribe(x, vad="off", max_tokens=8).text


def test_whatever_differs_is_a_miss(tiny_model):
    store = PromptCache()
    model = tiny_model.altered(prompt_cache=store)
    answer(model, [FIRST])

    def hits(turns, **options):
        before = store.hits
        answer(model, turns, **options)
        return store.hits - before

    other = np.array(FIRST["content"][0]["audio"])
    other[5000] += 2.0**-15  # one step of 16 bits
    changed = {"role": "human", "content": [{"type": "audio", "audio": other}, FIRST["content"][1]]}
    assert hits([changed]) == 0
    said = {"role": "human", "content": [FIRST["content"][0], {"type": "text", "text": "when?"}]}
    assert hits([said]) == 1  # the recording alone
    assert hits([FIRST], cache="full") == 1 and hits([FIRST], sinks=2) == 1 and hits([FIRST], max_cache_len=999) == 1
    assert hits([FIRST], temperature=0.0) == 2


def test_one_changed_weight_is_another_model(tiny_model):
    net = StepAudioNet(tiny_model.config)
    net.update(tree_map(lambda a: a, tiny_model.net.parameters()))
    same = identity_of(net)
    assert same == identity_of(tiny_model.net)
    weight = net.model.layers[0].mlp.up_proj.weight
    values = np.array(weight)
    values[3, 4], values[5, 6] = values[5, 6], values[3, 4]  # the same numbers at other places
    net.model.layers[0].mlp.up_proj.weight = mx.array(values)
    assert identity_of(net) != same
    store = PromptCache()
    model = tiny_model.altered(prompt_cache=store)
    assert model.altered(net=net).engine.prompt_cache is None and model.altered().engine.prompt_cache is store
    with pytest.raises(DataError, match="another model"):
        tiny_model.altered(net=net, prompt_cache=store)


# ------------------------------------------------------------------------------- the limit


def test_the_latest_used_stay():
    store = PromptCache(max_bytes=100)
    for key in "abc":
        store.put(key, {"0": mx.zeros(8)})  # 32 bytes
    assert store.find("a") is not None
    store.put("d", {"0": mx.zeros(8)})
    assert store.find("b") is None and store.find("a") is not None and store.nbytes == 96
    store.put("large", {"0": mx.zeros(100)})
    assert len(store) == 0 and store.nbytes == 0
    assert repr(store) == "PromptCache(0 entries, 0 bytes, 2 hits, 1 misses)"


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, "1G", None])
def test_a_limit_that_is_none(wrong):
    with pytest.raises(DecodeError, match="max_bytes"):
        PromptCache(wrong)


# ------------------------------------------------------------------------------- files


def test_a_file_is_found_again(tiny_model, tmp_path):
    store, path = PromptCache(), tmp_path / "chat.prompts"
    first = answer(tiny_model.altered(prompt_cache=store), [FIRST])
    assert store.save(path) == path and [p.name for p in tmp_path.iterdir()] == ["chat.prompts"]
    again = PromptCache.load(path)
    assert len(again) == len(store) and again.nbytes == store.nbytes and PromptCache.is_ours(path)
    assert answer(tiny_model.altered(prompt_cache=again), [FIRST]) == first and (again.hits, again.misses) == (2, 0)
    assert PromptCache.load(path, max_bytes=1).nbytes == 0


def with_metadata(path, **changes):
    raw = path.read_bytes()
    n = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + n])
    header["__metadata__"] |= changes
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + n :])


def test_files_that_are_refused(tiny_model, tmp_path):
    store, path = PromptCache(), tmp_path / "a"
    answer(tiny_model.altered(prompt_cache=store), [FIRST])
    whole = store.save(path).read_bytes()
    for content, match in (
        (b"", "0 bytes"), (b"no cache at all", "expected a prompt cache"), (whole[:-100], "expected a prompt cache"),
        (whole[:50], "expected a prompt cache"),
    ):  # fmt: skip
        path.write_bytes(content)
        with pytest.raises(DataError, match=match) as error:
            PromptCache.load(path)
        assert str(path) in str(error.value) and "\n" not in str(error.value)
    path.write_bytes(whole)
    with_metadata(path, model="0123")
    with pytest.raises(DataError, match="another model") as error:
        tiny_model.altered(prompt_cache=PromptCache.load(path))
    assert str(path) in str(error.value)
    with_metadata(path, format="stepaudio prompt cache 0")
    with pytest.raises(DataError, match="expected a file of the format"):
        PromptCache.load(path)
    with pytest.raises(DataError, match="no such file"):
        PromptCache.load(tmp_path / "none")
    with pytest.raises(DataError, match="cannot be written"):
        store.save(tmp_path / "no" / "folder")
