"""Weights on disk: against the published list of tensors, the safetensors library, plain numpy, and the nets."""

import itertools
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from safetensors.numpy import load_file, save_file

from stepaudio.checkpoints import layout
from stepaudio.checkpoints import load as weights
from stepaudio.checkpoints import statistics as audit
from stepaudio.checkpoints import suggest as repair
from stepaudio.checkpoints.header import INDEX_FILE, SINGLE_FILE, read_checkpoint, read_header
from stepaudio.checkpoints.layout import expected_layout
from stepaudio.checkpoints.load import load_weights, validate_weights
from stepaudio.checkpoints.report import WeightReport
from stepaudio.checkpoints.save import save_checkpoint
from stepaudio.checkpoints.statistics import audit_tensor, initialisers
from stepaudio.errors import WeightsError
from stepaudio.models.speech_lm import StepAudioConfig, StepAudioNet

SMALL = StepAudioConfig.from_dict({
    "text_config": {
        "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2,
        "num_hidden_layers": 1, "vocab_size": 64, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
    },
    "audio_encoder_config": {
        "n_mels": 8, "n_audio_ctx": 20, "n_audio_state": 16, "n_audio_head": 2, "n_audio_layer": 2, "llm_dim": 32,
        "kernel_size": 3, "adapter_stride": 2, "adapter_hidden": 24,
    },
})  # fmt: skip
NAMES = list(expected_layout(SMALL))


def arrays(dtype=np.float32) -> dict[str, np.ndarray]:
    """A value for every tensor of the small model, in PyTorch layout; no two alike, none like an initialiser."""
    rng = np.random.default_rng(0)
    return {name: rng.laplace(size=shape).astype(dtype) for name, shape in expected_layout(SMALL).items()}


def folder_with(path: Path, tensors: dict[str, np.ndarray]) -> Path:
    """A checkpoint folder as an outsider writes it."""
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(SMALL.to_dict()))
    save_file({name: np.ascontiguousarray(t) for name, t in tensors.items()}, path / SINGLE_FILE)
    return path


def sharded(path: Path, tensors: dict[str, np.ndarray], n: int = 3) -> Path:
    """The same in `n` shards with an index."""
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(SMALL.to_dict()))
    weight_map, names = {}, list(tensors)
    for i in range(n):
        file = f"model-{i + 1:05d}-of-{n:05d}.safetensors"
        save_file({name: tensors[name] for name in names[i::n]}, path / file)
        weight_map |= dict.fromkeys(names[i::n], file)
    total = sum(t.nbytes for t in tensors.values())
    (path / INDEX_FILE).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}))
    return path


def edit_index(path: Path, change) -> None:
    index = json.loads((path / INDEX_FILE).read_text())
    change(index)
    (path / INDEX_FILE).write_text(json.dumps(index))


