"""Ctrl-C in the middle of the work, and odd files in every place that takes one."""

import json
import os
import signal
import subprocess
import sys

import pytest
import soundfile as sf
import tiny
from commands import one_line, table

from stepaudio.experiments.store import read_store

MANY = 300  # more than are done before the signal comes


def interrupted(checkpoint, *argv, after):
    """(status, stdout, stderr) of a command that is interrupted once `after` holds of its process."""
    words = [sys.executable, "-m", "stepaudio", *map(str, argv)]
    environment = {**os.environ, "STEPAUDIO_CHECKPOINT": str(checkpoint)}
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    first = after(process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    return process.returncode, first + out, err


def test_scores_before_ctrl_c_are_printed(tiny_checkpoint, wav, tmp_path):
    path = table(tmp_path, "file\ttext\n" + f"{wav}\tx\n" * MANY)
    words = ("evaluate", path, "--batch", "1")
    status, out, err = interrupted(tiny_checkpoint, *words, after=lambda process: process.stdout.readline())
    assert status == 130 and one_line(err) == "stepaudio: interrupted"
    found = [json.loads(line) for line in out.splitlines()]
    assert 0 < len(found) < MANY and all("hypothesis" in row for row in found)


def test_transcripts_before_ctrl_c_are_kept_whole(tiny_checkpoint, tmp_path):
    files = [tmp_path / f"{n}.wav" for n in range(MANY)]
    for file in files:
        sf.write(file, tiny.noise(0.5), tiny.RATE)
    out = tmp_path / "out"
    out.mkdir()

    def one_is_there(process):
        while process.poll() is None and not (out / "0.json").exists():
            pass
        return ""

    status, _, err = interrupted(tiny_checkpoint, "transcribe", *files, "-o", out, after=one_is_there)
    assert status == 130 and one_line(err) == "stepaudio: interrupted"
    left = sorted(os.listdir(out))
    assert 0 < len(left) < MANY and all("text" in json.loads((out / name).read_text()) for name in left)
    assert not [name for name in left if name.startswith(".")]


def test_sound_that_was_not_finished_leaves_nothing(speaking_checkpoint, wav, tmp_path):
    codes, out = tmp_path / "codes.txt", tmp_path / "out"
    codes.write_text(" ".join(str(n % 80) for n in range(20_000)))
    out.mkdir()

    def it_is_being_written(process):
        while process.poll() is None and not os.listdir(out):
            pass
        return ""

    words = ("say-codes", codes, "-o", out / "sound.wav", "--voice", wav, "--stream")
    status, _, err = interrupted(speaking_checkpoint, *words, after=it_is_being_written)
    assert status == 130 and err.splitlines()[-1] == "stepaudio: interrupted" and not os.listdir(out)
    assert "Traceback" not in err  # of the gain there was a warning


def test_rows_before_ctrl_c_are_kept_and_the_sweep_goes_on(tiny_checkpoint, wav, tmp_path):
    grid, store = tmp_path / "grid.json", tmp_path / "out" / "s.jsonl"
    clips, settings = [{"file": str(wav), "text": "x"}], {"a": {"max_tokens": 3}}
    grid.write_text(json.dumps({"model": str(tiny_checkpoint), "clips": clips, "seeds": list(range(MANY)),
                                "settings": settings}))  # fmt: skip
    store.parent.mkdir()

    def some_are_there(process):
        while process.poll() is None and not (store.exists() and store.read_bytes().count(b"\n") > 2):
            pass
        return ""

    status, _, err = interrupted(tiny_checkpoint, "sweep", grid, "-o", store, after=some_are_there)
    assert status == 130 and one_line(err) == "stepaudio: interrupted" and os.listdir(store.parent) == [store.name]
    assert 2 < len(read_store(store).rows) < MANY


ODD = {"a folder": ".", "missing": "none.x", "empty": "empty.x", "a glob": "*.nothing", "binary": "binary.x"}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("words", [
    ["transcribe", "{}"], ["evaluate", "{}"], ["sweep", "{}", "-o", "s.jsonl"], ["weights", "{}"], ["convert", "{}"],
    ["verify", "{}"], ["say-codes", "{}", "-o", "o.wav"], ["bench", "--manifest", "{}"],
    ["respond", "{}", "-o", "o.wav"],
], ids=lambda words: words[0])  # fmt: skip
def test_an_odd_file_is_one_line(run, tmp_path, monkeypatch, words, odd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.x").touch()
    (tmp_path / "binary.x").write_bytes(bytes(range(256)) * 8)
    status, out, err = run(*(word.format(ODD[odd]) for word in words))
    assert status == (1 if words[0] == "transcribe" else 2)
    assert not {"o.wav", "s.jsonl"} & set(os.listdir(tmp_path))
    if words[0] == "weights":  # what is wrong with a checkpoint is its report
        assert not err and out[0].endswith("unreadable") and len(out) == 2
    else:
        assert len(one_line(err)) < 1000
