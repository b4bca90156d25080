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
from ..models.token2wav.flow import REFERENCE, Flow, FlowOptions
from ..models.token2wav.hift import Hift
from ..models.token2wav.noise import Noise
from ..synthesis.synthesizer import Sound, Synthesizer
from ..synthesis.voice import Voice
from .donor import Activations
from .edit_targets import Target, target_of
from .editor import Editor
from .edits import Edits
from .names import TOKEN2WAV_GLOSSARY
from .places import Place, Span, from_end, within

TIMES = "TNnLWFX"
NETS = ("flow", "vocoder")


def sound_names(flow: Flow, vocoder: Hift, n_steps: int) -> dict[str, tuple[tuple[str, ...], dict[str, int]]]:
    """Every activation of flow and vocoder: its axes, and the sizes of those that the nets decide."""
    conformer, dit = flow.config.encoder, flow.config.decoder.estimator
    of_conformer = {"C": conformer.output_size, "H": conformer.attention_heads}
    of_conformer["K"] = conformer.output_size // conformer.attention_heads
    of_dit = {"C": dit.hidden_size, "H": dit.num_heads, "K": dit.head_dim, "M": flow.config.output_size}
    found = {}
    for net in NETS:
        for pattern, meaning in TOKEN2WAV_GLOSSARY[net].items():
            name = f"{net}.{pattern}"
            sizes = {"M": flow.config.output_size} if net == "flow" else {}
            count = len(vocoder.ups)
            if pattern.startswith("encoder."):
                sizes, count = of_conformer, conformer.num_up_blocks if ".up." in pattern else conformer.num_blocks
            elif pattern.startswith("euler."):
                sizes, count = of_dit, n_steps
            for i in range(count if "{i}" in name else 1):
                for j in range(dit.depth if "{j}" in name else 1):
                    found[name.replace("{i}", str(i)).replace("{j}", str(j))] = (meaning.axes, sizes)
    return found


class SoundEditTap(Editor):
    """Makes edits in a run of flow and vocoder over all codes at once.

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
        self._prompt, self._codes, self._up = n_prompt, n_codes, flow.up
        names = sound_names(flow, vocoder, n_steps)
        for edit in edits:
            for name in _meant(edit.names, names):
                axes, sizes = names[name]
                target = target_of(edit, name, axes, sizes, TIMES)
                self._check(target)
                self.add(target)

    def positions(self, target: Target, which: int, x: mx.array) -> np.ndarray:
        """(B, n) places along the axis."""
        axis = target.axis(TIMES, which)
        n = 1 if axis is None else x.shape[axis]
        return np.broadcast_to(np.arange(n), (x.shape[0], n))

    def members(self, target: Target, place: Place, positions: np.ndarray) -> np.ndarray:
        """(B, n) booleans: entries that meet what `place` says."""
        n = positions.shape[1]
        return np.stack([within(row, self._spans(target, place, n)) for row in positions])

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
            before = self._prompt / CODES_PER_SECOND if target.name.startswith("flow.") else 0.0
            rate = n / (before + self._codes / CODES_PER_SECOND)  # the whole axis stands for the whole sound
            a, b = ((s + before) * rate for s in place.seconds)
            found.append([(int(np.floor(a + 1e-6)), int(np.ceil(b - 1e-6)))])
        return found

    def _length(self, target: Target, which: int = 0) -> int | None:
        """Entries along a time axis, where that follows from the codes."""
        axis = target.axis(TIMES, which)
        if axis is None or target.axes[axis] in "XWF":
            return None
        net, _, inner = target.name.partition(".")
        codes = self._codes + (self._prompt if net == "flow" else 0)
        at_code_rate = inner.startswith("encoder.") and not inner.startswith(("encoder.up.", "encoder.out"))
        return codes if at_code_rate else codes * self._up

    def _check(self, target: Target) -> None:
        """Raise unless the edit can apply."""
        edit, what = target.edit, f"edit {target.edit.kind} at {target.name}"
        if edit.keys is not None and target.axis(TIMES, 1) is None:
            raise ConfigError(f"{what}: keys: expected a pattern (*.pattern), which alone is by query and key")
        for which, place in enumerate((edit.at, edit.keys or Place())):
            if place.steps is not None or place.tokens is not None or place.clip:
                raise ConfigError(f"{what}: token2wav has no steps, tokens or clips; expected positions or seconds")
            if not place.everywhere and (target.axis(TIMES) is None or target.name.endswith("pos_embed")):
                raise ConfigError(f"{what}: it has no axis of time; leave positions and seconds out")
            seconds, n = self._codes / CODES_PER_SECOND, self._length(target, which)
            if place.seconds is not None and place.seconds[1] > seconds + 1e-6:
                raise ConfigError(f"{what}: second {place.seconds[1]:g}: the sound is {seconds:.2f} s long")
            if place.positions is not None:
                if n is None:
                    raise ConfigError(f"{what}: its length depends on the run; give seconds instead of positions")
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
    voice.check(synthesizer.weights)
    rows = np.asarray(list(codes))
    if rows.ndim != 1 or not rows.size or rows.dtype.kind not in "iu":
        raise DecodeError(f"expected codes (n,) of whole numbers without {PADDING}, at least one, found {rows.shape}")
    flow, vocoder = synthesizer.parts.flow, synthesizer.parts.hift
    names = sound_names(flow, vocoder, options.n_steps)
    patterns = (keep,) if isinstance(keep, str) else tuple(keep)
    kept = set(_meant(patterns, names))
    editing = SoundEditTap(edits, flow, vocoder, len(voice.codes), len(rows), options.n_steps)
    arrays: dict[str, np.ndarray] = {}

    def tap(net: str):
        def made(name: str, x: mx.array) -> mx.array:
            x = editing.edited(f"{net}.{name}", x)
            if f"{net}.{name}" in kept:
                arrays[f"{net}.{name}"] = np.array(x.astype(mx.float32))
            return x

        return made

    mel = flow(rows[None], voice.prompt, noise, options, tap("flow"))
    wave, _ = vocoder(mel, source_noise, tap=tap("vocoder"))
    host = [np.array(a[0].astype(mx.float32)) for a in (wave, mel)]
    return Sound(host[0], synthesizer.sample_rate, host[1], len(rows), 0), Activations(arrays, 0, len(rows))
