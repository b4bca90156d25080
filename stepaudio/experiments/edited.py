"""Edits as a dimension of a grid: their JSON, what they need before a run, and the runs that donors come from."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import ConfigError
from ..evaluation.manifest import Clip
from ..interp import edits as making
from ..interp.donor import Activations
from ..interp.edit_targets import targets_of
from ..interp.edits import Edits
from ..interp.placebos import placebo
from ..interp.places import Place
from ..interp.running import edit_tap
from ..model import StepAudio2
from ..models.speech_lm import StepAudioConfig
from ..pipeline import Layout
from ..schema import require_keys
from .provenance import file_hash

WHERE = ("heads", "positions", "seconds", "clip", "steps", "tokens")
VALUES = {"zero": None, "replace": "value", "add": "value", "scale": "factor"}  # kind -> the key of what it writes
DONORS = ("patch", "mean", "resample")
DonorOf = Callable[["DonorEdit"], Activations]


@dataclass(frozen=True)
class DonorEdit:
    """An edit with activations of a run of the grid itself, which the sweep makes before it.

    Attributes
    ----------
    kind : "patch", "mean" or "resample".
    names : patterns over `interp.names.GLOSSARY`.
    donor : fault of the model that the donor's run is made with, "none" for the model as it is.
    where : arguments of the edit, in order of their names; heads, places and keys.
    further : the donor's clip stands so many places further on in the grid's list, which goes round; 0 for the same.
        What a patch takes from it is laid on the run's positions by `interp.donor.realigned`.
    seed : of a resample, and of a placebo.
    placebo : put what the donor's run had at other positions, as `interp.placebos` draws them.
    """

    kind: str
    names: tuple[str, ...]
    donor: str
    where: tuple[tuple[str, Any], ...] = ()
    further: int = 0
    seed: int = 0
    placebo: bool = False
    clip: Clip | None = None  # the other clip, once the trial is known
    clip_name: str = ""

    def stand_in(self) -> Edits:
        """An edit of the same activations at the same places, without a donor."""
        return making.zero(self.names, **dict(self.where))

    def made(self, found: Activations, layout: Layout, model: StepAudio2, max_tokens: int) -> Edits:
        """The edit with its donor."""
        where = dict(self.where)
        if self.kind == "resample":
            return making.resample(self.names, found, self.seed, **where)
        if self.kind == "mean":
            return making.mean(self.names, found, **where)
        plain = making.patch(self.names, found, **where)
        if not self.placebo:
            return plain
        tap = edit_tap(model, plain, [layout], max_tokens)
        return placebo({"names": self.names, **where}, found, tap, layout.prompt.tokens, self.seed)

    def to_dict(self) -> dict:
        """Everything that decides what the edit does but the runs, as JSON can hold it."""
        (said,) = self.stand_in().to_list()
        del said["value"], said["donors"]
        said |= {"kind": self.kind, "donor": self.donor, "further": self.further, "seed": self.seed}
        other = {} if self.clip is None else {"clip": self.clip_name, "clip_hash": file_hash(self.clip.file)}
        return said | {"placebo": self.placebo} | other


@dataclass(frozen=True)
class EditPlan:
    """The edits of one trial, in order; those with a donor get theirs when it is run."""

    parts: tuple[Edits | DonorEdit, ...] = ()

    @classmethod
    def of(cls, spec: object, path: str = "edits") -> EditPlan:
        """Read the JSON shape: a list of objects such as {"scale": "adapter.out", "factor": 0.5, "seconds": [0, 1]}.

        One key is the edit, its value the names. The others are arguments of that function of `interp`; numbers may be
        a text "3:7", which leaves out the last; "keys" is an object of places. "patch", "mean" and "resample" take from
        another run of the same clip, setting and seed: "donor" is the fault of its model, by default "none"; with
        "further" it is a run of the clip so many places further on in the grid. "placebo" makes a patch a placebo: its
        value is a seed.

        Raises
        ------
        ConfigError : an unknown, missing or doubled key, a value of the wrong kind; `path` says where.
        """
        if isinstance(spec, EditPlan):
            return spec
        if isinstance(spec, Edits):
            return cls((spec,) if spec else ())
        if not isinstance(spec, Sequence) or isinstance(spec, str):
            raise ConfigError(f"{path}: expected a list of edits, as objects, found {type(spec).__name__}")
        return cls(tuple(_part(item, f"{path}[{i}]") for i, item in enumerate(spec)))

    @property
    def donors(self) -> tuple[DonorEdit, ...]:
        """The edits that need a run."""
        return tuple(part for part in self.parts if isinstance(part, DonorEdit))

    def __bool__(self) -> bool:
        return bool(self.parts)

    def at(self, i: int, clips: Sequence[tuple[Clip, str]]) -> EditPlan:
        """The plan for clip i of a grid's clips and their names: it says which clips its donors are runs of."""
        if not any(part.further for part in self.donors):
            return self
        parts = []
        for part in self.parts:
            if isinstance(part, DonorEdit) and part.further:
                clip, name = clips[(i + part.further) % len(clips)]
                part = replace(part, clip=clip, clip_name=name)
            parts.append(part)
        return EditPlan(tuple(parts))

    def stand_in(self) -> Edits:
        """Edits of the same activations at the same places, with no donor that is not there yet."""
        return sum((p.stand_in() if isinstance(p, DonorEdit) else p for p in self.parts), Edits())

    def check_names(self, config: StepAudioConfig, path: str) -> None:
        """Raise `ConfigError` unless the model has what is named: activations, heads, channels, axes of time."""
        try:
            for edit in self.stand_in():
                targets_of(edit, config)
            for part in self.donors:
                targets = [t for edit in part.stand_in() for t in targets_of(edit, config)]
                two = [t.name for t in targets if t.axis(t.times, 1) is not None]
                if two and (part.placebo or part.further or part.kind != "patch"):
                    raise ConfigError(
                        f"{two[0]} has two axes of time; expected a patch from the same clip that is no placebo"
                    )
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None

    def made(self, donor_of: DonorOf, layout: Layout | None, model: StepAudio2, max_tokens: int) -> Edits:
        """The edits of one run; `layout` of its prompt, needed with donors."""
        found = Edits()
        for part in self.parts:
            if isinstance(part, DonorEdit):
                assert layout is not None
                part = part.made(donor_of(part), layout, model, max_tokens)
            found = found + part
        return found

    def to_list(self) -> list[dict]:
        """As JSON gives it back, for the provenance of a run."""
        parts = [[p.to_dict()] if isinstance(p, DonorEdit) else p.to_list() for p in self.parts]
        return json.loads(json.dumps([edit for part in parts for edit in part]))


