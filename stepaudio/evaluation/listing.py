"""Clips one by one, the worst first: reference and hypothesis aligned, with times."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from .clip_score import Score
from .manifest import TRANSLATE
from .summary import worst_first


def clip_lines(score: Score) -> str:
    """One clip: how much is wrong and whether it loops, and below it each error among its neighbours."""
    if score.transcript is None or score.clip.task == TRANSLATE:
        return str(score)
    alignment = score.alignment()
    kinds = f" ({alignment.substitutions} S, {alignment.deletions} D, {alignment.insertions} I)"
    return f"{score.headline}{kinds if alignment.errors else ''}\n{alignment}"


def listing(scores: Sequence[Score], everything: bool = False) -> str:
    """The clips with errors, the worst first, and those that could not be used; all of them with `everything`."""
    return "\n\n".join(clip_lines(score) for score in _listed(scores, everything)) or "(no errors)"


def listing_html(scores: Sequence[Score]) -> str:
    """The same for a notebook: what was left out struck through, what was added underlined."""
    parts = [
        f"<b>{html.escape(s.headline)}</b>{s.alignment()._repr_html_()}"
        if s.transcript is not None and s.clip.task != TRANSLATE
        else f"<p>{html.escape(str(s))}</p>"
        for s in _listed(scores, False)
    ]
    return f"<details><summary>errors, worst clips first</summary>{''.join(parts)}</details>" if parts else ""


def _listed(scores: Sequence[Score], everything: bool) -> Iterable[Score]:
    yield from (s for s in worst_first(scores) if everything or s.clip.task == TRANSLATE or s.alignment().errors)
    yield from (s for s in scores if s.transcript is None)
