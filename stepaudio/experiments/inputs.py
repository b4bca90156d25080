"""What the runs of a sweep share: models with faults, samples, audio embeddings and donors, made when first needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np

from ..checkpoints.find import checkpoint_folder
from ..decoding.options import merge_options
from ..errors import AudioError, ConfigError
from ..evaluation.manifest import Clip
from ..interp.donor import Activations, realigned
from ..interp.edits import Edits
from ..interp.running import activations, edit_tap, lay_out
from ..model import StepAudio2
from ..models.parameters import named_arrays
from ..models.speech_lm import StepAudioConfig
from .edited import DonorEdit
from .faults import BITS, LOST, faulty
from .grid import NO_FAULT, Grid, Setting, Trial

if TYPE_CHECKING:
    from ..pipeline import Layout

KEPT_DONORS = 48  # runs whose activations stay in memory: three for each clip that is edited together
WithFault = Callable[[StepAudio2, str], StepAudio2]


class SharedInputs:
    """Samples, prompts and audio embeddings, kept so that the next setting neither reads nor encodes them again.

    Samples of every recording (64 kB a second), audio embeddings of every segment, and mels with edits stay in memory.
    """

    def __init__(self, model: StepAudio2):
        self._model = model
        self._samples: dict[tuple[str, str, str], np.ndarray] = {}
        self._encoded: dict[bytes, mx.array] = {}
        self._layouts: dict[tuple[str, str, str, str], Layout] = {}

    def samples(self, file: str | Path, setting: Setting) -> np.ndarray:
        """What `model.transcribe` would read, float32 (n,) at 16 kHz."""
        key = str(file), setting.downmix, setting.resampler
        if key not in self._samples:
            load = self._model.pipeline.load
            self._samples[key] = load(file, downmix=setting.downmix, sample_rate=None, resampler=setting.resampler)
        return self._samples[key]

    def encode(self, segments: list[np.ndarray]) -> list[mx.array]:
        """Audio embeddings of segments, (n_i, D) each."""
        keys = [blake2b(s.tobytes()).digest() for s in segments]
        new = {key: s for key, s in zip(keys, segments, strict=True) if key not in self._encoded}
        engine = self._model.engine
        self._encoded.update(zip(new, engine.encode_audio(engine.log_mel(s) for s in new.values()), strict=True))
        mx.eval([self._encoded[key] for key in new])
        return [self._encoded[key] for key in keys]

    def layout(self, file: str | Path, setting: Setting) -> Layout:
        """The prompt of a recording as one run reads it."""
        key = str(file), setting.downmix, setting.resampler, setting.prompt
        if key not in self._layouts:
            self._layouts[key] = lay_out(self._model, self.samples(file, setting), setting.prompt)
        return self._layouts[key]


class Models:
    """The model with the fault last asked for, those that donors come from, and the last donors."""

    def __init__(self, grid: Grid, load: Callable[[Grid], StepAudio2], with_fault: WithFault):
        self._grid, self._load, self._with_fault = grid, load, with_fault
        self._intact: StepAudio2 | None = None
        self._of_intact: SharedInputs | None = None
        self._current: tuple[str, StepAudio2] | None = None
        self.inputs: SharedInputs | None = None
        self._givers: dict[str, tuple[StepAudio2, SharedInputs]] = {}
        self._donors: dict[tuple, Activations] = {}

    def of(self, fault: str) -> StepAudio2:
        """The model with a fault."""
        if self._current is None or self._current[0] != fault:
            self._current = None  # lets go of the last one before the next is made
            self._current = fault, self._made(fault)
            self.inputs = self._inputs_of(*self._current)
        return self._current[1]

    def _inputs_of(self, fault: str, model: StepAudio2) -> SharedInputs:
        """Those of the intact model, where the model encodes as it does."""
        intact = self._intact
        if intact is None or self._with_fault is not faulty or not encodes_alike(intact, model, fault):
            return SharedInputs(model)
        if self._of_intact is None:
            self._of_intact = SharedInputs(intact)
        return self._of_intact

    def _made(self, fault: str) -> StepAudio2:
        if self._intact is None:
            self._intact = self._load(self._grid)
        return self._intact if fault == NO_FAULT else self._with_fault(self._intact, fault)

    # ------------------------------------------------------------ edits

    def edits_of(self, trial: Trial) -> Edits:
        """The edits of a run, with their donors."""
        model = self.of(trial.fault)
        if not trial.edits.donors:
            return trial.edits.stand_in()
        assert self.inputs is not None
        layout = self.inputs.layout(trial.clip.file, trial.setting)
        most = trial.setting.max_tokens
        made = trial.edits.made(lambda part: self._donor(part, trial), layout, model, most)
        edit_tap(model, made, [layout], most)  # a donor may be too short for a place
        return made

    def _giver(self, fault: str) -> tuple[StepAudio2, SharedInputs]:
        """A model that donors come from, which stays."""
        if fault not in self._givers:
            model = self._made(fault)
            self._givers[fault] = model, self._inputs_of(fault, model)
        return self._givers[fault]

    def _donor(self, part: DonorEdit, trial: Trial) -> Activations:
        """The run that an edit takes from; the last ones are kept. For a patch, by the positions of the run itself."""
        clip = part.clip or trial.clip
        found = self._run_of(part, clip, trial)
        if part.clip is None or part.kind != "patch":
            return found
        assert self.inputs is not None
        other, own = (inputs.layout(one.file, trial.setting).prompt
                      for inputs, one in ((self._giver(part.donor)[1], clip), (self.inputs, trial.clip)))  # fmt: skip
        return realigned(found, other, own)

    def _run_of(self, part: DonorEdit, clip: Clip, trial: Trial) -> Activations:
        key = part.donor, str(clip.file), trial.setting_name, trial.seed
        if key not in self._donors:
            if len(self._donors) >= KEPT_DONORS:
                del self._donors[next(iter(self._donors))]
            model, inputs = self._giver(part.donor)
            every = [d for plan in self._grid.plans.values() for d in plan.donors]
            names = {name for d in every if d.donor == part.donor for name in d.names}
            samples, setting = inputs.samples(clip.file, trial.setting), trial.setting
            options = merge_options(setting.options, seed=trial.seed)
            self._donors[key] = activations(model, samples, sorted(names), prompt=setting.prompt, options=options)
        return self._donors[key]

    # ------------------------------------------------------------ before the first run

    def check_places(self, trials: Sequence[Trial]) -> None:
        """Raise `ConfigError` for an edit that one of these runs has no place for. Recordings are read, no net runs."""
        seen: set[tuple] = set()
        for trial in trials:
            key = trial.fault, trial.setting.prompt, trial.setting.max_tokens, trial.clip_name, trial.edits_name
            if key in seen:
                continue
            seen.add(key)
            where = f"edits.{trial.edits_name}, clip {trial.clip_name}, fault {trial.fault}"
            model = self.of(trial.fault)
            assert self.inputs is not None
            try:
                layout = self.inputs.layout(trial.clip.file, trial.setting)
                others = [self._giver(p.donor)[1].layout(trial.clip.file, trial.setting)
                          for p in trial.edits.donors if p.clip is None]  # fmt: skip
            except AudioError:
                continue  # its row will say so
            if len(layout.mels) != 1:
                raise ConfigError(f"{where}: expected a recording of one segment, found {len(layout.mels)}")
            lengths = {len(one.prompt.tokens) for one in (layout, *others)}
            if len(lengths) > 1:
                raise ConfigError(
                    f"{where}: the prompts of run and donor have {' and '.join(map(str, sorted(lengths)))} positions, "
                    "so none means the same in both; expected faults that leave the prompt as long"
                )
            try:
                edit_tap(model, trial.edits.stand_in(), [layout], trial.setting.max_tokens)
            except ConfigError as error:
                raise ConfigError(f"{where}: {error}") from None


def encodes_alike(intact: StepAudio2, model: StepAudio2, fault: str) -> bool:
    """Whether a fault of `faulty` is known to leave audio embeddings as they were: it changes weights alone, others."""
    names = [] if fault == NO_FAULT else fault.split("+")
    if not all(name.startswith((BITS, LOST)) for name in names):
        return False
    parts = [(getattr(intact.net, part), getattr(model.net, part)) for part in ("encoder", "adapter")]
    pairs = ((named_arrays(one.parameters()), named_arrays(other.parameters())) for one, other in parts)
    return all(a is b for before, after in pairs for (_, a), (_, b) in zip(before, after, strict=True))


def check_names(grid: Grid) -> None:
    """Raise `ConfigError` for an edit of what the grid's model has not."""
    if any(grid.plans.values()):
        config = StepAudioConfig.from_file(checkpoint_folder(grid.model))
        for name, plan in grid.plans.items():
            plan.check_names(config, f"edits.{name}")


def donor_faults(grid: Grid) -> set[str]:
    """Faults of the models that donors come from."""
    return {part.donor for plan in grid.plans.values() for part in plan.donors}
