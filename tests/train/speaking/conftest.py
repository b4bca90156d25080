"""A model of a few channels whose vocabulary has every audio code, and a speech tokenizer's run beside it."""

import corpora
import mlx.core as mx
import pytest
import tiny
from speech_corpus import TOKENIZER

from stepaudio.checkpoints.layout import build
from stepaudio.checkpoints.load import load_weights
from stepaudio.checkpoints.save import save_checkpoint
from stepaudio.models.speech_lm import StepAudioConfig, StepAudioNet
from stepaudio.text.tokenizer import N_AUDIO_TOKENS, Tokenizer
from stepaudio.train.token2wav.run import write_net


@pytest.fixture(scope="package")
def start(tmp_path_factory):
    folder = tmp_path_factory.mktemp("start")
    words = Tokenizer.train([" " + text for text in corpora.TEXTS] * 3, vocab_size=280, n_audio=N_AUDIO_TOKENS)
    words.save(folder)
    sizes = corpora.sizes(-(-words.n_ids // 64) * 64)
    save_checkpoint(folder, sizes, tiny.weights(sizes))
    return folder


@pytest.fixture(scope="package")
def words(start):
    return Tokenizer.from_folder(start)


@pytest.fixture(scope="package")
def codec(tmp_path_factory):
    folder = tmp_path_factory.mktemp("codec")
    mx.random.seed(0)  # some weights give all clips one code, or a loss that no rate ruins
    write_net(folder, "tokenizer", build(TOKENIZER))
    return folder


@pytest.fixture
def fresh_net(start):
    """A call gives the model's nets in float32, anew each time."""
    sizes = StepAudioConfig.from_file(start)

    def load():
        found = StepAudioNet(sizes)
        load_weights(found, start, sizes, mx.float32)
        return found

    return load
