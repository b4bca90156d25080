"""Activations with labels, for probes: one row a recording, or one a stretch of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from ..choices import is_number, is_whole, shown
from ..errors import ConfigError
from ..model import StepAudio2
from ..text.prompts import ASR_SYSTEM
from .donor import digest_of
from .frames import audio_frames, framed_names

Label = str | float
SLACK = 0.02  # seconds by which a stretch may end behind its recording: two mel frames


@dataclass(frozen=True, eq=False)
class ProbeData:
    """Rows of activations, each with a label, its recording, and the group that is held out together.

    Attributes
    ----------
    arrays : name -> (rows, channels), finite; any names.
    labels : (rows,) strings, which are classes, or numbers, which are measured; at least two that differ.
    clips : (rows,) the recording of each row, as whole numbers.
    groups : (rows,) strings or whole numbers; what is held out together. By default the recordings.

    Raises
    ------
    ConfigError
        Lengths that differ, labels of several kinds, a recording in two groups, values that are not finite.
    """

    arrays: Mapping[str, np.ndarray]
    labels: Sequence[Label]
    clips: np.ndarray
    groups: Sequence[str | int] = ()

    def __post_init__(self):
        labels, clips = tuple(self.labels), np.asarray(self.clips)
        groups = tuple(self.groups if len(self.groups) else clips.tolist())
        if not isinstance(self.arrays, Mapping) or not self.arrays:
            raise ConfigError(f"arrays: expected activations by name, at least one, found {shown(self.arrays)}")
        for what, found in (("clips", len(clips)), ("groups", len(groups))):
            if found != len(labels):
                raise ConfigError(f"{what}: expected one for each of the {len(labels)} labels, found {found}")
        if clips.ndim != 1 or clips.dtype.kind not in "iu":
            raise ConfigError(f"clips: expected whole numbers, found {shown(self.clips)}")
        _check_labels(labels)
        if not (all(isinstance(g, str) for g in groups) or all(_is_whole(g) for g in groups)):
            raise ConfigError(f"groups: expected strings or whole numbers, all of one kind, found {shown(groups)}")
        arrays = {}
        for name, array in self.arrays.items():
            array = np.asarray(array)
            if array.ndim != 2 or len(array) != len(labels) or array.dtype.kind not in "fiu":
                raise ConfigError(
                    f"{name}: expected numbers of shape ({len(labels)}, channels), found {array.dtype} {array.shape}"
                )
            if not np.isfinite(array).all():
                raise ConfigError(f"{name}: expected finite numbers, found NaN or infinity")
            arrays[name] = array
        of_clip: dict[int, Any] = {}
        for clip, group in zip(clips.tolist(), groups, strict=True):
            if of_clip.setdefault(clip, group) != group:
                raise ConfigError(f"groups: recording {clip} stands in two, {of_clip[clip]!r} and {group!r}")
        object.__setattr__(self, "arrays", MappingProxyType(arrays))
        object.__setattr__(self, "labels", labels)
        object.__setattr__(self, "clips", clips)
        object.__setattr__(self, "groups", groups)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the activations."""
        return tuple(self.arrays)

    def coded_labels(self) -> tuple[np.ndarray, tuple[str, ...] | None]:
        """(rows,) whole numbers that count the classes, which come with them; or the labels themselves and None."""
        if isinstance(self.labels[0], str):
            classes, coded = np.unique(np.array(self.labels, dtype=object).astype(str), return_inverse=True)
            return coded, tuple(classes.tolist())
        return np.array(self.labels, np.float64), None

    def coded_groups(self) -> np.ndarray:
        """(rows,) whole numbers from 0 that count the groups."""
        return np.unique(np.array(self.groups), return_inverse=True)[1]

    def refuse_shared_recordings(self) -> None:
        """Raise `ConfigError` where recordings of two groups have the same activations: labels would leak."""
        for name, array in self.arrays.items():
            seen: dict[str, int] = {}
            groups = dict(zip(self.clips.tolist(), self.groups, strict=True))
            for clip in dict.fromkeys(self.clips.tolist()):
                other = seen.setdefault(digest_of(array[self.clips == clip]), clip)
                if groups[other] != groups[clip]:
                    raise ConfigError(
                        f"groups: recordings {other} and {clip} have the same {name} and stand in two groups, so that "
                        "what is judged was seen in training; put them into one"
                    )


