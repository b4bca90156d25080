"""What a linear read-out finds in an activation: ridge probes by layer, on clips that were held out, beside a control.

A probe is ridge regression, on the label itself if labels are numbers, on one indicator for each class if they are
strings; the class is the one with the largest output. Groups of recordings are held out in turn, the strength of the
ridge is chosen by holding out a second group, and nothing of a group is seen in training when it is judged.

The control is the same probe, with the same choice of the ridge, on labels that were shuffled (Hewitt & Liang 2019:
what a probe scores above its control is its selectivity). Alain & Bengio 2016 introduced linear probes of layers.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ..choices import is_count, is_number, shown
from ..errors import ConfigError
from ..evaluation.intervals import Interval
from ..evaluation.limits import change_limits, rate_limits, share_limits
from .probe_rows import ProbeData

RIDGES = 10.0 ** np.arange(-3, 4)  # times the mean eigenvalue of the channels' correlations
FOLDS, SHUFFLES = 5, 20
SCORES = {True: "R2", False: "accuracy"}  # whether labels are numbers


@dataclass(frozen=True, eq=False)
class Probes:
    """What linear probes score on held-out groups, by activation.

    Attributes
    ----------
    names : activations, in the order in which they were given.
    scores : one `Interval` a name, over groups: "accuracy", the share of rows that get the right class, or "R2", one
        less the squared error over that of the training labels' mean.
    controls : (names, shuffles) the same score with shuffled labels.
    selectivity : one `Interval` a name: the score less the mean of its controls.
    guess : what is scored without looking at the activation: the most frequent class of training, or its mean (0).
    predicted : (names, rows) what each row was predicted to be while its group was held out.
    n_groups, n_rows : of what was judged.
    """

    names: tuple[str, ...]
    scores: tuple[Interval, ...]
    controls: np.ndarray
    selectivity: tuple[Interval, ...]
    guess: float
    predicted: np.ndarray = field(repr=False)
    n_groups: int
    n_rows: int

    @property
    def measure(self) -> str:
        """What the scores are: "accuracy" or "R2"."""
        return self.scores[0].measure

    def table(self) -> str:
        """One line an activation: score with interval, mean and largest control, selectivity with interval."""
        width = max(10, *(len(name) for name in self.names))
        rows = [f"{'activation':{width}} {self.measure:>20} {'control':>7} {'most':>6} {'selectivity':>20}"]
        for name, score, control, more in zip(self.names, self.scores, self.controls, self.selectivity, strict=True):
            ends = f"{control.mean():7.2f} {control.max():6.2f} {format(more, '.2f'):>20}"
            rows.append(f"{name:{width}} {format(score, '.2f'):>20} {ends}")
        return "\n".join([*rows, f"guess {self.guess:.2f}; {self.n_rows} rows of {self.n_groups} groups"])


def train_probes(
    data: ProbeData, *, folds: int = FOLDS, shuffles: int = SHUFFLES, seed: int = 0, level: float = 0.95
) -> Probes:
    """Train and judge a linear probe for each activation.

    Parameters
    ----------
    data : as `probe_data` gives it, or made of arrays.
    folds : from 2; parts in which groups are held out, at most one for each group.
    shuffles : from 1; how often labels are shuffled for the control: over groups where each has one label throughout,
        else over recordings if these have, else over rows.
    seed : from 0; of the folds and the shuffles.
    level : coverage of the intervals, 0 < level < 1.

    Returns
    -------
    Probes
        The same for the same data and seed.

    Raises
    ------
    ConfigError
        Fewer groups than two, labels all alike, a class that training could not see while it is judged, one recording
        in two groups, or a number out of range.
    """
    if not isinstance(data, ProbeData):
        raise ConfigError(f"data: expected what probe_data gives, or ProbeData of arrays, found {shown(data)}")
    for what, value, least in (("folds", folds, 2), ("shuffles", shuffles, 1), ("seed", seed, 0)):
        if not is_count(value, least):
            raise ConfigError(f"{what}: expected a whole number from {least}, found {shown(value)}")
    if not is_number(level) or not 0 < level < 1:
        raise ConfigError(f"level: expected a number between 0 and 1, found {shown(level)}")
    groups = data.coded_groups()
    n_groups = int(groups.max()) + 1
    if n_groups < 2:
        raise ConfigError("probes: expected at least two groups, so that one can be held out, found 1")
    data.refuse_shared_recordings()
    draw = np.random.default_rng(seed)
    labels, classes = data.coded_labels()
    fold = _folds(labels, groups, min(folds, n_groups), draw)
    if classes is not None:
        _check_classes(labels, classes, fold)
    units = _units(labels, groups, data.clips)
    sets = np.stack([labels, *(_shuffled(labels, units, fold, draw) for _ in range(shuffles))])  # (sets, rows)
    found = [_judge(data.arrays[name], sets, classes, fold) for name in data.names]
    base = _baseline(sets, classes, fold)
    measured = [_measure(f, sets, classes, base, groups, level) for f in found]
    guess = float((base[0] == labels).mean()) if classes is not None else 0.0
    predicted = np.stack([f[0] if classes is None else np.array(classes)[f[0]] for f in found])
    scores, controls, more = zip(*measured, strict=True)
    return Probes(data.names, scores, np.stack(controls), more, guess, predicted, n_groups, len(labels))


# ---------------------------------------------------------------- splits and shuffles


def _folds(labels: np.ndarray, groups: np.ndarray, n: int, draw: np.random.Generator) -> np.ndarray:
    """(rows,) the fold of each row: whole groups, those of like labels dealt out in turn."""
    middle = [np.median(labels[groups == g]) for g in range(groups.max() + 1)]
    order = np.lexsort((draw.permutation(len(middle)), middle))
    fold = np.empty(len(middle), int)
    fold[order] = np.arange(len(middle)) % n
    return fold[groups]


def _check_classes(labels: np.ndarray, classes: Sequence[str], fold: np.ndarray) -> None:
    for f in range(fold.max() + 1):
        lost = set(labels[fold == f]) - set(labels[fold != f])
        if lost:
            raise ConfigError(
                f"label {classes[min(lost)]!r}: all its groups are held out at once, so that no probe could learn it; "
                "give it more groups, choose more folds, or leave it out"
            )


def _units(labels: np.ndarray, groups: np.ndarray, clips: np.ndarray) -> np.ndarray:
    """(rows,) the largest units that have one label throughout: groups, recordings, else rows."""
    for units in (groups, np.unique(clips, return_inverse=True)[1]):
        if all(len(set(labels[units == u])) == 1 for u in range(units.max() + 1)):
            return units
    return np.arange(len(labels))


def _shuffled(labels: np.ndarray, units: np.ndarray, fold: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Labels dealt out anew, each unit keeping one; within folds, unless a fold has one label throughout.

    Dealt out over all folds, a label that is rare where a probe is judged is frequent where it is trained, which alone
    puts the control below chance.
    """
    first = np.unique(units, return_index=True)[1]
    labels, fold = labels[first], fold[first]
    found, parts = labels.copy(), [np.flatnonzero(fold == f) for f in range(fold.max() + 1)]
    if any(len(set(labels[part])) == 1 for part in parts):
        parts = [np.arange(len(first))]
    for part in parts:
        found[part] = labels[draw.permutation(part)]
    return found[units]


