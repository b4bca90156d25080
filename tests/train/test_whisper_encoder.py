"""The recipe's reader of CTranslate2 files, on a file written here byte by byte."""

import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from stepaudio.models.encoder import AudioEncoder, AudioEncoderConfig
from stepaudio.models.parameters import named_arrays
from stepaudio.train.nano import encoder_sizes, read_encoder

sys.path.insert(0, str(Path(__file__).parents[2] / "data/recipe"))
import whisper_encoder

C, MELS, LAYERS = 64, 6, 2


def whisper_arrays(seed=0):
    """Names and shapes as CTranslate2 keeps a Whisper encoder, and something of the decoder."""
    rng = np.random.default_rng(seed)
    shapes = {
        "encoder/conv1/weight": (C, MELS, 3),
        "encoder/conv1/bias": (C,),
        "encoder/conv2/weight": (C, C, 3),
        "encoder/conv2/bias": (C,),
        "encoder/layer_norm/gamma": (C,),
        "encoder/layer_norm/beta": (C,),
        "encoder/position_encodings/encodings": (10, C),
        "decoder/layer_0/ffn/linear_0/weight": (8, C),
    }
    for i in range(LAYERS):
        for part, shape in (
            ("ffn/layer_norm/gamma", (C,)),
            ("ffn/layer_norm/beta", (C,)),
            ("ffn/linear_0/weight", (4 * C, C)),
            ("ffn/linear_0/bias", (4 * C,)),
            ("ffn/linear_1/weight", (C, 4 * C)),
            ("ffn/linear_1/bias", (C,)),
            ("self_attention/layer_norm/gamma", (C,)),
            ("self_attention/layer_norm/beta", (C,)),
            ("self_attention/linear_0/weight", (3 * C, C)),
            ("self_attention/linear_0/bias", (3 * C,)),
            ("self_attention/linear_1/weight", (C, C)),
            ("self_attention/linear_1/bias", (C,)),
        ):
            shapes[f"encoder/layer_{i}/{part}"] = shape
    arrays = {name: rng.normal(size=shape).astype(np.float16) for name, shape in shapes.items()}
    for i in range(LAYERS):
        arrays[f"encoder/layer_{i}/self_attention/linear_0/bias"][C : 2 * C] = 0
    return arrays | {"encoder/num_heads": np.array(1, np.int16)}


def written(arrays, version=6):
    """The bytes of a model file."""

    def text(name):
        return struct.pack("<H", len(name) + 1) + name.encode() + b"\0"

    parts = [struct.pack("<I", version), text("WhisperSpec"), struct.pack("<II", 3, len(arrays))]
    for name, value in arrays.items():
        kind = {"float16": 4, "int16": 2}[str(value.dtype)]
        parts += [text(name), struct.pack(f"<B{value.ndim}I", value.ndim, *value.shape)]
        parts += [struct.pack("<BI", kind, value.nbytes), value.tobytes()]
    return b"".join(parts) + struct.pack("<I", 0)


def convert(monkeypatch, folder, data):
    half = len(data) // 2
    (folder / "a").write_bytes(data[:half])
    (folder / "b").write_bytes(data[half:])
    out = folder / "encoder.safetensors"
    monkeypatch.setattr(sys, "argv", ["", "--model", str(folder / "a"), str(folder / "b"), "--out", str(out)])
    whisper_encoder.main()
    return out


def test_every_array_of_the_encoder_has_its_place(tmp_path, monkeypatch):
    arrays = whisper_arrays()
    path = convert(monkeypatch, tmp_path, written(arrays))
    found = read_encoder(path)
    sizes = encoder_sizes(found)
    assert sizes == {"n_mels": MELS, "n_audio_ctx": 10, "n_audio_state": C, "n_audio_head": 1, "n_audio_layer": LAYERS}
    net = AudioEncoder(AudioEncoderConfig(**sizes, llm_dim=8, kernel_size=3, adapter_stride=2))
    assert {n: v.shape for n, v in found.items()} == {n: v.shape for n, v in named_arrays(net.parameters())}
    stored = load_file(path)
    fused = arrays["encoder/layer_1/self_attention/linear_0/weight"]
    for i, name in enumerate(("query", "key", "value")):
        np.testing.assert_array_equal(stored[f"encoder.blocks.1.attn.{name}.weight"], fused[i * C : (i + 1) * C])
    last = arrays["encoder/layer_1/self_attention/linear_0/bias"]
    np.testing.assert_array_equal(stored["encoder.blocks.1.attn.value.bias"], last[2 * C :])
    np.testing.assert_array_equal(stored["encoder.blocks.0.mlp.2.bias"], arrays["encoder/layer_0/ffn/linear_1/bias"])
    np.testing.assert_array_equal(stored["encoder.after_norm.weight"], arrays["encoder/layer_norm/gamma"])
    np.testing.assert_array_equal(
        np.array(found["conv1.weight"]), arrays["encoder/conv1/weight"].transpose(0, 2, 1).astype(np.float16)
    )


def test_what_has_no_place_is_refused(tmp_path, monkeypatch):
    arrays = whisper_arrays()
    arrays["encoder/layer_0/self_attention/linear_0/bias"][C] = 1
    with pytest.raises(SystemExit, match="keys have a bias"):
        convert(monkeypatch, tmp_path, written(arrays))
    with pytest.raises(SystemExit, match="version is 5"):
        convert(monkeypatch, tmp_path, written(whisper_arrays(), version=5))
