"""LoRA folders: written, read again, and held against what the formats' own libraries make of them."""

import json
import re
import shutil

import adapters
import mlx.core as mx
import numpy as np
import pytest
import quantised
from mlx.utils import tree_flatten
from safetensors.numpy import load_file

from stepaudio.checkpoints.lora import write_lora
from stepaudio.checkpoints.quantize import quantise
from stepaudio.checkpoints.recipe import Recipe, parse_rules
from stepaudio.checkpoints.save import save_checkpoint
from stepaudio.decoding.prompt_cache import PromptCache, identity_of
from stepaudio.errors import ConfigError, DataError, WeightsError
from stepaudio.model import StepAudio2
from stepaudio.models.kv_cache import CachePolicy, NoCache
from stepaudio.models.parallel import sharded
from stepaudio.models.quantization import Bits, quantised_layers, whole_parameters
from stepaudio.models.side_branch import branched_layers

TOKENS = np.random.default_rng(0).integers(0, 300, (1, 40))


def pair(inputs: int, rank: int, outputs: int, seed: int = 0) -> tuple[mx.array, mx.array]:
    r = np.random.default_rng(seed)
    return tuple(mx.array(r.standard_normal(s).astype(np.float32)) for s in ((inputs, rank), (rank, outputs)))


# ---- writing ----


def test_what_is_written_is_mlx_lms_format(tmp_path):
    pairs = {"model.layers.1.mlp.up_proj": pair(8, 4, 6), "lm_head": pair(8, 4, 20, 1)}
    write_lora(tmp_path / "lora", pairs, 2.0, base="nano")
    stored = load_file(tmp_path / "lora" / "adapters.safetensors")
    assert sorted(stored) == sorted(f"{name}.lora_{x}" for name in pairs for x in "ab")
    for name, arrays in pairs.items():
        for letter, array in zip("ab", arrays, strict=True):
            np.testing.assert_array_equal(stored[f"{name}.lora_{letter}"], np.array(array).astype(np.float16))
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    keys = ["lm_head", "mlp.up_proj"]
    assert config["lora_parameters"] == {"rank": 4, "scale": 2.0, "dropout": 0.0, "keys": keys}
    assert (config["fine_tune_type"], config["num_layers"], config["model"]) == ("lora", -1, "nano")
    assert {p.name for p in (tmp_path / "lora").iterdir()} == {"adapters.safetensors", "adapter_config.json"}


@pytest.mark.parametrize(
    ("pairs", "scale", "message"),
    [
        ({}, 1.0, "without a layer"),
        ({"lm_head": pair(8, 4, 20)[::-1]}, 1.0, r"lm_head: expected A of .* found \(4, 20\) and \(8, 4\)"),
        ({"lm_head": pair(8, 4, 20), "model.embed_tokens": pair(20, 2, 8)}, 1.0, "expected one rank"),
        ({"lm_head": (mx.full((8, 4), 1e6), mx.ones((4, 20)))}, 1.0, "lm_head.lora_a: has values that float16"),
        ({"lm_head": pair(8, 4, 20)}, float("nan"), "scale: expected a finite number"),
    ],
)
def test_what_is_no_lora_is_not_written(tmp_path, pairs, scale, message):
    with pytest.raises(WeightsError, match=message):
        write_lora(tmp_path / "lora", pairs, scale)
    assert not (tmp_path / "lora" / "adapters.safetensors").exists()


def test_a_folder_that_cannot_be_written_is_one_error(tmp_path):
    (tmp_path / "lora").write_text("a file")
    with pytest.raises(WeightsError, match="the LoRA could not be written"):
        write_lora(tmp_path / "lora", {"lm_head": pair(8, 4, 20)}, 1.0)