def raw_file(path: Path, header: dict | bytes, n_data: int = 0, length: int | None = None) -> Path:
    """A safetensors file by hand, as wrong as wanted."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + bytes(n_data))
    return path


def entry(shape, begin, end, dtype="F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


# ---- the folder's own names ----


@pytest.mark.parametrize("package", ["checkpoints", "synthesis"])
def test_names_of_a_folder_are_those_of_its_modules(package):
    """Lazily imported: in a fresh process nothing is loaded before it is asked for, and `dir` lists all."""
    code = (
        f"import sys, stepaudio.{package} as p\n"
        f"assert not [m for m in sys.modules if m.startswith('stepaudio.{package}.')]\n"
        "assert set(p.__all__) <= set(dir(p)) and all(getattr(p, n).__name__ == n for n in p.__all__)\n"
        "try: p.nonsense\n"
        "except AttributeError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "nonsense" in done.stdout


# ---- names and shapes ----


def test_layout_equals_the_published_one(shared):
    published = json.loads((shared / "published_layout.json").read_text())["main"]["tensors"]
    config = StepAudioConfig.from_file(shared / "Step-Audio-2-mini")
    assert expected_layout(config) == {name: tuple(t["shape"]) for name, t in published.items()}


def test_layout_has_the_published_count_and_bytes():
    config = StepAudioConfig.from_dict({
        "text_config": {
            "hidden_size": 3584, "intermediate_size": 18944, "num_attention_heads": 28, "num_key_value_heads": 4,
            "num_hidden_layers": 28, "vocab_size": 158720, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
        },
        "audio_encoder_config": {
            "n_mels": 128, "n_audio_ctx": 1500, "n_audio_state": 1280, "n_audio_head": 20, "n_audio_layer": 32,
            "llm_dim": 3584, "kernel_size": 3, "adapter_stride": 2,
        },
    })  # fmt: skip
    shapes = expected_layout(config).values()
    assert len(shapes) == 832
    assert 2 * sum(int(np.prod(shape)) for shape in shapes) == 16_630_358_528  # total_size of the published index


def test_layout_equals_the_golden_checkpoint(goldens):
    config = json.loads((goldens / "llm.json").read_text())["config"]
    stored = read_header(goldens / "llm.safetensors")
    shapes = {name[2:]: info.shape for name, info in stored.items() if name.startswith("w.")}
    wanted = {key: config[key] for key in ("text_config", "audio_encoder_config")}
    assert expected_layout(StepAudioConfig.from_dict(wanted)) == shapes


def test_the_net_holds_exactly_the_layout():
    held = {name: array.shape for name, array in tree_flatten(StepAudioNet(SMALL).parameters())}
    assert held == {name: layout.mlx_shape(name, shape) for name, shape in expected_layout(SMALL).items()}


# ---- headers ----


def test_header_agrees_with_the_library_that_wrote_it(tmp_path):
    tensors = {"a": np.arange(6, dtype=np.float16).reshape(2, 3), "b.c": np.zeros(0, np.int64), "d": np.array(1.5)}
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    infos = read_header(tmp_path / "x.safetensors")
    raw = (tmp_path / "x.safetensors").read_bytes()
    assert {n: (i.shape, i.dtype, i.nbytes) for n, i in infos.items()} == {
        "a": ((2, 3), "F16", 12), "b.c": ((0,), "I64", 0), "d": ((), "F64", 8)
    }  # fmt: skip
    assert all(raw[i.offset : i.offset + i.nbytes] == tensors[n].tobytes() for n, i in infos.items())


HUGE = 10**30
BROKEN = {
    "empty": (b"", "at least 8"),
    "seven bytes": (b"1234567", "at least 8"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "LFS pointer"),
    "absurd header": ((2**40).to_bytes(8, "little") + b"{}", "claims a header of 1099511627776 bytes, at most"),
    "header beyond file": ((50).to_bytes(8, "little") + b"{}", "claims a header of 50 bytes"),
    "no JSON": (b"{a", "not readable as JSON"),
    "not UTF-8": (b'{"\xff": 1}', "not readable as JSON"),
    "bottomless JSON": (b"[" * 100_000, "not readable as JSON"),
    "a list": (b"[]", "should be a JSON object"),
    "no dictionary": ({"a": 3}, "lacks dtype"),
    "duplicate name": (b'{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"F32","shape":[0],'
                       b'"data_offsets":[0,0]}}', "names a twice"),
    "bad metadata": ({"__metadata__": {"n": 3}}, "__metadata__"),
    "unknown dtype": ({"a": entry([1], 0, 4, "F33")}, "unknown dtype 'F33'"),
    "negative shape": ({"a": entry([-1], 0, 4)}, "no valid shape"),
    "boolean shape": ({"a": entry([True], 0, 4)}, "no valid shape"),
    "three offsets": ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]}}, "no valid data_offsets"),
    "backward offsets": ({"a": entry([1], 8, 4)}, "span -4"),
    "wrong size": ({"a": entry([2], 0, 4)}, "needs 8 bytes"),
    "astronomic": ({"a": entry([HUGE], 0, 4 * HUGE)}, "truncated"),
    "overlap": ({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, "tensor b .* overlaps"),
    "gap": ({"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, "tensor b .* unused bytes"),
    "truncated": ({"a": entry([8], 0, 32)}, "truncated: the header promises 32 bytes of data, the file holds 12"),
    "spare data": ({"a": entry([1], 0, 4)}, "8 more bytes of data"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_are_refused_by_name(tmp_path, case):
    content, message = BROKEN[case]
    path = tmp_path / f"{case}.safetensors"
    by_hand = case in ("empty", "seven bytes", "a pointer", "absurd header", "header beyond file")
    path.write_bytes(content) if by_hand else raw_file(path, content, n_data=12)
    with pytest.raises(WeightsError, match=message) as caught:
        read_header(path)
    assert str(path) in str(caught.value)


def test_damaged_headers_never_escape_our_error(tmp_path):
    save_file({"a": np.ones((3, 4), np.float32), "b": np.ones(5, np.float16)}, tmp_path / "x.safetensors")
    good = bytearray((tmp_path / "x.safetensors").read_bytes())
    end = 8 + int.from_bytes(good[:8], "little")
    rng, refused = np.random.default_rng(1), 0
    for _ in range(200):
        bad = bytearray(good)
        bad[rng.integers(end)] = rng.integers(256)
        (tmp_path / "x.safetensors").write_bytes(bad)
        try:
            read_header(tmp_path / "x.safetensors")
        except WeightsError:
            refused += 1
    assert 100 < refused < 200  # a changed letter of a name is no damage


# ---- index and shards ----


def test_shards_equal_the_single_file(tmp_path):
    single = read_checkpoint(folder_with(tmp_path / "one", arrays()))
    many = read_checkpoint(sharded(tmp_path / "many", arrays()))

    def describe(infos):
        return {n: (i.shape, i.dtype, i.nbytes) for n, i in infos.items()}

    assert describe(many) == describe(single)
    assert len({info.file for info in many.values()}) == 3
    assert describe(read_checkpoint(tmp_path / "many" / INDEX_FILE)) == describe(single)
    assert describe(read_checkpoint(tmp_path / "one" / SINGLE_FILE)) == describe(single)


@pytest.mark.parametrize(
    "shard",
    ["/etc/passwd", "../x.safetensors", "a/../../x", "..\\x", "C:\\x", "\\\\host\\x", "C:x", "", " ", "a\0b"],
)
def test_shards_outside_the_folder_are_refused(tmp_path, shard):
    path = sharded(tmp_path / "m", arrays())
    edit_index(path, lambda index: index["weight_map"].update({NAMES[0]: shard}))
    with pytest.raises(WeightsError, match="outside the folder"):
        read_checkpoint(path)


def test_linked_shards_are_read(tmp_path):
    path = sharded(tmp_path / "m", arrays())
    (path / "model-00002-of-00003.safetensors").rename(tmp_path / "blob")
    (path / "model-00002-of-00003.safetensors").symlink_to(tmp_path / "blob")
    assert validate_weights(path).whole


def test_missing_shards_are_all_listed(tmp_path):
    path = sharded(tmp_path / "m", arrays())
    for i in (1, 3):
        (path / f"model-0000{i}-of-00003.safetensors").unlink()
    with pytest.raises(WeightsError, match="2 of 3 shards are missing: model-00001.*model-00003"):
        read_checkpoint(path)


def _drop(index):
    del index["weight_map"][NAMES[0]]


LIES = {
    "a tensor too many": (
        lambda index: index["weight_map"].update(ghost="model-00001-of-00003.safetensors"), "ghost"
    ),
    "a tensor too few": (_drop, "does not say .* encoder.conv1.weight"),
    "the wrong shard": (
        lambda index: index["weight_map"].update({NAMES[0]: "model-00002-of-00003.safetensors"}), NAMES[0]
    ),
    "the total": (lambda index: index["metadata"].update(total_size=7), "total_size is 7"),
    "the total as text": (lambda index: index["metadata"].update(total_size="7"), "total_size is 7"),
    "no map": (lambda index: index.pop("weight_map"), "weight_map"),
    "numbers for shards": (lambda index: index["weight_map"].update({NAMES[0]: 3}), "weight_map"),
}  # fmt: skip


@pytest.mark.parametrize("case", LIES)
def test_lying_indexes_are_refused(tmp_path, case):
    change, message = LIES[case]
    path = sharded(tmp_path / "m", arrays())
    edit_index(path, change)
    with pytest.raises(WeightsError, match=message) as caught:
        read_checkpoint(path)
    assert INDEX_FILE in str(caught.value)


def test_truncated_shard_is_named(tmp_path):
    path = sharded(tmp_path / "m", arrays())
    shard = path / "model-00002-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(WeightsError, match="model-00002-of-00003.safetensors: truncated"):
        validate_weights(path)


def test_folders_without_one_clear_checkpoint_are_refused(tmp_path):
    with pytest.raises(WeightsError, match="no such file"):
        read_checkpoint(tmp_path / "nowhere")
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(WeightsError, match="found pytorch_model.bin"):
        read_checkpoint(tmp_path)
    sharded(tmp_path, arrays())
    folder_with(tmp_path, arrays())
    with pytest.raises(WeightsError, match="holds both"):
        read_checkpoint(tmp_path)


def sparse_copy_of_the_published_model(shared: Path, path: Path) -> Path:
    """Headers in full, 16.6 GB of data as holes."""
    path.mkdir()
    for name in ("config.json", INDEX_FILE):
        (path / name).write_bytes((shared / "Step-Audio-2-mini" / name).read_bytes())
    tensors = json.loads((shared / "published_layout.json").read_text())["main"]["tensors"]
    for shard, members in itertools.groupby(sorted(tensors, key=lambda n: tensors[n]["shard"]),
                                            key=lambda n: tensors[n]["shard"]):  # fmt: skip
        header, end = {}, 0
        for name in members:
            begin, end = end, end + 2 * int(np.prod(tensors[name]["shape"]))
            header[name] = entry(tensors[name]["shape"], begin, end, "BF16")
        file = raw_file(path / shard, header)
        os.truncate(file, file.stat().st_size + end)
    return path


def test_published_model_is_validated_from_headers_in_little_memory(shared, tmp_path):
    path = sparse_copy_of_the_published_model(shared, tmp_path / "full")
    code = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from stepaudio.checkpoints.load import validate_weights\n"
        "report = validate_weights(sys.argv[1])\n"
        # Linux counts a child's peak from its parent's at the fork, except in VmHWM (kB), which starts at the exec.
        "status = Path('/proc/self/status')\n"
        "lines = status.read_text().splitlines() if status.exists() else []\n"
        "high = [int(line.split()[1]) * 1024 for line in lines if line.startswith('VmHWM')]\n"
        "peak = high[0] if high else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "print(report.exit_status, len(report.loaded), sum(p.bytes for p in report.components), peak)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True,
                          cwd=Path(__file__).parents[2])  # fmt: skip
    status, loaded, stored, peak = map(int, done.stdout.split())
    assert (status, loaded, stored) == (0, 832, 16_630_358_528)
    assert peak < 300e6


# ---- the report ----


def test_whole_checkpoint(tmp_path):
    report = validate_weights(folder_with(tmp_path / "m", arrays()))
    assert (report.exit_status, report.whole, report.share, report.unfilled) == (0, True, 1.0, ())
    parts = {part.name: part for part in report.components}
    assert set(parts) == {"encoder", "adapter", "model", "lm_head"}
    for name, part in parts.items():
        own = {n: a for n, a in arrays().items() if n.split(".")[0] == name}
        assert (part.expected, part.loaded, part.bytes) == (len(own), len(own), sum(a.nbytes for a in own.values()))
        assert part.dtypes == {"F32": len(own)}
    assert "whole" in report.table() and "Nothing to do" in report.table()


def test_every_tensor_is_in_one_place(tmp_path):
    tensors = arrays()
    del tensors["encoder.conv2.bias"]
    tensors["encoder.conv1.weight"] = tensors["encoder.conv1.weight"].transpose(0, 2, 1)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].astype(np.float64)
    tensors["talker.weight"] = np.zeros(3, np.float32)
    report = validate_weights(folder_with(tmp_path / "m", tensors))
    assert report.missing == ("encoder.conv2.bias",)
    assert [(m.name, m.repair) for m in report.misshaped] == [("encoder.conv1.weight", "transpose (0, 2, 1)")]
    assert report.wrong_dtype == (("model.norm.weight", "F64"),)
    assert report.unexpected == ("talker.weight",)
    assert sorted((*report.loaded, *report.unfilled)) == sorted(NAMES)
    assert report.exit_status == 1
    for word in ("encoder.conv2.bias", "transpose (0, 2, 1)", "F64", "talker.weight", "other"):
        assert word in report.table()
    assert json.loads(json.dumps(report.to_dict()))["missing"] == ["encoder.conv2.bias"]


def test_one_fault_is_enough_and_two_count_once(tmp_path):
    tensors = arrays()
    tensors["model.norm.weight"] = tensors["model.norm.weight"][:-1]
    report = validate_weights(folder_with(tmp_path / "m", tensors))
    assert (report.whole, report.exit_status, report.missing) == (False, 1, ())
    tensors["model.norm.weight"] = tensors["model.norm.weight"].astype(np.float64)
    report = validate_weights(folder_with(tmp_path / "m", tensors))
    assert report.unfilled == ("model.norm.weight",) and report.misshaped == ()


def test_spare_tensors_alone_are_listed_and_harmless(tmp_path):
    report = validate_weights(folder_with(tmp_path / "m", arrays() | {"x.y": np.zeros(2, np.float32)}))
    assert (report.exit_status, report.unexpected) == (0, ("x.y",))
    assert "x.y" in report.table()


@pytest.mark.parametrize(("kept", "status"), [(1.0, 0), (0.95, 1), (0.6, 1), (0.5, 1), (0.4, 2), (0.0, 2)])
def test_exit_status_follows_the_matched_share(tmp_path, kept, status):
    n = int(np.ceil(kept * len(NAMES)))
    tensors = dict(list(arrays().items())[:n]) or {"nothing": np.zeros(1, np.float32)}
    assert validate_weights(folder_with(tmp_path / "m", tensors)).exit_status == status


def test_refused_checkpoint_as_report(tmp_path):
    report = WeightReport.unreadable(tmp_path, WeightsError("model.safetensors: truncated"))
    assert report.exit_status == 2 and not report.whole and "truncated" in report.table()
    assert json.loads(json.dumps(report.to_dict()))["error"] == "model.safetensors: truncated"


def whispered(name: str) -> str:
    """The encoder under the names that transformers' Whisper gives it."""
    pairs = [("encoder.", "model.encoder."), (".blocks.", ".layers."), (".attn_ln.", ".self_attn_layer_norm."),
             (".mlp_ln.", ".final_layer_norm."), (".attn.query.", ".self_attn.q_proj."),
             (".attn.key.", ".self_attn.k_proj."), (".attn.value.", ".self_attn.v_proj."),
             (".attn.out.", ".self_attn.out_proj."), (".mlp.0.", ".fc1."), (".mlp.2.", ".fc2."),
             ("positional_embedding", "embed_positions"), ("after_norm", "layer_norm")]  # fmt: skip
    for ours, theirs in pairs if name.startswith("encoder.") else ():
        name = name.replace(ours, theirs)
    return name


