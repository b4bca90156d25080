"""`Synthesizer`: token2wav as one object. Codes and a voice go in, sound at 24 kHz comes out, whole or as a stream.

It holds weights and nothing else: a stream's state is a value that `begin` makes and each chunk replaces, so any
number of streams and voices can run through one object.
"""

from __future__ import annotations

import operator
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import SupportsIndex, cast

import mlx.core as mx
import numpy as np

from ..checkpoints.find import checkpoint_folder
from ..checkpoints.hub_name import TOKEN2WAV
from ..checkpoints.token2wav import Token2Wav, load_token2wav
from ..choices import Resampler
from ..constants import CODES_PER_SECOND, N_AUDIO_CODES
from ..errors import ConfigError, DecodeError
from ..models.token2wav.flow import REFERENCE, FlowOptions
from ..models.token2wav.noise import Noise
from ..text.tokenizer import N_AUDIO_TOKENS
from .streaming import StreamOptions, StreamState, begin, chunked, fade_halves, speak, step
from .voice import Voice, fingerprint, open_voice

VoiceSource = str | os.PathLike[str] | np.ndarray  # a clip, or a saved voice
AS_REFERENCE = StreamOptions()  # 25 codes a chunk, 8 frames seen twice, cross-faded by a Hamming window


@dataclass(frozen=True)
class Sound:
    """Sound of a run of codes.

    wave : (n,) float32; n = 0 if no code was left. mel : (frames, bands), natural log. n_codes went into sound,
    n_padding were dropped: `<audio_6561>` and above stand for no sound.
    """

    wave: np.ndarray
    sample_rate: int
    mel: np.ndarray
    n_codes: int
    n_padding: int

    @property
    def seconds(self) -> float:
        """Length of the sound."""
        return len(self.wave) / self.sample_rate


@dataclass(frozen=True)
class SoundChunk:
    """The next stretch of a stream. wave : (n,) float32. start : its first sample in the stream.

    n_codes and n_padding count what has been taken from the codes since the stream began. seconds : from when the
    first chunk was asked for until this one was there, waiting for codes included.
    """

    wave: np.ndarray
    start: int
    n_codes: int
    n_padding: int
    seconds: float = field(default=0.0, compare=False)


class _Codes:
    """Codes without padding, checked one by one, and how many there were of each."""

    def __init__(self, codes: Iterable[int], n_known: int):
        if isinstance(codes, (str, bytes)) or not isinstance(codes, Iterable):
            raise DecodeError(f"audio codes: expected whole numbers, found {codes!r:.60}")
        self._codes, self._n_known, self.n_codes, self.n_padding = codes, n_known, 0, 0

    def __iter__(self) -> Iterator[int]:
        for found in self._codes:
            code = _whole(found)
            if N_AUDIO_CODES <= code < N_AUDIO_TOKENS:
                self.n_padding += 1
                continue
            if not 0 <= code < self._n_known:
                raise DecodeError(
                    f"audio code {code} is outside 0…{self._n_known - 1} (and no padding, which is "
                    f"{N_AUDIO_CODES}…{N_AUDIO_TOKENS - 1}): are these codes, or ids of the language "
                    "model?"
                )
            self.n_codes += 1
            yield code


def _whole(code: object) -> int:
    try:
        if isinstance(code, bool):
            raise TypeError
        return operator.index(cast(SupportsIndex, code))
    except TypeError:
        raise DecodeError(f"audio codes: expected whole numbers, found {code!r:.60}") from None


