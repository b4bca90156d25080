"""The published models of this architecture, by name: what each can be asked, and how its prompts differ.

Names of folders and of repositories are all that tells them apart: their configs have the same keys, and three of them
the same sizes. A folder of another name says what it is in its `capabilities.json`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .hub_name import HubName, repository_of

PUBLISHER = "stepfun-ai"
TEXT_ALONE = "it gives text alone, and was published without token2wav"
NO_PROMPT = "it thinks aloud before it answers, and no prompt for this was published: ask it with `model.think`"


@dataclass(frozen=True)
class Sibling:
    """One published model.

    Parameters
    ----------
    name : str
        Of its repository, without the organisation.
    refusals : mapping of str to str
        Task that it cannot do -> why, for people.
    turns : bool
        Whether its prompts have turns; a base model's have none.
    thinking : str, optional
        What opens the answer of a model that thinks aloud, up to the thought.
    """

    name: str
    refusals: Mapping[str, str] = field(default_factory=dict)
    turns: bool = True
    thinking: str | None = None


REASONS = {"transcribe": NO_PROMPT, "translate": NO_PROMPT, "speak": TEXT_ALONE}
SIBLINGS = (
    Sibling("Step-Audio-2-mini"),
    Sibling(
        "Step-Audio-2-mini-Base", turns=False,
        refusals={"respond": "it was not trained to converse, it goes on with what it is given"},
    ),
    Sibling("Step-Audio-2-mini-Think", thinking="\n<think>\n"),
    Sibling("Step-Audio-R1", REASONS, thinking="<think>\n"),
    Sibling("Step-Audio-R1.1", REASONS, thinking="<think>\n"),
)  # fmt: skip


def name_of(text: object) -> str | None:
    """Organisation and name of the published model that has this very name; None for any other text."""
    return next((f"{PUBLISHER}/{one.name}" for one in SIBLINGS if one.name == text), None)


def sibling_of(path: str | Path | HubName) -> Sibling | None:
    """The published model that a name on a hub or the name of a folder means; None for any other name.

    What others append to a name, as in "Step-Audio-R1-4bit", does not count.

    >>> sibling_of("somewhere/Step-Audio-2-mini-Base").turns
    False
    """
    if isinstance(path, HubName):
        name = path.repo
    else:
        folder = Path(path).absolute()
        name = repository_of(folder) or folder.name
    name = name.rpartition("/")[2].lower()
    known = sorted(SIBLINGS, key=lambda one: -len(one.name))
    return next((one for one in known if name == one.name.lower() or name.startswith(f"{one.name.lower()}-")), None)
