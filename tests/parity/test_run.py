"""The verifier: agrees with the recorded reference, sees every spoilt expectation, and survives every damaged file."""

import json
import shutil

import mlx.core as mx
import numpy as np
import pytest
from golden_files import encoder_file, llm_file, mel_file, text_files
from safetensors.numpy import load_file, save_file

from stepaudio.backend import device
from stepaudio.checkpoints.tensors import read_arrays
from stepaudio.cli.main import main
from stepaudio.errors import DataError
from stepaudio.parity.golden import Golden
from stepaudio.parity.run import table, verify
from stepaudio.text.tokenizer import Tokenizer

HEARING = ("mel", "encoder_adapter", "llm", "tokenizer_pairs", "special_tokens")


@pytest.fixture(scope="module")
def pristine(tmp_path_factory, tiny_checkpoint):
    folder = tmp_path_factory.mktemp("made")
    for make in (mel_file, encoder_file, llm_file):
        make(folder)
    text_files(folder, Tokenizer.from_folder(tiny_checkpoint))
    return folder


@pytest.fixture
def made(pristine, tmp_path):
    return shutil.copytree(pristine, tmp_path / "made")


@pytest.fixture
def judge(tiny_checkpoint, capsys):
    """Exit status of the command, and the rows that are not good: {file: [(stage, verdict, note)]}."""

    def call(folder):
        status = main(["verify", str(folder), "--tokenizer", str(tiny_checkpoint), "--json"])
        out, err = capsys.readouterr()
        assert err == ""
        files = [json.loads(line, parse_constant=pytest.fail) for line in out.splitlines()]
        bad = {
            f["file"]: [
                (r["stage"], r["verdict"], r["note"]) for r in f["rows"] if r["verdict"] not in ("ok", "not covered")
            ]
            for f in files
        }
        bad = {name: rows for name, rows in bad.items() if rows}
        assert status == (1 if bad else 0)
        return status, bad

    return call


# ---- agreement ----


def test_the_reference_agrees(goldens, tmp_path):
    """Front end, encoder, adapter, all of it."""
    if not (goldens.parent / "Step-Audio-2-mini" / "vocab.json").exists():
        pytest.skip("needs the published tokenizer files")
    for file in goldens.iterdir():
        if file.stem in HEARING:
            (tmp_path / file.name).symlink_to(file)
    found = dict(verify(tmp_path, goldens.parent / "Step-Audio-2-mini"))
    assert set(found) == set(HEARING)
    for name, rows in found.items():
        speaking = ("kaldi", "flow_mel")  # front ends of the other half, which share the file
        assert all(r.good for r in rows if not any(s in r.stage for s in speaking)), table(name, rows)
        assert any(r.verdict == "ok" for r in rows)


def test_other_sizes(made, judge):
    assert judge(made) == (0, {})


def test_another_adapter_stride(made, judge):
    encoder_file(made, stride=3)
    assert judge(made) == (0, {})


def test_the_table_for_people(made, capsys, tiny_checkpoint):
    assert main(["verify", str(made), "--tokenizer", str(tiny_checkpoint)]) == 0
    out = capsys.readouterr().out
    assert "everything that is covered agrees" in out and "greedy.plain" in out and "exact" in out


# ---- each expectation counts ----


@pytest.mark.parametrize("name", ["mel", "encoder_adapter", "llm"])
def test_each_spoilt_expectation_is_seen(pristine, tmp_path, name, tiny_checkpoint):
    """One value of one tensor: exactly that row is off."""
    arrays = load_file(pristine / f"{name}.safetensors")
    shutil.copy(pristine / f"{name}.json", tmp_path)
    for spoilt in [n for n in arrays if n.startswith("out.")]:
        value = arrays[spoilt].copy()
        finite = value[np.isfinite(value)]
        size = 1 if value.dtype.kind == "i" else 0.01 * max(1.0, float(np.sqrt((finite**2).mean())))
        at = np.flatnonzero(np.isfinite(value.reshape(-1)))[-1]
        value.reshape(-1)[at] += np.asarray(size, value.dtype)
        save_file(arrays | {spoilt: value}, tmp_path / f"{name}.safetensors")
        ((_, rows),) = verify(tmp_path, tiny_checkpoint)
        off = [r.stage for r in rows if not r.good]
        assert off == [spoilt.removeprefix("out.")], f"{spoilt} spoilt, {off} reported"


