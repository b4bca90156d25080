"""`demo`: a table of clips, a table of presets, on the tiny and on the bundled model."""

import re

from commands import table

from stepaudio.cli.main import main


def test_demo(run, wav, tmp_path, monkeypatch):
    from stepaudio import resources

    for rows, status in (("a.wav\tyes\n", 0), ("a.wav\t\n", 0), ("none.wav\tyes\n", 1)):
        monkeypatch.setattr(resources, "speech_manifest", lambda rows=rows: table(tmp_path, "file\ttext\n" + rows))
        found, out, _ = run("demo")
        assert found == status and any(line.startswith("reference ") for line in out)
        assert any("wrote" in line or "failed" in line for line in out)


def test_demo_on_the_bundled_model(nano, capsys, monkeypatch):
    monkeypatch.delenv("STEPAUDIO_CHECKPOINT", raising=False)
    assert main(["demo"]) == 0
    out = capsys.readouterr().out
    assert len(re.findall(r"^\S+\.flac +\d+\.\d s +\d+\.\d\d s +\d+ of \d+$", out, re.M)) == 19
    assert re.search(r"^reference +\d+\.\d% +\d\.\d{3} +\d+ of 19$", out, re.M)