# ---- what is read is added to the weights ----


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A small model; not to be changed."""
    return quantised.write(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def pairs(source):
    return adapters.pairs_of(adapters.layers_of(source))


def weights(folder, dtype=mx.float32, **options) -> dict[str, np.ndarray]:
    model = StepAudio2.load(folder, dtype=dtype, **options)
    return {name: np.array(array.astype(mx.float32)) for name, array in tree_flatten(model.net.parameters())}


def check_sums(before: dict, after: dict, pairs: dict, scales: dict) -> None:
    """Every weight that has a pair is the sum, every other one as before."""
    assert before.keys() == after.keys()
    for name, weight in before.items():
        layer = name.removesuffix(".weight")
        if layer in pairs and name != layer:
            wanted = weight + adapters.added(layer, pairs[layer], scales[layer])
            np.testing.assert_allclose(after[name], wanted, rtol=1e-5, atol=1e-6, err_msg=name)
            assert np.abs(after[name] - weight).max() > 0.01
        else:
            np.testing.assert_array_equal(after[name], weight, err_msg=name)


@pytest.mark.parametrize("prefix", ["", "language_model."])
def test_mlx_lms_is_added(source, pairs, tmp_path, prefix):
    folder = adapters.write_mlx(tmp_path / "lora", pairs, prefix=prefix)
    check_sums(weights(source), weights(source, lora=folder), pairs, dict.fromkeys(pairs, adapters.SCALE))


@pytest.mark.parametrize(
    ("config", "scale_of"),
    [
        ({}, lambda name: 3.0),
        ({"use_rslora": True}, lambda name: 6.0),
        ({"alpha_pattern": {"up_proj": 8, r"layers\.1\.self_attn\.[qk]_proj": 2}},
         lambda n: 2.0 if "up_proj" in n else 0.5 if re.search(r"1\.self_attn\.[qk]", n) else 3.0),
    ],
    ids=["plain", "rslora", "patterns"],
)  # fmt: skip
def test_pefts_is_added(source, pairs, tmp_path, config, scale_of):
    folder = adapters.write_peft(tmp_path / "lora", pairs, config)
    check_sums(weights(source), weights(source, lora=folder), pairs, {name: scale_of(name) for name in pairs})


def test_layers_of_other_ranks_are_read_as_the_config_says(source, pairs, tmp_path):
    thin = {"lm_head": adapters.pairs_of({"lm_head": adapters.layers_of(source)["lm_head"]}, rank=2)["lm_head"]}
    few = {"model.layers.0.mlp.up_proj": pairs["model.layers.0.mlp.up_proj"]} | thin
    folder = adapters.write_peft(tmp_path / "lora", few, {"rank_pattern": {"lm_head": 2}})
    scales = {"model.layers.0.mlp.up_proj": 3.0, "lm_head": 6.0}  # alpha is one for all, and divided by each rank
    check_sums(weights(source), weights(source, lora=folder), few, scales)


def test_the_sum_is_rounded_once(source, pairs, tmp_path):
    """To the type that the model is held in, after a sum in float32."""
    folder = adapters.write_mlx(tmp_path / "lora", pairs)
    whole, rounded = weights(source, lora=folder), weights(source, mx.bfloat16, lora=folder)
    for name in pairs:
        wanted = np.array(mx.array(whole[f"{name}.weight"]).astype(mx.bfloat16).astype(mx.float32))
        np.testing.assert_array_equal(rounded[f"{name}.weight"], wanted)


def test_what_write_lora_writes_is_read(source, pairs, tmp_path):
    write_lora(tmp_path / "lora", {name: tuple(map(mx.array, pair)) for name, pair in pairs.items()}, 0.5)
    halves = {name: tuple(x.astype(np.float16).astype(np.float32) for x in pair) for name, pair in pairs.items()}
    check_sums(weights(source), weights(source, lora=tmp_path / "lora"), halves, dict.fromkeys(pairs, 0.5))


def test_layers_of_the_encoder_can_have_one(source, tmp_path):
    layer = "encoder.blocks.0.attn.query"
    own = adapters.pairs_of({layer: (64, 64)})
    folder = adapters.write_mlx(tmp_path / "lora", own)
    check_sums(weights(source), weights(source, lora=folder), own, {layer: adapters.SCALE})


# ---- beside quantised layers ----


@pytest.fixture(scope="module")
def packed(source, tmp_path_factory):
    """The model with all layers of the decoder in four bits, but for the head's eight; the first is left whole."""
    out = tmp_path_factory.mktemp("packed") / "out"
    rules = ["encoder=off", "head=8/32", "model.layers.0.self_attn.*=off"]
    quantise(source, out, parse_rules(rules, Recipe(Bits(4, 32)), "--layer"))
    return out


