"""ONNX files: what PyTorch's exporter wrote is named and read; foreign, quantised and broken graphs are refused."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import published
import pytest
from published import field, model, node

from stepaudio.checkpoints.convert.onnx_file import read_onnx
from stepaudio.checkpoints.convert.onnx_names import attention_heads, module_path, named_tensors, the_one
from stepaudio.checkpoints.convert.published import describe
from stepaudio.checkpoints.tensors import read_values
from stepaudio.errors import WeightsError
from stepaudio.models.token2wav.campplus import SpeakerConfig
from stepaudio.models.token2wav.speech_tokenizer import S3Config

EXPORTED = Path(__file__).parents[2] / "assets" / "exported"  # written by PyTorch, see make_exported.py
ONE = {"conv1.weight": np.ones((2, 3, 3), np.float32)}


def named(path: Path, kind: str = "tokenizer"):
    return named_tensors(read_onnx(path), kind)


def written(tmp_path: Path, nodes: list[bytes], initialisers=ONE, more: bytes = b"") -> Path:
    path = tmp_path / "x.onnx"
    path.write_bytes(model(nodes, initialisers, more))
    return path


# ---- what the exporter writes ----


def test_exported_tokenizer_is_whole_under_published_names():
    part = describe(EXPORTED, "tokenizer")
    assert part.config == S3Config(8, 16, 2, 2, 2, 81, 5) and part.tensors.keys() == part.layout.keys()
    assert {n: t.shape for n, t in part.tensors.items()} == part.layout
    query = part.tensors["encoder.blocks.1.attn.query.weight"]
    assert query.name.startswith("onnx::MatMul_") and query.strides == (1, 16)
    # Equal norms share one initialiser in the file, by way of Identity nodes.
    norms = [part.tensors[f"encoder.blocks.{i}.attn_ln.weight"] for i in (0, 1)]
    assert norms[0] == norms[1] and norms[0].name == "blocks.0.attn_ln.weight"


def test_exported_speaker_encoder_has_its_norms_folded():
    part = describe(EXPORTED, "speaker")
    assert part.config == SpeakerConfig(16, 6, 4, 2, 6, ((2, 3, 1), (3, 3, 2)), 4, 1e-5, 7)
    assert {n: t.shape for n, t in part.tensors.items()} == part.layout
    assert part.folded == published.folds(part.config)
    assert part.tensors["head.layer1.0.shortcut.0.weight"].name.startswith("onnx::Conv_")


def test_initialisers_are_read_as_onnx_reads_them():
    onnx = pytest.importorskip("onnx")
    for name in ("campplus.onnx", "speech_tokenizer_v2_25hz.onnx"):
        graph, expected = read_onnx(EXPORTED / name), onnx.load(EXPORTED / name).graph
        assert [(n.op, n.name, list(n.inputs)) for n in graph.nodes] == [
            (n.op_type, n.name, list(n.input)) for n in expected.node]  # fmt: skip
        for initialiser in expected.initializer:
            found = read_values(graph.initialisers[initialiser.name])
            np.testing.assert_array_equal(found, onnx.numpy_helper.to_array(initialiser))


def test_writer_of_these_tests_writes_what_onnx_reads(tmp_path):
    onnx = pytest.importorskip("onnx")
    folder = published.write_folder(tmp_path)
    for name in ("campplus.onnx", "speech_tokenizer_v2_25hz.onnx"):
        expected, graph = onnx.load(folder / name).graph, read_onnx(folder / name)
        assert {i.name for i in expected.initializer} == set(graph.initialisers) and len(expected.node) > 20
        attributes = [{a.name for a in n.attribute} for n in expected.node]
        assert attributes == [set(n.attributes) for n in graph.nodes]


@pytest.mark.parametrize("name, expected", [
    ("/blocks.0/attn/query/MatMul", "blocks.0.attn.query"), ("/blocks.3/mlp/mlp.2/Add", "blocks.3.mlp.2"),
    ("/head/layer1/layer1.0/shortcut/shortcut.0/Conv", "head.layer1.0.shortcut.0"), ("Conv_12", ""),
    ("/blocks/blocks.1/attn_ln/LayerNormalization", "blocks.1.attn_ln"), ("/conv1/Conv", "conv1"),
])  # fmt: skip
def test_module_paths(name, expected, tmp_path):
    graph = read_onnx(written(tmp_path, [node("Conv", name, ["x"])]))
    assert module_path(graph.nodes[0]) == expected


def test_matrices_are_turned_by_the_operator_that_takes_them(tmp_path):
    w = np.arange(6, dtype=np.float32).reshape(2, 3)
    for op, attributes, expected in (("MatMul", {}, w.T), ("Gemm", {}, w.T), ("Gemm", {"transB": 1}, w)):
        path = written(tmp_path, [node(op, f"/blocks.0/attn/out/{op}", ["x", "onnx::w"], **attributes)], {"onnx::w": w})
        tensors = named(path)
        assert list(tensors) == ["encoder.blocks.0.attn.out.weight"]
        np.testing.assert_array_equal(read_values(tensors["encoder.blocks.0.attn.out.weight"]), expected)


def test_initialisers_alone_go_by_their_own_names(tmp_path):
    w = np.ones((4, 5), np.float32)
    tensors = named(written(tmp_path, [], {"encoder.blocks.0.mlp.0.weight": w, "quantizer.project_in.bias": w[0]}))
    assert set(tensors) == {"encoder.blocks.0.mlp.0.weight", "quantizer._codebook.project_down.bias"}


def test_heads_come_from_the_graph_where_it_says_them(tmp_path):
    tensors = published.tiny_tensors()["tokenizer"]
    for heads in (1, 2, 8):
        graph = read_onnx(published.s3_graph(tensors, heads).save(tmp_path / "x.onnx"))
        assert attention_heads(graph) == heads
    assert attention_heads(read_onnx(written(tmp_path, []))) is None


def test_nodes_that_disagree_are_named(tmp_path):
    nodes = [node("Conv", f"/block1/tdnnd{i}/linear_local/Conv", ["x"], dilations=(i,)) for i in (1, 2)]
    graph = read_onnx(written(tmp_path, nodes))
    assert the_one(graph, "Conv", "dilations", "tdnnd1.linear_local") == (1,)
    with pytest.raises(WeightsError, match=r"dilations differs: \(1,\) at Conv /block1/tdnnd1.*tdnnd2"):
        the_one(graph, "Conv", "dilations")


# ---- what is refused ----


def test_foreign_operators_are_refused_by_name(tmp_path):
    nodes = [node("Conv", "/conv1/Conv", ["x", "conv1.weight"]),
             node("FusedGelu", "/blocks.0/mlp/FusedGelu", ["x"], domain="com.microsoft")]  # fmt: skip
    with pytest.raises(WeightsError, match=r"operator com\.microsoft\.FusedGelu /blocks.0/mlp/FusedGelu is foreign"):
        read_onnx(written(tmp_path, nodes))


def test_weights_without_a_place_are_refused_by_node(tmp_path):
    w = {"W": np.ones((4, 5), np.float32)}
    with pytest.raises(WeightsError, match=r"LSTM /rnn/LSTM takes W of shape \(4, 5\), which has no place"):
        named(written(tmp_path, [node("LSTM", "/rnn/LSTM", ["x", "W"])], w))
    with pytest.raises(WeightsError, match=r"Conv Conv_7 takes W .* no place"):  # an exporter that keeps no paths
        named(written(tmp_path, [node("Conv", "Conv_7", ["x", "W"])], w))


def test_quantised_graphs_are_refused(tmp_path):
    w = {"W_quantized": np.ones((4, 5), np.int8)}
    with pytest.raises(WeightsError, match="DequantizeLinear /q/D takes W_quantized of type I8; a quantised"):
        named(written(tmp_path, [node("DequantizeLinear", "/q/D", ["W_quantized"])], w))


def branching(*fields_of_branch: bytes, depth: int = 1) -> bytes:
    graph = b"".join(fields_of_branch)
    for _ in range(depth):
        inner = field(3, "/squeeze/If") + field(4, "If")
        inner += field(5, field(1, "then_branch") + field(6, graph) + field(20, 5))
        graph = field(1, inner)
    return inner


def test_branches_are_read_like_the_rest(tmp_path):
    """PyTorch writes a squeeze of an axis of unknown size as an If; there is no weight in it."""
    graph = read_onnx(written(tmp_path, [branching(field(1, node("Squeeze", "/squeeze/Squeeze", ["x"])))]))
    assert [n.op for n in graph.nodes] == ["If", "Squeeze"]
    for hidden, said in (
        (field(5, published.tensor("w", np.ones(3, np.float32))), "initialiser w lies in a branch"),
        (field(1, node("Gelu", "/g", ["x"], domain="com.x")), r"com\.x\.Gelu /g is foreign"),
    ):
        with pytest.raises(WeightsError, match=said):
            read_onnx(written(tmp_path, [branching(hidden)]))
    with pytest.raises(WeightsError, match="LSTM /rnn takes conv1.weight.*no place"):
        named(written(tmp_path, [branching(field(1, node("LSTM", "/rnn", ["x", "conv1.weight"])))],
                      {"conv1.weight": ONE["conv1.weight"]}), "tokenizer")  # fmt: skip
    with pytest.raises(WeightsError, match="more than 8 deep"):
        read_onnx(written(tmp_path, [branching(b"", depth=10)]))


def test_functions_and_sparse_tensors_are_refused(tmp_path):
    with pytest.raises(WeightsError, match="functions of its own"):
        read_onnx(written(tmp_path, [], more=field(25, b"")))
    path = tmp_path / "sparse.onnx"
    path.write_bytes(field(7, field(15, b"")))
    with pytest.raises(WeightsError, match="sparse"):
        read_onnx(path)


def test_data_in_other_files_is_refused(tmp_path):
    elsewhere = field(1, 4) + field(2, 1) + field(8, "w") + field(13, field(1, "location") + field(2, "../w.bin"))
    path = tmp_path / "x.onnx"
    path.write_bytes(field(7, field(5, elsewhere + field(14, 1))))
    with pytest.raises(WeightsError, match="data of w lies in another file"):
        read_onnx(path)


def test_tensors_that_lie_about_their_size(tmp_path):
    path = tmp_path / "x.onnx"
    for dims, said in ((field(1, 5), "needs 20 bytes, found 16"), (field(1, -4), "shape")):
        path.write_bytes(field(7, field(5, dims + field(2, 1) + field(8, "w") + field(9, bytes(16)))))
        with pytest.raises(WeightsError, match=said):
            read_onnx(path)
    path.write_bytes(field(7, field(5, field(1, 1) + field(2, 8) + field(8, "w") + field(9, bytes(4)))))
    with pytest.raises(WeightsError, match="w has the data type 8"):
        read_onnx(path)
    twice = field(5, field(1, 1) + field(2, 1) + field(8, "w") + field(9, bytes(4)))
    path.write_bytes(field(7, twice + twice))
    with pytest.raises(WeightsError, match="w is there twice"):
        read_onnx(path)


@pytest.mark.parametrize(
    ("length", "found"), [(3, None), (1000, None), (1002, "more than 1000 Identity nodes")], ids=str
)
def test_chains_of_identity_nodes(length, found, tmp_path):
    """Each may lead to the next; the first of them stands last, as it is slowest to follow."""
    names = ["conv1.weight", *(f"i{k}" for k in range(length))]
    chain = [node("Identity", b, [a], [b]) for a, b in pairwise(names)][::-1]
    path = written(tmp_path, [*chain, node("Conv", "/conv1/Conv", ["x", names[-1]])])
    if found is None:
        assert len(named(path)) == 1
    else:
        with pytest.raises(WeightsError, match=found):
            named(path)


@pytest.mark.parametrize(
    ("dims", "found"),
    [
        (field(1, 1) * 33, "has the shape"),
        (field(1, b"\x01" * 120_000), "list of whole numbers takes 120000 bytes"),
        (field(1, -1), "has the shape"),
    ],
)
def test_shapes_without_end_are_refused(dims, found, tmp_path):
    path = tmp_path / "x.onnx"
    graph = field(5, dims + field(2, 1) + field(8, "w") + field(9, b"\0" * 4))
    path.write_bytes(field(1, 8) + field(7, graph))
    with pytest.raises(WeightsError, match=found) as caught:
        read_onnx(path)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("seed", range(20))
def test_random_bytes(seed, tmp_path):
    path = tmp_path / "x.onnx"
    path.write_bytes(np.random.default_rng(seed).bytes(1 + 50 * seed))
    with pytest.raises(WeightsError, match=r"x\.onnx: (not readable as ONNX|not an ONNX model)"):
        read_onnx(path)


def test_every_truncation_is_refused(tmp_path):
    path, whole = tmp_path / "x.onnx", (EXPORTED / "speech_tokenizer_v2_25hz.onnx").read_bytes()
    for n in range(0, len(whole) - 100, 1499):  # the last fields are optional
        path.write_bytes(whole[:n])
        with pytest.raises(WeightsError, match=r"x\.onnx: "):
            read_onnx(path)


def test_no_changed_byte_escapes_as_another_error(tmp_path):
    tensors = {n: a for n, a in published.tiny_tensors()["tokenizer"].items() if a.size < 200}
    whole = model([node("Conv", "/conv1/Conv", ["x", n], strides=(2,), epsilon=1e-5) for n in tensors], tensors)
    path, refused = tmp_path / "x.onnx", 0
    for at in range(0, min(len(whole), 4000), 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x35]) + whole[at + 1 :])
        try:
            for tensor in named(path).values():
                read_values(tensor)
        except WeightsError:
            refused += 1
    assert refused > 25


def test_other_files(tmp_path):
    path = tmp_path / "x.onnx"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(WeightsError, match="git lfs pull"):
        read_onnx(path)
    path.write_bytes(model([], {}))
    with pytest.raises(WeightsError, match="no initialisers"):
        read_onnx(path)
    with pytest.raises(WeightsError, match="no such file"):
        read_onnx(tmp_path / "absent.onnx")
    path.write_bytes(b"")
    with pytest.raises(WeightsError, match="not readable"):
        read_onnx(path)
