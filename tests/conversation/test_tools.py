"""Tools: schemas as the reference has them, calls read strictly, made only within what the caller allowed."""

import json
import time
from typing import Annotated, Literal

import pytest
from conversing import forced

from stepaudio.conversation import Conversation, Role, Tool, ToolStatus
from stepaudio.conversation.tools import MalformedCall, ToolCall, calls_of, make_call, schemas
from stepaudio.errors import DecodeError, PromptError


def search(query: Annotated[str, "搜索关键词"]) -> str:
    """搜索工具

    More than the model is told.
    """
    return f"found {query}"


def add(a: int, b: float = 1.0, *, how: Literal["up", "down"] = "up", more: list[int] | None = None) -> dict:
    """Add."""
    return {"sum": a + b, "how": how, "more": more}


def ids_of(model, text: str) -> list[int]:
    """Ids in which names of tokens are those tokens: what a model would generate."""
    return model.tokenizer.encode(text)


def call(name: str, arguments) -> str:
    return f"<tool_call>function\n{name}\n{json.dumps(arguments, ensure_ascii=False)}</tool_call>"


def test_the_schema_is_that_of_the_example(goldens):
    chats = json.loads((goldens / "tokenizer_pairs.json").read_text(encoding="utf-8"))["chats"]
    (recorded,) = [c["messages"][1]["content"] for c in chats if c["name"] == "tool_call_1"]
    assert schemas([search]) == recorded


def test_hints_become_types():
    found = Tool.of(add).schema["function"]["parameters"]
    assert found["properties"] == {
        "a": {"type": "integer"}, "b": {"type": "number"}, "how": {"type": "string", "enum": ["up", "down"]},
        "more": {"type": "array", "items": {"type": "integer"}},
    }  # fmt: skip
    assert found["required"] == ["a"]


def untyped(a): ...
def starred(*a: int): ...
def odd(a: object): ...
def two(a: int | str): ...
def lost(a: "Nowhere"): ...  # noqa: F821


@pytest.mark.parametrize("wrong", [untyped, starred, odd, two, lost, lambda a: a, 3, "search"])
def test_what_is_no_tool_is_refused(wrong):
    with pytest.raises(PromptError, match="tool"):
        Tool.of(wrong)
    with pytest.raises(PromptError, match="same name"):
        schemas([search, search])


CALLS = {
    call("search", {"query": "x"}): ToolCall("search", {"query": "x"}),
    "<tool_call>function\nsearch\n{}</tool_call>": ToolCall("search", {}),
    "<tool_call>search\n{}</tool_call>": "expected function",
    "<tool_call>function\nsearch</tool_call>": "expected function",
    "<tool_call>function\nsearch\n</tool_call>": "JSON",
    "<tool_call>function\nsearch\n[1]</tool_call>": "JSON object",
    '<tool_call>function\nsearch\n{"a": 1, "a": 2}</tool_call>': "twice",
    "<tool_call>function\nsearch\n{} or 1</tool_call>": "JSON",
    "<tool_call>function\nsearch\n__import__('os')</tool_call>": "JSON",
    f"<tool_call>function\nsearch\n{'{' * 9}</tool_call>": "JSON",
    "<tool_call>function\nsearch\n{}": "is missing",
    "<tool_call>": "is missing",
}


@pytest.mark.parametrize("written", CALLS)
def test_calls_are_read_strictly(tiny_model, written):
    (found,) = calls_of(ids_of(tiny_model, written), tiny_model.tokenizer)
    wanted = CALLS[written]
    assert found == wanted if isinstance(wanted, ToolCall) else wanted in found.problem
    assert calls_of(tiny_model.tokenizer.encode_plain(written), tiny_model.tokenizer) == ()


def test_codes_in_a_call_are_left_out(tiny_model):
    ids = ids_of(tiny_model, call("search", {"query": "x"}))
    mixed = [i for token in ids for i in (token, tiny_model.tokenizer.first_audio_code)]
    assert calls_of(mixed, tiny_model.tokenizer) == (ToolCall("search", {"query": "x"}),)
    twice = ids_of(tiny_model, call("a", {}) + " and " + call("b", {}) + "</tool_call>")
    assert [c.name for c in calls_of(twice, tiny_model.tokenizer)] == ["a", "b"]


def fails() -> str:
    """Fail."""
    raise RuntimeError("no\nservice")


def leaves() -> str:
    """Leave."""
    raise SystemExit("gone")


def sleeps() -> str:
    """Sleep."""
    time.sleep(0.5)
    return ""


def returns_object() -> object:
    """Return what JSON cannot hold."""
    return object()


def long() -> str:
    """Return much."""
    return "x" * 30_000


TOOLS = [Tool.of(f) for f in (search, add, fails, leaves, sleeps, returns_object, long)]


