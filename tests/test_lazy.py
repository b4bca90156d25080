"""Names of packages that are imported when they are first used."""

import importlib
import pkgutil
import subprocess
import sys

import pytest

import stepaudio

PACKAGES = [m.name for m in pkgutil.walk_packages(stepaudio.__path__, "stepaudio.") if m.ispkg]
LAZY = [name for name in PACKAGES if hasattr(importlib.import_module(name), "__all__") and not name.endswith(".viz")]


@pytest.mark.parametrize("name", LAZY)
def test_every_name_is_what_its_module_defines(name):
    package = importlib.import_module(name)
    assert set(package.__all__) <= set(dir(package)) and len(set(package.__all__)) == len(package.__all__)
    for public in package.__all__:
        value = getattr(package, public)
        assert getattr(value, "__name__", public) == public and type(value).__name__ != "module"
        assert getattr(package, public) is value
    with pytest.raises(AttributeError, match="nothing_of_this_name"):
        _ = package.nothing_of_this_name


def test_importing_every_package_imports_no_net():
    code = (
        f"import sys, {', '.join(n for n in LAZY)}; print(*(m for m in ('mlx.core', 'soundfile') if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.split()) == (0, []), done.stderr


def test_the_folders_that_a_stranger_opens_have_names():
    assert {n.removeprefix("stepaudio.") for n in LAZY} >= {
        "audio", "checkpoints", "decoding", "evaluation", "experiments", "interp", "models", "synthesis", "text",
    }  # fmt: skip
