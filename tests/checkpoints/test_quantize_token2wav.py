"""Nets of token2wav of fewer bits: against mx.quantize, against the float nets of the same values, and false claims."""

import json
import math
import os
import shutil

import mlx.core as mx
import numpy as np
import pytest
import quantised
from safetensors.numpy import load_file, save_file

import stepaudio.checkpoints.token2wav as loading
from stepaudio.audio.features import log_mel
from stepaudio.audio.load import load_audio
from stepaudio.checkpoints import quantize
from stepaudio.checkpoints.layout import TOKEN2WAV, build, net_layout, parameters_of
from stepaudio.checkpoints.load import validate_weights
from stepaudio.checkpoints.quantize import MANIFEST, quantise
from stepaudio.checkpoints.random_weights import random_token2wav, sizes
from stepaudio.checkpoints.recipe import Recipe, parse_rules
from stepaudio.checkpoints.token2wav import load_token2wav
from stepaudio.cli.main import main
from stepaudio.errors import ConfigError, StepAudioError, WeightsError
from stepaudio.interp.streaming import mel_distance_db
from stepaudio.models.quantization import Bits, quantised_layers
from stepaudio.models.token2wav.flow import FlowOptions, Prompt
from stepaudio.train.token2wav.run import join, read_net, write_net

PARTS = (".weight", ".scales", ".biases")


@pytest.fixture(scope="module")
def nets(tmp_path_factory):
    """A converted folder of small random nets; the speaker encoder in eight bits with scales."""
    made, run = random_token2wav("small"), tmp_path_factory.mktemp("run")
    for component in TOKEN2WAV:
        write_net(run, component, getattr(made, component))
    join([run], out := tmp_path_factory.mktemp("nets"), int8=["speaker"])
    return out


@pytest.fixture(scope="module")
def small(nets, tmp_path_factory):
    """All nets in four bits by 32; not to be changed."""
    out = tmp_path_factory.mktemp("small")
    quantise(nets, out, Recipe(Bits(4, 32)))
    return out


@pytest.fixture(scope="module")
def model(nets, tmp_path_factory):
    """A language model with these nets beside it."""
    folder = quantised.write(tmp_path_factory.mktemp("model"))
    shutil.copytree(nets, folder / "token2wav")
    return folder


@pytest.fixture
def copy(small, tmp_path):
    return shutil.copytree(small, tmp_path / "copy")


def fates(folder) -> dict[str, dict]:
    return {tensor["name"]: tensor for tensor in json.loads((folder / MANIFEST).read_text())["tensors"]}


def by_hand(values: mx.array, bits: Bits) -> tuple[mx.array, ...]:
    """What MLX makes of a tensor: by rows, or by groups that run over them."""
    rows = values.reshape(len(values), -1)
    return mx.quantize(rows if bits.fits(rows.shape[1]) else values.reshape(-1, bits.group_size), **bits.options)


# ---- the files ----


@pytest.mark.parametrize("bits", [Bits(3, 64), Bits.usual(mode="mxfp4")], ids=str)
def test_what_is_stored_is_what_mlx_makes_of_each_matrix_and_kernel(nets, tmp_path, bits):
    quantise(nets, tmp_path / "out", Recipe(bits))
    told, kept = fates(tmp_path / "out"), set()
    for component, config in sizes("small").items():
        before = mx.load(str(nets / f"{component}.safetensors"))
        after = mx.load(str(tmp_path / "out" / f"{component}.safetensors"))
        names = [name for name in before if not name.endswith("_scale")]
        assert {f"{component}.{name}" for name in names} == {n for n in told if n.startswith(f"{component}.")}
        for name in names:
            fate, layer, values = told[f"{component}.{name}"], name.removesuffix(".weight"), before[name]
            if fate["fate"] == "kept":
                kept.add(fate["reason"].split()[0])
                assert mx.array_equal(after[name], values)
                continue
            scale = before.get(f"{name}_scale")
            if scale is not None:
                values = values.astype(mx.float32) * scale.reshape(-1, *[1] * (values.ndim - 1))
            for suffix, wanted in zip(PARTS, by_hand(values, bits), strict=False):
                assert after[layer + suffix].dtype == wanted.dtype and mx.array_equal(after[layer + suffix], wanted)
            assert fate["after"] == sum(after[layer + s].nbytes for s in PARTS if layer + s in after)
            assert math.prod(net_layout(config)[name]) % bits.group_size == 0 and values.ndim > 1
    assert kept == {"a", "no", "its"}  # a vector; no matrix of a layer; its 9 are no multiple of 64
    assert validate_weights(tmp_path / "out", values=True).exit_status == 0


