"""The small part of YAML that `flow.yaml` is written in: nested mappings, plain scalars and `!new:` class names.

Nothing is constructed: a tag becomes a string beside the keys it stands over. Lists, anchors, references,
multi-line text and every other tag are refused, so a file that would run code elsewhere is an error here.
"""

from __future__ import annotations

import re

from ..errors import ConfigError

TAG = "!new"  # key under which a mapping keeps its class name
_LINE = re.compile(r"(?P<indent> *)(?P<key>[A-Za-z_]\w*):(?:\s+(?P<value>\S.*?))?\s*$")
_NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?")
_WORDS = {"true": True, "false": False, "null": None, "~": None}


def parse(text: str, name: str) -> dict:
    """Parse the text of a file; `name` opens every error message.

    Returns
    -------
    dict : nested mappings; one that was written under `!new:CLASS` has CLASS under the key `TAG`.

    Example: "a: !new:x.Y\\n  b: 3\\n" -> {"a": {"!new": "x.Y", "b": 3}}
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
    if _NUMBER.fullmatch(text):
        return float(text) if set(text) & set(".eE") else int(text)
    return text
