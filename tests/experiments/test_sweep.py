"""Sweeps: what a grid means, that no kill loses or doubles a row, that ranks agree, that tables come back."""

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
import numpy as np
import pytest
import soundfile
import sweep_worker
import tiny

from stepaudio.cli.main import main
from stepaudio.decoding.sampling import Sampling
from stepaudio.errors import AudioError, ConfigError, DataError, DecodeError, WeightsError
from stepaudio.evaluation.manifest import Clip
from stepaudio.experiments import provenance
from stepaudio.experiments.grid import Grid, Setting, sampling_from
from stepaudio.experiments.store import COLUMNS, Store, Table, rank_file, read_store, read_table
from stepaudio.experiments.sweep import run_sweep, table_of
from stepaudio.models.kv_cache import CachePolicy

WORKER = Path(sweep_worker.__file__)
SETTINGS = {"planned": {}, "hot": {"sampling": {"base": "greedy", "temperature": 0.8}, "max_tokens": 40}}


@pytest.fixture
def grid_file(tmp_path, tiny_checkpoint) -> Path:
    """12 clips x 2 settings x 5 seeds, on disk; the recordings hold nothing, the fake never hears them."""
    for i in range(12):
        (tmp_path / f"clip{i}.wav").write_bytes(bytes([i]))
    clips = [{"file": f"clip{i}.wav", "text": f"said {i}"} for i in range(12)]
    grid = {
        "model": os.path.relpath(tiny_checkpoint, tmp_path),
        "clips": clips,
        "settings": SETTINGS,
        "seeds": [0, 1, 2, 3, 4],
    }
    path = tmp_path / "grid.json"
    path.write_text(json.dumps(grid), encoding="utf-8")
    return path


@pytest.fixture
def grid(grid_file) -> Grid:
    return Grid.from_file(grid_file)


@pytest.fixture(scope="module")
def heard_grid(tmp_path_factory, tiny_checkpoint) -> Grid:
    """Two recordings that the tiny model really transcribes."""
    tmp_path = tmp_path_factory.mktemp("heard")
    for i in range(2):
        soundfile.write(tmp_path / f"{i}.wav", tiny.noise(0.4 + 0.2 * i, seed=i), 16_000)
    settings = {
        "greedy": {"sampling": "greedy", "max_tokens": 6},
        "hot": {"sampling": {"temperature": 1.0}, "max_tokens": 6, "cache": {"kind": "window", "max_len": 8}},
    }
    return Grid([Clip(tmp_path / f"{i}.wav", "the cat") for i in range(2)], settings, tiny_checkpoint, seeds=(1, 2))


@pytest.fixture(scope="module")
def heard_table(heard_grid, tmp_path_factory) -> Table:
    return run_sweep(heard_grid, tmp_path_factory.mktemp("store") / "s.jsonl", progress=False)


def timeless(table: Table) -> list[dict]:
    return [{k: v for k, v in row.items() if k != "wall_seconds"} for row in table.rows]


