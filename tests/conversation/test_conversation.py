"""Histories against the recorded chats of the reference, and their answers."""

import json
import threading
from functools import partial

import numpy as np
import pytest
import tiny
from conversing import forced

from stepaudio.checkpoints.capabilities import Capabilities
from stepaudio.constants import CHUNK_SAMPLES, HOP, TAIL_PADDING, n_mel_frames
from stepaudio.conversation import Conversation, Recording, Role, Turn
from stepaudio.conversation.turns import RESULT_NOTE
from stepaudio.decoding.prompt_cache import PromptCache
from stepaudio.engine import Engine
from stepaudio.errors import DecodeError, PromptError
from stepaudio.model import StepAudio2
from stepaudio.models.speech_lm import StepAudioNet
from stepaudio.text.prompts import ASR_SYSTEM, READ_ALOUD, open_answer
from stepaudio.text.tokenizer import Tokenizer

QUESTION = "what is the time now"
GREEDY = {"sampling": "greedy", "max_tokens": 6}


@pytest.fixture(scope="module")
def published(shared, tiny_model) -> StepAudio2:
    """A tiny net behind the published tokenizer: prompts are real, answers are not asked for."""
    folder = shared / "Step-Audio-2-mini"
    if not (folder / "vocab.json").exists():
        pytest.skip("needs the published tokenizer files")
    words = Tokenizer.from_folder(folder, vocab_rows=158_720)
    return StepAudio2(Engine(StepAudioNet(tiny.config(158_720)), words), tiny_model.report)


@pytest.fixture(scope="module")
def chats(goldens):
    data = json.loads((goldens / "tokenizer_pairs.json").read_text(encoding="utf-8"))
    return [c for c in data["chats"] if not c.get("base_model_raw_format")]


def replayed(chat) -> tuple[Conversation, str | None]:
    """A recorded chat said again turn by turn, and what opens its answer."""
    frames, talk = list(chat["mel_frames"]), Conversation(system=None)
    messages = chat["messages"]
    if messages[0]["role"] == "system":
        tools = messages[1]["content"] if messages[1]["role"] == "tool_json_schemas" else ()
        talk = Conversation(messages[0]["content"], tools=tools)
    for message in messages[:-1]:
        role, content = message["role"], message["content"]
        if role in ("human", "user"):
            items = [{"type": "text", "text": content}] if isinstance(content, str) else content
            talk = talk.ask(*(i["text"] if i["type"] == "text" else sound(frames) for i in items))
        elif role == "assistant":
            talk = talk.say(content) if isinstance(content, str) else talk.say_tokens(content[1]["token"])
        elif role == "input":
            result, note = (item["text"] for item in content)
            assert note == RESULT_NOTE
            talk = talk.give(result)
    return talk, messages[-1]["content"]


def sound(frames: list[int]) -> np.ndarray:
    """Noise of as many mel frames as the next recording has; one of more than 25 s has two entries."""
    first = frames.pop(0)
    whole = first == n_mel_frames(CHUNK_SAMPLES)
    samples = (frames.pop(0) if whole else first) * HOP - TAIL_PADDING
    return tiny.noise((samples + (CHUNK_SAMPLES if whole else 0)) / tiny.RATE)


def test_recorded_chats_give_their_ids(published, chats):
    names = {chat["name"]: chat for chat in chats}
    assert len(names) >= 20
    for name, chat in names.items():
        talk, opened = replayed(chat)
        found = list(talk.tokens(published, spoken=opened == "<tts_start>"))
        if name == "think":  # opened by the thought, which the next test has
            found, chat = found[:-3], {"ids": chat["ids"][:-6]}
        assert found == chat["ids"], name


