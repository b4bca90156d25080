"""Stores and tables: torn lines, two writers, and values that come back from CSV and Parquet as they were."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sweep_worker

from stepaudio.errors import DataError
from stepaudio.experiments.store import Store, is_store, rank_file, read_store, read_table
from stepaudio.experiments.table import COLUMNS, Table, complete, is_table


def test_a_line_torn_at_any_byte_loses_only_itself(tmp_path):
    path = tmp_path / "s.jsonl"
    with Store(path) as store:
        store.append({"run": "a", "text": "first “é”"})
        whole = path.stat().st_size
        store.append({"run": "b", "text": "second\n“é”"})
    data = path.read_bytes()
    for size in range(whole, len(data)):
        path.write_bytes(data[:size])
        assert [r["run"] for r in read_store(path).rows] == ["a"] and is_store(path)
        with Store(path) as store:
            assert path.read_bytes() == (
                data[:whole] if size < len(data) - 1 else data
            )  # of the last only its end lacks
            if size % 40 == 0:  # each waits for the disk
                store.append({"run": "c"})
                assert [r["run"] for r in read_store(path).rows] == ["a", "c"]


@pytest.mark.parametrize("junk", [b"", b'{"run": "a"', b'{"ru', b'{"run": "a", "clip": "b.wav", "sett'])
def test_a_file_of_nothing_but_a_torn_row_becomes_empty(tmp_path, junk):
    path = tmp_path / "s.jsonl"
    path.write_bytes(junk)
    assert is_store(path)
    with Store(path):
        assert path.read_bytes() == b""


ROW = json.dumps(complete({"run": "a", "clip": "b.wav", "seed": 1})).encode() + b"\n"


@pytest.mark.parametrize("foreign", [
    b"x" * 70_000, b"\0" * 200_000, b"# notes\nof an afternoon", b"PAR1\n\x00\xff\nPAR1", b"{}\n", b"[1, 2]\n",
    b"null\n",
    b'{"run": 5}', b'{"run": "a"}', b'{"run": "a", "loss": 0.3, "st', b'{"run": "a"}\n', b'{\n "clips": [],\n', b"\n",
    b"[" * 100_000, b"[" * 100_000 + b"\n", b"\xef\xbb\xbf" + ROW, ROW.decode().encode("utf-16"),
    ROW.replace(b"\n", b"\r\n") + b"x",
    ROW + b"my own remark", ROW + b"my own remark\n", b"remark\n" + ROW, ROW + b"\n" + ROW, ROW + ROW[:40] + ROW,
    ROW.replace(b'"seed": 1', b'"seed": "1"'), ROW.replace(b'"seed": 1', b'"seed": NaN'),
    ROW.replace(b'"seed": 1', b'"seed": 1e400'), ROW.replace(b'"seed": 1', b'"seed": ' + b"9" * 5000),
    ROW.replace(b'"seed": 1', b'"seed": true'), ROW.replace(b'"clip": "b.wav"', b'"clip": []'),
    ROW.replace(b"}\n", b', "a column of a later version": 1}\n'),
])  # fmt: skip
def test_a_file_that_is_something_else_is_refused_and_left_as_it_is(tmp_path, foreign):
    path = tmp_path / "s.jsonl"
    path.write_bytes(foreign)
    assert not is_store(path)
    with pytest.raises(DataError, match=r"s.jsonl:\d+: not a row of a sweep.*name another store"):
        Store(path).__enter__()
    assert path.read_bytes() == foreign
    with Store(tmp_path / "other.jsonl"):  # nothing stays open or locked
        pass


def test_a_place_where_no_file_can_be_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", tmp_path / ("n" * 300), Path("/dev/null")):
        with pytest.raises(DataError):
            Store(path).__enter__()


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


def test_rows_with_and_without_a_seed_are_sorted():
    assert [r["seed"] for r in Table.of([{"seed": 2}, {}, {"seed": 0}]).rows] == [None, 0, 2]


HEAD = ",".join(COLUMNS) + "\n"


@pytest.mark.parametrize("data", [
    b"", b"a,b\n1,2\n", b"\xff\xfe", HEAD.encode() + b"1,2\n", HEAD.encode() + b"\xff\n", b'"' * 9,
    HEAD.encode() + ("," * (len(COLUMNS) - 1)).encode() + b"\n",  # lists that are no JSON
])  # fmt: skip
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_table_that_is_no_sweep_is_refused(tmp_path, data, suffix):
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
    path = tmp_path / f"t.{suffix}"
    path.write_bytes(data)
    with pytest.raises(DataError, match="not a table"):
        read_table(path)
    assert is_table(path) == (suffix == "csv" and data.startswith(HEAD.encode()))


def test_a_table_knows_its_own(awkward, tmp_path):
    pytest.importorskip("pyarrow")
    import pandas

    for name in ("t.csv", "t.parquet"):
        awkward.write(tmp_path / name)
        assert is_table(tmp_path / name)
    pandas.DataFrame({"run": ["a"]}).to_parquet(tmp_path / "other.parquet")
    assert not is_table(tmp_path / "other.parquet")
    for path in (tmp_path, tmp_path / "none.csv", tmp_path / ("n" * 300 + ".csv")):
        assert not is_table(path)
        with pytest.raises(DataError):
            read_table(path)


def test_a_full_disk_names_the_store_and_keeps_its_rows(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    path = tmp_path / "s.jsonl"
    with Store(path) as store:
        store.append({"run": "a"})
        monkeypatch.setattr(os, "write", full)
        with pytest.raises(DataError, match=r"s\.jsonl: a row cannot be written \(No space left"):
            store.append({"run": "b"})
    assert [row["run"] for row in read_store(path).rows] == ["a"]
