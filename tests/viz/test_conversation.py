"""The chat widget without a browser: press a button, read what the conversation and the controls then hold."""

import html
import io
import re

import pytest
import soundfile
import tiny
from conversing import forced

from stepaudio.audio.save import save_audio
from stepaudio.checkpoints.capabilities import Capabilities
from stepaudio.conversation import Conversation
from stepaudio.errors import ConfigError, DecodeError
from stepaudio.evaluation.manifest import Clip
from stepaudio.interp.token2wav import interleaving
from stepaudio.resources import voice_clip
from stepaudio.speech_model import SpeechModel
from stepaudio.text.prompts import ASR_SYSTEM
from stepaudio.viz import chat, conversation

pyplot = pytest.importorskip("matplotlib.pyplot", reason="widgets need the extra `notebook`")
ipywidgets = pytest.importorskip("ipywidgets", reason="widgets need the extra `notebook`")
pyplot.switch_backend("Agg")


def parts(widget):
    yield widget
    for child in getattr(widget, "children", ()):
        yield from parts(child)


def control(found, name):
    return next(p for p in parts(found.box) if getattr(p, "description", None) == name)


def only(found, kind):
    (one,) = [p for p in parts(found.box) if type(p) is kind]
    return one


def shown(found):
    return html.unescape(
        re.sub("<[^>]+>", "\n", "".join(p.value for p in parts(found.box) if type(p) is ipywidgets.HTML))
    )


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    for name, seed in (("a.wav", 1), ("b.wav", 2)):
        save_audio(folder / name, tiny.noise(0.6, seed=seed))
    (folder / "broken.wav").write_bytes(b"no sound")
    return [Clip(folder / name, "") for name in ("a.wav", "b.wav", "broken.wav")]


@pytest.fixture
def model(speaking_checkpoint):
    return SpeechModel.load(speaking_checkpoint)


def spoken_ids(model, codes, words="cat"):
    """A text token or more, and codes."""
    tokenizer = model.model.tokenizer
    return [*tokenizer.encode(words), *(tokenizer.first_audio_code + code for code in codes)]


def test_a_spoken_answer_is_played_drawn_and_kept(model, clips, monkeypatch):
    codes = [5, 7, 0, 12, 39, 39]
    answering = model.altered(forced(model.model, spoken_ids(model, codes)))
    drawn, draw = [], conversation.interleaving
    monkeypatch.setattr(conversation, "interleaving", lambda found, title: drawn.append(found) or draw(found, title))
    voice = model.synthesizer.voice(voice_clip())
    found = chat(answering, clips=clips, voice=voice, max_tokens=40)
    assert len(found.conversation) == 1 and not bytes(only(found, ipywidgets.Audio).value)
    assert control(found, "clip").value == "a.wav" and control(found, "spoken answer").value
    before = pyplot.get_fignums()
    control(found, "ask").click()
    assert len(found.conversation) == 3, shown(found)
    assert found.conversation.last.codes == tuple(codes) and "6 audio codes" in shown(found)
    sound, rate = soundfile.read(io.BytesIO(bytes(only(found, ipywidgets.Audio).value)))
    again = model.synthesizer.decode(codes, voice, noise=0)
    assert rate == again.sample_rate and sound == pytest.approx(again.wave.clip(-1, 1), abs=1e-4)
    assert bytes(only(found, ipywidgets.Image).value).startswith(b"\x89PNG") and pyplot.get_fignums() == before
    (one,), generation = drawn, found.conversation.last.generation
    assert generation is not None
    assert (one.kinds == interleaving(generation).kinds).all() and (one.n_text, one.n_codes) == (1, 6)
    assert found._repr_mimebundle_()  # what a notebook shows


def test_turns_add_up_and_are_taken_back(model, clips):
    answering = model.altered(forced(model.model, *(model.model.tokenizer.encode(t) for t in ("cat", "mat", "sat"))))
    begun = Conversation("Be brief.").ask("the mat").say("yes")
    found = chat(answering, begun, clips=clips)
    control(found, "spoken answer").value = False
    assert control(found, "take back").disabled
    control(found, "text").value = "what <b>is</b> this"
    control(found, "ask").click()
    first = found.conversation
    assert not control(found, "take back").disabled
    assert [p if isinstance(p, str) else "sound" for p in first.turns[3].parts] == ["what <b>is</b> this", "sound"]
    assert first.fork(2) == begun and first.last.text.strip() == "cat" and "what <b>is</b> this" in shown(found)
    control(found, "clip").value, control(found, "text").value = conversation.NO_RECORDING, "and now"
    control(found, "ask").click()
    assert found.conversation.rewind() == first and found.conversation.turns[-2].parts == ("and now",)
    control(found, "take back").click()
    assert found.conversation == first and not control(found, "take back").disabled
    control(found, "take back").click()
    assert found.conversation == begun and control(found, "take back").disabled  # what it was given stays
    assert bytes(only(found, ipywidgets.Image).value) == b""


def test_what_fails_is_shown_and_changes_nothing(model, clips):
    found = chat(SpeechModel(forced(model.model, spoken_ids(model, [1, 2, 3]))), clips=clips)
    before = found.conversation
    control(found, "clip").value = "broken.wav"
    control(found, "ask").click()
    assert "This does not work" in shown(found) and "broken.wav" in shown(found) and found.conversation is before
    control(found, "clip").value = conversation.NO_RECORDING
    control(found, "ask").click()
    assert "expected a text or a recording" in shown(found) and found.conversation is before
    control(found, "clip").value = "b.wav"
    control(found, "ask").click()  # the answer has codes, and nothing makes sound of them
    assert "without its vocoder stack" in shown(found) and found.conversation is before
    assert control(found, "take back").disabled and "working" not in shown(found)


def test_a_model_that_repeats_says_so_in_the_widget(model, clips):
    able = Capabilities(tasks=("transcribe", "repeat", "speak"))
    engine = forced(model.model, model.model.tokenizer.encode("cat")).engine
    engine.capabilities = able
    found = chat(SpeechModel(type(model.model)(engine, model.model.report)), clips=clips)
    control(found, "ask").click()
    assert "it says again what is said there" in shown(found) and found.conversation.last.spoken
    writing = chat(SpeechModel(type(model.model)(engine, model.model.report)), Conversation(ASR_SYSTEM), clips=clips)
    assert not control(writing, "spoken answer").value


def test_bad_arguments_are_refused(model, clips):
    with pytest.raises(ConfigError, match="expected a SpeechModel"):
        chat(model.model, clips=clips)
    with pytest.raises(DecodeError, match="max_tokens"):
        chat(model, clips=clips, max_tokens=0)