def logits(net, tokens=None) -> np.ndarray:
    tokens = TOKENS if tokens is None else tokens
    return np.array(net.logits(net.embed(tokens), NoCache(net.model.rope)))


@pytest.mark.parametrize("write", [adapters.write_mlx, adapters.write_peft])
def test_a_quantised_layer_has_it_beside_it(source, packed, pairs, tmp_path, write):
    """The same as a model of floats whose weights are what the quantised ones mean, plus A B."""
    scale = adapters.SCALE if write is adapters.write_mlx else 3.0
    model = StepAudio2.load(packed, dtype=mx.float32, lora=write(tmp_path / "lora", pairs))
    bare = StepAudio2.load(packed, dtype=mx.float32)
    assert quantised_layers(model.net) == quantised_layers(bare.net)
    assert sorted(branched_layers(model.net)) == sorted(n for n in pairs if n in quantised_layers(bare.net))
    assert model.lora.beside == len(branched_layers(model.net)) == len(pairs) - 4
    tensors = {name: np.array(array) for name, array in whole_parameters(bare.net).items()}
    tensors |= {f"{n}.weight": tensors[f"{n}.weight"] + adapters.added(n, p, scale) for n, p in pairs.items()}
    save_checkpoint(tmp_path / "twin", bare.config, {n: mx.array(x.astype(np.float32)) for n, x in tensors.items()})
    twin = logits(StepAudio2.load(tmp_path / "twin", tokenizer=None, dtype=mx.float32).net)
    np.testing.assert_allclose(logits(model.net), twin, atol=2e-4 * np.abs(twin).max())
    assert np.abs(twin - logits(bare.net)).max() > 0.1 * np.abs(twin).max()


def test_one_position_at_a_time_is_the_same(packed, pairs, tmp_path):
    """Steps of one position take products of several layers as one; those with a branch are none of them."""
    net = StepAudio2.load(packed, dtype=mx.float32, lora=adapters.write_mlx(tmp_path / "lora", pairs)).net
    cache, steps = CachePolicy().build(2, net.model.rope), []
    products = net.model.products()
    for token in TOKENS[0]:
        x = net.model(net.embed(np.array([[token]])), cache, products=products)
        steps.append(np.array(net.lm_head(x))[0, 0])
    whole = logits(net)[0]
    np.testing.assert_allclose(np.stack(steps), whole, atol=1e-4 * np.abs(whole).max())


def test_a_branch_is_of_the_type_of_the_model(packed, pairs, tmp_path):
    net = StepAudio2.load(packed, dtype=mx.bfloat16, lora=adapters.write_mlx(tmp_path / "lora", pairs)).net
    layer = net.model.layers[1].mlp.up_proj
    assert layer.branch_a.dtype == layer.branch_b.dtype == net.embed(TOKENS).dtype == mx.bfloat16


class TwoProcesses:
    def size(self):
        return 2

    def rank(self):
        return 0


def test_tensor_parallelism_takes_floats_alone(source, packed, pairs, tmp_path):
    folder = adapters.write_mlx(tmp_path / "lora", pairs)
    with pytest.raises(ConfigError, match=r"is quantised and has a LoRA beside it"):
        sharded(StepAudio2.load(packed, lora=folder).net, TwoProcesses())