NO_PLAN = EditPlan()


def _part(item: object, path: str) -> Edits | DonorEdit:
    if isinstance(item, Edits):
        return item
    kinds = [k for k in item if k in (*VALUES, *DONORS)] if isinstance(item, Mapping) else []
    if len(kinds) != 1:
        raise ConfigError(
            f"{path}: expected an object with one of {', '.join((*VALUES, *DONORS))}, such as "
            f'{{"zero": "decoder.0.z", "heads": 1}}, found {item!r:.80}'
        )
    kind = kinds[0]
    own = {"donor", "further", *({"placebo"} if kind == "patch" else {"seed"} if kind == "resample" else ())}
    value = VALUES.get(kind)
    more = own if kind in DONORS else {value} if value is not None else ()
    given = require_keys(item, {kind, "keys", *WHERE, *more}, path)
    try:
        where = {name: _numbers(given[name]) for name in WHERE if name in given}
        if "keys" in given:
            inner = require_keys(given["keys"], set(WHERE) - {"heads"}, f"{path}.keys")
            where["keys"] = Place(**{name: _numbers(number) for name, number in inner.items()})
        names = given[kind]
        if kind not in DONORS:
            if value is not None and value not in given:
                raise ConfigError(f"missing key {value}")
            return getattr(making, kind)(names, *([given[value]] if value else []), **where)
        making.zero(names, **where)  # refuses what no edit can be
        return DonorEdit(
            kind, (names,) if isinstance(names, str) else tuple(names), _text(given.get("donor", "none")),
            tuple(sorted(where.items(), key=lambda pair: pair[0])), _count(given.get("further", 0), "further"),
            _count(given.get("placebo", given.get("seed", 0)), "seed"), "placebo" in given,
        )  # fmt: skip
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _numbers(given: Any) -> Any:
    """A text "3:7", "3:" or ":7" as a slice; lists as tuples, which can be compared; the rest as it is."""
    if isinstance(given, str):
        first, colon, last = given.partition(":")
        if not colon or not all(not end or end.lstrip("-").isdecimal() for end in (first, last)):
            raise ConfigError(f'expected numbers, or a text such as "3:7", found {given!r:.40}')
        return slice(int(first) if first else None, int(last) if last else None)
    return tuple(given) if isinstance(given, list) else given


def _text(given: object) -> str:
    if not isinstance(given, str):
        raise ConfigError(f"donor: expected the name of a fault, or none, found {given!r:.40}")
    return given


def _count(given: object, name: str) -> int:
    if not isinstance(given, int) or isinstance(given, bool) or given < 0:
        raise ConfigError(f"{name}: expected a whole number from 0, found {given!r:.40}")
    return given