@pytest.mark.parametrize(("file", "change"), [
    ("tokenizer_pairs", lambda d: d["pairs"][1]["ids"].append(0)),
    ("tokenizer_pairs", lambda d: d["pairs"][1].update(decode="x")),
    ("tokenizer_pairs", lambda d: d["chats"][0]["ids"].pop()),
    ("special_tokens", lambda d: d["tokens"][2].update(id=0)),
    ("special_tokens", lambda d: d["tokens"][2].update(special=False)),
    ("special_tokens", lambda d: d.update(eos_id=0)),
    ("special_tokens", lambda d: d["audio_run"].update(id_to=10**6)),
])  # fmt: skip
def test_each_spoilt_id_is_seen(made, judge, file, change):
    data = json.loads((made / f"{file}.json").read_text())
    change(data)
    (made / f"{file}.json").write_text(json.dumps(data))
    status, bad = judge(made)
    assert status == 1 and list(bad) == [file] and all(verdict == "off" for _, verdict, _ in bad[file])


def test_a_spoilt_copy_of_the_reference(goldens, tmp_path, judge):
    for name in ("llm.json", "llm.safetensors"):
        shutil.copy(goldens / name, tmp_path)
    arrays = load_file(tmp_path / "llm.safetensors")
    arrays["out.audio2.logits"][0, 3, 7] += 0.05
    save_file(arrays, tmp_path / "llm.safetensors")
    assert judge(tmp_path)[1] == {"llm": [("audio2.logits", "off", "")]}


# ---- files that cannot be used ----


def respell(made, name, change):
    arrays = load_file(made / f"{name}.safetensors")
    change(arrays)
    save_file(arrays, made / f"{name}.safetensors")


def sidecar(made, name, change):
    data = json.loads((made / f"{name}.json").read_text())
    (made / f"{name}.json").write_text(json.dumps(change(data) or data))


def cut(path, n):
    path.write_bytes(path.read_bytes()[:n])


def double(arrays):
    arrays["in.x.wav"] = arrays["in.x.wav"].astype(np.complex64)


SPOILS = {
    "no tensors": lambda m: (m / "llm.safetensors").unlink(),
    "no sidecar": lambda m: (m / "llm.json").unlink(),
    "truncated tensors": lambda m: cut(m / "llm.safetensors", -7),
    "empty tensors": lambda m: cut(m / "llm.safetensors", 0),
    "truncated sidecar": lambda m: cut(m / "llm.json", 30),
    "deep sidecar": lambda m: (m / "llm.json").write_text("[" * 100_000),
    "a list": lambda m: (m / "llm.json").write_text("[]"),
    "not text": lambda m: (m / "llm.json").write_bytes(b"\xff\xfe\x00"),
    "a folder": lambda m: ((m / "llm.json").unlink(), (m / "llm.json").mkdir()),
    "unknown component": lambda m: sidecar(m, "llm", lambda d: d.update(component="telepathy")),
    "component of a wrong type": lambda m: sidecar(m, "llm", lambda d: d.update(component=["llm"])),
    "no config": lambda m: sidecar(m, "llm", lambda d: d.pop("config") and None),
    "config is null": lambda m: sidecar(m, "llm", lambda d: d.update(config=None)),
    "sizes of another net": lambda m: sidecar(m, "llm", lambda d: d["config"]["text_config"].update(hidden_size=40)),
    "a zero size": lambda m: sidecar(m, "llm", lambda d: d["config"]["text_config"].update(num_attention_heads=0)),
    "unknown key": lambda m: sidecar(m, "llm", lambda d: d["config"]["text_config"].update(depth=3)),
    "a weight too few": lambda m: respell(m, "llm", lambda a: a.pop("w.model.norm.weight") is None),
    "a weight too many": lambda m: respell(m, "llm", lambda a: a.update({"w.model.extra": np.zeros(3, np.float32)})),
    "an input too few": lambda m: respell(m, "llm", lambda a: a.pop("in.text.ids") is None),
    "an output too few": lambda m: respell(m, "llm", lambda a: a.pop("out.greedy.plain") is None),
    "ids beyond the vocabulary": lambda m: respell(
        m, "llm", lambda a: a.update({"in.text.ids": np.full((1, 5), 10**6)})
    ),
    "no expectation left": lambda m: respell(m, "mel", lambda a: [a.pop(n) for n in list(a) if n.startswith("out.")]),
    "an odd dtype": lambda m: respell(m, "mel", double),
}


