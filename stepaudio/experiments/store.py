"""Where finished runs go: one JSON object a line, on disk before the next run starts, and the tidy table of them.

A process killed in the middle of a line leaves a torn last line; its owner removes it, readers ignore it. A file that
holds anything else than rows is not touched. Only the columns of a row are known here, not how a run is made.
"""

from __future__ import annotations

import csv
import fcntl
import glob
import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from ..errors import DataError
from ..files import replaced_file

# Every column and what it holds. "json": a list or an object. int and float may be absent (None), the others not.
# The names are the format of stored tables and stay: `ids` are tokens, `text` the hypothesis, `expected` the reference.
COLUMNS = {
    "run": "str",  # hash of all that determines the run; no two rows share it
    "clip": "str",
    "setting": "str",
    "seed": "int",
    "defect": "str",  # the fault injected, or "none"
    "text": "str",  # what was recognised
    "expected": "str",  # what was said
    "words": "int",
    "errors": "int",
    "chars": "int",
    "char_errors": "int",
    "ids": "json",  # one list of tokens per segment of at most 25 s, without the end of the turn
    "stops": "json",  # why each segment ended
    "n_ids": "int",
    "loops": "int",  # segments that fell into a repetition loop
    "period": "int",
    "onset": "int",  # of the first such segment, in tokens
    "rep_4": "float",  # mean over segments; absent if none has four tokens
    "mean_logprob": "float",  # natural log, over all tokens of all segments
    "kv_bytes": "int",  # keys and values held at the end of the longest segment
    "audio_seconds": "float",
    "wall_seconds": "float",
    "error": "str",  # why the run could not be made, else ""
    "model": "str",
    "config_hash": "str",
    "weights_hash": "str",
    "clip_hash": "str",
    "version": "str",
    "mlx": "str",
    "backend": "str",
    "dtype": "str",
    "setting_json": "json",  # every value of the setting, defaults too
}
SHARED = (
    "model",
    "config_hash",
    "weights_hash",
    "version",
    "mlx",
    "backend",
    "dtype",
)  # same in all rows of a store


TABLES = (".csv", ".parquet")


