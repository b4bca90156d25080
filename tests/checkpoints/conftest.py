"""A small model and what quantising makes of it."""

import shutil

import pytest
import quantised

from stepaudio.checkpoints.quantize import quantise
from stepaudio.checkpoints.recipe import Recipe, parse_rules
from stepaudio.models.quantization import Bits


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return quantised.write(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def small(source, tmp_path_factory):
    """Four bits, but for the head; not to be changed."""
    out = tmp_path_factory.mktemp("quantised") / "out"
    quantise(source, out, parse_rules(["head=off"], Recipe(Bits(4, 64)), "--layer"))
    return out


@pytest.fixture
def copy(small, tmp_path):
    return shutil.copytree(small, tmp_path / "copy")
