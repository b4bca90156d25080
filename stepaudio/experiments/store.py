"""Where finished runs go: one JSON object a line, on disk before the next run starts.

A process killed in the middle of a line leaves a torn last line; its owner removes it, readers ignore it. A file that
holds anything else than rows is not touched.
"""

from __future__ import annotations

import fcntl
import glob
import json
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from ..errors import DataError
from .table import COLUMNS, FORMS, TABLES, Table, complete, read_table_file


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
    if not isinstance(row, dict) or set(row) not in map(set, FORMS):
        return None
    return row if all(_fits(value, COLUMNS[name]) for name, value in row.items()) else None


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


def read_table(path: str | Path) -> Table:
    """The table from what `to_csv` or `to_parquet` wrote, or from a store (.jsonl); `.to_frame()` for pandas.

    Raises
    ------
    DataError : there is no such file, it cannot be read, or it is no table of this version of the package.
    """
    path = Path(path)
    return read_table_file(path) if path.suffix in TABLES else read_store(path)
