"""Look inside a run: any activation by name, as plain arrays, within a stated number of bytes.

The nets hand out their intermediate results through taps; a `Recorder` keeps those that are asked for, and only those.
`names.GLOSSARY` says what there is. Draws nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Unpack

import mlx.core as mx
import numpy as np

from ..audio.sources import given_rate
from ..constants import EMBEDDINGS_PER_SECOND, SAMPLE_RATE
from ..decoding.generate import Step
from ..decoding.options import DecodingKeywords, DecodingOptions, merge_options, refuse_unknown
from ..errors import ConfigError, DecodeError
from ..model import StepAudio2
from ..models.speech_lm import StepAudioConfig
from ..models.tap import Tap, beginnings, chain
from ..text.chat_template import Message
from ..text.messages import is_conversation, with_audio
from ..text.prompts import ASR_SYSTEM, asr_turns
from .editing import EditTap
from .edits import Edits
from .names import FIXED, current_name, matching, warn_of_former

BYTE_LIMIT = 256 << 20

Reducer = Callable[[mx.array], mx.array]


def last_query(array: mx.array) -> mx.array:
    """Reducer: only the newest position, the one that chooses the next token; (…, n, X) -> (…, 1, X)."""
    return array[..., -1:, :]


def head_mean(array: mx.array) -> mx.array:
    """Reducer: the mean over heads; (B, H, n, L) -> (B, 1, n, L)."""
    return array.mean(axis=1, keepdims=True)


class Recorder:
    """A tap that keeps what is asked for and changes nothing; give it as `tap` to nets, `generate` or `stream`.

    Parameters
    ----------
    config : of the model that will be watched
    names : glob patterns over `names.activation_names`, e.g. ("decoder.*.pattern", "logits")
    reduce : pattern -> function of the array, applied before anything is kept; the first that matches counts
    byte_limit : > 0, most bytes kept, as float32

    Raises
    ------
    ConfigError
        A pattern matches no activation.
    DecodeError
        While recording, when the limit would be passed; nothing beyond it is computed.
    """

    def __init__(
        self,
        config: StepAudioConfig,
        names: Sequence[str] = ("*",),
        reduce: Mapping[str, Reducer] | None = None,
        byte_limit: int = BYTE_LIMIT,
    ):
        names = (names,) if isinstance(names, str) else tuple(names)
        reduce = dict(reduce or {})
        meant = matching((*names, *reduce), config)
        if byte_limit < 1:
            raise ConfigError(f"byte_limit: expected at least 1 byte, found {byte_limit}")
        self._wanted = frozenset().union(*(meant[pattern] for pattern in names))
        self._beginnings = beginnings((*self._wanted, "decoder.positions", "logits"))
        self._reducers: dict[str, Reducer] = {}
        for pattern, function in reduce.items():
            for name in meant[pattern]:
                self._reducers.setdefault(name, function)
        self.byte_limit, self.nbytes = byte_limit, 0
        self._arrays: dict[str, list[np.ndarray]] = defaultdict(list)
        self._passes: dict[str, list[int]] = defaultdict(list)
        self._pass = -1  # of the decoder, from 0; -1 while audio is encoded
        self.first_choice: int | None = None  # the pass that chose the first token

    def wants(self, name: str) -> bool:
        """Whether it is recorded, as `models.tap.wants` asks."""
        return name in self._beginnings

    def __call__(self, name: str, array: mx.array) -> None:
        """Keep `array` if it is wanted."""
        if name == "decoder.positions":
            self._pass += 1
        elif name == "logits" and self.first_choice is None:
            self.first_choice = self._pass
        if name in self._wanted:
            self._keep(name, self._reducers[name](array) if name in self._reducers else array)

    def _keep(self, name: str, array: mx.array) -> None:
        size = 4 * array.size
        if self.nbytes + size > self.byte_limit:
            raise DecodeError(
                f"recording {name} {tuple(array.shape)} needs {size:,} bytes, and {self.nbytes:,} of "
                f"{self.byte_limit:,} are taken: record fewer names, reduce them (for example with "
                "last_query), generate less or raise byte_limit"
            )
        self.nbytes += size
        whole = name in FIXED  # the only integers
        self._arrays[name].append(np.array(array if whole else array.astype(mx.float32)))
        self._passes[name].append(self._pass)

    @property
    def names(self) -> tuple[str, ...]:
        """What has been recorded so far."""
        return tuple(self._arrays)

    def __getitem__(self, name: str) -> list[np.ndarray]:
        """One array per call of the tap, in order."""
        if name not in self._arrays and current_name(name) in self._arrays:
            warn_of_former(name, current_name(name))
            name = current_name(name)
        if name not in self._arrays:
            raise ConfigError(f"{name} was not recorded; recorded are {', '.join(self._arrays) or 'none'}")
        return self._arrays[name]

    def keep_passes(self, stop: int) -> None:
        """Forget what decoder passes from `stop` on left."""
        for name, passes in self._passes.items():
            kept = [i for i, p in enumerate(passes) if p < stop]
            self._arrays[name] = [self._arrays[name][i] for i in kept]
            self._passes[name] = [passes[i] for i in kept]
        self.nbytes = sum(a.nbytes for arrays in self._arrays.values() for a in arrays)


@dataclass(frozen=True)
class Trace:
    """A recorded run.

    `trace[name]` is a list of arrays: one for what was encoded, one per pass of the decoder for the rest. The pass that
    chose token i is `trace.writing(name)[i]`; earlier ones, if the prompt needed any, are only in `trace[name]`.

    Attributes
    ----------
    steps : the tokens with log-probabilities.
    spans : (start, length) of each segment of audio in the prompt, in positions.
    n_prompt : positions of the prompt.
    chunk_seconds : longest segment of audio.
    recorder : what was recorded.
    frames : mel frames of each segment of audio.
    """

    steps: tuple[Step, ...]
    spans: tuple[tuple[int, int], ...]
    n_prompt: int
    chunk_seconds: float
    recorder: Recorder
    frames: tuple[int, ...] = ()

    @property
    def tokens(self) -> tuple[int, ...]:
        """Token ids of the answer, the end mark included."""
        return tuple(step.token for step in self.steps)

    def __getitem__(self, name: str) -> list[np.ndarray]:
        """One array per pass, in order."""
        return self.recorder[name]

    def writing(self, name: str) -> list[np.ndarray]:
        """The passes that chose the tokens, one array per token."""
        return self.recorder[name][-len(self.steps) :]

    def residual(self, layer: int) -> np.ndarray:
        """(tokens, D): what stood in the residual stream after `layer` where each token was chosen."""
        return np.stack([a[0, -1] for a in self.writing(f"decoder.{layer}.resid_post")])

    @property
    def audio_seconds(self) -> np.ndarray:
        """(audio embeddings,) seconds at which each 0.08 s begins, for prompts of one recording."""
        starts = [
            i * self.chunk_seconds + np.arange(length) / EMBEDDINGS_PER_SECOND
            for i, (_, length) in enumerate(self.spans)
        ]
        return np.concatenate(starts or [np.zeros(0)])

    @property
    def audio_positions(self) -> np.ndarray:
        """(audio embeddings,) position of each in the prompt."""
        positions = [np.arange(start, start + length) for start, length in self.spans]
        return np.concatenate(positions or [np.zeros(0, int)])


def record(
    model: StepAudio2,
    source,
    names: Sequence[str] = ("*",),
    *,
    reduce: Mapping[str, Reducer] | None = None,
    byte_limit: int = BYTE_LIMIT,
    tap: Tap | None = None,
    edits: Edits | None = None,
    prompt: str = ASR_SYSTEM,
    sr: float | None = None,
    sample_rate: float | None = None,
    options: DecodingOptions | None = None,
    **changes: Unpack[DecodingKeywords],
) -> Trace:
    """Generate one answer and record it.

    Parameters
    ----------
    model : StepAudio2
    source : a recording to be transcribed, or a list of messages, as in `StepAudio2.stream`.
    names, reduce, byte_limit : as in `Recorder`.
    edits : made on the way, as `edits` makes them; what is recorded is what they have left.
    tap : a function that changes what the edits have left: what it returns takes the place of an activation
        (`models.tap.emit`), and is what is recorded.
    prompt, sr, sample_rate, options, **changes : as in `StepAudio2.stream`.

    Returns
    -------
    Trace

    Raises
    ------
    ConfigError, DecodeError : as `Recorder` and `EditTap`. Others as `StepAudio2.stream`.

    Examples
    --------
    >>> trace = record(model, "a.wav", ["decoder.*.pattern", "logits"], sampling="greedy")   # doctest: +SKIP
    >>> trace["decoder.0.pattern"][0].shape                                                  # doctest: +SKIP
    (1, 4, 72, 72)
    """
    refuse_unknown(changes, ("names", "reduce", "byte_limit", "tap", "edits", "prompt", "sr", "sample_rate", "options"))
    recorder, engine = Recorder(model.config, names, reduce, byte_limit), model.engine
    asked = is_conversation(source)
    messages = source if asked else transcription(source, prompt)
    decoding = merge_options(options, "chat" if asked else "transcribe", **changes)
    layout = engine.lay_out(messages, sample_rate=given_rate(sample_rate, sr))
    editing = None
    if edits is not None:
        editing = EditTap(edits, model.config, [layout], decoding.max_tokens, model.pipeline.chunk_samples)
    watching = chain(editing, tap, recorder)
    request = engine.encode_layout(layout, watching)
    steps = tuple(engine.steps(request, decoding, watching))
    # The loop computes one token ahead; that pass belongs to none.
    recorder.keep_passes((recorder.first_choice or 0) + len(steps))
    seconds = model.pipeline.chunk_samples / SAMPLE_RATE
    frames = tuple(mel.shape[1] for mel in layout.mels)
    return Trace(steps, request.spans, len(request.tokens), seconds, recorder, frames)


def transcription(source, system: str = ASR_SYSTEM) -> list[Message]:
    """The reference's messages to have `source`, a recording, transcribed."""
    return with_audio(asr_turns(system), source)
