"""Headers, indexes and shards: against the library that wrote them, and as wrong as files can be."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from small_checkpoint import NAMES, arrays, edit_index, entry, folder_with, raw_file, sharded

from stepaudio.checkpoints.header import INDEX_FILE, SINGLE_FILE, read_checkpoint, read_header
from stepaudio.checkpoints.load import validate_weights
from stepaudio.errors import WeightsError


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
    "a list": (b"[]", "expected a JSON object, found list"),
    "no dictionary": ({"a": 3}, "lacks dtype"),
    "duplicate name": (b'{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"F32","shape":[0],'
                       b'"data_offsets":[0,0]}}', "names 'a' twice"),
    "bad metadata": ({"__metadata__": {"n": 3}}, "__metadata__"),
    "unknown dtype": ({"a": entry([1], 0, 4, "F33")}, "unknown dtype 'F33'"),
    "negative shape": ({"a": entry([-1], 0, 4)}, "no valid shape"),
    "boolean shape": ({"a": entry([True], 0, 4)}, "no valid shape"),
    "three offsets": ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]}}, "no valid data_offsets"),
    "backward offsets": ({"a": entry([1], 8, 4)}, "span -4"),
    "wrong size": ({"a": entry([2], 0, 4)}, "needs 8 bytes"),
    "astronomic": ({"a": entry([HUGE], 0, 4 * HUGE)}, "no valid shape"),
    "a size of 62 bits": ({"a": entry([2**60], 0, 2**62)}, "truncated"),
    "huge sizes, no items": ({"a": entry([2**63, 0], 0, 0)}, "no valid shape"),
    "300 axes": ({"a": entry([2**62] * 300, 0, 4)}, "no valid shape"),
    "120 000 axes": ({"a": entry([1] * 120_000, 0, 4)}, "no valid shape"),
    "32 huge axes": ({"a": entry([2**62] * 32, 0, 4)}, "lies about its size"),
    "a shape in a shape": (b'{"a":{"dtype":"F32","shape":' + b"[" * 60 + b"]" * 60 + b',"data_offsets":[0,4]}}',
                           "no valid shape"),
    "a number of 5 000 digits": (b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,4]}}', "JSON"),
    "a name of a megabyte": ({"a" * 1_000_000: entry([1], 0, 4)}, "has 1000000 characters"),
    "a type that is long": ({"a": entry([1], 0, 4, "F32" * 100_000)}, "unknown dtype"),
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
    "the total as text": (lambda index: index["metadata"].update(total_size="7"), "total_size is '7'"),
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
