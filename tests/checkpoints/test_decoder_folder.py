"""The decoder as a folder for mlx-lm, and back: against mlx-lm itself where it is installed, and by round trips."""

import json
import shutil

import mlx.core as mx
import numpy as np
import pytest
import quantised
from mlx.utils import tree_flatten
from safetensors.numpy import load_file

from stepaudio.checkpoints import decoder_folder
from stepaudio.checkpoints.capabilities import Capabilities
from stepaudio.checkpoints.decoder_folder import MANIFEST, plan_decoder, plan_return, write_export
from stepaudio.checkpoints.header import INDEX_FILE, SINGLE_FILE
from stepaudio.checkpoints.int8 import SCALE
from stepaudio.checkpoints.quantize import quantise
from stepaudio.checkpoints.recipe import Recipe, parse_rules
from stepaudio.checkpoints.save import save_checkpoint
from stepaudio.cli.main import main
from stepaudio.errors import ConfigError, StepAudioError, WeightsError
from stepaudio.model import StepAudio2
from stepaudio.models.kv_cache import NoCache
from stepaudio.models.quantization import Bits, quantised_layers
from stepaudio.models.speech_lm import StepAudioConfig

TOKENS = np.random.default_rng(0).integers(0, 300, (1, 40))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return quantised.write(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def decoder(source, tmp_path_factory):
    """The folder for mlx-lm; not to be changed."""
    out = tmp_path_factory.mktemp("decoder") / "out"
    write_export(plan_decoder(source), out)
    return out


@pytest.fixture
def copy(decoder, tmp_path):
    return shutil.copytree(decoder, tmp_path / "copy")


def stored(folder) -> dict[str, np.ndarray]:
    return load_file(folder / SINGLE_FILE)


def our_logits(folder) -> np.ndarray:
    net = StepAudio2.load(folder, dtype=mx.float32).net
    return np.array(net.logits(net.embed(TOKENS), NoCache(net.model.rope)))


# ---- against mlx-lm ----


@pytest.mark.parametrize("rules", [None, ["embeddings=off"], ["head=8/32", "encoder=off"]], ids=["float", "4", "mixed"])
def test_mlx_lm_computes_the_same_logits(source, tmp_path, rules):
    utils = pytest.importorskip("mlx_lm.utils", reason="needs mlx-lm, the extra `mlx-lm`")
    if rules is not None:
        quantise(source, tmp_path / "small", parse_rules(rules, Recipe(Bits(4, 64)), "--layer"))
        source = tmp_path / "small"
    write_export(plan_decoder(source), tmp_path / "out")
    theirs, _ = utils.load_model(tmp_path / "out")
    ours = our_logits(source)
    found = np.array(theirs(mx.array(TOKENS)))
    np.testing.assert_allclose(found, ours, atol=1e-4 * np.abs(ours).max())
    net = StepAudio2.load(source, dtype=mx.float32).net
    embedded = theirs(mx.array(TOKENS), input_embeddings=net.embed(TOKENS))
    np.testing.assert_allclose(np.array(embedded), ours, atol=1e-4 * np.abs(ours).max())


def test_what_mlx_lm_quantised_comes_back(source, decoder, tmp_path):
    utils = pytest.importorskip("mlx_lm.utils", reason="needs mlx-lm, the extra `mlx-lm`")
    theirs, config = utils.load_model(decoder)
    theirs, config = utils.quantize_model(theirs, config, 64, 8)
    utils.save_model(tmp_path / "q", theirs)
    utils.save_config(config, tmp_path / "q" / "config.json")
    assert (tmp_path / "q" / INDEX_FILE).is_file()  # beside the one file that it names
    write_export(plan_return(source, tmp_path / "q"), tmp_path / "back")
    ours, found = our_logits(tmp_path / "back"), np.array(theirs(mx.array(TOKENS)))
    np.testing.assert_allclose(ours, found, atol=1e-4 * np.abs(found).max())


# ---- without it ----


def test_tensors_are_those_of_the_decoder_byte_by_byte(source, decoder):
    before, after = stored(source), stored(decoder)
    assert set(after) == {n for n in before if n.startswith(("model.", "lm_head."))}
    assert all(np.array_equal(before[n], after[n]) for n in after)
    assert json.loads((decoder / MANIFEST).read_text())["tensors"].keys() == after.keys()
    assert (decoder / "tokenizer_config.json").read_bytes() == (source / "tokenizer_config.json").read_bytes()


def test_the_way_there_and_back_changes_nothing(source, decoder, tmp_path):
    write_export(plan_return(source, decoder), tmp_path / "back")
    before, after = stored(source), stored(tmp_path / "back")
    assert before.keys() == after.keys() and all(np.array_equal(before[n], after[n]) for n in before)
    assert StepAudioConfig.from_file(tmp_path / "back") == StepAudioConfig.from_file(source)


def test_bits_of_either_side_are_kept(source, tmp_path):
    """Of the model's encoder and of the decoder's folder, each with its own; all else as floats."""
    quantise(source, tmp_path / "ears", parse_rules(["encoder=8/32"], Recipe(None), "--layer"))
    quantise(source, tmp_path / "words", parse_rules(["decoder=4/64"], Recipe(None), "--layer"))
    write_export(plan_decoder(tmp_path / "words"), tmp_path / "decoder")
    write_export(plan_return(tmp_path / "ears", tmp_path / "decoder"), tmp_path / "back")
    bits = quantised_layers(StepAudio2.load(tmp_path / "back").net)
    assert {b for n, b in bits.items() if n.startswith("encoder")} == {Bits(8, 32)}
    assert {b for n, b in bits.items() if n.startswith("model.layers")} == {Bits(4, 64)}
    assert "lm_head" not in bits and "model.embed_tokens" not in bits


def test_a_model_in_two_types_is_written_in_one(tmp_path):
    """mlx-lm would compute in the type of each tensor; the values are those that are computed with here."""
    source = quantised.write(tmp_path / "source")
    quantised.edit(
        source, lambda t: t.update({"model.embed_tokens.weight": t["model.embed_tokens.weight"].astype("<f2")})
    )
    write_export(plan_decoder(source), tmp_path / "out")
    before, after = stored(source), stored(tmp_path / "out")
    assert {a.dtype for a in after.values()} == {np.dtype("f4")}
    assert all(np.array_equal(after[n], before[n].astype("f4")) for n in after)


def test_eight_bits_with_scales_become_the_values_that_they_mean(tmp_path):
    source = quantised.write(tmp_path / "source")
    config = StepAudioConfig.from_file(source)
    name = "model.layers.0.mlp.up_proj.weight"
    net = StepAudio2.load(source).net
    save_checkpoint(source, config, dict(tree_flatten(net.parameters())), int8=[name, "encoder.blocks.0.mlp.0.weight"])
    held = stored(source)
    write_export(plan_decoder(source), tmp_path / "out")
    after = stored(tmp_path / "out")
    np.testing.assert_array_equal(after[name], held[name].astype("f4") * held[name + SCALE][:, None])
    assert name + SCALE not in after
    write_export(plan_return(source, tmp_path / "out"), tmp_path / "back")
    assert stored(tmp_path / "back")["encoder.blocks.0.mlp.0.weight"].dtype == np.int8


def test_what_a_name_says_of_a_model_is_written_down(decoder, tmp_path):
    """A base model is known by its folder's name, which the copy has not."""
    source = quantised.write(tmp_path / "Step-Audio-2-mini-Base")
    write_export(plan_return(source, decoder), tmp_path / "tuned")
    assert not Capabilities.of(tmp_path / "tuned").turns and Capabilities.of(decoder).turns


def test_several_files_have_an_index(source, tmp_path, monkeypatch):
    monkeypatch.setattr(decoder_folder, "SHARD_BYTES", 50_000)
    write_export(plan_decoder(source), tmp_path / "out")
    index = json.loads((tmp_path / "out" / INDEX_FILE).read_text())
    assert len(set(index["weight_map"].values())) > 2
    write_export(plan_return(source, tmp_path / "out"), tmp_path / "back")
    np.testing.assert_array_equal(our_logits(tmp_path / "back"), our_logits(source))


def test_float32_on_request(tmp_path):
    source = quantised.write(tmp_path / "half", mx.bfloat16)
    write_export(plan_decoder(source), tmp_path / "as-stored")
    write_export(plan_decoder(source, float32=True), tmp_path / "wide")
    narrow, wide = (mx.load(str(tmp_path / name / SINGLE_FILE)) for name in ("as-stored", "wide"))
    assert {a.dtype for a in narrow.values()} == {mx.bfloat16} and {a.dtype for a in wide.values()} == {mx.float32}
    assert all(mx.array_equal(narrow[n].astype(mx.float32), wide[n]).item() for n in wide)


WRONG = {
    "another model": (lambda f: quantised.edit_config(f, lambda c: c.update(model_type="llama")), "expected 'qwen2'"),
    "other sizes": (lambda f: quantised.edit_config(f, lambda c: c.update(rope_theta=1e4)), "rope_theta is 10000"),
    "tied": (lambda f: quantised.edit_config(f, lambda c: c.update(tie_word_embeddings=True)), "tie_word_embeddings"),
    "scaled": (lambda f: quantised.edit_config(f, lambda c: c.update(rope_scaling={"type": "yarn"})), "rope_scaling"),
    "unknown": (lambda f: quantised.edit_config(f, lambda c: c.update(rope_traditional=True)), "rope_traditional"),
    "another method": (
        lambda f: quantised.edit_config(f, lambda c: c.update(quantization_config={"quant_method": "awq"})),
        "quantization_config",
    ),
    "adapters": (
        lambda f: quantised.edit(f, lambda t: t.update({"model.layers.0.mlp.up_proj.lora_a": np.ones((2, 2), "f4")})),
        "be fused first",
    ),
    "missing": (lambda f: quantised.edit(f, lambda t: t.pop("model.norm.weight")), "not whole"),
    "mis-shaped": (
        lambda f: quantised.edit(f, lambda t: t.update({"model.norm.weight": np.ones(3, "f4")})), "not whole"
    ),
    "no config": (lambda f: (f / "config.json").unlink(), "config.json"),
    "no weights": (lambda f: (f / SINGLE_FILE).unlink(), "safetensors"),
    "unclaimed bits": (
        lambda f: quantised.edit(f, lambda t: t.update({"lm_head.scales": np.ones((2, 2), "f4")})),
        "no quantization in config.json",
    ),
    "other bits": (lambda f: _said(f, 8), "does not fit together"),
}  # fmt: skip


def _said(folder, bits: int) -> None:
    """The head in four bits, said to have others."""

    def change(tensors):
        w, scales, biases = mx.quantize(mx.array(tensors.pop("lm_head.weight")), 64, 4)
        tensors |= {
            "lm_head.weight": np.array(w),
            "lm_head.scales": np.array(scales),
            "lm_head.biases": np.array(biases),
        }

    quantised.edit(folder, change)
    quantised.edit_config(folder, lambda c: c.update(quantization={"bits": bits, "group_size": 64}))


@pytest.mark.parametrize("what", WRONG)
def test_a_folder_that_does_not_fit_is_refused_in_one_line(source, copy, tmp_path, what):
    spoil, expected = WRONG[what]
    spoil(copy)
    with pytest.raises(StepAudioError, match=expected) as refused:
        plan_return(source, copy)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 1000


def test_only_layers_with_scales_are_taken_as_quantised(source, copy, tmp_path):
    """As mlx-lm reads its folders: the config says how many bits, the tensors say which layers."""
    _said(copy, 4)
    write_export(plan_return(source, copy), tmp_path / "back")
    assert quantised_layers(StepAudio2.load(tmp_path / "back").net) == {"lm_head": Bits(4, 64)}


def test_a_model_that_is_not_whole_is_not_exported(tmp_path):
    source = quantised.edit(quantised.write(tmp_path / "s"), lambda t: t.pop("lm_head.weight"))
    with pytest.raises(WeightsError, match="not whole"):
        plan_decoder(source)
    with pytest.raises(ConfigError):
        plan_decoder(tmp_path / "nowhere")


def test_an_interrupted_export_leaves_no_config(source, decoder, tmp_path, monkeypatch):
    out = shutil.copytree(decoder, tmp_path / "out")
    before = (out / SINGLE_FILE).read_bytes()
    monkeypatch.setattr(decoder_folder, "_write", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_export(plan_decoder(source), out)
    assert (out / SINGLE_FILE).read_bytes() == before and not list(out.glob(".exporting-*"))


# ---- the command ----


def test_the_command_both_ways(source, tmp_path, capsys):
    assert main(["export", "mlx-lm", str(source), str(tmp_path / "d"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["source"] == source.resolve().name
    assert main(["export", "mlx-lm", str(source), str(tmp_path / "d")]) == 0  # its own output is replaced
    assert main(["export", "step-audio", str(source), str(tmp_path / "b"), "--decoder", str(tmp_path / "d")]) == 0
    np.testing.assert_array_equal(our_logits(tmp_path / "b"), our_logits(source))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["mlx", "{s}", "{o}"], "did you mean"),
        (["mlx-lm", "{s}", "{o}", "--decoder", "{s}"], "leave it out"),
        (["step-audio", "{s}", "{o}"], "expected the folder that mlx-lm wrote"),
        (["step-audio", "{s}", "{o}", "--decoder", "{o}"], "no such folder"),
        (["step-audio", "{s}", "{o}", "--decoder", "{s}"], "expected 'qwen2'"),
        (["mlx-lm", "{s}", "{s}"], "is read by this command"),
    ],
)
def test_the_command_refuses_in_one_line(source, tmp_path, capsys, words, expected):
    argv = [w.format(s=source, o=tmp_path / "o") for w in words]
    assert main(["export", *argv]) == 2
    said = capsys.readouterr().err
    assert expected in said and len(said.splitlines()) == 1 and not (tmp_path / "o").exists()


def test_files_of_others_are_left_alone(source, tmp_path, capsys):
    (tmp_path / "config.json").write_text("{}")
    assert main(["export", "mlx-lm", str(source), str(tmp_path)]) == 2
    assert (tmp_path / "config.json").read_text() == "{}" and "--force" in capsys.readouterr().err
    assert main(["export", "mlx-lm", str(source), str(tmp_path), "--force"]) == 0
