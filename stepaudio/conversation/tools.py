"""Tools: Python functions as the schemas that a model reads, its calls read back strictly, and made within limits.

Nothing that a model writes is evaluated. A call names a function that the caller passed, or it comes to nothing; its
arguments are JSON of the types that the function's hints say.
"""

from __future__ import annotations

import inspect
import json
import math
import re
import threading
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from ..choices import hint, is_number, is_whole
from ..errors import DataError, PromptError, one_line
from ..reading import parse_object
from ..text.tokenizer import Tokenizer

OPENS, CLOSES = "<tool_call>", "</tool_call>"
CALL = re.compile(r"function\n([^\n]+)\n(.*)", re.S)
NAMES = {str: "string", int: "integer", float: "number", bool: "boolean", dict: "object", list: "array"}
FITS: dict[str, Callable[[Any], bool]] = {
    "string": lambda v: isinstance(v, str),
    "integer": is_whole,
    "number": lambda v: is_number(v) and math.isfinite(v),
    "boolean": lambda v: isinstance(v, bool),
    "object": lambda v: isinstance(v, dict),
    "array": lambda v: isinstance(v, list),
}
MAX_RESULT = 20_000  # characters of one result


@dataclass(frozen=True)
class Tool:
    """A function that a model may call; make one with `of`.

    Parameters
    ----------
    function : callable
    schema : mapping
        As the reference shows it to the model.
    """

    function: Callable[..., Any]
    schema: Mapping[str, Any]

    @property
    def name(self) -> str:
        """What the model calls it."""
        return self.schema["function"]["name"]

    @classmethod
    def of(cls, function: Callable[..., Any] | Tool) -> Tool:
        """A function with type hints as a tool.

        Its first line of documentation is the description; `Annotated[str, "…"]` describes a parameter. Hints may be
        str, int, float, bool, list, list[T], dict, Literal of texts, and T | None for what may be left out.

        Raises
        ------
        PromptError
            No function with a name, a parameter without a hint, or a hint that is none of these.

        Examples
        --------
        >>> def search(query: Annotated[str, "what to look for"]) -> str:
        ...     "Search the web."
        ...     return "nothing"
        >>> Tool.of(search).schema["function"]["parameters"]["required"]
        ['query']
        """
        if isinstance(function, cls):
            return function
        name = getattr(function, "__name__", "")
        if not callable(function) or not re.fullmatch(r"[A-Za-z_]\w{0,63}", name, re.A):
            raise PromptError(f"tool: expected a function with a name, found {function!r:.80}")
        try:
            hints, parameters = get_type_hints(function, include_extras=True), inspect.signature(function).parameters
        except (NameError, TypeError, ValueError) as error:
            raise PromptError(f"tool {name}: its type hints cannot be read ({error!s:.120})") from None
        properties, required = {}, []
        for parameter in parameters.values():
            if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                raise PromptError(f"tool {name}: {parameter} cannot be given by name; write each parameter out")
            if parameter.name not in hints:
                raise PromptError(f"tool {name}: parameter {parameter.name!r} has no type hint; give it one")
            properties[parameter.name] = _schema_of(hints[parameter.name], f"tool {name}: {parameter.name}")
            if parameter.default is parameter.empty:
                required.append(parameter.name)
        about = (inspect.getdoc(function) or "").partition("\n")[0]
        wanted = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
        return cls(
            function,
            {"type": "function", "function": {"name": name, "description": about, "parameters": wanted}},
        )


def tool_list(tools: Iterable[Callable[..., Any] | Tool]) -> list[Tool]:
    """Functions as tools; `PromptError` if there is no list of them, or two have one name."""
    if callable(tools) or isinstance(tools, (str, bytes)) or not isinstance(tools, Iterable):
        raise PromptError(f"tools: expected a list of functions, found {tools!r:.80}")
    found = [Tool.of(tool) for tool in tools]
    if len({tool.name for tool in found}) < len(found):
        raise PromptError(f"tools: two have the same name, of {', '.join(t.name for t in found)}; rename one")
    return found


def schemas(tools: Iterable[Callable[..., Any] | Tool]) -> str:
    """The schemas of tools as the text of the turn that shows them, "" of none; errors as `tool_list`."""
    found = tool_list(tools)
    return json.dumps([tool.schema for tool in found], ensure_ascii=False) if found else ""


def _schema_of(hinted: Any, what: str) -> dict[str, Any]:
    origin, arguments = get_origin(hinted), get_args(hinted)
    if origin is Annotated:
        notes = [note for note in arguments[1:] if isinstance(note, str)]
        return {**_schema_of(arguments[0], what), **({"description": notes[0]} if notes else {})}
    if origin in (Union, types.UnionType):
        rest = [a for a in arguments if a is not type(None)]
        if len(rest) == 1:
            return _schema_of(rest[0], what)
    elif origin is Literal and all(isinstance(a, str) for a in arguments):
        return {"type": "string", "enum": list(arguments)}
    elif origin is list and len(arguments) == 1:
        return {"type": "array", "items": _schema_of(arguments[0], what)}
    elif (origin or hinted) in NAMES:
        return {"type": NAMES[origin or hinted]}
    raise PromptError(
        f"{what}: expected a hint of str, int, float, bool, list, dict, Literal of texts or T | None, found "
        f"{hinted!r:.80}"
    )