def test_thinking_opens_as_recorded_and_leaves_the_history(published, chats):
    (chat,) = [c for c in chats if c["name"] == "think"]
    opening, words = chat["messages"][-1]["content"], published.tokenizer
    thinker = StepAudio2(Engine(published.net, words, capabilities=Capabilities(thinking=opening)), published.report)
    thought, said = words.encode("a greeting</think>"), [words.first_audio_code + 5, 108386]
    model = forced(thinker, thought, said)
    talk = replayed(chat)[0].answer(model, spoken=True)
    first, second = model.engine.asked
    assert [t for t in first if t != words.audio_patch] == [t for t in chat["ids"] if t != words.audio_patch]
    assert words.decode(second).endswith("<|BOT|>assistant\n\n<think>\na greeting</think>\n\n<tts_start>")
    assert second[-1] == words.tts_start
    assert (talk.last.thought, talk.last.thought_closed) == ("a greeting", True)
    assert talk.last.tokens == tuple(said) and talk.last.codes == (5,)
    history = words.decode(talk.ask("and?").tokens(published))
    assert "greeting" not in history and "think" not in history
    assert "<|BOT|>assistant\n<tts_start><audio_5>" in history


def test_a_thought_that_does_not_close_is_closed(published):
    words = published.tokenizer
    thinker = StepAudio2(Engine(published.net, words, capabilities=Capabilities(thinking="\n<think>\n")), None)
    model = forced(thinker, words.encode("on and on and on"), words.encode("\n\nyes"))
    talk = Conversation().ask("Really?").answer(model, think_tokens=3)
    assert words.decode(model.engine.asked[1]).endswith("<think>\non and on\n</think>\n\n")
    assert (talk.last.thought, talk.last.thought_closed, talk.last.text) == ("on and on", False, "yes")
    steps = (
        Conversation()
        .ask("Really?")
        .stream(forced(thinker, words.encode("on and on and on"), words.encode("\n\nyes")), think_tokens=3)
    )
    assert steps.thought is None
    for step in steps:  # from the first step of the answer on
        assert (steps.thought.text, steps.thought.closed) == ("on and on", False), step
    assert model.engine.options[0].max_tokens == 3 and model.engine.options[1].max_tokens > 3
    with pytest.raises(PromptError, match="does not think aloud"):
        Conversation().ask("Really?").answer(published, think=True)
    assert Conversation().ask("?").answer(forced(thinker, [64]), think=False).last.thought == ""


# ------------------------------------------------------------------------------- answers and histories


def test_a_text_that_names_a_file_is_asked_with_a_warning(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "talk.wav").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"talk\.wav is asked as a text.*audio="):
        asked = Conversation().ask("talk.wav")
    assert asked.turns[-1].text == "talk.wav"
    assert Conversation().ask("other.wav").turns[-1].text == "other.wav"


def test_an_answer_is_that_of_the_same_messages(tiny_model):
    clip = tiny.noise(1.1)
    talk = Conversation("system").ask(QUESTION, audio=clip).answer(tiny_model, **GREEDY)
    messages = [
        {"role": "system", "content": "system"},
        {"role": "human", "content": [{"type": "text", "text": QUESTION},
                                      {"type": "audio", "audio": Recording.of(clip).samples}]},
    ]  # fmt: skip
    assert talk.last.generation == tiny_model.generate_with_audio(messages, **GREEDY)
    spoken = Conversation("system").ask(QUESTION).answer(tiny_model, spoken=True, **GREEDY).last
    by_hand = [{"role": "system", "content": "system"}, {"role": "human", "content": QUESTION}, open_answer(True)]
    assert spoken.generation == tiny_model.generate_audio_tokens(by_hand, **GREEDY)


def test_histories_are_values(tiny_model):
    first = Conversation().ask(QUESTION)
    talk = first.answer(tiny_model, **GREEDY).ask("why").answer(tiny_model, **GREEDY)
    assert len(first) == 2 and [t.role for t in talk.turns] == ["system", "human", "answer", "human", "answer"]
    assert talk.rewind() == talk.fork(2) == first.answer(tiny_model, **GREEDY)
    assert talk.rewind(2) == Conversation() and talk.rewind(0) == talk.fork(-1) == talk
    assert talk.fork(-4) == first != talk and len({talk, talk.fork(-1), first}) == 2
    assert repr(first).splitlines()[2].endswith(QUESTION)
    for bad in (lambda: talk.fork(5), lambda: talk.rewind(3), lambda: talk.fork(True), lambda: first.ask("again")):
        with pytest.raises(PromptError):
            bad()
    with pytest.raises(PromptError, match="nothing is asked"):
        talk.answer(tiny_model)
    with pytest.raises(PromptError, match="no answer yet"):
        _ = first.last
    with pytest.raises(PromptError, match="expected a text or a recording"):
        talk.ask()