RENAMINGS = {
    "module. in front": lambda n: f"module.{n}",
    "model. before the encoder": lambda n: f"model.{n}" if n.startswith("encoder") else n,
    "encoder. dropped": lambda n: n.removeprefix("encoder."),
    "gamma and beta": lambda n: n.replace("norm.weight", "norm.gamma").replace("norm.bias", "norm.beta"),
    "transformers' Whisper": whispered,
}


@pytest.mark.parametrize("case", RENAMINGS)
def test_near_misses_find_the_names_and_their_map_repairs_them(tmp_path, case):
    old_name = RENAMINGS[case]
    path = folder_with(tmp_path / "m", {old_name(n): a for n, a in arrays().items()})
    report = validate_weights(path)
    renamed = {n: old_name(n) for n in NAMES if old_name(n) != n}
    assert renamed and {miss.missing: miss.found for miss in report.near_misses} == renamed
    assert validate_weights(path, rename=report.rename).whole
    net = StepAudioNet(SMALL)
    assert load_weights(net, path, SMALL, rename=report.rename).whole
    assert np.array_equal(net.encoder.conv1.weight, arrays()["encoder.conv1.weight"].transpose(0, 2, 1))


def test_one_prefix_is_one_rule(tmp_path):
    report = validate_weights(folder_with(tmp_path / "m", {f"module.{n}": a for n, a in arrays().items()}))
    assert report.rename == {"module.": ""}
    assert "rename={'module.': ''}" in report.table()


