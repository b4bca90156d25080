"""The speaking verbs from the command line to the file, on a tiny random model with a tiny token2wav."""

import io
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile as sf
import tiny

from stepaudio.cli.main import main
from stepaudio.decoding.options import DecodingOptions
from stepaudio.decoding.sampling import Penalties, Sampling
from stepaudio.model import StepAudio2
from stepaudio.models.token2wav.flow import FlowOptions
from stepaudio.speech_model import SpeechModel, SpeechOptions
from stepaudio.synthesis.streaming import StreamOptions

QUICK = ["--steps", "2"]
RUN = ["--max-tokens", "60", "--seed", "4", *QUICK]
TEXT = "the cat sat on the mat."


@pytest.fixture
def run(capfd, speaking_checkpoint, monkeypatch, tmp_path):
    """Exit status, stdout, stderr of one command on the tiny model, in a folder of its own with a clip in it."""
    monkeypatch.setenv("STEPAUDIO_CHECKPOINT", str(speaking_checkpoint))
    monkeypatch.chdir(tmp_path)
    sf.write("clip.wav", tiny.noise(2), 16_000, subtype="FLOAT")

    def call(*argv):
        status = main([str(a) for a in argv])
        out, err = capfd.readouterr()
        return status, out, err

    return call


@pytest.fixture(scope="module")
def model(speaking_checkpoint) -> SpeechModel:
    return SpeechModel.load(speaking_checkpoint)


def options(**changes) -> SpeechOptions:
    sampling = Sampling.reference("chat").override({"seed": 4})
    return SpeechOptions(
        DecodingOptions(sampling, max_tokens=60), seed=4, voicing=StreamOptions(FlowOptions(2)), **changes
    )


def one_line(err: str) -> str:
    lines = err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("stepaudio: ") and "Traceback" not in err
    return lines[0]


# ---- what comes out ----


def test_speak(run, model):
    status, out, err = run("speak", TEXT, "-o", "a.wav", "--voice", "clip.wav", *RUN)
    report, voice = json.loads(out), model.synthesizer.voice(tiny.noise(2))
    want = model.synthesize(TEXT, voice, options())
    found, rate = sf.read("a.wav")
    assert (status, err, rate) == (0, "", 24_000) and np.abs(found - want.wave).max() <= 2**-15
    assert report["file"] == "a.wav" and report["text"] == want.text and report["codes"] == want.n_codes > 0
    assert report["voice"] == voice.key and report["stop"] == [a.stop for a in want.answers] and report["padding"] == 0
    assert report["seconds"] == len(found) / rate
    assert 0 < report["first_token_seconds"] < report["first_sound_seconds"] <= report["wall_seconds"]


def test_speak_as_a_stream(run, model):
    status, out, err = run("speak", TEXT, "-o", "a.f32.wav", "--voice", "clip.wav", "--stream", *RUN)
    chunks = model.stream(model.reading(TEXT), tiny.noise(2), options())
    want = np.concatenate([c.wave for c in chunks])
    assert (status, err) == (0, "") and np.array_equal(sf.read("a.f32.wav", dtype="float32")[0], want)
    assert json.loads(out)["first_sound_seconds"] > 0


@pytest.mark.filterwarnings("default::UserWarning")
def test_a_stream_into_16_bits_is_quieter_and_says_so(run):
    status, _, err = run("speak", TEXT, "-o", "a.wav", "--stream", *RUN)
    assert status == 0 and "warning: a.wav: sound may reach 1.069" in err and "-0.6 dB" in err
    assert run("speak", TEXT, "-o", "a.wav", "--stream", "--cross-fade", "even", *RUN)[2] == ""


