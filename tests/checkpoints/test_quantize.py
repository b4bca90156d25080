"""Models of fewer bits: against mx.quantize, against the float model of the same values, and every way to be wrong."""

import json
import shutil

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import quantised
import tiny
from mlx.utils import tree_flatten
from safetensors.numpy import load_file

from stepaudio.checkpoints import quantize_plan
from stepaudio.checkpoints.capabilities import Capabilities
from stepaudio.checkpoints.compare import compare_checkpoints
from stepaudio.checkpoints.header import SINGLE_FILE, read_checkpoint
from stepaudio.checkpoints.layout import expected_layout
from stepaudio.checkpoints.load import validate_weights
from stepaudio.checkpoints.quantize import MANIFEST, quantise
from stepaudio.checkpoints.recipe import Recipe
from stepaudio.checkpoints.save import save_checkpoint
from stepaudio.cli.main import main
from stepaudio.errors import ConfigError
from stepaudio.experiments.faults import faulty, unknown_faults
from stepaudio.model import StepAudio2
from stepaudio.models.kv_cache import NoCache
from stepaudio.models.quantization import Bits, quantised_layers, whole_parameters
from stepaudio.models.speech_lm import StepAudioConfig, StepAudioNet

WAYS = {
    "8": Bits(8, 64), "4": Bits(4, 32), "3": Bits(3, 64), "mxfp4": Bits.usual(mode="mxfp4"),
    "mxfp8": Bits.usual(mode="mxfp8"), "nvfp4": Bits.usual(mode="nvfp4"),
}  # fmt: skip
PARTS = (".weight", ".scales", ".biases")
KINDS = {mx.float32: "F32", mx.bfloat16: "BF16", mx.float16: "F16"}


# ---- the file ----


@pytest.mark.parametrize("dtype", list(KINDS))
@pytest.mark.parametrize("way", ["4", "mxfp4"])
def test_what_is_stored_is_what_mlx_makes_of_each_matrix(tmp_path, dtype, way):
    bits = WAYS[way]
    folder = quantised.write(tmp_path / "m", dtype)
    before = mx.load(str(folder / SINGLE_FILE))
    done = quantise(folder, tmp_path / "out", Recipe(bits), shard_bytes=40_000)  # several files
    files = sorted((tmp_path / "out").glob("model-*.safetensors"))
    after = {name: array for file in files for name, array in mx.load(str(file)).items()}
    fates = {t["name"]: t for t in done.manifest["tensors"]}
    assert len(files) > 3 and set(fates) == set(before)
    for name, values in before.items():
        layer = name.removesuffix(".weight")
        if fates[name]["fate"] == "kept":
            assert after[name].dtype == values.dtype and mx.array_equal(after[name], values), name
            assert fates[name]["reason"] in ("a vector", "a kernel of a convolution", "not asked for")
            continue
        parts = mx.quantize(values, **bits.options)
        for suffix, wanted in zip((".weight", ".scales", ".biases"), parts, strict=False):
            found = after[layer + suffix]
            assert found.dtype == wanted.dtype and mx.array_equal(found, wanted), layer + suffix
        means = mx.dequantize(*parts, **bits.options, dtype=dtype).astype(mx.float32)
        moved = np.linalg.norm(np.array(means - values.astype(mx.float32)))
        assert fates[name]["error"] == pytest.approx(
            moved / np.linalg.norm(np.array(values.astype(mx.float32))), rel=1e-4
        )
        assert fates[name]["after"] == sum(part.nbytes for part in parts)
        assert fates[name]["after"] == bits.bytes_of(values.shape, values.itemsize)
    assert {t["fate"] for t in fates.values()} == {"kept", "quantised"}
    assert validate_weights(tmp_path / "out", values=True).exit_status == 0


@pytest.mark.parametrize("block", [1, 200, 1 << 20])
def test_blocks_of_any_size_give_the_same_file(source, tmp_path, monkeypatch, block):
    from stepaudio.checkpoints import quantize

    quantise(source, tmp_path / "whole", Recipe(Bits(4, 32)))
    monkeypatch.setattr(quantize, "BLOCK", block)
    quantise(source, tmp_path / "parts", Recipe(Bits(4, 32)))
    files = [(tmp_path / name / SINGLE_FILE).read_bytes() for name in ("whole", "parts")]
    assert files[0] == files[1]


