"""What a sweep is to run: model, clips, settings, seeds, faults and edits, declared before anything is loaded.

Frozen records that refuse contradictions when they are made, and a JSON shape for them.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import cast

from ..audio.resample import checked_resampler
from ..checkpoints.find import meant
from ..choices import Resampler, SpeechDetector, alternatives
from ..constants import MAX_TOKENS
from ..decoding.options import CACHE_FIELDS, RULE_FIELDS, DecodingOptions
from ..decoding.sampling import Penalties, Sampling
from ..errors import ConfigError
from ..evaluation.manifest import Clip, read_manifest
from ..interp.edits import Edits
from ..models.kv_cache import CachePolicy
from ..reading import read_object
from ..schema import read_record, read_value, require_keys
from ..text.prompts import ASR_SYSTEM
from .edited import NO_PLAN, EditPlan
from .provenance import function_name
from .table import NO_EDITS

NO_FAULT = "none"
OLD_FAULTS = "defects"  # the key of `Grid.faults` in the grids of earlier sweeps
DTYPES = ("float32", "float16", "bfloat16")


def sampling_from(spec: object, path: str = "sampling") -> Sampling:
    """A `Sampling` from "planned", "reference" or "greedy", or from an object that starts from one and changes it.

    >>> sampling_from({"base": "greedy", "repetition": 1.3, "text": {"window": 64}}).text.repetition
    1.3

    Keys: "base" (default "planned"), fields of `Sampling`, and penalty names, which change text and audio alike
    before "text", "audio" and "escape" change their own. No "seed": the grid's seeds set it.

    Raises
    ------
    ConfigError : an unknown key, a value of the wrong type, or a seed; `path` says where.
    """
    if isinstance(spec, Sampling):
        return spec
    if isinstance(spec, str):
        return Sampling.named(spec)
    penalties = {f.name for f in fields(Penalties)}
    spec = _require_placed(_of_now(spec), {"base", *penalties, *(f.name for f in fields(Sampling))}, path)
    if spec.get("processors"):
        raise ConfigError(f"{path}.processors: JSON holds no functions; make the Setting in Python")
    if spec.get("seed", 0) != 0:
        raise ConfigError(f"{path}.seed: seeds belong to the grid, found {spec['seed']!r} in a setting")
    start = Sampling.named(spec.pop("base", "planned"))
    shared = {name: spec.pop(name) for name in penalties if name in spec}
    if shared:
        both = {kind: read_record(Penalties, shared, path, start=getattr(start, kind)) for kind in ("text", "audio")}
        start = replace(start, **both)
    return read_record(Sampling, spec, path, start=start)


def _cache_from(spec: object, path: str) -> CachePolicy:
    """A cache's object; a key that belongs elsewhere is refused with its place."""
    if not isinstance(spec, CachePolicy):
        _require_placed(spec, {f.name for f in fields(CachePolicy)}, path)
    return read_value(spec, CachePolicy, path)


def _require_placed(spec: object, known: Collection[str], path: str) -> dict:
    """`require_keys`, whose message says where a setting has what commands and keywords name by itself."""
    places = []
    for key in map(str, spec if isinstance(spec, Mapping) else ()):
        name = key.lstrip("-").replace("-", "_")
        own = CACHE_FIELDS.get(name, name)
        if key not in known and (own in CACHE_FIELDS.values() or name in RULE_FIELDS):
            record = "cache" if own in CACHE_FIELDS.values() else "sampling"
            places.append(f'{key:.60} is "{record}": {{"{own}": …}} of a setting')
    return require_keys(spec, known, path, "; ".join(places[:3]))


def _of_now(spec: object) -> object:
    """A JSON object with today's names: earlier grids and rows say "prompt" for `include_prompt`."""
    if not isinstance(spec, Mapping):
        return spec
    return {"include_prompt" if name == "prompt" else name: _of_now(value) for name, value in spec.items()}