def test_blocks_of_any_size_give_the_same_files_and_bound_what_is_held(nets, small, tmp_path, monkeypatch):
    monkeypatch.setattr(quantize, "BLOCK", 1 << 9)
    mx.synchronize()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    quantise(nets, tmp_path / "parts", Recipe(Bits(4, 32)))
    table = math.prod(net_layout(sizes("small")["flow"])["input_embedding.weight"]) * 2
    assert mx.get_peak_memory() - before < 160 << 10 < table / 4  # of a kernel, some rows give whole groups
    for component in TOKEN2WAV:
        assert (tmp_path / "parts" / f"{component}.safetensors").read_bytes() == (
            small / f"{component}.safetensors"
        ).read_bytes()


def test_a_model_has_its_rules_and_all_else_as_it_was(model, nets, tmp_path):
    """No default reaches token2wav, and no pattern that does not name a net."""
    rules = ["flow=4/32", "flow.decoder.estimator.blocks.0.*=off", "vocoder=6/32", "*.mlp.*=off"]
    quantise(model, tmp_path / "out", parse_rules(rules, Recipe(Bits(4, 64)), "--layer"))
    out = fates(tmp_path / "out")
    bits = {n: t.get("bits") for n, t in out.items()}
    assert bits["lm_head.weight"] == 4 and bits["model.layers.0.mlp.up_proj.weight"] is None
    assert bits["flow.decoder.estimator.blocks.0.mlp.fc1.weight"] is None
    assert bits["flow.decoder.estimator.blocks.1.mlp.fc1.weight"] == 4 and bits["hift.conv_pre.weight"] == 6
    for component in ("tokenizer", "speaker"):
        file = f"{component}.safetensors"
        before, after = load_file(nets / file), load_file(tmp_path / "out" / "token2wav" / file)
        assert all(np.array_equal(before[name], after[name]) for name in before) and set(before) == set(after)
    report = validate_weights(tmp_path / "out")
    assert report.whole and "6-bit affine by 32" in report.table()
    plain = tmp_path / "plain"
    quantise(model, plain, Recipe(Bits(4, 64)))
    for name in ("converted.json", *(f"{c}.safetensors" for c in TOKEN2WAV)):
        assert (plain / "token2wav" / name).read_bytes() == (nets / name).read_bytes()
    assert not any(name.startswith("flow.") for name in fates(plain))
    speech = tmp_path / "speech"
    quantise(model, speech, Recipe().with_rule("flow", 4))  # nothing of the language model
    before, after = (load_file(folder / "model.safetensors") for folder in (model, speech))
    assert all(np.array_equal(before[name], after[name]) for name in before) and set(before) == set(after)
    assert validate_weights(speech).whole and "quantization" not in json.loads((speech / "config.json").read_text())


# ---- the nets ----


def test_nets_hold_the_values_that_the_numbers_mean(nets, small):
    """MLX's own dequantising of MLX's own quantising, in the axes of the net."""
    found = load_token2wav(small)
    for component, config in sizes("small").items():
        held, told = parameters_of(getattr(found, component)), fates(small)
        source = parameters_of(getattr(load_token2wav(nets), component))
        assert {n: a.shape for n, a in held.items()} == {n: a.shape for n, a in parameters_of(build(config)).items()}
        for name, array in held.items():
            wanted = source[name]
            if told[f"{component}.{name}"]["fate"] == "quantised":
                bits = Bits(4, 32)
                stored = wanted if component == "speaker" else wanted.astype(mx.float16)
                parts = [
                    part.astype(mx.float32) if part.dtype == mx.float16 else part for part in by_hand(stored, bits)
                ]
                wanted = mx.dequantize(*parts, **bits.options).reshape(wanted.shape)
            np.testing.assert_allclose(np.array(array), np.array(wanted), rtol=1e-6, atol=1e-7, err_msg=name)


def test_the_flow_speaks_alike_packed_and_widened(small, monkeypatch):
    widened = load_token2wav(small).flow
    monkeypatch.setattr(loading, "on_cpu", lambda: False)
    found = load_token2wav(small)
    packed = found.flow
    assert len(quantised_layers(packed)) > 20 and not quantised_layers(widened)
    assert not any(map(quantised_layers, (found.tokenizer, found.speaker, found.hift)))
    assert packed.dtype == widened.dtype == mx.float32
    assert load_token2wav(small, mx.float16).flow.dtype == mx.float16
    rng = np.random.default_rng(0)
    voice = rng.integers(0, 6561, (1, 8)), mx.array(rng.normal(size=(1, 16, 80)), mx.float32)
    prompt = Prompt(*voice, mx.array(rng.normal(size=(1, 32)), mx.float32))
    codes = rng.integers(0, 6561, (1, 9))
    mels = [np.array(flow(codes, prompt, 0)) for flow in (widened, packed)]
    np.testing.assert_allclose(*mels, atol=2e-4 * np.abs(mels[0]).max())


