"""The turn grammar against recorded prompts of the reference, and what a prompt refuses."""

import json

import pytest

from stepaudio.constants import CHUNK_SAMPLES, n_audio_embeddings, n_mel_frames
from stepaudio.errors import PromptError
from stepaudio.text import chat_template as grammar
from stepaudio.text import prompts
from stepaudio.text.chat_template import AudioSlot, Message, Prompt, build_base_prompt, build_prompt
from stepaudio.text.prompts import asr_prompt
from stepaudio.text.tokenizer import Tokenizer

AUDIO = {"type": "audio"}
OPEN = {"role": "assistant", "content": None}


@pytest.fixture(scope="module")
def small():
    return Tokenizer.train(["write down the words"] * 3, vocab_size=280, n_audio=8)


@pytest.fixture(scope="module")
def published(shared):
    path = shared / "Step-Audio-2-mini"
    if not (path / "vocab.json").exists():
        pytest.skip("needs the published tokenizer files")
    return Tokenizer.from_folder(path, vocab_rows=158_720)


@pytest.fixture(scope="module")
def chats(goldens):
    data = json.loads((goldens / "tokenizer_pairs.json").read_text(encoding="utf-8"))
    return {chat["name"]: chat for chat in data["chats"]}


def rows_per_clip(chat):
    """The recorded embeddings of all segments, grouped: one of full length is followed by more of its recording."""
    clips, go_on = [], False
    for frames, rows in zip(chat["mel_frames"], chat["audio_tokens"], strict=True):
        assert n_audio_embeddings(frames) == rows
        clips = [*clips[:-1], [*clips[-1], rows]] if go_on else [*clips, [rows]]
        go_on = frames == n_mel_frames(CHUNK_SAMPLES)
    return clips


def tokens(*ids):
    return {"type": "token", "token": list(ids)}


def text(value):
    return {"type": "text", "text": value}


# ---- recorded prompts -------------------------------------------------------------------------------------------


def test_every_golden_chat_is_exact(published, chats):
    for name, chat in chats.items():
        build = build_base_prompt if chat.get("base_model_raw_format") else build_prompt
        made = build(chat["messages"], published, rows_per_clip(chat))
        assert list(made.tokens) == chat["ids"], name
        assert made.n_prompt == chat["n_ids"]
        assert [slot.length for slot in made.slots] == chat["audio_tokens"]
        inside = {i for slot in made.slots for i in range(slot.start, slot.start + slot.length)}
        assert inside == {i for i, token in enumerate(chat["ids"]) if token == published.audio_patch}


def test_task_prompts_are_the_ones_of_the_examples(published, chats):
    assert list(asr_prompt(published, [47]).tokens) == chats["asr"]["ids"]
    assert list(asr_prompt(published, [47], prompts.S2TT_SYSTEM_ZH).tokens) == chats["s2tt"]["ids"]
    assert list(asr_prompt(published, [47], prompts.S2TT_SYSTEM_EN).tokens) == chats["s2tt_en"]["ids"]
    assert list(asr_prompt(published, [47], prompts.DEFAULT_SYSTEM).tokens) == chats["speech_to_text"]["ids"]
    spoken = chats["s2st"]["messages"]
    assert spoken[0]["content"] == prompts.S2ST_SYSTEM
    assert spoken[-1] == {"role": "assistant", "content": grammar.SPOKEN, "eot": False}


def test_the_chatml_template_beside_the_tokenizer_is_not_used(shared, published):
    template = json.loads((shared / "Step-Audio-2-mini/tokenizer_config.json").read_text("utf-8"))["chat_template"]
    assert "<|im_start|>" in template  # the trap is there
    made = build_prompt([{"role": "human", "content": "hi"}, OPEN], published)
    assert published.decode(made.tokens) == "<|BOT|>human\nhi<|EOT|><|BOT|>assistant\n"
    assert not {published.id("<|im_start|>"), published.id("<|im_end|>")} & set(made.tokens)


# ---- the grammar, on a small vocabulary -------------------------------------------------------------------------


def test_turns_read_back_as_written(small):
    made = build_prompt(
        [
            Message("system", "s"),
            Message("user", "u"),
            Message("input", [text("i")]),
            Message("tool_json_schemas", "{}"),
            Message("assistant", "a", eot=False),
        ],
        small,
    )
    assert small.decode(made.tokens) == (
        "<|BOT|>system\ns<|EOT|><|BOT|>human\nu<|EOT|><|BOT|>input\ni<|EOT|>"
        "<|BOT|>tool_json_schemas\n{}<|EOT|><|BOT|>assistant\na"
    )
    assert made.slots == ()


def test_no_chatml_mark_in_any_prompt(small):
    made = build_prompt([Message(role, "x") for role in grammar.ROLES], small)
    assert not {small.id("<|im_start|>"), small.id("<|im_end|>")} & set(made.tokens)


def test_a_string_is_one_piece_and_items_are_many():
    # "\nthe" is one token here, so the border between header and text shows
    tokenizer = Tokenizer.train(["\n\n", "\n\n", "\n\n"], vocab_size=257, n_audio=0)
    newline, double = tokenizer.encode("\n")[0], tokenizer.encode("\n\n")[0]
    one = build_prompt([Message("human", "\nx")], tokenizer).tokens
    many = build_prompt([Message("human", [text("\n"), text("x")])], tokenizer).tokens
    assert tokenizer.decode(one) == tokenizer.decode(many)
    assert double in one and newline not in one
    assert double not in many and many.count(newline) == 2