@dataclass(frozen=True)
class Setting:
    """How to decode, all but the seed. Fields as in `StepAudio2.transcribe`."""

    sampling: Sampling = field(default_factory=Sampling)
    cache: CachePolicy = field(default_factory=CachePolicy)
    max_tokens: int = MAX_TOKENS
    on_loop: str | None = None
    prompt: str = ASR_SYSTEM
    downmix: str = "first"
    vad: str = SpeechDetector.ENERGY
    resampler: str = Resampler.REFERENCE

    def __post_init__(self):
        object.__setattr__(self, "on_loop", self.options.loop_action)  # checks all five, and says what is done
        object.__setattr__(self, "sampling", replace(self.sampling, on_loop=self.on_loop))  # one meaning, one record
        for processor in self.sampling.processors:
            function_name(processor)  # which says if it has none
        if self.vad not in SpeechDetector.values():
            raise ConfigError(f"vad: expected {alternatives(SpeechDetector.values())}, found {self.vad!r}")
        checked_resampler(self.resampler)
        if self.downmix not in ("first", "mean") or not isinstance(self.prompt, str):
            raise ConfigError(
                f"expected downmix first or mean and a prompt of text, found {self.downmix!r}, {self.prompt!r}"
            )

    @classmethod
    def of(cls, spec: object, path: str = "setting") -> Setting:
        """Read the JSON shape; what is not mentioned stays at its default."""
        if isinstance(spec, Setting):
            return spec
        _require_placed(spec, {f.name for f in fields(cls)}, path)
        return read_record(cls, spec, path, readers={Sampling: sampling_from, CachePolicy: _cache_from})

    @property
    def options(self) -> DecodingOptions:
        """The same for the model's methods, but for prompt and what is read of a recording."""
        return DecodingOptions(self.sampling, self.cache, self.max_tokens, self.on_loop)

    def to_dict(self) -> dict:
        """Every value spelled out, defaults too, so that it means the same after a default changes.

        But for the bits of a cache of floats, a contrast that there is not and processors that there are not, which
        rows of earlier sweeps do not have. Processors are named, with a hash of their source.
        """
        said = asdict(replace(self, sampling=replace(self.sampling, processors=())))
        if self.cache.bits is None:
            del said["cache"]["bits"]
        if self.sampling.contrast is None:
            del said["sampling"]["contrast"]
        del said["sampling"]["processors"]
        if self.sampling.processors:
            said["sampling"]["processors"] = [function_name(p) for p in self.sampling.processors]
        return said


@dataclass(frozen=True)
class Trial:
    """One run of a grid: one row of its table."""

    clip: Clip
    clip_name: str
    setting_name: str
    setting: Setting
    seed: int
    fault: str
    edits_name: str = NO_EDITS
    edits: EditPlan = NO_PLAN

    @property
    def key(self) -> tuple[str, str, int, str, str]:
        """Names that no other trial of its grid has: clip, setting, seed, fault, edits."""
        return self.clip_name, self.setting_name, self.seed, self.fault, self.edits_name


