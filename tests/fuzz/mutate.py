"""Seeded damage to valid files: to bytes, to lines of text, to JSON along its paths. Same seed, same damage."""

from __future__ import annotations

import json
import random
import struct

MARK = "@@raw%d@@"
HEAD = 200  # bytes in which most formats say what follows
# JSON as it is written: numbers past every type, other types, texts that no path and no terminal likes.
ODD = [
    "null", "true", "false", "0", "-1", "1", "2", "3", "1.5", "-0.0", "1e-46", "1e39", "1e400", "NaN", "Infinity",
    "-Infinity", "1000000", str(2**31), str(2**63), "1" + "0" * 30, "1" + "0" * 400, "1" + "0" * 5000, '""', '"x"',
    '"0"', '"\\u0000"', '"\\ud800"', '"../../x"', '"/dev/zero"', '"' + "x" * 3000 + '"', "[]", "{}", "[1]", "[[]]",
    '{"a":1}', '["a","b"]', "[" * 300 + "]" * 300, "[" * 20_000 + "]" * 20_000, "[" + "0," * 999 + "0]",
    '"\\u202e\\n\\u2028"',
]  # fmt: skip
STARTS = (b" ", b"  ", b"\t", b" " * 30_000, b"- ", b'"', b"\x00", b"\xff", "\u2028".encode())  # of a line


def paths(value: object, at: tuple = ()) -> list[tuple]:
    """Every path of a JSON value, the whole first."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(p for key, part in inside for p in paths(part, (*at, key)))]


def put(text: bytes, path: tuple, raw: str | None) -> bytes:
    """The JSON text with this written at the path; None takes the entry out."""
    value = json.loads(text)
    if not path:
        return (raw or "").encode("utf-8")
    holder = value
    for key in path[:-1]:
        holder = holder[key]
    if raw is None:
        del holder[path[-1]]
    else:
        holder[path[-1]] = MARK % 0
    return json.dumps(value).replace(json.dumps(MARK % 0), raw or "").encode("utf-8")


def mutate_json(text: bytes, rng: random.Random) -> bytes:
    """One to three odd values, lost, renamed, doubled or exchanged entries."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return text  # a value before was not JSON any more
        path = rng.choice(paths(value))
        kind = rng.choice(("odd", "odd", "odd", "lose", "rename", "double", "exchange", "number"))
        if kind == "lose" and path:
            text = put(text, path, None)
        elif kind == "rename" and path and isinstance(path[-1], str):
            kept = json.dumps(at(value, path))
            name = rng.choice((path[-1] + "x", path[-1].upper(), "x", ""))
            text = put(put(text, path, None), (*path[:-1], name), kept)
        elif kind == "double" and path and isinstance(path[-1], str):
            name, kept = json.dumps(path[-1]), json.dumps(at(value, path))
            twice = f"{name}: {rng.choice(ODD[:20])}, {name}: "
            text = put(text, path, kept).replace(f"{name}: ".encode(), twice.encode(), 1)
        elif kind == "exchange":
            text = put(text, path, json.dumps(at(value, rng.choice(paths(value)))))
        elif kind == "number" and isinstance(at(value, path), int | float) and path and abs(at(value, path)) < 1e300:
            text = put(text, path, json.dumps(at(value, path) * rng.choice((2, -1, 1000, 0.5)) + rng.choice((0, 1))))
        else:
            text = put(text, path, rng.choice(ODD))
    return text


def at(value, path: tuple):
    """What stands at a path."""
    for key in path:
        value = value[key]
    return value


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """One to four changed, lost, doubled or inserted stretches, or a cut."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        start = rng.randrange(len(data) + 1)
        if rng.random() < 0.5:  # most of what can go wrong stands at the ends
            start = min(rng.randrange(200), len(data)) if rng.random() < 0.7 else max(0, len(data) - rng.randrange(200))
        n = rng.choice((1, 1, 2, 4, 8, 40, 400))
        kind = rng.randrange(8)
        if kind == 0:
            data = data[:start]
        elif kind == 1:
            data = data[:start] + data[start + n :]
        elif kind == 2:
            data = data[:start] + data[start : start + n] * 2 + data[start + n :]
        elif kind == 3:
            data = data[:start] + rng.randbytes(n) + data[start:]
        elif kind == 4:
            number = rng.choice((0, 1, 255, 65535, 2**31 - 1, 2**31, 2**32 - 1, 10**6))
            raw = struct.pack(rng.choice("<>") + "I", number)
            data = data[:start] + raw + data[start + 4 :]
        elif kind == 5:
            data = data[:start] + struct.pack("<Q", rng.choice((0, 2**63, 2**64 - 1, 2**40))) + data[start + 8 :]
        elif kind == 6:
            data = data[:start] + bytes(min(n, len(data) - start)) + data[start + n :]
        elif start < len(data):
            data = data[:start] + bytes([data[start] ^ 1 << rng.randrange(8)]) + data[start + 1 :]
    return data


def mutate_lines(data: bytes, rng: random.Random) -> bytes:
    """Lines lost, doubled, exchanged or cut, words replaced, blanks and odd characters put in."""
    lines = data.split(b"\n")
    for _ in range(rng.choice((1, 1, 2, 3))):
        i, j = rng.randrange(len(lines)), rng.randrange(len(lines))
        kind = rng.randrange(7)
        if kind == 0 and len(lines) > 1:
            del lines[i]
        elif kind == 1:
            lines.insert(j, lines[i])
        elif kind == 2:
            lines[i], lines[j] = lines[j], lines[i]
        elif kind == 3:
            lines[i] = lines[i][: rng.randrange(len(lines[i]) + 1)]
        elif kind == 4:
            words = lines[i].split(b" ")
            words[rng.randrange(len(words))] = rng.choice(ODD).strip('"').encode()
            lines[i] = b" ".join(words)
        elif kind == 5:
            lines[i] = rng.choice(STARTS) + lines[i]
        else:
            lines[i] = mutate_bytes(lines[i], rng)
    return b"\n".join(lines)


def mutate_safetensors(data: bytes, rng: random.Random) -> bytes:
    """The header as JSON, its length kept true or not, or any byte."""
    if rng.random() < 0.4:
        return mutate_bytes(data, rng)
    n = int.from_bytes(data[:8], "little")
    header = mutate_json(data[8 : 8 + n], rng)
    length = len(header) if rng.random() < 0.9 else rng.choice((0, n, 2**40, len(header) + 8))
    return length.to_bytes(8, "little") + header + data[8 + n :]


def lose_stretch(data: bytes, rng: random.Random) -> bytes:
    """A stretch lost somewhere behind the head, as a download that broke off and went on too far ahead leaves it."""
    n = rng.choice((1, 2, 4, 100, 417, 1024, 4096))
    start = rng.randrange(min(HEAD, len(data)), len(data))
    return data[:start] + data[start + n :]


MUTATORS = {
    "stretch": lose_stretch,
    "json": mutate_json,
    "bytes": mutate_bytes,
    "lines": mutate_lines,
    "safetensors": mutate_safetensors,
}


def mutated(data: bytes, form: str, seed: int) -> bytes:
    """The file with the damage of this seed. One case in eight is hurt in its bytes, whatever its form."""
    rng = random.Random(seed)
    return MUTATORS["bytes" if rng.random() < 0.12 else form](data, rng)
