"""Grids of runs, stored with all that is needed to repeat them, and faults to inject. Names are imported lazily."""

from typing import TYPE_CHECKING

from ..lazy import lazy_names as _lazy_names

if TYPE_CHECKING:
    from .faults import FAULTS, faulty
    from .grid import Grid, Setting
    from .store import read_store, read_table
    from .sweep import run_sweep, table_of
    from .table import Table

_NAMES = {
    "FAULTS": "faults",
    "Grid": "grid",
    "Setting": "grid",
    "Table": "table",
    "faulty": "faults",
    "read_store": "store",
    "read_table": "store",
    "run_sweep": "sweep",
    "table_of": "sweep",
}

__all__ = ["FAULTS", "Grid", "Setting", "Table", "faulty", "read_store", "read_table", "run_sweep", "table_of"]

__getattr__, __dir__ = _lazy_names(__name__, _NAMES)