def worker(grid_file, store, **environment):
    """The fake sweep in a process of its own; 4 ms a run, so that a kill may fall into a run or into a write."""
    command = [sys.executable, str(WORKER), str(grid_file), str(store), "0.004"]
    path = os.pathsep.join(filter(None, [str(WORKER.parents[1]), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, **environment}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


# ---------------------------------------------------------------- grids


def test_trials_are_every_combination_once(grid):
    trials = list(grid.trials())
    assert len(trials) == len({t.key for t in trials}) == len(grid) == 12 * 2 * 5


def test_setting_says_what_it_means():
    found = Setting.of(
        {
            "sampling": {"base": "greedy", "repetition": 1.3, "temperature": 0.5, "audio": {"window": 9}},
            "cache": {"kind": "window", "max_len": 64},
            "on_loop": "stop",
        }
    )
    assert found.sampling.text == replace(Sampling.greedy().text, repetition=1.3)
    assert found.sampling.audio == replace(Sampling.greedy().audio, repetition=1.3, window=9)
    assert (found.sampling.temperature, found.cache, found.on_loop) == (0.5, CachePolicy("window", 64), "stop")


def test_setting_comes_back_from_its_own_json():
    for spec in (
        {},
        *SETTINGS.values(),
        {"sampling": "reference", "cache": {"kind": "pinned", "positions": "renumbered"}},
    ):
        setting = Setting.of(spec)
        assert Setting.of(json.loads(json.dumps(setting.to_dict()))) == setting


@pytest.mark.parametrize(
    "spec, message",
    [
        ({"samplign": {}}, "unknown key samplign"),
        ({"sampling": {"temprature": 1}}, "unknown key temprature"),
        ({"sampling": {"text": {"windw": 1}}}, "sampling.text: unknown key windw"),
        ({"cache": {"size": 1}}, "unknown key size"),
        ({"sampling": {"seed": 3}}, "seeds belong to the grid"),
        ({"sampling": {"temperature": "hot"}}, "wrong type"),
        ({"max_tokens": 0}, "at least 1"),
        ({"on_loop": "cry"}, "on_loop"),
        ({"downmix": "left"}, "downmix"),
        ([], "a JSON object"),
        ({"cache": {"sinks": "few"}}, "wrong type|sinks"),
    ],
)
def test_bad_settings_are_refused_by_name(spec, message):
    with pytest.raises((ConfigError, DecodeError), match=message):
        Setting.of(spec)


def test_values_out_of_range_are_refused_by_their_own_records():
    with pytest.raises(DecodeError, match="top_p"):
        sampling_from({"top_p": 2})


@pytest.mark.parametrize(
    "change, message",
    [
        ({"seeds": []}, "seeds: a grid needs at least one"),
        ({"seeds": [1, 1]}, "listed twice"),
        ({"seeds": [-1]}, "0 or more"),
        ({"seeds": [True]}, "list of int"),
        ({"defects": "htk"}, "list of str"),
        ({"dtype": "int4"}, "dtype"),
        ({"sedes": [1]}, "unknown key sedes"),
        ({"clips": [{"file": "a"}]}, "clips: expected"),
        ({"settings": []}, "settings"),
        ({"clips": [{"file": "clip0.wav", "text": "a"}, {"file": "clip0.wav", "text": "b"}]}, "different texts"),
    ],
)
def test_bad_grids_are_refused_by_name(grid_file, change, message):
    grid_file.write_text(json.dumps(json.loads(grid_file.read_text()) | change))
    with pytest.raises(ConfigError, match=message):
        Grid.from_file(grid_file)


def test_grid_reads_a_manifest_beside_it(grid_file):
    (grid_file.parent / "m.tsv").write_text("file\ttext\nclip3.wav\thello\n")
    grid_file.write_text(json.dumps({"clips": "m.tsv", "settings": {"a": {}}}))
    assert Grid.from_file(grid_file).clips == (Clip(grid_file.parent / "clip3.wav", "hello"),)


def test_clip_names_hold_no_machine_and_stay_apart(tmp_path):
    clips = [Clip(tmp_path / "clean" / "1.wav", "x"), Clip(tmp_path / "noisy" / "1.wav", "x")]
    assert Grid(clips, {"a": {}}).clip_names == ["clean/1.wav", "noisy/1.wav"]


# ---------------------------------------------------------------- the store


def test_a_line_torn_at_any_byte_loses_only_itself(tmp_path):
    path = tmp_path / "s.jsonl"
    with Store(path) as store:
        store.append({"run": "a", "text": "first “é”"})
        whole = path.stat().st_size
        store.append({"run": "b", "text": "second\n“é”"})
    data = path.read_bytes()
    for size in range(whole, len(data)):
        path.write_bytes(data[:size])
        assert [r["run"] for r in read_store(path).rows] == ["a"]
        with Store(path) as store:
            assert path.read_bytes() == data[:whole]
            if size % 40 == 0:  # each waits for the disk
                store.append({"run": "c"})
                assert [r["run"] for r in read_store(path).rows] == ["a", "c"]


@pytest.mark.parametrize("junk", [b"x" * 70_000, b'{"run": "a"', b"\0" * 200_000])
def test_a_file_of_nothing_but_a_torn_line_becomes_empty(tmp_path, junk):
    path = tmp_path / "s.jsonl"
    path.write_bytes(junk)
    with Store(path):
        assert path.read_bytes() == b""


def test_a_broken_finished_line_is_refused(tmp_path):
    (tmp_path / "s.jsonl").write_text('{"run": "a"}\n')
    with pytest.raises(DataError, match="s.jsonl:1: not a row"):
        read_store(tmp_path / "s.jsonl")


def test_two_writers_are_refused(tmp_path):
    with Store(tmp_path / "s.jsonl"), pytest.raises(DataError, match="another sweep"):
        Store(tmp_path / "s.jsonl").__enter__()


def test_only_files_of_ranks_belong_to_a_store(tmp_path):
    assert rank_file(tmp_path / "s.jsonl", 0, 1) == tmp_path / "s.jsonl"
    for file, run in (
        (rank_file(tmp_path / "s.jsonl", 1, 2), "b"),
        (tmp_path / "s-rankx.jsonl", "x"),
        (tmp_path / "t-rank1.jsonl", "y"),
        (tmp_path / "s.jsonl", "a"),
    ):
        with Store(file) as store:
            store.append({"run": run})
            store.append({"run": "a"})  # the same run in two files counts once
    assert sorted(r["run"] for r in read_store(tmp_path / "s.jsonl").rows) == ["a", "b"]


def test_a_missing_store_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no such store"):
        read_store(tmp_path / "none.jsonl")


# ---------------------------------------------------------------- sweeps


def test_killed_ten_times_gives_the_same_table(grid_file, grid, tmp_path):
    """SIGKILL at random moments, in runs and in writes; then the rest. Every kill must find the sweep at work."""
    store, rng = tmp_path / "killed.jsonl", random.Random(3)
    size = 0
    for _ in range(10):
        process = worker(grid_file, store)
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
    assert 10 <= n_before < len(grid)
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


def test_an_unknown_defect_is_found_before_any_work(grid, tmp_path):
    with pytest.raises(ConfigError, match="no defect is called 'mel_scael'"):
        sweep_worker.sweep(replace(grid, defects=("none", "chunk+mel_scael")), tmp_path / "s.jsonl")
    assert not (tmp_path / "s.jsonl").exists()


def test_a_defective_model_is_made_once_for_all_its_runs(grid, tmp_path):
    broken = replace(grid, defects=("none", "htk"), seeds=(0,))
    models, made = [], []

    def see(model, *rest):
        models.append(model)
        return sweep_worker.fake(model, *rest)

    table = run_sweep(
        broken,
        tmp_path / "s.jsonl",
        run_one=see,
        load=lambda g: "faithful",
        progress=False,
        with_defect=lambda model, name: made.append(name) or f"{model} but {name}",
    )
    assert made == ["htk"]
    assert models == ["faithful"] * 24 + ["faithful but htk"] * 24
    assert {row["defect"] for row in table.rows} == {"none", "htk"} and len(table) == 48


def test_a_failed_recording_is_a_row_and_a_broken_model_is_not(grid, tmp_path):
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


def test_rows_equal_what_the_model_says_by_itself(heard_grid, heard_table, tiny_model):
    assert len(heard_table) == 8
    for row in heard_table.rows[::3]:
        clip = next(c for c in heard_grid.clips if c.file.name == row["clip"])
        setting = Setting.of(row["setting_json"])
        heard = tiny_model.transcribe(
            clip.file, sampling=setting.sampling.override({"seed": row["seed"]}), cache=setting.cache, max_tokens=6
        )
        assert (row["text"], row["ids"]) == (heard.text, [list(heard.segments[0].ids)])
        assert row["stops"] == [heard.segments[0].stop] and row["n_ids"] == len(row["ids"][0])
        assert row["mean_logprob"] == pytest.approx(heard.segments[0].mean_logprob)
        assert row["words"] == 2 and row["audio_seconds"] == heard.audio_seconds and row["wall_seconds"] > 0


def test_same_seed_same_ids_and_other_seeds_differ(heard_grid, heard_table, tmp_path):
    assert timeless(heard_table) == timeless(run_sweep(heard_grid, tmp_path / "b.jsonl", progress=False))
    ids = {(r["setting"], r["clip"], r["seed"]): r["ids"] for r in heard_table.rows}
    assert ids["hot", "0.wav", 1] != ids["hot", "0.wav", 2] and ids["greedy", "0.wav", 1] == ids["greedy", "0.wav", 2]


def test_defects_break_their_own_rows_only(heard_grid, heard_table, tmp_path):
    both = replace(heard_grid, seeds=(1,), defects=("none", "mel_scale", "framing+norm_pool"))
    rows = run_sweep(both, tmp_path / "s.jsonl", progress=False).rows
    faithful = Table.of(r for r in heard_table.rows if r["seed"] == 1)
    assert timeless(faithful) == timeless(Table.of(r for r in rows if r["defect"] == "none"))
    logprobs = {d: [r["mean_logprob"] for r in rows if r["defect"] == d] for d in both.defects}
    assert len({tuple(v) for v in logprobs.values()}) == 3


def test_kv_bytes_are_positions_times_their_price(heard_grid, heard_table, tiny_model):
    per_position = 2 * 2 * 2 * 8 * 4  # keys and values, layers, heads, channels, float32
    assert tiny_model.config.text_config.kv_bytes_per_position(4) == per_position
    rows = heard_table.rows
    assert {r["kv_bytes"] for r in rows if r["setting"] == "hot"} == {8 * per_position}  # the window is full
    greedy = [r for r in rows if r["setting"] == "greedy"]
    prompt = tiny_model.request(
        [
            {"role": "system", "content": heard_grid.settings["greedy"].prompt},
            {"role": "human", "content": [{"type": "audio", "audio": str(heard_grid.clips[0].file)}]},
            {"role": "assistant", "content": None},
        ]
    )
    given = greedy[0]["n_ids"] + (greedy[0]["stops"] == ["eos"])
    assert greedy[0]["clip"] == "0.wav" and greedy[0]["kv_bytes"] == (len(prompt.ids) + given) * per_position


def test_everything_needed_to_repeat_is_there(heard_grid, heard_table, tiny_checkpoint):
    import hashlib

    row = heard_table.rows[0]
    assert row["weights_hash"] == hashlib.sha256((tiny_checkpoint / "model.safetensors").read_bytes()).hexdigest()
    assert row["clip_hash"] == hashlib.sha256(heard_grid.clips[0].file.read_bytes()).hexdigest()
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


# ---------------------------------------------------------------- tables that come back


@pytest.fixture
def awkward(grid, tmp_path) -> Table:
    """Rows with everything that is hard to write in a cell."""
    table = sweep_worker.sweep(replace(grid, seeds=(0,)), tmp_path / "awkward.jsonl")
    odd = [
        {"text": 'a "quote", a comma\nand a line; 你好', "rep_4": None, "period": 3, "onset": 0},
        {"text": "", "expected": "NaN", "error": "null", "ids": [], "n_ids": None, "mean_logprob": -1 / 3},
        {"text": "1e5", "ids": [list(range(40_000))], "stops": ["stop string"], "wall_seconds": 1e-17},
    ]
    return Table.of([r | o for r, o in zip(table.rows, odd, strict=False)] + list(table.rows[3:]))


def test_csv_comes_back(awkward, tmp_path):
    awkward.to_csv(tmp_path / "t.csv")
    assert read_table(tmp_path / "t.csv") == awkward


def test_frame_has_tidy_columns(awkward):
    pandas = pytest.importorskip("pandas")
    frame = awkward.to_frame()
    assert list(frame.columns) == list(COLUMNS) and len(frame) == 24
    assert frame["period"].dtype == pandas.Int64Dtype() and frame["period"].notna().sum() == 1
    assert frame["rep_4"].dtype == np.float64 and frame["rep_4"].isna().sum() == 1
    assert frame.groupby("setting")["errors"].sum()["hot"] == sum(
        r["errors"] for r in awkward.rows if r["setting"] == "hot"
    )


def test_parquet_comes_back(awkward, tmp_path):
    pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    awkward.to_parquet(tmp_path / "t.parquet")
    assert read_table(tmp_path / "t.parquet") == awkward


def test_parquet_without_pyarrow_says_so(awkward, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)  # what import sees where it is not installed
    with pytest.raises(DataError, match="needs pyarrow"):
        awkward.to_parquet(tmp_path / "t.parquet")


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n"])
def test_a_csv_that_is_no_sweep_is_refused(tmp_path, text):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError, match="not a table"):
        read_table(tmp_path / "t.csv")


# ---------------------------------------------------------------- the command


def test_command_runs_a_grid_and_writes_a_table(heard_grid, tmp_path, tiny_checkpoint, capsys):
    grid = {
        "model": str(tiny_checkpoint),
        "clips": [{"file": str(c.file), "text": c.text} for c in heard_grid.clips],
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
