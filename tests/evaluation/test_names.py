"""What the folders of scoring and of experiments offer by name, and that offering it costs nothing."""

import importlib
import subprocess
import sys

import pytest


@pytest.mark.parametrize("package", ["stepaudio.evaluation", "stepaudio.experiments"])
def test_every_name_is_there_and_is_the_one_of_its_module(package):
    module = importlib.import_module(package)
    assert set(module.__all__) == set(module._NAMES) <= set(dir(module))
    for name, home in module._NAMES.items():
        assert getattr(module, name) is getattr(importlib.import_module(f"{package}.{home}"), name)
    with pytest.raises(AttributeError, match="no attribute 'bleu'"):
        module.bleu  # noqa: B018


def test_a_submodule_does_not_hide_a_function():
    code = (
        "import stepaudio.evaluation.scores, stepaudio.evaluation.word_errors\n"
        "from stepaudio.evaluation import evaluate, wer\n"
        "assert wer('a b', 'a c') == 0.5 and evaluate.__module__ == 'stepaudio.evaluation.scores'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_names_are_imported_when_they_are_used():
    code = (
        "import sys, stepaudio.evaluation, stepaudio.experiments\n"
        "assert not {'mlx.core', 'jiwer', 'numpy'} & set(sys.modules), sorted(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