def test_what_is_held_does_not_grow_with_the_model(tmp_path, monkeypatch):
    """The peak of one matrix after another is that of the largest block."""
    from stepaudio.checkpoints import quantize

    folder = quantised.write(tmp_path / "m")
    monkeypatch.setattr(quantize, "BLOCK", 1 << 12)
    mx.synchronize()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    quantise(folder, tmp_path / "out", Recipe(Bits(4, 32)))
    whole = sum(info.nbytes for info in read_checkpoint(folder).values())
    assert mx.get_peak_memory() - before < 8 * 4 * (1 << 12) < whole / 4
    assert mx.get_active_memory() - before < 1 << 12


def test_tensors_in_int8_with_scales_are_read_as_their_products(source, tmp_path):
    sizes = StepAudioConfig.from_file(source)
    int8 = ["lm_head.weight", "encoder.conv1.weight", "model.layers.0.mlp.up_proj.weight"]
    save_checkpoint(tmp_path / "m", sizes, tiny.weights(sizes), int8=int8)
    quantise(tmp_path / "m", tmp_path / "out", Recipe(None, (("head", Bits(4, 64)),)))
    before, after = load_file(tmp_path / "m" / SINGLE_FILE), load_file(tmp_path / "out" / SINGLE_FILE)
    values = before["lm_head.weight"].astype(np.float32) * before["lm_head.weight_scale"][:, None]
    packed = mx.quantize(mx.array(values), group_size=64, bits=4)
    np.testing.assert_array_equal(after["lm_head.weight"], np.array(packed[0]))
    for name in int8[1:]:  # the storage in eight bits of what is kept stays
        assert after[name].dtype == np.int8
        np.testing.assert_array_equal(after[f"{name}_scale"], before[f"{name}_scale"])
    assert StepAudio2.load(tmp_path / "out", tokenizer=None).report.whole


# ---- the net ----


@pytest.mark.parametrize("way", WAYS)
def test_logits_are_those_of_the_float_model_of_the_same_values(source, tmp_path, way):
    """The same net with float32 matrices, each the dequantised one."""
    quantise(source, tmp_path / "out", Recipe(WAYS[way]))
    small, plain = StepAudio2.load(tmp_path / "out", dtype=mx.float32), StepAudioNet(StepAudioConfig.from_file(source))
    plain.load_weights(list(whole_parameters(small.net).items()))
    assert set(quantised_layers(small.net).values()) == {WAYS[way]}
    assert len(quantised_layers(small.net)) == 29 + (WAYS[way].group_size < 64)  # rows of 96
    mels = [small.engine.log_mel(tiny.noise(1.3)), small.engine.log_mel(tiny.noise(0.7, seed=1))]
    tokens = np.arange(24) % 200
    found = []
    for net in (small.net, plain):
        encoded = net.encode_audio(mels)
        x = mx.concatenate([net.embed(tokens), encoded[0][None], encoded[1][None]], axis=1)
        found.append([*encoded, net.logits(x, NoCache(net.model.rope))])
    for ours, theirs in zip(*found, strict=True):
        assert ours.dtype == mx.float32
        scale = np.abs(np.array(theirs)).max()
        np.testing.assert_allclose(np.array(ours), np.array(theirs), atol=2e-5 * scale)


def test_each_layer_has_what_the_recipe_says_and_the_model_says_so(source, tmp_path):
    (tmp_path / "recipe.json").write_text(json.dumps({
        "decoder": 4, "model.layers.*.mlp.down_proj": {"bits": 6, "group_size": 32}, "head": "8/32",
        "model.layers.1.*": False, "embeddings": "mxfp8",
    }))  # fmt: skip
    quantise(source, tmp_path / "out", Recipe.from_file(tmp_path / "recipe.json"))
    model = StepAudio2.load(tmp_path / "out")
    held = quantised_layers(model.net)
    assert held.pop("lm_head") == Bits(8, 32) and held.pop("model.embed_tokens") == Bits(8, 32, "mxfp8")
    assert held.pop("model.layers.0.mlp.down_proj") == Bits(6, 32)
    assert set(held.values()) == {Bits(4, 64)}
    names = (*(f"self_attn.{n}_proj" for n in "qkvo"), "mlp.gate_proj", "mlp.up_proj")
    assert set(held) == {f"model.layers.0.{name}" for name in names}
    assert "6 layers of 4 bits in groups of 64" in repr(model)
    plain = StepAudio2.load(source)
    assert repr(plain).split("parameters")[1].split("\n")[0] == repr(model).split("parameters")[1].split("\n")[0]