def test_one_spare_name_is_suggested_once(tmp_path):
    tensors = arrays()
    lost = tensors.pop("encoder.conv1.bias"), tensors.pop("encoder.conv2.bias")
    report = validate_weights(folder_with(tmp_path / "m", tensors | {"encoder.conv_1.bias": lost[0]}))
    pairs = [(miss.missing, miss.found) for miss in report.near_misses]
    assert pairs == [("encoder.conv1.bias", "encoder.conv_1.bias")]


def test_strangers_are_not_suggested(tmp_path):
    tensors = arrays()
    stranger = tensors.pop("encoder.conv1.bias")
    tensors |= {"talker.speed.bias": stranger, "encoder.conv1_.bias": stranger[:3]}
    assert validate_weights(folder_with(tmp_path / "m", tensors)).near_misses == ()


def test_rename_rules():
    renamed = repair.apply_rename({"a.b": 1, "a.c.d": 2, "e": 3}, {"a.": "x.", "a.c.": "y.", "e": "z"})
    assert renamed == {"x.b": 1, "y.d": 2, "z": 3}
    assert repair.apply_rename({"b": 1, "m.c": 2}, {"": "p.", "m.": "m."}) == {"p.b": 1, "m.c": 2}
    with pytest.raises(WeightsError, match="would both become b"):
        repair.apply_rename({"a": 1, "b": 2}, {"a": "b"})
    with pytest.raises(WeightsError, match="'q.' fits no tensor"):
        repair.apply_rename({"a": 1}, {"q.": ""})


