"""Language model and token2wav together, on tiny random nets: prompts, records, streams, refusals."""

import json
from dataclasses import replace
from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest
import tiny

from stepaudio import speech_model
from stepaudio.decoding.options import DecodingOptions
from stepaudio.decoding.outputs import Generation
from stepaudio.decoding.sampling import Sampling
from stepaudio.errors import AudioError, PromptError, WeightsError
from stepaudio.models.token2wav.flow import FlowOptions
from stepaudio.speech_model import SpeechModel, SpeechOptions, Spoken
from stepaudio.synthesis.streaming import StreamOptions
from stepaudio.text.chat_template import Message, build_prompt
from stepaudio.text.prompts import (
    LANGUAGES,
    READ_ALOUD,
    S2ST_SYSTEM,
    S2TT_SYSTEM_ZH,
    open_answer,
    reading_turns,
    spoken_turn,
    translation_turns,
)
from stepaudio.text.tokenizer import Tokenizer

TEXT = "the cat sat on the mat. what is the time now?"
QUICK = StreamOptions(FlowOptions(2))
LONG = SpeechOptions(DecodingOptions(Sampling(temperature=1.5, seed=3), max_tokens=90), voicing=QUICK)
SHORT = SpeechOptions(DecodingOptions(Sampling.reference("chat"), max_tokens=6))


@pytest.fixture(scope="module")
def model(speaking_checkpoint) -> SpeechModel:
    return SpeechModel.load(speaking_checkpoint)


# ---- prompts ----


def test_prompts_are_those_of_the_examples(goldens, shared):
    """Translation to the id; for reading aloud, the instruction, the text and the mark of the base model's example."""
    words = Tokenizer.from_folder(shared / "Step-Audio-2-mini")
    chats = {c["name"]: c for c in json.loads((goldens / "tokenizer_pairs.json").read_text())["chats"]}
    for name, spoken in (("s2tt", False), ("s2st", True)):
        assert list(build_prompt(translation_turns(spoken=spoken), words, [[47]]).tokens) == chats[name]["ids"]
    instruction, text = chats["base_tts"]["messages"]
    tokens = build_prompt(reading_turns(text.removesuffix("<tts_start>"), words), words).tokens
    said = [i for i in tokens if i in chats["base_tts"]["ids"]]
    assert said == words.encode(instruction) + chats["base_tts"]["ids"][len(words.encode(instruction)) :]


def test_a_second_question_follows_the_spoken_answer(goldens, shared, model):
    """The history of the example of two spoken turns, to the id; and a model takes its own answer back."""
    words = Tokenizer.from_folder(shared / "Step-Audio-2-mini")
    chats = {c["name"]: c for c in json.loads((goldens / "tokenizer_pairs.json").read_text())["chats"]}
    recorded = chats["multi_turn_aqaa_round2"]
    system, first, answer, second, opened = recorded["messages"]
    history = [
        system,
        audio_message(first),
        spoken_turn(answer["content"][1]["token"]),
        audio_message(second),
        open_answer(True),
    ]
    assert opened["content"] == "<tts_start>"
    assert list(build_prompt(history, words, [[n] for n in recorded["audio_tokens"]]).tokens) == recorded["ids"]
    said = model.model.generate_audio_tokens([Message("human", "what?")], max_tokens=9).tokens
    again = [Message("human", "what?"), spoken_turn(said), Message("human", "why?"), open_answer(True)]
    tokens = model.model.request(again).tokens
    assert any(tuple(tokens[i : i + len(said)]) == said for i in range(len(tokens)))


def audio_message(turn: dict) -> Message:
    """A turn of the goldens whose recording is not needed."""
    return Message(turn["role"], [{"type": "audio"}])


