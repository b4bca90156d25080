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

from ..choices import is_whole
from ..errors import ConfigError
from ..models.quantization import MODES, Bits, read_bits
from ..reading import read_object
from ..schema import shown
from .header import listed
from .layout import TOKEN2WAV

WORDS: dict[str, tuple[str, ...]] = {  # component -> patterns of its layers
    "encoder": ("encoder.blocks.*",), "adapter": ("adapter.*",), "decoder": ("model.layers.*",), "head": ("lm_head",),
    "embeddings": ("model.embed_tokens",),
    "tokenizer": ("tokenizer.*",), "speaker": ("speaker.*",), "flow": ("flow.*",), "vocoder": ("hift.*",),
    "token2wav": tuple(f"{net}.*" for net in TOKEN2WAV),
}  # fmt: skip
UNASKED = ("encoder.positional_embedding", *WORDS["token2wav"])  # kept unless a rule names them
OFF = "off"
FORMS = "8, 4/32 (bits/group), off, or one of the modes mxfp4, mxfp8, nvfp4"


@dataclass(frozen=True)
class Recipe:
    """`default` is for every layer that no rule fits, None to leave those as they are; of several rules the last holds.

    A rule is a component (one of `WORDS`) or a pattern of layers, in which `*` and `?` stand for any text, and what
    its layers get, None for nothing. Layers of token2wav have the name of their net in front, "hift.conv_pre", and so
    have patterns that reach them; no default does.
    """

    default: Bits | None = None
    rules: tuple[tuple[str, Bits | None], ...] = ()

    @classmethod
    def meant(cls, value: object) -> Recipe:
        """A recipe as it is; a number as that of so many bits; an object of rules as `from_file` has it.

        >>> Recipe.meant(8).of("lm_head").bits
        8

        Raises
        ------
        ConfigError
            Anything else, and values that MLX has not got.
        """
        if isinstance(value, Recipe):
            return value
        if isinstance(value, int) and is_whole(value):
            return cls(Bits(value))
        if not isinstance(value, Mapping):
            raise ConfigError(f"recipe: expected a Recipe, bits, or an object of layers to bits, found {shown(value)}")
        found = cls()
        for pattern, bits in value.items():
            found = found.with_rule(str(pattern), bits, f"recipe.{pattern!s:.80}")
        return found

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
        return replace(self, rules=(*self.rules, (pattern, _bits(value, path or pattern, self.default))))

    def of(self, layer: str) -> Bits | None:
        """What a layer gets."""
        for pattern, bits in reversed(self.rules):
            if _fits(pattern, layer):
                return bits
        return None if any(fnmatchcase(layer, pattern) for pattern in UNASKED) else self.default

    def choose(
        self, layers: Mapping[str, tuple[int, int]], nets: Mapping[str, tuple[int, int]] | None = None
    ) -> dict[str, Bits]:
        """Layer -> bits of those that get fewer; those that `default` alone reaches and does not fit are left out.

        Parameters
        ----------
        layers : mapping of str to (int, int)
            Of the language model, with rows and width.
        nets : mapping of str to (int, int), optional
            Of token2wav, as `net_records.groupable` has them: of so many kernels, some small ones that no group
            divides are left out by rules too.

        Raises
        ------
        ConfigError
            A rule that fits no layer; rows of a layer that a rule names and that are no multiple of the group size; or
            nothing is left to be done.
        """
        known = {**layers, **(nets or {})}
        for pattern, _ in self.rules:
            if not any(_fits(pattern, layer) for layer in known):
                words = [word for word in WORDS if any(_fits(word, layer) for layer in known)]
                raise ConfigError(
                    f"{pattern:.80}: fits no layer that can be quantised; expected {', '.join(words)}, or a pattern of "
                    f"names such as {listed(list(known)[:2])}"
                )
        chosen, odd = {}, []
        for layer, (_, width) in known.items():
            bits = self.of(layer)
            if bits is not None and bits.fits(width):
                chosen[layer] = bits
            elif bits is not None:
                odd.append(f"{layer} ({width})")
                if layer in layers and any(_fits(pattern, layer) for pattern, _ in self.rules):
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
    net = layer.partition(".")[0]
    if net in TOKEN2WAV and pattern not in WORDS and not pattern.startswith(f"{net}."):
        return False  # a pattern such as *.mlp.* means the language model, whatever lies beside it
    return any(fnmatchcase(layer, own) for own in WORDS.get(pattern, (pattern,)))