@pytest.mark.parametrize("held", ["source", "packed"])
def test_prompts_are_not_shared_with_the_model_without_it(held, pairs, tmp_path, request):
    """A saved prompt cache of the one is refused by the other."""
    folder = adapters.write_mlx(tmp_path / "lora", pairs)
    scaled = {"lora_parameters": {"rank": 4, "scale": 0.5, "dropout": 0.0}}
    other = adapters.write_mlx(tmp_path / "other", pairs, scaled)
    models = [StepAudio2.load(request.getfixturevalue(held), lora=lora) for lora in (None, folder, other)]
    assert len({identity_of(model.net) for model in models}) == 3
    cache = PromptCache()
    models[0].altered(prompt_cache=cache)
    with pytest.raises(DataError):
        models[1].altered(prompt_cache=cache)


# ---- what is refused ----

UP, Q = "model.layers.0.mlp.up_proj", "model.layers.0.self_attn.q_proj"


def loaded(source, folder):
    return StepAudio2.load(source, tokenizer=None, lora=folder)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"fine_tune_type": "dora"}, "fine_tune_type: only 'lora' is read, found 'dora'"),
        ({"fine_tune_type": "full"}, "only 'lora' is read"),
        ({"lora_parameters": None}, "expected rank and scale"),
        ({"lora_parameters": {"rank": 4, "alpha": 8}}, "expected rank and scale"),
        ({"lora_parameters": {"rank": 8, "scale": 1.0}}, "the config says rank 8, its tensors have 4"),
        ({"lora_parameters": {"rank": 4, "scale": "2"}}, "scale: expected a number"),
        ({"lora_parameters": {"rank": True, "scale": 2}}, "rank: expected a whole number"),
    ],
)
def test_configs_of_mlx_lm_that_mean_something_else(source, pairs, tmp_path, config, message):
    with pytest.raises(WeightsError, match=message):
        loaded(source, adapters.write_mlx(tmp_path / "lora", {UP: pairs[UP]}, config))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "LOHA"}, "peft_type: only LORA is read, found 'LOHA'"),
        ({"bias": "lora_only"}, "bias: only 'none' is read"),
        ({"use_dora": True}, "use_dora: is not computed here, found True; merge it"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save: is not computed"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out: is not computed"),
        ({"brand_new_trick": {"x": 1}}, "brand_new_trick: is not computed"),
        ({"init_lora_weights": "pissa_niter_4"}, "'pissa_niter_4' changes the model's own weights"),
        ({"r": 2}, "the config says rank 2, its tensors have 4"),
        ({"rank_pattern": {"up_proj": 2}}, "the config says rank 2"),
        ({"lora_alpha": None}, "lora_alpha: expected a number"),
        ({"alpha_pattern": {"(": 2}}, "is no regular expression"),
        ({"alpha_pattern": [1]}, "alpha_pattern: expected an object"),
    ],
)
def test_configs_of_peft_that_mean_something_else(source, pairs, tmp_path, config, message):
    with pytest.raises(WeightsError, match=message):
        loaded(source, adapters.write_peft(tmp_path / "lora", {UP: pairs[UP]}, config))


def test_pickled_tensors_are_not_read(source, pairs, tmp_path):
    folder = adapters.write_peft(tmp_path / "lora", {UP: pairs[UP]})
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(WeightsError, match=r"adapter_model.safetensors: no such file; expected safetensors"):
        loaded(source, folder)


