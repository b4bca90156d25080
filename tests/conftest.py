"""Fixtures that every test file may use; what lies beside the project may be absent and is then skipped."""

import os
import signal
from pathlib import Path

import pytest

import stepaudio  # noqa: F401  before any test imports mlx, under which it puts a fast BLAS


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes minutes or gigabytes")
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as a shell starts what it runs in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)


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


def pytest_collection_modifyitems(items):
    """Quick tests first."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)
