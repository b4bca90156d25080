"""Sweeps: no kill loses or doubles a row, ranks agree, a row equals a direct call."""

import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import pytest
import sweep_worker

from stepaudio.cli.main import main
from stepaudio.engine import Engine
from stepaudio.errors import AudioError, ConfigError, DataError, WeightsError
from stepaudio.evaluation.manifest import Clip
from stepaudio.experiments import provenance
from stepaudio.experiments.grid import Setting
from stepaudio.experiments.store import rank_file, read_store, read_table
from stepaudio.experiments.sweep import run_sweep, table_of, transcribe_one
from stepaudio.experiments.table import Table

WORKER = Path(sweep_worker.__file__)


def timeless(table: Table) -> list[dict]:
    return [{k: v for k, v in row.items() if k != "wall_seconds"} for row in table.rows]


def worker(grid_file, store, seconds=0.004, **environment):
    """The fake sweep in a process of its own, so many seconds a run."""
    command = [sys.executable, str(WORKER), str(grid_file), str(store), str(seconds)]
    path = os.pathsep.join(filter(None, [str(WORKER.parents[1]), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, **environment}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


# ---------------------------------------------------------------- sweeps


def test_killed_many_times_gives_the_same_table(grid_file, grid, tmp_path):
    """SIGKILL at random moments, in runs and in writes; then the rest. Every kill must find the sweep at work."""
    store, rng = tmp_path / "killed.jsonl", random.Random(3)
    size = 0
    for _ in range(4):
        process = worker(grid_file, store, 0.02)  # 2.4 s in all, for a machine that looks at it late
        while not store.exists() or store.stat().st_size <= size:  # until it writes
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.03))
        process.kill()
        process.communicate()
        with store.open("ab") as stream:  # a kill inside a write is rare: tear a line by hand as well
            stream.write(b'{"run": "torn"'[: rng.randrange(14)])
        size = store.stat().st_size
    n_before = len(read_store(store))
    assert 4 <= n_before < len(grid)
    resumed = sweep_worker.sweep(grid, store)
    never_killed = sweep_worker.sweep(grid, tmp_path / "whole.jsonl")
    assert len(resumed) == len(grid) == store.read_bytes().count(b"\n")
    assert timeless(resumed) == timeless(never_killed)


def test_a_finished_row_is_not_run_again(grid, tmp_path):
    calls = []

    def counted(*given):
        calls.append(given)
        return sweep_worker.fake(*given)

    first = run_sweep(grid, tmp_path / "s.jsonl", run_one=counted, load=lambda g: None, progress=False)
    loaded = []
    again = run_sweep(grid, tmp_path / "s.jsonl", run_one=counted, load=loaded.append, progress=False)
    assert len(calls) == len(grid) and not loaded and again == first


def test_order_of_rows_leaves_no_trace(grid, tmp_path):
    table = sweep_worker.sweep(grid, tmp_path / "s.jsonl")
    lines = (tmp_path / "s.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    random.Random(0).shuffle(lines)
    (tmp_path / "s.jsonl").write_text("".join(lines), encoding="utf-8")
    assert read_store(tmp_path / "s.jsonl") == table


def test_a_larger_grid_goes_on_in_the_same_store(grid, tmp_path):
    small = replace(grid, seeds=(0,), clips=grid.clips[:5])
    sweep_worker.sweep(small, tmp_path / "s.jsonl")
    sweep_worker.sweep(grid, tmp_path / "s.jsonl")
    assert len(read_store(tmp_path / "s.jsonl")) == len(grid) and len(table_of(small, tmp_path / "s.jsonl")) == 10


@pytest.mark.parametrize(
    "change, named",
    [
        (lambda g: replace(g, settings=g.settings | {"hot": {"max_tokens": 41}}), "setting_json"),
        (lambda g: replace(g, clips=[replace(c, text="else") for c in g.clips]), "expected"),
        (lambda g: (Path(g.clips[0].file).write_bytes(b"other"), g)[1], "clip_hash"),
        (lambda g: replace(g, dtype="float16"), "dtype"),
    ],
)
def test_rows_made_otherwise_are_not_mixed_in(grid, tmp_path, change, named):
    sweep_worker.sweep(grid, tmp_path / "s.jsonl")
    with pytest.raises(DataError, match=f"from another sweep .*{named}"):
        sweep_worker.sweep(change(grid), tmp_path / "s.jsonl")


def free_ports(n: int) -> list[int]:
    sockets = [socket.socket() for _ in range(n)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def two_ranks(grid_file, store, tmp_path) -> list[str]:
    """What `mlx.launch -n 2 --backend ring` does: a host file and a rank for each process."""
    hosts = tmp_path / "hosts.json"
    hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in free_ports(2)]))
    ranks = [worker(grid_file, store, MLX_HOSTFILE=str(hosts), MLX_RANK=str(r)) for r in range(2)]
    try:
        outputs = [p.communicate(timeout=60) for p in ranks]
    except subprocess.TimeoutExpired:
        pytest.skip("two local ranks did not find each other over the ring backend within a minute")
    finally:
        for p in ranks:
            p.kill()
            p.wait()
    if any("ring" in err and p.returncode for p, (_, err) in zip(ranks, outputs, strict=True)):
        pytest.skip(f"the ring backend cannot run here: {outputs[0][1][-300:] or outputs[1][1][-300:]}")
    assert [p.returncode for p in ranks] == [0, 0], outputs
    return [out for out, _ in outputs]


