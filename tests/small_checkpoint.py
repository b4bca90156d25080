"""A checkpoint of the published layout at a very small size, written as outsiders write it, and as wrong as wanted."""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from safetensors.numpy import save_file

from stepaudio.checkpoints.header import INDEX_FILE, SINGLE_FILE
from stepaudio.checkpoints.layout import expected_layout
from stepaudio.models.speech_lm import StepAudioConfig

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


def parameters(net) -> dict[str, np.ndarray]:
    return {name: np.array(array.astype(mx.float32)) for name, array in tree_flatten(net.parameters())}


def as_held(name: str, array: np.ndarray) -> np.ndarray:
    return array.transpose(0, 2, 1) if name in ("encoder.conv1.weight", "encoder.conv2.weight",
                                                "adapter.conv.weight") else array  # fmt: skip
