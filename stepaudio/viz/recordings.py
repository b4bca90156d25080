"""A menu of recordings for widgets, with a button that adds one's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..audio.load import load_audio
from ..constants import SAMPLE_RATE
from ..errors import ConfigError
from ..evaluation.manifest import Clip, distinct_names, read_manifest
from ..resources import speech_manifest

MAX_SECONDS = 25.0  # of a recording that is drawn, played or decoded: what one segment holds


@dataclass(frozen=True)
class Recording:
    """Something to listen to: a path or the bytes of a file, and what was said, None where nobody told."""

    source: Path | bytes
    text: str | None

    def samples(self) -> tuple[np.ndarray, float]:
        """(The first `MAX_SECONDS` at 16 kHz, the seconds of the whole)."""
        whole = load_audio(self.source)
        return whole[: round(MAX_SECONDS * SAMPLE_RATE)], len(whole) / SAMPLE_RATE

    def said(self) -> str:
        """A line on what was said."""
        return "Said: not given" if self.text is None else f"Said: {self.text or '(nothing)'}"


class Recordings:
    """A menu of recordings, and a button that adds one's own and chooses it."""

    def __init__(self, w: Any, clips: Sequence[Clip] | str | Path | None):
        if clips is None or isinstance(clips, (str, Path)):
            clips = read_manifest(clips or speech_manifest())
        names = distinct_names([clip.file for clip in clips])
        self._named = {name: Recording(clip.file, clip.text) for name, clip in zip(names, clips, strict=True)}
        if not self._named:
            raise ConfigError("no clips to choose from: expected at least one")
        self.menu = w.Dropdown(options=list(self._named), description="clip")
        self.upload = w.FileUpload(accept="audio/*", multiple=False, description="your own")
        self.upload.observe(self._add, names="value")
        self.box = w.HBox([self.menu, self.upload])

    def _add(self, _: object) -> None:
        for file in self.upload.value:
            name, n = file["name"], 1
            while name in self._named:
                n += 1
                name = f"{file['name']} ({n})"
            self._named[name] = Recording(bytes(file["content"]), None)
            self.menu.options = (*self.menu.options, name)
            self.menu.value = name

    @property
    def chosen(self) -> tuple[str, Recording]:
        """Name and recording that the menu shows."""
        return self.menu.value, self._named[self.menu.value]
