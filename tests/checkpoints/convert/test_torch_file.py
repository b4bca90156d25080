"""`.pt` files: what PyTorch wrote is read as it reads it; what would run code is refused before it runs."""

import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import published
import pytest

from stepaudio.checkpoints.convert.torch_file import check_storages, read_pt
from stepaudio.checkpoints.tensors import read_arrays, read_values
from stepaudio.errors import WeightsError

EXPORTED = Path(__file__).parents[2] / "assets" / "exported"
ODD = EXPORTED / "odd.pt"  # written by PyTorch, see make_exported.py


def test_reads_what_pytorch_wrote():
    """Views with offsets, transposed and strided ones, half types, scalars, empty tensors, parameters."""
    content = read_pt(ODD)
    said = {n.removeprefix("odd."): a for n, a in read_arrays(EXPORTED / "said.safetensors").items() if "odd." in n}
    assert content.others == {"epoch": "int", "step": "str"} and content.tensors.keys() == said.keys()
    assert {content.tensors[n].dtype for n in said} == {"F32", "F16", "BF16", "I64"}
    for name, expected in said.items():
        found = read_values(content.tensors[name])
        assert found.dtype == (np.int64 if name == "counter" else np.float32)
        np.testing.assert_array_equal(found, expected.reshape(found.shape))
    assert content.tensors["turned"].shape == (6, 4) and content.tensors["scalar"].shape == ()
    assert content.tensors["turned"].dense and not content.tensors["strided"].dense
    check_storages(ODD)


def test_writer_of_these_tests_writes_what_pytorch_reads(tmp_path):
    torch = pytest.importorskip("torch")
    tensors = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array(3), "c": np.ones(2, np.float16)}
    loaded = torch.load(published.write_pt(tmp_path / "x.pt", {**tensors, "wide": (3, 5)}), weights_only=True)
    for name, array in tensors.items():
        np.testing.assert_array_equal(loaded[name].numpy(), array)
    assert loaded["wide"].shape == (3, 5)


# ---- code ----


def payloads(target: Path) -> dict[str, bytes]:
    """Pickles that make a folder when they are loaded in good faith, each by another opcode."""
    text = str(target).encode()
    argument = b"X" + struct.pack("<I", len(text)) + text
    return {
        "REDUCE": published.pickled({"w": published.call("os", "mkdir", str(target))}),
        "STACK_GLOBAL": b"\x80\x04\x8c\x02os\x8c\x05mkdir\x93" + argument + b"\x85R.",
        "INST": b"(" + argument + b"ios\nmkdir\n.",
        "OBJ": b"(cos\nmkdir\n" + argument + b"o.",
        "eval": published.pickled(published.call("builtins", "eval", f"__import__('os').mkdir({str(target)!r})")),
        "partial": published.pickled(published.call("functools", "partial", 1)),
        "torch": published.pickled(published.call("torch.hub", "load", str(target))),
    }  # fmt: skip


@pytest.mark.parametrize("kind", list(payloads(Path("x"))))
def test_code_is_refused_and_not_run(kind, tmp_path):
    target = tmp_path / "made by the pickle"
    payload = payloads(target)[kind]
    if kind in ("REDUCE", "STACK_GLOBAL", "INST", "eval"):  # the payload is real: trusting pickle runs it
        pickle.loads(payload)
        assert target.is_dir()
        target.rmdir()
    path = published.write_archive(tmp_path / "x.pt", payload, [])
    with pytest.raises(WeightsError, match=r"x\.pt: wants to call .*nothing was run"):
        read_pt(path)
    assert not target.exists()


