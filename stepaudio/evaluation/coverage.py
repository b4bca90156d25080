"""How often the intervals of this package hold the true rate: simulated tables of clips whose rates are known.

    python -m stepaudio.evaluation.coverage [--trials 1000] [--out coverage.json]

In each simulated table clips differ in length and difficulty (beta-binomial errors), some runs loop and then err by
hundreds of words, and a second condition adds errors, mends some, and loops less. Sizes run from 16 to 500 clips. For
BLEU and chrF the tables are drawn from a large set of simulated translations, whose score is the true one.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from ..errors import ConfigError
from ..files import replaced_file
from ..targets import Target, check_targets
from .bootstrap import SCORES, score_interval, translation_counts
from .intervals import Interval, interval, paired_difference

SIZES = (16, 24, 48, 100, 200, 500)
TRUTH_CLIPS = 400_000  # clips of the large table that gives the true rates
LOOP_WORDS = 150  # mean errors that a loop adds
TRANSLATIONS, VOCABULARY = 6000, 2000  # simulated texts, and the words in them


@dataclass(frozen=True)
class World:
    """What clips and conditions are like.

    Attributes
    ----------
    name : of the row in the table.
    measure : as in `interval`.
    wer, sameness : mean share of wrong words, and how alike clips are in it (sum of the beta distribution's parameters;
        small: clips differ much).
    loops : share of runs that loop. seeds : runs of a clip; they loop together more often than not.
    long_clips : 40 to 260 words a clip rather than about ten.
    added, added_sameness, mended : paired: share of right words that condition a gets wrong, how alike clips are in
        it, and share of wrong words that it gets right. kept_loops : share of loops that it keeps. None: not paired.
    """

    name: str
    measure: str
    wer: float = 0.05
    sameness: float = 8
    loops: float = 0.0
    seeds: int = 1
    long_clips: bool = False
    added: float | None = None
    added_sameness: float = 8
    mended: float = 0.0
    kept_loops: float = 1.0

    def draw(self, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Words (n,), errors and loops (conditions, n, seeds), of one condition or of two."""
        words = rng.integers(40, 261, n) if self.long_clips else np.clip(rng.lognormal(2.2, 0.5, n), 2, 40).astype(int)
        hard = _beta(rng, self.wer, self.sameness, n)[:, None]
        errors = rng.binomial(words[:, None], hard, (n, self.seeds))
        tendency = _beta(rng, self.loops, 1.0, n) if self.seeds > 1 else np.full(n, self.loops)
        loops = rng.random((n, self.seeds)) < tendency[:, None]
        runs, looping = [errors], [loops]
        if self.added is not None:
            more = _beta(rng, self.added, self.added_sameness, n)[:, None]
            changed = errors + rng.binomial(words[:, None] - errors, more) - rng.binomial(errors, self.mended)
            runs.insert(0, changed)
            looping.insert(0, loops & (rng.random(loops.shape) < self.kept_loops))
        both = np.stack(looping)
        lengths = words[:, None] + rng.geometric(1 / LOOP_WORDS, both.shape)
        return words, np.where(both, lengths, np.stack(runs)), both

    def coverage(self, n: int, trials: int) -> dict[str, float | int | None]:
        """As the function `coverage`."""
        return coverage(self, n, trials)

    def truth(self, seed: int = 1) -> float:
        """The true rate or difference, from one large table."""
        words, errors, loops = self.draw(TRUTH_CLIPS, np.random.default_rng(seed))
        if self.measure == "loop_rate":
            rates = loops.mean(axis=(1, 2))
        else:
            free = self.measure.startswith("loop_free")
            kept = ~loops.any(axis=0) if free else np.ones(loops.shape[1:], bool)
            rates = (errors * kept).sum(axis=(1, 2)) / (words[:, None] * kept).sum()
        return float(rates[0] - rates[1]) if len(rates) == 2 else float(rates[0])


