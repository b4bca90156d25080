"""What a checkpoint was trained to do: `capabilities.json` beside its weights, or what is known of its name.

Of a folder without that file, and of a name that is none of the published ones, everything is allowed.

A model of this architecture answers any prompt with something; one that was only trained to transcribe answers a
request for a translation with nonsense. The file lets such a request end in an error.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..errors import ConfigError, PromptError
from ..reading import is_file, read_object
from ..schema import read_record, require, shown
from ..text.scripts import foreign_letters, symbols
from .find import meant
from .hub_name import HubName
from .lora_folder import lora_folder, loras_in
from .siblings import sibling_of

FILE = "capabilities.json"
REPEAT = "repeat"
TASKS = ("transcribe", "translate", "respond", REPEAT, "speak")


@dataclass(frozen=True)
class Capabilities:
    """Tasks and languages that a checkpoint was trained for.

    Parameters
    ----------
    tasks : tuple of str, optional
        Of `TASKS`: "transcribe" (speech to text), "translate" (speech to text or speech in another language),
        "respond" (answer a text or a recording), "repeat" (say again what a recording says, where "respond" would
        answer it), "speak" (give audio codes). None for everything.
    languages : tuple of str, optional
        ISO 639 codes of the languages it understands; None if not stated.
    turns : bool
        Whether its prompts have turns; those of a base model have none.
    thinking : str, optional
        What opens an answer of a model that thinks aloud first, up to the thought; None for one that does not.
    thinks_unasked : bool
        Of such a model, whether its answers begin with a thought where nothing else is asked for.
    words_only : bool
        Whether the texts that it learned to read aloud had no digits and symbols, so that it reads none.
    refusals : mapping of str to str
        Task -> why it cannot be done, where more is known than that it is not among the tasks.
    folder : Path, optional
        Of the model, whose LoRAs may have been trained for more.
    """

    tasks: tuple[str, ...] | None = None
    languages: tuple[str, ...] | None = None
    turns: bool = True
    thinking: str | None = None
    thinks_unasked: bool = True
    words_only: bool = False
    refusals: Mapping[str, str] = field(default_factory=dict, init=False)
    folder: Path | None = field(default=None, init=False, compare=False)

    @classmethod
    def of(cls, path: str | Path | None = None, lora: str | Path | None = None) -> Capabilities:
        """Of the model that a path or a name on a hub means, as `find.checkpoint_folder`; nothing is fetched.

        `lora` : what `StepAudio2.load` takes. Raises as `of_folder`, and `WeightsError` where there is no such LoRA.
        """
        named = meant(path)
        found = cls.of_folder(named) if isinstance(named, Path) else cls._of_name(named)
        if lora is None:
            return found
        return found.with_lora(lora_folder(lora, named if isinstance(named, Path) else None))

    def with_lora(self, folder: Path) -> Capabilities:
        """With the LoRA in a folder on: what its own file says, or, where it has none, the same as without it."""
        if is_file(folder / FILE, ConfigError):
            return self.of_folder(folder)
        return self

    def to_dict(self) -> dict:
        """As the file has it."""
        return {k: v for k, v in asdict(self).items() if v is not None and k not in ("refusals", "folder")}

    @classmethod
    def _of_name(cls, path: Path | HubName) -> Capabilities:
        sibling = sibling_of(path)
        if sibling is None:
            return cls()
        able = tuple(task for task in TASKS if task not in (REPEAT, *sibling.refusals))
        tasks = able if sibling.refusals else None
        found = cls(tasks, turns=sibling.turns, thinking=sibling.thinking)
        object.__setattr__(found, "refusals", {t: f"{sibling.name}: {why}" for t, why in sibling.refusals.items()})
        return found

    @classmethod
    def of_folder(cls, folder: str | Path) -> Capabilities:
        """Read the file beside a checkpoint's weights; where there is none, the name tells, if it is a known one.

        Raises
        ------
        ConfigError
            Not JSON, an unknown key, a value of another type, or an unknown task.
        """
        path = Path(folder) / FILE
        if not is_file(path, ConfigError):
            return cls._of_name(Path(folder))._in(Path(folder))
        found = read_record(cls, read_object(path, ConfigError, f"expected tasks of {', '.join(TASKS)}"), str(path))
        unknown = set(found.tasks or ()) - set(TASKS)
        require(
            not unknown, f"{path}: unknown task {shown(min(unknown, default=''))}; expected some of {', '.join(TASKS)}"
        )
        return found._in(Path(folder))

    def _in(self, folder: Path) -> Capabilities:
        object.__setattr__(self, "folder", folder)  # the record is frozen, and complete from here on
        return self

    def allow(self, task: str) -> bool:
        """Whether the checkpoint was trained for a task."""
        return self.tasks is None or task in self.tasks

    def require(self, task: str) -> None:
        """Raise `PromptError`, naming what the model can do, if it was not trained for a task."""
        if task in self.refusals:
            raise PromptError(f"this model cannot {task}: {self.refusals[task]}{self.advice(task)}")
        if not self.allow(task):
            advice = self.advice(task) or "; load a checkpoint that can, for instance the published Step-Audio 2 mini"
            raise PromptError(f"this model cannot {task}: it was trained to {self}, as its {FILE} says{advice}")

    def advice(self, task: str) -> str:
        """What to append to a refusal: the LoRA in the model's folder that was trained for a task, or nothing."""
        return self._beside(lambda able: able.allow(task))

    def require_thinking(self) -> str:
        """What opens an answer that begins with a thought; `PromptError` if the model does not think aloud."""
        if self.thinking is None:
            advice = self._beside(lambda able: able.thinking is not None)
            raise PromptError(
                "this model does not think aloud: Step-Audio-2-mini-Think and Step-Audio-R1 do, and a folder whose "
                f'{FILE} has "thinking"{advice}'
            )
        return self.thinking

    def _beside(self, can: Callable[[Capabilities], bool]) -> str:
        for name, lora in loras_in(self.folder).items():
            with contextlib.suppress(ConfigError):  # of a LoRA that nobody asked for
                if is_file(lora / FILE, ConfigError) and can(Capabilities.of_folder(lora)):
                    return f"; a LoRA beside it was trained for that: add --lora {name}, or in Python lora={name!r}"
        return ""

    def require_text(self, text: str) -> None:
        """Raise `PromptError` if a text to be read aloud has letters of none of the languages that are stated."""
        foreign = foreign_letters(text, self.languages) if self.languages else ""
        if foreign:
            raise PromptError(
                f"text to read: {shown(foreign)} are no letters of {', '.join(self.languages or ())}, the languages "
                f"that this model was trained on, as its {FILE} says: write it with those, or load another checkpoint"
            )

    def warn_of_symbols(self, text: str) -> None:
        """Warn if a text to be read aloud has digits or symbols, and the model reads words alone."""
        found = symbols(text) if self.words_only else ""
        if found:
            warnings.warn(
                f"this model reads words alone, and {shown(found)} in the text come out wrong or not at all: write "
                "numbers and symbols as words",
                stacklevel=3,
            )

    def require_answer(self) -> None:
        """Raise `PromptError` if it answers no recording; warn if it was only trained to say one again."""
        if self.tasks is not None and REPEAT in self.tasks and "respond" not in self.tasks:
            advice = self.advice("respond")
            warnings.warn(
                f"this model does not answer a recording: it says again what is said there{advice}", stacklevel=3
            )
        else:
            self.require("respond")

    def __str__(self) -> str:
        tasks = "do any task" if self.tasks is None else " and ".join(self.tasks) or "do nothing"
        return tasks + (f" (languages: {', '.join(self.languages)})" if self.languages else "")