class Store:
    """One file of rows that this process alone appends to. Use as a context manager.

    Raises `DataError` if the file cannot be written, if another process is writing to it, or if it holds anything else
    than rows of a sweep: it is then left as it was.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)

    def __enter__(self) -> Store:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        except (OSError, ValueError) as error:
            raise DataError(f"{self.path}: cannot be written ({getattr(error, 'strerror', error)})") from None
        try:
            self._claim()
            self._mend_last_line()
        except BaseException:
            os.close(self._fd)
            raise
        return self

    def _claim(self) -> None:
        if not stat.S_ISREG(os.fstat(self._fd).st_mode):
            raise DataError(f"{self.path}: is no regular file, so no rows can be kept in it; name another store")
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # released by the system when the process dies
        except OSError:
            raise DataError(
                f"{self.path}: another sweep is writing to it; wait for it, or name another store"
            ) from None

    def __exit__(self, *_) -> None:
        os.close(self._fd)

    def _mend_last_line(self) -> None:
        """Remove a line that a kill tore, or end it if only its end lacks, once all of the file is known as ours."""
        whole, torn = _split(_bytes_of(self.path))
        for _ in _rows(whole, self.path):
            pass
        if _row(torn) is not None:
            os.write(self._fd, b"\n")
        elif _begins_row(torn):
            os.ftruncate(self._fd, len(whole))
        else:
            raise _foreign(self.path, whole.count(b"\n") + 1)

    def append(self, row: Mapping) -> None:
        """Write one row and wait until it is on the disk. Raises `DataError` if it cannot be, say on a full disk."""
        line = (json.dumps(complete(row), ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")
        try:
            while line:
                line = line[os.write(self._fd, line) :]
            os.fsync(self._fd)
        except OSError as error:
            raise DataError(
                f"{self.path}: a row cannot be written ({error.strerror}); the rows before it are kept, and the same "
                "sweep goes on behind them once there is room"
            ) from None


def complete(row: Mapping) -> dict:
    """The row with all columns in order, absent ones empty; refuses a column there is none of."""
    unknown = set(row) - set(COLUMNS)
    if unknown:
        raise DataError(f"a run returned unknown columns {', '.join(sorted(unknown))}; known are {', '.join(COLUMNS)}")
    empty = {"str": "", "json": [], "int": None, "float": None}
    return {name: row.get(name, empty[kind]) for name, kind in COLUMNS.items()}


def rank_file(path: str | Path, rank: int, size: int) -> Path:
    """The file that a rank appends to: the store itself if it is alone, else `store-rank0.jsonl`, `-rank1`, ..."""
    path = Path(path)
    return path if size == 1 else path.with_name(f"{path.stem}-rank{rank}{path.suffix}")


def store_files(path: str | Path) -> list[Path]:
    """All files of a store that exist, its own and those of ranks."""
    path = Path(path)
    there = path.parent.glob(f"*{glob.escape(path.suffix)}")
    ranked = {f: rank for f in there if (rank := _rank_of(f, path)) is not None}
    return [f for f in [path, *sorted(ranked, key=ranked.__getitem__)] if os.path.exists(f)]


def _rank_of(file: Path, store: Path) -> int | None:
    head, _, number = file.stem.rpartition("-rank")
    return int(number) if head == store.stem and number.isdecimal() else None


def read_store(path: str | Path) -> Table:
    """All finished runs of a store, from all its files, each once, in the order of `Table`.

    A torn last line is ignored.

    Raises
    ------
    DataError : there is no such store, it cannot be read, or a finished line is no row of one.
    """
    files = store_files(path)
    if not files:
        raise DataError(f"{path}: no such store; run a sweep into it first")
    rows: dict[str, dict] = {}
    for file in files:
        for row in _rows(_split(_bytes_of(file))[0], file):
            rows.setdefault(row["run"], row)
    return Table.of(rows.values())


def is_store(path: str | Path) -> bool:
    """Whether a file holds rows of a sweep and nothing else; its last line may be torn. True of an empty file."""
    path = Path(path)
    try:
        whole, torn = _split(_bytes_of(path))
        return all(_rows(whole, path)) and (_row(torn) is not None or _begins_row(torn))
    except DataError:
        return False


def _bytes_of(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from None


def _split(data: bytes) -> tuple[bytes, bytes]:
    """Finished lines, and what stands behind the last newline: nothing, or a torn line."""
    end = data.rfind(b"\n") + 1
    return data[:end], data[end:]


def _rows(whole: bytes, file: Path) -> Iterator[dict]:
    for number, line in enumerate(whole.split(b"\n")[:-1], 1):
        row = _row(line)
        if row is None:
            raise _foreign(file, number)
        yield row


def _foreign(file: Path, number: int) -> DataError:
    return DataError(
        f"{file}:{number}: not a row of a sweep; the file is something else, was changed by something else, or comes "
        "from another version of this package, and was left as it is: name another store"
    )


def _row(line: bytes) -> dict | None:
    """The row in a line, or None if it holds anything else."""
    try:
        row = json.loads(line.decode("utf-8"), parse_constant=_no_number)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or set(row) != set(COLUMNS):
        return None
    return row if all(_fits(row[name], kind) for name, kind in COLUMNS.items()) else None


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


def _fits(value: object, kind: str) -> bool:
    if kind in ("int", "float"):
        wanted = (int, float) if kind == "float" else int
        return value is None or (isinstance(value, wanted) and not isinstance(value, bool) and abs(value) < 1 << 63)
    return isinstance(value, str if kind == "str" else (list, dict))


def _begins_row(torn: bytes) -> bool:
    """Whether these bytes are the start, if only none, of a row as `append` writes it: the run, then the clip."""
    begin, middle = b'{"run": "', b'", "clip": "'
    if len(torn) <= len(begin):
        return begin.startswith(torn)
    _, quote, rest = torn.removeprefix(begin).partition(b'"')
    return torn.startswith(begin) and (not quote or (quote + rest)[: len(middle)] == middle[: len(quote + rest)])


@dataclass(frozen=True)
class Table:
    """Finished runs, one row each, sorted by setting, fault, clip and seed, not in the order they ran in."""

    rows: tuple[dict, ...]

    @classmethod
    def of(cls, rows: Iterable[Mapping]) -> Table:
        """A table of these rows in its order; columns that a row lacks are empty."""
        return cls(tuple(sorted(map(complete, rows), key=_order)))

    def __len__(self) -> int:
        return len(self.rows)

    def to_frame(self):
        """A pandas table with the columns of `COLUMNS`; whole numbers that may be absent are `Int64`."""
        pandas = _pandas()
        kinds = {"int": "Int64", "float": "float64"}
        frame = pandas.DataFrame(list(self.rows), columns=list(COLUMNS))
        return frame.astype({name: kinds[kind] for name, kind in COLUMNS.items() if kind in kinds})

    def write(self, path: str | Path) -> None:
        """`to_csv` or `to_parquet`, by the ending of the name. Raises `DataError` for another ending."""
        check_table_name(path)
        (self.to_csv if Path(path).suffix == ".csv" else self.to_parquet)(path)

    def to_csv(self, path: str | Path) -> None:
        """Write a CSV file in UTF-8, whole or not at all; lists and objects as JSON, an absent number an empty cell."""
        with replaced_file(path) as aside, aside.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(COLUMNS)
            for row in self.rows:
                writer.writerow([_to_cell(row[name], kind) for name, kind in COLUMNS.items()])

    def to_parquet(self, path: str | Path) -> None:
        """Write a Parquet file, lists and objects as JSON text. Raises `DataError` if pyarrow is not installed."""
        _need_pyarrow()
        frame = self.to_frame()
        for name in _JSON:
            frame[name] = [_to_cell(value, "json") for value in frame[name]]
        with replaced_file(path) as aside:
            frame.to_parquet(aside, engine="pyarrow", index=False)


def _order(row: Mapping) -> tuple:
    return row["setting"], row["defect"], row["clip"], row["seed"] is not None, row["seed"] or 0


_JSON = [name for name, kind in COLUMNS.items() if kind == "json"]


def check_table_name(path: str | Path) -> None:
    """Raise `DataError` unless a table can be written under this name: .csv, or .parquet where that is installed."""
    suffix = Path(path).suffix
    if suffix not in TABLES:
        raise DataError(f"{path}: a table is written as {' or '.join(TABLES)}, found {suffix or 'no suffix'}")
    if suffix == ".parquet":
        _need_pyarrow()
        _pandas()


def is_table(path: str | Path) -> bool:
    """Whether a file is a table of a sweep in the format of its suffix; only its head is read."""
    path = Path(path)
    try:
        if path.suffix == ".csv":
            with path.open("rb") as stream:
                return stream.readline(1 << 16) == ",".join(COLUMNS).encode() + b"\n"
        _need_pyarrow()
        from pyarrow.parquet import read_schema

        return read_schema(path).names == list(COLUMNS)
    except (DataError, OSError, ValueError):  # pyarrow's own errors are ValueErrors
        return False


def read_table(path: str | Path) -> Table:
    """The table from what `to_csv` or `to_parquet` wrote, or from a store (.jsonl); `.to_frame()` for pandas.

    Raises
    ------
    DataError : there is no such file, it cannot be read, or it is no table of this version of the package.
    """
    path = Path(path)
    if path.suffix not in TABLES:
        return read_store(path)
    try:
        return _from_csv(path) if path.suffix == ".csv" else _from_parquet(path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such table") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (ValueError, TypeError, RecursionError, csv.Error) as error:  # ValueError: pyarrow's own, too
        raise DataError(f"{path}: not a table of a sweep ({str(error)[:100]})") from None


def _from_csv(path: Path) -> Table:
    with path.open(encoding="utf-8", newline="") as stream:
        reader = csv.reader(_big_cells(stream))
        _check_columns(next(reader, []), path)
        kinds = COLUMNS.items()
        return Table.of(
            {name: _from_cell(cell, kind) for (name, kind), cell in zip(kinds, line, strict=True)} for line in reader
        )


def _big_cells(stream):
    """The tokens of a long recording outgrow the csv module's cell of 131 072 characters."""
    csv.field_size_limit(1 << 30)
    return stream