@pytest.mark.parametrize("expected", [(4, 6), (2, 3, 5), (7, 7, 3), (24,)])
def test_named_transforms_repair(expected):
    array = np.arange(np.prod(expected)).reshape(expected)
    for axes in itertools.permutations(range(len(expected))):
        found = array.transpose(axes).shape
        word = repair.transform(found, expected)
        if found == expected:
            assert word == ""
        else:
            named = [int(axis) for axis in word.removeprefix("transpose ").strip("()").split(",")]
            assert np.empty(found).transpose(named).shape == expected
    assert repair.transform((1, *expected), expected) == f"reshape to {expected}"
    assert repair.transform((expected[0] + 1, *expected[1:]), expected) == "none found"
    assert repair.transform((7, 3, 7), (7, 7, 3)) == "transpose (0, 2, 1)"  # not (2, 0, 1), which fits too


# ---- values ----


def stored(tmp_path, array: np.ndarray | mx.array, name="x.weight"):
    mx.save_safetensors(str(tmp_path / "v.safetensors"), {name: mx.array(array)})
    return read_header(tmp_path / "v.safetensors")[name]


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
@pytest.mark.parametrize("block", [7, 1 << 22])
def test_moments_equal_numpy_whatever_the_blocks(tmp_path, monkeypatch, dtype, block):
    monkeypatch.setattr(audit, "BLOCK", block)
    array = mx.array(np.random.default_rng(0).gamma(2, size=(13, 11)).astype(np.float32) + 3).astype(dtype)
    x = np.array(array.astype(mx.float32), np.float64)
    got = audit_tensor(stored(tmp_path, array))
    centred = x - x.mean()
    expected = (x.mean(), x.std(), np.linalg.norm(x), (centred**4).mean() / (centred**2).mean() ** 2)
    np.testing.assert_allclose((got.mean, got.std, got.norm, got.kurtosis), expected, rtol=1e-9)
    assert (got.count, got.nan, got.inf, got.zero_share, got.constant) == (143, 0, 0, 0.0, False)


def test_bad_values_are_counted(tmp_path):
    x = np.zeros((40, 50), np.float32)
    x[0, :3], x[1, :2], x[2, 0], x[3, :4] = np.nan, np.inf, -np.inf, 2.0
    got = audit_tensor(stored(tmp_path, x))
    assert (got.nan, got.inf, got.zero_share) == (3, 3, pytest.approx(1990 / 2000))
    assert got.mean == pytest.approx(8 / 1994) and got.notes == ("3 NaN", "3 Inf")
    nothing = audit_tensor(stored(tmp_path, np.full(5, np.nan, np.float32)))
    assert (nothing.nan, nothing.mean, nothing.std, nothing.constant) == (5, None, None, False)


