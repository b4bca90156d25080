"""Which layers get how many bits: a value for all, and rules for components and patterns of layers, the last one first.

>>> recipe = Recipe(Bits(4)).with_rule("head", "8").with_rule("model.layers.0.*", "off")
>>> recipe.of("lm_head"), recipe.of("model.layers.0.mlp.up_proj")
(Bits(bits=8, group_size=64, mode='affine'), None)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from ..errors import ConfigError
from ..models.quantization import MODES, Bits, read_bits
from ..reading import read_object
from ..schema import shown
from .header import listed

WORDS: dict[str, str] = {  # component -> pattern of its layers
    "encoder": "encoder.blocks.*", "adapter": "adapter.*", "decoder": "model.layers.*", "head": "lm_head",
    "embeddings": "model.embed_tokens",
}  # fmt: skip
UNASKED = ("encoder.positional_embedding",)  # kept unless a rule names it
SPEAKING = ("flow", "vocoder", "token2wav", "hift", "tokenizer", "speaker")  # components that keep their bits
OFF = "off"
FORMS = "8, 4/32 (bits/group), off, or one of the modes mxfp4, mxfp8, nvfp4"


@dataclass(frozen=True)
class Recipe:
    """`default` is for every layer that no rule fits, None to leave those as they are; of several rules the last holds.

    A rule is a component ("encoder", "adapter", "decoder", "head", "embeddings") or a pattern of layers, in
    which `*` and `?` stand for any text, and what its layers get, None for nothing.
    """

    default: Bits | None = None
    rules: tuple[tuple[str, Bits | None], ...] = ()

    @classmethod
    def from_file(cls, path: str | Path, default: Bits | None = None) -> Recipe:
        """Read a JSON object of rules: pattern -> bits, "bits/group", a mode, false, or an object with all three.

        Raises
        ------
        ConfigError
            No such object, or values that MLX has not got.
        """
        found = cls(default)
        for pattern, value in read_object(path, ConfigError, "expected rules: an object of layers to bits").items():
            found = found.with_rule(pattern, value, f"{path}.{pattern:.80}")
        return found

    def with_rule(self, pattern: str, value: object, path: str | None = None) -> Recipe:
        """With one more rule; `path` opens messages. Raises as `from_file`."""
        path = path or pattern
        if pattern in SPEAKING:
            raise ConfigError(
                f"{path}: token2wav keeps its bits: its vocoder is made of convolutions, which MLX has no fewer bits "
                "for, and of its other nets quantised files are not read; leave it out"
            )
        return replace(self, rules=(*self.rules, (pattern, _bits(value, path, self.default))))

    def of(self, layer: str) -> Bits | None:
        """What a layer gets."""
        for pattern, bits in reversed(self.rules):
            if _fits(pattern, layer):
                return bits
        return None if any(fnmatchcase(layer, pattern) for pattern in UNASKED) else self.default

    def choose(self, layers: Mapping[str, tuple[int, int]]) -> dict[str, Bits]:
        """Layer -> bits of those that get fewer; those that `default` alone reaches and does not fit are left out.

        Raises
        ------
        ConfigError
            A rule that fits no layer; rows of a layer that a rule names and that are no multiple of the group size; or
            nothing is left to be done.
        """
        for pattern, _ in self.rules:
            if not any(_fits(pattern, layer) for layer in layers):
                raise ConfigError(
                    f"{pattern}: fits no layer that can be quantised; expected {', '.join(WORDS)}, or a pattern of "
                    f"names such as {listed(list(layers)[:2])}"
                )
        chosen, odd = {}, []
        for layer, (_, width) in layers.items():
            bits = self.of(layer)
            if bits is not None and bits.fits(width):
                chosen[layer] = bits
            elif bits is not None:
                odd.append(f"{layer} ({width})")
                if any(_fits(pattern, layer) for pattern, _ in self.rules):
                    raise ConfigError(
                        f"{layer}: its rows of {width} weights are no multiple of the group size {bits.group_size}"
                    )
        if not chosen:
            reason = f"rows are no multiple of the group size: {listed(odd)}" if odd else "the recipe names none"
            raise ConfigError(f"nothing to quantise: {reason}")
        return chosen


def parse_rules(words: Iterable[str], recipe: Recipe, option: str) -> Recipe:
    """A recipe with rules written as PATTERN=BITS; `option` opens messages. Raises `ConfigError`."""
    for word in words:
        pattern, equals, value = word.partition("=")
        if not (pattern and equals and value):
            raise ConfigError(f"{option} {word:.80}: expected PATTERN=BITS, with BITS one of {FORMS}")
        recipe = recipe.with_rule(pattern, value, f"{option} {pattern:.80}")
    return recipe


def _bits(value: object, path: str, default: Bits | None) -> Bits | None:
    """What a rule says; a number alone has the group size of the default, where that is affine."""
    if value is None or value is False or value == OFF:
        return None
    group = default.group_size if default is not None and default.mode == "affine" else 64
    if isinstance(value, int) and not isinstance(value, bool):
        return read_bits({"bits": value, "group_size": group}, path)
    if isinstance(value, str):
        if value in MODES:
            return Bits.usual(mode=value)
        if number := re.fullmatch(r"(\d{1,3})(?:/(\d{1,5}))?", value):
            return read_bits({"bits": int(number[1]), "group_size": int(number[2] or group)}, path)
    if isinstance(value, Mapping):
        return read_bits({"group_size": group} | dict(value), path)
    raise ConfigError(f"{path}: expected {FORMS}, found {shown(value)}")


def _fits(pattern: str, layer: str) -> bool:
    return fnmatchcase(layer, WORDS.get(pattern, pattern))