WORLDS = (
    World("loops, rare", "loop_rate", loops=0.03),
    World("loops, common", "loop_rate", loops=0.3),
    World("loops, three seeds a clip", "loop_rate", loops=0.1, seeds=3),
    World("errors without loops, few", "loop_free_wer", wer=0.02),
    World("errors without loops, clips unlike", "loop_free_wer", sameness=4),
    World("errors without loops, many", "loop_free_wer", wer=0.2, sameness=4),
    World("errors without loops, most words", "loop_free_wer", wer=0.8, sameness=4),
    World("errors without loops, long clips", "loop_free_wer", long_clips=True),
    World("total, loops rare", "wer", loops=0.03),
    World("total, loops common", "wer", loops=0.3),
    World("difference of loops, rare", "loop_rate", loops=0.03, added=0.0, kept_loops=0.3),
    World("difference of loops, common", "loop_rate", loops=0.3, added=0.0, kept_loops=0.5),
    World("difference of errors, nothing changed", "loop_free_wer", added=0.0),
    World("difference of errors, rarely changed", "loop_free_wer", added=0.003),
    World("difference of errors, often changed", "loop_free_wer", wer=0.2, added=0.05, added_sameness=5, mended=0.3),
    World(
        "difference of errors, long clips",
        "loop_free_wer",
        long_clips=True,
        added=0.003,
        added_sameness=40,
        mended=0.05,
    ),
    World("difference of totals, loops common", "wer", loops=0.3, added=0.01, kept_loops=0.5),
    # The limit of what such tables can show: a change that leaves most clips alone and ruins one in about forty.
    World("difference of errors, few clips ruined", "loop_free_wer", long_clips=True, added=0.003, mended=0.05),
)


@dataclass(frozen=True)
class TextWorld:
    """Simulated translations that leave out, exchange and add words, more in some clips than in others.

    Attributes
    ----------
    name : of the row in the table. measure : "bleu" or "chrf".
    changed : share of texts of which a second system makes more errors, many more of some: the difference of the two is
        estimated. None: of one system.
    """

    name: str
    measure: str
    changed: float | None = None

    def truth(self) -> float:
        """The score of all of them, or the difference of the two systems."""
        scores = [float(SCORES[self.measure](side.sum(0))) for side in self.sides()]
        return scores[0] - scores[-1] if self.changed else scores[0]

    def coverage(self, n: int, trials: int) -> dict[str, float | int | None]:
        """As the function `text_coverage`."""
        return text_coverage(self, n, trials)

    def sides(self) -> list[np.ndarray]:
        """Counts of one system or of two, (texts, ·) each."""
        first, second = (_translations(system)[self.measure] for system in range(2))
        if self.changed is None:
            return [first]
        kept = np.random.default_rng(3).random(TRANSLATIONS) >= self.changed
        return [first, np.where(kept[:, None], first, second)]


TEXT_WORLDS = (
    TextWorld("BLEU", "bleu"),
    TextWorld("chrF", "chrf"),
    TextWorld("difference of BLEU", "bleu", changed=1.0),
    TextWorld("difference of chrF", "chrf", changed=1.0),
    TextWorld("difference of BLEU, rarely changed", "bleu", changed=0.1),
    TextWorld("difference of chrF, rarely changed", "chrf", changed=0.1),
)


@lru_cache(2)
def _translations(system: int) -> dict[str, np.ndarray]:
    """Counts of the translations of one system, those of the second made from those of the first."""
    rng = np.random.default_rng(2)
    letters, share = list("abcdefghijklmnopqrstuvw"), 1 / np.arange(1, VOCABULARY + 1)
    words = ["".join(rng.choice(letters, rng.integers(2, 9))) for _ in range(VOCABULARY)]
    references, hypotheses = [], []
    for _ in range(TRANSLATIONS):
        said = rng.choice(VOCABULARY, int(np.clip(rng.lognormal(2.5, 0.5), 3, 60)), p=share / share.sum()).tolist()
        found = _translated(said, rng.beta(1.6, 2.4), rng)
        if system:
            found = _translated(found, 0.3 * rng.beta(1, 3), rng)
        references.append(" ".join(words[i] for i in said))
        hypotheses.append(" ".join(words[i] for i in found))
    return translation_counts(references, hypotheses, "en")


def _translated(said: Sequence[int], hard: float, rng: np.random.Generator) -> list[int]:
    """Word by word right, exchanged, left out, or followed by another."""
    found = []
    for word in said:
        chance, other = rng.random(), int(rng.integers(VOCABULARY))
        if not hard / 2 <= chance < hard * 0.65:
            found.append(other if chance < hard / 2 else word)
        found += [other] * (rng.random() < hard / 10)
    return found or [said[0]]


