"""Memory planned from headers: against bytes counted in files and caches, and against what MLX shows of a run."""

import json
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import pytest
import quantised
import tiny
from mlx.utils import tree_flatten
from published_config import PUBLISHED

from stepaudio.backend import memory
from stepaudio.bench import memory as shown
from stepaudio.bench.memory_plan import MINI, VARIANTS, Task, plan_memory, planned, sizes_of
from stepaudio.checkpoints.quantize import quantise
from stepaudio.checkpoints.recipe import Recipe
from stepaudio.cli.main import main
from stepaudio.decoding.prefill import positions_at_once
from stepaudio.errors import ConfigError
from stepaudio.model import StepAudio2
from stepaudio.models.decoder import TextConfig
from stepaudio.models.encoder import AudioEncoderConfig
from stepaudio.models.kv_cache import CachePolicy
from stepaudio.models.quantization import Bits
from stepaudio.models.speech_lm import StepAudioConfig

GIB = 2**30


def task(**changes) -> Task:
    kept = {
        "seconds": 30.0,
        "tokens": 20,
        "whole": False,
        "batch": 4,
        "policy": CachePolicy(),
        "on_cpu": True,
        "itemsize": 4,
    }
    return Task(**kept | changes)


def held(model) -> int:
    return sum(array.nbytes for _, array in tree_flatten(model.net.parameters()))


@pytest.mark.parametrize(
    "recipe", [None, Recipe(Bits(4, 64)), Recipe(Bits.usual(mode="mxfp8")), Recipe().with_rule("head", 8)]
)
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_weights_are_those_that_are_held(tmp_path, recipe, dtype):
    folder = quantised.write(tmp_path / "m", dtype)
    planned = sizes_of(folder, dtype.size, recipe)
    if recipe is not None:
        quantise(folder, tmp_path / "out", recipe)
        folder = tmp_path / "out"
        assert sizes_of(folder, dtype.size).weights == planned.weights
    assert planned.weights == held(StepAudio2.load(folder, dtype=dtype))


