"""Edits inside token2wav: the flow and the vocoder, addressed as "flow.<name>" and "vocoder.<name>".

Seconds are those of the sound that is made; the voice prompt, which the flow reads before it, lies below 0 and can be
reached by position alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

import mlx.core as mx
import numpy as np

from ..constants import CODES_PER_SECOND
from ..decoding.outputs import PADDING
from ..errors import ConfigError, DecodeError
from ..models.tap import chain, named
from ..models.token2wav.flow import REFERENCE, Flow, FlowOptions
from ..models.token2wav.hift import Hift
from ..models.token2wav.noise import Noise
from ..synthesis.streaming import StreamOptions, VocoderState, chunked, vocode
from ..synthesis.synthesizer import AS_REFERENCE, Sound, Synthesizer
from ..synthesis.voice import Voice
from .donor import Activations
from .edit_targets import Target, target_of
from .editor import Editor
from .edits import Edits
from .places import Place, Span, from_end, within
from .sound_axes import TIMES, SoundAxes, Window, sound_names


class SoundEditTap(Editor):
    """Makes edits in a run of flow and vocoder, whole or chunk by chunk: their names begin with the net's.

    Parameters
    ----------
    edits : in the order in which they are made
    flow, vocoder : the nets
    n_prompt, n_codes : codes of the voice prompt, and of what is made
    n_steps : of Euler's method

    Raises
    ------
    ConfigError
        An edit that cannot apply.
    """

    def __init__(self, edits: Edits, flow: Flow, vocoder: Hift, n_prompt: int, n_codes: int, n_steps: int):
        super().__init__(edits)
        self.axes = SoundAxes(flow, vocoder, n_prompt, n_codes)
        self._window = Window.of_whole(flow, n_prompt + n_codes)
        names = sound_names(flow, vocoder, n_steps)
        for edit in edits:
            for name in _meant(edit.names, names):
                axes, sizes = names[name]
                target = target_of(edit, name, axes, sizes, TIMES)
                self._check(target)
                self.add(target)

    def stand(self, window: Window) -> None:
        """Go on to the next call of the nets."""
        self._window = window
        self.begin_pass()

    def __call__(self, name: str, x: mx.array) -> mx.array:
        """The edited activation, or `x` itself where nothing is to be done."""
        made = self._window.made if name == "vocoder.source" else 0
        if not made or name not in self.names:
            return self.edited(name, x)
        return mx.concatenate([x[:, :made], self.edited(name, x)[:, made:]], axis=1)  # the call before has edited it

    def sharing(self, target: Target) -> str:
        """Each activation has its own rate."""
        return target.name

    def positions(self, target: Target, which: int, x: mx.array) -> np.ndarray:
        """(B, n) positions along the axis, in the whole of the sound."""
        axis = target.axis(TIMES, which)
        if axis is None:
            return np.zeros((x.shape[0], 1), int)
        found = self.axes.positions(target.name, target.axes[axis], x.shape[axis], self._window)
        return np.broadcast_to(found, (x.shape[0], len(found)))

    def members(self, target: Target, place: Place, positions: np.ndarray) -> np.ndarray:
        """(B, n) booleans: entries that meet what `place` says."""
        n = self._length(target)
        return np.stack([within(row, self._spans(target, place, n or len(row))) for row in positions])

    def holds(self, tokens: Sequence[Span], positions: np.ndarray) -> mx.array:
        """Never asked for: an edit by tokens is refused."""
        raise ConfigError("token2wav has no tokens; expected positions or seconds")

    def donated(self, donor: Activations, target: Target, row: int) -> np.ndarray:
        """A donor's array for one row."""
        return donor[target.name][row]

    def pooled(self, donor: Activations, target: Target, row: int) -> list[np.ndarray]:
        """The same: rows with and without conditions are never mixed."""
        return [donor[target.name][row]]

    def _spans(self, target: Target, place: Place, n: int) -> list[list[Span]]:
        found: list[list[Span]] = []
        if place.positions is not None:
            found.append([from_end(span, n) for span in place.positions])
        if place.seconds is not None:
            before = self.axes.n_prompt / CODES_PER_SECOND if target.name.startswith("flow.") else 0.0
            rate = n / (before + self.axes.n_codes / CODES_PER_SECOND)  # the whole axis stands for the whole sound
            a, b = ((s + before) * rate for s in place.seconds)
            found.append([(int(np.floor(a + 1e-6)), int(np.ceil(b - 1e-6)))])
        return found

    def _length(self, target: Target) -> int | None:
        """Entries along the axis of time, in the whole of the sound; a pattern has two of one length."""
        axis = target.axis(TIMES)
        return None if axis is None else self.axes.length(target.name, target.axes[axis])

    def _check(self, target: Target) -> None:
        """Raise unless the edit can apply."""
        edit, what = target.edit, f"edit {target.edit.kind} at {target.name}"
        if edit.keys is not None and target.axis(TIMES, 1) is None:
            raise ConfigError(f"{what}: keys: expected a pattern (*.pattern), which alone is by query and key")
        for place in (edit.at, edit.keys or Place()):
            if place.steps is not None or place.tokens is not None or place.clip:
                raise ConfigError(f"{what}: token2wav has no steps, tokens or clips; expected positions or seconds")
            seconds, n = self.axes.n_codes / CODES_PER_SECOND, self._length(target)
            if not place.everywhere and n is None:
                raise ConfigError(f"{what}: it has no axis of time; leave positions and seconds out")
            if place.seconds is not None and place.seconds[1] > seconds + 1e-6:
                raise ConfigError(f"{what}: second {place.seconds[1]:g}: the sound is {seconds:.2f} s long")
            if place.positions is not None and n is not None:
                for a, b in (from_end(span, n) for span in place.positions):
                    if a < 0 or a >= n or (b is not None and b > n):
                        raise ConfigError(f"{what}: position {a if a < 0 or a >= n else (b or 0) - 1}: the run has {n}")
            if not within(np.arange(n or 1), self._spans(target, place, n or 1)).any():
                raise ConfigError(f"{what}: no position of the run is at {place}")
        for donor in edit.donors:
            _ = donor[target.name]
        if edit.donors and target.axis(TIMES) is None:
            raise ConfigError(f"{what}: it has no axis of time, by which donors are read; expected replace")


