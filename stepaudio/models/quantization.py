"""Layers of fewer bits: how many, in groups of how many, in which of MLX's modes; and nets made of such layers.

A config says it as MLX's own tools write it: `quantization` has the values that hold for every layer that can be
quantised, and beside them, by its path in the net, each layer that has others or (`false`) none.

Linear layers and embedding tables can be quantised; MLX has no convolution of fewer bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map_with_path

from ..backend.device import info, on_cpu
from ..choices import QuantizationMode, is_whole
from ..errors import ConfigError, WeightsError
from ..schema import read_record, require, shown
from .parameters import named_arrays

AFFINE = QuantizationMode.AFFINE.value
MODES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {  # the group sizes and bits of each, the usual one first
    AFFINE: ((64, 32, 128), (4, 2, 3, 5, 6, 8)), "mxfp4": ((32,), (4,)), "mxfp8": ((32,), (8,)), "nvfp4": ((16,), (4,)),
}  # fmt: skip
MANY = 8  # rows from which widening a matrix costs less than MLX's product with it on a CPU
FLOATS = (mx.float32, mx.bfloat16, mx.float16)  # what is computed with


@dataclass(frozen=True)
class Bits:
    """How the matrix of a layer is held.

    Parameters
    ----------
    bits : int
        Of a weight: 2, 3, 4, 5, 6 or 8 if affine, else what the mode says.
    group_size : int
        Neighbours of a row that share a scale (and, if affine, an offset): 64, 32 or 128 if affine.
    mode : {"affine", "mxfp4", "mxfp8", "nvfp4"}

    Raises
    ------
    ConfigError
        Anything else.
    """

    bits: int
    group_size: int = 64
    mode: str = AFFINE

    def __post_init__(self):
        require(self.mode in MODES, f"expected mode {', '.join(MODES)}, found {shown(self.mode)}; MLX has no other")
        groups, bits = MODES[self.mode]
        for name, value, known in (("bits", self.bits, bits), ("group_size", self.group_size, groups)):
            said = ", ".join(map(str, sorted(known)))
            fits = is_whole(value) and value in known
            require(fits, f"expected {name} {said} in mode {self.mode}, found {shown(value)}; MLX has no others")

    @classmethod
    def usual(cls, bits: int | None = None, group_size: int | None = None, mode: str = AFFINE) -> Bits:
        """With what the mode says where nothing else does. Raises as the constructor."""
        groups, known = MODES.get(mode, ((0,), (0,)))
        return cls(known[0] if bits is None else bits, groups[0] if group_size is None else group_size, mode)

    def fits(self, width: int) -> bool:
        """Whether rows of this many weights come out in whole groups."""
        return width % self.group_size == 0

    def bytes_of(self, shape: tuple[int, ...], itemsize: int) -> int:
        """Bytes of a matrix (rows, width), its scales and offsets among them; `itemsize` of these, if affine."""
        rows, width = shape
        extra = 2 * itemsize if self.mode == AFFINE else 1
        return rows * (width * self.bits // 8 + width // self.group_size * extra)

    @property
    def options(self) -> dict[str, Any]:
        """The same as keywords of MLX's functions."""
        return asdict(self)

    def __str__(self) -> str:
        mode = "" if self.mode == AFFINE else f" ({self.mode})"
        return f"{self.bits} bits in groups of {self.group_size}{mode}"


@dataclass(frozen=True)
class Quantization:
    """What a config says of all layers. `layers` : path in the net -> its own values, None for not quantised."""

    default: Bits
    layers: Mapping[str, Bits | None] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, data: object, path: str = "quantization") -> Quantization:
        """Read the parsed JSON; `path` opens messages.

        Raises
        ------
        ConfigError
            Values that MLX does not have, or a layer that is said to be anything but an object, true or false.
        """
        is_object = isinstance(data, Mapping)
        require(is_object, f"{path}: expected a JSON object with bits and group_size, found {shown(data)}")
        own = dict(cast(Mapping[str, Any], data))
        base = {name: own.pop(name) for name in ("bits", "group_size", "mode") if name in own}
        method = own.pop("quant_method", None)
        require(method is None, f"{path}: written by another method than MLX's ({shown(method)}), which is not read")
        for name in ("bits", "group_size"):
            require(name in base, f"{path}: missing key {name}; expected what MLX's tools write")
        default, layers = _bits_of(base, path), {}
        for name, told in own.items():
            if isinstance(told, bool):
                layers[name] = default if told else None
            else:
                layers[name] = _bits_of(told, f"{path}.{name:.80}")
        return cls(default, layers)

    def to_dict(self) -> dict[str, Any]:
        """The JSON shape again."""
        return _written(self.default) | {
            name: False if bits is None else _written(bits) for name, bits in self.layers.items()
        }

    def of(self, layer: str, width: int) -> Bits | None:
        """What is said of a layer whose rows are so wide; None for nothing: it is not quantised."""
        if layer in self.layers:
            return self.layers[layer]
        return self.default if self.default.fits(width) else None


def _bits_of(data: object, path: str) -> Bits:
    if isinstance(data, Mapping) and isinstance(data.get("mode"), str) and data["mode"] in MODES:
        groups, bits = MODES[data["mode"]]
        data = {"group_size": groups[0], "bits": bits[0]} | dict(data)
    return read_bits(data, path)


