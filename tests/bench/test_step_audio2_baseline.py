"""The reference's own nets beside ours: the same mels where they are installed, and what is said where they are not."""

from types import SimpleNamespace

import numpy as np
import pytest
import tiny

from stepaudio.bench import step_audio2_baseline, tts
from stepaudio.bench.step_audio2_baseline import ReferenceProcess, missing
from stepaudio.bench.tts import Cost, Theirs, Trial, beside, published_tensors
from stepaudio.checkpoints.layout import axes_of, expected_layout, to_published
from stepaudio.checkpoints.random_weights import random_token2wav
from stepaudio.checkpoints.weight_norm import DIRECTION, MAGNITUDE, merge_weight_norm
from stepaudio.errors import BackendError
from stepaudio.models.parameters import named_arrays
from stepaudio.models.token2wav.hift import HiftConfig
from stepaudio.synthesis.synthesizer import Synthesizer


@pytest.fixture(scope="module")
def trial():
    synthesizer = Synthesizer(random_token2wav("small"))
    return Trial(synthesizer, synthesizer.voice(tiny.noise(1.5)), 60)


@pytest.mark.parametrize("part", ["flow", "hift"])
def test_tensors_have_published_names_and_shapes_and_mean_the_same(trial, part):
    net = getattr(trial.synthesizer.parts, part)
    found = published_tensors(net)
    assert {name: array.shape for name, array in found.items()} == expected_layout(net.config)
    held = {name: np.array(array) for name, array in named_arrays(net.parameters())}
    for name, array in held.items():
        stem = name.removesuffix(".weight")
        kernel = found.get(name)
        if kernel is None:
            kernel = merge_weight_norm(found[stem + MAGNITUDE], found[stem + DIRECTION])
        np.testing.assert_allclose(kernel, to_published(array, axes_of(type(net.config), name)), rtol=1e-6)
    assert any(name.endswith(MAGNITUDE) for name in found) == isinstance(net.config, HiftConfig)


@pytest.mark.slow
def test_the_reference_makes_the_same_mels_and_as_many_samples(trial, monkeypatch):
    if missing():
        pytest.skip(f"needs step-audio2 and {', '.join(missing())}")
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")  # compiling its streams takes half a minute and changes no value
    theirs = Theirs.of(trial)
    assert theirs is not None
    try:
        theirs.turn(trial)
        assert theirs.difference(trial) < 1e-4
        assert theirs.whole[0]["n"] == theirs.streamed[0]["n"] == 60 * 960
        assert len(theirs.streamed[0]["chunks"]) == 3 and min(theirs.streamed[0]["chunks"]) > 0
    finally:
        theirs.process.close()


@pytest.mark.slow
def test_nets_that_cannot_be_filled_are_one_line(trial):
    if missing():
        pytest.skip(f"needs step-audio2 and {', '.join(missing())}")
    with pytest.raises(BackendError, match="step-audio2: ") as refused:
        ReferenceProcess({"flow": {}, "hift": {}}, {}, {}, np.zeros((1, 4, 80), np.float32), False)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 1000


def test_without_the_package_a_line_says_what_to_install(trial, monkeypatch):
    monkeypatch.setattr(tts, "missing", lambda: ["einops", "cosyvoice2"])
    assert Theirs.of(trial) is None
    (line,) = beside(trial, [], [], None)
    assert "einops, cosyvoice2 not installed" in line and "--no-deps step-audio2" in line


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(step_audio2_baseline, "NEEDED", ("numpy", "no_such_package"))
    assert missing() == ["no_such_package"]


def test_ratios_by_hand(trial, monkeypatch):
    ours = [Cost(9.0, 0, 1, (5.0, 4.0), 2.0), Cost(4.0, 0, 300, (3.0, 1.0), 2.0)]
    streams = [Cost(9.0, 0, 1, (1.0, 8.0), 2.0), Cost(7.0, 0, 100, (1.0, 2.0, 4.0), 2.0)]
    whole = [{"flow": 1, "vocoder": 1, "peak": 1}, {"flow": 2.0, "vocoder": 0.5, "peak": 600}]
    chunks = [{"voice": 1, "chunks": [1], "peak": 1}, {"voice": 4.0, "chunks": [1.0, 2.0], "peak": 50}]
    monkeypatch.setattr(Theirs, "difference", lambda *_: 2.5e-6)
    shown = beside(trial, ours, streams, Theirs(SimpleNamespace(device="cuda"), whole, chunks))
    values = {line[:58].strip(): line[58:].split() for line in shown[2:-1]}
    assert values == {
        "time, whole": ["1.60"] * 3, "of these, flow": ["1.50"] * 3, "of these, vocoder": ["2.00"] * 3,
        "time, streamed, voice read before": ["2.00"] * 3, "reading the voice into a stream": ["0.25"] * 3,
        "peak memory, whole": ["0.50"] * 3, "peak memory, streamed": ["2.00"] * 3,
    }  # fmt: skip
    assert shown[-1] == "mels differ by 2.5e-06 of their norm"
