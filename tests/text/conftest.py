"""A tokenizer trained on a few lines, and its folder."""

import pytest
from small_tokenizer import TEXTS

from stepaudio.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def small():
    return Tokenizer.train(TEXTS, vocab_size=300, n_audio=20)


@pytest.fixture
def folder(small, tmp_path):
    small.save(tmp_path)
    return tmp_path