def test_rows_that_no_group_divides_stay_and_are_said_to(small):
    tensors = {t["name"]: t for t in json.loads((small / MANIFEST).read_text())["tensors"]}
    assert tensors["adapter.linear2.weight"]["reason"] == "rows of 96 are no multiple of 64"
    assert tensors["adapter.linear1.weight"]["fate"] == "quantised"
    assert "adapter.linear2" not in json.loads((small / "config.json").read_text())["quantization"]
    assert StepAudio2.load(small).report.whole


def test_two_models_of_fewer_bits_are_compared_by_their_values(source, small, tmp_path):
    quantise(source, tmp_path / "other", Recipe(Bits(8, 64)))
    found = {t.name: t for t in compare_checkpoints(source, small, rank=0).tensors}
    assert found["lm_head.weight"].outcome == "equal" and set(found) == set(
        expected_layout(StepAudioConfig.from_file(source))
    )
    packed, values = load_file(small / SINGLE_FILE), load_file(source / SINGLE_FILE)
    layer = "model.layers.0.mlp.up_proj"
    means = mx.dequantize(*(mx.array(packed[layer + p]) for p in PARTS), group_size=64, bits=4)
    relative = np.linalg.norm(np.array(means) - values[layer + ".weight"]) / np.linalg.norm(values[layer + ".weight"])
    assert found[f"{layer}.weight"].relative == pytest.approx(relative, rel=1e-5)
    closer = {t.name: t for t in compare_checkpoints(source, tmp_path / "other", rank=0).tensors}
    assert closer[f"{layer}.weight"].relative < relative / 8


# ---- as MLX's own tools have it ----


def by_the_config(said: dict, stored):
    """Which layers MLX's tools quantise when they read a folder: those that the config names, or that have scales."""

    def chosen(path, module):
        if path in said:
            return dict(said[path]) if isinstance(said[path], dict) else said[path]
        return hasattr(module, "to_quantized") and f"{path}.scales" in stored

    return chosen


def test_mlx_reads_what_is_written_here(small):
    stored, said = mx.load(str(small / SINGLE_FILE)), json.loads((small / "config.json").read_text())["quantization"]
    ours, theirs = StepAudio2.load(small), StepAudioNet(StepAudioConfig.from_file(small))
    nn.quantize(
        theirs, said["group_size"], said["bits"], mode=said["mode"], class_predicate=by_the_config(said, stored)
    )
    kernels = ("encoder.conv1.weight", "encoder.conv2.weight", "adapter.conv.weight")
    held = {n: a.transpose(0, 2, 1) if n in kernels else a for n, a in stored.items()}
    theirs.load_weights(list(held.items()), strict=True)
    tokens = np.arange(20)
    logits = [net.logits(net.embed(tokens), NoCache(net.model.rope)) for net in (ours.net, theirs)]
    np.testing.assert_allclose(*map(np.array, logits), atol=1e-4)


@pytest.mark.parametrize("table", [True, False])
def test_what_mlx_writes_is_read_here(source, tmp_path, table):
    """`nn.quantize` of all that it can, positions too; a config with nothing but bits and group size."""
    out = shutil.copytree(source, tmp_path / "out")
    net = StepAudio2.load(source, dtype=mx.float32).net
    nn.quantize(net, 32, 4, class_predicate=lambda p, m: hasattr(m, "to_quantized") and (table or "position" not in p))
    kernels = ("encoder.conv1.weight", "encoder.conv2.weight", "adapter.conv.weight")
    held = dict(tree_flatten(net.parameters()))
    stored = {n: mx.contiguous(a.transpose(0, 2, 1)) if n in kernels else a for n, a in held.items()}
    mx.save_safetensors(str(out / SINGLE_FILE), stored)
    said = {"group_size": 32, "bits": 4} | ({} if table else {"encoder.positional_embedding": False})
    quantised.edit_config(out, lambda c: c.update(quantization=said))
    ours, mel = StepAudio2.load(out), StepAudio2.load(source).engine.log_mel(tiny.noise(1.0))
    assert ("encoder.positional_embedding" in quantised_layers(ours.net)) == table
    found = [np.array(one.encode_audio([mel])[0]) for one in (ours.net, net)]
    np.testing.assert_allclose(*found, atol=2e-5 * np.abs(found[1]).max())


# ---- folders and the command ----


def test_a_run_that_is_killed_leaves_the_earlier_model_or_none(source, small, copy, monkeypatch):
    from stepaudio.checkpoints import quantize

    before = {p.name: p.read_bytes() for p in copy.iterdir()}
    calls = []

    def stopped(*_):
        calls.append(1)
        if len(calls) == 20:
            raise KeyboardInterrupt
        return real(*_)

    real = quantize._write
    monkeypatch.setattr(quantize, "_write", stopped)
    with pytest.raises(KeyboardInterrupt):
        quantise(source, copy, Recipe(Bits(8)))
    assert {p.name: p.read_bytes() for p in copy.iterdir()} == before


