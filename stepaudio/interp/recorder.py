"""Look inside a run: any activation by name, as plain arrays, within a stated number of bytes.

The nets hand out their intermediate results through taps; a `Recorder` keeps those that are asked for. Knows no
layout of the nets beyond the glossary, and draws nothing.

Axes: B clips or rows, T mel frames, S = ceil(T / 2), P = S // 2, R adapter rows, n new positions of one pass, L
positions attended to, C and D channels of encoder and decoder, M mel bands, A encoder heads, H decoder heads, G
key/value heads, K channels of a decoder head, V ids.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from ..constants import MAX_TOKENS, SAMPLE_RATE
from ..decoding.generate import Step
from ..errors import ConfigError, DecodeError
from ..models.kv_cache import CachePolicy, Rope
from ..models.speech_lm import StepAudioConfig
from ..text.prompts import ASR_SYSTEM, asr_turns

BYTE_LIMIT = 256 << 20
ROWS_PER_SECOND = 12.5  # prompt rows per second of audio

Reducer = Callable[[mx.array], mx.array]


class Meaning(NamedTuple):
    """Axes of an activation, one letter each (1 for an axis of one entry), and what it holds."""

    axes: tuple[str, ...]
    text: str


# {i} counts encoder blocks or decoder layers. What is named layer… comes once per pass of the decoder.
GLOSSARY: dict[str, Meaning] = {
    "mel": Meaning(("B", "M", "T"), "log mel of the clips, zero-padded to the longest"),
    "mask": Meaning(("B", "1", "1", "S"), "added to encoder scores: 0 for keys that count, -1e10 for the others"),
    "conv1": Meaning(("B", "T", "C"), "after the first convolution and GELU, 100 per second"),
    "conv2": Meaning(("B", "S", "C"), "after the strided convolution and GELU, 50 per second"),
    "embedded": Meaning(("B", "S", "C"), "conv2 with positions added: what block 0 reads"),
    "block{i}": Meaning(("B", "S", "C"), "residual stream after encoder block i"),
    "block{i}.attention": Meaning(("B", "A", "S", "S"), "weights, query by key; rows sum to 1"),
    "pooled": Meaning(("B", "P", "C"), "means of neighbours, 25 per second"),
    "encoded": Meaning(("B", "P", "C"), "pooled, after the final norm of the encoder"),
    "adapter_conv": Meaning(("B", "R", "C"), "after the adapter's strided convolution and GELU, 12.5 per second"),
    "adapter": Meaning(("B", "R", "D"), "prompt rows; may hold one more than is used"),
    "layer{i}": Meaning(("B", "n", "D"), "residual stream after decoder layer i"),
    "layer{i}.attention": Meaning(("B", "H", "n", "L"), "weights, query by cache slot; rows sum to 1"),
    "layer{i}.keys": Meaning(("B", "G", "L", "K"), "cache contents that this pass reads: rotated keys, by slot"),
    "layer{i}.values": Meaning(("B", "G", "L", "K"), "cache contents that this pass reads: values, by slot"),
    "positions": Meaning(("L",), "absolute position that each cache slot of this pass holds"),
    "norm": Meaning(("B", "n", "D"), "residual stream after the decoder's final norm"),
    "logits": Meaning(("B", "V"), "scores of the next id after the last position, before any rule"),
}


def activation_names(config: StepAudioConfig) -> dict[str, Meaning]:
    """Every name that a model of these sizes hands out, with its meaning."""
    count = {"block": config.audio_encoder_config.n_audio_layer, "layer": config.text_config.num_hidden_layers}
    names = {}
    for pattern, meaning in GLOSSARY.items():
        for i in range(count[pattern.partition("{i}")[0]] if "{i}" in pattern else 1):
            names[pattern.replace("{i}", str(i))] = meaning
    return names


def axis_sizes(config: StepAudioConfig) -> dict[str, int]:
    """Length of every axis that the config decides; B, T, S, P, R, n and L depend on the run."""
    text, audio = config.text_config, config.audio_encoder_config
    return {
        "1": 1,
        "M": audio.n_mels,
        "C": audio.n_audio_state,
        "A": audio.n_audio_head,
        "D": text.hidden_size,
        "H": text.num_attention_heads,
        "G": text.num_key_value_heads,
        "K": text.head_dim,
        "V": text.vocab_size,
    }


def last_query(array: mx.array) -> mx.array:
    """Reducer: only the newest position, the one that chooses the next id; (…, n, X) -> (…, 1, X)."""
    return array[..., -1:, :]


def head_mean(array: mx.array) -> mx.array:
    """Reducer: the mean over heads; (B, H, n, L) -> (B, 1, n, L)."""
    return array.mean(axis=1, keepdims=True)


class Recorder:
    """A tap that keeps what is asked for; give it as `tap` to nets, `generate` or `StepAudio2.stream`.

    Parameters
    ----------
    config : of the model that will be watched
    names : glob patterns over `activation_names`, e.g. ("layer*.attention", "logits")
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
        known = activation_names(config)
        for pattern in (*names, *(reduce or {})):
            if not any(fnmatchcase(name, pattern) for name in known):
                raise ConfigError(
                    f"no activation is called {pattern!r}; expected a pattern over "
                    f"{', '.join(GLOSSARY)}, with {{i}} a number from 0"
                )
        if byte_limit < 1:
            raise ConfigError(f"byte_limit: expected at least 1 byte, found {byte_limit}")
        self._wanted = frozenset(n for n in known if any(fnmatchcase(n, p) for p in names))
        self._reduce, self.byte_limit, self.nbytes = dict(reduce or {}), byte_limit, 0
        self._arrays: dict[str, list[np.ndarray]] = defaultdict(list)
        self._passes: dict[str, list[int]] = defaultdict(list)
        self._pass = -1  # of the decoder; -1 while listening
        self.first_choice = 0  # the pass that chose the first id
        self._chosen = False

    def next_pass(self) -> None:
        """A pass of the decoder begins."""
        self._pass += 1

    def __call__(self, name: str, array: mx.array) -> None:
        if name == "logits" and not self._chosen:
            self._chosen, self.first_choice = True, self._pass
        if name not in self._wanted:
            return
        for pattern, function in self._reduce.items():
            if fnmatchcase(name, pattern):
                array = function(array)
                break
        size = 4 * array.size
        if self.nbytes + size > self.byte_limit:
            raise DecodeError(
                f"recording {name} {tuple(array.shape)} needs {size:,} bytes, and {self.nbytes:,} of "
                f"{self.byte_limit:,} are taken: record fewer names, reduce them (for example with "
                "last_query), generate less or raise byte_limit"
            )
        self.nbytes += size
        kind = np.int32 if name == "positions" else np.float32
        self._arrays[name].append(np.array(array.astype(mx.int32 if kind is np.int32 else mx.float32)))
        self._passes[name].append(self._pass)

    @property
    def names(self) -> tuple[str, ...]:
        """What has been recorded so far."""
        return tuple(self._arrays)

    def __getitem__(self, name: str) -> list[np.ndarray]:
        """One array per call of the tap, in order."""
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