def test_what_a_gpu_does_not_multiply_packed_is_widened(small, monkeypatch):
    def lacking(*_, **__):
        raise RuntimeError("[QuantizedMatmul] NYI")

    monkeypatch.setattr(loading, "on_cpu", lambda: False)
    monkeypatch.setattr(mx, "quantized_matmul", lacking)
    assert not quantised_layers(load_token2wav(small).flow)


def test_eight_bits_move_the_mel_of_nano_less_than_another_seed(nano, tmp_path):
    """As docs/quantization.md has it: by a tenth of it, or so; two bits by far more."""
    rng, mels = np.random.default_rng(0), []
    folders = [nano / "token2wav"]
    for bits in (8, 2):
        folders.append(tmp_path / str(bits))
        quantise(nano / "token2wav", folders[-1], Recipe(None, (("flow", Bits(bits, 32)),)))
    made = [load_token2wav(folder) for folder in folders]
    codes = made[0].tokenizer(log_mel(load_audio("data/speech/word_emma.flac"), padding=0)[None])[0][None]
    voice = mx.array(rng.normal(size=(1, 2 * codes.shape[1], 80)) - 5, mx.float32)
    prompt = Prompt(codes, voice, mx.array(rng.normal(size=(1, 96)), mx.float32))
    for nets, seed in ((made[0], 0), (made[0], 1), (made[1], 0), (made[2], 0)):
        mels.append(np.array(nets.flow(codes, prompt, seed, FlowOptions(n_steps=4)))[0])
    seed, eight, two = (float(mel_distance_db(mels[0], other).mean()) for other in mels[1:])
    assert 0 < eight < seed / 5 and two > 2 * seed


def test_training_reads_and_joins_them(small, tmp_path):
    held = parameters_of(load_token2wav(small).hift)
    for name, array in parameters_of(read_net(small, "hift")).items():
        np.testing.assert_array_equal(np.array(array), np.array(held[name]), err_msg=name)
    join([small], tmp_path / "joined", int8=["flow"])
    again = load_token2wav(tmp_path / "joined")
    for name, array in parameters_of(again.hift).items():
        np.testing.assert_array_equal(np.array(array), np.array(held[name]), err_msg=name)
    with pytest.raises(WeightsError, match="layers are quantised already"):
        quantise(tmp_path / "joined", tmp_path / "twice", Recipe(Bits(4)))


# ---- false claims ----


def said(folder, change, component="hift"):
    path = folder / "converted.json"
    raw = json.loads(path.read_text())
    change(raw["components"][component])
    path.write_text(json.dumps(raw))


def stored(folder, change, component="hift"):
    path = folder / f"{component}.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


FALSE = {
    "nothing said": (said, lambda part: part.pop("quantization"), "no quantization in converted.json"),
    "other bits": (said, lambda part: part["quantization"].update(bits=8), "does not fit together for 8 bits"),
    "another group": (said, lambda part: part["quantization"].update(group_size=64), "does not fit|claims"),
    "another mode": (said, lambda part: part["quantization"].update(mode="mxfp4"), "without offsets, and has"),
    "seven bits": (said, lambda part: part["quantization"].update(bits=7), "expected bits 2, .* found 7"),
    "a text": (said, lambda part: part.update(quantization="4"), "quantization: expected a JSON object"),
    "a layer is said to be whole": (
        said, lambda part: part["quantization"].update(conv_pre=False), "quantises conv_pre, which the config"),
    "a vector is said to be quantised": (
        said, lambda part: part["quantization"].update({"conv_pre.bias": True}), "names conv_pre.bias, which is no"),
    "a whole layer is said to be quantised": (
        said, lambda part: part["quantization"].update({"m_source.l_linear": True}), "claims 1 layers .*: m_source"),
    "no scales": (stored, lambda t: t.pop("conv_pre.scales"), "lacks conv_pre.scales"),
    "floats beside scales": (stored, lambda t: t.update({"conv_pre.weight": np.ones((32, 560), "f4")}), "is F32 of"),
    "too few rows": (
        stored, lambda t: [t.update({f"conv_pre{p}": t[f"conv_pre{p}"][:-1]}) for p in PARTS], "have other shapes"),
    "another kernel": (
        stored, lambda t: [t.update({f"conv_pre{p}": t[f"ups.0{p}"]}) for p in PARTS], "have other shapes"),
}  # fmt: skip