# ---------------------------------------------------------------- ridge regression


class Ridge:
    """Ridge regression on standardised channels, for several targets and strengths at once.

    Parameters
    ----------
    x : (rows, channels) and y : (rows, targets), of training.

    A channel that never changes in training counts for nothing. Both are centred, so that no penalty falls on the mean.
    """

    def __init__(self, x: np.ndarray, y: np.ndarray):
        self._mean, spread = x.mean(axis=0), x.std(axis=0)
        self._scale = np.divide(1, spread, out=np.zeros_like(spread), where=spread > 1e-7 * np.abs(self._mean))
        z = (x - self._mean) * self._scale
        self._shift = y.mean(axis=0)
        wide = z.shape[1] > len(z)  # then the rows span fewer directions than there are channels
        values, basis = np.linalg.eigh(z @ z.T if wide else z.T @ z)
        self._values = np.maximum(values, 0)
        self._projection = z.T @ basis if wide else basis
        centred = y - self._shift
        self._loads = basis.T @ (centred if wide else z.T @ centred)
        self._unit = max(float(self._values.sum()) / z.shape[1], 1e-12)

    def predict(self, x: np.ndarray, strengths: Sequence[float] | np.ndarray) -> np.ndarray:
        """(strengths, rows, targets); a strength counts in mean eigenvalues of the channels' correlations."""
        at = ((x - self._mean) * self._scale) @ self._projection
        return np.stack(
            [at @ (self._loads / (self._values + s * self._unit)[:, None]) + self._shift for s in strengths]
        )