@pytest.mark.parametrize(
    ("made", "status", "text"),
    [
        (ToolCall("search", {"query": "x"}), "ok", "found x"),
        (ToolCall("add", {"a": 1}), "ok", '{"sum": 2.0, "how": "up", "more": null}'),
        (ToolCall("serach", {"query": "x"}), "unknown", "did you mean 'search'"),
        (ToolCall("__import__", {"name": "os"}), "unknown", "no tool"),
        (ToolCall("search", {}), "wrong arguments", "'query' is missing"),
        (ToolCall("search", {"query": 3}), "wrong arguments", "expected string, found 3"),
        (ToolCall("search", {"query": "x", "shell": True}), "wrong arguments", "unknown argument 'shell'"),
        (ToolCall("add", {"a": True}), "wrong arguments", "expected integer"),
        (ToolCall("add", {"a": 1, "b": float("nan")}), "wrong arguments", "expected number"),
        (ToolCall("add", {"a": 1, "how": "left"}), "wrong arguments", "one of"),
        (ToolCall("add", {"a": 1, "more": [1, "2"]}), "wrong arguments", "more[1]: expected integer"),
        (ToolCall("fails", {}), "failed", "RuntimeError: no service"),
        (ToolCall("leaves", {}), "failed", "SystemExit: gone"),
        (ToolCall("returns_object", {}), "failed", "TypeError"),
        (ToolCall("long", {}), "failed", "30000 characters"),
        (ToolCall("sleeps", {}), "timeout", "within 0.2 s"),
        (MalformedCall("x", "expected function"), "malformed", "expected function"),
    ],
)
def test_every_call_has_an_outcome(made, status, text):
    found = make_call(made, TOOLS, 0.2)
    assert found.status == status and text in found.text
    assert found.shown == (found.text if status == "ok" else f"error: {found.text}")


def test_results_go_back_for_another_answer(tiny_model):
    first = ids_of(tiny_model, "the " + call("search", {"query": "cat"}))
    model = forced(tiny_model, first, ids_of(tiny_model, "the mat"))
    talk = Conversation(tools=[search]).ask("where?").answer(model, tools=[search])
    assert [t.role for t in talk.turns[2:]] == [Role.HUMAN, Role.ANSWER, Role.RESULT, Role.ANSWER]
    assert talk.last.text == "the mat" and talk.turns[4].parts[0] == "found cat"
    read = tiny_model.tokenizer.decode(model.engine.asked[1])
    assert f"<|BOT|>assistant\nthe {call('search', {'query': 'cat'})}<|EOT|><|BOT|>input\nfound cat\n\n\n请" in read
    assert talk.turns[3].outcomes[0].status == ToolStatus.OK


def test_nothing_is_called_that_was_not_passed(tiny_model):
    made = []

    def note(word: str) -> str:
        """Note."""
        made.append(word)
        return "noted"

    ids = ids_of(tiny_model, call("note", {"word": "x"}))
    shown = Conversation(tools=[note]).ask("?")
    assert shown.answer(forced(tiny_model, ids)).last.calls == (ToolCall("note", {"word": "x"}),)
    other = shown.answer(forced(tiny_model, ids), tools=[search])
    assert [o.status for o in other.last.outcomes] == ["unknown"] and made == []
    talk = shown.answer(forced(tiny_model, ids, ids, ids), tools=[note], rounds=2)
    assert made == ["x", "x"] and talk.last.calls and not talk.last.outcomes
    assert shown.answer(forced(tiny_model, ids), tools=[note], rounds=0).last.calls and len(made) == 2


def test_errors_end_an_answer_or_are_shown(tiny_model):
    ids = ids_of(tiny_model, "<tool_call>function\nsearch\nx</tool_call>")
    talk = Conversation(tools=[search]).ask("?")
    stopped = talk.answer(forced(tiny_model, ids), tools=[search])
    assert stopped.last.outcomes[0].status == "malformed" and stopped.turns[-1] is stopped.last
    shown = talk.answer(forced(tiny_model, ids, ids_of(tiny_model, "sorry")), tools=[search], errors="show")
    assert shown.last.text == "sorry" and shown.turns[-2].parts[0].startswith("error: ")
    for wrong in ({"errors": "hide"}, {"rounds": -1}, {"seconds": 0}, {"seconds": True}, {"think_tokens": 0}):
        with pytest.raises(DecodeError):
            talk.answer(tiny_model, **wrong)


def test_an_answer_with_a_call_is_saved_with_its_outcome(tiny_model, tmp_path):
    ids = ids_of(tiny_model, call("search", {"query": 3}) + "<tool_call>")
    talk = Conversation(tools=[search]).ask("?").answer(forced(tiny_model, ids), tools=[search])
    again = Conversation.open(talk.save(tmp_path / "talk.zip"))
    assert again == talk
    assert (again.last.calls, again.last.outcomes) == (talk.last.calls, talk.last.outcomes)
    assert [o.status for o in again.last.outcomes] == ["wrong arguments", "malformed"]