def test_eot_false_leaves_items_open_too(small):
    made = build_prompt([Message("assistant", [text("a")], eot=False)], small)
    assert small.decode(made.tokens) == "<|BOT|>assistant\na"


def test_audio_becomes_marked_rows_in_order(small):
    n_rows = [[3, 0], [2]]
    made = build_prompt([Message("human", [text("a"), AUDIO, AUDIO]), OPEN], small, n_rows)
    start, patch, end = small.audio_start, small.audio_patch, small.audio_end
    head = len(small.encode("<|BOT|>human\n")) + 1
    assert list(made.tokens[head : head + 11]) == [
        start,
        patch,
        patch,
        patch,
        end,
        start,
        end,
        start,
        patch,
        patch,
        end,
    ]
    assert made.slots == (AudioSlot(head + 1, 3, 0, 0), AudioSlot(head + 6, 0, 0, 1), AudioSlot(head + 8, 2, 1, 0))


def test_base_prompts_have_no_turns(small):
    made = build_base_prompt(["listen", AUDIO, tokens(1, 2), text("x")], small, [[1]])
    assert small.decode(made.tokens) == f"listen<audio_start><audio_patch><audio_end>{small.decode([1, 2])}x"


def test_token_items_go_in_as_they_are(small):
    last = small.n_ids - 1
    assert build_base_prompt([tokens(0, last)], small).tokens == (0, last)
    roomy = Tokenizer(small._backend, vocab_rows=small.n_ids + 3)
    assert build_base_prompt([tokens(roomy.n_ids + 2)], roomy).tokens == (roomy.n_ids + 2,)


# ---- refusals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("messages", "match"),
    [
        ([{"role": "tool", "content": "x"}], "unknown role 'tool'.*tool_json_schemas"),
        ([{"role": None, "content": "x"}], "unknown role None"),
        ([{"role": "human", "content": 3}], "content of a human turn.*int"),
        ([{"role": "human", "content": {"type": "text", "text": "x"}}], "content of a human turn.*dict"),
        ([{"role": "human", "content": "x", "eot": "no"}], "eot of a human turn"),
        ([{"role": "human", "content": "x", "eos": False}], "expected a message with role"),
        ([{"role": "human"}], "expected a message with role"),
        (["hello"], "expected a message with role"),
        ("hello", "expected a list of messages"),
        ({"role": "human", "content": "x"}, "expected a list of messages"),
        ([{"role": "human", "content": ["x"]}], "expected an item of type text, token, audio"),
        ([{"role": "human", "content": [{"type": "image"}]}], "expected an item of type"),
        ([{"role": "human", "content": [{"type": "text", "txt": "x"}]}], "expected an item of type"),
        ([{"role": "human", "content": [{"type": ["text"]}]}], "expected an item of type"),
        ([{"role": "human", "content": [{"type": "text"}]}], "key 'text' is missing"),
        ([{"role": "human", "content": [{"type": "text", "text": 3}]}], "expected text, found 3"),
        ([{"role": "human", "content": "\ud800"}], "lone surrogates"),
        ([{"role": "human", "content": [tokens(-1)]}], "token item: id -1"),
        ([{"role": "human", "content": [tokens(1.5)]}], "token item: expected an id, found 1.5"),
        ([{"role": "human", "content": [{"type": "token", "token": "12"}]}], "token item: expected a list"),
        ([{"role": "human", "content": [{"type": "token", "token": 12}]}], "token item: expected a list"),
        ([], "prompt is empty"),
    ],
)
def test_bad_messages_are_refused(small, messages, match):
    with pytest.raises(PromptError, match=match):
        build_prompt(messages, small)


@pytest.mark.parametrize("rows", [None, 0, 5])
def test_a_token_beyond_the_vocabulary_is_refused(small, rows):
    tokenizer = small if rows is None else Tokenizer(small._backend, vocab_rows=small.n_ids + rows)
    with pytest.raises(PromptError, match="token item: id .* outside the vocabulary"):
        build_base_prompt([tokens(small.n_ids + (rows or 0))], tokenizer)


@pytest.mark.parametrize(
    ("n_rows", "match"),
    [
        ([], "audio item 0 has no rows"),
        ([[]], "audio item 0: expected a count"),
        ([[3, -1]], "audio item 0: expected a count"),
        ([[3], [4]], "2 entries.*only 1 audio"),
        ([3], "expected a list of row counts"),
        ([[2.5]], "expected a list of row counts"),
        (None, "expected a list of row counts"),
    ],
)
def test_rows_that_do_not_fit_the_audio_are_refused(small, n_rows, match):
    with pytest.raises(PromptError, match=match):
        build_prompt([Message("human", [AUDIO])], small, n_rows)


def test_a_prompt_without_a_tokenizer_is_refused():
    with pytest.raises(PromptError, match=r"needs a tokenizer.*Prompt\(ids\)"):
        build_prompt([OPEN], None)
    assert Prompt((5, 6)).n_prompt == 2


@pytest.mark.parametrize(
    "slots",
    [
        (AudioSlot(2, 3, 0),),
        (AudioSlot(-1, 1, 0),),
        (AudioSlot(0, -1, 0),),
        (AudioSlot(0, 2, 0), AudioSlot(1, 1, 1)),
    ],
)
def test_slots_outside_or_over_each_other_are_refused(slots):
    with pytest.raises(PromptError, match="overlap others or lie outside the 4 tokens"):
        Prompt((1, 2, 3, 4), slots)