def test_two_ranks_give_the_table_of_one(grid_file, grid, tmp_path):
    if not mx.distributed.is_available("ring"):
        pytest.skip("this build of MLX has no ring backend")
    store = tmp_path / "shared.jsonl"
    out = two_ranks(grid_file, store, tmp_path)
    assert out == [f"{len(grid)}\n"] * 2  # both saw the whole table
    lines = [rank_file(store, r, 2).read_bytes().count(b"\n") for r in range(2)]
    assert lines == [len(grid) // 2] * 2 and not store.exists()
    assert timeless(read_store(store)) == timeless(sweep_worker.sweep(grid, tmp_path / "one.jsonl"))
    assert timeless(sweep_worker.sweep(grid, store)) == timeless(read_store(store))  # one process finds nothing left
    assert store.read_bytes() == b""


def test_an_unknown_fault_is_found_before_any_work(grid, tmp_path):
    with pytest.raises(ConfigError, match="no fault is called 'mel_scael'"):
        sweep_worker.sweep(replace(grid, faults=("none", "chunk+mel_scael")), tmp_path / "s.jsonl")
    assert not (tmp_path / "s.jsonl").exists()


def test_a_faulty_model_is_made_once_for_all_its_runs(grid, tmp_path):
    faulty = replace(grid, faults=("none", "htk"), seeds=(0,))
    models, made = [], []

    def see(model, *rest):
        models.append(model)
        return sweep_worker.fake(model, *rest)

    table = run_sweep(
        faulty,
        tmp_path / "s.jsonl",
        run_one=see,
        load=lambda g: "intact",
        progress=False,
        with_fault=lambda model, name: made.append(name) or f"{model} but {name}",
    )
    assert made == ["htk"]
    assert models == ["intact"] * 24 + ["intact but htk"] * 24
    assert {row["defect"] for row in table.rows} == {"none", "htk"} and len(table) == 48


def test_a_failed_recording_is_a_row_and_a_failed_model_is_not(grid, tmp_path):
    def fails(error):
        def run_one(model, clip, setting, seed):
            if clip.file.name == "clip3.wav":
                raise error("what is wrong")
            return sweep_worker.fake(model, clip, setting, seed)

        return run_one

    table = run_sweep(grid, tmp_path / "s.jsonl", run_one=fails(AudioError), load=lambda g: None, progress=False)
    assert {row["error"] for row in table.rows if row["clip"] == "clip3.wav"} == {"what is wrong"}
    assert {row["error"] for row in table.rows if row["clip"] != "clip3.wav"} == {""}
    with pytest.raises(WeightsError):
        run_sweep(grid, tmp_path / "t.jsonl", run_one=fails(WeightsError), load=lambda g: None, progress=False)


def test_a_missing_recording_is_found_before_any_work(grid, tmp_path):
    Path(grid.clips[-1].file).unlink()
    with pytest.raises(DataError, match="clip11.wav: cannot be read"):
        sweep_worker.sweep(grid, tmp_path / "s.jsonl")
    assert not (tmp_path / "s.jsonl").exists()


def test_unknown_columns_are_refused(grid, tmp_path):
    with pytest.raises(DataError, match="unknown columns colour"):
        run_sweep(grid, tmp_path / "s.jsonl", run_one=lambda *_: {"colour": 1}, load=lambda g: None, progress=False)


# ---------------------------------------------------------------- with a real, tiny model


def test_rows_equal_the_model_called_directly(real_grid, real_table, tiny_model):
    assert len(real_table) == 8
    for row in real_table.rows[::3]:
        clip = next(c for c in real_grid.clips if c.file.name == row["clip"])
        setting = Setting.of(row["setting_json"])
        found = tiny_model.transcribe(
            clip.file, sampling=setting.sampling.override({"seed": row["seed"]}), cache=setting.cache, max_tokens=6
        )
        assert (row["text"], row["ids"]) == (found.text, [list(found.segments[0].tokens)])
        assert row["stops"] == [found.segments[0].stop] and row["n_ids"] == len(row["ids"][0])
        assert row["mean_logprob"] == pytest.approx(found.segments[0].mean_logprob)
        assert row["words"] == 2 and row["audio_seconds"] == found.audio_seconds and row["wall_seconds"] > 0


def test_clips_together_give_the_rows_of_each_alone(real_grid, real_table, tmp_path):
    alone = run_sweep(real_grid, tmp_path / "s.jsonl", run_one=transcribe_one, progress=False)
    for a, b in zip(timeless(real_table), timeless(alone), strict=True):
        assert a.pop("mean_logprob") == pytest.approx(b.pop("mean_logprob"), abs=1e-5) and a == b


def test_a_broken_recording_leaves_the_others_of_its_batch(real_grid, real_table, tmp_path):
    (tmp_path / "0.wav").write_bytes(b"no sound")
    shutil.copy(real_grid.clips[1].file, tmp_path / "1.wav")
    clips = [Clip(tmp_path / f"{i}.wav", "the cat") for i in range(2)]
    rows = run_sweep(replace(real_grid, clips=clips), tmp_path / "s.jsonl", progress=False).rows
    assert all((row["error"] != "") == (row["clip"] == "0.wav") for row in rows)
    known = {(r["setting"], r["seed"]): r["ids"] for r in real_table.rows if r["clip"] == "1.wav"}
    assert {(r["setting"], r["seed"]): r["ids"] for r in rows if r["clip"] == "1.wav"} == known


def test_a_recording_is_heard_once_for_all_settings(real_grid, tiny_model, tmp_path):
    read = []
    load = tiny_model.pipeline.load
    counting = replace(tiny_model.pipeline, load=lambda *a, **k: read.append(a) or load(*a, **k))
    run_sweep(real_grid, tmp_path / "s.jsonl", load=lambda g: tiny_model.altered(pipeline=counting), progress=False)
    assert len(read) == 2


def test_faults_behind_the_adapter_share_its_audio_embeddings(real_grid, tmp_path, monkeypatch):
    """Encoded once for them all, and the rows are those of each fault swept alone."""
    faults = ("none", "lost:lm_head", "lost:encoder.blocks.0.", "lost:lm_head+norm_pool", "lost:model.layers.0.")
    grid, real, encoded = replace(real_grid, seeds=(1,), faults=faults), Engine.encode_audio, []

    def counted(engine, mels):
        mels = list(mels)
        encoded.extend(mels)
        return real(engine, mels)

    monkeypatch.setattr(Engine, "encode_audio", counted)
    rows = timeless(run_sweep(grid, tmp_path / "s.jsonl", progress=False))
    assert len(encoded) == 3 * 2  # intact, another encoder, its end changed; two recordings
    for i, fault in enumerate(faults):
        alone = timeless(run_sweep(replace(grid, faults=(fault,)), tmp_path / f"{i}.jsonl", progress=False))
        assert alone == [row for row in rows if row["defect"] == fault]


def test_same_seed_same_tokens_and_other_seeds_differ(real_grid, real_table, tmp_path):
    assert timeless(real_table) == timeless(run_sweep(real_grid, tmp_path / "b.jsonl", progress=False))
    tokens = {(r["setting"], r["clip"], r["seed"]): r["ids"] for r in real_table.rows}
    assert (
        tokens["hot", "0.wav", 1] != tokens["hot", "0.wav", 2]
        and tokens["greedy", "0.wav", 1] == tokens["greedy", "0.wav", 2]
    )


def test_faults_change_their_own_rows_only(real_grid, real_table, tmp_path):
    both = replace(real_grid, seeds=(1,), faults=("none", "mel_scale", "framing+norm_pool"))
    rows = run_sweep(both, tmp_path / "s.jsonl", progress=False).rows
    intact = Table.of(r for r in real_table.rows if r["seed"] == 1)
    assert timeless(intact) == timeless(Table.of(r for r in rows if r["defect"] == "none"))
    logprobs = {d: [r["mean_logprob"] for r in rows if r["defect"] == d] for d in both.faults}
    assert len({tuple(v) for v in logprobs.values()}) == 3


def test_kv_bytes_are_positions_times_their_size(real_grid, real_table, tiny_model):
    per_position = 2 * 2 * 2 * 8 * 4  # keys and values, layers, heads, channels, float32
    assert tiny_model.config.text_config.kv_bytes_per_position(4) == per_position
    rows = real_table.rows
    assert {r["kv_bytes"] for r in rows if r["setting"] == "hot"} == {8 * per_position}  # the window is full
    greedy = [r for r in rows if r["setting"] == "greedy"]
    prompt = tiny_model.request(
        [
            {"role": "system", "content": real_grid.settings["greedy"].prompt},
            {"role": "human", "content": [{"type": "audio", "audio": str(real_grid.clips[0].file)}]},
            {"role": "assistant", "content": None},
        ]
    )
    given = greedy[0]["n_ids"] + (greedy[0]["stops"] == ["eos"])
    assert greedy[0]["clip"] == "0.wav" and greedy[0]["kv_bytes"] == (len(prompt.tokens) + given) * per_position


def test_everything_needed_to_repeat_is_there(real_grid, real_table, tiny_checkpoint):
    import hashlib

    row = real_table.rows[0]
    assert row["weights_hash"] == hashlib.sha256((tiny_checkpoint / "model.safetensors").read_bytes()).hexdigest()
    assert row["clip_hash"] == hashlib.sha256(real_grid.clips[0].file.read_bytes()).hexdigest()
    assert row["version"] and row["mlx"] and row["backend"] in ("cpu", "metal", "cuda")
    assert row["dtype"] in ("float32", "bfloat16") and len(row["config_hash"]) == 64
    assert "/" not in row["model"] + row["clip"]


def test_hash_follows_the_file_and_the_config_not_its_layout(tmp_path, tiny_checkpoint):
    folder = tmp_path / "copy"
    shutil.copytree(tiny_checkpoint, folder)
    before = provenance.provenance(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(dict(reversed(config.items())), indent=7))
    assert provenance.provenance(folder) == before
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert provenance.provenance(folder)["weights_hash"] != before["weights_hash"]


# ---------------------------------------------------------------- the command


def test_command_runs_a_grid_and_writes_a_table(real_grid, tmp_path, tiny_checkpoint, capsys):
    grid = {
        "model": str(tiny_checkpoint),
        "clips": [{"file": str(c.file), "text": c.text} for c in real_grid.clips],
        "settings": {"greedy": {"sampling": "greedy", "max_tokens": 4}},
    }
    (tmp_path / "g.json").write_text(json.dumps(grid))
    command = [
        "sweep",
        str(tmp_path / "g.json"),
        "-o",
        str(tmp_path / "s.jsonl"),
        "--table",
        str(tmp_path / "t.csv"),
    ]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["runs"] == 2
    assert timeless(read_table(tmp_path / "t.csv")) == timeless(read_store(tmp_path / "s.jsonl"))


def test_command_reports_a_bad_grid_in_one_line(tmp_path, capsys):
    (tmp_path / "g.json").write_text("{")
    assert main(["sweep", str(tmp_path / "g.json"), "-o", str(tmp_path / "s.jsonl")]) == 2
    assert "g.json: not readable as JSON" in capsys.readouterr().err
