"""Examples of dialogues against what `Conversation` asks a model for, whose answers are given by hand."""

import json
from collections import Counter

import corpora
import numpy as np
import pytest
from conversing import forced

import stepaudio
from stepaudio.checkpoints.capabilities import Capabilities
from stepaudio.conversation import Conversation, ToolStatus
from stepaudio.engine import Engine
from stepaudio.errors import DataError
from stepaudio.model import StepAudio2
from stepaudio.train.__main__ import main
from stepaudio.train.corpus import AnswerEncoder
from stepaudio.train.speaking import grammar
from stepaudio.train.speaking.dialogues import OPENING, ExampleMaker, read_dialogues
from stepaudio.train.speaking.examples import Batches, spoken_answer
from stepaudio.train.speaking.grammar import REMEMBER, THINK, TOOL, TOOLS, dialogues, kept_back

SOUND = np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32)


@pytest.fixture(scope="module")
def model(start):
    engine = stepaudio.load(start).engine
    able = Capabilities(thinking=OPENING, thinks_unasked=False)
    return StepAudio2(Engine(engine.net, engine.tokenizer, capabilities=able), None)


@pytest.fixture(scope="module")
def rows(model, words):
    """Embeddings of `SOUND`, as many as the engine gives it."""
    return Conversation(None).ask(audio=SOUND).tokens(model).count(words.audio_patch)


def made(dialogue, words, n, silent=()):
    """Its examples, every sentence being `SOUND`, every answer but the silent ones spoken."""
    encode = AnswerEncoder(words)
    turns = dialogue["turns"]
    clips = {turn["human"]: [(0, n), (n, n)] for turn in turns if "human" in turn}
    answers = [turn["answer"] for turn in turns if "answer" in turn and turn["answer"] not in silent]
    spoken = {text: (spoken_answer(encode(text), np.arange(30), words), None) for text in answers}
    return ExampleMaker(words, encode, clips, spoken)(dialogue)


def asked(talk, model, words, answers, **how):
    """The prompts of an answer whose runs give these tokens, and the conversation behind it."""
    ends = set(words.eos_ids)
    engine_gives = [[t for t in map(int, answer) if t not in ends] for answer in answers]
    model = forced(model, *engine_gives)
    talk = talk.answer(model, **how)
    return [list(map(int, prompt)) for prompt in model.engine.asked], talk


def prompts_of(examples, answer):
    """All prompts of the examples with this answer."""
    return [p.tolist() for e in examples if np.array_equal(e.answer, answer) for p in e.prompts]


def by_kind(examples, words):
    """The answers of examples in order, each once, written and spoken."""
    found = {}
    for e in examples:
        found.setdefault(tuple(e.answer.tolist()), bool((e.answer >= words.first_audio_code).any()))
    return [a for a, s in found.items() if not s], [a for a, s in found.items() if s]


@pytest.mark.parametrize("spoken", [False, True])
@pytest.mark.parametrize("first_spoken", [False, True])
def test_a_tool_is_asked_for_as_conversation_does(model, words, rows, spoken, first_spoken):
    (dialogue,) = dialogues(TOOL, 1, 3, held_out=False)
    examples = made(dialogue, words, rows)
    (call, written), (said,) = by_kind(examples, words)
    final = said if spoken else written
    tools = [TOOLS[name] for name in dialogue["tools"]]
    talk = Conversation(tools=tools).ask(audio=SOUND)
    (prompt,), talk = asked(talk, model, words, [call], spoken=first_spoken)
    assert prompt in prompts_of(examples, call)
    (found,) = talk.last.calls
    turns = dialogue["turns"]
    assert (found.name, found.arguments) == (turns[1]["call"], turns[1]["arguments"])
    (prompt,), talk = asked(talk.give(turns[2]["result"]), model, words, [final], spoken=spoken)
    assert prompt in prompts_of(examples, final)
    assert talk.last.generation.text.strip() == turns[3]["answer"]