@pytest.mark.parametrize("description", [
    b"\x80\x02K\x01.", b"\x80\x02]q\x00.", b"\x80\x02}q\x00K\x01K\x02s.", b"\x80\x02" + b"(" * 1000 + b".", b"",
    b"\x80", published.pickled({"a": {"b": 1}}),
    published.pickled(published.call("torch._utils", "_rebuild_tensor_v2")),
    published.pickled({"a": published.call("torch._utils", "_rebuild_tensor_v2", 1, 2, 3, 4)}),
    published.pickled({"a": published.call("collections", "OrderedDict", 5)}), b"\x80\x02cos\n.",
    b"\x80\x02}r\xff\xff\xff\xff.", b"\x80\x02K\x05Q.", b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f}.",
])  # fmt: skip
def test_descriptions_of_anything_else_are_refused(description, tmp_path):
    with pytest.raises(WeightsError, match=r"x\.pt: "):
        read_pt(published.write_archive(tmp_path / "x.pt", description, []))


def test_a_description_may_not_ask_for_memory(tmp_path):
    path = published.write_archive(tmp_path / "x.pt", b"\x80\x02}r\xff\xff\xff\x00.", [])
    with pytest.raises(WeightsError, match="asks for 16777215 memo entries"):
        read_pt(path)


def nested(depth: int) -> bytes:
    """Opcodes of a tuple that holds itself twice, `depth` times over: hashing takes 2**depth steps."""
    return b"K\x01" + b"2\x86" * depth


@pytest.mark.parametrize(
    ("description", "found"),
    [
        (b"\x80\x02}" + nested(60) + b"K\x02s.", "holds the key"),
        (b"\x80\x02}(" + nested(60) + b"K\x02u.", "holds the key"),
        (b"\x80\x02(" + nested(60) + b"K\x02d.", "in a form that PyTorch does not write"),
        (b"\x80\x04\x8f(" + nested(60) + b"\x90.", "in a form that PyTorch does not write"),
        (b"\x80\x04(" + nested(60) + b"\x91.", "in a form that PyTorch does not write"),
        (b"\x80\x02" + nested(60) + b"Q.", "names a storage in an unknown way"),
        (b"\x80\x02ccollections\nOrderedDict\n" + nested(60) + b"\x85R.", "no pickle of tensors"),
        (b"\x80\x04\x95\x10\0\0\0\0\0\0\0}.", "cut short"),
        (b"\x80\x02}X\x58\x02\0\0" + b"k" * 600 + b"K\x01s.", "name of more than 500"),
    ],
)
def test_descriptions_that_would_take_for_ever_are_refused(description, found, tmp_path):
    with pytest.raises(WeightsError, match=found) as caught:
        read_pt(published.write_archive(tmp_path / "x.pt", description, []))
    assert len(str(caught.value)) < 1000


def test_attributes_of_a_mapping_are_left_out(tmp_path):
    """They may have any name; one that a mapping itself has must not take its place."""
    items = b"\x80\x02ccollections\nOrderedDict\n)R}X\x05\0\0\0itemsK\x05sb."
    assert pickle.loads(items).__dict__ == {"items": 5}
    assert read_pt(published.write_archive(tmp_path / "x.pt", items, [])).tensors == {}


@pytest.mark.parametrize(("shape", "strides", "n"), [
    ((1 << 20, 1 << 10), (0, 0), 1), ((1 << 20, 1 << 9), (0, 1), 1), ((1 << 16,), (1,), 5000),
], ids=["steps of 0", "overlaps", "one storage for all"])  # fmt: skip
def test_views_that_would_fill_the_memory_are_refused(shape, strides, n, tmp_path):
    path = published.write_views(tmp_path / "x.pt", 1 << 16, {f"w{i}": (shape, strides) for i in range(n)})
    assert len(read_pt(path).tensors) == n  # to look at it costs nothing
    with pytest.raises(WeightsError, match=r"x\.pt: its tensors are views that make \d+ bytes of \d+; save contiguous"):
        check_storages(path)


@pytest.mark.parametrize("kind", ["axes", "count"])
def test_shapes_without_end_are_refused(kind, tmp_path):
    shape = (1,) * 33 if kind == "axes" else (0, 1 << 70)
    with pytest.raises(WeightsError, match="no valid shape and strides"):
        read_pt(published.write_pt(tmp_path / "x.pt", {"a": shape}))


