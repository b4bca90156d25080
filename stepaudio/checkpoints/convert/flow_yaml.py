"""The small part of YAML that `flow.yaml` is written in: nested mappings, plain scalars and `!new:` class names.

Nothing is constructed: a tag becomes a string beside the keys it stands over. Lists, anchors, references,
multi-line text and every other tag are refused, so a file that would run code elsewhere is an error here.
"""

from __future__ import annotations

import re
from pathlib import Path

from ...errors import ConfigError
from ...models.token2wav.flow import FlowConfig
from ...schema import require

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
        raise ConfigError(f"{path}: expected !new:{expected}, found {found or node!r}; is this another model's file?")
    return {k: v for k, v in node.items() if k != TAG}


TAG = "!new"  # key under which a mapping keeps its class name
_LINE = re.compile(r"(?P<indent> *)(?P<key>[A-Za-z_]\w*):(?:\s+(?P<value>\S.*?))?\s*$")
MOST_DIGITS = 400  # what is longer is no number of a config, and thousands of digits are none to Python
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
    lines = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            match = _LINE.fullmatch(line)
            if not match:
                raise ConfigError(f"{name}, line {number}: expected `key: value`, found {line.strip()!r}")
            value = re.sub(r"\s+#.*$", "", match["value"] or "")
            lines.append((number, len(match["indent"]), match["key"], value))
    tree, rest = _mapping(lines, lines[0][1] if lines else 0, name)
    if rest:
        raise ConfigError(f"{name}, line {rest[0][0]}: indentation does not match any mapping above it")
    return tree


def _mapping(lines: list, indent: int, name: str) -> tuple[dict, list]:
    """The mapping whose keys start at column `indent`, and the lines after it."""
    found: dict = {}
    while lines and lines[0][1] == indent:
        number, _, key, value = lines[0]
        lines = lines[1:]
        if key in found:
            raise ConfigError(f"{name}, line {number}: key {key} appears twice")
        if value and not value.startswith("!"):
            found[key] = _scalar(value, f"{name}, line {number}")
            continue
        if value and not re.fullmatch(r"!new:[\w.]+", value):
            raise ConfigError(f"{name}, line {number}: only tags of the form !new:CLASS are read, found {value}")
        inner: dict = {}
        if lines and lines[0][1] > indent:
            inner, lines = _mapping(lines, lines[0][1], name)
        found[key] = {TAG: value.removeprefix("!new:"), **inner} if value else (inner or None)
    return found, lines


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
    require("flow" in tree and not extra, f"{name}: expected one entry 'flow', found {', '.join(tree)}")
    return FlowConfig.from_dict(_untag(tree["flow"], name), name)


def read_flow_config(path: str | Path) -> FlowConfig:
    """The flow's sizes from `flow.yaml`, or from the folder that holds it; errors as in `flow_config`."""
    path = Path(path)
    path = path / "flow.yaml" if path.is_dir() else path
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; expected the token2wav folder of a published model") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not readable as text ({error})") from None
    return flow_config(text, path.name)