def test_both_rounds_of_a_tool_in_one_answer(model, words, rows):
    """The functions of the grammar themselves are called; the result is then another than the dialogue's."""
    (dialogue,) = dialogues(TOOL, 1, 3, held_out=False)
    call, arguments = dialogue["turns"][1]["call"], dialogue["turns"][1]["arguments"]
    dialogue["turns"][2]["result"] = TOOLS[call](**arguments)
    examples = made(dialogue, words, rows)
    (tokens, written), _ = by_kind(examples, words)
    tools = [TOOLS[name] for name in dialogue["tools"]]
    prompts, talk = asked(Conversation(tools=tools).ask(audio=SOUND), model, words, [tokens, written], tools=tools)
    assert prompts[0] in prompts_of(examples, tokens) and prompts[1] in prompts_of(examples, written)
    assert [o.status for turn in talk.turns for o in getattr(turn, "outcomes", ())] == [ToolStatus.OK]


@pytest.mark.parametrize("first_spoken", [False, True])
@pytest.mark.parametrize("spoken", [False, True])
def test_two_turns_are_asked_for_as_conversation_does(model, words, rows, first_spoken, spoken):
    (dialogue,) = dialogues(REMEMBER, 1, 1, held_out=False)
    examples = made(dialogue, words, rows)
    pairs = list(zip(*by_kind(examples, words), strict=True))
    talk = Conversation()
    for pair, is_spoken in zip(pairs, (first_spoken, spoken), strict=True):
        (prompt,), talk = asked(talk.ask(audio=SOUND), model, words, [pair[is_spoken]], spoken=is_spoken)
        assert prompt in prompts_of(examples, pair[is_spoken])
    example = next(e for e in examples if np.array_equal(e.answer, pairs[1][0]))
    assert {len(slots) for slots in example.slots} == {2}
    for prompt, slots in zip(example.prompts, example.slots, strict=True):
        places = [at + k for at, _, n in slots for k in range(n)]
        assert places == np.flatnonzero(prompt == words.audio_patch).tolist()


@pytest.mark.parametrize("spoken", [False, True])
def test_a_thought_is_asked_for_as_conversation_does(model, words, rows, spoken):
    (dialogue,) = dialogues(THINK, 1, 1, held_out=False)
    examples = made(dialogue, words, rows)
    (written, whole), (said,) = by_kind(examples, words)
    thought = whole[: len(whole) - len(written) - len(words.encode("\n\n"))]
    assert words.decode(thought).endswith("\n</think>") and whole[-len(written) :] == written
    final = said if spoken else written
    talk = Conversation().ask(audio=SOUND)
    (first, second), talk = asked(talk, model, words, [thought, final], spoken=spoken, think=True)
    assert first in prompts_of(examples, whole)
    assert talk.last.thought == dialogue["turns"][1]["thought"]
    if spoken:
        assert second in prompts_of(examples, said)
    else:
        assert second == first + list(whole[: len(whole) - len(written)])
    (plain,), talk = asked(Conversation().ask(audio=SOUND), model, words, [final], spoken=spoken)
    assert plain in prompts_of(examples, final) and talk.last.thought == ""


def test_what_is_not_spoken_is_learnt_in_writing_alone(words):
    (dialogue,) = dialogues(REMEMBER, 1, 1, held_out=False)
    last = dialogue["turns"][-1]["answer"]
    examples = made(dialogue, words, 9, silent=[last])
    assert len(by_kind(examples, words)[1]) == 1
    assert made(dialogue, words, 9, silent=[last, dialogue["turns"][1]["answer"]])
    maker = ExampleMaker(words, AnswerEncoder(words), {}, {})
    assert maker(dialogue) == []


def test_sums_are_right():
    """By Python's own arithmetic on the words turned back to numbers."""
    back = {grammar.in_words(n): str(n) for n in range(100)}
    for dialogue in dialogues(THINK, 200, 0, held_out=False):
        human, answer = dialogue["turns"]
        task = human["human"].removeprefix("what is ").removeprefix("how much is ")
        steps = answer["thought"].split(" and ")
        for text, is_whole in ((task, True), *((step.split(" is ")[0], False) for step in steps)):
            parts = text.replace(" plus ", " + ").replace(" minus ", " - ").replace(" + ", "|+|").replace(" - ", "|-|")
            value = eval("".join(back.get(part, part) for part in parts.split("|")))
            assert grammar.in_words(value) in (answer["answer"] if is_whole else answer["thought"])
            if is_whole:
                assert answer["answer"] == f"the answer is {grammar.in_words(value)}"
                assert steps[-1].endswith(f" is {grammar.in_words(value)}")


