"""What the benchmark of token2wav counts, on small nets; and its command."""

import re
import time

import mlx.core as mx
import numpy as np
import pytest
import tiny

from stepaudio.bench import tts
from stepaudio.bench.tts import Cost, Trial, measured, report
from stepaudio.cli.main import main
from stepaudio.errors import ConfigError
from stepaudio.models.token2wav.flow import FlowOptions
from stepaudio.synthesis.streaming import StreamOptions

QUICK = StreamOptions(FlowOptions(1))


@pytest.fixture(scope="module")
def trial(synthesizer, voices):
    return Trial(synthesizer, voices[0], 60, QUICK)


def test_parts_are_flow_and_vocoder_and_one_per_chunk(trial):
    whole, streamed = measured(trial.whole), measured(trial.streamed)
    assert len(whole.parts) == 2 and len(streamed.parts) == 1 + 3
    assert whole.sound == streamed.sound == 60 / 25
    for cost in (whole, streamed):
        assert sum(cost.parts) == pytest.approx(cost.wall) and min(cost.parts) > 0 and cost.processor > 0


def test_measured_takes_time_and_the_peak_of_this_run_alone():
    before = mx.zeros((1 << 22,)) + 1
    mx.eval(before)
    del before  # its 16 MiB are past

    def work():
        held = mx.zeros((1 << 20,)) + 1  # 4 MiB
        mx.eval(held)
        first = time.perf_counter()
        time.sleep(0.05)
        return [first, time.perf_counter()], 2.0

    base = mx.get_active_memory()
    cost = measured(work)
    assert cost.wall == pytest.approx(sum(cost.parts)) and cost.parts[1] == pytest.approx(0.05, abs=0.04)
    assert (4 << 20) <= cost.peak - base < (12 << 20) and cost.processor > 0 and cost.sound == 2


def numbers(text: str, row: str) -> list[float]:
    line = next(x for x in text.splitlines() if x.startswith(row))
    return [float(x) for x in re.findall(r"\d+\.\d\d", line)]


def test_report_by_hand(trial):
    whole = [Cost(4.0, 6.0, 100 << 20, (3.0, 1.0), 2.0), Cost(2.0, 4.0, 90 << 20, (1.5, 0.5), 2.0)]
    streamed = [Cost(7.0, 8.0, 50 << 20, (1.0, 2.0, 4.0), 2.0), Cost(4.0, 6.0, 60 << 20, (0.5, 2.5, 1.0), 2.0)]
    shown = report("tiny", trial, 0.3, whole, streamed)
    assert numbers(shown, "whole: seconds") == [1, 1.5, 2]
    assert numbers(shown, "  of these, flow") == [0.75, 1.12, 1.5] and numbers(shown, "  of these, vocoder")[0] == 0.25
    assert numbers(shown, "streamed: seconds") == [1.75, 2.38, 3]
    assert numbers(shown, "streamed / whole") == [1.5, 1.62, 1.75]
    assert numbers(shown, "reading the voice") == [0.5, 0.75, 1] and numbers(shown, "first chunk") == [2, 2.25, 2.5]
    assert numbers(shown, "slowest chunk") == [2.5, 3.25, 4]
    assert numbers(shown, "peak memory, whole") == [90, 95, 100]
    assert numbers(shown, "processor seconds of all cores, streamed, voice") == [3, 3.5, 4]
    assert numbers(shown, "  streamed / whole, of these") == [1.33, 1.42, 1.5]
    assert "60" not in shown.splitlines()[0] and "1 Euler steps" in shown


def test_the_command(capsys, monkeypatch, speaking_checkpoint):
    asked = []
    monkeypatch.setattr(tts, "run", lambda model, size, stage, **how: asked.append((model, how, size)) or 0)
    assert main(["bench", "--speaking", "--model", str(speaking_checkpoint), "--repeats", "2"]) == 0
    assert main(["bench", "--token2wav", "--tiny"]) == 0
    assert asked == [(str(speaking_checkpoint), {"repeats": 2}, "published"), (None, {}, "small")]
    assert (
        main(["bench", "--speaking", "--manifest", "x.tsv"]) == 2 and "nothing to transcribe" in capsys.readouterr().err
    )


def test_run_on_a_converted_model_and_on_random_weights(capsys, speaking_checkpoint, monkeypatch):
    monkeypatch.setattr(tts, "voice_clip", lambda: tiny.noise(1.5))
    monkeypatch.setattr(tts, "missing", lambda: ["step-audio2"])
    assert tts.run(speaking_checkpoint, 1, n_codes=30) == 0
    out = capsys.readouterr().out
    assert str(speaking_checkpoint) in out and "weights: 0 MiB" in out
    assert tts.run(None, 1, "small", 30) == 0
    out = capsys.readouterr().out
    printed = out.splitlines()
    shown, stages = [], []
    assert tts.run(speaking_checkpoint, 1, n_codes=30, stage=stages.append, show=shown.append) == 0
    assert capsys.readouterr().out == "" and stages[-1] == "" and "streamed: repeat 1 of 1" in stages
    assert all(any(line.strip().startswith(row.what) for line in printed) for row in shown) and len(shown) == 13
    assert {row.unit for row in shown if "MiB" in row.what} == {"MiB"}
    assert "the small sizes with random weights" in out and "1.2 s of sound in a voice of 1.5 s" in out
    assert "weights: 5 MiB" in out


@pytest.mark.parametrize("bad", [{"repeats": 0}, {"n_codes": 28}])
def test_refusals(bad):
    with pytest.raises(ConfigError, match="at least 1 repeat and 29 codes"):
        tts.run(**bad)


def test_codes_are_known_to_the_flow(trial):
    assert trial.codes.max() < 81 and len(np.unique(trial.codes)) > 20
