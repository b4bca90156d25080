"""Codes to sound with one voice: whole, or as a stream of chunks whose state goes in and comes out.

A chunk's mel runs through the vocoder together with the last frames of the chunk before, on the same source, and
the doubled stretch of sound is cross-faded; its end is held back until the next chunk.

Axes: B batch rows, N codes, T mel frames, M mel bands, n samples.
Reference: `token2wav.py` of StepFun's Step-Audio 2 (Token2wav.stream).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import mlx.core as mx
import numpy as np

from ..choices import MAX_COUNT, is_count, shown
from ..errors import ConfigError
from ..models.tap import Tap
from ..models.token2wav.flow import REFERENCE, Flow, FlowOptions, FlowState, Prompt
from ..models.token2wav.hift import Hift
from ..models.token2wav.noise import Noise

CHUNK_CODES = 25  # one second; the look-ahead comes on top
MOST_FRAMES = 1500  # 30 s seen twice


@dataclass(frozen=True)
class StreamOptions:
    """How a stream is cut into chunks, and how these are joined.

    Parameters
    ----------
    flow : FlowOptions
        How the mel is made.
    chunk_codes : int >= 1
        Codes per chunk, without the look-ahead.
    mel_frames : int, 1 … 1500
        Frames of a chunk that the vocoder sees again with the next one.
    cross_fade : {"hamming", "even"}
        Weights of the cross-fade. "hamming", as the reference: the two halves sum to about 1.08, so that chunk
        boundaries are up to 8 % louder. "even": the same halves divided by their sum.

    Raises
    ------
    ConfigError
        A number below 1, or another cross-fade.
    """

    flow: FlowOptions = REFERENCE
    chunk_codes: int = CHUNK_CODES
    mel_frames: int = 8
    cross_fade: str = "hamming"

    def __post_init__(self):
        for name, most in (("chunk_codes", MAX_COUNT), ("mel_frames", MOST_FRAMES)):
            value = getattr(self, name)
            if not is_count(value, 1) or value > most:
                raise ConfigError(f"{name} must be at least 1 and at most {most}, found {shown(value)}")
        if self.cross_fade not in ("hamming", "even"):
            raise ConfigError(f"cross_fade: expected 'hamming' or 'even', found {shown(self.cross_fade)}")


@dataclass(frozen=True)
class VocoderState:
    """The end of the call before: mel (B, k, M), source and sound (B, k * samples per frame); None at the start."""

    mel: mx.array | None = None
    source: mx.array | None = None
    wave: mx.array | None = None
    position: int = 0  # samples from the start of the stream to the start of `source`


@dataclass(frozen=True)
class StreamState:
    """One stream between two chunks: what flow and vocoder remember, how it is joined, and the source's noise."""

    flow: FlowState
    vocoder: VocoderState
    options: StreamOptions
    source_noise: Noise | None


@lru_cache(maxsize=8)
def fade_halves(n: int, fade: str = "hamming") -> tuple[np.ndarray, np.ndarray]:
    """Weights of the coming and the going sound over n samples: halves of a symmetric Hamming window of 2n."""
    window = np.hamming(2 * n)
    rising, falling = window[:n], window[n:]
    total = rising + falling if fade == "even" else 1.0
    return (rising / total).astype(np.float32), (falling / total).astype(np.float32)


def cross_fade(coming: mx.array, going: mx.array, fade: str = "hamming") -> mx.array:
    """`coming` (B, n) with its first samples mixed with `going` (B, m <= n), which stands for the same time."""
    m = going.shape[1]
    rising, falling = (mx.array(half) for half in fade_halves(m, fade))
    return mx.concatenate([coming[:, :m] * rising + going * falling, coming[:, m:]], axis=1)