def test_raw_floats_on_standard_output(run, model, speaking_checkpoint):
    done = subprocess.run(
        [sys.executable, "-m", "stepaudio", "speak", TEXT, "-o", "-", "--voice", "clip.wav", *RUN],
        capture_output=True,
        cwd=Path.cwd(),
        timeout=120,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    want = model.synthesize(TEXT, tiny.noise(2), options()).wave
    assert done.returncode == 0 and np.array_equal(np.frombuffer(done.stdout, "<f4"), want)
    assert json.loads(done.stderr)["file"] == "-"


@pytest.mark.parametrize("option", [["--noise", "position"], ["--cross-fade", "even"]])
def test_what_is_of_a_stream_is_refused_without_one(run, option):
    status, out, err = run("speak", TEXT, "-o", "a.wav", *option, *RUN)
    assert (status, out) == (2, "") and f"{option[0]}: is of --stream" in one_line(err)


def test_a_text_that_the_model_cannot_read_is_refused(run, speaking_checkpoint, tmp_path):
    status, out, err = run("speak", "?! ...", "-o", "a.wav", *RUN)
    assert (status, out) == (2, "") and "text to read: expected words" in one_line(err)
    english = tmp_path / "copy"
    english.mkdir()
    for entry in speaking_checkpoint.iterdir():
        (english / entry.name).symlink_to(entry)
    (english / "capabilities.json").write_text('{"languages": ["en"]}')
    status, out, err = run("speak", "good day, \u4f60\u597d", "-o", "a.wav", *RUN, "--model", str(english))
    assert (status, out) == (2, "") and "'\u4f60\u597d' are no letters of en" in one_line(err)
    assert run("speak", "caf\u00e9", "-o", "a.wav", *RUN, "--model", str(english))[0] in (0, 1)


@pytest.mark.filterwarnings("default")
def test_digits_and_symbols_are_warned_of_where_a_model_reads_words_alone(run, speaking_checkpoint, tmp_path):
    plain = tmp_path / "copy"
    plain.mkdir()
    for entry in speaking_checkpoint.iterdir():
        (plain / entry.name).symlink_to(entry)
    argv = ("-o", "a.wav", "--force", *RUN, "--model", str(plain))
    for content, text, warned in (
        ('{"words_only": true}', "123 and $5", "'123$5'"),
        ('{"words_only": true}', "It's good, isn't it?", ""),
        ("{}", "123 and $5", ""),
    ):
        (plain / "capabilities.json").write_text(content)
        status, _, err = run("speak", text, *argv)
        assert status in (0, 1) and err.count("warning: this model reads words alone") == bool(warned) and warned in err


@pytest.mark.parametrize("text", ["[1, 2, 6561, 3]", "1 2 6655\n3\n"])
def test_say_codes(run, model, text):
    Path("codes").write_text(text)
    status, out, err = run("say-codes", "codes", "-o", "a.f32.wav", "--voice", "clip.wav", *QUICK)
    want = model.synthesizer.decode([1, 2, 3], model.synthesizer.voice(tiny.noise(2)), options=FlowOptions(2))
    assert (status, err) == (0, "") and np.array_equal(sf.read("a.f32.wav", dtype="float32")[0], want.wave)
    assert (json.loads(out)["codes"], json.loads(out)["padding"]) == (3, 1)
    streamed = json.loads(run("say-codes", "codes", "-o", "b.f32.wav", "--stream", *QUICK)[1])
    assert (streamed["codes"], streamed["padding"], streamed["seconds"]) == (3, 1, 0.12)


def test_codes_that_are_padding_alone(run):
    Path("codes").write_text("6561 6600")
    for flags in ([], ["--stream"]):
        status, out, err = run("say-codes", "codes", "-o", "a.wav", *flags)
        report = json.loads(out)
        assert status == 1 and (report["file"], report["codes"], report["padding"]) == (None, 0, 2)
        assert "no sound" in one_line(err) and not Path("a.wav").exists()


def test_a_saved_voice(run, model):
    model.synthesizer.voice("clip.wav").save("v.safetensors")
    Path("codes").write_text("1 2 3")
    clip, saved = (
        json.loads(run("say-codes", "codes", "-o", "a.wav", "--voice", v, *QUICK)[1])
        for v in ("clip.wav", "v.safetensors")
    )
    assert (
        clip["voice"] == saved["voice"]
        and clip["voice"] != json.loads(run("say-codes", "codes", "-o", "a.wav", *QUICK)[1])["voice"]
    )


def test_respond_and_translate(run, model):
    answer = model.respond("clip.wav", "clip.wav", options())
    report = json.loads(run("respond", "clip.wav", "-o", "a.wav", "--voice", "clip.wav", *RUN)[1])
    assert (report["codes"], report["text"]) == (answer.n_codes, answer.text)
    aloud = model.translate_speech("clip.wav", "clip.wav", "en", options())
    report = json.loads(run("translate", "clip.wav", "--to", "en", "-o", "a.wav", "--voice", "clip.wav", *RUN)[1])
    assert (report["codes"], report["text"]) == (aloud.n_codes, aloud.text)
    written = model.translate(
        "clip.wav", "zh", SpeechOptions(DecodingOptions(Sampling.reference("translate"), max_tokens=9))
    )
    status, out, err = run("translate", "clip.wav", "--max-tokens", "9")
    found = json.loads(out)
    assert (
        (status, err) == (0, "")
        and found.pop("first_token_seconds") > 0
        and found
        == {
            "file": "clip.wav",
            "to": "zh",
            "text": written.text.strip(),
            "stop": written.stop,
        }
    )
    assert run("translate", "clip.wav", "--text", "--max-tokens", "9")[1].strip() == written.text.strip()


def test_a_question_from_standard_input(run, monkeypatch):
    want = json.loads(run("respond", "clip.wav", "-o", "a.wav", "--voice", "clip.wav", *RUN)[1])
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(Path("clip.wav").read_bytes())))
    found = json.loads(run("respond", "-", "-o", "b.wav", "--voice", "clip.wav", *RUN)[1])
    assert (found["codes"], found["text"]) == (want["codes"], want["text"])
    assert Path("a.wav").read_bytes() == Path("b.wav").read_bytes()


