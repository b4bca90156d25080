"""nano with its LoRA `talk`, on dialogues and voices that were kept back from training (`data/asked`).

What the README and the notebook say of it is held here: the right call, the answer from its result, sums behind a
thought, and what was told a turn ago.
"""

import json
import warnings

import pytest

import stepaudio
from stepaudio.checkpoints.capabilities import Capabilities
from stepaudio.conversation import Conversation
from stepaudio.engine import Engine
from stepaudio.errors import PromptError
from stepaudio.model import StepAudio2
from stepaudio.resources import data_folder, voice_clip
from stepaudio.synthesis.synthesizer import Synthesizer
from stepaudio.train.speaking.grammar import REMEMBER, THINK, TOOL, TOOLS, kept_back, said

FOLDER = data_folder() / "asked"
DIALOGUES = [json.loads(line) for line in (FOLDER / "dialogues.jsonl").read_text(encoding="utf-8").splitlines()]
GREEDY = {"sampling": "greedy", "max_tokens": 48}


def of(task):
    return [dialogue for dialogue in DIALOGUES if dialogue["task"] == task]


def asked(turn, talk):
    return talk.ask(audio=FOLDER / turn["clip"])


def name_of(dialogue):
    return dialogue["turns"][0]["human"].replace(" ", "_")


@pytest.fixture(scope="module")
def talker():
    return stepaudio.load(lora="talk").altered(prompt_cache=stepaudio.PromptCache())


@pytest.fixture(scope="module")
def plain():
    """nano without the LoRA, asked what it refuses: the tests below must fail on it."""
    model, able = stepaudio.load(), Capabilities(thinking="<think>\n", thinks_unasked=False)
    return StepAudio2(Engine(model.net, model.tokenizer, model.pipeline, able), model.report)


def first_answer(model, dialogue):
    tools = [TOOLS[name] for name in dialogue.get("tools", ())]
    return asked(dialogue["turns"][0], Conversation(tools=tools)).answer(model, tools=tools, **GREEDY)


def test_they_were_kept_back():
    assert [len(of(task)) for task in (TOOL, THINK, REMEMBER)] == [3, 3, 3]
    assert all(kept_back(dialogue["turns"]) for dialogue in DIALOGUES)
    assert {dialogue["turns"][1]["call"] for dialogue in of(TOOL)} == set(TOOLS)


@pytest.mark.parametrize("dialogue", of(TOOL), ids=name_of)
def test_the_tool_is_called_and_its_result_is_said(talker, dialogue):
    talk, wanted = first_answer(talker, dialogue), dialogue["turns"][1]
    (call,) = next(turn for turn in talk.turns if turn.role == "answer").calls
    assert (call.name, dict(call.arguments)) == (wanted["call"], wanted["arguments"])
    result = TOOLS[call.name](**call.arguments)
    assert talk.turns[-2].parts[0] == result
    assert talk.last.text.strip() == said(call.name, call.arguments, result)


def test_sums_behind_a_thought(talker):
    right = 0
    for dialogue in of(THINK):
        question, answer = dialogue["turns"]
        last = asked(question, Conversation()).answer(talker, think=True, think_tokens=48, **GREEDY).last
        assert last.thought_closed and last.text.split()[-1] == last.thought.split()[-1]
        right += (last.thought, last.text.strip()) == (answer["thought"], answer["answer"])
    assert right >= 2


@pytest.mark.parametrize("dialogue", of(REMEMBER), ids=name_of)
def test_what_was_told_is_known_a_turn_later(talker, dialogue):
    _, reply, question, answer = dialogue["turns"]
    talk = first_answer(talker, dialogue)
    assert talk.last.text.strip() == reply["answer"]
    assert asked(question, talk).answer(talker, **GREEDY).last.text.strip() == answer["answer"]


def test_a_spoken_answer_is_read_back_as_its_own_text(talker, plain):
    """By nano without the LoRA, which has not seen the text."""
    dialogue = of(REMEMBER)[2]
    talk = asked(dialogue["turns"][2], first_answer(talker, dialogue))
    last = talk.answer(talker, spoken=True, sampling="greedy", max_tokens=200).last
    assert last.stop == "eos" and last.text.strip() == dialogue["turns"][3]["answer"]
    synthesizer = Synthesizer.load()
    sound = synthesizer.decode(last.codes, synthesizer.voice(voice_clip("female")), noise=0)
    heard = plain.transcribe(sound.wave, sr=sound.sample_rate, sampling="greedy", max_tokens=48)
    assert heard.text.strip() == last.text.strip()


def test_without_it_nothing_of_this_is_right(plain):
    for dialogue in DIALOGUES:
        last = first_answer(plain, dialogue).last
        wanted = dialogue["turns"][1]
        assert not last.calls and last.text.strip() != wanted.get("answer")
    question, answer = of(THINK)[0]["turns"]
    last = asked(question, Conversation()).answer(plain, think=True, think_tokens=48, **GREEDY).last
    assert (last.thought, last.text.strip()) != (answer["thought"], answer["answer"])


def test_without_it_a_recording_is_said_again_and_a_text_is_refused(plain):
    dialogue, model = of(TOOL)[2], stepaudio.load()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        talk = asked(dialogue["turns"][0], Conversation())
        last = talk.answer(model, spoken=True, sampling="greedy", max_tokens=200).last
    assert last.text.strip() == dialogue["turns"][0]["human"]
    assert any("says again what is said there" in str(w.message) and "--lora talk" in str(w.message) for w in caught)
    with pytest.raises(PromptError, match="add --lora talk"):
        talk.answer(model)