# ------------------------------------------------------------------------------------------------ calls


@dataclass(frozen=True)
class ToolCall:
    """A call as a model wrote it. name : of the function. arguments : its JSON object."""

    name: str
    arguments: Mapping[str, Any] = field(hash=False)


@dataclass(frozen=True)
class MalformedCall:
    """What should be a call and is none. text : as written. problem : what is wrong with it."""

    text: str
    problem: str


def calls_of(tokens: Sequence[int], tokenizer: Tokenizer) -> tuple[ToolCall | MalformedCall, ...]:
    """The calls in an answer: what stands between the tokens `<tool_call>` and `</tool_call>`.

    The same characters written in other tokens, as a model does that repeats what it was told, are no call. Audio codes
    between them are left out, as the reference's own split does.
    """
    try:
        opens, closes = tokenizer.id(OPENS), tokenizer.id(CLOSES)
    except PromptError:  # a vocabulary without them has no calls
        return ()
    found: list[ToolCall | MalformedCall] = []
    inside: list[int] | None = None
    for token in [t for t in tokens if t < tokenizer.text_limit]:
        if token == opens and inside is None:
            inside = []
        elif token == closes and inside is not None:
            found.append(_call(tokenizer.decode(inside)))
            inside = None
        elif inside is not None:
            inside.append(token)
    if inside is not None:
        found.append(MalformedCall(tokenizer.decode(inside), f"{CLOSES} is missing"))
    return tuple(found)


def _call(text: str) -> ToolCall | MalformedCall:
    match = CALL.fullmatch(text)
    if match is None:
        return MalformedCall(text, "expected function, its name, and a JSON object, a line each")
    try:
        return ToolCall(match[1], parse_object(match[2].encode(), "arguments", DataError, "expected a JSON object"))
    except (DataError, UnicodeEncodeError) as error:
        return MalformedCall(text, str(error))


class ToolStatus(StrEnum):
    """What came of a call."""

    OK = "ok"
    MALFORMED = "malformed"
    UNKNOWN = "unknown"
    WRONG_ARGUMENTS = "wrong arguments"
    FAILED = "failed"
    TIMEOUT = "timeout"


@dataclass(frozen=True)
class ToolResult:
    """What came of a call. name : "" of a malformed one. text : the result, or what went wrong."""

    name: str
    status: ToolStatus
    text: str

    @property
    def shown(self) -> str:
        """What the model reads of it."""
        return self.text if self.status == ToolStatus.OK else f"error: {self.text}"


def make_call(call: ToolCall | MalformedCall, tools: Sequence[Tool], seconds: float) -> ToolResult:
    """Make one call, if it names one of the tools and its arguments fit; never raises for what a model wrote.

    A function that takes longer than `seconds` is left behind: its thread ends with it, or with the process.
    """
    if isinstance(call, MalformedCall):
        return ToolResult("", ToolStatus.MALFORMED, call.problem)
    by_name = {tool.name: tool for tool in tools}
    tool = by_name.get(call.name)
    if tool is None:
        text = f"no tool is called {call.name!r:.80}" + (hint(call.name, by_name) or f"; there are {sorted(by_name)}")
        return ToolResult(call.name, ToolStatus.UNKNOWN, one_line(text))
    problem = _misfit(call.arguments, tool.schema["function"]["parameters"])
    if problem:
        return ToolResult(call.name, ToolStatus.WRONG_ARGUMENTS, one_line(problem))
    return _within(tool, call, seconds)


def _within(tool: Tool, call: ToolCall, seconds: float) -> ToolResult:
    outcome: list[ToolResult] = []

    def work() -> None:
        try:
            text = _text_of(tool.function(**call.arguments))
            status = ToolStatus.OK
        except BaseException as error:  # whatever a tool raises is an outcome of the call, the end of a thread too
            text, status = one_line(f"{type(error).__name__}: {error}"), ToolStatus.FAILED
        outcome.append(ToolResult(call.name, status, text))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    return outcome[0] if outcome else ToolResult(call.name, ToolStatus.TIMEOUT, f"no result within {seconds:g} s")


def _text_of(result: Any) -> str:
    text = result if isinstance(result, str) else json.dumps(result, ensure_ascii=False, allow_nan=False)
    text.encode()  # half a character is no text
    if len(text) > MAX_RESULT:
        raise ValueError(f"the result has {len(text)} characters, the most is {MAX_RESULT}")
    return text


def _misfit(value: Any, schema: Mapping[str, Any], name: str = "") -> str:
    """What is wrong with a value of JSON, '' if it is as the schema says."""
    if not FITS[schema["type"]](value):
        return f"{name or 'arguments'}: expected {schema['type']}, found {value!r:.60}"
    if "enum" in schema and value not in schema["enum"]:
        return f"{name}: expected one of {schema['enum']}, found {value!r:.60}"
    problems = [_misfit(v, schema["items"], f"{name}[{i}]") for i, v in enumerate(value)] if "items" in schema else []
    if "properties" in schema:
        known = schema["properties"]
        problems += [f"argument {n!r} is missing" for n in schema["required"] if n not in value]
        problems += [f"unknown argument {n!r:.60}{hint(n, known)}" for n in value if n not in known]
        problems += [_misfit(v, known[n], n) for n, v in value.items() if n in known]
    return next(filter(None, problems), "")
