"""Published `token2wav` files made on the fly: `.pt` archives and ONNX graphs as PyTorch writes them, without PyTorch.

The writers know the formats from their descriptions; `test_published.py` holds them against torch and onnx where
these are installed. Graphs carry the module paths of the published exports, their transposed matrices and folded
batch norms, and no more operators than hold weights.
"""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
from layout_twins import flow_layout, hift_layout, s3_layout, speaker_layout

from stepaudio.checkpoints.convert.batch_norm import foldable
from stepaudio.checkpoints.convert.flow_yaml import DECODER_CLASS, ENCODER_CLASS, ESTIMATOR_CLASS, FLOW_CLASS
from stepaudio.models.token2wav.campplus import SpeakerConfig
from stepaudio.models.token2wav.flow import FlowConfig
from stepaudio.models.token2wav.hift import HiftConfig, IstftConfig
from stepaudio.models.token2wav.speech_tokenizer import S3Config

STORAGE = {"float32": "FloatStorage", "float16": "HalfStorage", "int64": "LongStorage", "float64": "DoubleStorage"}
ONNX_KINDS = {"float32": 1, "int8": 3, "int64": 7, "float16": 10, "float64": 11}

# ---- .pt ----


class _Global:
    """Pickles as a bare name of a module."""

    def __init__(self, module: str, name: str):
        self.module, self.name = module, name


class _Call:
    """Pickles as a call of a name."""

    def __init__(self, module: str, name: str, *args):
        self.function, self.args = _Global(module, name), args


class _Storage:
    def __init__(self, kind: str, key: str, n: int):
        self.kind, self.key, self.n = kind, key, n


class _Pickler(pickle._Pickler):  # the Python one: its dispatch can write names that do not exist
    def persistent_id(self, thing):
        if isinstance(thing, _Storage):
            return ("storage", _Global("torch", thing.kind), thing.key, "cpu", thing.n)
        return None

    def save(self, thing, save_persistent_id=True):
        if isinstance(thing, _Global):
            self.write(pickle.GLOBAL + f"{thing.module}\n{thing.name}\n".encode())
        elif isinstance(thing, _Call):
            self.save(thing.function)
            self.save(tuple(thing.args))
            self.write(pickle.REDUCE)
        else:
            super().save(thing, save_persistent_id)


def pickled(thing) -> bytes:
    stream = io.BytesIO()
    _Pickler(stream, 2).dump(thing)
    return stream.getvalue()


def call(module: str, name: str, *args) -> _Call:
    return _Call(module, name, *args)


