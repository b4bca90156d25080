"""Stores and tables: torn lines, two writers, and values that come back from CSV and Parquet as they were."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import sweep_worker

from stepaudio.errors import DataError
from stepaudio.experiments.store import COLUMNS, Store, Table, rank_file, read_store, read_table


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


def test_a_damaged_finished_line_is_refused(tmp_path):
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
