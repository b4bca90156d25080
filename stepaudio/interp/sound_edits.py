"""Edits inside token2wav: the flow and the vocoder, addressed as "flow.<name>" and "vocoder.<name>".

Seconds are those of the sound that is made; the voice prompt, which the flow reads before it, lies below 0 and can be
reached by position alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import mlx.core as mx
import numpy as np

from ..decoding.outputs import PADDING
from ..errors import DecodeError
from ..models.tap import chain, named
from ..models.token2wav.flow import REFERENCE, FlowOptions
from ..models.token2wav.noise import Noise
from ..synthesis.streaming import StreamOptions, VocoderState, chunked, vocode
from ..synthesis.synthesizer import AS_REFERENCE, Sound, Synthesizer
from ..synthesis.voice import Voice
from .donor import Activations
from .edits import Edits
from .sound_axes import SoundAxes, Window, sound_names
from .sound_editor import Kept, SoundEditTap


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
    rows, _, editing, kept = _prepared(synthesizer, codes, voice, edits, keep, options)
    flow, vocoder, tap = synthesizer.parts.flow, synthesizer.parts.hift, chain(editing, kept)
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
    rows, axes, editing, kept = _prepared(synthesizer, codes, voice, edits, keep, options.flow)
    flow, vocoder, tap = synthesizer.parts.flow, synthesizer.parts.hift, chain(editing, kept)
    axes.window = Window.of_prompt(flow, len(voice.codes))
    state, sound = flow.begin(voice.prompt, noise, options.flow, named(tap, "flow.")), VocoderState()
    mels, waves = [], []
    for chunk, last in chunked(rows[0], options.chunk_codes, flow.look_ahead):
        axes.window = Window.of_chunk(flow, vocoder, state, sound, chunk.shape[1], last)
        editing.begin_pass()
        mel, state = flow.step(chunk, state, last, named(tap, "flow."))
        wave, sound, _ = vocode(vocoder, mel, sound, options, source_noise, last, named(tap, "vocoder."))
        mels.append(mel)
        waves.append(wave)
    return _sound(synthesizer, waves, mels), kept.found


def _prepared(
    synthesizer: Synthesizer,
    codes: Iterable[int],
    voice: Voice,
    edits: Edits,
    keep: str | Sequence[str],
    options: FlowOptions,
) -> tuple[np.ndarray, SoundAxes, SoundEditTap, Kept]:
    """The codes (1, N), their axes, what edits, and what keeps; all checked."""
    voice.check(synthesizer.weights)
    rows = np.asarray(list(codes))
    if rows.ndim != 1 or not rows.size or rows.dtype.kind not in "iu":
        raise DecodeError(f"expected codes (n,) of whole numbers without {PADDING}, at least one, found {rows.shape}")
    flow, vocoder = synthesizer.parts.flow, synthesizer.parts.hift
    n_steps = flow.n_steps(options)
    names, axes = sound_names(flow, vocoder, n_steps), SoundAxes(flow, vocoder, len(voice.codes), len(rows))
    return rows[None], axes, SoundEditTap(edits, names, axes), Kept(keep, names, axes)


def _sound(synthesizer: Synthesizer, waves: list[mx.array], mels: list[mx.array]) -> Sound:
    wave, mel = (np.concatenate([np.array(a[0].astype(mx.float32)) for a in found]) for found in (waves, mels))
    return Sound(wave, synthesizer.sample_rate, mel, len(mel) // synthesizer.parts.flow.up, 0)
