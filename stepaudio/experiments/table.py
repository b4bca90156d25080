"""The tidy table of finished runs: its columns, one row a run, and its files (.csv, .parquet).

Only the columns of a row are known here, not how a run is made or stored.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from ..errors import DataError
from ..files import replaced_file

NO_EDITS = "none"
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
    "edits": "str",  # the name of the edits in the run, or "none"
    "edits_hash": "str",  # `Edits.digest` of what was edited, donors and all, else ""
    "edits_json": "json",  # what the grid says of them, every condition
}
LATER = ("edits", "edits_hash", "edits_json")  # tables and stores of version 0.1 have them not
FORMS = (list(COLUMNS), [name for name in COLUMNS if name not in LATER])
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


def complete(row: Mapping) -> dict:
    """The row with all columns in order, absent ones empty; refuses a column there is none of."""
    unknown = set(row) - set(COLUMNS)
    if unknown:
        raise DataError(f"a run returned unknown columns {', '.join(sorted(unknown))}; known are {', '.join(COLUMNS)}")
    empty = {"str": "", "json": [], "int": None, "float": None}
    return {name: row.get(name, NO_EDITS if name == "edits" else empty[kind]) for name, kind in COLUMNS.items()}


@dataclass(frozen=True)
class Table:
    """Finished runs, one row each, sorted by setting, fault, edits, clip and seed, not in the order they ran in."""

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
    return row["setting"], row["defect"], row["edits"], row["clip"], row["seed"] is not None, row["seed"] or 0


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
                return stream.readline(1 << 16) in [",".join(form).encode() + b"\n" for form in FORMS]
        _need_pyarrow()
        from pyarrow.parquet import read_schema

        return read_schema(path).names in FORMS
    except (DataError, OSError, ValueError):  # pyarrow's own errors are ValueErrors
        return False


def read_table_file(path: str | Path) -> Table:
    """The table from what `Table.to_csv` or `Table.to_parquet` wrote; raises what `store.read_table` does."""
    path = Path(path)
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
        names = _checked_columns(next(reader, []), path)
        return Table.of(
            {name: _from_cell(cell, COLUMNS[name]) for name, cell in zip(names, line, strict=True)} for line in reader
        )


def _big_cells(stream):
    """The tokens of a long recording outgrow the csv module's cell of 131 072 characters."""
    csv.field_size_limit(1 << 30)
    return stream


def _from_parquet(path: Path) -> Table:
    _need_pyarrow()
    frame = _pandas().read_parquet(path, engine="pyarrow")
    names = _checked_columns(list(frame.columns), path)
    absent = frame.isna()
    convert = {"int": int, "float": float, "str": str, "json": json.loads}
    columns = [
        [None if gone else convert[COLUMNS[name]](cell) for cell, gone in zip(frame[name], absent[name], strict=True)]
        for name in names
    ]
    return Table.of(dict(zip(names, cells, strict=True)) for cells in zip(*columns, strict=True))


def _checked_columns(found: list[str], path: Path) -> list[str]:
    if list(found) not in FORMS:
        odd = sorted(set(found) ^ set(COLUMNS)) or ["their order"]
        raise DataError(f"{path}: not a table of this version of the package; columns differ in {', '.join(odd[:5])}")
    return list(found)


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