def _judge(x: np.ndarray, sets: np.ndarray, classes: Sequence[str] | None, fold: np.ndarray) -> np.ndarray:
    """(sets, rows) predicted while the row's fold was held out; the ridge chosen by holding out a second one."""
    x = x.astype(np.float64)
    targets = _targets(sets, classes)  # (sets, rows, columns)
    n_sets, n_rows, columns = targets.shape
    flat = targets.transpose(1, 0, 2).reshape(n_rows, -1)
    n = int(fold.max()) + 1
    losses = np.zeros((n, len(RIDGES), n_sets))  # of what is left when a fold is held out
    for a, b in itertools.combinations(range(n), 2):
        train = (fold != a) & (fold != b)
        if not train.any():  # two folds: nothing is left, and the middle strength is taken
            break
        ridge = Ridge(x[train], flat[train])
        for held, judged in ((a, b), (b, a)):
            rows = fold == judged
            error = (ridge.predict(x[rows], RIDGES) - flat[rows]) ** 2
            losses[held] += error.reshape(len(RIDGES), -1, n_sets, columns).sum(axis=(1, 3))
    found = np.empty((n_sets, n_rows, columns))
    for held in range(n):
        rows = fold == held
        best = losses[held].argmin(axis=0) if losses.any() else np.full(n_sets, len(RIDGES) // 2)
        predicted = Ridge(x[~rows], flat[~rows]).predict(x[rows], RIDGES).reshape(len(RIDGES), -1, n_sets, columns)
        for i, strength in enumerate(best):
            found[i, rows] = predicted[strength, :, i]
    return found[..., 0] if classes is None else found.argmax(axis=-1)


def _targets(sets: np.ndarray, classes: Sequence[str] | None) -> np.ndarray:
    """(sets, rows, columns): labels as numbers, or an indicator for each class."""
    return sets[..., None].astype(np.float64) if classes is None else np.eye(len(classes))[sets]


# ---------------------------------------------------------------- scores


def _baseline(sets: np.ndarray, classes: Sequence[str] | None, fold: np.ndarray) -> np.ndarray:
    """(sets, rows) what training's labels alone predict: their mean, or the most frequent class."""
    found = np.empty(sets.shape, sets.dtype)
    for f in range(fold.max() + 1):
        for row, labels in zip(found, sets, strict=True):
            train = labels[fold != f]
            row[fold == f] = train.mean() if classes is None else np.bincount(train).argmax()
    return found


def _measure(
    predicted: np.ndarray, sets: np.ndarray, classes: Sequence[str] | None, base: np.ndarray, groups: np.ndarray,
    level: float,
) -> tuple[Interval, np.ndarray, Interval]:  # fmt: skip
    """Score over groups, the controls' scores, and the difference."""
    n = int(groups.max()) + 1

    def by_group(values: np.ndarray) -> np.ndarray:
        return np.stack([np.bincount(groups, weights=v, minlength=n) for v in np.atleast_2d(values)])

    measure = SCORES[classes is None]
    if classes is not None:
        right, exposure = by_group(predicted == sets), by_group(np.ones(len(groups)))[0]
        whole = exposure.sum()
        low, high = share_limits(right[0], exposure, level)
        scores, gained, lost = right.sum(axis=1) / whole, right[0], right[1:].mean(axis=0)
    else:
        error, spread = by_group((predicted - sets) ** 2), by_group((base - sets) ** 2)
        unit = spread.sum(axis=1, keepdims=True) / len(groups)  # the error of the mean, a row
        error, exposure = error / unit, spread[0] / unit[0]
        whole = exposure.sum()
        below, above = rate_limits(error[0], exposure, level)
        low, high = 1 - above, 1 - below
        scores, gained, lost = 1 - error.sum(axis=1) / whole, error[1:].mean(axis=0), error[0]
    ends = change_limits(gained, lost, exposure, level)
    high_end = min(float(ends[1]), 1 - float(scores[1:].mean()))  # no score is above 1
    more = Interval("selectivity", float((gained - lost).sum() / whole), float(ends[0]), high_end, level, n)
    return Interval(measure, float(scores[0]), float(low), float(high), level, n), scores[1:], more