def _meant(patterns: Sequence[str], names: dict) -> list[str]:
    found: dict[str, None] = {}
    for pattern in patterns:
        matches = [n for n in names if fnmatchcase(n, pattern)]
        if not matches:
            raise ConfigError(
                f"no activation of token2wav is called {pattern!r}; expected a pattern over flow.<name> and "
                "vocoder.<name>, with the names of stepaudio.interp.names.TOKEN2WAV_GLOSSARY"
            )
        found |= dict.fromkeys(matches)
    return list(found)


def sound_with_edits(
    synthesizer: Synthesizer,
    codes: Iterable[int],
    voice: Voice,
    edits: Edits,
    *,
    keep: str | Sequence[str] = (),
    noise: Noise = 0,
    source_noise: Noise | None = 0,
    options: FlowOptions = REFERENCE,
) -> tuple[Sound, Activations]:
    """Sound of all codes at once, as `Synthesizer.decode` makes it, with edits on the way.

    Parameters
    ----------
    codes, voice, noise, source_noise, options : as in `Synthesizer.decode`, but at least one code and no padding.
    edits : names begin with "flow." or "vocoder."; positions are entries of the activation's own axis of time, seconds
        those of the sound.
    keep : patterns of activations to keep, as a donor for `patch`, `mean` and `resample`.

    Returns
    -------
    The sound, and what was kept of the run.

    Raises
    ------
    ConfigError : an edit that cannot apply; nothing has run then. Others as `Synthesizer.decode`.
    """
    rows, editing, kept = _prepared(synthesizer, codes, voice, edits, keep, options.n_steps)
    flow, vocoder = synthesizer.parts.flow, synthesizer.parts.hift
    tap = chain(editing, kept)
    mel = flow(rows, voice.prompt, noise, options, named(tap, "flow."))
    wave, _ = vocoder(mel, source_noise, tap=named(tap, "vocoder."))
    return _sound(synthesizer, [wave], [mel]), kept.found