@pytest.mark.parametrize("name", FALSE)
def test_a_manifest_and_files_that_say_different_things_are_refused(copy, name):
    change, how, message = FALSE[name]
    change(copy, how)
    with pytest.raises(StepAudioError, match=message) as refused:
        load_token2wav(copy)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 1000
    if message == "have other shapes":
        assert [m.name for m in validate_weights(copy).misshaped] == ["hift.conv_pre.weight"]
        return
    with pytest.raises(StepAudioError, match=message):
        validate_weights(copy)


def test_what_cannot_be_quantised_is_refused_and_leaves_nothing(nets, small, model, tmp_path):
    out, bad = tmp_path / "out", shutil.copytree(nets, tmp_path / "bad")
    stored(bad, lambda t: t["conv_pre.weight"].__setitem__((0, 0, 0), np.nan))
    lame = shutil.copytree(nets, tmp_path / "lame")
    stored(lame, lambda t: t.pop("conv_pre.bias"))
    alone = quantised.write(tmp_path / "alone")
    published = quantised.write(tmp_path / "published")
    (published / "token2wav").mkdir()
    (published / "token2wav" / "flow.pt").write_bytes(b"")
    for folder, rule, error, message in [
        (bad, "vocoder=8", WeightsError, "conv_pre.weight holds values that are not finite"),
        (lame, "flow=8", WeightsError, "hift.safetensors: 1 of .* are missing: conv_pre.bias"),
        (small, "flow=8", WeightsError, "layers are quantised already"),
        (alone, "flow=8", ConfigError, "^flow: no converted token2wav lies in .*leave the rule out"),
        (alone, "hift.conv_pre=8", ConfigError, "^hift.conv_pre: no converted token2wav lies in"),
        (published, "vocoder=8", ConfigError, "run `stepaudio convert .*published` first"),
        (published / "token2wav", "vocoder=8", ConfigError, "run `stepaudio convert"),
        (nets, "encoder=8", ConfigError, "encoder: fits no layer .* expected tokenizer, speaker, flow, vocoder, tok"),
        (model, "flow.decodr.*=8", ConfigError, "flow.decodr.*: fits no layer that can be quantised"),
        (nets, "hift.m_source.l_linear=8", ConfigError, r"nothing to quantise: .*m_source.l_linear \(9\)"),
    ]:
        with pytest.raises(error, match=message) as refused:
            quantise(folder, out, parse_rules([rule], Recipe(), "--layer"))
        assert "\n" not in str(refused.value) and len(str(refused.value)) < 1000
        assert not out.exists() or not any(out.iterdir())


# ---- whole or not at all ----


@pytest.mark.parametrize("of_model", [False, True])
def test_a_run_that_is_killed_leaves_nets_that_are_whole_or_none(model, nets, tmp_path, monkeypatch, of_model):
    """Killed before any of its renames: what loads has all its tensors of one of the two runs."""
    source, rules = (model, ["token2wav=8/32", "head=8"]) if of_model else (nets, ["token2wav=8/32"])
    first, real = parse_rules(["token2wav=4/32", *rules[1:]], Recipe(), ""), os.replace
    second, outcomes = parse_rules(rules, Recipe(), ""), []
    quantise(source, tmp_path / "first", first)
    for last in range(0, 40, 3):
        out, calls = shutil.copytree(tmp_path / "first", tmp_path / f"out{last}"), []

        def stopped(*names, last=last, calls=calls):
            calls.append(names)
            if len(calls) > last:
                raise KeyboardInterrupt
            real(*names)

        monkeypatch.setattr(os, "replace", stopped)
        try:
            quantise(source, out, second)
        except KeyboardInterrupt:
            pass
        else:
            break
        finally:
            monkeypatch.setattr(os, "replace", real)
        assert not list(out.glob(".quantising*"))
        try:
            load_token2wav(out)
        except WeightsError as error:
            assert "no token2wav is here" in str(error)
            outcomes.append("none")
        else:
            report = validate_weights(out / "token2wav" if of_model else out)
            assert report.whole
            outcomes.append("whole")
    assert "none" in outcomes


def test_the_command_writes_reads_and_replaces_its_own_alone(nets, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["quantize", str(nets), str(out), "--bits", "8", "--group", "32", "--layer", "tokenizer=off"]) == 0
    lines = capsys.readouterr().out
    assert "kept" in lines and "8 bits in groups of 32" in lines
    assert main(["weights", str(out)]) == 0 and "8-bit affine by 32" in capsys.readouterr().out
    assert main(["quantize", str(nets), str(out), "--layer", "flow=4"]) == 0
    assert main(["quantize", str(nets), str(nets), "--bits", "8"]) == 2
    assert "is read by this command" in capsys.readouterr().err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "converted.json").write_text("{}")
    assert main(["quantize", str(nets), str(tmp_path / "mine"), "--bits", "8"]) == 2
    assert "is not of a quantised model" in capsys.readouterr().err
