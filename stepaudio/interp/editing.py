"""Edits at work: checked against a model and its prompts before anything runs, then a tap that makes them.

Where an edit holds follows from absolute positions alone, so that it makes no difference how a run is divided into
passes: prefill in parts, one token at a time with a cache, all at once without one, alone or in a batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from ..choices import EditKind
from ..constants import EMBEDDINGS_PER_SECOND, FRAMES_PER_SECOND, SAMPLE_RATE
from ..errors import ConfigError
from ..models.speech_lm import StepAudioConfig
from ..models.tap import beginnings
from ..pipeline import Layout
from .donor import Activations
from .edit_targets import RATES, TIMES, Target, targets_of
from .editor import Editor
from .edits import Edits
from .names import FIXED, axis_sizes, frames_at
from .places import Place, Span, from_end, within


class EditTap(Editor):
    """A tap that makes edits; of one run, from its first pass on.

    Parameters
    ----------
    edits : in the order in which they are made
    config : of the model
    layouts : the prompts of the batch, in the order of its rows; audio is edited for the first alone
    max_tokens : of the answers
    chunk_samples : longest segment of audio
    longest : positions to which the prompts of the batch are filled up at the left; by default the longest of `layouts`

    Raises
    ------
    ConfigError
        An edit that cannot apply: a name, head, position, second, step or token that there is not, a place that the
        activation has no axis for, values of another size, a donor without what is asked of it.
    """

    def __init__(
        self,
        edits: Edits,
        config: StepAudioConfig,
        layouts: Sequence[Layout],
        max_tokens: int,
        chunk_samples: int,
        longest: int | None = None,
    ):
        super().__init__(edits)
        self._layouts, self._max_tokens = tuple(layouts), max_tokens
        self._chunk = chunk_samples / SAMPLE_RATE
        longest = longest or max(len(layout.prompt.tokens) for layout in self._layouts)
        self._pads = [longest - len(layout.prompt.tokens) for layout in self._layouts]
        for edit in edits:
            for target in targets_of(edit, config):
                self._check(target, config)
                self.add(target)
        self._wanted = beginnings((*self.names, *FIXED))
        self._slots = np.zeros(0, int)
        self._tokens: list[mx.array] = []  # of every pass

    @property
    def in_audio(self) -> bool:
        """Whether something is edited in encoder or adapter."""
        return any(name.startswith(("encoder.", "adapter.")) for name in self.names)

    def wants(self, name: str) -> bool:
        """Whether something is edited there, as `models.tap.wants` asks."""
        return name in self._wanted

    def __call__(self, name: str, x: mx.array) -> mx.array:
        """The edited activation, or `x` itself where nothing is to be done."""
        if name == "decoder.positions":
            self._slots = np.array(x)
            self.begin_pass()
        elif name == "decoder.tokens":
            begins = int(self._slots.max()) + 1 == x.shape[1]
            self._tokens = [x] if begins else [*self._tokens, x]
        return self.edited(name, x)

    # ------------------------------------------------------------ at work

    def donated(self, donor: Activations, target: Target, row: int) -> np.ndarray:
        """A donor's array for one row; what it has of audio, clip by clip."""
        array = donor[target.name]
        return array[row] if target.axis("TSPR") is not None else array[0]

    def pooled(self, donor: Activations, target: Target, row: int) -> list[np.ndarray]:
        """Every segment of audio that the donor has, without padding."""
        return [donor.own(target.name, i, target.axes) for i in range(len(donor[target.name]))]

    def positions(self, target: Target, which: int, x: mx.array) -> np.ndarray:
        """(B, n) absolute positions of the entries of a time axis; below 0 what a prompt is padded with."""
        axis = target.axis(TIMES, which)
        letter, n = ("n", 1) if axis is None else (target.axes[axis], x.shape[axis])
        if letter in RATES:
            return np.broadcast_to(np.arange(n), (x.shape[0], n))
        newest = int(self._slots.max())
        found = self._slots if letter == "L" else np.arange(newest + 1 - n, newest + 1)
        return found[None] - np.array(self._pads)[:, None]

    def members(self, target: Target, place: Place, positions: np.ndarray) -> np.ndarray:
        """(B, n) booleans: positions that meet what `place` says, tokens left out."""
        if target.axis("TSPR") is not None:
            spans = [self._spans_of_audio(target, place, clip) for clip in range(len(positions))]
        else:
            spans = [self._spans_of_row(place, row) for row in range(len(positions))]
        return np.stack([within(p, conditions) & (p >= 0) for p, conditions in zip(positions, spans, strict=True)])

    def holds(self, tokens: Sequence[Span], positions: np.ndarray) -> mx.array:
        """(B, n) booleans: which positions hold one of the tokens; known on the device alone."""
        if not self._tokens:
            raise ConfigError("edit by tokens: this pass came without token ids; expected them beside the embeddings")
        known = mx.concatenate(self._tokens, axis=1)
        column = np.clip(positions + np.array(self._pads)[:, None], 0, known.shape[1] - 1)
        ids = mx.take_along_axis(known, mx.array(column), axis=1)
        found = mx.zeros(ids.shape, mx.bool_)
        for a, b in tokens:
            found = found | ((ids >= a) if b is None else (ids >= a) & (ids < b))
        return found

    # ------------------------------------------------------------ places as spans

    def _spans_of_row(self, place: Place, row: int) -> list[list[Span]]:
        """Each condition of a place in the decoder as spans of positions."""
        prompt, found = self._layouts[row].prompt, []
        n = len(prompt.tokens)
        if place.positions is not None:
            found.append([from_end(span, n) for span in place.positions])
        if place.steps is not None:
            found.append([(a + n - 1, None if b is None else b + n - 1) for a, b in place.steps])
        if place.seconds is not None:
            own = []
            for slot in (s for s in prompt.slots if s.clip == place.clip):
                if part := self._part(place.seconds, slot.piece, EMBEDDINGS_PER_SECOND, slot.length):
                    own.append((slot.start + part[0], slot.start + part[1]))
            found.append(own)
        return found

    def _spans_of_audio(self, target: Target, place: Place, row: int) -> list[list[Span]]:
        """Each condition of a place in encoder or adapter as spans of frames of one segment."""
        layout, found = self._layouts[0], []
        letter = next(a for a in target.axes if a in RATES)
        n, slot = frames_at(layout.mels[row].shape[1])[letter], layout.prompt.slots[row]
        if place.positions is not None:
            found.append([from_end(span, n) for span in place.positions])
        if place.seconds is not None:
            part = self._part(place.seconds, slot.piece, RATES[letter], n) if slot.clip == place.clip else None
            found.append([part] if part else [])
        return found

    def _part(self, seconds: tuple[float, float], piece: int, rate: float, n: int) -> tuple[int, int] | None:
        """Which of the n frames of a segment a stretch of its recording touches."""
        start, stop = (s - piece * self._chunk for s in seconds)
        a, b = max(0, int(np.floor(start * rate + 1e-6))), min(n, int(np.ceil(stop * rate - 1e-6)))
        return (a, b) if a < b else None

    # ------------------------------------------------------------ before anything runs

    def _check(self, target: Target, config: StepAudioConfig) -> None:
        """Raise unless the edit can apply to every row."""
        edit, what = target.edit, f"edit {target.edit.kind} at {target.name}"
        audio, two = target.axis("TSPR") is not None, target.axis(target.times, 1) is not None
        if edit.keys is not None and not two:
            raise ConfigError(f"{what}: keys: expected a pattern (*.pattern), which alone is by query and key")
        for place in (edit.at, edit.keys or Place()):
            if audio and (place.steps is not None or place.tokens is not None):
                raise ConfigError(f"{what}: the audio has no steps or tokens; expected positions or seconds")
            if target.axes[-2:-1] == ("L",) and place.steps is not None:
                raise ConfigError(f"{what}: the cache has no steps; expected positions, seconds or tokens")
            if place.tokens is not None and place.tokens[-1][0] >= config.text_config.vocab_size:
                raise ConfigError(
                    f"{what}: token {place.tokens[-1][0]}: the vocabulary has {config.text_config.vocab_size}"
                )
            self._check_place(place, target, what, audio)
        for donor in edit.donors:
            array = donor[target.name]
            if audio and edit.kind == EditKind.PATCH and len(array) < len(self._layouts[0].mels):
                raise ConfigError(
                    f"{what}: the prompt has {len(self._layouts[0].mels)} segments of audio, the donor {len(array)}"
                )
            if two and edit.kind != EditKind.PATCH:
                raise ConfigError(
                    f"{what}: a pattern is as long as its position is late; expected patch, zero or scale"
                )
            self._check_sizes(array, target, config, what)

    def _check_place(self, place: Place, target: Target, what: str, audio: bool) -> None:
        layouts = self._layouts[:1] if audio else self._layouts
        for row, layout in enumerate(layouts):
            n = len(layout.prompt.tokens)
            limit = n + self._max_tokens - 1
            if audio:
                letter = next(a for a in target.axes if a in RATES)
                limit = n = max((frames_at(mel.shape[1])[letter] for mel in layout.mels), default=0)
            for a, b in place.positions or ():
                first, last = from_end((a, b), n)
                if first < 0 or first >= limit or (last is not None and last > limit):
                    raise ConfigError(
                        f"{what}: position {a if first < 0 or first >= limit else b - 1}: the run has {limit}"
                    )
            for a, b in place.steps or ():
                if a >= self._max_tokens or (b is not None and b > self._max_tokens):
                    step = a if a >= self._max_tokens else b - 1
                    raise ConfigError(f"{what}: step {step}: the answer has at most {self._max_tokens} tokens")
            if place.seconds is not None:
                of_clip = [
                    (s, m) for s, m in zip(layout.prompt.slots, layout.mels, strict=True) if s.clip == place.clip
                ]
                if not of_clip:
                    raise ConfigError(f"{what}: clip {place.clip}: the prompt has no such recording")
                slot, mel = of_clip[-1]
                length = slot.piece * self._chunk + mel.shape[1] / FRAMES_PER_SECOND
                if place.seconds[1] > length:
                    raise ConfigError(f"{what}: second {place.seconds[1]:g}: clip {place.clip} is {length:.2f} s long")
            rows = range(len(layout.mels)) if audio else [row]
            spans = (self._spans_of_audio(target, place, i) if audio else self._spans_of_row(place, i) for i in rows)
            if not any(within(np.arange(limit), conditions).any() for conditions in spans):
                raise ConfigError(f"{what}: no position of the run is at {place}")
            if target.edit.kind == EditKind.PATCH and place is target.edit.at:
                self._check_reach(place, target, n, what)

    def _check_reach(self, place: Place, target: Target, n: int, what: str) -> None:
        """A place that is named to the last position must be one that the donor has."""
        first, length = self.donor_range(target)
        spans = [from_end(s, n) for s in place.positions or ()]
        spans += [(a + n - 1, None if b is None else b + n - 1) for a, b in place.steps or ()]
        for a, b in spans:
            if a < first or a >= first + length or (b is not None and b > first + length):
                raise ConfigError(
                    f"{what}: position {a if b is None else b - 1}: the donor has {first} to {first + length - 1}"
                )

    @staticmethod
    def _check_sizes(array: np.ndarray, target: Target, config: StepAudioConfig, what: str) -> None:
        sizes = axis_sizes(config)
        axes = ("B", "n", "V") if target.name == "logits" else target.axes
        for axis, found in zip(axes, array.shape, strict=True):
            if axis in sizes and sizes[axis] != found:
                raise ConfigError(f"{what}: the donor is another model's: {found} where this one has {sizes[axis]}")


class RowTaps:
    """Edits of their own for each row of a batch: a tap of taps, each of which sees its row alone."""

    def __init__(self, taps: Sequence[EditTap]):
        self._taps = tuple(taps)
        self._names = {name for tap in taps for name in tap.names}
        self._wanted = beginnings((*self._names, *FIXED))

    def wants(self, name: str) -> bool:
        """Whether a row is edited there."""
        return name in self._wanted

    def __call__(self, name: str, x: mx.array) -> mx.array:
        """The activation with each row edited, or `x` itself where nothing is to be done."""
        if name in FIXED:
            for i, tap in enumerate(self._taps):
                tap(name, x if name == "decoder.positions" else x[i : i + 1])  # positions are those of the batch
        if name not in self._names:
            return x
        return mx.concatenate([tap(name, x[i : i + 1]) for i, tap in enumerate(self._taps)])