def test_what_a_model_can_do_goes_along(source, tmp_path):
    """A base model is known by its folder's name; written into another one it still has prompts without turns."""
    base = shutil.copytree(source, tmp_path / "Step-Audio-2-mini-Base")
    quantise(base, tmp_path / "small", Recipe(Bits(4)))
    said = Capabilities.of(tmp_path / "small")
    assert not said.turns and not said.allow("respond") and said.allow("transcribe")
    assert StepAudio2.load(tmp_path / "small").pipeline == StepAudio2.load(base).pipeline


def test_the_command_writes_reads_and_replaces_its_own_alone(source, tmp_path, capsys, monkeypatch):
    out = str(tmp_path / "out")
    assert main(["quantize", str(source), out, "--bits", "4", "--layer", "head=8"]) == 0
    assert "1 x 8 bits in groups of 64" in capsys.readouterr().out
    assert main(["quantize", str(source), out, "--mode", "mxfp8", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["default"] == {"bits": 8, "group_size": 32, "mode": "mxfp8"}
    assert main(["weights", out]) == 0 and "8-bit mxfp8 by 32" in capsys.readouterr().out
    assert main(["transcribe", "data/speech/word_emma.flac", "--model", out, "--max-tokens", "3"]) == 0
    capsys.readouterr()
    for words, message in [
        ([str(source), str(source), "--bits", "4"], "is read by this command"),
        ([str(source), out], "expected --bits, --mode, --recipe or --layer"),
        ([str(source), out, "--bits", "7"], "expected bits 2, 3, 4, 5, 6, 8 in mode affine, found 7"),
        ([str(source), out, "--mode", "nvfp4", "--group", "32"], "expected group_size 16 in mode nvfp4, found 32"),
        ([str(source), out, "--layer", "head"], "expected PATTERN=BITS"),
        ([str(source), out, "--layer", "head=many"], "expected 8, 4/32"),
        ([str(source), out, "--layer", "vocoder=8"], "no converted token2wav lies in"),
        ([out, str(tmp_path / "two"), "--bits", "4"], "quantised already"),
    ]:
        assert main(["quantize", *words]) == 2, words
        told = capsys.readouterr().err.strip()
        assert message in told and "\n" not in told and len(told) < 1000
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    assert main(["quantize", str(source), str(tmp_path / "mine"), "--bits", "4"]) == 2
    assert "is not of a quantised model" in capsys.readouterr().err
    assert main(["quantize", str(source), str(tmp_path / "mine"), "--bits", "4", "--force"]) == 0


def test_a_float_model_saved_over_a_quantised_one_is_a_float_model(source, copy):
    sizes = StepAudioConfig.from_file(source)
    save_checkpoint(copy, sizes, tiny.weights(sizes))
    assert not quantised_layers(StepAudio2.load(copy).net)


def test_shards_are_filled_in_order(source):
    plan = quantize_plan.plan_quantisation(source, Recipe(Bits(4)), shard_bytes=30_000)
    sizes = [sum(e.nbytes for e in entries.values()) for entries in plan.shards.values()]
    assert all(size <= 30_000 or len(entries) <= 3 for size, entries in zip(sizes, plan.shards.values(), strict=True))
    assert plan.files[-1] == "config.json" and plan.nbytes > sum(sizes)


def test_a_rule_as_a_fault_gives_the_values_of_the_quantised_folder(source, tmp_path):
    quantise(source, tmp_path / "out", Recipe().with_rule("decoder", 4).with_rule("encoder", "8/32"))
    kept, model = whole_parameters(StepAudio2.load(tmp_path / "out").net), StepAudio2.load(source)
    found = faulty(model, "bits:encoder=8/32+bits:decoder=4")
    for name, held in tree_flatten(found.net.parameters()):
        np.testing.assert_array_equal(np.array(held), np.array(kept[name]), err_msg=name)
    assert model.net.lm_head is not found.net.lm_head and model.net.lm_head.weight is found.net.lm_head.weight
    with pytest.raises(ConfigError, match="expected PATTERN=BITS"):
        unknown_faults(["bits:encoder"])
    with pytest.raises(ConfigError, match="quantised already"):
        faulty(StepAudio2.load(tmp_path / "out"), "bits_4")
