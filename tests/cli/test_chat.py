"""`stepaudio chat` from a pipe and from what looks like a terminal: answers, commands, interruption, devices."""

import io
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import adapters
import numpy as np
import pytest
import soundfile as sf
import tiny
from commands import FEW, as_process

import stepaudio
from stepaudio.cli import chat as chatting
from stepaudio.cli.main import main
from stepaudio.conversation import Conversation
from stepaudio.engine import Engine
from stepaudio.errors import BackendError
from stepaudio.text.prompts import ASR_SYSTEM

LINES = ["what is the time now", "the cat"]


@pytest.fixture
def hold(capsys, tiny_checkpoint, monkeypatch, tmp_path):
    """(status, stdout, stderr) of a chat on the tiny model that is given these lines, in a folder of its own."""
    monkeypatch.setenv("STEPAUDIO_CHECKPOINT", str(tiny_checkpoint))
    monkeypatch.chdir(tmp_path)
    sf.write("clip.wav", tiny.noise(1.5), 16_000, subtype="FLOAT")

    def call(lines, *argv, terminal=False):
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        monkeypatch.setattr(sys.stdin, "isatty", lambda: terminal, raising=False)
        if terminal:
            monkeypatch.setattr("builtins.input", lambda prompt: terminal_line())
        status = main(["chat", *FEW, *map(str, argv)])
        return (status, *capsys.readouterr())

    def terminal_line():
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line.rstrip("\n")

    return call


def by_hand(model, *questions, **more):
    talk = Conversation()
    for question in questions:
        parts = question if isinstance(question, tuple) else (question,)
        talk = talk.ask(*parts).answer(model, sampling="reference", max_tokens=6, **more)
    return talk


def test_lines_are_answered_as_in_python(hold, tiny_model):
    status, out, err = hold(LINES, "--history", "talk.zip")
    assert (status, err) == (0, "")
    wanted = by_hand(tiny_model, *LINES)
    assert Conversation.open("talk.zip") == wanted
    answers = [turn.text for turn in wanted.turns if turn.role == "answer"]
    assert out == "".join(f"{chatting.printable(text)}\n" for text in answers)
    more = hold(["why"], "--history", "talk.zip")
    assert more[0] == 0 and Conversation.open("talk.zip") == by_hand(tiny_model, *LINES, "why")


def test_a_pipe_and_a_recording(tiny_checkpoint, tiny_model, tmp_path):
    sf.write(tmp_path / "a b.wav", tiny.noise(1), 16_000, subtype="PCM_16")
    lines = f"/audio {tmp_path / 'a b.wav'}\n\n/why\n/history\n/quit\nnever asked\n"
    done = as_process(tiny_checkpoint, "chat", *FEW, "--history", tmp_path / "talk.zip", input=lines)
    assert (done.returncode, done.stderr) == (0, "")
    assert Conversation.open(tmp_path / "talk.zip") == by_hand(tiny_model, (tmp_path / "a b.wav",))
    assert "stop: " in done.stdout and "1.0 s of audio" in done.stdout and "never asked" not in done.stdout


def test_a_line_that_fails_is_one_message_and_the_others_go_on(hold):
    lines = ["/audio absent.wav", "/sing", "/voice me.wav", "/cache full x", "/save", "/open absent.zip", "/undo",
             "bad \udcff text", "hello", "/sampling best", "/save clip.wav"]  # fmt: skip
    status, out, err = hold(lines)
    messages = err.splitlines()
    assert status == 1 and len(messages) == 10 and all(m.startswith("stepaudio: ") for m in messages)
    assert "did you mean" in messages[1] or "/help" in messages[1]
    assert len(out.splitlines()) >= 1 and sf.info("clip.wav").frames == 24_000


def test_commands(hold, tiny_model):
    lines = [*LINES, "/undo", "/sampling greedy", "/cache window 64", "//not a command", "/save kept.zip", "/help",
             "/open kept.zip", "/history"]  # fmt: skip
    status, out, err = hold(lines)
    assert (status, err) == (0, "")
    saved = Conversation.open("kept.zip")
    assert [t.text for t in saved.turns if t.role == "human"] == [LINES[0], "/not a command"]
    again = saved.fork(3).answer(tiny_model, sampling="greedy", max_tokens=6, cache="window", max_cache_len=64)
    assert again == saved
    assert "positions of 64" in out and "Sampling(" in out and all(f"/{name}" in out for name in chatting.COMMANDS)


class Stubborn(Engine):
    """Its second answer is interrupted after two tokens, as by Ctrl-C."""

    runs = 0

    def steps(self, request, options, tap=None):
        Stubborn.runs += 1
        for step in super().steps(request, options, tap):
            if Stubborn.runs == 2 and step.index == 2:
                raise KeyboardInterrupt
            yield step