def test_other_languages_exchange_one_word():
    for to, name in LANGUAGES.items():
        texts = [translation_turns(to, spoken)[0].content for spoken in (False, True)]
        assert texts == [S2TT_SYSTEM_ZH.replace("中文", name), S2ST_SYSTEM.replace("中文", name)]
    with pytest.raises(PromptError, match="zh, en, ja"):
        translation_turns("tlh")


def test_the_model_is_asked_what_the_verbs_say(model):
    audio = tiny.noise(1)
    human, answer = Message("human", [{"type": "audio", "audio": audio}]), Message("assistant", "<tts_start>", False)
    assert model.question(audio, "Hm.") == [Message("system", "Hm."), human, answer]
    assert model.translation(audio, "en")[0].content == translation_turns("en", True)[0].content
    prompts = model.reading(TEXT, SpeechOptions(max_characters=25))
    assert prompts == [[Message("system", READ_ALOUD), Message("human", piece), answer]
                        for piece in ("the cat sat on the mat.", "what is the time now?")]  # fmt: skip


@pytest.mark.parametrize("text", ["", " \n", None, "say <|EOT|> now", "<audio_3>", "a <tool_call> b"])
def test_texts_that_cannot_be_read(model, voices, text):
    with pytest.raises(PromptError, match="text to read"):
        model.synthesize(text, voices[0])


# ---- records ----


def test_a_text_is_read_piece_by_piece(model, synthesizer, voices):
    options = replace(LONG, max_characters=25, seed=5)
    found = model.synthesize(TEXT, voices[0], options)
    assert len(found.answers) == len(found.sounds) == 2 and found.kind == "spoken" and found.sample_rate == 24_000
    for answer, sound, messages in zip(found.answers, found.sounds, model.reading(TEXT, options), strict=True):
        assert answer == model.model.generate_with_audio(messages, options=LONG.decoding)
        again = synthesizer.decode(answer.codes, voices[0], noise=5, source_noise=5, options=QUICK.flow)
        assert np.array_equal(sound.wave, again.wave) and sound.n_codes == len(answer.codes)
    assert len(found.wave) == 960 * found.n_codes > 0 and found.n_padding == 0
    assert all((a.text or "").strip() in found.text for a in found.answers)


def test_respond_and_translate(model, voices):
    audio = tiny.noise(1)
    spoken = model.respond(audio, voices[0], LONG)
    assert spoken.answers[0] == model.model.generate_with_audio(model.question(audio), options=LONG.decoding)
    assert len(spoken.wave) == 960 * len(spoken.answers[0].codes)
    aloud = model.translate_speech(audio, voices[0], "en", LONG)
    assert aloud.answers[0].tokens != spoken.answers[0].tokens
    written = model.translate(audio, "zh", SHORT)
    assert written.codes == () and written == model.translate(audio, "zh", SHORT) and len(written.tokens) <= 6


def muted(model: SpeechModel) -> SpeechModel:
    """The same with a head that cannot say a code: only tokens below <audio_start> keep their weights."""
    import mlx.core as mx

    deaf = SpeechModel.load(model.model.report.path)
    head = np.array(deaf.model.net.lm_head.weight)
    head[deaf.model.tokenizer.text_limit :] = 0  # logit 0, never the largest of the others
    deaf.model.net.lm_head.weight = mx.array(head)
    return deaf


def test_an_answer_without_codes_is_a_record(model, voices):
    """Whole and streamed: no sound, and no failure."""
    quiet, greedy = muted(model), SpeechOptions(DecodingOptions(Sampling.greedy(), max_tokens=8), voicing=QUICK)
    found = quiet.respond(tiny.noise(1), voices[0], greedy)
    assert (found.kind, found.wave.shape, found.n_codes) == ("text", (0,), 0) and found.text
    chunks = list(quiet.stream([quiet.question(tiny.noise(1))], voices[0], greedy))
    assert len(chunks) == 1 and chunks[0].answer == found.answers[0] and chunks[0].wave.size == 0
    assert chunks[0].text == found.answers[0].text
    assert found.first_sound_seconds is None and SpeechModel.speak(quiet, [], voices[0]).kind == "empty"


