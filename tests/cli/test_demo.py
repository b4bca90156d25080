"""`demo`: a table of clips, a table of presets, on the tiny and on the bundled model."""

import re

import pytest
import soundfile as sf
from commands import one_line, table

from stepaudio import resources
from stepaudio.cli.demo import SENTENCE
from stepaudio.cli.main import main


def test_demo(run, wav, tmp_path, monkeypatch):
    for rows, status in (("a.wav\tyes\n", 0), ("a.wav\t\n", 0), ("none.wav\tyes\n", 1)):
        monkeypatch.setattr(resources, "speech_manifest", lambda rows=rows: table(tmp_path, "file\ttext\n" + rows))
        found, out, _ = run("demo")
        assert found == status and any(line.startswith("reference ") for line in out)
        assert any("wrote" in line or "failed" in line for line in out)
        assert out[-1] == "no sentence is read aloud: no converted token2wav lies beside the model"


SHORT = [
    "human_0880.flac", "free_george_8k.flac", "free_michael_44k_stereo.flac", "word_emma.flac", "silence.flac",
    "noise_pink.flac",
]  # fmt: skip


@pytest.mark.parametrize("names", [SHORT, pytest.param(None, marks=pytest.mark.slow)], ids=["short ones", "all"])
def test_demo_on_the_bundled_model(nano, capsys, monkeypatch, tmp_path, names):
    """Its recordings of every rate, number of channels and kind of sound."""
    monkeypatch.delenv("STEPAUDIO_CHECKPOINT", raising=False)
    whole = resources.speech_manifest()
    head, *rows = whole.read_text(encoding="utf-8").splitlines()
    rows = [f"{whole.parent}/{row}" for row in rows if names is None or row.split("\t")[0] in names]
    assert len(rows) == (19 if names is None else len(names))
    own = table(tmp_path, "\n".join([head, *rows, ""]))
    monkeypatch.setattr(resources, "speech_manifest", lambda: own if names else whole)
    assert main(["demo", "-o", str(tmp_path / "a.flac")]) == 0
    out = capsys.readouterr().out
    assert len(re.findall(r"^\S+\.flac +\d+\.\d s +\d+\.\d\d s +\d+ of \d+$", out, re.M)) == len(rows)
    assert re.search(rf"^reference +\d+\.\d% +\d\.\d{{3}} +\d+ of {len(rows)}$", out, re.M)
    read = re.search(
        r"^read aloud into .*a\.flac: (\d+\.\d) s of sound in .* s; (\d+) of (\d+) words wrong$", out, re.M
    )
    assert read and int(read[3]) == len(SENTENCE.split()) and int(read[2]) <= 2
    found = sf.info(tmp_path / "a.flac")
    assert found.samplerate == 24_000 and abs(found.duration - float(read[1])) < 0.06


def test_a_file_that_is_no_sound_is_kept_and_found_before_the_work(nano, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("STEPAUDIO_CHECKPOINT", raising=False)
    monkeypatch.setattr("stepaudio.model.StepAudio2.load", lambda *_: pytest.fail("the model was read"))
    (tmp_path / "a.wav").write_text("notes")
    for name in ("a.wav", "a.txt", "none/a.wav"):
        assert main(["demo", "-o", str(tmp_path / name)]) == 2
        one_line(capsys.readouterr().err)
    assert (tmp_path / "a.wav").read_text() == "notes"
