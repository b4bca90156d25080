"""The small part of YAML that `flow.yaml` is written in: nested mappings, plain scalars and `!new:` class names.

Nothing is constructed: a tag becomes a string beside the keys it stands over. Lists, anchors, references,
multi-line text and every other tag are refused, so a file that would run code elsewhere is an error here.
"""

from __future__ import annotations

import re
from pathlib import Path

from ...errors import ConfigError
from ...models.token2wav.flow import FlowConfig
from ...reading import is_folder, read_text
from ...schema import require, shown

# The classes that flow.yaml may name. The file is read as data: naming another class must not pass unseen.
FLOW_CLASS = "cosyvoice2.flow.flow.CausalMaskedDiffWithXvec"
ENCODER_CLASS = "cosyvoice2.transformer.upsample_encoder_v2.UpsampleConformerEncoderV2"
DECODER_CLASS = "cosyvoice2.flow.flow_matching.CausalConditionalCFM"
ESTIMATOR_CLASS = "cosyvoice2.flow.decoder_dit.DiT"


def _untag(tree: object, name: str) -> dict:
    """The nested mappings of flow.yaml without their class names, once these are the known ones."""
    flow = _of_class(tree, FLOW_CLASS, f"{name}: flow")
    if "encoder" in flow:
        flow["encoder"] = _of_class(flow["encoder"], ENCODER_CLASS, f"{name}: flow.encoder")
    if "decoder" in flow:
        decoder = _of_class(flow["decoder"], DECODER_CLASS, f"{name}: flow.decoder")
        if "estimator" in decoder:
            estimator = _of_class(decoder["estimator"], ESTIMATOR_CLASS, f"{name}: flow.decoder.estimator")
            decoder["estimator"] = estimator
        flow["decoder"] = decoder
    return flow


def _of_class(node: object, expected: str, path: str) -> dict:
    found = node.get(TAG) if isinstance(node, dict) else None
    if not isinstance(node, dict) or found != expected:
        raise ConfigError(
            f"{path}: expected !new:{expected}, found {found or shown(node)}; is this another model's file?"
        )
    return {k: v for k, v in node.items() if k != TAG}


MAX_BYTES = 100_000  # of the file; the published one takes 1 kB
MAX_DEPTH = 16  # mappings inside mappings, of which it has four
TAG = "!new"  # key under which a mapping keeps its class name
MOST_DIGITS = 400  # what is longer is no number of a config, and thousands of digits are none to Python
_KEY, _COMMENT = re.compile(r"[A-Za-z_]\w*"), re.compile(r"\s#")
_NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?")
_WORDS = {"true": True, "false": False, "null": None, "~": None}


def parse(text: str, name: str) -> dict:
    r"""Parse the text of a file; `name` opens every error message.

    Returns
    -------
    dict
        Nested mappings; one that was written under `!new:CLASS` has CLASS under the key `TAG`.

    Raises
    ------
    ConfigError
        Anything beyond nested mappings, plain scalars and `!new:` tags, with its line.

    Examples
    --------
    >>> parse("a: !new:x.Y\n  b: 3\n", "flow.yaml")
    {'a': {'!new': 'x.Y', 'b': 3}}
    """
    root: dict = {}
    open_mappings: list[tuple[int, dict]] = []  # indentation and mapping, outermost first
    awaited: tuple[int, dict, str, dict] | None = None  # a key without a value: indentation, its mapping, key, contents
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        where, indent = f"{name}, line {number}", len(line) - len(line.lstrip(" "))
        key, value = _key_and_value(line, where)
        if awaited is not None and indent > awaited[0]:
            _, outer, outer_key, inner = awaited
            outer[outer_key] = inner
            open_mappings.append((indent, inner))
        awaited = None
        if not open_mappings:
            open_mappings.append((indent, root))
        while len(open_mappings) > 1 and open_mappings[-1][0] > indent:
            open_mappings.pop()
        level, mapping = open_mappings[-1]
        if level != indent:
            raise ConfigError(f"{where}: indentation does not match any mapping above it")
        if len(open_mappings) > MAX_DEPTH:
            raise ConfigError(f"{where}: mappings are nested more than {MAX_DEPTH} deep")
        if key in mapping:
            raise ConfigError(f"{where}: key {key} appears twice")
        if value and not value.startswith("!"):
            mapping[key] = _scalar(value, where)
            continue
        if value and not re.fullmatch(r"!new:[\w.]+", value):
            raise ConfigError(f"{where}: only tags of the form !new:CLASS are read, found {value}")
        inner = {TAG: value.removeprefix("!new:")} if value else {}
        mapping[key] = inner or None
        awaited = (indent, mapping, key, inner)
    return root


def _key_and_value(line: str, where: str) -> tuple[str, str]:
    """Both without blanks and without a comment; the value is empty where there is none."""
    key, colon, rest = line.strip().partition(":")
    if not colon or not _KEY.fullmatch(key) or (rest and not rest[0].isspace()):
        raise ConfigError(f"{where}: expected `key: value`, found {line.strip()!r}")
    return key, _COMMENT.split(rest, maxsplit=1)[0].strip()


def _scalar(text: str, where: str):
    if text[0] in "'\"":
        if len(text) < 2 or text[-1] != text[0] or text[0] in text[1:-1] or "\\" in text:
            raise ConfigError(f"{where}: quoted text that does not end plainly: {text}")
        return text[1:-1]
    if text[0] in "[]{}&*|>%@`!,?" or text.startswith("- "):
        raise ConfigError(f"{where}: only plain numbers, words and quoted text are read, found {text}")
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if len(text) < MOST_DIGITS and _NUMBER.fullmatch(text):
        return float(text) if set(text) & set(".eE") else int(text)
    return text


def flow_config(text: str, name: str = "flow.yaml") -> FlowConfig:
    """The flow's sizes from the text of the published `flow.yaml`.

    Raises
    ------
    ConfigError
        Not in the subset of YAML that the file uses, a class other than the four known ones, or a key that is unknown,
        missing or contradicts another.
    """
    tree = parse(text, name)
    extra = sorted(set(tree) - {"flow"})
    require("flow" in tree and not extra, f"{name}: expected one entry 'flow', found {shown(sorted(tree))}")
    return FlowConfig.from_dict(_untag(tree["flow"], name), name)


def read_flow_config(path: str | Path) -> FlowConfig:
    """The flow's sizes from `flow.yaml`, or from the folder that holds it; errors as in `flow_config`."""
    path = Path(path)
    path = path / "flow.yaml" if is_folder(path, ConfigError) else path
    text = read_text(path, ConfigError, "expected the token2wav folder of a published model", MAX_BYTES)
    return flow_config(text, path.name)
