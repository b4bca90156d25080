"""What the small model made of some noise."""

import pytest
import tiny
from recorded_run import GREEDY, N_IDS, SECONDS

from stepaudio.interp import recorder as recording


@pytest.fixture(scope="module")
def messages():
    return recording.transcription(tiny.noise(SECONDS))


@pytest.fixture(scope="module")
def trace(tiny_model, messages):
    return recording.record(tiny_model, messages, sampling=GREEDY, max_tokens=N_IDS)
