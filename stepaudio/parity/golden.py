"""One golden file: its config and arrays, comparison with what was computed, and a ledger of what was compared."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..checkpoints.layout import CONV1D, CONV2D
from ..errors import DataError

KERNEL_AXES = {3: CONV1D, 4: CONV2D}  # by the number of axes: golden files hold no transposed convolutions


@dataclass(frozen=True)
class Row:
    """One line of the table. verdict: "ok", "off", "unusable" or "not covered"."""

    stage: str
    absolute: float | None
    relative: float | None
    tolerance: float | None
    verdict: str
    note: str = ""
    condition: float | None = None  # of a sound: how far the last digit of the pitch moves it

    @property
    def good(self) -> bool:
        """Whether this row lets the whole pass."""
        return self.verdict in ("ok", "not covered")


class Golden:
    """One golden file: config, arrays, and a record of which expectations were looked at.

    `folder` is where the file lies, for checks that need the weights of another file beside it.
    """

    def __init__(self, config: dict, arrays: dict[str, np.ndarray], folder: Path | None = None):
        self.config, self._arrays, self.folder = config, arrays, folder
        self.rows: list[Row] = []
        self._seen: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._arrays:
            raise DataError(f"tensor {name} is missing")
        return self._arrays[name]

    def names(self, prefix: str, suffix: str = "") -> list[str]:
        """The middles of all names that start and end so."""
        stop = -len(suffix) or None
        return [n[len(prefix) : stop] for n in self._arrays if n.startswith(prefix) and n.endswith(suffix)]

    def weights(self, prefix: str = "") -> list[tuple[str, mx.array]]:
        """Weights under module names, kernels as MLX holds them.

        The rule is the number of axes, which only convolutions have more than two of: three are Conv1d,
        (out, in, k) -> (out, k, in); four are Conv2d, (out, in, kh, kw) -> (out, kh, kw, in).
        """
        found = []
        for name, array in self._arrays.items():
            if name.startswith("w." + prefix):
                array = array.transpose(KERNEL_AXES[array.ndim]) if array.ndim in KERNEL_AXES else array
                found.append((name[2:], mx.array(array)))
        return found

    def fill(self, module: nn.Module) -> None:
        """Load the file's weights; `DataError` where they do not fit."""
        try:
            module.load_weights(self.weights())
        except ValueError as error:
            raise DataError(f"weights do not fit the config: {error}") from None

    def compare(
        self,
        expected: str,
        found,
        tolerance: float = 1e-4,
        absolute: bool = False,
        judged: tuple[slice, ...] = (),
    ) -> None:
        """Add a row for `out.` + expected. Relative error: largest difference over the root mean square expected.

        tolerance 0 asks for equality. `absolute` judges by the absolute error instead (log mels). `judged` is the part
        that is compared, by default all; shapes must agree as a whole.
        """
        name = "out." + expected
        self._seen.add(name)
        want = self[name]
        got = np.asarray(
            found.astype(mx.float32)
            if isinstance(found, mx.array) and mx.issubdtype(found.dtype, mx.floating)
            else found
        )
        if got.shape != want.shape:
            note = f"shape {want.shape} expected, {got.shape} found"
            self.rows.append(Row(expected, None, None, tolerance, "off", note))
            return
        self.rows.append(_judge(expected, got[judged], want[judged], tolerance, absolute))

    def leave(self, names: list[str], why: str) -> None:
        """Say that expectations are not compared, and why."""
        names = [n for n in names if "out." + n in self]
        self._seen.update("out." + n for n in names)
        if names:
            self.rows.append(Row(f"{names[0]}{' …' if len(names) > 1 else ''}", None, None, None, "not covered", why))

    def finish(self) -> list[Row]:
        """All rows, with one more for each expectation that nothing was compared with."""
        rest = [n for n in self._arrays if n.startswith("out.") and n not in self._seen]
        why = "nothing here computes it"
        rows = self.rows + [Row(n.removeprefix("out."), None, None, None, "unusable", why) for n in rest]
        return rows or [Row("-", None, None, None, "unusable", "holds no expectation")]


def under_golden_names(stages: Mapping[str, mx.array], table: Mapping[str, str]) -> dict[str, mx.array]:
    """What a tap has seen, under the names that golden files give it.

    Parameters
    ----------
    stages : name of ours -> array.
    table : pattern of a whole name of ours -> theirs, as `re.sub` reads them. The first that fits counts; what none
        fits keeps its name.
    """
    renamed = {}
    for name, array in stages.items():
        pattern = next((p for p in table if re.fullmatch(p, name)), None)
        renamed[re.sub(pattern, table[pattern], name) if pattern else name] = array
    return renamed


def _judge(stage: str, got: np.ndarray, want: np.ndarray, tolerance: float, absolute: bool) -> Row:
    if want.size == 0:
        return Row(stage, None, None, tolerance, "unusable", "the expectation is empty")
    got, want = got.astype(np.float64), want.astype(np.float64)
    infinite = ~np.isfinite(want)
    if (got[infinite] != want[infinite]).any() or np.isnan(want).any() or (~np.isfinite(got) & ~infinite).any():
        return Row(stage, np.inf, np.inf, tolerance, "off", "infinite or NaN in different places")
    difference = float(np.abs(got[~infinite] - want[~infinite]).max(initial=0))
    scale = float(np.sqrt(np.mean(want[~infinite] ** 2))) if (~infinite).any() else 0.0
    relative = difference / scale if scale else (0.0 if difference == 0 else np.inf)
    judged = difference if absolute else relative
    return Row(stage, difference, relative, tolerance, "ok" if judged <= tolerance else "off")
