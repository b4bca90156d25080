"""Published files of tiny nets."""

from pathlib import Path

import published
import pytest


@pytest.fixture
def folder(tmp_path) -> Path:
    """A token2wav folder of tiny published files, not converted."""
    return published.write_folder(tmp_path)
