"""The relatives of the published model: known by name, prompts without turns, answers that think aloud first."""

import json
import shutil
import warnings
from pathlib import Path

import pytest
import tiny

import stepaudio
from stepaudio.checkpoints.capabilities import REPEAT, TASKS, Capabilities
from stepaudio.checkpoints.hub_name import HubName
from stepaudio.checkpoints.siblings import SIBLINGS, sibling_of
from stepaudio.decoding import thought as thoughts
from stepaudio.decoding.outputs import Generation
from stepaudio.errors import ConfigError, DecodeError, PromptError
from stepaudio.text.chat_template import Message, build_base_prompt
from stepaudio.text.prompts import ASR_SYSTEM, READ_ALOUD, S2ST_SYSTEM, asr_turns, translation_turns

QUESTION = [{"role": "human", "content": "what is the time now"}]


def named(tiny_checkpoint, tmp_path, name: str) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / name))


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("Step-Audio-2-mini", "Step-Audio-2-mini"),
        ("somewhere/step-audio-2-MINI-base", "Step-Audio-2-mini-Base"),
        ("Step-Audio-2-mini-Base-bf16", "Step-Audio-2-mini-Base"),
        ("Step-Audio-2-mini-8bit", "Step-Audio-2-mini"),
        ("Step-Audio-R1", "Step-Audio-R1"),
        ("Step-Audio-R1.1", "Step-Audio-R1.1"),
        ("Step-Audio-R1-nvfp4", "Step-Audio-R1"),
        (HubName("anybody/Step-Audio-2-mini-Think", "v1"), "Step-Audio-2-mini-Think"),
        ("cache/models--stepfun-ai--Step-Audio-R1.1/snapshots/abc", "Step-Audio-R1.1"),
        ("Step-Audio-2", None),
        ("Step-Audio-R12", None),
        ("nano", None),
        ("Step-Audio-2-mini/token2wav", None),
    ],
)
def test_a_name_tells_which_one_it_is(path, name):
    found = sibling_of(path)
    assert (found and found.name) == name