@pytest.mark.parametrize("name", ["data.pkl", "byteorder"])
def test_small_files_inside_may_not_inflate(name, tmp_path):
    content = {"data.pkl": b"\x80\x02}.", "byteorder": b"little"}
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        for each, data in content.items():
            archive.writestr(f"a/{each}", data, zipfile.ZIP_DEFLATED if each == name else zipfile.ZIP_STORED)
    with pytest.raises(WeightsError, match=f"{name} is compressed"):
        read_pt(tmp_path / "x.pt")


# ---- damage ----


@pytest.mark.parametrize("seed", range(5))
def test_random_bytes(seed, tmp_path):
    path = tmp_path / "x.pt"
    path.write_bytes(np.random.default_rng(seed).bytes(500 * seed))
    with pytest.raises(WeightsError, match=r"x\.pt: not a zip archive.*1\.6"):
        read_pt(path)


def test_every_truncation_is_refused(tmp_path):
    path, whole = tmp_path / "x.pt", ODD.read_bytes()
    for n in range(2, len(whole), 97):
        path.write_bytes(whole[:n])
        with pytest.raises(WeightsError, match=r"x\.pt: .*download it again"):
            read_pt(path)


def test_no_changed_byte_escapes_as_another_error(tmp_path):
    path, whole = tmp_path / "x.pt", ODD.read_bytes()
    refused = 0
    for at in range(0, len(whole), 5):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        try:
            for tensor in read_pt(path).tensors.values():
                read_values(tensor)
        except WeightsError:
            refused += 1
    assert refused > 100


def test_changed_data_is_found_by_its_checksum(tmp_path):
    tensors = {"a": np.arange(9, dtype=np.float32)}
    path = published.write_pt(tmp_path / "x.pt", tensors)
    raw = path.read_bytes()
    path.write_bytes(raw.replace(np.float32(3).tobytes(), np.float32(4).tobytes()))
    assert read_pt(path).tensors  # headers say nothing of it
    with pytest.raises(WeightsError, match="archive/data/0 does not have the checksum"):
        check_storages(path)


def test_a_view_beyond_its_storage(tmp_path):
    storage = published._Storage("FloatStorage", "0", 6)
    for offset, shape, strides in ((1, (2, 3), (3, 1)), (0, (2, 3), (4, 1)), (0, (7,), (1,)), (-1, (2,), (1,))):
        entry = published.call("torch._utils", "_rebuild_tensor_v2", storage, offset, shape, strides, False, None)
        path = published.write_archive(tmp_path / "x.pt", published.pickled({"w": entry}), [bytes(24)])
        with pytest.raises(WeightsError, match="tensor w "):
            read_pt(path)


def test_storages_must_be_there_whole_and_plain(tmp_path):
    description = published.pickled(
        {
            "w": published.call(
                "torch._utils",
                "_rebuild_tensor_v2",
                published._Storage("FloatStorage", "0", 6),
                0,
                (6,),
                (1,),
                False,
                None,
            )
        }
    )
    path = published.write_archive(tmp_path / "x.pt", description, [])
    with pytest.raises(WeightsError, match="storage archive/data/0 is missing"):
        read_pt(path)
    published.write_archive(path, description, [bytes(20)])
    with pytest.raises(WeightsError, match="has 20 bytes, 24 are promised"):
        read_pt(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", description)
        archive.writestr("archive/data/0", bytes(24))
    with pytest.raises(WeightsError, match="compressed"):
        read_pt(path)


def test_other_files(tmp_path):
    path = tmp_path / "x.pt"
    for raw, said in ((b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"), (pickle.dumps({}), r"1\.6")):
        path.write_bytes(raw)
        with pytest.raises(WeightsError, match=said):
            read_pt(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "no")
    with pytest.raises(WeightsError, match="0 files named data.pkl"):
        read_pt(path)
    with pytest.raises(WeightsError, match="no such file"):
        read_pt(tmp_path / "absent.pt")
    with pytest.raises(WeightsError, match="is a folder"):
        read_pt(tmp_path)
