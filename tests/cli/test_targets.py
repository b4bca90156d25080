"""Files that are there already: what a command reads, or could not have written, is still there afterwards."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import tiny
from commands import FEW, one_line

from stepaudio.errors import ConfigError
from stepaudio.model import StepAudio2
from stepaudio.targets import Target, check_targets

NOTES = b"an afternoon of work"


@pytest.fixture
def unread(monkeypatch):
    """Refusals come before the model is read."""
    monkeypatch.setattr(StepAudio2, "load", lambda *a, **k: pytest.fail("the model was read"))


@pytest.fixture
def grid(wav, tmp_path, tiny_checkpoint):
    """A grid of one run."""
    clips = [{"file": str(wav), "text": "lantern"}]
    grid = {"model": str(tiny_checkpoint), "clips": clips, "settings": {"a": {"max_tokens": 3}}}
    (tmp_path / "grid.json").write_text(json.dumps(grid))
    return tmp_path / "grid.json"


# ---- the rule, without a command ----


def check(path, *inputs, ours=lambda path: False, force=False):
    check_targets([Target("--output", path, "ours", ours)], inputs, force)


@pytest.mark.parametrize("link", [os.symlink, os.link, None])
def test_what_is_read_is_never_written_to(tmp_path, link):
    source, other = tmp_path / "in", tmp_path / "out"
    source.write_bytes(NOTES)
    if link:
        link(source, other)
    else:
        other = tmp_path / ".." / tmp_path.name / "in"
    for force in (False, True):
        with pytest.raises(ConfigError, match="is read by this command"):
            check(other, source, ours=lambda path: True, force=force)


def test_a_model_s_files_are_read(tmp_path):
    (tmp_path / "token2wav").mkdir()
    for name in ("config.json", "token2wav/flow.safetensors"):
        (tmp_path / name).write_bytes(NOTES)
        with pytest.raises(ConfigError, match="is read by this command"):
            check(tmp_path / name, tmp_path, force=True)
    check(tmp_path / "answer.wav", tmp_path)


def test_a_working_folder_that_was_deleted(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    (tmp_path / "there").write_bytes(NOTES)
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(ConfigError, match="the working folder was deleted"):
        check(Path("x.wav"), Path("a.wav"))
    check(tmp_path / "x.wav", Path("a.wav"), tmp_path / "there")


def test_only_ours_and_empty_files_are_replaced(tmp_path):
    check(tmp_path / "new")
    for data, refused in ((b"", False), (NOTES, True)):
        (tmp_path / "old").write_bytes(data)
        check(tmp_path / "old", force=True)
        check(tmp_path / "old", ours=lambda path: True)
        if refused:
            with pytest.raises(ConfigError, match="old: is there already and is not ours; .*--force"):
                check(tmp_path / "old")
        else:
            check(tmp_path / "old")


def test_two_outputs_are_two_files(tmp_path):
    pair = [Target("--a", tmp_path / "x", "a", bool), Target("--b", tmp_path / "." / "x", "b", bool)]
    with pytest.raises(ConfigError, match="--b .*the same file"):
        check_targets(pair, [])


def test_places_where_no_file_can_be(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to("nothing")
    for name, said in (("", "it is a folder"), ("no/x", "no such folder"), ("pipe", "no regular file"),
                       ("dangling", "a link to nothing"), ("n" * 300, "too long"), ("a\0b", "null")):  # fmt: skip
        with pytest.raises(ConfigError, match=f"cannot be written \\(.*{said}"):
            check(tmp_path / name)
    with pytest.raises(ConfigError, match="no regular file"):
        check(Path("/dev/null"), force=True)
    monkeypatch.setattr(os, "access", lambda *a: False)  # root may everything
    with pytest.raises(ConfigError, match="no permission"):
        check(tmp_path / "x")


# ---- by command ----


def refused(run, *argv, said="--force"):
    status, out, err = run(*argv)
    assert (status, out) in ((2, []), (2, "")) and said in one_line(err)


def test_sweep_leaves_other_files_alone(run, grid, wav, tmp_path, unread):
    for name in ("notes.md", "t.csv"):
        (tmp_path / name).write_bytes(NOTES)
    refused(run, "sweep", grid, "-o", tmp_path / "notes.md")
    refused(run, "sweep", grid, "-o", tmp_path / "s.jsonl", "--table", tmp_path / "t.csv")
    for force in ([], ["--force"]):
        for taken in (grid, wav):
            refused(run, "sweep", grid, "-o", taken, *force, said="is read by this command")
        same = ["sweep", grid, "-o", tmp_path / "s.csv", "--table", tmp_path / "s.csv"]
        refused(run, *same, *force, said="the same file")
    assert (tmp_path / "notes.md").read_bytes() == NOTES == (tmp_path / "t.csv").read_bytes()
    assert not (tmp_path / "s.jsonl").exists() and json.loads(grid.read_text())["settings"]


@pytest.mark.parametrize(("table", "said"), [
    ("no/t.csv", "no such folder"), ("t.xlsx", "written as .csv or .parquet"), ("t", "no suffix"), (".", "suffix"),
])  # fmt: skip
def test_a_table_that_cannot_be_is_refused_before_the_first_run(run, grid, tmp_path, unread, table, said):
    refused(run, "sweep", grid, "-o", tmp_path / "s.jsonl", "--table", tmp_path / table, said=said)
    assert not (tmp_path / "s.jsonl").exists()


def test_sweep_with_force_starts_a_store_and_then_adds_to_it(run, grid, tmp_path, monkeypatch):
    for name in ("s.jsonl", "t.csv"):
        (tmp_path / name).write_bytes(NOTES)
    command = ["sweep", grid, "-o", tmp_path / "s.jsonl", "--table", tmp_path / "t.csv", "--force"]
    assert run(*command)[0] == 0
    rows = (tmp_path / "s.jsonl").read_bytes()
    monkeypatch.setattr("stepaudio.experiments.sweep.transcribe_one", lambda *a: pytest.fail("run again"))
    assert run(*command)[0] == 0 and (tmp_path / "s.jsonl").read_bytes() == rows
    assert run(*command[:-1])[0] == 0  # both are known as ours


def test_a_manifest_of_a_grid_is_read(run, grid, tmp_path, unread):
    (tmp_path / "m.csv").write_text("file,text\na.wav,lantern\n")
    spec = json.loads(grid.read_text()) | {"clips": "m.csv"}
    grid.write_text(json.dumps(spec))
    command = ["sweep", grid, "-o", tmp_path / "s.jsonl", "--table", tmp_path / "m.csv", "--force"]
    refused(run, *command, said="is read by this command")
    assert (tmp_path / "m.csv").read_text().startswith("file")


@pytest.mark.parametrize("form", ["json", "text", "srt", "vtt", "tsv"])
def test_transcripts_replace_transcripts(run, wav, tmp_path, form):
    (out := tmp_path / "out").mkdir()
    command = ["transcribe", wav, "-o", out, "--format", form, *FEW]
    assert run(*command)[0] == 0
    (file,) = out.iterdir()
    written = file.read_bytes()
    if form == "text":  # a line of text is anybody's
        refused(run, *command)
        assert run(*command, "--force")[0] == 0
    else:
        assert run(*command)[0] == 0
    for data in (NOTES, b"\xff\xfe", b"{}", b"[" * 100_000, b"1\nnotes\n\n", b"WEBVTT\n\nNOTE mine\n", written + NOTES):
        file.write_bytes(data)
        refused(run, *command)
        assert file.read_bytes() == data


def test_a_transcript_named_as_a_file_of_the_model(run, tiny_checkpoint, tmp_path, unread):
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "model")
    sf.write(tmp_path / "config.wav", tiny.noise(1), 16_000)
    command = ["transcribe", tmp_path / "config.wav", "-o", folder, "--model", folder, "--force"]
    refused(run, *command, said="is read by this command")


SPEAK = ["speak", "the cat sat.", "-o", "a.wav", "--max-tokens", "60", "--seed", "4", "--steps", "2"]


def test_sound_replaces_sound_of_its_kind(run, speaking_checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = [*SPEAK, "--model", speaking_checkpoint]
    assert run(*command)[0] == 0 and run(*command)[0] == 0
    sf.write("a.wav", np.zeros(48_000), 48_000)
    recording = (tmp_path / "a.wav").read_bytes()
    for data in (recording, NOTES):
        (tmp_path / "a.wav").write_bytes(data)
        refused(run, *command)
        assert (tmp_path / "a.wav").read_bytes() == data
    sf.write("voice.wav", tiny.noise(2), 24_000)
    os.link("voice.wav", "b.wav")
    voice = (tmp_path / "voice.wav").read_bytes()
    for verb in (["speak", "the cat"], ["respond", "voice.wav"], ["translate", "b.wav"], ["say-codes", "voice.wav"]):
        more = [*verb, "-o", "b.wav", "--voice", "voice.wav", "--model", speaking_checkpoint, "--force"]
        refused(run, *more, said="is read by this command")
    assert (tmp_path / "voice.wav").read_bytes() == voice
    assert run(*command, "--force")[0] == 0 and sf.info("a.wav").samplerate == 24_000


def test_convert_leaves_other_files_alone(run, speaking_checkpoint, tmp_path):
    (tmp_path / "out").mkdir()
    file = tmp_path / "out" / "flow.safetensors"
    for name in ("config.json", "model.safetensors"):
        shutil.copy(speaking_checkpoint / name, tmp_path / "out")
    shutil.copy(speaking_checkpoint / "model.safetensors", file)
    before = file.read_bytes()
    command = ["convert", speaking_checkpoint, "--out", tmp_path / "out"]
    refused(run, *command)
    assert file.read_bytes() == before
    assert run(*command, "--force")[0] == 0 and file.read_bytes() != before
    (tmp_path / "out" / "converted.json").write_text("{}")
    refused(run, *command)
    (tmp_path / "out" / "converted.json").unlink()
    assert run(*command)[0] == 0  # weights that name their component are ours
