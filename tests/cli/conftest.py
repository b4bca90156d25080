"""What the tests of the commands share: the command run in this process on the tiny model, and a recording."""

import pytest
import soundfile as sf
import tiny

from stepaudio.cli.main import main


@pytest.fixture
def run(capsys, tiny_checkpoint, monkeypatch):
    """Exit status, lines of stdout, stderr of one command on the tiny model."""
    monkeypatch.setenv("STEPAUDIO_CHECKPOINT", str(tiny_checkpoint))

    def call(*argv):
        status = main([str(a) for a in argv])
        out, err = capsys.readouterr()
        return status, out.splitlines(), err

    return call


@pytest.fixture
def wav(tmp_path):
    sf.write(tmp_path / "a.wav", tiny.noise(1), 16_000, subtype="FLOAT")
    return tmp_path / "a.wav"
