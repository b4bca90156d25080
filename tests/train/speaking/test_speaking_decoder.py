"""The decoder in training beside the engine: the same logits, the same loss; codes are sums of their digits."""

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from stepaudio.models.kv_cache import NoCache
from stepaudio.models.speech_lm import Slot, StepAudioNet
from stepaudio.train.speaking import decoder
from stepaudio.train.speaking.examples import Batches, listening, reading, reading_prompts, spoken_answer


@pytest.fixture
def net(fresh_net):
    return fresh_net()


def deeper(net, layers):
    return replace(net.config, text_config=replace(net.config.text_config, num_hidden_layers=layers))


def test_new_layers_change_nothing_at_first(net, words):
    """The logits of tokens that are no codes, after a prompt without codes, are those of the model it begins with."""
    config = deeper(net, 3)
    params = decoder.begin(net, config, words, seed=0)
    wide = StepAudioNet(config)
    wide.update(decoder.whole(params, decoder.digits_of_tokens(config.text_config.vocab_size, words.first_audio_code)))
    tokens = words.encode("<|BOT|>system\nthe cat<|EOT|>")
    before, after = (n.logits(n.embed(np.array(tokens)), NoCache(n.model.rope)) for n in (net, wide))
    first = words.first_audio_code
    assert np.allclose(np.array(before)[..., :first], np.array(after)[..., :first], atol=1e-4)
    assert any(np.array(value).any() for name, value in tree_flatten(params["net"]) if "layers.2." in name)


def test_a_code_is_its_own_vector_and_those_of_its_digits(net, words):
    params = decoder.begin(net, net.config, words, seed=0)
    rng = np.random.default_rng(1)
    first, V = words.first_audio_code, net.config.text_config.vocab_size
    own = {}
    for path, at in (("embed_tokens", params["net"]["model"]["embed_tokens"]), ("lm_head", params["net"]["lm_head"])):
        own[path] = rng.normal(size=at["weight"].shape).astype(np.float32)
        at["weight"] = mx.array(own[path])
    found = decoder.whole(params, decoder.digits_of_tokens(V, first))
    rows = {"embed_tokens": found["model"]["embed_tokens"]["weight"], "lm_head": found["lm_head"]["weight"]}
    for name, table in rows.items():
        vectors = np.array(params["digits"][name]).reshape(8, 3, -1)
        for code in (0, 1, 2, 3, 5000, 6560):
            digits = [int(d) for d in np.base_repr(code, 3).zfill(8)[::-1]]
            expected = own[name][first + code] + sum(vectors[k, d] for k, d in enumerate(digits))
            assert np.allclose(np.array(table[first + code]), expected, atol=1e-5), (name, code)
        assert np.array_equal(np.array(table[:first]), own[name][:first])
        assert np.array_equal(np.array(table[first + 6561 :]), own[name][first + 6561 :])
    assert np.array_equal(np.array(params["net"]["lm_head"]["weight"]), own["lm_head"])  # it works on a copy


def test_the_loss_is_what_the_engine_s_own_net_gives(net, words):
    """Each example alone through `embed` and `logits` with its audio in a slot; cross-entropies summed by NumPy."""
    rng = np.random.default_rng(0)
    heard = mx.array(rng.normal(size=(30, net.config.text_config.hidden_size)).astype(np.float32))
    text = words.encode(" the cat sat")
    answer = spoken_answer(text, rng.integers(0, 6561, 11), words)
    plain = np.array([*text, words.eot], np.int16)
    spans = [(3, 7)]
    few = [
        reading(reading_prompts(["The cat sat."], words), answer),
        listening(spans, True, answer, words),
        listening(spans, False, plain, words),
    ]
    params = decoder.begin(net, net.config, words, seed=0)
    loss = decoder.Loss(StepAudioNet(net.config), heard, words, mx.float32, net)
    batch = Batches(few, words, 128 * 3, seed=0, noisy=False).stack(few, 128, np.random.default_rng(0))
    total, metrics = loss(params, decoder.on_device(batch))
    net.update(decoder.whole(params, loss.digits))
    each, weights, codes, right = [], [], [], []
    for example, weight in zip(few, batch["weight"], strict=True):
        tokens = np.concatenate([example.prompts[0], example.answer]).astype(int)
        n = len(example.prompts[0])
        slots = [Slot(0, at, size) for at, _, size in example.slots[0]]
        x = net.embed(tokens[None], slots, [heard[first : first + size] for _, first, size in example.slots[0]])
        logits = np.array(net.logits(x, NoCache(net.model.rope)))[0, n - 1 : -1].astype(np.float64)
        chosen = logits[np.arange(len(logits)), tokens[n:]]
        each += list(np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1)) + logits.max(1) - chosen)
        weights += list(weight[weight > 0])
        codes += list(tokens[n:] >= words.first_audio_code)
        right += list(logits.argmax(1) == tokens[n:])
    each, weights, codes, right = map(np.array, (each, weights, codes, right))
    without = total.item() - decoder.KEEP_WEIGHT * metrics["apart"].item()
    assert np.isclose(without, (each * weights).sum() / weights.sum(), rtol=1e-4)
    assert np.isclose(metrics["codes"].item(), each[codes].mean(), rtol=1e-4)
    assert np.isclose(metrics["codes_right"].item(), right[codes].mean(), atol=1e-6)


def test_transcribing_stays_near_the_model_at_the_beginning(net, words):
    """Each clip alone through both nets; their distance, over tokens that are no codes, summed by NumPy."""
    heard = mx.array(np.random.default_rng(0).normal(size=(30, net.config.text_config.hidden_size)).astype(np.float32))
    spans = [(3, 7), (12, 4)]
    few = [
        listening([span], False, np.array([*words.encode(text), words.eot], np.int16), words)
        for span, text in zip(spans, (" the cat sat", " what is"), strict=True)
    ]
    config = deeper(net, 2)
    params = decoder.begin(net, config, words, seed=0)
    params["net"]["model"]["norm"]["weight"] = params["net"]["model"]["norm"]["weight"] * 1.3
    loss = decoder.Loss(StepAudioNet(config), heard, words, mx.float32, net)
    batch = Batches(few, words, 256, seed=0, noisy=False).stack(few, 128, np.random.default_rng(0))
    total, metrics = loss(params, decoder.on_device(batch))
    wide = StepAudioNet(config)
    wide.update(decoder.whole(params, loss.digits))
    first, apart, entropy = words.first_audio_code, [], []
    for example, (at, _, size), (begin, n) in zip(few, (e.slots[0][0] for e in few), spans, strict=True):
        tokens, prompt = np.concatenate([example.prompts[0], example.answer]).astype(int), len(example.prompts[0])
        logs = []
        for each in (net, wide):
            x = each.embed(tokens[None], [Slot(0, at, size)], [heard[begin : begin + n]])
            logits = np.array(each.logits(x, NoCache(each.model.rope)))[0, prompt - 1 : -1].astype(np.float64)
            logits = logits[:, :first] if each is net else logits
            logs.append(logits - np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1, keepdims=True))
                        - logits.max(1, keepdims=True))  # fmt: skip
        q, p = logs
        apart += list((np.exp(q) * (q - p[:, :first])).sum(1))
        entropy += list(-p[np.arange(len(p)), tokens[prompt:]])
    assert np.isclose(metrics["apart"].item(), np.mean(apart), rtol=1e-3)
    weight = batch["weight"][batch["weight"] > 0]
    expected = (np.array(entropy) * weight).sum() / weight.sum() + decoder.KEEP_WEIGHT * np.mean(apart)
    assert np.isclose(total.item(), expected, rtol=1e-3)
