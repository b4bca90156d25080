"""What callers give as messages, and what is none."""

import mlx.core as mx
import numpy as np
import pytest

from stepaudio.errors import PromptError
from stepaudio.text.chat_template import Message
from stepaudio.text.messages import is_conversation, message_list


def test_a_text_is_the_turn_of_the_human():
    assert message_list("hi") == [Message("human", "hi")]
    assert is_conversation([{"role": "human", "content": "hi"}]) and is_conversation([Message("human", "hi")])
    assert not any(map(is_conversation, ("a.wav", [], [0.0, 0.1], ["a.wav"], np.zeros(3), mx.zeros(3))))
    for wrong in (None, 3, {"role": "human", "content": "hi"}, Message("human", "hi")):
        with pytest.raises(PromptError, match="list of messages"):
            message_list(wrong)
