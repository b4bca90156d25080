"""What reads a voice beside the same nets in PyTorch: equal codes and vectors where the packages are installed."""

import numpy as np
import pytest

from stepaudio.audio.features import kaldi_fbank, log_mel
from stepaudio.bench import published, voice_baseline
from stepaudio.bench.published_sound import SMALL_TOKENIZER
from stepaudio.bench.tts import published_tensors
from stepaudio.bench.turns import Bench
from stepaudio.bench.voice_baseline import SPEAKER, TOKENIZER, SpeakerProcess, TokenizerProcess, missing
from stepaudio.checkpoints.layout import expected_layout
from stepaudio.checkpoints.random_weights import random_net
from stepaudio.errors import BackendError
from stepaudio.models.token2wav.campplus import COUNTER, SpeakerConfig

needs_tokenizer = pytest.mark.skipif(bool(missing(TOKENIZER)), reason=f"needs {', '.join(missing(TOKENIZER))}")
needs_speaker = pytest.mark.skipif(bool(missing(SPEAKER)), reason=f"needs {', '.join(missing(SPEAKER))}")
NOISE = np.random.default_rng(3).normal(0, 0.1, 16000 * 3).astype(np.float32)


@pytest.mark.parametrize("config", [SMALL_TOKENIZER, SpeakerConfig()])
def test_tensors_have_published_names_and_shapes(config):
    found = published_tensors(random_net(config, (1,)))
    expected = {name: shape for name, shape in expected_layout(config).items() if not name.endswith(COUNTER)}
    assert {name: array.shape for name, array in found.items()} == expected


@needs_tokenizer
@pytest.mark.slow
def test_the_speech_tokenizer_gives_the_same_codes():
    net, mel = random_net(SMALL_TOKENIZER, (1,)), log_mel(NOISE, padding=0)
    theirs = TokenizerProcess(published_tensors(net), vars(SMALL_TOKENIZER), False)
    try:
        seconds, codes = theirs.codes(mel)
    finally:
        theirs.close()
    assert seconds > 0 and len(np.unique(codes)) > 20
    assert codes.tolist() == net(mel[None])[0].tolist()


@needs_speaker
@pytest.mark.slow
def test_the_speaker_encoder_gives_the_same_vector():
    net, features = random_net(SpeakerConfig(), (1,)), kaldi_fbank(NOISE)
    theirs = SpeakerProcess(published_tensors(net), False)
    try:
        seconds, vector = theirs.vector(features)
    finally:
        theirs.close()
    assert seconds > 0 and vector.std() > 0.01
    ours = np.array(net(features[None]))[0]
    assert np.linalg.norm(ours - vector) / np.linalg.norm(vector) < 1e-4


@needs_tokenizer
@pytest.mark.slow
def test_a_net_that_cannot_be_filled_is_one_line():
    with pytest.raises(BackendError, match="s3tokenizer: ") as refused:
        TokenizerProcess({}, vars(SMALL_TOKENIZER), False)
    assert "\n" not in str(refused.value) and "pip install s3tokenizer" in str(refused.value)


class Peer:
    """Slower than ours by a second, and wrong by as much as it is told."""

    def __init__(self, *_):
        self.ended = 0

    def codes(self, mel):
        return 7.0, np.full(-(-mel.shape[1] // 4), -1)

    def vector(self, features):
        return 8.0, np.full(192, 1e9)

    def close(self):
        self.ended += 1


def test_rows_with_and_without_peers(monkeypatch):
    monkeypatch.setattr(voice_baseline, "NEEDED", dict.fromkeys((TOKENIZER, SPEAKER), ("no_such_package",)))
    bench = Bench(small=True, repeats=1)
    alone = list(published.PARTS["voice"](bench))
    assert {row.side for row in alone} == {"stepaudio"} and {row.unit for row in alone} == {"s"}
    assert "engine" not in vars(bench), "no language model is made for a part without one"
    monkeypatch.setattr(voice_baseline, "NEEDED", dict.fromkeys((TOKENIZER, SPEAKER), ("numpy",)))
    monkeypatch.setattr("stepaudio.bench.published_sound.TokenizerProcess", Peer)
    monkeypatch.setattr("stepaudio.bench.published_sound.SpeakerProcess", Peer)
    rows = list(published.PARTS["voice"](bench))
    assert {row.side: row.median for row in rows if row.unit == "s" and row.side != "stepaudio"} == {
        "s3tokenizer": 7.0,
        "chatterbox": 8.0,
    }
    same, moved = (row for row in rows if row.side == "both")
    assert same.median == 0 and moved.median == pytest.approx(1, abs=1e-3)