def read_bits(data: object, path: str) -> Bits:
    """A JSON object as `Bits`; `path` opens every message of the `ConfigError`."""
    try:
        return read_record(Bits, data, path)
    except ConfigError as error:
        raise ConfigError(str(error) if str(error).startswith(path) else f"{path}: {error}") from None


def _written(bits: Bits) -> dict[str, Any]:
    return {"group_size": bits.group_size, "bits": bits.bits, "mode": bits.mode}


# ---- nets ----


class PackedLinear(nn.QuantizedLinear):
    """MLX's quantised linear layer; but of many rows on a CPU, where its product is slow, by that of floats."""

    def __call__(self, x: mx.array) -> mx.array:
        """(…, width) -> (…, rows)."""
        if x.size < MANY * x.shape[-1] or not on_cpu():
            return super().__call__(x)
        how = {"group_size": self.group_size, "bits": self.bits, "mode": self.mode, "dtype": x.dtype}
        x = x @ mx.dequantize(self["weight"], self["scales"], self.get("biases"), **how).T
        return x + self["bias"] if "bias" in self else x


def layers_of(net: nn.Module) -> dict[str, tuple[int, int]]:
    """Path -> (rows, width) of every layer that can be quantised and is not yet."""
    return {
        path: tuple(module["weight"].shape)
        for path, module in reversed(net.named_modules())  # which are listed from the last on
        if hasattr(module, "to_quantized") and "weight" in module
    }  # pyright: ignore[reportReturnType]


def quantise_layers(net: nn.Module, chosen: Mapping[str, Bits]) -> None:
    """Put layers of fewer bits in the place of these, made of their weights; nothing is computed before it is needed.

    Raises
    ------
    WeightsError
        A layer that the net has not got or that cannot be quantised, rows that do not come out in whole groups, or a
        mode that this backend does not compute.
    """
    _check(net, chosen)

    def replaced(path: str, module: Any) -> Any:
        if path not in chosen:
            return module
        if isinstance(module, nn.Linear):
            return PackedLinear.from_linear(module, **chosen[path].options)
        return module.to_quantized(**chosen[path].options)

    net.update_modules(tree_map_with_path(replaced, net.leaf_modules(), is_leaf=nn.Module.is_module))


def round_layers(net: nn.Module, chosen: Mapping[str, Bits]) -> None:
    """Give these layers the values that they would have with fewer bits, and compute with them as before.

    For trials: the same numbers up to the order of sums, at the speed of floats. Raises as `quantise_layers`.
    """
    _check(net, chosen)
    for path, module in net.named_modules():
        if path in chosen:
            options, weight = chosen[path].options, module["weight"]
            module["weight"] = mx.dequantize(*mx.quantize(weight, **options), **options, dtype=weight.dtype)


def _check(net: nn.Module, chosen: Mapping[str, Bits]) -> None:
    known = layers_of(net)
    for path, bits in chosen.items():
        if path not in known:
            raise WeightsError(
                f"{path!r:.120} is no layer that can be quantised: those are linear layers and tables of embeddings "
                "that are not quantised yet"
            )
        if not bits.fits(known[path][1]):
            raise WeightsError(
                f"{path}: its rows of {known[path][1]} weights are no multiple of the group size {bits.group_size}"
            )
    for bits in dict.fromkeys(chosen.values()):
        require_backend(bits)


def require_backend(bits: Bits) -> None:
    """Raise `WeightsError` unless the backend quantises and multiplies so; it is tried on one small matrix."""
    try:
        w = mx.zeros((32, 512), mx.float32)
        packed = mx.quantize(w, **bits.options)
        mx.eval(mx.quantized_matmul(mx.zeros((1, 512), mx.float32), *packed, **bits.options))
    except (RuntimeError, ValueError, NotImplementedError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(
            f"{bits}: MLX {info()['versions']['mlx']} does not compute this on {info()['backend']} ({reason:.160}); "
            "quantise with mode affine, or load it on another backend"
        ) from None


def bits_of(module: nn.Module) -> Bits | None:
    """How a layer is held; None for one that is not quantised."""
    if not isinstance(module, (nn.QuantizedLinear, nn.QuantizedEmbedding)):
        return None
    return Bits(module.bits, module.group_size, module.mode)


def quantised_layers(net: nn.Module) -> dict[str, Bits]:
    """Path -> bits of the layers of a net that are quantised."""
    return {path: bits for path, module in net.named_modules() if (bits := bits_of(module)) is not None}


def whole_parameters(net: nn.Module) -> dict[str, mx.array]:
    """Every parameter by the name that it has where nothing is quantised; quantised matrices as the values they mean.

    Their dtype is that of their scales, float32 where these are no floats; computed when needed.
    """
    held, packed = dict(named_arrays(net.parameters())), quantised_layers(net)
    out = {}
    for name, array in held.items():
        layer, dot, last = name.rpartition(".")
        bits = packed.get(layer)
        if bits is None or last == "bias":
            out[name] = array
        elif last == "weight":
            scales, biases = held[f"{layer}{dot}scales"], held.get(f"{layer}{dot}biases")
            dtype = scales.dtype if scales.dtype in FLOATS else mx.float32
            out[name] = mx.dequantize(array, scales, biases, **bits.options, dtype=dtype)
    return out


def n_values(net: nn.Module) -> int:
    """Numbers that a net holds, however few bits each of them has."""
    return sum(array.size for array in whole_parameters(net).values())