@pytest.mark.parametrize("terminal", [True, False])
def test_ctrl_c_keeps_the_history_whole(hold, tiny_model, monkeypatch, terminal):
    def stubborn(model, options):
        engine = model.engine
        model.engine = Stubborn(engine.net, engine.tokenizer, engine.pipeline, engine.capabilities)
        return model

    Stubborn.runs = 0
    monkeypatch.setattr(chatting, "with_draft", stubborn)
    monkeypatch.setattr(Engine, "altered", lambda self, *a, **b: self)
    status, _, err = hold([*LINES, "/undo" if terminal else "", "again"], "--history", "talk.zip", terminal=terminal)
    left = Conversation.open("talk.zip")
    if terminal:  # the second question is gone, then the first is taken back, and the third is answered
        assert status == 0 and "taken back" in err
        assert [t.text for t in left.turns if t.role == "human"] == ["again"]
    else:
        assert status == 130 and left == by_hand(tiny_model, LINES[0])


def test_what_cannot_be_is_refused_before_a_model_is_read(hold, monkeypatch, tmp_path):
    monkeypatch.setattr("stepaudio.model.StepAudio2.load", None)
    (tmp_path / "notes.zip").write_text("mine")
    for argv in (
        ["--history", "notes.zip"],
        ["--voice", "clip.wav"],
        ["-o", "absent"],
        ["--voice", "absent.wav", "-o", "."],
    ):
        status, out, err = hold([], *argv)
        assert status == 2 and out == "" and len(err.splitlines()) == 1, argv
    assert (tmp_path / "notes.zip").read_text() == "mine"


def test_text_cannot_steer_a_terminal():
    assert chatting.printable("a\x1b[2Jb\n\tc\x07") == "a\\x1b[2Jb\n\tc\\x07"


def test_a_model_that_only_transcribes_says_so(hold, tiny_checkpoint, tmp_path, monkeypatch):
    shutil.copytree(tiny_checkpoint, tmp_path / "recogniser")
    (tmp_path / "recogniser" / "capabilities.json").write_text('{"tasks": ["transcribe"]}')
    status, _, err = hold(["/audio clip.wav"], "--model", "recogniser", "--history", "talk.zip")
    assert status == 0 and err == f"stepaudio: {chatting.ONLY_TRANSCRIBES}\n"
    assert len(Conversation.open("talk.zip")) == 3
    status, out, err = hold(["hello"], "--model", "recogniser")
    assert (status, out.strip()) == (1, "") and "cannot respond: it was trained to transcribe" in err


def test_a_model_that_does_not_converse_reads_each_question_alone(hold, tiny_checkpoint, tiny_model):
    """Its answers are those to a first question; the history has them all, and one that converses reads it."""
    shutil.copytree(tiny_checkpoint, "recogniser")
    Path("recogniser", "capabilities.json").write_text('{"tasks": ["transcribe", "repeat"]}')
    sf.write("other.wav", tiny.noise(1, 3), 16_000, subtype="FLOAT")
    lines = ["/audio clip.wav", "/audio other.wav"]
    status, out, err = hold([*lines, "/cache"], "--model", "recogniser", "--history", "talk.zip")
    assert status == 0 and "read alone" in err and len(err.splitlines()) == 1
    talk = Conversation.open("talk.zip")
    alone = [Conversation(ASR_SYSTEM).ask(audio=f).answer(tiny_model, sampling="reference", max_tokens=6)
             for f in ("clip.wav", "other.wav")]  # fmt: skip
    assert talk.turns == (*alone[0].turns, *alone[1].turns[1:])
    assert out.endswith(f"{alone[1].context(tiny_model, sampling='reference', max_tokens=6)}\n")
    assert hold(["/undo"], "--model", "recogniser", "--history", "talk.zip")[0] == 0
    assert Conversation.open("talk.zip") == alone[0]
    assert hold(lines[1:], "--history", "talk.zip")[0] == 0
    assert Conversation.open("talk.zip") == alone[0].ask(audio="other.wav").answer(
        tiny_model, sampling="reference", max_tokens=6
    )
    Path("recogniser", "capabilities.json").write_text('{"tasks": ["speak"]}')
    assert chatting.NO_CONVERSATION in hold([], "--model", "recogniser")[2]


@pytest.fixture
def thinker(tiny_checkpoint, tmp_path):
    """The tiny model as one that thinks when asked to."""
    shutil.copytree(tiny_checkpoint, tmp_path / "thinker")
    able = '{"tasks": ["respond"], "thinking": "<think>\\n", "thinks_unasked": false}'
    (tmp_path / "thinker" / "capabilities.json").write_text(able)
    return tmp_path / "thinker"