@pytest.mark.parametrize("spoil", SPOILS.values(), ids=SPOILS)
def test_a_file_that_cannot_be_used_is_told_and_the_others_go_on(made, judge, spoil):
    spoil(made)
    status, bad = judge(made)
    ((file, rows),) = bad.items()
    assert status == 1 and file in ("llm", "mel") and any(v == "unusable" and note for _, v, note in rows), rows


@pytest.mark.parametrize("name", ["out.text.mood", "out.proc.magic3", "out.audio9.logits", "out.else"])
def test_what_nothing_computes_is_told(made, judge, name):
    respell(made, "llm", lambda a: a.update({name: np.zeros(3, np.float32)}))
    assert judge(made)[1] == {"llm": [(name.removeprefix("out."), "unusable", "nothing here computes it")]}


def test_a_missing_tokenizer(made, capsys, tmp_path):
    assert main(["verify", str(made), "--tokenizer", str(tmp_path / "none")]) == 1
    out = capsys.readouterr().out
    assert out.count("unusable") == 3 and "--tokenizer" in out  # two files, and the last line


def test_no_folder_or_an_empty_one(tmp_path, capsys):
    for folder in (tmp_path / "none", tmp_path):
        with pytest.raises(DataError, match="no golden files"):
            list(verify(folder))
        assert main(["verify", str(folder)]) == 2 and "no golden files" in capsys.readouterr().err
    with pytest.raises(DataError, match="cannot be read"):
        list(verify("a" * 300))


# ---- the judge itself ----


def row(want, got, tolerance=1e-4, absolute=False):
    golden = Golden({}, {"out.x": np.asarray(want)})
    golden.compare("x", np.asarray(got), tolerance, absolute)
    return golden.rows[0]


def test_relative_error_is_over_the_root_mean_square():
    found = row([3.0, -4.0], [3.0, -4.1], 0.029)
    assert found.absolute == pytest.approx(0.1) and found.relative == pytest.approx(0.1 / np.sqrt(12.5))
    assert found.verdict == "ok" and row([3.0, -4.0], [3.0, -4.1], 0.028).verdict == "off"


@pytest.mark.parametrize(("want", "got", "verdict"), [
    ([-np.inf, 1], [-np.inf, 1], "ok"), ([-np.inf, 1], [np.inf, 1], "off"), ([-np.inf, 1], [5, 1], "off"),
    ([2, 1], [np.nan, 1], "off"), ([np.nan, 1], [np.nan, 1], "off"),
    ([0, 0], [0, 0], "ok"), ([0, 0], [0, 1e-9], "off"),
    ([1, 2], [1, 2, 3], "off"), ([1, 2], [[1, 2]], "off"), ([], [], "unusable"), ([-np.inf], [-np.inf], "ok"),
])  # fmt: skip
def test_verdicts(want, got, verdict):
    assert row(np.array(want, float), np.array(got, float)).verdict == verdict


def test_exact_ids():
    assert row(np.array([2**31, 5]), np.array([2**31, 5]), 0).verdict == "ok"
    assert row(np.array([2**31, 5]), np.array([2**31 - 1, 5]), 0).verdict == "off"


def test_every_dtype_is_read(tmp_path):
    arrays = {
        k: np.arange(6).reshape(2, 3).astype(k) for k in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u8", "?")
    }
    save_file(arrays, tmp_path / "a.safetensors")
    found = read_arrays(tmp_path / "a.safetensors")
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
    mx.save_safetensors(str(tmp_path / "b.safetensors"), {"x": mx.array([1.5, -2.0]).astype(mx.bfloat16)})
    np.testing.assert_array_equal(read_arrays(tmp_path / "b.safetensors")["x"], np.array([1.5, -2.0], np.float32))


def test_the_table_says_how_float32_is_multiplied(made, capsys, tiny_checkpoint, monkeypatch):
    arguments = ["verify", str(made), "--tokenizer", str(tiny_checkpoint)]
    main(arguments)
    assert "products whole\n" in capsys.readouterr().out.splitlines(keepends=True)[0]
    monkeypatch.setattr(device, "on_cuda", lambda: True)
    for value, said in ((None, "products in TF32 of ten bits"), ("1", "MLX_ENABLE_TF32=0"), ("0", "products whole")):
        monkeypatch.delenv("MLX_ENABLE_TF32", raising=False)
        if value is not None:
            monkeypatch.setenv("MLX_ENABLE_TF32", value)
        main(arguments)
        assert said in capsys.readouterr().out.splitlines()[0]
        main([*arguments, "--json"])
        assert all(said in json.loads(line)["arithmetic"] for line in capsys.readouterr().out.splitlines())
