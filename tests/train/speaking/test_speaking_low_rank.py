"""A LoRA in training beside a slow twin: each layer's product with two thin matrices added, layer by layer."""

import json

import corpora
import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_map_with_path, tree_unflatten

import stepaudio
from stepaudio.models.kv_cache import NoCache
from stepaudio.models.speech_lm import StepAudioConfig
from stepaudio.train.__main__ import main
from stepaudio.train.speaking import low_rank


def logits_of(net, tokens):
    return np.array(net.logits(net.embed(tokens), NoCache(net.model.rope)))


class Beside(nn.Module):
    """A layer, and the product of its input with two thin matrices, as LoRA was first written down."""

    def __init__(self, layer, a, b):
        super().__init__()
        self.layer, self.a, self.b = layer, a, b

    def __call__(self, x):
        rows = self.a[x] if isinstance(self.layer, nn.Embedding) else x @ self.a
        return self.layer(x) + low_rank.SCALE * (rows @ self.b)


def test_a_fresh_lora_changes_nothing(fresh_net, words):
    net, tokens = fresh_net(), np.array(words.encode("<|BOT|>system\nthe cat<|EOT|>"))
    before = logits_of(net, tokens)
    params = low_rank.begin(net, 4, words, seed=0)
    net.update(low_rank.Added(net, mx.float32)(params))
    assert np.array_equal(logits_of(net, tokens), before)
    assert all(np.array(a).any() for a, _ in low_rank.pairs_of(params).values())


def test_the_weights_with_a_lora_are_those_of_branches_beside_each_layer(fresh_net, words):
    net, twin, tokens = fresh_net(), fresh_net(), np.array(words.encode("<|BOT|>system\nthe cat<|EOT|>"))
    before, rng = logits_of(net, tokens), np.random.default_rng(0)
    params = low_rank.begin(net, 4, words, seed=0)
    params = tree_map_with_path(
        lambda path, x: mx.array(rng.normal(0, 0.1, x.shape).astype(np.float32)) if path.startswith("pairs") else x,
        params,
    )
    net.update(low_rank.Added(net, mx.float32)(params))
    pairs = low_rank.pairs_of(params)
    wrapped = {name: Beside(module, *pairs[name]) for name, module in twin.named_modules() if name in pairs}
    table = wrapped.pop("model.embed_tokens")
    x = table(mx.array(tokens))[None]
    twin.update_modules(tree_unflatten(list(wrapped.items())))
    found, expected = logits_of(net, tokens), np.array(twin.logits(x, NoCache(twin.model.rope)))
    assert np.allclose(found, expected.reshape(found.shape), atol=1e-4)
    assert np.abs(found - before).max() > 0.1
    assert set(pairs) == {"model.embed_tokens", *wrapped} and len(pairs) == 2 + 7 * len(twin.model.layers)


def test_a_run_leaves_the_model_as_it_is_and_its_lora_loads(tmp_path, start, codec):
    """The loss falls; the folder holds no model, and the model with it gives other tokens than without."""
    folder, out = corpora.write_for_speaking(tmp_path / "c"), tmp_path / "run"
    layers = StepAudioConfig.from_file(start).text_config.num_hidden_layers
    sizes = ["--layers", f"{layers}", "--tokens", "256", "--variants", "1", "--low-rank", "8"]
    main(
        [
            *corpora.speaking_command(folder, start, codec, out),
            *sizes,
            "--steps",
            "12",
            "--log-every",
            "4",
            "--rate",
            "0.5",
        ]
    )
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    losses = [line["codes"] for line in lines if "codes_right" in line]
    assert losses[-1] < losses[0] - 0.2
    names = {path.name for path in (out / "model").iterdir()}
    assert names == {"adapters.safetensors", "adapter_config.json", "capabilities.json"}
    tokens = np.array([1, 2, 3])
    plain, tuned = (stepaudio.load(start, lora=lora).net for lora in (None, out / "model"))
    assert not np.allclose(logits_of(plain, tokens), logits_of(tuned, tokens), atol=1e-2)


def test_a_lora_has_no_layers_of_its_own(tmp_path, start, codec, capsys):
    folder = corpora.write_for_speaking(tmp_path / "c")
    with pytest.raises(SystemExit) as left:
        main([*corpora.speaking_command(folder, start, codec, tmp_path / "run"), "--layers", "7", "--low-rank", "2"])
    assert left.value.code == 2 and "layers: 7" in capsys.readouterr().err


def test_a_lora_of_somebody_else_is_not_written_over(tmp_path, start, codec, capsys):
    folder, there = corpora.write_for_speaking(tmp_path / "c"), tmp_path / "run" / "model" / "adapters.safetensors"
    there.parent.mkdir(parents=True)
    there.write_bytes(b"weights of a week")
    with pytest.raises(SystemExit) as left:
        main([*corpora.speaking_command(folder, start, codec, tmp_path / "run"), "--low-rank", "2"])
    assert left.value.code == 2 and "adapters.safetensors" in capsys.readouterr().err
    assert there.read_bytes() == b"weights of a week"