def streamed_with_edits(
    synthesizer: Synthesizer,
    codes: Iterable[int],
    voice: Voice,
    edits: Edits,
    *,
    keep: str | Sequence[str] = (),
    noise: Noise = 0,
    source_noise: Noise | None = 0,
    options: StreamOptions = AS_REFERENCE,
) -> tuple[Sound, Activations]:
    """Sound chunk by chunk, as `Synthesizer.stream` makes it, with edits on the way.

    An edit holds at the same positions and seconds as in `sound_with_edits`, in whichever chunk they come: also of the
    voice prompt, which is read first, of codes that are looked at before they are read, and of frames that the vocoder
    reads twice. What stands in for the codes behind the prompt has no position: an edit by position leaves it.

    Parameters
    ----------
    codes, voice, edits, keep, noise, source_noise : as in `sound_with_edits`; all codes are taken before the first
        chunk.
    options : as in `Synthesizer.stream`.

    Returns
    -------
    The sound, and what was kept of all chunks, by position as `sound_with_edits` keeps it: what a run came to twice
    as it was the second time, and 0 between a query and a key that it did not look at.

    Raises
    ------
    ConfigError : an edit that cannot apply; nothing has run then. Others as `Synthesizer.stream`.
    """
    rows, editing, kept = _prepared(synthesizer, codes, voice, edits, keep, options.flow.n_steps)
    flow, vocoder = synthesizer.parts.flow, synthesizer.parts.hift
    tap = chain(editing, kept)

    def stand(window: Window) -> None:
        editing.stand(window)
        kept.window = window

    stand(Window.of_prompt(flow, len(voice.codes)))
    state, sound = flow.begin(voice.prompt, noise, options.flow, named(tap, "flow.")), VocoderState()
    mels, waves = [], []
    for chunk, last in chunked(rows[0], options.chunk_codes, flow.look_ahead):
        stand(Window.of_chunk(flow, vocoder, state, sound, chunk.shape[1], last))
        mel, state = flow.step(chunk, state, last, named(tap, "flow."))
        wave, sound, _ = vocode(vocoder, mel, sound, options, source_noise, last, named(tap, "vocoder."))
        mels.append(mel)
        waves.append(wave)
    return _sound(synthesizer, waves, mels), kept.found


def _prepared(
    synthesizer: Synthesizer, codes: Iterable[int], voice: Voice, edits: Edits, keep: str | Sequence[str], n_steps: int
) -> tuple[np.ndarray, SoundEditTap, _Kept]:
    """The codes (1, N), what edits, and what keeps; all checked."""
    voice.check(synthesizer.weights)
    rows = np.asarray(list(codes))
    if rows.ndim != 1 or not rows.size or rows.dtype.kind not in "iu":
        raise DecodeError(f"expected codes (n,) of whole numbers without {PADDING}, at least one, found {rows.shape}")
    flow, vocoder = synthesizer.parts.flow, synthesizer.parts.hift
    names = sound_names(flow, vocoder, n_steps)
    patterns = (keep,) if isinstance(keep, str) else tuple(keep)
    wanted = {name: names[name][0] for name in _meant(patterns, names)}
    editing = SoundEditTap(edits, flow, vocoder, len(voice.codes), len(rows), n_steps)
    return rows[None], editing, _Kept(wanted, editing.axes, Window.of_whole(flow, len(voice.codes) + len(rows)))


def _sound(synthesizer: Synthesizer, waves: list[mx.array], mels: list[mx.array]) -> Sound:
    wave, mel = (np.concatenate([np.array(a[0].astype(mx.float32)) for a in found]) for found in (waves, mels))
    return Sound(wave, synthesizer.sample_rate, mel, len(mel) // synthesizer.parts.flow.up, 0)


class _Kept:
    """A tap that keeps activations by position, whatever calls they come in."""

    def __init__(self, wanted: dict[str, tuple[str, ...]], axes: SoundAxes, window: Window):
        self.window, self._wanted, self._axes = window, wanted, axes
        self._arrays: dict[str, np.ndarray] = {}

    def __call__(self, name: str, x: mx.array) -> None:
        if name not in self._wanted:
            return
        array, shape, where = np.array(x.astype(mx.float32)), list(x.shape), []
        for axis, letter in enumerate(self._wanted[name]):
            n = self._axes.length(name, letter) if letter in TIMES else None
            if n is not None:
                where.append((axis, self._axes.positions(name, letter, x.shape[axis], self.window)))
                shape[axis] = n
        if not where:
            self._arrays[name] = array
            return
        for axis, positions in where:
            array = np.compress(positions >= 0, array, axis)
        whole = self._arrays.setdefault(name, np.zeros(shape, np.float32))
        index: list[np.ndarray] = [np.arange(size) for size in shape]
        for axis, positions in where:
            index[axis] = positions[positions >= 0]
        whole[np.ix_(*index)] = array

    @property
    def found(self) -> Activations:
        """All that came."""
        return Activations(self._arrays, 0, self._axes.n_codes)