def zeros(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


@pytest.mark.parametrize(
    ("pairs", "tensors", "message"),
    [
        ({}, {}, "holds no LoRA"),
        ({"model.layers.7.mlp.up_proj": (zeros(64, 4), zeros(4, 128))}, {}, "1 of 1 layers of the LoRA are not in"),
        ({"model.layers.0.input_layernorm": (zeros(64, 4), zeros(4, 64))}, {}, "are not in this model"),
        ({UP: (zeros(32, 4), zeros(4, 128))}, {}, r"up_proj has 64 inputs and 128 outputs, its pair in the LoRA 32"),
        ({UP: (zeros(128, 4), zeros(4, 64))}, {}, "up_proj has 64 inputs"),
        ({"model.embed_tokens": (zeros(64, 4), zeros(4, 64))}, {}, "model.embed_tokens has .* ids and 64 channels"),
        ({UP: (zeros(64, 4), zeros(3, 128))}, {}, "have no rank in common"),
        ({UP: (zeros(64, 4), zeros(4, 128, dtype=np.float64))}, {}, "expected a matrix of BF16, F16, F32, found F64"),
        ({UP: (zeros(64, 4), zeros(4, 128, 1))}, {}, "expected a matrix"),
        ({}, {f"{UP}.lora_a": zeros(64, 4)}, "not the other half of the pair"),
        ({UP: (zeros(64, 4), zeros(4, 128))}, {f"{UP}.m": zeros(128)}, "is of DoRA"),
        ({UP: (zeros(64, 4), zeros(4, 128))}, {f"{UP}.lora_c": zeros(4)}, "1 tensors are of no LoRA"),
        ({UP: (zeros(64, 4), zeros(4, 128))}, {f"language_model.{UP}.lora_a": zeros(64, 4)}, "its pair twice"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit(source, tmp_path, pairs, tensors, message):
    with pytest.raises(WeightsError, match=message):
        loaded(source, adapters.write_mlx(tmp_path / "lora", pairs, **tensors))


def test_a_pair_of_a_table_is_not_taken_for_a_layers(source, tmp_path):
    """A table of as many rows as channels would not tell by its shape."""
    layer = "base_model.model.model.layers.0.self_attn.o_proj"
    halves = {f"{layer}.lora_embedding_{x}": zeros(*s) for x, s in (("A", (4, 64)), ("B", (64, 4)))}
    with pytest.raises(WeightsError, match=r"o_proj is a linear layer, the pair .* is of a table"):
        loaded(source, adapters.write_peft(tmp_path / "lora", {}, **halves))


def test_copies_of_the_models_own_tensors_must_be_its_own(source, packed, pairs, tmp_path):
    """PEFT writes the head whole beside its LoRA."""
    own = load_file(source / "model.safetensors")["lm_head.weight"]
    name, few = "base_model.model.lm_head.base_layer.weight", {"lm_head": pairs["lm_head"]}
    same = adapters.write_peft(tmp_path / "same", few, **{name: own})
    check_sums(weights(source), weights(source, lora=same), few, {"lm_head": 3.0})
    half = adapters.write_peft(tmp_path / "half", few, **{name: own.astype(np.float16)})  # as it was held in training
    check_sums(weights(source), weights(source, lora=half), few, {"lm_head": 3.0})
    moved = adapters.write_peft(tmp_path / "moved", few, **{name: own + np.float32(0.01)})
    with pytest.raises(WeightsError, match=r"base_layer.weight is not the model's own lm_head.weight"):
        loaded(source, moved)
    spare = adapters.write_peft(tmp_path / "spare", few, **{"base_model.model.score.weight": own})
    with pytest.raises(WeightsError, match=r"score.weight: is of no LoRA and of no layer"):
        loaded(source, spare)


def test_folders_that_are_none(source, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    for named, message in (
        ("nowhere", "nowhere: no such folder is here; expected a folder as PEFT or mlx-lm writes it"),
        (tmp_path / "empty", "adapter_config.json: no such file"),
        (tmp_path / "file", "is no folder"),
        ("", "expected a folder"),
        (7, "expected a folder as PEFT or mlx-lm writes it, found 7"),
    ):
        with pytest.raises(WeightsError, match=message):
            loaded(source, named)


def test_a_checkpoint_must_have_what_it_changes(source, pairs, tmp_path):
    shutil.copytree(source, tmp_path / "model")
    quantised.edit(tmp_path / "model", lambda tensors: tensors.pop("lm_head.weight"))
    folder = adapters.write_mlx(tmp_path / "lora", {"lm_head": pairs["lm_head"]})
    with pytest.warns(UserWarning, match="not whole"), pytest.raises(WeightsError, match=r"changes lm_head.weight"):
        StepAudio2.load(tmp_path / "model", allow_random=True, lora=folder)