def test_a_thought_is_asked_for_and_printed_above_its_answer(hold, thinker):
    lines = [LINES[0], "/think", LINES[0], "/why", "/think off", LINES[0]]
    status, out, err = hold(lines, "--model", thinker, "--history", "talk.zip")
    assert (status, err) == (0, "")
    wanted, model = Conversation(), stepaudio.load(thinker)
    for think in (False, True, False):
        wanted = wanted.ask(LINES[0]).answer(model, think=think, sampling="reference", max_tokens=6)
    answers = [turn for turn in wanted.turns if turn.role == "answer"]
    assert Conversation.open("talk.zip") == wanted and [bool(a.thought) for a in answers] == [False, True, False]
    texts = [chatting.printable(a.text) for a in answers]
    shown = chatting.thought_line(answers[1].thought, answers[1].thought_closed)
    assert out.startswith(f"{texts[0]}\n{shown}\n") and out.endswith(f"{shown}\n{texts[2]}\n")
    assert shown.startswith("thought") and out.count(shown) == 2  # above the answer, and of /why


def test_a_thought_is_dimmed_on_a_terminal(hold, thinker, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    out = hold(["/think on", LINES[0]], "--model", thinker)[1]
    assert out.startswith(f"{chatting.DIM}thought") and out.partition(chatting.PLAIN)[2].startswith("\n")


def test_a_model_that_does_not_think_refuses_to(hold, thinker):
    status, out, err = hold(["/think", "/think off", "/think maybe"])
    assert (status, out) == (1, "") and len(err.splitlines()) == 2
    assert "does not think aloud" in err.splitlines()[0] and "on or off, found 'maybe'" in err.splitlines()[1]
    (thinker / "capabilities.json").rename(thinker / "kept.json")
    adapters.write_mlx(thinker / "talk", adapters.pairs_of(adapters.layers_of(thinker)))
    (thinker / "kept.json").rename(thinker / "talk" / "capabilities.json")
    assert "add --lora talk" in hold(["/think"], "--model", thinker)[2]
    assert hold(["/think"], "--model", thinker, "--lora", "talk")[0] == 0


# ------------------------------------------------------------------------------- sound


class Devices(SimpleNamespace):
    """What `sounddevice` offers of it: a microphone with noise, a speaker that keeps what it is given."""

    class PortAudioError(Exception):
        pass

    played: ClassVar[list] = []

    class OutputStream:
        def __init__(self, rate, channels, dtype):
            self.rate = rate

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def write(self, wave):
            Devices.played.append(wave)

    class InputStream(OutputStream):
        def __init__(self, rate, channels, dtype, callback):
            assert rate == 16_000
            for start in range(0, 16_000, 1000):
                callback(tiny.noise(1)[start : start + 1000, None], 1000, None, None)


@pytest.fixture
def devices(monkeypatch):
    Devices.played = []
    monkeypatch.setitem(sys.modules, "sounddevice", Devices)
    return Devices


def test_a_microphone(hold, devices, tiny_model):
    status, _, err = hold(["", ""], "--mic", "--history", "talk.zip", terminal=True)
    assert status == 0 and "recording" in err
    assert Conversation.open("talk.zip") == by_hand(tiny_model, (tiny.noise(1),))


def test_answers_aloud(hold, devices, speaking_checkpoint, tmp_path):
    """Sound to a file and to the speaker is that of the whole answer's codes, streamed."""
    (tmp_path / "out").mkdir()
    words = ["--model", speaking_checkpoint, "--voice", "clip.wav", "-o", "out", "--play", "--seed", "4"]
    status, _, err = hold(["hello", "/voice off", "hello"], *words, "--max-tokens", "60", "--history", "talk.zip")
    assert (status, err) == (0, "")
    talk = Conversation.open("talk.zip")
    spoken, written = [t for t in talk.turns if t.role == "answer"]
    assert spoken.spoken and not written.spoken and spoken.codes
    wave, rate = sf.read("out/answer_1.wav", dtype="float32")
    assert rate == 24_000 and len(wave) == len(spoken.codes) * 960
    assert np.abs(np.concatenate(devices.played)[:, 0] - wave).max() < 1e-4
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["answer_1.wav"]


def test_no_devices_is_one_error(hold, monkeypatch):
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    status, _, err = hold([], "--mic")
    assert status == 2 and "pip install 'stepaudio[mic]'" in err and len(err.splitlines()) == 1
    with pytest.raises(BackendError):
        chatting.require_devices()