@pytest.mark.parametrize(
    ("name", "shape", "value", "note"),
    [
        ("x.weight", (8, 8), 0.5, "constant 0.5"),
        ("ln.weight", (8,), 1, "untouched: a norm of ones"),
        ("ln.bias", (8,), 0, "untouched: a bias of zeros"),
        ("x.weight", (8, 8), 1, "constant 1"),
    ],
)
def test_constants_are_named(tmp_path, name, shape, value, note):
    assert audit_tensor(stored(tmp_path, np.full(shape, value, np.float32), name)).notes == (note,)


@pytest.mark.parametrize("shape", [(96, 200), (300, 64), (48, 64, 3)])
@pytest.mark.parametrize("case", initialisers((2, 2)))
def test_fresh_kernels_are_recognised(tmp_path, case, shape):
    std, kurtosis = initialisers(shape)[case]
    rng = np.random.default_rng(len(case))
    fresh = rng.normal(0, std, shape) if kurtosis == 3 else rng.uniform(-(3**0.5) * std, 3**0.5 * std, shape)
    assert audit_tensor(stored(tmp_path, fresh.astype(np.float32))).initialiser == f"looks like {case}"


def test_initialisers_by_hand():
    linear, kernel = initialisers((8, 50)), initialisers((10, 30, 5))
    default = "uniform(+-1/sqrt(fan_in)), the default of Linear and Conv1d"
    assert linear[default] == (pytest.approx(50**-0.5 / 3**0.5), 1.8)  # std of a uniform is its bound / sqrt(3)
    assert kernel[default] == (pytest.approx(150**-0.5 / 3**0.5), 1.8)
    assert kernel["Xavier normal"] == (pytest.approx((2 / (150 + 50)) ** 0.5), 3.0)
    assert kernel["Kaiming uniform"] == (pytest.approx((2 / 150) ** 0.5), 1.8)


def test_one_value_beyond_the_edge_is_no_uniform(tmp_path):
    fresh = np.random.default_rng(5).uniform(-0.1, 0.1, (300, 100)).astype(np.float32)
    assert audit_tensor(stored(tmp_path, fresh)).initialiser
    fresh[0, 0] = 0.15
    assert audit_tensor(stored(tmp_path, fresh)).initialiser is None


def test_mlx_layers_fresh_from_the_shelf_are_recognised(tmp_path):
    mx.random.seed(0)
    save_checkpoint(tmp_path / "m", SMALL, dict(tree_flatten(StepAudioNet(SMALL).parameters())))
    report = validate_weights(tmp_path / "m", values=True)
    kernels = [v for v in report.values if v.count >= 1024 and len(expected_layout(SMALL)[v.name]) > 1]
    # in MLX: Linear and Conv1d uniform within 1 / sqrt(fan_in), Embedding normal with 1 / sqrt(dim)
    assert kernels and all(v.initialiser for v in kernels)
    assert report.looks_untrained and "freshly initialised" in report.table()


@pytest.mark.parametrize("change", ["heavy tails", "wider", "shifted"])
def test_moved_kernels_are_not(tmp_path, change):
    rng = np.random.default_rng(3)
    fresh = rng.normal(0, 0.02, (200, 300))
    tails = rng.laplace(0, 0.02 / 2**0.5, (200, 300))
    moved = {"heavy tails": tails, "wider": fresh * 1.1, "shifted": fresh + 0.001}
    assert audit_tensor(stored(tmp_path, fresh.astype(np.float32))).initialiser
    assert audit_tensor(stored(tmp_path, moved[change].astype(np.float32))).initialiser is None


def test_not_finite_values_fail_the_validation(tmp_path):
    tensors = arrays()
    tensors["lm_head.weight"][3, 4] = np.nan
    path = folder_with(tmp_path / "m", tensors)
    assert validate_weights(path).exit_status == 0
    report = validate_weights(path, values=True)
    assert not report.looks_untrained
    assert (report.exit_status, report.not_finite) == (1, ("lm_head.weight",))
    assert "lm_head.weight: 1 NaN" in report.table()
    json.dumps(report.to_dict(), allow_nan=False)


# ---- loading ----


def parameters(net) -> dict[str, np.ndarray]:
    return {name: np.array(array.astype(mx.float32)) for name, array in tree_flatten(net.parameters())}


def as_held(name: str, array: np.ndarray) -> np.ndarray:
    return array.transpose(0, 2, 1) if name in ("encoder.conv1.weight", "encoder.conv2.weight",
                                                "adapter.conv.weight") else array  # fmt: skip


