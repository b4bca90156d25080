"""Guesses about tensors that do not fit: which spare name was meant, which transform would repair a shape.

Guesses are reported and never applied on their own; a rename map given by the user is.
"""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from math import prod
from typing import TypeVar

from ..errors import WeightsError
from .header import listed
from .layout import Shape

Record = TypeVar("Record")
PLAUSIBLE = 0.6  # least difflib ratio of two names (without their last segment) that is worth showing
MAX_RIVALS = 100  # spare tensors compared with one missing name; more are no help to anyone

# Segments that other code bases use for the same thing (TensorFlow, transformers' Whisper, Llama).
SAME_THING = {
    "gamma": "weight", "beta": "bias", "kernel": "weight", "layers": "blocks", "self_attn": "attn",
    "attention": "attn", "q_proj": "query", "k_proj": "key", "v_proj": "value", "o_proj": "out", "out_proj": "out",
    "wq": "query", "wk": "key", "wv": "value", "wo": "out", "fc1": "mlp.0", "fc2": "mlp.2", "w1": "mlp.gate_proj",
    "w2": "mlp.down_proj", "w3": "mlp.up_proj", "self_attn_layer_norm": "attn_ln", "final_layer_norm": "mlp_ln",
    "embed_positions": "positional_embedding", "ln_post": "after_norm", "layer_norm": "after_norm",
    "tok_embeddings": "embed_tokens", "attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
}  # fmt: skip


@dataclass(frozen=True)
class NearMiss:
    """A missing name, the spare name that was probably meant, and the transform it then needs ('' if none)."""

    missing: str
    found: str
    repair: str


def transform(found: Shape, expected: Shape) -> str:
    """What turns `found` into `expected`: '', 'transpose (...)', 'reshape to (...)' or 'none found'.

    Of several fitting transposes the one that moves the fewest axes is named. Two equal sizes cannot be told apart,
    so a square matrix stored the wrong way round is invisible here.
    """
    if found == expected:
        return ""
    if sorted(found) == sorted(expected) and len(found) <= 4:
        fitting = [p for p in permutations(range(len(found))) if tuple(found[i] for i in p) == expected]
        return f"transpose {min(fitting, key=lambda p: (sum(i != a for i, a in enumerate(p)), p))}"
    if prod(found) == prod(expected) > 0:
        return f"reshape to {expected}"
    return "none found"


def near_misses(missing: Mapping[str, Shape], spare: Mapping[str, Shape]) -> tuple[NearMiss, ...]:
    """Pair missing names with spare ones, each used once, best likeness first.

    A pair is plausible only if the sizes agree in some order, the layer number and the last segment agree, and the
    names are alike: one ends with the other, or difflib's ratio is at least 0.6 after `SAME_THING`.
    """
    rivals = defaultdict(list)
    for name, shape in spare.items():
        rivals[_key(name, shape)].append(name)
    pairs = []
    for name, shape in missing.items():
        for other in rivals[_key(name, shape)][:MAX_RIVALS]:
            likeness = _likeness(name, other)
            if likeness >= PLAUSIBLE:
                pairs.append((likeness + 0.05 * (spare[other] == shape), name, other))
    chosen: dict[str, str] = {}
    used = set()
    for _, name, other in sorted(pairs, key=lambda pair: (-pair[0], pair[1:])):
        if name not in chosen and other not in used:
            chosen[name] = other
            used.add(other)
    return tuple(NearMiss(n, chosen[n], transform(spare[chosen[n]], missing[n])) for n in missing if n in chosen)


def rename_map(misses: Sequence[NearMiss], stored: Iterable[str]) -> dict[str, str]:
    """The fewest entries that rename every near miss.

    A prefix where it moves no other `stored` name, else whole names.
    """
    groups: dict[tuple[str, str], list[NearMiss]] = defaultdict(list)
    for miss in misses:
        groups[_differing_prefixes(miss.found, miss.missing)].append(miss)
    stored, rules = list(stored), {}
    for (old, new), group in groups.items():
        moved = [name for name in stored if old and name.startswith(old)]
        if len(moved) == len(group) > 1:
            rules[old] = new
        else:
            rules |= {miss.found: miss.missing for miss in group}
    return rules


def apply_rename(records: Mapping[str, Record], rename: Mapping[str, str] | None) -> dict[str, Record]:
    """Records under new names.

    Parameters
    ----------
    records : mapping
        By the name in the checkpoint.
    rename : mapping of str to str, or None
        From checkpoint names to published names. A key that ends in '.' (or is empty) is a prefix, any other a
        whole name; whole names come before prefixes, long prefixes before short ones; each name is renamed once.

    Raises
    ------
    WeightsError
        If a rule fits no tensor, or two tensors end up under one name.
    """
    if not rename:
        return dict(records)
    renamed, used, source = {}, set(), {}
    for name, record in records.items():
        rule = _rule_for(name, rename)
        new = name if rule is None else rename[rule] + name.removeprefix(rule)
        if new in renamed:
            raise WeightsError(f"rename: {listed([source[new], name])} would both become {listed([new])}")
        renamed[new], source[new] = record, name
        used.add(rule)
    idle = [key for key in rename if key not in used]
    if idle:
        raise WeightsError(
            f"rename: {listed(map(repr, idle))} fits no tensor of the checkpoint; a prefix must end in '.', "
            "anything else is a whole name"
        )
    return renamed


def new_name(name: str, rename: Mapping[str, str] | None) -> str:
    """The name that `apply_rename` gives one tensor."""
    rule = _rule_for(name, rename or {})
    return name if rule is None else (rename or {})[rule] + name.removeprefix(rule)


def _rule_for(name: str, rename: Mapping[str, str]) -> str | None:
    if name in rename:
        return name
    fitting = [key for key in rename if (key == "" or key.endswith(".")) and name.startswith(key)]
    return max(fitting, key=len, default=None)


def _canonical(name: str) -> list[str]:
    return ".".join(SAME_THING.get(segment, segment) for segment in name.split(".")).split(".")


def _key(name: str, shape: Shape) -> tuple:
    """What two names must share to be compared at all: sizes, layer number, kind of parameter."""
    segments = _canonical(name)
    layer = next((s for s in segments if s.isdecimal()), None)
    return tuple(sorted(shape)), layer, segments[-1]


def _likeness(a: str, b: str) -> float:
    """1 if one name ends with the other, else difflib's ratio of the names without their last segment."""
    x, y = _canonical(a), _canonical(b)
    short, long = sorted((x, y), key=len)
    if long[-len(short) :] == short:
        return 1.0
    return difflib.SequenceMatcher(None, ".".join(x[:-1]), ".".join(y[:-1]), autojunk=False).ratio()


def _differing_prefixes(old: str, new: str) -> tuple[str, str]:
    """Both names without the whole segments that they end in alike, e.g. ('module.', '')."""
    a, b = old.split("."), new.split(".")
    while a and b and a[-1] == b[-1]:
        a.pop()
        b.pop()
    return "".join(f"{s}." for s in a), "".join(f"{s}." for s in b)