def test_the_table_of_the_page_is_what_is_done():
    """One row each, in the order of `SIBLINGS`; "no" is a refusal, and nothing else is."""
    page = (Path(__file__).parents[1] / "docs" / "published_model.md").read_text(encoding="utf-8")
    rows = [
        [c.strip() for c in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| `Step-Audio")
    ]
    assert [row[0].strip("`") for row in rows] == [one.name for one in SIBLINGS]
    for row, one in zip(rows, SIBLINGS, strict=True):
        can = Capabilities.of(f"stepfun-ai/{one.name}")
        said = dict(zip(("transcribe", "translate", "speak", "respond"), row[2:6], strict=True))
        for task in ("transcribe", "translate", "speak"):
            assert said[task] == ("yes" if can.allow(task) else "no"), (one.name, task)
        answers_aloud = can.allow("respond") and can.allow("speak")
        assert said["respond"].startswith("yes" if answers_aloud else "no"), one.name
        assert row[6] == ("yes" if can.thinking else "no") and can.turns == (one.name != "Step-Audio-2-mini-Base")


@pytest.mark.parametrize("one", SIBLINGS, ids=lambda one: one.name)
def test_what_one_cannot_do_is_one_line_with_its_name_and_the_reason(one):
    can = Capabilities.of(f"stepfun-ai/{one.name}")
    for task in TASKS:
        if task in one.refusals:
            with pytest.raises(PromptError, match=f"cannot {task}: {one.name}: it ") as refused:
                can.require(task)
            assert len(str(refused.value)) < 200
        elif task != REPEAT:  # of those known by name each that answers a recording answers it
            can.require(task)
    if "respond" in one.refusals:
        with pytest.raises(PromptError, match=f"cannot respond: {one.name}"):
            can.require_answer()


def test_a_model_that_repeats_warns_and_answers_no_text(tiny_checkpoint, tmp_path):
    folder = named(tiny_checkpoint, tmp_path, "echo")
    (folder / "capabilities.json").write_text(json.dumps({"tasks": ["transcribe", "repeat", "speak"]}))
    can = Capabilities.of_folder(folder)
    with pytest.warns(UserWarning, match="says again what is said there"):
        can.require_answer()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Capabilities(("respond", "repeat")).require_answer()
        Capabilities().require_answer()
    with pytest.raises(PromptError, match="cannot respond: it was trained to transcribe and repeat and speak"):
        stepaudio.load(folder).generate_text("hello")
    with pytest.raises(PromptError, match="cannot respond"):
        Capabilities(("transcribe", "speak")).require_answer()


def test_a_file_beside_the_weights_comes_before_the_name(tiny_checkpoint, tmp_path):
    folder = named(tiny_checkpoint, tmp_path, "Step-Audio-R1")
    assert not Capabilities.of_folder(folder).allow("transcribe") and Capabilities.of(folder).thinking == "<think>\n"
    (folder / "capabilities.json").write_text(json.dumps({"tasks": ["transcribe"], "turns": False}))
    found = Capabilities.of(str(folder))
    assert found.allow("transcribe") and not found.turns and found.thinking is None
    (folder / "capabilities.json").write_text(json.dumps({"refusals": {}}))
    with pytest.raises(ConfigError, match="unknown key refusals"):
        Capabilities.of_folder(folder)


# ---- without turns ----


def test_a_base_model_is_given_what_the_turns_hold(tiny_checkpoint, tmp_path):
    """Held against the lists that StepFun's examples for the base model give."""
    model = stepaudio.load(named(tiny_checkpoint, tmp_path, "Step-Audio-2-mini-Base"))
    words, clip = model.tokenizer, tiny.noise(1)
    speech = stepaudio.SpeechModel(model)
    build = model.pipeline.build_prompt
    audio = {"type": "audio"}
    for turns, pieces in (
        (asr_turns(), [ASR_SYSTEM, audio]),
        (translation_turns("zh", spoken=True), [S2ST_SYSTEM, audio, "<tts_start>"]),
    ):
        assert build(turns, words, [[7]]) == build_base_prompt(pieces, words, [[7]])
    (reading,) = speech.reading("the cat sat")
    assert build(reading, words) == build_base_prompt([READ_ALOUD, "the cat sat<tts_start>"], words)
    assert model.transcribe(clip, max_tokens=4).text is not None
    plain = stepaudio.load(tiny_checkpoint)
    assert plain.request([Message("human", "hello")]).tokens != model.request([Message("human", "hello")]).tokens
    assert list(model.request([Message("human", "hello")]).tokens) == words.encode("hello")
    with pytest.raises(PromptError, match="cannot respond: Step-Audio-2-mini-Base"):
        model.generate_text("hello")


# ---- thinking aloud ----


@pytest.fixture
def thinker(tiny_checkpoint, tmp_path):
    return stepaudio.load(named(tiny_checkpoint, tmp_path, "Step-Audio-2-mini-Think"))


def test_two_phases_have_the_prompts_of_the_reference(thinker, monkeypatch):
    asked = []

    def answer(request, options, tap=None):
        asked.append((thinker.tokenizer.decode(request.tokens), options))
        return Generation((1, 2), "so it is</think>\n\nrest", (), "stop string", -1.0)

    monkeypatch.setattr(thinker.engine, "answer", answer)
    thought = thinker.think(QUESTION, stop=["never"], seed=3)
    turn = "<|BOT|>human\nwhat is the time now<|EOT|><|BOT|>assistant\n"
    assert asked[0][0] == f"{turn}\n<think>\n"
    assert asked[0][1].stop == ("</think>",) and asked[0][1].rules.seed == 3
    assert thought.finished and thought.text == "so it is"
    thinker.generate_with_audio(thought.messages)
    assert asked[1][0] == f"{turn}\n<think>\nso it is</think>\n\n<tts_start>"
    written = thinker.think(QUESTION, spoken=False)
    assert written.messages[-1].content == "\n<think>\nso it is</think>\n\nrest"  # on from where it stopped
    for turns in ([*QUESTION, {"role": "assistant", "content": None}],
                  [*QUESTION, {"role": "assistant", "content": "<tts_start>", "eot": False}]):  # fmt: skip
        assert thinker.think(turns).messages == thought.messages
    with pytest.raises(PromptError, match="the last turn is an answer already"):
        thinker.think([*QUESTION, {"role": "assistant", "content": "noon"}])


def test_a_thought_ends_where_its_mark_does(thinker, monkeypatch):
    """A mark that this model of random weights does write stands for the real one."""
    opened = [*map(Message.of, QUESTION), Message("assistant", "\n<think>\n", eot=False)]
    said = thinker.generate_text(opened, sampling="greedy", max_tokens=40).text
    mark = said[len(said) // 2 : len(said) // 2 + 3]
    monkeypatch.setattr(thoughts, "END_OF_THOUGHT", mark)
    monkeypatch.setattr("stepaudio.thinking.END_OF_THOUGHT", mark)
    thought = thinker.think(QUESTION, sampling="greedy", max_tokens=40)
    assert thought.finished and thought.text == said.partition(mark)[0].strip()
    assert len(thought.generation.tokens) < 40
    assert thought.messages[-1].content.startswith(f"\n<think>\n{said.partition(mark)[0]}{mark}\n\n<tts_start>")


def test_a_thought_that_comes_to_no_end_is_kept_and_leads_no_further(thinker):
    thought = thinker.think(QUESTION, sampling="greedy", max_tokens=3)
    assert not thought.finished and len(thought.generation.tokens) <= 3
    with pytest.raises(DecodeError, match="the thought was not finished, it ended by length after 3 tokens"):
        _ = thought.messages


def test_others_do_not_think(tiny_model):
    with pytest.raises(PromptError, match="this model does not think aloud"):
        tiny_model.think(QUESTION)


def test_respond_thinks_first(thinker, monkeypatch, synthesizer, voices):
    model = stepaudio.SpeechModel(thinker, synthesizer)
    question = model.question(tiny.noise(1))
    seen = []
    real = thinker.engine.answer

    def answer(request, options, tap=None):
        if options.stop:
            return Generation((1,), "hm</think>", (), "stop string", -1.0)
        seen.append(thinker.tokenizer.decode(request.tokens))
        return real(request, options, tap)

    monkeypatch.setattr(thinker.engine, "answer", answer)
    assert model.thought(question)[-1].content == "\n<think>\nhm</think>\n\n<tts_start>"
    model.respond(tiny.noise(1), voices[0], max_tokens=3)
    assert seen and seen[0].endswith("<|BOT|>assistant\n\n<think>\nhm</think>\n\n<tts_start>")