class Synthesizer:
    """Speech from codes, made with `Synthesizer.load`, or of nets.

    Parameters
    ----------
    parts : Token2Wav
        The four nets.

    Raises
    ------
    ConfigError
        The nets do not fit each other.
    """

    def __init__(self, parts: Token2Wav):
        self.parts = parts
        flow, hift = parts.flow.config, parts.hift.config
        for what, one, other in (
            ("mel bands", flow.output_size, hift.in_channels),
            ("numbers of a speaker vector", parts.speaker.config.embedding_size, flow.spk_embed_dim),
        ):
            if one != other:
                raise ConfigError(f"token2wav: the nets do not belong together: {one} and {other} {what}")
        samples = CODES_PER_SECOND * parts.flow.up * hift.samples_per_frame
        if samples != hift.sampling_rate:
            raise ConfigError(
                f"token2wav: the nets do not belong together: flow and vocoder make {samples} samples of a second of "
                f"codes, and sampling_rate is {hift.sampling_rate}"
            )
        n_codes = parts.tokenizer.config.n_codebook_size
        if n_codes > flow.vocab_size:
            raise ConfigError(
                f"token2wav: the nets do not belong together: the speech tokenizer gives {n_codes} codes, "
                f"the flow knows {flow.vocab_size}"
            )

    @classmethod
    def load(cls, path: str | Path | None = None, dtype: mx.Dtype | str | None = None) -> Synthesizer:
        """Read the converted `token2wav` of a model.

        Parameters
        ----------
        path : str or Path, optional
            The model's folder, or its token2wav folder, or a model's name on a hub; by default `STEPAUDIO_CHECKPOINT`
            or the bundled model.
        dtype : mx.Dtype or its name, optional
            Of the flow's weights, as `load_token2wav`.

        Raises
        ------
        WeightsError, ConfigError
            No token2wav there, not converted, or not whole.
        """
        return cls(load_token2wav(checkpoint_folder(path, (TOKEN2WAV,)), dtype))

    @property
    def sample_rate(self) -> int:
        """Of all sound, in Hz."""
        return self.parts.hift.config.sampling_rate

    @cached_property
    def weights(self) -> str:
        """Fingerprint of what makes a voice; computed once."""
        return fingerprint(self.parts)

    def voice(self, source, resampler: str = Resampler.REFERENCE) -> Voice:
        """A voice from a clip (path or samples at 16 kHz), from a saved file, or as it is; always of these weights.

        "female" and "male" are bundled clips, where no file has such a name.

        `resampler` brings a clip to the rates of the nets; with another than the reference's its codes differ.
        """
        return open_voice(self.parts, source, self.weights, resampler)

    def decode(
        self,
        codes: Iterable[int],
        voice: Voice | VoiceSource,
        *,
        noise: Noise = 0,
        source_noise: Noise | None = 0,
        options: FlowOptions = REFERENCE,
    ) -> Sound:
        """Sound of all codes at once, every one seeing all others.

        Parameters
        ----------
        codes : iterable of int
            0 … 6560; padding, 6561 … 6655, is dropped and counted. May be none.
        voice : Voice, or what `voice` takes
            A clip is read anew at each call; a `Voice` must be of these weights.
        noise, source_noise : int or array
            Seeds, or arrays, of the flow and of the vocoder's source (None: none there).
        options : FlowOptions
            Only `n_steps` matters here.

        Returns
        -------
        Sound

        Raises
        ------
        DecodeError
            Any other code.
        WeightsError
            A voice made by other weights.
        """
        voice = self.voice(voice)
        checked = _Codes(codes, self.parts.flow.config.vocab_size)
        kept = list(checked)
        wave, mel = np.zeros(0, np.float32), np.zeros((0, self.parts.flow.config.output_size), np.float32)
        if kept:
            rows = np.array([kept], np.int32)
            both = speak(self.parts.flow, self.parts.hift, rows, voice.prompt, noise, source_noise, options)
            mel, wave = (np.array(a[0].astype(mx.float32)) for a in both)
        return Sound(wave, self.sample_rate, mel, checked.n_codes, checked.n_padding)

    def begin(
        self,
        voice: Voice | VoiceSource,
        *,
        noise: Noise = 0,
        source_noise: Noise | None = 0,
        options: StreamOptions = AS_REFERENCE,
    ) -> StreamState:
        """State of a stream in this voice before its first code; arguments as `stream`.

        It is not changed by streaming, so keep it, and the voice is read only once for many streams.
        """
        voice = self.voice(voice)
        return begin(self.parts.flow, voice.prompt, noise, source_noise, options)

    def stream(
        self,
        codes: Iterable[int],
        voice: Voice | VoiceSource | StreamState,
        *,
        noise: Noise = 0,
        source_noise: Noise | None = 0,
        options: StreamOptions = AS_REFERENCE,
    ) -> Iterator[SoundChunk]:
        """Sound as codes come: a chunk whenever `chunk_codes` and the look-ahead are there, the rest at the end.

        Parameters
        ----------
        codes : iterable of int
            As `decode`; taken one at a time, and only as far as the next chunk needs.
        voice : Voice, what `voice` takes, or StreamState
            As `decode`, or a state of `begin`, which then holds the noise and the options.
        noise, source_noise : int or array
            As `decode`.
        options : StreamOptions
            `FlowOptions(noise="position")` in it gives no noise twice, unlike the reference.

        Yields
        ------
        SoundChunk

        Raises
        ------
        DecodeError, WeightsError
            As `decode`, when the code is reached.
        """
        if not isinstance(voice, StreamState):
            voice = self.begin(voice, noise=noise, source_noise=source_noise, options=options)
        return self._stream(_Codes(codes, self.parts.flow.config.vocab_size), voice)

    def _stream(self, codes: _Codes, state: StreamState) -> Iterator[SoundChunk]:
        began, start, flow, hift = time.perf_counter(), 0, self.parts.flow, self.parts.hift
        for chunk, last in chunked(codes, state.options.chunk_codes, flow.look_ahead):
            found, state = step(flow, hift, chunk, state, last)
            wave = np.array(found[0].astype(mx.float32))
            yield SoundChunk(wave, start, codes.n_codes, codes.n_padding, time.perf_counter() - began)
            start += len(wave)

    def loudest(self, options: StreamOptions = AS_REFERENCE) -> float:
        """The most a sample of a stream can reach: the vocoder's limit, times what a cross-fade adds up to."""
        rising, falling = fade_halves(options.mel_frames * self.parts.hift.config.samples_per_frame, options.cross_fade)
        return self.parts.hift.config.audio_limit * float((rising + falling).max())