def test_one_spoken_answer_is_speech(model, voices):
    """Among answers in text; the texts are joined, the sounds too."""
    answers = [Generation((), text, codes, "eos", 0.0) for text, codes in ((" a ", ()), ("b", (1, 2)), ("", ()))]
    sounds = [model.synthesizer.decode(a.codes, voices[0], options=QUICK.flow) for a in answers]
    found = Spoken(tuple(answers), tuple(sounds), 24_000)
    assert (found.kind, found.text, found.n_codes) == ("spoken", "a b", 2)
    assert np.array_equal(found.wave, sounds[1].wave) and found.wave.size == 1920


# ---- streams ----


def test_a_stream_says_what_the_whole_says(model, synthesizer, voices):
    """The same tokens and text; and as sound, what the synthesizer makes of these codes as a stream."""
    options = replace(LONG, max_characters=25, seed=2)
    conversations = model.reading(TEXT, options)
    chunks = list(model.stream(conversations, voices[1], options))
    answers = [c.answer for c in chunks if c.answer]
    assert answers == list(model.speak(conversations, voices[1], options).answers)
    assert "".join(c.text for c in chunks) == "".join(a.text for a in answers)
    streams = [synthesizer.stream(a.codes, voices[1], noise=2, source_noise=2, options=QUICK) for a in answers]
    want = np.concatenate([c.wave for s in streams for c in s])
    assert np.array_equal(np.concatenate([c.wave for c in chunks]), want)


def test_when_the_first_token_and_the_first_sound_came(model, voices, monkeypatch):
    """By a clock that counts how often it is read: what came is what ended its wait."""
    conversations = model.reading("the cat", LONG)
    monkeypatch.setattr(speech_model, "time", SimpleNamespace(perf_counter=count(10).__next__))
    spoken = model.speak(conversations, voices[0], LONG)
    assert spoken.first_sound_seconds == 1 and spoken.answers[0].first_token_seconds > 0
    assert model.speak([], voices[0], LONG).first_sound_seconds is None
    chunks = list(model.stream(conversations, voices[0], LONG))
    assert len(chunks) > 1 and [c.seconds for c in chunks] == list(range(1, len(chunks) + 1))
    monkeypatch.undo()
    waits = [c.seconds for c in model.synthesizer.stream(range(60), voices[0], options=QUICK)]
    assert len(waits) > 1 and waits[0] > 0 and waits == sorted(waits)


def test_two_conversations_through_one_model(model, voices):
    asked = [(model.reading("the cat", LONG), voices[0]), (model.reading("what time", LONG), voices[1])]
    alone = [[c.wave for c in model.stream(*a, LONG)] for a in asked]
    streams = [model.stream(*a, LONG) for a in asked]
    mixed = [[next(streams[0]).wave], [next(streams[1]).wave]]
    for own, stream in zip(mixed, streams, strict=True):
        own += [c.wave for c in stream]
    for a, b in zip(alone, mixed, strict=True):
        assert np.array_equal(np.concatenate(a), np.concatenate(b))


# ---- refusals ----


def test_without_its_speaking_half(tiny_checkpoint, voices):
    with pytest.raises(WeightsError, match="no token2wav"):
        SpeechModel.load(tiny_checkpoint)
    model = SpeechModel.load(tiny_checkpoint, speak=False)
    assert model.translate(tiny.noise(1), options=SHORT).codes == ()
    with pytest.raises(WeightsError, match="speak=True"):
        model.synthesize("the cat", voices[0])


def test_recordings_that_are_none(model, voices):
    for ask in (
        lambda: model.respond("none.wav", voices[0]),
        lambda: model.translate("none.wav"),
        lambda: model.synthesize("the cat", "none.wav"),
    ):
        with pytest.raises(AudioError, match="none.wav"):
            ask()
