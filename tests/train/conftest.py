"""A corpus of seconds, a tokenizer of few words, and nets of a few channels to train."""

import corpora
import pytest

from stepaudio.text.tokenizer import Tokenizer
from stepaudio.train.batches import BatchMaker, transcription_prompt
from stepaudio.train.corpus import AnswerEncoder, Corpus


@pytest.fixture(scope="package")
def tokenizer(tmp_path_factory):
    found = Tokenizer.train([" " + t for t in corpora.TEXTS] * 3, vocab_size=280, n_audio=4)
    found.save(tmp_path_factory.mktemp("words"))
    return found


@pytest.fixture
def encode(tokenizer):
    return AnswerEncoder(tokenizer)


@pytest.fixture
def stock(tmp_path, encode):
    corpora.write(tmp_path / "c")
    return Corpus([tmp_path / "c"], encode)


@pytest.fixture
def maker(stock, tokenizer):
    return BatchMaker(stock, transcription_prompt(tokenizer), list(corpora.BUCKETS), seed=3)


@pytest.fixture
def trainer(tokenizer):
    return corpora.new_trainer(tokenizer)
