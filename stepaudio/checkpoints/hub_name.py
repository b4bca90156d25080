"""How a model on a hub is named, and which parts of it can be fetched apart. Reads nothing."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Self

SITE = re.compile(r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/([^/?#]+/[^/?#]+)(?:/tree/([^?#]+?))?/?")
NAME = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([A-Za-z0-9][\w./-]*))?")
MODEL, TOKEN2WAV = "model", "token2wav"  # parts of a published repository that can be fetched apart


@dataclass(frozen=True)
class HubName:
    """A repository on a hub, "ORG/NAME", and perhaps a revision of it: a branch, a tag or a commit."""

    repo: str
    revision: str | None = None

    @classmethod
    def of(cls, text: object) -> Self | None:
        """What "ORG/NAME", "ORG/NAME@REVISION" or the address of a model's page names; None for anything else."""
        page = SITE.fullmatch(text) if isinstance(text, str) else None
        text = page[1] + (f"@{page[2]}" if page[2] else "") if page else text
        found = NAME.fullmatch(text) if isinstance(text, str) else None
        return found and cls(found[1], found[2])

    def __str__(self) -> str:
        return self.repo if self.revision is None else f"{self.repo}@{self.revision}"


def repository_of(folder: Path) -> str | None:
    """The repository, "ORG/NAME", whose snapshot in a cache this folder is; None if it is none."""
    parts = folder.absolute().parts[-3:]
    kind, _, repo = parts[0].partition("--") if len(parts) == 3 and parts[1] == "snapshots" else ("", "", "")
    return repo.replace("--", "/", 1) if kind == "models" and "--" in repo else None