def test_what_a_model_was_not_trained_for_is_refused(tiny_model):
    def trained(**what):
        return StepAudio2(Engine(tiny_model.net, tiny_model.tokenizer, capabilities=Capabilities(**what)), None)

    recogniser = trained(tasks=("transcribe",))
    with pytest.raises(PromptError, match="cannot respond"):
        Conversation().ask(QUESTION).answer(recogniser)
    written = Conversation(ASR_SYSTEM).ask(audio=tiny.noise(1)).answer(recogniser, **GREEDY)
    assert written.last.generation.tokens
    with pytest.raises(PromptError, match="no turns"):
        Conversation().ask(QUESTION).answer(trained(turns=False))
    speaker, recording = trained(tasks=("repeat", "speak")), Conversation().ask(audio=tiny.noise(1))
    with pytest.warns(UserWarning, match="says again"):
        assert recording.answer(speaker, spoken=True, **GREEDY).last.spoken
    assert Conversation(READ_ALOUD).ask(QUESTION).answer(speaker, spoken=True, **GREEDY).last.spoken
    for refused, spoken in ((recording, False), (Conversation().ask(QUESTION), True)):
        with pytest.raises(PromptError, match="cannot respond"):
            refused.answer(speaker, spoken=spoken)


@pytest.mark.parametrize("cached", [False, True])
def test_two_conversations_are_as_if_alone(tiny_model, cached):
    """Turn by turn, and in two threads."""

    def rounds(model, name):
        talk = Conversation(name).ask(audio=tiny.noise(0.8, seed=len(name))).answer(model, **GREEDY)
        yield talk
        for question in (QUESTION, "the cat"):
            talk = talk.ask(question).answer(model, **GREEDY)
            yield talk

    alone = {name: [*rounds(tiny_model, name)][-1] for name in ("a", "bb")}
    model = tiny_model.altered(prompt_cache=PromptCache()) if cached else tiny_model
    alone_cached = {name: [*rounds(model, name)][-1] for name in alone} if cached else alone
    assert alone_cached == alone
    fresh = tiny_model.altered(prompt_cache=PromptCache()) if cached else tiny_model
    together = [*zip(rounds(fresh, "a"), rounds(fresh, "bb"), strict=True)][-1]
    assert together == tuple(alone.values())
    found, fresh = {}, tiny_model.altered(prompt_cache=PromptCache()) if cached else tiny_model

    def work(name):
        found[name] = [*rounds(fresh, name)][-1]

    threads = [threading.Thread(target=partial(work, name)) for name in alone]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == alone
    assert [found[n].last.generation.mean_logprob for n in alone] == [
        alone_cached[n].last.generation.mean_logprob for n in alone
    ]


def test_fifty_turns_reuse_the_beginning(tiny_model):
    """Each prompt is read on from where the one before ended; what is kept stays below its limit."""
    cache = PromptCache(max_bytes=2_000_000)
    model, talk = tiny_model.altered(prompt_cache=cache), Conversation()
    for n in range(50):
        talk = talk.ask(f"{QUESTION} {n}")
        hits, misses = cache.hits, cache.misses
        talk = talk.answer(model, sampling="greedy", max_tokens=2)
        assert cache.nbytes <= 2_000_000
        assert n == 0 or (cache.hits - hits == 1 and cache.misses - misses <= 2)  # the answer and the question are new
    assert len(talk) == 101
    alone = talk.fork(-2).answer(tiny_model, sampling="greedy", max_tokens=2)
    assert talk.last.generation.tokens == alone.last.generation.tokens


@pytest.mark.parametrize("kind", ["full", "sinks", "window", "pinned"])
def test_a_new_recording_leaves_the_beginning_known(tiny_model, kind):
    """But where it is pinned, which leaves less of a cache to all else, before it too."""
    cache = PromptCache()
    model, talk = tiny_model.altered(prompt_cache=cache), Conversation()
    asked = {"sampling": "greedy", "max_tokens": 2, "cache": kind, "max_cache_len": 100}
    for n in range(4):
        talk = talk.ask(tiny.noise(0.5, seed=n))
        hits, misses = cache.hits, cache.misses
        answered = talk.answer(model, **asked)
        assert cache.hits - hits == n + (n > 0 and kind != "pinned")  # recordings, and all turns before
        assert kind == "pinned" or cache.misses - misses <= 3  # recording, answer and question are new
        assert answered.last.generation.tokens == talk.answer(tiny_model, **asked).last.generation.tokens
        talk = answered