def probe_data(
    model: StepAudio2,
    sources: Sequence,
    names: str | Sequence[str],
    labels: Sequence[Label | Sequence[tuple[float, float, Label]]],
    groups: Sequence[str | int] | None = None,
    *,
    prompt: str = ASR_SYSTEM,
    sample_rate: float | None = None,
) -> ProbeData:
    """Run the model over recordings, and give activations of labelled recordings, or of labelled stretches of them.

    Parameters
    ----------
    model : StepAudio2
    sources : list of recordings.
    names : glob patterns, as `audio_frames` has them.
    labels : one for each recording: a string or a number for the whole of it, or a list of stretches (start, end,
        label), in seconds. A row is the mean of the activation over all positions that touch the stretch.
    groups : one for each recording, strings or whole numbers: what is held out together. Recordings of one speaker,
        if the speaker is not to be told from the label; several versions of one recording, always. By default every
        recording is its own.
    prompt, sample_rate : as in `record`.

    Returns
    -------
    ProbeData
        The same rows for every activation, whatever its rate.

    Raises
    ------
    ConfigError
        Lists of several lengths, a stretch that lies outside its recording, labels of several kinds, or names as
        `audio_frames` refuses them.
    """
    if not isinstance(sources, (list, tuple)) or not sources:
        raise ConfigError(f"sources: expected a list of recordings, found {shown(sources)}")
    for what, given in (("labels", labels), ("groups", groups)):
        if given is not None and (
            isinstance(given, str) or not hasattr(given, "__len__") or len(given) != len(sources)
        ):
            raise ConfigError(f"{what}: expected one for each of the {len(sources)} recordings, found {shown(given)}")
    wanted = framed_names(names, model.config)
    stretches = [_stretches(label, i) for i, label in enumerate(labels)]
    _check_labels(tuple(label for of_clip in stretches for *_, label in of_clip))
    rows: dict[str, list[np.ndarray]] = {name: [] for name in wanted}
    for i, (source, of_clip) in enumerate(zip(sources, stretches, strict=True)):
        found = audio_frames(model, source, wanted, prompt=prompt, sample_rate=sample_rate)
        length = next(iter(found.values())).seconds
        late = [end for _, end, _ in of_clip if length + SLACK < end < math.inf]
        if late:
            raise ConfigError(f"labels: recording {i}: second {late[0]:g}: the recording is {length:.2f} s long")
        for name, frames in found.items():
            rows[name] += [frames.mean(start, end) for start, end, _ in of_clip]
    clips = [i for i, of_clip in enumerate(stretches) for _ in of_clip]
    return ProbeData(
        {name: np.stack(found) for name, found in rows.items()},
        [label for of_clip in stretches for *_, label in of_clip],
        np.array(clips),
        [] if groups is None else [groups[i] for i in clips],
    )


def _stretches(label: Any, clip: int) -> list[tuple[float, float, Any]]:
    """What is labelled of one recording, checked."""
    if isinstance(label, str) or is_number(label) or isinstance(label, (np.floating, np.integer)):
        return [(0.0, math.inf, label)]
    found = list(label) if isinstance(label, (list, tuple)) else None
    if found is None or not all(isinstance(s, (list, tuple)) and len(s) == 3 for s in found):
        raise ConfigError(
            f"labels: recording {clip}: expected a string, a number or a list of (start, end, label), "
            f"found {shown(label)}"
        )
    for start, end, _ in found:
        if not (is_number(start) and is_number(end) and 0 <= start < end < math.inf):
            raise ConfigError(f"labels: recording {clip}: expected 0 <= start < end in seconds, found {start}, {end}")
    return found


def _is_whole(value: Any) -> bool:
    return is_whole(value) or isinstance(value, np.integer)


def _check_labels(labels: tuple) -> None:
    texts = sum(isinstance(label, str) for label in labels)
    numbers = sum(isinstance(label, (np.floating, np.integer)) or is_number(label) for label in labels)
    if texts != len(labels) and numbers != len(labels):
        odd = next(x for x in labels if not isinstance(x, str)) if texts else labels[0] if labels else None
        raise ConfigError(f"labels: expected strings (classes) or numbers, all of one kind, found {shown(odd)}")
    if numbers and not all(math.isfinite(label) for label in labels):
        raise ConfigError("labels: expected finite numbers, found NaN or infinity")
    if len(set(labels)) < 2:
        raise ConfigError(f"labels: expected at least two that differ, found {shown(sorted(set(labels)))}")