def write_pt(path: Path, tensors: dict, extras: dict | None = None) -> Path:
    """`tensors`: arrays, or shapes (a one-item storage seen through zero strides: any size in a few bytes)."""
    storages, entries = [], {}
    for i, (name, value) in enumerate(tensors.items()):
        shaped = isinstance(value, tuple)
        array = np.ones(1, np.float32) if shaped else np.ascontiguousarray(value)
        shape = value if shaped else array.shape
        strides = (0,) * len(shape) if shaped else tuple(s // array.itemsize for s in array.strides)
        storage = _Storage(STORAGE[str(array.dtype)], str(i), array.size)
        storages.append(array.tobytes())
        entries[name] = call("torch._utils", "_rebuild_tensor_v2", storage, 0, tuple(shape), strides, False,
                             call("collections", "OrderedDict"))  # fmt: skip
    return write_archive(path, pickled(entries | (extras or {})), storages)


def write_views(path: Path, n_items: int, views: dict[str, tuple[tuple, tuple]]) -> Path:
    """Views, shape and strides each, of one storage of float32."""
    storage = _Storage(STORAGE["float32"], "0", n_items)
    entries = {
        name: call("torch._utils", "_rebuild_tensor_v2", storage, 0, shape, strides, False,
                   call("collections", "OrderedDict"))
        for name, (shape, strides) in views.items()
    }  # fmt: skip
    return write_archive(path, pickled(entries), [np.ones(n_items, np.float32).tobytes()])


def write_archive(path: Path, description: bytes, storages: list[bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", description)
        archive.writestr("archive/byteorder", "little")
        for i, data in enumerate(storages):
            archive.writestr(f"archive/data/{i}", data)
        archive.writestr("archive/version", "3\n")
    return path


# ---- ONNX ----


def varint(n: int) -> bytes:
    n, out = n & (1 << 64) - 1, bytearray()
    while n > 127:
        out.append(n & 127 | 128)
        n >>= 7
    return bytes(out) + bytes([n])


def field(number: int, value) -> bytes:
    """One field of a message: a whole number, a float, or bytes/text."""
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def tensor(name: str, array: np.ndarray) -> bytes:
    dims = b"".join(field(1, n) for n in array.shape)
    return dims + field(2, ONNX_KINDS[str(array.dtype)]) + field(8, name) + field(9, array.tobytes())


def attribute(name: str, value) -> bytes:
    if isinstance(value, tuple):
        return field(1, name) + b"".join(field(8, n) for n in value) + field(20, 7)
    if isinstance(value, np.ndarray):
        return field(1, name) + field(5, tensor("", value)) + field(20, 4)
    return field(1, name) + (field(2, value) + field(20, 1) if isinstance(value, float) else
                             field(3, value) + field(20, 2))  # fmt: skip


def node(op: str, name: str, inputs, outputs=None, domain: str = "", **attributes) -> bytes:
    outputs = outputs or [f"{name}_output_0"]
    return (b"".join(field(1, i) for i in inputs) + b"".join(field(2, o) for o in outputs) + field(3, name)
            + field(4, op) + b"".join(field(5, attribute(k, v)) for k, v in attributes.items())
            + (field(7, domain) if domain else b""))  # fmt: skip


def model(nodes: list[bytes], initialisers: dict[str, np.ndarray], more: bytes = b"") -> bytes:
    graph = b"".join(field(1, n) for n in nodes) + field(2, "main_graph")
    graph += b"".join(field(5, tensor(name, array)) for name, array in initialisers.items())
    return field(1, 8) + field(2, "pytorch") + field(7, graph) + field(8, field(1, "") + field(2, 17)) + more


class Graph:
    """Collects nodes and initialisers; opaque names are numbered as the exporter's are."""

    def __init__(self):
        self.nodes, self.initialisers, self.count = [], {}, 2200

    def hold(self, array: np.ndarray, name: str = "", op: str = "") -> str:
        self.count += 1
        name = name or f"onnx::{op}_{self.count}"
        self.initialisers[name] = np.ascontiguousarray(array)
        return name

    def add(self, op: str, path: str, *inputs: str, **attributes) -> None:
        self.nodes.append(node(op, f"{path}/{op}", ["x", *inputs], **attributes))

    def save(self, path: Path) -> Path:
        path.write_bytes(model(self.nodes, self.initialisers))
        return path


def s3_graph(tensors: dict[str, np.ndarray], heads: int, stride: int = 2, eps: float = 1e-5) -> Graph:
    """As the published export: module paths without "encoder", matrices as (in, out), most names opaque."""
    graph, done = Graph(), set()
    for name, array in tensors.items():
        stem = name.rpartition(".")[0]
        path = "/" + stem.removeprefix("encoder.").replace(".", "/").replace("blocks/", "blocks.")
        path = path.replace("mlp/", "mlp/mlp.").replace("quantizer/_codebook/project_down", "quantizer/project_in")
        own = stem.removeprefix("encoder.")
        if stem in done:
            continue
        done.add(stem)
        array, bias = tensors[f"{stem}.weight"], tensors.get(f"{stem}.bias")
        if "_ln" in stem:
            graph.add("LayerNormalization", path, graph.hold(array, f"{own}.weight"), graph.hold(bias, f"{own}.bias"),
                      axis=-1, epsilon=eps)  # fmt: skip
        elif array.ndim == 3:
            more = [] if bias is None else [graph.hold(bias, f"{own}.bias")]
            graph.add("Conv", path, graph.hold(array, f"{own}.weight"), *more,
                      strides=(stride if stem.endswith("conv1") else 2 if more else 1,))  # fmt: skip
        else:
            graph.add("MatMul", path, graph.hold(array.T, op="MatMul"))
            if bias is not None:
                graph.nodes.append(node("Add", f"{path}/Add", [graph.hold(bias, op="Add"), f"{path}/MatMul_output_0"]))
    size = next(a.shape[0] for n, a in tensors.items() if n.endswith("attn.query.weight")) // heads
    for i in range(sum(n.endswith("attn.query.weight") for n in tensors)):
        attn = f"/blocks.{i}/attn"
        pieces = [f"{attn}/Unsqueeze_output_0", f"{attn}/Unsqueeze_1_output_0", f"{attn}/heads", f"{attn}/size"]
        graph.nodes += [node("Constant", f"{attn}/Constant", [], [piece], value=np.array([n], np.int64))
                        for piece, n in zip(pieces[2:], (heads, size), strict=True)]  # fmt: skip
        graph.nodes += [node("Concat", f"{attn}/Concat", pieces, axis=0),
                        node("Reshape", f"{attn}/Reshape", ["x", f"{attn}/Concat_output_0"])]  # fmt: skip
    return graph


def fold(kernel: np.ndarray, norm: dict[str, np.ndarray], eps: float) -> tuple[np.ndarray, np.ndarray]:
    """A batch norm behind a kernel without bias, as one kernel with bias, in float64."""
    scale = norm.get("weight", 1.0) / np.sqrt(norm["running_var"].astype(np.float64) + eps)
    bias = norm.get("bias", 0.0) - norm["running_mean"] * scale
    return (kernel * scale.reshape(-1, *[1] * (kernel.ndim - 1))).astype(np.float32), bias.astype(np.float32)


def module_path(stem: str) -> str:
    """head.layer1.0.conv1 -> /head/layer1/layer1.0/conv1, as the exporter writes items of a list."""
    found: list[str] = []
    for segment in stem.split("."):
        found.append(f"{found[-1]}.{segment}" if segment.isdigit() else segment)
    return "/" + "/".join(found)


def campplus_graph(tensors: dict[str, np.ndarray], dilations: tuple[int, ...], folds: dict[str, str],
                   eps: float = 1e-5, pool: int = 100) -> Graph:  # fmt: skip
    """As the published export. `folds`: convolution -> batch norm that goes into it."""
    graph, done = Graph(), set(folds.values())
    for name, array in tensors.items():
        stem = name.rpartition(".")[0]
        if stem in done:
            continue
        done.add(stem)
        array = tensors.get(f"{stem}.weight", array)
        if array.ndim > 1:
            bias, own = tensors.get(f"{stem}.bias"), f"{stem}.weight"
            if stem in folds:
                norm = {n.rpartition(".")[2]: a for n, a in tensors.items() if n.startswith(folds[stem] + ".")}
                array, bias = fold(array, norm, eps)
                own = ""
            more = [] if bias is None else [graph.hold(bias, own and f"{stem}.bias", "Conv")]
            local = stem.endswith("linear_local")
            spread = dilations[int(stem.split("block")[1][0]) - 1] if local else 1
            graph.add("Conv", module_path(stem), graph.hold(array, own, "Conv"), *more, dilations=(spread,))
        else:
            kinds = ("weight", "bias", "running_mean", "running_var")
            held = [graph.hold(tensors[f"{stem}.{k}"], f"{stem}.{k}") if f"{stem}.{k}" in tensors else f"{stem}_{k}"
                    for k in kinds]  # fmt: skip
            graph.add("BatchNormalization", module_path(stem), *held, epsilon=eps)
    graph.nodes.append(node("AveragePool", "/xvector/block1/tdnnd1/cam_layer/AveragePool", ["x"], kernel_shape=(pool,)))
    return graph


# ---- a whole folder, tiny ----

FLOW = {
    "input_size": 16, "output_size": 4, "spk_embed_dim": 6, "output_type": "mel", "vocab_size": 81,
    "encoder": {
        "input_size": 16, "output_size": 16, "input_layer": "linear", "pre_lookahead_len": 3, "num_blocks": 1,
        "num_up_blocks": 1, "up_stride": 2, "up_scale_factor": 2, "attention_heads": 2,
        "pos_enc_layer_type": "rel_pos_espnet", "selfattention_layer_type": "rel_selfattn", "key_bias": True,
        "linear_units": 24, "dropout_rate": 0.1, "positional_dropout_rate": 0.1, "attention_dropout_rate": 0.1,
        "normalize_before": True,
    },
    "decoder": {"inference_cfg_rate": 0.7, "estimator": {
        "in_channels": 16, "out_channels": 4, "mlp_ratio": 2.0, "depth": 2, "num_heads": 2, "head_dim": 8,
        "hidden_size": 16,
    }},
}  # fmt: skip
HIFT = HiftConfig(in_channels=4, base_channels=16, f0_cond_channels=6, nb_harmonics=2, upsample_rates=(10, 6),
                  upsample_kernel_sizes=(20, 12), istft=IstftConfig(32, 8), resblock_kernel_sizes=(3, 5),
                  resblock_dilation_sizes=((1, 3), (1, 3)), source_resblock_kernel_sizes=(3, 5),
                  source_resblock_dilation_sizes=((1, 3), (1, 3)))  # fmt: skip
SPEAKER = SpeakerConfig(feat_dim=16, embedding_size=6, growth_rate=4, bn_size=2, init_channels=6,
                        blocks=((2, 3, 1), (3, 3, 2)), fcm_channels=4, seg_pool=7)  # fmt: skip
TOKENIZER = S3Config(n_mels=8, n_audio_state=16, n_audio_head=4, n_audio_layer=2, n_codebook_size=81, fsmn_kernel=5)
CONFIGS = {"tokenizer": TOKENIZER, "speaker": SPEAKER, "flow": FlowConfig.from_dict(FLOW), "hift": HIFT}
CLASSES = {"flow": FLOW_CLASS, "encoder": ENCODER_CLASS, "decoder": DECODER_CLASS, "estimator": ESTIMATOR_CLASS}


def yaml(key: str, entries: dict, indent: int = 0) -> str:
    """`flow.yaml` of nested mappings, each under its published class."""
    lines = [f"{' ' * indent}{key}: !new:{CLASSES[key]}"]
    for name, value in entries.items():
        nested = isinstance(value, dict)
        lines.append(yaml(name, value, indent + 2) if nested else f"{' ' * (indent + 2)}{name}: {json.dumps(value)}")
    return "\n".join(lines)


def random_tensors(layout: dict, seed: int = 0) -> dict[str, np.ndarray]:
    """Values of which no two are alike; variances positive, counters whole."""
    rng = np.random.default_rng(seed)
    found = {}
    for name, shape in layout.items():
        values = rng.normal(0, 0.3, shape).astype(np.float32)
        found[name] = np.abs(values) + 0.5 if name.endswith(("running_var", "alpha", "original0")) else values
        if name.endswith("num_batches_tracked"):
            found[name] = np.array(7, np.int64)
    return found


def tiny_tensors() -> dict[str, dict[str, np.ndarray]]:
    """Component -> published tensors (counters left out, as in graphs)."""
    speaker = {n: s for n, s in speaker_layout(SPEAKER).items() if not n.endswith("num_batches_tracked")}
    return {"tokenizer": random_tensors(s3_layout(TOKENIZER), 1), "speaker": random_tensors(speaker, 2),
            "flow": random_tensors(flow_layout(FlowConfig.from_dict(FLOW)), 3),
            "hift": random_tensors(hift_layout(HIFT), 4)}  # fmt: skip


def folds(config: SpeakerConfig) -> dict[str, str]:
    """What PyTorch's exporter folds: all but the last, which a squeeze separates from its kernel."""
    return {conv: norm for conv, norm in foldable(config).items() if conv != "xvector.dense.linear"}


def write_part(folder: Path, component: str, tensors: dict[str, np.ndarray]) -> Path:
    """One published file of the tiny sizes."""
    if component == "tokenizer":
        return s3_graph(tensors, TOKENIZER.n_audio_head).save(folder / "speech_tokenizer_v2_25hz.onnx")
    if component == "speaker":
        dilations = tuple(dilation for _, _, dilation in SPEAKER.blocks)
        graph = campplus_graph(tensors, dilations, folds(SPEAKER), pool=SPEAKER.seg_pool)
        return graph.save(folder / "campplus.onnx")
    prefix = "generator." if component == "hift" else ""
    return write_pt(folder / f"{component}.pt", {prefix + name: array for name, array in tensors.items()})


def write_folder(model: Path) -> Path:
    """`model/token2wav` with all five files."""
    folder = model / "token2wav"
    folder.mkdir(parents=True)
    for component, tensors in tiny_tensors().items():
        write_part(folder, component, tensors)
    (folder / "flow.yaml").write_text(yaml("flow", FLOW))
    return folder
