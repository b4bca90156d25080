"""What callers give as messages, and what is none."""

import mlx.core as mx
import numpy as np
import pytest

from stepaudio.errors import PromptError
from stepaudio.text.chat_template import Message
from stepaudio.text.messages import is_conversation, message_list, names_a_file


@pytest.mark.parametrize("text", ["Mr. " + "a" * 5000, "a/" * 5000 + ".b", "a.b\0c", "what is in notes.txt?", "", "."])
def test_a_text_that_no_file_can_have_as_its_name_is_a_text(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message_list(text) == [Message("human", text)] and not names_a_file(text)
    (tmp_path / "talk.wav").write_bytes(b"")
    with pytest.raises(PromptError, match=r"talk\.wav is a file"):
        message_list("talk.wav")


def test_a_text_is_the_turn_of_the_human():
    assert message_list("hi") == [Message("human", "hi")]
    assert is_conversation([{"role": "human", "content": "hi"}]) and is_conversation([Message("human", "hi")])
    assert not any(map(is_conversation, ("a.wav", [], [0.0, 0.1], ["a.wav"], np.zeros(3), mx.zeros(3))))
    for wrong in (None, 3, {"role": "human", "content": "hi"}, Message("human", "hi")):
        with pytest.raises(PromptError, match="list of messages"):
            message_list(wrong)