class _WatchedCache:
    """A cache that also tells a recorder what each pass reads. One row only."""

    def __init__(self, cache, recorder: Recorder, passes: list):
        self._cache, self._recorder, self._passes = cache, recorder, passes

    def plan(self, n: int) -> None:
        cache = self._cache
        self._before = cache.held
        self._recorder.next_pass()
        self._passes.append((cache.offset, n))
        self._new = np.arange(cache.offset, cache.offset + n)
        cache.plan(n)

    def update(self, layer: int, q: mx.array, k: mx.array, v: mx.array):
        q, k, v, mask = self._cache.update(layer, q, k, v)
        self._recorder(f"layer{layer}.keys", k)
        self._recorder(f"layer{layer}.values", v)
        return q, k, v, mask

    def advance(self) -> None:
        self._cache.advance()
        # A single new position overwrites a slot in place; several are read behind everything that was held.
        slots = self._cache.held if len(self._new) == 1 else np.concatenate([self._before, self._new])
        self._recorder("positions", mx.array(slots.astype(np.int32)))

    def room(self, n: int) -> int:
        return self._cache.room(n)

    offset = property(lambda self: self._cache.offset)
    held = property(lambda self: self._cache.held)
    nbytes = property(lambda self: self._cache.nbytes)
    arrays = property(lambda self: self._cache.arrays)


