"""Objects in a process of their own: calls, errors in one line, an end, and no change of this process."""

import os

import pytest

from stepaudio.backend.blas import BLAS_VARIABLE
from stepaudio.bench.own_process import OwnProcess, not_installed, stand_in
from stepaudio.errors import BackendError


class Adder:
    """Adds; says what it finds of the variable; fails when told; or ends its process."""

    def __init__(self, start: int):
        self.sum, self.device = start, os.environ.get(BLAS_VARIABLE, "")

    def add(self, n: int) -> int:
        if n < 0:
            raise ValueError("one\n  two " + "x" * 500)
        self.sum += n
        return self.sum

    def leave(self) -> None:
        os._exit(3)


def test_calls_keep_their_state_and_this_process_its_blas(monkeypatch):
    monkeypatch.setenv(BLAS_VARIABLE, "before")
    held = OwnProcess("adder", "pip install adder", Adder, 3)
    assert os.environ[BLAS_VARIABLE] == "before" and held.device == "none"
    assert [held.call("add", 2), held.call("add", 5)] == [5, 10]
    with pytest.raises(BackendError, match=r"^adder: ValueError: one two x+; pip install adder$") as refused:
        held.call("add", -1)
    assert len(str(refused.value)) < 300
    held.close()
    assert not held._process.is_alive()


def test_a_process_that_ended_is_one_line(monkeypatch):
    monkeypatch.delenv(BLAS_VARIABLE, raising=False)
    held = OwnProcess("adder", "", Adder, 3)
    assert BLAS_VARIABLE not in os.environ
    with pytest.raises(BackendError, match="adder: its process ended"):
        held.call("leave")
    held.close()


def test_what_is_not_there(monkeypatch):
    assert not_installed(["numpy", "no_such_module"]) == ["no_such_module"]
    monkeypatch.setitem(__import__("sys").modules, "no_such_module", None)
    del __import__("sys").modules["no_such_module"]
    stand_in("no_such_module")
    assert not_installed(["no_such_module"]) == []
    import numpy

    stand_in("numpy")
    assert __import__("sys").modules["numpy"] is numpy