def test_results_are_told_in_words():
    said = grammar.said
    assert said("time_in", {"city": "rome"}, "10:20") == "it is ten twenty in rome"
    assert said("time_in", {"city": "rome"}, "1:05") == "it is one oh five in rome"
    assert said("time_in", {"city": "rome"}, "12:00") == "it is twelve o'clock in rome"
    assert said("weather_in", {"city": "oslo"}, "snow, 1 degrees") == "snow and one degree in oslo"
    assert said("set_timer", {"minutes": 45}, "set") == "the timer is set for forty five minutes"


def test_no_first_sentence_is_both_learnt_and_kept_back():
    for task in (TOOL, THINK, REMEMBER):
        learnt, kept = ({d["turns"][0]["human"] for d in dialogues(task, 150, 5, back)} for back in (False, True))
        assert learnt and kept and not learnt & kept
        shares = Counter(kept_back(maker) for maker in ([{"human": f"{task} {k}"}] for k in range(4000)))
        assert 0.1 < shares[True] / 4000 < 0.15


@pytest.mark.parametrize("line", ["{", "[]", '{"task": "tool", "turns": []}', '{"task": 1, "held_out": 0, "turns": 3}',
                                  '{"task": "tool", "held_out": false, "turns": [{"words": "hello"}]}',
                                  '{"task": "tool", "held_out": false, "turns": [], "tools": ["fly"]}'])  # fmt: skip
def test_what_is_no_dialogue_is_refused_with_its_line(tmp_path, line):
    path = tmp_path / "dialogues.jsonl"
    path.write_text(json.dumps(dialogues(TOOL, 1, 0, False)[0]) + "\n" + line + "\n")
    with pytest.raises(DataError, match="line 2: expected a dialogue"):
        read_dialogues(path)


def test_inputs_of_dialogues_are_left_as_they_are(words):
    (dialogue,) = dialogues(REMEMBER, 1, 1, held_out=False)
    examples = made(dialogue, words, 9, silent=[t["answer"] for t in dialogue["turns"] if "answer" in t])
    clean, noisy = (Batches(examples, words, 128 * 50, seed=1, noisy=n)(0) for n in (False, True))
    assert np.array_equal(clean["inputs"], noisy["inputs"])


def test_a_run_learns_dialogues_and_scores_those_kept_back(tmp_path, start, codec, capsys):
    folder, out = corpora.write_for_speaking(tmp_path / "c"), tmp_path / "run"
    a, b, c, d, _ = corpora.TEXTS
    lines = [
        {"task": REMEMBER, "held_out": back, "turns": [{"human": x}, {"answer": b}, {"human": c}, {"answer": d}]}
        for x, back in ((a, False), (corpora.TEXTS[4], True))
    ] + [{"task": THINK, "held_out": False, "turns": [{"human": "nobody said this"}, {"answer": b}]}]
    path = tmp_path / "dialogues.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    few = ["--layers", "2", "--tokens", "768", "--variants", "1", "--steps", "3", "--log-every", "1"]
    main(
        [
            *corpora.speaking_command(folder, start, codec, out),
            *few,
            "--dialogues",
            str(path),
            "--shares",
            "remember=5",
            "read=0",
        ]
    )
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    (made,) = [line for line in log if line.get("event") == "dialogues"]
    assert (made["without_clips"], made["remember"]) == (1, 4)
    (scores,) = [line for line in log if "held_out_remember_whole" in line]
    assert 0 <= scores["held_out_remember_text_right"] <= 1 and scores["held_out_loss"] > 0
    assert scores["held_out_remember_codes"] == 0 < scores["held_out_remember_spoken_codes"]
    able = Capabilities.of_folder(out / "model")
    assert able.allow("respond") and able.thinking == OPENING and not able.thinks_unasked
    with pytest.raises(SystemExit):
        main([*corpora.speaking_command(folder, start, codec, tmp_path / "two"), *few, "--shares", "juggle=1"])
    assert "expected TASK=SHARE" in capsys.readouterr().err