@pytest.mark.parametrize("write", [folder_with, sharded])
@pytest.mark.parametrize("dtype", [None, mx.float32, mx.bfloat16])
def test_load_fills_every_parameter(tmp_path, write, dtype):
    net, tensors = StepAudioNet(SMALL), arrays(np.float16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = load_weights(net, write(tmp_path / "m", tensors), SMALL, dtype)
    assert report.whole
    assert {a.dtype for _, a in tree_flatten(net.parameters())} == {dtype or mx.float16}
    for name, held in parameters(net).items():
        expected = mx.array(as_held(name, tensors[name])).astype(dtype or mx.float16).astype(mx.float32)
        assert np.array_equal(held, np.array(expected)), name


def test_bfloat16_is_read_as_written(tmp_path):
    net = StepAudioNet(SMALL)
    bf16 = {name: mx.array(array).astype(mx.bfloat16) for name, array in arrays().items()}
    mx.save_safetensors(str(tmp_path / SINGLE_FILE), bf16)
    load_weights(net, tmp_path, SMALL, mx.float32)
    assert all(np.array_equal(held, as_held(name, np.array(bf16[name].astype(mx.float32))))
               for name, held in parameters(net).items())  # fmt: skip


def test_loaded_golden_weights_give_the_golden_audio_rows(goldens):
    config = json.loads((goldens / "llm.json").read_text())["config"]
    config = StepAudioConfig.from_dict({key: config[key] for key in ("text_config", "audio_encoder_config")})
    net, tensors = StepAudioNet(config), load_file(goldens / "llm.safetensors")
    report = load_weights(net, goldens / "llm.safetensors", config, rename={"w.": ""})
    assert report.whole and set(report.unexpected) == {n for n in tensors if not n.startswith("w.")}
    rows = net.encode_audio([tensors["in.audio1.mels"][0]], independent=False)[0]
    expected = tensors["out.audio1.embeds"][0, tensors["out.audio1.rows"]]
    assert np.abs(np.array(rows) - expected).max() <= 1e-4 * np.abs(expected).max()


def test_partial_load_warns_per_component_and_leaves_the_rest_alone(tmp_path):
    net, tensors = StepAudioNet(SMALL), arrays()
    before = parameters(net)
    gone = ["encoder.after_norm.bias", "adapter.linear1.weight"]
    for name in gone:
        del tensors[name]
    tensors["model.norm.weight"] = tensors["model.norm.weight"][:-1]
    with pytest.warns(UserWarning) as caught:
        report = load_weights(net, folder_with(tmp_path / "m", tensors), SMALL)
    message = str(caught[0].message)
    for word in ("encoder: 1 of 37", "adapter: 1 of 6", "model: 1 of 14", *gone, "model.norm.weight"):
        assert word in message
    assert not report.whole and set(report.unfilled) == {*gone, "model.norm.weight"}
    after = parameters(net)
    for name in NAMES:
        kept = name in report.unfilled
        assert np.array_equal(after[name], before[name] if kept else as_held(name, tensors[name])), name


@pytest.mark.parametrize("prefix", ["", "wrapped."])
def test_under_half_is_an_error_and_loads_nothing(tmp_path, prefix):
    net = StepAudioNet(SMALL)
    before = parameters(net)
    names = NAMES if prefix else NAMES[: len(NAMES) // 2 - 1]
    path = folder_with(tmp_path / "m", {f"{prefix}{name}": arrays()[name] for name in names})
    with pytest.raises(WeightsError, match=r"rename=\{'wrapped.': ''\}" if prefix else "at least 50% are needed"):
        load_weights(net, path, SMALL)
    assert all(np.array_equal(array, before[name]) for name, array in parameters(net).items())


@pytest.mark.parametrize("dtype", [np.int8, np.float64, np.int64])
def test_other_dtypes_are_refused_by_name(tmp_path, dtype):
    tensors = arrays()
    tensors["encoder.conv1.bias"] = np.ones(16, dtype)
    path = folder_with(tmp_path / "m", tensors)
    word = {np.int8: "I8", np.float64: "F64", np.int64: "I64"}[dtype]
    with pytest.raises(WeightsError, match=rf"encoder.conv1.bias \({word}\); accepted are BF16, F16, F32"):
        load_weights(StepAudioNet(SMALL), path, SMALL)


@pytest.mark.parametrize("spare", ["F64", "F8_E5M2", "F8_E4M3", "C64"])
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_spare_tensors_that_mlx_cannot_read_do_not_matter(tmp_path, spare, dtype):
    wanted = {name: mx.array(array).astype(dtype) for name, array in arrays().items()}
    mx.save_safetensors(str(tmp_path / SINGLE_FILE), wanted)
    raw = (tmp_path / SINGLE_FILE).read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    size = len(raw) - start
    header = json.loads(raw[8:start]) | {"spare": entry([0], size, size, spare)}
    raw_file(tmp_path / SINGLE_FILE, header)
    with (tmp_path / SINGLE_FILE).open("ab") as stream:
        stream.write(raw[start:])
    net = StepAudioNet(SMALL)
    assert load_weights(net, tmp_path, SMALL).unexpected == ("spare",)
    assert net.dtype == dtype
    for name, held in parameters(net).items():
        assert np.array_equal(held, as_held(name, np.array(wanted[name].astype(mx.float32)))), name


def test_model_of_another_config_is_refused(tmp_path):
    path = folder_with(tmp_path / "m", arrays())
    sizes = SMALL.to_dict()
    sizes["text_config"]["vocab_size"] = 65
    with pytest.raises(WeightsError, match="another config: model.embed_tokens.weight is"):
        load_weights(StepAudioNet(StepAudioConfig.from_dict(sizes)), path, SMALL)
    with pytest.raises(WeightsError, match="it lacks encoder.conv1.weight|it lacks adapter"):
        load_weights(StepAudioNet(SMALL).model, path, SMALL)
    with pytest.raises(WeightsError, match="float32, float16 or bfloat16"):
        load_weights(StepAudioNet(SMALL), path, SMALL, dtype=mx.int8)


# ---- saving ----


def held_arrays() -> dict[str, mx.array]:
    return {name: mx.array(as_held(name, array)) for name, array in arrays().items()}


def contents(path: Path) -> dict[str, np.ndarray]:
    """All tensors of a folder, read by the safetensors library."""
    return {name: array for file in path.glob("*.safetensors") for name, array in load_file(file).items()}


@pytest.mark.parametrize("limit", [None, 9000, 1])
def test_saved_files_are_the_published_layout(tmp_path, limit):
    files = save_checkpoint(tmp_path / "m", SMALL, held_arrays(), limit)
    read = contents(tmp_path / "m")
    assert set(read) == set(NAMES) and all(np.array_equal(read[name], array) for name, array in arrays().items())
    assert StepAudioConfig.from_file(tmp_path / "m") == SMALL
    assert validate_weights(tmp_path / "m").whole  # which also holds the index against the shards
    assert len(files) == {None: 1, 1: len(NAMES) + 1}.get(limit, len(files)) and all(f.is_file() for f in files)
    if limit == 9000:
        payload = [sum(info.nbytes for info in read_header(f).values()) for f in files[:-1]]
        assert len(payload) > 2 and max(payload) <= 9000
    assert not list((tmp_path / "m").glob(".saving*"))


@pytest.mark.parametrize(("first", "second"), list(itertools.permutations([None, 9000, 20000], 2)))
def test_a_new_save_replaces_the_old_one(tmp_path, first, second):
    save_checkpoint(tmp_path, SMALL, {name: array * 0 for name, array in held_arrays().items()}, first)
    files = save_checkpoint(tmp_path, SMALL, held_arrays(), second)
    assert set(tmp_path.iterdir()) == {*files, tmp_path / "config.json"}
    read = contents(tmp_path)
    assert all(np.array_equal(read[name], array) for name, array in arrays().items())


@pytest.mark.parametrize("limit", [None, 9000])
def test_a_failed_save_leaves_the_old_checkpoint(tmp_path, monkeypatch, limit):
    save_checkpoint(tmp_path, SMALL, held_arrays(), limit)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}

    def full_disk(path, tensors, metadata):
        Path(path).write_bytes(b"half")
        raise RuntimeError("disk full")

    monkeypatch.setattr(weights.mx, "save_safetensors", full_disk)
    with pytest.raises(WeightsError, match="could not be written .disk full"):
        save_checkpoint(tmp_path, SMALL, held_arrays(), limit)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_equal_config_is_left_alone(tmp_path):
    text = json.dumps(SMALL.to_dict() | {"architectures": ["StepAudio2ForCausalLM"]})
    (tmp_path / "config.json").write_text(text)
    save_checkpoint(tmp_path, SMALL, held_arrays())
    assert (tmp_path / "config.json").read_text() == text
    (tmp_path / "config.json").write_text("{}")
    save_checkpoint(tmp_path, SMALL, held_arrays())
    assert StepAudioConfig.from_file(tmp_path) == SMALL


def test_only_the_layout_can_be_saved(tmp_path):
    good = held_arrays()
    for change, message in (
        ({"extra": mx.zeros(3)}, "the unknown extra"),
        ({"encoder.conv1.weight": mx.array(arrays()["encoder.conv1.weight"])}, "encoder.conv1.weight is"),
        ({"lm_head.weight": good["lm_head.weight"].astype(mx.int32)}, "lm_head.weight .*int32"),
    ):
        with pytest.raises(WeightsError, match=message):
            save_checkpoint(tmp_path / "m", SMALL, good | change)
    with pytest.raises(WeightsError, match="lacks lm_head.weight"):
        save_checkpoint(tmp_path / "m", SMALL, {n: a for n, a in good.items() if n != "lm_head.weight"})
    with pytest.raises(WeightsError, match="must be positive, found 0"):
        save_checkpoint(tmp_path / "m", SMALL, good, 0)
    assert not (tmp_path / "m").exists()


def test_the_nets_survive_save_and_load(tmp_path):
    net, other = StepAudioNet(SMALL), StepAudioNet(SMALL)
    save_checkpoint(tmp_path, SMALL, dict(tree_flatten(net.parameters())), 20000)
    load_weights(other, tmp_path, SMALL)
    expected = parameters(net)
    assert all(np.array_equal(array, expected[name]) for name, array in parameters(other).items())