class _WatchedPolicy:
    """A `CachePolicy` whose caches are watched; remembers where the audio rows of the prompt are."""

    def __init__(self, policy: CachePolicy, recorder: Recorder):
        self._policy, self._recorder = policy, recorder
        self.spans: tuple[tuple[int, int], ...] = ()
        self.passes: list[tuple[int, int]] = []

    def limit(self, default: int) -> int | None:
        return self._policy.limit(default)

    def build(self, n_layers: int, rope: Rope, default_len: int, spans=()) -> _WatchedCache:
        self.spans = tuple(spans)
        return _WatchedCache(self._policy.build(n_layers, rope, default_len, spans), self._recorder, self.passes)


@dataclass(frozen=True)
class Trace:
    """A recorded run. `steps`: its ids with log-probabilities. `spans`: (start, length) of each piece of audio in
    the prompt; `n_prompt`: positions of the prompt; `chunk_seconds`: longest piece of audio.

    `trace[name]` is a list of arrays: one for what was heard, one per pass of the decoder for the rest. The pass
    that chose id i is `trace.writing(name)[i]`; earlier ones, if the prompt needed any, are only in `trace[name]`.
    """

    steps: tuple[Step, ...]
    spans: tuple[tuple[int, int], ...]
    n_prompt: int
    chunk_seconds: float
    recorder: Recorder

    @property
    def ids(self) -> tuple[int, ...]:
        return tuple(step.id for step in self.steps)

    def __getitem__(self, name: str) -> list[np.ndarray]:
        return self.recorder[name]

    def writing(self, name: str) -> list[np.ndarray]:
        """The passes that chose the ids, one array per id."""
        return self.recorder[name][-len(self.steps) :]

    def residual(self, layer: int) -> np.ndarray:
        """(ids, D): what stood in the residual stream after `layer` where each id was chosen."""
        return np.stack([a[0, -1] for a in self.writing(f"layer{layer}")])

    @property
    def row_seconds(self) -> np.ndarray:
        """(audio rows,) seconds at which each prompt row of 0.08 s begins, for prompts of one recording."""
        return np.concatenate(
            [i * self.chunk_seconds + np.arange(length) / ROWS_PER_SECOND for i, (_, length) in enumerate(self.spans)]
            or [np.zeros(0)]
        )

    @property
    def row_positions(self) -> np.ndarray:
        """(audio rows,) position of each prompt row among the ids of the prompt."""
        rows = [np.arange(start, start + length) for start, length in self.spans]
        return np.concatenate(rows or [np.zeros(0, int)])


def record(
    model,
    messages: Sequence,
    names: Sequence[str] = ("*",),
    *,
    reduce: Mapping[str, Reducer] | None = None,
    byte_limit: int = BYTE_LIMIT,
    sampling=None,
    cache: CachePolicy | None = None,
    max_tokens: int = MAX_TOKENS,
) -> Trace:
    """Generate one answer and record it.

    Parameters
    ----------
    model : StepAudio2
    messages : as in `StepAudio2.stream`; `transcription(source)` makes those of a transcription.
    names, reduce, byte_limit : as in `Recorder`.
    sampling, cache, max_tokens : as in `StepAudio2.stream`.

    Raises
    ------
    ConfigError, DecodeError : as `Recorder`. Others as `StepAudio2.stream`.
    """
    recorder = Recorder(model.config, names, reduce, byte_limit)
    policy = _WatchedPolicy(cache or CachePolicy(), recorder)
    steps = tuple(model.stream(messages, sampling=sampling, cache=policy, max_tokens=max_tokens, tap=recorder))
    before = recorder.first_choice  # passes that only read the prompt
    recorder.keep_passes(before + len(steps))  # the loop computes one id ahead; that pass belongs to nobody
    n_prompt = sum(n for _, n in policy.passes[: before + 1])
    return Trace(steps, policy.spans, n_prompt, model.pipeline.chunk_samples / SAMPLE_RATE, recorder)


def transcription(source, system: str = ASR_SYSTEM) -> list:
    """The reference's messages to have `source` (path, or samples (n,) at 16 kHz) transcribed."""
    messages = []
    for turn in asr_turns(system):
        heard = isinstance(turn.content, list)
        messages.append(replace(turn, content=[{"type": "audio", "audio": source}]) if heard else turn)
    return messages
