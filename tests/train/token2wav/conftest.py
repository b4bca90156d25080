"""Eight seconds of two speakers."""

import pytest
import speech_corpus

from stepaudio.train.token2wav.corpus import SpeechCorpus


@pytest.fixture(scope="package")
def corpus(tmp_path_factory):
    return SpeechCorpus([speech_corpus.write_clips(tmp_path_factory.mktemp("speech"))])
