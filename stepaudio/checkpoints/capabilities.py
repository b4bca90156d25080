"""What a checkpoint was trained to do: `capabilities.json` beside its weights. Without that file, everything.

A model of this architecture answers any prompt with something; one that was only trained to transcribe answers a
request for a translation with nonsense. The file lets such a request end in an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError, PromptError
from ..reading import is_file, read_object
from ..schema import read_record, require, shown

FILE = "capabilities.json"
TASKS = ("transcribe", "translate", "respond", "speak")


@dataclass(frozen=True)
class Capabilities:
    """Tasks and languages that a checkpoint was trained for.

    Parameters
    ----------
    tasks : tuple of str, optional
        Of `TASKS`: "transcribe" (speech to text), "translate" (speech to text or speech in another language),
        "respond" (answer a text or a recording), "speak" (give audio codes). None for everything.
    languages : tuple of str, optional
        ISO 639 codes of the languages it understands; None if not stated.
    """

    tasks: tuple[str, ...] | None = None
    languages: tuple[str, ...] | None = None

    @classmethod
    def of_folder(cls, folder: str | Path) -> Capabilities:
        """Read the file beside a checkpoint's weights; everything is allowed where there is none.

        Raises
        ------
        ConfigError
            Not JSON, an unknown key, a value of another type, or an unknown task.
        """
        path = Path(folder) / FILE
        if not is_file(path, ConfigError):
            return cls()
        found = read_record(cls, read_object(path, ConfigError, f"expected tasks of {', '.join(TASKS)}"), str(path))
        unknown = set(found.tasks or ()) - set(TASKS)
        require(
            not unknown, f"{path}: unknown task {shown(min(unknown, default=''))}; expected some of {', '.join(TASKS)}"
        )
        return found

    def allow(self, task: str) -> bool:
        """Whether the checkpoint was trained for a task."""
        return self.tasks is None or task in self.tasks

    def require(self, task: str) -> None:
        """Raise `PromptError`, naming what the model can do, if it was not trained for a task."""
        if not self.allow(task):
            raise PromptError(
                f"this model cannot {task}: it was trained to {self}, as its {FILE} says. Load a checkpoint that can, "
                f"for instance the published Step-Audio 2 mini"
            )

    def __str__(self) -> str:
        tasks = "do any task" if self.tasks is None else " and ".join(self.tasks) or "do nothing"
        return tasks + (f" (languages: {', '.join(self.languages)})" if self.languages else "")