def _from_parquet(path: Path) -> Table:
    _need_pyarrow()
    frame = _pandas().read_parquet(path, engine="pyarrow")
    _check_columns(list(frame.columns), path)
    absent = frame.isna()
    convert = {"int": int, "float": float, "str": str, "json": json.loads}
    return Table.of(
        {name: None if absent.at[i, name] else convert[kind](frame.at[i, name]) for name, kind in COLUMNS.items()}
        for i in frame.index
    )


def _check_columns(found: list[str], path: Path) -> None:
    if list(found) != list(COLUMNS):
        odd = sorted(set(found) ^ set(COLUMNS)) or ["their order"]
        raise DataError(f"{path}: not a table of this version of the package; columns differ in {', '.join(odd[:5])}")


def _to_cell(value, kind: str) -> str:
    if kind == "json":
        return json.dumps(value, ensure_ascii=False)
    return "" if value is None else repr(value) if kind == "float" else str(value)


def _from_cell(cell: str, kind: str):
    if kind == "str":
        return cell
    if kind == "json":
        return json.loads(cell)
    return None if cell == "" else int(cell) if kind == "int" else float(cell)


def _pandas():
    try:
        import pandas
    except ImportError:
        raise DataError(
            "this needs pandas, which is not installed: install stepaudio[notebook], or use to_csv and "
            "Table.rows, which do without"
        ) from None
    return pandas


def _need_pyarrow() -> None:
    if find_spec("pyarrow") is None:
        raise DataError(
            "Parquet needs pyarrow, which is not installed: install it, or use CSV, which keeps the same columns"
        )
