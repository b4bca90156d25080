"""Steering vectors: the mean difference of an activation between two sets of recordings, to be added to other runs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..choices import alternatives, hint, shown
from ..errors import ConfigError
from ..model import StepAudio2
from ..text.prompts import ASR_SYSTEM
from .edits import Edits, add
from .names import FIXED, GLOSSARY, activation_names, pattern_of
from .recorder import Trace, record
from .running import by_position

PLACES = ("last", "audio", "all")


@dataclass(frozen=True, eq=False)
class Steering:
    """The direction from one set of recordings to another, in one activation.

    Attributes
    ----------
    name : of the activation.
    towards, away : (recordings, channels) or (recordings, heads, channels), the mean of each recording.
    """

    name: str
    towards: np.ndarray
    away: np.ndarray

    @property
    def vector(self) -> np.ndarray:
        """(channels,) or (heads, channels): mean of the one set less that of the other."""
        return self.towards.mean(axis=0) - self.away.mean(axis=0)

    def edit(self, weight: float = 1.0, **where: Any) -> Edits:
        """`weight` times the vector, added; `where` as `edits.zero` has it."""
        return add(self.name, weight * self.vector, **where)

    @property
    def separation(self) -> float:
        """Share of pairs, one recording of each set, that the other recordings' direction puts in order; 0.5 is chance.

        Ties count half. Raises `ConfigError` for sets of fewer than two.
        """
        a, b = (x.reshape(len(x), -1).astype(np.float64) for x in (self.towards, self.away))
        if len(a) < 2 or len(b) < 2:
            raise ConfigError(f"separation: expected at least two recordings in each set, found {len(a)} and {len(b)}")
        found = []
        for i, j in itertools.product(range(len(a)), range(len(b))):
            direction = np.delete(a, i, axis=0).mean(axis=0) - np.delete(b, j, axis=0).mean(axis=0)
            found.append((np.sign((a[i] - b[j]) @ direction) + 1) / 2)
        return float(np.mean(found))


def steering_between(
    model: StepAudio2,
    towards: Sequence,
    away: Sequence,
    name: str,
    at: str = "last",
    *,
    prompt: str = ASR_SYSTEM,
    sample_rate: float | None = None,
) -> Steering:
    """Find the direction in an activation that leads from one set of recordings to another.

    Parameters
    ----------
    model : StepAudio2
    towards, away : lists of recordings or of conversations, at least one each.
    name : of one activation with channels at every position, for example "decoder.3.resid_post".
    at : {"last", "audio", "all"}
        The last position of the prompt, the positions of its audio, or all of it: the mean over these. In encoder and
        adapter, where all is audio, "audio" and "all" are the same and "last" is refused.
    prompt, sample_rate : as in `record`.

    Raises
    ------
    ConfigError
        A set that is empty, a name of no or another activation, or a place that it does not have.
    """
    if at not in PLACES:
        raise ConfigError(f"at: expected {alternatives(PLACES)}, found {shown(at)}{hint(at, PLACES)}")
    if not isinstance(name, str) or name not in activation_names(model.config):
        raise ConfigError(
            f"name: expected the name of one activation, such as decoder.0.resid_post, found {name!r:.80}"
        )
    axes = GLOSSARY[pattern_of(name)].axes
    if name in FIXED or axes[-2] not in "nTSPR" or axes[-1] in "SL":
        raise ConfigError(f"name: expected an activation with channels at every position, found {name}")
    if at == "last" and axes[-2] != "n":
        raise ConfigError(f"steering at {name}: expected at='audio', found 'last', a position of the prompt")
    for what, given in (("towards", towards), ("away", away)):
        if not isinstance(given, (list, tuple)) or not given:
            raise ConfigError(f"{what}: expected a list of recordings or conversations, found {shown(given)}")
    how: dict[str, Any] = {"prompt": prompt, "sample_rate": sample_rate, "max_tokens": 1, "on_loop": "off"}
    means = [
        np.stack([_mean(record(model, x, name, sampling="greedy", **how), name, axes, at) for x in given])
        for given in (towards, away)
    ]
    return Steering(name, *means)


def _mean(trace: Trace, name: str, axes: tuple[str, ...], at: str) -> np.ndarray:
    """Mean over the positions that are meant, in all segments of audio."""
    donor = by_position(trace.recorder, trace.n_prompt, trace.n_prompt, trace.frames)
    if axes[-2] != "n":
        own = [donor.own(name, row, axes) for row in range(len(donor[name]))]
        return np.concatenate(own, axis=-2).mean(axis=-2)
    where = {"last": [trace.n_prompt - 1], "audio": trace.audio_positions, "all": np.arange(trace.n_prompt)}[at]
    if not len(where):
        raise ConfigError(f"steering at {name}: expected audio in every prompt, found one without; choose at='last'")
    return donor[name][0][..., where, :].mean(axis=-2)