def text_coverage(world: TextWorld, n: int, trials: int, *, seed: int = 0) -> dict[str, float | int | None]:
    """As `coverage`, of tables of `n` translations."""
    rng, truth, sides = np.random.default_rng([seed, n]), world.truth(), world.sides()
    found = []
    for _ in range(trials):
        chosen = rng.choice(TRANSLATIONS, n, replace=False)
        found.append(score_interval(world.measure, *(side[chosen] for side in sides)))
    return _shares(found, truth)


def coverage(
    world: World, n: int, trials: int, *, seed: int = 0, find: Callable[..., Interval] | None = None
) -> dict[str, float | int | None]:
    """How often the interval of `n` clips holds the truth.

    Parameters
    ----------
    world : what is simulated. n, trials : clips a table, and tables.
    seed : of the tables.
    find : rows (of one condition, or of two) and measure -> an interval with `low` and `high`; by default ours.

    Returns
    -------
    dict: `covered`, the share of tables whose interval holds the truth, among those with finite ends; `bounded`, the
    share that have these; `width`, the median of their widths. None where no table has them.
    """
    rng, truth = np.random.default_rng([seed, n]), world.truth()
    ours: Callable[..., Interval] = paired_difference if world.added is not None else interval
    return _shares([(find or ours)(*_rows(*world.draw(n, rng)), world.measure) for _ in range(trials)], truth)


def _shares(intervals: Sequence[Interval], truth: float) -> dict[str, float | int | None]:
    bounded = [found for found in intervals if found.is_bounded]
    hits = [found.low - 1e-12 <= truth <= found.high + 1e-12 for found in bounded]
    return {
        "covered": round(float(np.mean(hits)), 3) if hits else None,
        "bounded": round(len(hits) / len(intervals), 3),
        "width": round(float(np.median([found.high - found.low for found in bounded])), 4) if hits else None,
    }


def _beta(rng: np.random.Generator, mean: float, sameness: float, n: int) -> np.ndarray:
    return rng.beta(mean * sameness, (1 - mean) * sameness, n) if mean > 0 else np.zeros(n)


def _rows(words: np.ndarray, errors: np.ndarray, loops: np.ndarray) -> list[list[dict]]:
    """Rows of each condition, as a sweep has them."""
    return [
        [
            {"clip": c, "seed": s, "words": int(words[c]), "errors": int(e[c, s]), "loops": int(looped[c, s])}
            for c in range(len(words))
            for s in range(e.shape[1])
        ]
        for e, looped in zip(errors, loops, strict=True)
    ]


def _is_ours(path: Path) -> bool:
    try:
        return {"trials", "worlds"} == set(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError):
        return False


def main(arguments: list[str] | None = None) -> None:
    """Print the table, a line for each world, as it is found."""
    parser = argparse.ArgumentParser(
        prog="python -m stepaudio.evaluation.coverage", description="Coverage of intervals on simulated tables."
    )
    parser.add_argument("--trials", type=int, default=1000, metavar="N", help="tables for each size (default: 1000)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the figures as JSON")
    parser.add_argument("--force", action="store_true", help="replace a file of another kind that is there")
    options = parser.parse_args(arguments)
    if options.out:
        try:
            check_targets([Target("--out", options.out, "a table of coverage", _is_ours)], [], options.force)
        except ConfigError as error:
            parser.error(str(error))
    print(f"{'share of intervals that hold the truth':40}", *(f"{n:>6}" for n in SIZES))
    table = {}
    for world in (*WORLDS, *TEXT_WORLDS):
        found = {n: world.coverage(n, options.trials) for n in SIZES}
        table[world.name] = {"measure": world.measure, "sizes": {str(n): f for n, f in found.items()}}
        print(f"{world.name:40}", *(f"{f['covered'] or math.nan:6.3f}" for f in found.values()), flush=True)
    if options.out:
        with replaced_file(options.out) as aside:
            aside.write_text(json.dumps({"trials": options.trials, "worlds": table}, indent=1) + "\n")


if __name__ == "__main__":
    main()
