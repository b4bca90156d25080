"""Fixtures that every test file may use; what lies beside the project may be absent and is then skipped."""

import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest

import stepaudio  # noqa: F401  before any test imports mlx, under which it puts a fast BLAS


def pytest_configure(config):
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as a shell starts what it runs in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # as nohup starts a command
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if hasattr(config, "workerinput"):  # one of several processes, all of which would compile into files of one name
        os.environ["TMPDIR"] = tempfile.tempdir = tempfile.mkdtemp(prefix="tests_")
        config.add_cleanup(lambda: shutil.rmtree(tempfile.tempdir, ignore_errors=True))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference data beside the project, or $STEPAUDIO_SHARED."""
    default = Path(__file__).resolve().parents[2] / "shared"
    path = Path(os.environ.get("STEPAUDIO_SHARED", default))
    if not path.is_dir():
        pytest.skip(f"needs the reference data, and {path} is not there (set STEPAUDIO_SHARED to its folder)")
    return path


@pytest.fixture(scope="session")
def goldens(shared) -> Path:
    """The folder of golden tensors."""
    path = shared / "goldens"
    if not path.is_dir():
        pytest.skip(f"needs the golden tensors, and {path} is not there")
    return path


@pytest.fixture(scope="session")
def nano() -> Path:
    """The bundled model."""
    path = Path(__file__).resolve().parents[1] / "data" / "nano"
    if not (path / "config.json").is_file():
        pytest.skip(f"needs the bundled model, and {path} is not there")
    return path


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory) -> Path:
    """A folder in the published layout: tiny nets with random weights, and a tokenizer of their own."""
    import tiny

    return tiny.write(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_model(tiny_checkpoint):
    """The same, loaded."""
    from stepaudio.model import StepAudio2

    return StepAudio2.load(tiny_checkpoint)


@pytest.fixture(scope="session")
def speaking_checkpoint(tmp_path_factory) -> Path:
    """The tiny model with a tiny token2wav, converted. Not to be changed."""
    import published
    import tiny

    from stepaudio.checkpoints.convert.convert import convert

    folder = tiny.write(tmp_path_factory.mktemp("speaking"))
    published.write_folder(folder)
    convert(folder)
    return folder


@pytest.fixture(scope="session")
def synthesizer(speaking_checkpoint):
    """Its token2wav, loaded. It holds no state."""
    from stepaudio.synthesis.synthesizer import Synthesizer

    return Synthesizer.load(speaking_checkpoint)


@pytest.fixture(scope="session")
def voices(synthesizer):
    """Two voices of different clips."""
    import tiny

    return [synthesizer.voice(tiny.noise(seconds, seed)) for seconds, seed in ((1.5, 1), (2.2, 2))]


@pytest.fixture
def hub(tmp_path, monkeypatch, tiny_checkpoint):
    """A hub with the tiny model, an empty cache, and a folder to work in that has no such folder."""
    import fake_hub
    from huggingface_hub import constants

    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    with fake_hub.serving() as (hub, address):
        monkeypatch.setattr(constants, "ENDPOINT", address)
        template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 2)
        source = tmp_path / "source"
        shutil.copytree(tiny_checkpoint, source)
        for name in ("README.md", "modeling_step_audio_2.py", "pytorch_model.bin"):
            (source / name).write_text("not needed")
        hub.put(fake_hub.REPO, source)
        yield hub


@pytest.fixture
def offline(monkeypatch):
    """Call it, and the library asks no network any more."""
    from huggingface_hub import constants

    return lambda: monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
