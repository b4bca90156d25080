"""What a message looks like, whatever it quotes."""

import pickle

import pytest

from stepaudio.errors import LONGEST, BackendError, ConfigError, StepAudioError, one_line


@pytest.mark.parametrize(
    ("quoted", "line"),
    [
        ("plain, “quoted” — 你好", "plain, “quoted” — 你好"),
        ("first\n   second\r\n\tthird", "first second third"),
        ("\x1b[31mred\x07", r"\x1b[31mred\x07"),
        ("caf\udce9.wav", r"caf\udce9.wav"),
        ("a  b", "a  b"),
        ("", ""),
    ],
)
def test_a_message_is_one_printable_line(quoted, line):
    assert one_line(quoted) == str(ConfigError(quoted)) == line
    str(ConfigError(quoted)).encode("utf-8")


def test_a_long_message_keeps_what_is_wrong_and_what_to_do():
    said = str(BackendError("what is wrong: " + "x" * 5000 + "; what to do"))
    assert len(said) < LONGEST and said.startswith("what is wrong: x") and said.endswith("x; what to do")
    whole = "y" * (LONGEST - 1)
    assert str(StepAudioError(whole)) == whole


def test_an_error_travels_between_processes():
    again = pickle.loads(pickle.dumps(ConfigError("a\nb")))
    assert type(again) is ConfigError and str(again) == "a b"
