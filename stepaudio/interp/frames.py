"""Activations over a recording's audio as rows with a time, whatever net they come from and however it was cut."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..choices import shown
from ..constants import EMBEDDINGS_PER_SECOND, FRAMES_PER_SECOND
from ..errors import ConfigError
from ..model import StepAudio2
from ..models.speech_lm import StepAudioConfig
from ..text.messages import is_conversation
from ..text.prompts import ASR_SYSTEM
from .edit_targets import RATES
from .names import FIXED, GLOSSARY, matching, pattern_of
from .recorder import record
from .running import by_position

POSITION_RATES = RATES | {"n": EMBEDDINGS_PER_SECOND}  # of the decoder, where the prompt holds audio
ROUNDING = 1e-6  # of times such as 3 / 12.5
PADDING = 0.02  # seconds: two mel frames at the end of each segment of audio lie behind its sound


@dataclass(frozen=True, eq=False)
class Frames:
    """One activation over the audio of one recording.

    Attributes
    ----------
    values : (frames, channels) float32; the channels of all heads side by side.
    start : (frames,) second of the recording at which each begins.
    rate : frames per second: 100, 50, 25 or 12.5.
    seconds : length of the recording.
    """

    values: np.ndarray
    start: np.ndarray
    rate: float
    seconds: float

    def mean(self, start: float, end: float) -> np.ndarray:
        """(channels,) mean over the frames that share time with a stretch of seconds; behind the last one, that one."""
        touching = (self.start < end - ROUNDING) & (self.start + 1 / self.rate > start + ROUNDING)
        return self.values[touching].mean(axis=0) if touching.any() else self.values[-1]


def framed_names(names: str | Sequence[str], config: StepAudioConfig) -> list[str]:
    """The activations that these glob patterns mean, in the order in which they are computed.

    Raises
    ------
    ConfigError : a pattern that means none, or one that has no channels at every position.
    """
    patterns = (names,) if isinstance(names, str) else tuple(names) if isinstance(names, Sequence) else ()
    if not patterns or not all(isinstance(n, str) for n in patterns):
        raise ConfigError(f"names: expected a pattern over the names of activations, or several, found {shown(names)}")
    meant = frozenset().union(*matching(patterns, config).values())
    order = {pattern: i for i, pattern in enumerate(GLOSSARY)}
    for name in sorted(meant):
        axes = GLOSSARY[pattern_of(name)].axes
        if name in FIXED or axes[-2] not in POSITION_RATES or axes[-1] in "SLT":
            raise ConfigError(f"names: expected activations with channels at every position of the audio, found {name}")

    def place(name: str) -> tuple:
        net, _, rest = name.partition(".")
        number = rest.split(".")[0]
        first = {"encoder": 0, "adapter": 1}.get(net, 2)
        behind = name in ("encoder.pooled", "encoder.out", "decoder.out")
        return first, behind, int(number) if number.isdecimal() else -1, order[pattern_of(name)]

    return sorted(meant, key=place)


def audio_frames(
    model: StepAudio2,
    source: Any,
    names: str | Sequence[str],
    *,
    prompt: str = ASR_SYSTEM,
    sample_rate: float | None = None,
) -> dict[str, Frames]:
    """Run the model over a recording, and keep activations at every position of its audio.

    Parameters
    ----------
    model : StepAudio2
    source : one recording.
    names : glob patterns over activations with channels at every position: residual streams, what attention and MLP
        add, q, k, v and z, what encoder and adapter give.
    prompt, sample_rate : as in `record`.

    Returns
    -------
    dict of str to Frames
        In the order in which they are computed. The decoder has a position for every 0.08 s, as the adapter has.

    Raises
    ------
    ConfigError
        A name of no or another activation, or a conversation in the place of a recording.
    """
    wanted = framed_names(names, model.config)
    if is_conversation(source):
        raise ConfigError("expected a recording, found a conversation")
    trace = record(
        model, source, wanted, sampling="greedy", prompt=prompt, sample_rate=sample_rate, max_tokens=1, on_loop="off"
    )
    donor = by_position(trace.recorder, trace.n_prompt, trace.n_prompt, trace.frames)
    lengths = [frames / FRAMES_PER_SECOND - PADDING for frames in trace.frames]
    whole = trace.chunk_seconds * (len(lengths) - 1) + lengths[-1]
    found = {}
    for name in wanted:
        axes = GLOSSARY[pattern_of(name)].axes
        rate, pieces = POSITION_RATES[axes[-2]], []
        for piece, (first, length) in enumerate(trace.spans):
            own = donor[name][0][..., first : first + length, :] if axes[-2] == "n" else donor.own(name, piece, axes)
            own = np.moveaxis(own, -2, 0)[: math.ceil(lengths[piece] * rate - ROUNDING)]  # heads behind the frames
            pieces.append(own.reshape(len(own), -1))
        starts = [i * trace.chunk_seconds + np.arange(len(p)) / rate for i, p in enumerate(pieces)]
        found[name] = Frames(np.concatenate(pieces), np.concatenate(starts), rate, whole)
    return found