# ------------------------------------------------------------------------------- context


def test_context_counts_positions_and_what_goes(tiny_model):
    talk = Conversation("system").ask(QUESTION, audio=tiny.noise(1)).say("the cat").ask("the mat")
    whole = talk.context(tiny_model, cache="full", max_tokens=5)
    assert whole.n_prompt == len(tiny_model.request([*(t.message(tiny_model.tokenizer) for t in talk.turns)]).tokens)
    assert whole.room is None and not any(s.evicted + s.evicted_later for s in whole.spans)
    assert [s.role for s in whole.spans] == ["system", "human", "answer", "human", "answer"]
    limit = whole.n_prompt + 2
    tight = talk.context(tiny_model, cache="window", max_cache_len=limit, max_tokens=5)
    assert tight.room == 2 and [s.evicted for s in tight.spans] == [0] * 5
    assert tight.spans[0].evicted_later == 3  # five tokens for two places
    sinks = talk.context(tiny_model, cache="sinks", sinks=4, max_cache_len=20, max_tokens=1)
    assert sum(s.length - s.evicted for s in sinks.spans) == 20
    assert sinks.spans[0].length - sinks.spans[0].evicted == 4
    assert f"{whole.n_prompt} positions of 20" in str(sinks) and len(str(sinks).splitlines()) == 7


# ------------------------------------------------------------------------------- files


WRONG = {
    "tools that are one function": lambda m: Conversation(tools=len),
    "tools that are a number": lambda m: Conversation(tools=3),
    "turns that are none": lambda m: Conversation(turns=["hello"]),
    "no system text": lambda m: Conversation(""),
    "ids that are none": lambda m: Conversation().ask("x").say_tokens([1.5]),
    "ids below 0": lambda m: Conversation().ask("x").say_tokens([-1]),
    "no ids": lambda m: Conversation().ask("x").say_tokens(3),
    "a result that is no text": lambda m: Conversation().ask("x").say("y").give(3),
    "half a character": lambda m: Conversation().ask("\ud800"),
    "a model of another kind": lambda m: Conversation().ask("x").answer(m.engine),
    "a model that is none": lambda m: Conversation().ask("x").answer(None),
    "one tool for an answer": lambda m: Conversation().ask("x").answer(m, tools=len),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_none_is_one_error(tiny_model, wrong):
    with pytest.raises(PromptError, match="expected"):
        WRONG[wrong](tiny_model)


def test_an_answer_never_leaves_its_turn(tiny_model):
    """Marks of turns among an answer's ids, from a model or a file, end it there."""
    words = tiny_model.tokenizer
    ids = [words.first_audio_code, words.bot, *words.encode("system"), words.eot]
    talk = Conversation("s").ask("q").say_tokens(ids).ask("r")
    answered = Conversation("s").ask("q").answer(forced(tiny_model, ids), spoken=True).ask("r")
    assert talk.tokens(tiny_model) == answered.tokens(tiny_model)
    assert list(talk.tokens(tiny_model)).count(words.bot) == 5
    assert Turn(Role.HUMAN, ("q",)) in talk.turns


def test_a_stream_gives_the_same_answer_or_nothing(tiny_model):
    asked = Conversation("s").ask(QUESTION)
    steps = asked.stream(tiny_model, **GREEDY)
    with pytest.raises(PromptError, match="not ended"):
        _ = steps.conversation
    tokens = [step.token for step in steps]
    whole = asked.answer(tiny_model, **GREEDY)
    found = whole.last.generation.tokens
    assert steps.conversation == whole and tuple(tokens[: len(found)]) == found
    left = asked.stream(tiny_model, **GREEDY)
    next(iter(left))
    with pytest.raises(PromptError, match="not ended"):
        _ = left.conversation
    with pytest.raises(DecodeError, match="unknown option"):
        asked.stream(tiny_model, temprature=1)