def vocode(
    hift: Hift,
    mel: mx.array,
    state: VocoderState,
    options: StreamOptions,
    noise: Noise | None,
    last: bool = False,
    tap: Tap | None = None,
) -> tuple[mx.array, VocoderState, mx.array]:
    """Sound of the next frames of a stream.

    Parameters
    ----------
    hift : Hift
        The vocoder.
    mel : array (B, T, M)
        The new frames only.
    state : VocoderState
        What the call before returned; `VocoderState()` at the start.
    options : StreamOptions
        How chunks are joined.
    noise : int, array or None
        Of the source, as `Hift` takes it; numbered from the start of the stream.
    last : bool
        Whether nothing follows, so that nothing is held back.
    tap : Tap, optional
        As `Hift` takes it. It sees the frames that the call before held back once more, and of the source what that
        call has made of them.

    Returns
    -------
    sound : array (B, n)
        What is finished; unless `last`, the end is held back.
    state : VocoderState
        For the next call.
    raw : array
        The vocoder's own output before the cross-fade.
    """
    per_frame = hift.config.samples_per_frame
    if state.mel is not None:
        mel = mx.concatenate([state.mel, mel], axis=1)
    raw, source = hift(mel, noise, state.source, state.position, tap)
    wave = raw if state.wave is None else cross_fade(raw, state.wave, options.cross_fade)
    held = min(options.mel_frames, mel.shape[1])
    n = wave.shape[1] - held * per_frame
    after = VocoderState(mel[:, mel.shape[1] - held :], source[:, n:], wave[:, n:], state.position + n)
    mx.eval(wave, raw, after.mel, after.source, after.wave)
    return (wave if last else wave[:, :n]), after, raw


def speak(
    flow: Flow,
    hift: Hift,
    codes: np.ndarray,
    prompt: Prompt,
    noise: Noise,
    source_noise: Noise | None,
    options: FlowOptions = REFERENCE,
) -> tuple[mx.array, mx.array]:
    """All codes (B, N) at once: mel (B, up * N, M) and wave (B, samples) within +-0.99."""
    mel = flow(codes, prompt, noise, options)
    wave, _ = hift(mel, source_noise)
    return mel, wave


def begin(
    flow: Flow, prompt: Prompt, noise: Noise, source_noise: Noise | None, options: StreamOptions = StreamOptions()
) -> StreamState:
    """A fresh stream in one voice; see `Flow.begin`."""
    return StreamState(flow.begin(prompt, noise, options.flow), VocoderState(), options, source_noise)


def step(
    flow: Flow, hift: Hift, codes: np.ndarray, state: StreamState, last: bool = False
) -> tuple[mx.array, StreamState]:
    """Sound (B, n) of the next codes (look-ahead included, as `Flow.step`), and the new state."""
    mel, flow_state = flow.step(codes, state.flow, last)
    wave, vocoder, _ = vocode(hift, mel, state.vocoder, state.options, state.source_noise, last)
    return wave, StreamState(flow_state, vocoder, state.options, state.source_noise)


def chunked(codes: Iterable[int], chunk: int, look_ahead: int) -> Iterator[tuple[np.ndarray, bool]]:
    """Chunks of codes as they come, each with its look-ahead, and whether it is the last; none if no codes come.

    Examples
    --------
    >>> [(codes[0].tolist(), last) for codes, last in chunked(range(5), chunk=2, look_ahead=1)]
    [([0, 1, 2], False), ([2, 3, 4], False), ([4], True)]
    """
    waiting: list[int] = []
    for code in codes:
        waiting.append(int(code))
        if len(waiting) == chunk + look_ahead:
            yield np.array([waiting], np.int32), False
            waiting = waiting[chunk:]
    if waiting:
        yield np.array([waiting], np.int32), True


def stream(flow: Flow, hift: Hift, codes: Iterable[int], state: StreamState) -> Iterator[mx.array]:
    """Sound (n,) as codes arrive, from a state of `begin`. Ends with the codes; nothing comes of no codes."""
    for chunk, last in chunked(codes, state.options.chunk_codes, flow.look_ahead):
        wave, state = step(flow, hift, chunk, state, last)
        yield wave[0]


def to_pcm(wave: np.ndarray) -> np.ndarray:
    """Samples to int16 as the reference: limited to +-1, times 32767, rounded towards zero."""
    return (np.clip(np.asarray(wave, np.float32), -1, 1) * np.float32(32767)).astype(np.int16)
