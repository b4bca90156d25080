"""Fixtures that every test file may use; what lies beside the project may be absent and is then skipped."""

import os
from pathlib import Path

import pytest


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes minutes or gigabytes")


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