def test_the_published_sizes_are_known_without_a_file(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    text = {k: v for k, v in PUBLISHED["text_config"].items() if hasattr(MINI.text_config, k)}
    for name in ("num_attention_groups", "max_seq_len", "eos_token_id", "pad_token_id"):
        text.pop(name)
    assert all(getattr(MINI.text_config, k) == v for k, v in text.items())
    audio = PUBLISHED["audio_encoder_config"]
    assert all(getattr(MINI.audio_encoder_config, k) == v for k, v in audio.items() if k != "n_codebook_size")
    found = sizes_of("stepfun-ai/Step-Audio-2-mini", 2)
    assert 16.62e9 < found.weights < 16.64e9  # 832 tensors, 8.3 billion parameters
    with pytest.raises(ConfigError, match="its sizes are not known; expected a folder"):
        sizes_of("stepfun-ai/Step-Audio-R1", 2)


@pytest.mark.parametrize("kv_bits", [None, 8])
@pytest.mark.parametrize("whole", [False, True])
def test_keys_and_values_are_those_of_the_run(tmp_path, whole, kv_bits):
    engine = StepAudio2.load(quantised.write(tmp_path / "m")).engine
    for policy in (
        CachePolicy(bits=kv_bits),
        CachePolicy("sinks", 200, bits=kv_bits),
        CachePolicy("full", bits=kv_bits),
    ):
        if not whole and policy.max_len:
            continue  # such segments run one by one
        asked = task(policy=policy, whole=whole, seconds=33.0)
        plan = plan_memory(sizes_of(tmp_path / "m", 4), asked)
        assert plan.kv == shown.measure(engine, asked, plan.batch).use.kv


SIZES = StepAudioConfig(
    TextConfig(512, 2048, 8, 2, 4, 4096, 1e-6, 1e6), AudioEncoderConfig(128, 1500, 256, 4, 3, 512, 3, 2)
)


@pytest.mark.parametrize("bits", [None, 4])
def test_the_peak_is_near_what_mlx_shows(bits):
    """On a CPU, where what is in work is large beside such weights; for the published sizes see `plan --measure`."""
    recipe = None if bits is None else Recipe(Bits(bits))
    engine = shown.random_engine(SIZES, mx.float32, recipe)
    asked = task(seconds=26.0, batch=2, tokens=8)
    plan = plan_memory(planned("random", SIZES, {}, 4, recipe), asked)
    found = shown.measure(engine, asked, plan.batch)
    assert plan.weights == pytest.approx(sum(a.nbytes for _, a in tree_flatten(engine.net.parameters())))
    assert 0.75 < plan.peak / found.peak < 1.35
    assert "ratio" in shown.compared(plan, found)


def test_a_longer_prompt_takes_no_more_to_read_than_a_step():
    """On a GPU, but for its embeddings; and twice the batch does not take twice as much of what prompts share."""
    found = {}
    for seconds in (200.0, 500.0):
        asked = task(seconds=seconds, whole=True, on_cpu=False, itemsize=2, policy=CachePolicy("full"))
        found[seconds] = plan_memory(planned("random", MINI, {}, 2, None), asked)
    more = found[500.0].positions - found[200.0].positions
    assert found[500.0].prefill - found[200.0].prefill == more * MINI.text_config.hidden_size * 2
    assert positions_at_once(1, True) < positions_at_once(1, False) == 2 * positions_at_once(2, False)


# GB at the most on an H100, published sizes, bfloat16: `bench --published --part batches`, by clips of 25 s together
SEEN = {1: 17.727, 2: 18.098, 4: 20.347, 8: 20.101, 16: 20.414, 32: 20.745}


@pytest.mark.parametrize("batch", SEEN)
def test_the_peak_at_the_published_sizes_is_what_a_gpu_showed(batch):
    asked = task(seconds=600.0, batch=batch, tokens=64, on_cpu=False, itemsize=2, policy=CachePolicy("full"))
    found = plan_memory(planned("random", MINI, {}, 2, None), asked)
    assert found.peak / 1e9 == pytest.approx(SEEN[batch], rel=0.05)
    assert found.weights + found.encoder > 17.5e9, "the encoder alone nearly reaches it"


def test_what_one_run_on_a_gpu_showed_of_its_encoder_and_in_all():
    """`plan --measure` on an H100, 600 s in batches of 32 segments, answers of 256 tokens."""
    asked = task(seconds=600.0, batch=32, tokens=256, on_cpu=False, itemsize=2)
    found = plan_memory(planned("random", MINI, {}, 2, None), asked)
    assert found.weights + found.encoder == pytest.approx(20_394_730_640, rel=0.05)
    assert found.peak == pytest.approx(20_817_268_024, rel=0.05)
    assert found.kv == 1_409_286_144 > found.kv_read


def test_keys_and_values_of_a_prompt_are_those_once_it_is_read(tmp_path):
    """A run of one token holds what the prompt takes, and no more."""
    engine = StepAudio2.load(quantised.write(tmp_path / "m")).engine
    long = task(seconds=25.0, tokens=900, whole=True, policy=CachePolicy("full"))
    plan = plan_memory(sizes_of(tmp_path / "m", 4), long)
    assert plan.kv_read < plan.kv and plan.kv_read == shown.measure(engine, replace(long, tokens=1), 1).use.kv


def test_the_table_of_the_page_is_what_is_planned():
    page = (Path(__file__).parents[2] / "docs" / "quantization.md").read_text(encoding="utf-8")
    head, _, *rows = page[page.index("| what is done |") :].split("\n\n")[0].splitlines()
    tasks = [task(seconds=25.0, batch=1), task(seconds=600.0, batch=32), task(seconds=120.0, batch=1, whole=True)]
    names = [cell.strip() for cell in head.split("|")[2:-1]]
    for row, asked in zip(rows, tasks, strict=True):
        asked = replace(asked, tokens=256, on_cpu=False, itemsize=2)
        for name, cell in zip(names, row.split("|")[2:-1], strict=True):
            plan = plan_memory(sizes_of("stepfun-ai/Step-Audio-2-mini", 2, VARIANTS[name]), asked)
            assert round(plan.all / 1e9, 1) == float(cell), (row, name)


def test_recordings_of_many_lengths_leave_nothing(tmp_path):
    engine = StepAudio2.load(quantised.write(tmp_path / "m")).engine
    uses = shown.growth(engine, [0.3 + 0.13 * i for i in range(20)], tokens=3)
    assert max(use.active for use in uses[1:]) <= uses[0].active + (1 << 16)  # tables of rotations
    assert all(use.cached <= memory.KEPT_BUFFERS for use in uses)


def test_a_limit_that_somebody_set_stays(monkeypatch):
    limits, calls = [4096], []

    def set_limit(n):
        calls.append(n)
        limits.append(n)
        return limits[-2]

    monkeypatch.setattr(mx, "set_cache_limit", set_limit)
    memory.limit_buffers()
    assert limits[-1] == 4096
    limits[:] = [64 * GIB]
    memory.limit_buffers()
    assert limits[-1] == memory.KEPT_BUFFERS


def test_buffers_are_given_back_between_batches(tiny_model, monkeypatch):
    from stepaudio import transcribe

    freed = []
    monkeypatch.setattr(transcribe, "free_buffers", lambda: freed.append(1))
    found = tiny_model.transcribe(tiny.noise(3.0), vad="off", batch=1, max_tokens=2)
    assert len(freed) == len(found.segments) == 1
    use = found.memory
    assert use.kv > 0 and use.active > 0 and use.peak >= use.active and use.cached >= 0
    assert found.to_dict()["memory"]["kv"] == use.kv


def test_the_command(tmp_path, capsys):
    folder = str(quantised.write(tmp_path / "m"))
    assert main(["plan", folder, "--memory", "1G", "--seconds", "40", "--tokens", "30"]) == 0
    told = capsys.readouterr().out
    assert "4 bits" in told and told.splitlines()[-1].split()[0] == "fits"
    assert main(["plan", folder, "--memory", "1K", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["fits"] is False
    assert (
        main(
            ["plan", folder, "--seconds", "1", "--tokens", "2", "--bits", "8", "--measure", "--lengths", "2", "--json"]
        )
        == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert found["shown"]["weights"] > 0 and found["shown"]["growth"] <= 1 << 16 and list(found["plans"]) == ["8 bits"]
    for words, message in [
        (["--seconds", "0"], "seconds: expected above 0"), (["--tokens", "0"], "tokens: expected a whole number"),
        (["--batch", "0"], "batch: expected"), (["--bits", "7"], "expected bits"), (["--kv-bits", "5"], "kv_bits"),
        (["--lengths", "3"], "--lengths: is of --measure"),
        (["--cache", "pinned", "--max-cache-len", "100"], "cannot hold the 317 positions that must stay"),
        (["--cache", "sinks", "--max-cache-len", "4"], "cannot hold the 4 positions that must stay"),
        (["--cache", "full", "--max-cache-len", "100"], "--max-cache-len: a full cache has no limit"),
    ]:  # fmt: skip
        assert main(["plan", folder, *words]) == 2, words
        assert message in capsys.readouterr().err
    for size in ("much", "16", "0G"):
        with pytest.raises(SystemExit):
            main(["plan", folder, "--memory", size])
        assert "expected a size with its unit" in capsys.readouterr().err