def test_options_of_decoding_reach_the_answer(run, model):
    decoding = ["--sampling", "greedy", "--no-repeat-ngram", "2", "--max-tokens", "30"]
    found = json.loads(run("translate", "clip.wav", *decoding)[1])
    penalties = Penalties(no_repeat_ngram=2)
    sampling = Sampling.greedy().override({"text": penalties, "audio": penalties})
    want = model.translate("clip.wav", "zh", SpeechOptions(DecodingOptions(sampling, max_tokens=30)))
    assert found["text"] == (want.text or "").strip()


# ---- what is refused, in one line, with nothing written ----


@pytest.mark.parametrize(("argv", "message"), [
    (["speak", ""], "text to read"), (["speak", "<|EOT|>"], "'<|EOT|>' in it is a token"),
    (["speak", TEXT, "--voice", "none.wav"], "--voice none.wav: no such file"),
    (["speak", TEXT, "--voice", "text.wav"], "text.wav: is not audio"),
    (["speak", TEXT, "--voice", "quiet.wav"], "is silent"),
    (["speak", TEXT, "--steps", "0"], "n_steps"), (["speak", TEXT, "--seed", "-1"], "seed"),
    (["speak", TEXT, "--max-tokens", "0"], "max_tokens"), (["respond", "none.wav"], "none.wav: no such file"),
    (["respond", "text.wav"], "is not audio"), (["translate", "text.wav"], "is not audio"),
    (["translate", "clip.wav", "--text"], "--text"), (["say-codes", "none"], "none: no such file"),
    (["say-codes", "text.wav"], "expected whole numbers"), (["say-codes", "empty"], "holds no codes"),
    (["say-codes", "odd"], "whole numbers, found 2.5"), (["say-codes", "high"], "audio code 81 is outside"),
])  # fmt: skip
def test_bad_input(run, argv, message):
    for name, text in (("text.wav", "no sound"), ("empty", " "), ("odd", "[1, 2.5]"), ("high", "1 81")):
        Path(name).write_text(text)
    sf.write("quiet.wav", np.zeros(32_000), 16_000)
    status, out, err = run(*argv, "-o", "a.wav")
    assert (status, out) == (2, "") and message in one_line(err)
    assert not Path("a.wav").exists() and not list(Path().glob(".*"))


@pytest.mark.parametrize(("argv", "message"), [
    (["speak", TEXT, "-o", "a.txt"], "suffix"), (["speak", TEXT, "-o", "no/a.wav"], "no such folder"),
    (["respond", "none.wav", "-o", "a.wav"], "none.wav"), (["translate", "none.wav"], "none.wav"),
    (["speak", TEXT, "-o", "a.wav", "--voice", "none.wav"], "none.wav"),
])  # fmt: skip
def test_files_that_cannot_be_used_are_reported_before_the_model_is_read(run, argv, message, monkeypatch):
    monkeypatch.setattr(SpeechModel, "load", lambda *a, **k: pytest.fail("the model was read"))
    status, _, err = run(*argv)
    assert status == 2 and message in one_line(err)


def test_a_stream_needs_somewhere_to_go(run):
    status, _, err = run("translate", "clip.wav", "--stream")
    assert status == 2 and "without -o" in one_line(err)


def test_what_the_bundled_model_was_not_trained_for(run, nano, monkeypatch):
    """It says so, before it is read, with a status that is not 0."""
    monkeypatch.setattr(StepAudio2, "load", lambda *a, **k: pytest.fail("the model was read"))
    for argv in (["translate", "clip.wav"], ["translate", "clip.wav", "-o", "a.wav"]):
        status, out, err = run(*argv, "--model", nano)
        assert (status, out) == (2, "") and "this model cannot translate: it was trained to transcribe" in one_line(err)


def test_the_bundled_model_reads_aloud_and_says_again(run, nano):
    """What it says is what was asked for, to a model's ears; of an answer that is none a warning is printed."""
    said, clip = "please read the second page again a little more slowly", nano.parent / "speech" / "free_nicole.flac"
    listens = StepAudio2.load(nano)
    for verb, arguments, warned in (("speak", [said], False), ("respond", [clip, "--stream"], True)):
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            status, out, err = run(verb, *arguments, "-o", "a.f32.wav", "--steps", "4", "--model", nano)
        report, heard = json.loads(out), listens.transcribe("a.f32.wav", sampling="reference").text
        assert status == 0 and report["stop"] == ["eos"] and report["codes"] > 50, err
        assert len(set(heard.split()) & set(said.split())) >= 5, heard
        assert ("this model does not answer a recording: it says again" in err) == warned


def test_a_model_without_token2wav_says_what_to_do(run, tiny_checkpoint):
    for argv in (["speak", TEXT], ["respond", "clip.wav"], ["translate", "clip.wav"]):
        status, _, err = run(*argv, "-o", "a.wav", "--model", tiny_checkpoint)
        assert status == 2 and "no token2wav" in one_line(err) and "stepaudio convert" in err
    assert run("translate", "clip.wav", "--max-tokens", "3", "--model", tiny_checkpoint)[0] == 0  # text needs none