@dataclass(frozen=True)
class Grid:
    """Every combination of clips, settings, seeds, faults and edits.

    Parameters
    ----------
    clips : `Clip`s, or the path of a manifest.
    settings : name to `Setting` or its JSON shape.
    model : checkpoint folder, or a model's name on a hub; None for `STEPAUDIO_CHECKPOINT` or the bundled model.
    seeds : whole numbers >= 0. Greedy settings come out alike for every seed.
    faults : names of faults to inject; "none" for the model as it is.
    dtype : of the weights, "float32", "float16" or "bfloat16"; None for the backend's default.
    lora : a LoRA to put on the model, as `StepAudio2.load` takes it.
    edits : name to what `interp.zero` and the others give, or to its JSON shape (`edited.EditPlan.of`); "none" for a
        run without. Edited runs read a recording as one segment, so their settings need `vad` "off".

    Raises
    ------
    ConfigError : a value of the wrong type or outside its range, nothing to run, or something listed twice.
    """

    clips: Sequence[Clip] | str | Path
    settings: Mapping[str, Setting | Mapping]
    model: str | Path | None = None
    seeds: Sequence[int] = (0,)
    faults: Sequence[str] = (NO_FAULT,)
    dtype: str | None = None
    edits: Mapping[str, Edits | EditPlan | Sequence] = field(default_factory=lambda: {NO_EDITS: NO_PLAN})
    lora: str | Path | None = None
    manifest: Path | None = field(default=None, init=False, repr=False, compare=False)  # from which the clips came

    def __post_init__(self):
        if isinstance(self.clips, str | Path):
            object.__setattr__(self, "manifest", Path(self.clips))
        if not isinstance(self.settings, Mapping):
            raise ConfigError(f"settings: expected an object of name to setting, found {self.settings!r}")
        if not isinstance(self.edits, Mapping):
            raise ConfigError(f"edits: expected an object of name to edits, found {self.edits!r:.80}")
        resolved = {
            "clips": tuple(read_manifest(self.clips) if isinstance(self.clips, str | Path) else self.clips),
            "settings": {str(n): Setting.of(s, f"settings.{n}") for n, s in self.settings.items()},
            "seeds": read_value(self.seeds, tuple[int, ...], "seeds"),
            "faults": read_value(self.faults, tuple[str, ...], "faults"),
            "edits": {str(n): EditPlan.of(e, f"edits.{n}") for n, e in self.edits.items()},
        }
        for name, value in resolved.items():
            object.__setattr__(self, name, value)  # the record is frozen, and complete from here on
        self._check()

    def _check(self) -> None:
        for name in ("clips", "settings", "seeds", "faults", "edits"):
            values = list(getattr(self, name))
            if not values:
                raise ConfigError(f"{name}: a grid needs at least one")
            if len(set(values)) < len(values):
                raise ConfigError(f"{name}: one of them is listed twice, so its runs could not be told apart")
        if min(self.seeds) < 0:
            raise ConfigError(f"seeds: expected 0 or more, found {min(self.seeds)}")
        if len(set(self.clip_names)) < len(self._clips):
            raise ConfigError("clips: one file is listed twice with different texts")
        for name, plan in self.plans.items():
            if bool(plan) == (name == NO_EDITS):
                raise ConfigError(f"edits.{name}: {NO_EDITS} is the run without edits, and the only one")
        loud = [name for name, s in self.settings.items() if cast(Setting, s).vad != SpeechDetector.OFF]
        if loud and any(self.plans.values()):
            raise ConfigError(
                f"settings.{loud[0]}: edits count positions of a whole recording; expected vad off, found "
                f"{cast(Setting, self.settings[loud[0]]).vad}"
            )
        if self.dtype not in (None, *DTYPES):
            raise ConfigError(f"dtype: expected one of {', '.join(DTYPES)} or null, found {self.dtype!r}")

    @property
    def _clips(self) -> tuple[Clip, ...]:
        return cast(tuple[Clip, ...], self.clips)

    @property
    def plans(self) -> Mapping[str, EditPlan]:
        """The edits by name."""
        return cast(Mapping[str, EditPlan], self.edits)

    @property
    def files(self) -> list[Path]:
        """What is read besides the model: all recordings, and the manifest that named them."""
        return [Path(clip.file) for clip in self._clips] + ([self.manifest] if self.manifest else [])

    @property
    def clip_names(self) -> list[str]:
        """Files relative to the folder they share, so that a table means the same on another machine."""
        files = [os.path.abspath(clip.file) for clip in self._clips]
        shared = os.path.commonpath([os.path.dirname(f) for f in files])
        return [Path(os.path.relpath(f, shared)).as_posix() for f in files]

    def trials(self) -> Iterator[Trial]:
        """All runs in declared order, faults outermost, because changing one may mean rebuilding the model."""
        named = list(zip(self._clips, self.clip_names, strict=True))
        settings = cast(Mapping[str, Setting], self.settings)
        for fault in self.faults:
            for name, setting in settings.items():
                for i, (clip, clip_name) in enumerate(named):
                    for seed in self.seeds:
                        for edits_name, edits in self.plans.items():
                            yield Trial(clip, clip_name, name, setting, seed, fault, edits_name, edits.at(i, named))

    def __len__(self) -> int:
        return len(self._clips) * len(self.settings) * len(self.seeds) * len(self.faults) * len(self.plans)

    @classmethod
    def from_file(cls, path: str | Path) -> Grid:
        """Read a JSON file with the fields of `Grid`; its paths are relative to it.

        "clips" is the path of a manifest, or a list of {"file", "text"}. "defects" is an older name of "faults".

        Raises
        ------
        ConfigError : as `Grid`, and if the file cannot be read or has an unknown, missing or doubled key.
        """
        path = Path(path)
        data = read_object(path, ConfigError, "expected a grid: an object with clips and settings")
        data = require_keys(data, (*(f.name for f in fields(cls) if f.init), OLD_FAULTS), path.name)
        if OLD_FAULTS in data:
            if "faults" in data:
                raise ConfigError(f"{path.name}: {OLD_FAULTS} is an older name of faults; found both")
            data["faults"] = data.pop(OLD_FAULTS)
        absent = {"clips", "settings"} - set(data)
        if absent:
            raise ConfigError(f"{path.name}: missing key {', '.join(sorted(absent))}")
        if data.get("model") is not None:
            found = meant(str(data["model"]), path.parent)
            data["model"] = found if isinstance(found, Path) else str(found)
        if data.get("lora") is not None:
            data["lora"] = _lora_from(data["lora"], path)
        data["clips"] = _clips_from(data["clips"], path)
        return cls(**data)


def _lora_from(spec: object, path: Path) -> str | Path:
    """A folder beside the grid if there is one, else the name of one within the model's folder."""
    if not isinstance(spec, str) or not spec:
        raise ConfigError(f"{path.name}.lora: expected the folder of a LoRA or null, found {spec!r:.80}")
    beside = path.parent / spec
    return beside if beside.is_dir() else spec


def _clips_from(spec: object, path: Path) -> Path | list[Clip]:
    if isinstance(spec, str):
        return path.parent / spec
    if not isinstance(spec, list) or not all(
        isinstance(c, dict) and isinstance(c.get("file"), str) and isinstance(c.get("text"), str) and len(c) == 2
        for c in spec
    ):
        raise ConfigError(
            f'{path.name}.clips: expected the path of a manifest, or a list of {{"file": ..., "text": ...}}'
        )
    return [Clip(path.parent / c["file"], c["text"]) for c in spec]
