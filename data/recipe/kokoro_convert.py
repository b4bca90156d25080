"""Turn an int8 ONNX export of Kokoro-82M and its voice tables into one small archive.

Kokoro-82M is a public text-to-speech model (Apache-2.0).  Its int8 ONNX export
stores every large weight as 8-bit integers with a scale, but wraps each product
in "quantise the activations, multiply integers, scale back" nodes that a GPU
runs badly.  This script pulls the weights out, gives each one the name of the
layer it belongs to, and keeps them as int8 + scale, so that
`kokoro_model.py` can rebuild the layers in floating point.  Nothing but numpy
is needed to read the result.

    python kokoro_convert.py --onnx kokoro_int8.onnx --voices DIR --vocab vocab.json --out kokoro.npz

The archive holds
    NAME.weight        int8 (large layers) or float16/float32
    NAME.weight.scale  float32, one number or one per output channel
    NAME.bias, ...     float32
    voice/NAME         float16 (510, 256): one style row per phoneme count
    vocab              JSON text, phoneme -> id
"""

import argparse
import json
import pathlib

import numpy as np
import onnx
from onnx import numpy_helper

from kokoro_voices import VOICES

# ONNX orders the LSTM gates input, output, forget, cell; torch input, forget, cell, output.
GATES = np.concatenate([np.arange(256) + 256 * k for k in (0, 2, 3, 1)])


def layer_name(output):
    """'/decoder/decoder/encode/conv1/Conv_output_0_...' -> 'decoder.encode.conv1'."""
    parts = output.split("/")[1:-1]
    # a Sequential shows up twice ('cnn.0/cnn.0.0'): the longer name stands for both
    parts = [p for p, q in zip(parts, [*parts[1:], ""], strict=True) if not q.startswith(p + ".")]
    name = ".".join(parts).replace("decoder.decoder.", "decoder.", 1)
    for block in ("F0.", "N.", "shared", "F0_proj", "N_proj"):
        if name.startswith("encoder." + block):
            name = "predictor." + name[len("encoder.") :]
    name = name.removeprefix("encoder.")
    return short(name)


def short(name):
    """The text encoder's layers without the levels that its one shared layer does not need."""
    name = name.replace("bert.encoder.albert_layer_groups.0.albert_layers.0.", "albert.")
    return name.replace("bert.encoder.embedding_hidden", "bert.embedding_hidden")


def convert(path):
    graph = onnx.load(path).graph
    init = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    out = {}

    def put(name, q, scale):
        assert q.min() >= -128 and q.max() <= 127, name
        out[name] = q.astype(np.int8)
        out[name + ".scale"] = np.asarray(scale, np.float32)

    seen = set()
    for node in graph.node:
        if node.op_type in ("MatMulInteger", "ConvInteger"):
            wname = node.input[1]
            if wname in seen:  # the one ALBERT layer is applied twelve times
                continue
            seen.add(wname)
            name = layer_name(node.output[0]) + ".weight"
            base = wname.removesuffix("_quantized")
            q = init[wname].astype(np.int32)
            scale = init[base + "_scale"]
            if node.op_type == "MatMulInteger":  # (in, out), symmetric, one scale per column
                assert not init[node.input[3]].any()
                put(name, q.T, scale)
            else:  # (out, in, kernel), one scale and one zero point
                put(name, q - int(init[node.input[3]]), scale)
        elif node.op_type == "DynamicQuantizeLSTM":
            name = layer_name(node.output[0])
            w, r, bias = (init[node.input[k]] for k in (1, 2, 3))
            assert not init[node.input[9]].any() and not init[node.input[11]].any()
            for k, suffix in enumerate(("", "_reverse")):
                put(f"{name}.weight_ih_l0{suffix}", w[k].T[GATES], init[node.input[8]][k])
                put(f"{name}.weight_hh_l0{suffix}", r[k].T[GATES], init[node.input[10]][k])
                out[f"{name}.bias_ih_l0{suffix}"] = bias[k, :1024][GATES]
                out[f"{name}.bias_hh_l0{suffix}"] = bias[k, 1024:][GATES]
        elif node.op_type in ("Conv", "ConvTranspose") and "/istft/" not in node.output[0]:
            out[layer_name(node.output[0]) + ".weight"] = init[node.input[1]].astype(np.float16)
        elif node.op_type == "MatMul" and "l_linear" in node.output[0]:
            out["decoder.generator.m_source.l_linear.weight"] = init[node.input[1]].T.copy()

    for name, value in init.items():  # biases, norms, snake slopes, embeddings
        key = short(name.replace("decoder.decoder.", "decoder.", 1).removeprefix("encoder."))
        if "embedding" in key and key.endswith("weight_quantized"):
            base = name.removesuffix("_quantized")
            put(key.removesuffix("_quantized"), value.astype(np.int32), init[base + "_scale"])
        elif key.endswith((".bias", ".gamma", ".beta", "LayerNorm.weight", "layer_norm.weight")) or ".alpha" in key:
            out[key] = value.astype(np.float32)
    return out


def main():
    ap = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    ap.add_argument("--onnx", required=True)
    ap.add_argument("--voices", required=True, help="folder of NAME.bin, each (510, 1, 256) float32")
    ap.add_argument("--vocab", required=True, help="JSON, phoneme -> id")
    ap.add_argument("--out", required=True)
    ap.add_argument("--all-voices", action="store_true", help="also the reserved ones (for scoring only)")
    args = ap.parse_args()

    out = convert(args.onnx)
    for f in sorted(pathlib.Path(args.voices).glob("*.bin")):
        if args.all_voices or f.stem in VOICES:
            out["voice/" + f.stem] = np.fromfile(f, np.float32).reshape(510, 256).astype(np.float16)
    vocab = json.loads(pathlib.Path(args.vocab).read_text(encoding="utf-8"))
    out["vocab"] = np.frombuffer(json.dumps(vocab).encode(), np.uint8)
    np.savez(args.out, **out)
    print(f"{len(out)} arrays, {sum(v.nbytes for v in out.values()) / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
