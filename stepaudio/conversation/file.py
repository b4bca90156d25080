"""A history in one file: a zip that holds `turns.jsonl`, a turn a line, and each recording once as FLAC.

Any zip program and any player opens what is in it. It is read member by member, each bounded, and nothing of it is ever
written to a disk by a name that it holds.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..choices import is_whole
from ..errors import DataError, PromptError
from ..files import replaced_file
from ..reading import MAX_JSON_BYTES, parse_object, require_file, why
from .recording import MAX_EXPONENT, Recording
from .tools import MalformedCall, ToolCall, ToolResult, ToolStatus
from .turns import Answer, Role, Turn, check_order

FORMAT = "stepaudio conversation 1"
TURNS = "turns.jsonl"
EXPECTED = "expected a conversation as Conversation.save writes it"
MAX_FLAC_BYTES = 1_000_000_000
MAX_TOKEN = 2**31 - 1


def write_turns(path: str | Path, turns: Sequence[Turn]) -> Path:
    """Write turns, whole or not at all; the same turns give the same bytes. `DataError` if that cannot be."""
    path, recordings = Path(path), {}
    lines = [json.dumps({"format": FORMAT})]
    for turn in turns:
        recordings |= {part.key: part for part in turn.parts if isinstance(part, Recording)}
        lines.append(json.dumps(_entry(turn), ensure_ascii=False))
    try:
        with replaced_file(path) as aside, zipfile.ZipFile(aside, "w", zipfile.ZIP_STORED) as file:
            _put(file, TURNS, ("\n".join(lines) + "\n").encode())
            for key, recording in recordings.items():
                _put(file, _name(key), recording.flac())
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or error})") from None
    return path


def _put(file: zipfile.ZipFile, name: str, data: bytes) -> None:
    file.writestr(zipfile.ZipInfo(name), data)  # of a fixed date


def _name(key: str) -> str:
    return f"audio/{key}.flac"


def _entry(turn: Turn) -> dict[str, Any]:
    parts = [p if isinstance(p, str) else {"audio": p.key, "exponent": p.exponent} for p in turn.parts]
    entry: dict[str, Any] = {"role": str(turn.role), "parts": parts}
    if isinstance(turn, Answer):
        entry |= {"tokens": list(turn.tokens), "spoken": turn.spoken, "codes": list(turn.codes), "stop": turn.stop}
        entry |= {"thought": turn.thought, "thought_closed": turn.thought_closed}
        entry["calls"] = [
            {"text": c.text, "problem": c.problem}
            if isinstance(c, MalformedCall)
            else {"name": c.name, "arguments": dict(c.arguments)}
            for c in turn.calls
        ]
        entry["outcomes"] = [{"name": o.name, "status": str(o.status), "text": o.text} for o in turn.outcomes]
    return entry


def read_turns(path: str | Path) -> tuple[Turn, ...]:
    """The turns of a file that `write_turns` wrote; `DataError` for anything else."""
    path = Path(path)
    require_file(path, DataError, EXPECTED)
    try:
        with zipfile.ZipFile(path) as file:
            lines = _member(file, path, TURNS, MAX_JSON_BYTES).split(b"\n")
            if parse_object(lines[0], f"{path}: line 1", DataError, EXPECTED) != {"format": FORMAT}:
                raise DataError(f"{path}: expected the format {FORMAT!r}, found {lines[0][:80]!r}")
            reader = _Reader(file, path)
            found = tuple(reader.turn(line, n) for n, line in enumerate(lines[1:], 2) if line)
        check_order(found)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as error:
        raise DataError(f"{path}: is no whole zip file ({error!s:.120}); {EXPECTED}") from None
    except OSError as error:
        raise DataError(f"{path}: {why(error)}; {EXPECTED}") from None
    except PromptError as error:
        raise DataError(f"{path}: {error}") from None
    return found


def _member(file: zipfile.ZipFile, path: Path, name: str, most: int) -> bytes:
    try:
        info = file.getinfo(name)
    except KeyError:
        raise DataError(f"{path}: has no {name}; {EXPECTED}") from None
    if info.file_size > most:
        raise DataError(f"{path}: {name} has {info.file_size} bytes, the most is {most}; {EXPECTED}")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(f"{path}: {name} is compressed in a way that is not read here; {EXPECTED}")
    with file.open(name) as stream:
        return stream.read(most)


class _Reader:
    """Reads turns of one file; each recording once."""

    def __init__(self, file: zipfile.ZipFile, path: Path):
        self._file, self._path, self._recordings = file, path, {}

    def turn(self, line: bytes, number: int) -> Turn:
        what = f"{self._path}: line {number}"
        entry = parse_object(line, what, DataError, EXPECTED)
        try:
            role = Role(entry.pop("role"))
            parts = tuple(p if isinstance(p, str) else self._recording(p, what) for p in entry.pop("parts"))
            if role != Role.ANSWER:
                _require(not entry and bool(parts))
                _require(role == Role.HUMAN or all(isinstance(p, str) for p in parts))
                return Turn(role, parts)
            return _answer(role, parts, entry)
        except (KeyError, TypeError, ValueError, AttributeError):
            raise DataError(f"{what}: is no turn: {line[:120]!r}; {EXPECTED}") from None

    def _recording(self, part: dict[str, Any], what: str) -> Recording:
        key, exponent = part["audio"], part["exponent"]
        _require(isinstance(key, str) and is_whole(exponent) and 0 <= exponent <= MAX_EXPONENT and len(part) == 2)
        if key not in self._recordings:
            data = _member(self._file, self._path, _name(key), MAX_FLAC_BYTES)
            found = Recording.from_flac(data, exponent, f"{self._path}: {_name(key)}")
            if found.key != key:
                raise DataError(f"{what}: {_name(key)} does not hold the recording that was saved")
            self._recordings[key] = found
        return self._recordings[key]


def _answer(role: Role, parts: tuple, entry: dict[str, Any]) -> Answer:
    calls = tuple(map(_call, entry.pop("calls")))
    outcomes = tuple(
        ToolResult(_str(o["name"]), ToolStatus(o["status"]), _str(o["text"])) for o in entry.pop("outcomes")
    )
    tokens, codes = (_whole(entry.pop(name)) for name in ("tokens", "codes"))
    spoken, closed = entry.pop("spoken"), entry.pop("thought_closed")
    _require(len(parts) == 1 and isinstance(parts[0], str) and {type(spoken), type(closed)} == {bool})
    stop, thought = _str(entry.pop("stop")), _str(entry.pop("thought"))
    _require(not entry)
    return Answer(role, parts, tokens, spoken, codes, thought, closed, calls, outcomes, stop)


def _call(entry: dict[str, Any]) -> ToolCall | MalformedCall:
    if "problem" in entry:
        return MalformedCall(_str(entry["text"]), _str(entry["problem"]))
    _require(isinstance(entry["arguments"], dict))
    return ToolCall(_str(entry["name"]), entry["arguments"])


def _str(value: object) -> str:
    _require(isinstance(value, str))
    return str(value)


def _whole(values: Any) -> tuple[int, ...]:
    _require(isinstance(values, list) and all(is_whole(v) and 0 <= v <= MAX_TOKEN for v in values))
    return tuple(values)


def _require(so: bool) -> None:
    if not so:
        raise ValueError
