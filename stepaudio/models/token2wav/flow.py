"""Audio codes and a voice in, mel out: whole, or chunk by chunk with the state passed in and handed back.

B batch, N codes, P codes of the voice prompt, M mel bands, E numbers of a speaker vector; `up` frames per code (two,
so 50 frames/s). Attribute names are those of the published checkpoint. Knows no files and no sound.

Reference: `flow.py` (CausalMaskedDiffWithXvec) of StepFun's token2wav.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ...backend.process import enter
from ...choices import MAX_COUNT, is_count, shown
from ...errors import ConfigError, DecodeError
from ...schema import read_record, require_only, require_positive
from ..tap import Tap, emit, named
from .conformer import ConformerConfig, ConformerState, UpsampleConformer
from .dit import BlockState, DitState
from .flow_matching import MOST_STEPS, CausalConditionalCFM, CfmConfig
from .noise import Noise, noise_frames


@dataclass(frozen=True)
class FlowConfig:
    """Sizes of the net from codes to mel, as `flow.yaml` nests them.

    Parameters
    ----------
    input_size, output_size, spk_embed_dim, vocab_size : int > 0
        Channels of a code's embedding, mel bands, numbers of a speaker embedding, codes.
    output_type : str
        Only "mel" is supported.
    encoder : ConformerConfig
    decoder : CfmConfig

    Raises
    ------
    ConfigError
        A size that is not positive, or parts that do not fit each other.
    """

    input_size: int
    output_size: int
    spk_embed_dim: int
    output_type: str
    vocab_size: int
    encoder: ConformerConfig
    decoder: CfmConfig

    def __post_init__(self):
        require_positive(self, "flow", ("input_size", "output_size", "spk_embed_dim", "vocab_size"))
        require_only(self, "flow", {"output_type": "mel", "input_size": self.encoder.input_size})
        require_only(
            self.decoder.estimator, "estimator", {"in_channels": 4 * self.output_size, "out_channels": self.output_size}
        )

    @classmethod
    def from_dict(cls, data: object, name: str = "flow") -> FlowConfig:
        """Read nested mappings (without tags); `name` opens every error message."""
        return read_record(cls, data, name)


class Prompt(NamedTuple):
    """The voice, as arrays: codes (B, P) integers, mel (B, up * P, M) natural log, speaker vector (B, E)."""

    codes: np.ndarray
    mel: mx.array
    speaker: mx.array


@dataclass(frozen=True)
class FlowOptions:
    """How a mel is made.

    n_steps : Euler steps, 1 … 1000; None takes as many as the net's config says, 10 in the published one.
    recent_frames : frames beyond the length of the prompt that a stream's estimator may look back on.
    noise : "cache", as the reference: a chunk's noise starts at the length of the estimator's cache, so once the
        cache is full every chunk starts from the SAME noise. "position": it starts at the chunk's own place, so no
        noise comes twice and chunks start from what the whole utterance would have started from.
    memory : "reference": a full cache keeps its newest prompt-length frames and its OLDEST `recent_frames`, which
        evicts the beginning of the prompt and keeps its end. "recent": the whole prompt and the newest
        `recent_frames`, what a reader of the code would expect.
    """

    n_steps: int | None = None
    recent_frames: int = 100
    noise: str = "cache"
    memory: str = "reference"

    def __post_init__(self):
        for name, most in (("n_steps", MOST_STEPS), ("recent_frames", MAX_COUNT)):
            value = getattr(self, name)
            if name == "n_steps" and value is None:
                continue
            if not is_count(value, 1) or value > most:
                raise ConfigError(f"{name} must be at least 1 and at most {most}, found {shown(value)}")
        if self.noise not in ("cache", "position"):
            raise ConfigError(f"noise: expected 'cache' or 'position', found {shown(self.noise)}")
        if self.memory not in ("reference", "recent"):
            raise ConfigError(f"memory: expected 'reference' or 'recent', found {shown(self.memory)}")


REFERENCE = FlowOptions()


@dataclass(frozen=True)
class FlowState:
    """One stream: what its nets remember, its voice, its noise, and how many frames there are so far."""

    conformer: ConformerState
    estimator: tuple[DitState, ...]  # one per Euler step
    speaker: mx.array  # (B, M) projected
    noise: Noise
    options: FlowOptions
    prompt_frames: int
    position: int  # frames behind us, the prompt's included
    frames: np.ndarray  # (L,) position of each frame that the estimator still looks back on, in the order of its keys

    @property
    def cache_frames(self) -> int:
        """Frames that the estimator still looks back on."""
        return len(self.frames)

    @property
    def nbytes(self) -> int:
        """Bytes of all that is remembered."""
        blocks = [a for step in self.estimator for block in step for a in block.arrays]
        return sum(a.nbytes for a in [*self.conformer.arrays, *blocks])


class Flow(nn.Module):
    """Conformer, speaker projection and solver; it keeps nothing between calls."""

    def __init__(self, config: FlowConfig):
        super().__init__()
        self.input_embedding = nn.Embedding(config.vocab_size, config.input_size)
        self.spk_embed_affine_layer = nn.Linear(config.spk_embed_dim, config.output_size)
        self.encoder = UpsampleConformer(config.encoder)
        self.encoder_proj = nn.Linear(config.encoder.output_size, config.output_size)
        self.decoder = CausalConditionalCFM(config.decoder)
        self._config = config

    @property
    def config(self) -> FlowConfig:
        """Its sizes."""
        return self._config

    @property
    def dtype(self) -> mx.Dtype:
        """Of the weights."""
        return self.encoder_proj.bias.dtype

    @property
    def look_ahead(self) -> int:
        """Codes at the end of a chunk that are only looked at."""
        return self._config.encoder.pre_lookahead_len

    @property
    def up(self) -> int:
        """Mel frames per code."""
        return self._config.encoder.up_stride

    def n_steps(self, options: FlowOptions) -> int:
        """Euler steps of a run with these options."""
        return self._config.decoder.n_steps if options.n_steps is None else options.n_steps

    def embed(self, codes: np.ndarray) -> mx.array:
        """Codes (B, n) -> (B, n, C). Raises `DecodeError` for a code outside the codebook or an empty row."""
        enter()
        codes = np.asarray(codes)
        if codes.ndim != 2 or codes.size == 0 or codes.dtype.kind not in "iu":
            raise DecodeError(
                f"audio codes: expected a non-empty (rows, codes) array of integers, found shape "
                f"{codes.shape} of {codes.dtype}"
            )
        bad = codes[(codes < 0) | (codes >= self._config.vocab_size)]
        if bad.size:
            raise DecodeError(
                f"audio code {bad[0]} is outside 0…{self._config.vocab_size - 1}: drop padding codes "
                "before they come here"
            )
        return self.input_embedding(mx.array(codes.astype(np.int32)))

    def project_speaker(self, speaker: mx.array) -> mx.array:
        """Speaker vectors (B, E) -> (B, M): to unit length, then linear."""
        x = speaker.astype(mx.float32)
        x = x / mx.maximum(mx.linalg.norm(x, axis=1, keepdims=True), 1e-12)
        return self.spk_embed_affine_layer(x.astype(self.dtype))

    def _checked(self, prompt: Prompt) -> Prompt:
        """The prompt in this net's dtype, once its sizes fit each other."""
        codes, mel, speaker = np.asarray(prompt.codes), mx.array(prompt.mel), mx.array(prompt.speaker)
        if codes.ndim != 2:
            raise DecodeError(f"voice prompt: expected codes of shape (rows, codes), found {codes.shape}")
        B, P = codes.shape
        expected = ((B, self.up * P, self._config.output_size), (B, self._config.spk_embed_dim))
        found = (tuple(mel.shape), tuple(speaker.shape))
        if found != expected:
            raise DecodeError(
                f"voice prompt of {P} codes: expected mel {expected[0]} and speaker {expected[1]}, "
                f"found {found[0]} and {found[1]}"
            )
        return Prompt(codes, mel.astype(self.dtype), speaker)

    def __call__(
        self,
        codes: np.ndarray,
        prompt: Prompt,
        noise: Noise,
        options: FlowOptions = REFERENCE,
        tap: Tap | None = None,
    ) -> mx.array:
        """Mel of all codes at once.

        Parameters
        ----------
        codes : (B, N) integers, 0 … vocab_size - 1. Rows have the same length.
        prompt : the voice. noise : a seed, or (1, at least up * (P + N), M), as `noise_frames`; either is multiplied
            by the temperature that the net's config says, 1 in the published one.
        options : only `n_steps` matters here.
        tap : called as tap(name, array) with every intermediate result.

        Returns
        -------
        (B, up * N, M) natural-log mel, without the prompt's frames.

        Raises
        ------
        DecodeError : codes outside the codebook, a prompt whose parts do not fit, noise that is too short.
        """
        prompt, codes = self._checked(prompt), np.asarray(codes)
        if codes.ndim != 2 or len(codes) != len(prompt.codes) or codes.size == 0:
            raise DecodeError(
                f"audio codes: expected {len(prompt.codes)} non-empty rows of integers, found shape {codes.shape}"
            )
        speaker = emit(tap, "speaker", self.project_speaker(prompt.speaker))
        h, _ = self.encoder(self.embed(np.concatenate([prompt.codes, codes], axis=1)), tap=named(tap, "encoder."))
        mu = emit(tap, "mu", self.encoder_proj(h))
        n_prompt, T = prompt.mel.shape[1], mu.shape[1]
        cond = mx.pad(prompt.mel, [(0, 0), (0, T - n_prompt), (0, 0)])
        x = emit(tap, "noise", self._beginning(noise, 0, mu))
        x, _ = self.decoder(x, mu, speaker, cond, self.n_steps(options), tap=named(tap, "euler."))
        return x[:, n_prompt:]

    def begin(
        self, prompt: Prompt, noise: Noise, options: FlowOptions = REFERENCE, tap: Tap | None = None
    ) -> FlowState:
        """Read the voice prompt into a fresh state.

        Its own FIRST codes stand in for what follows it, as the reference has it; so a prompt needs at least
        `look_ahead` codes (else `DecodeError`).
        """
        prompt = self._checked(prompt)
        if prompt.codes.shape[1] < self.look_ahead:
            raise DecodeError(
                f"voice prompt of {prompt.codes.shape[1]} codes: streaming needs "
                f"{self.look_ahead} or more; use a longer clip"
            )
        codes = np.concatenate([prompt.codes, prompt.codes[:, : self.look_ahead]], axis=1)
        speaker = emit(tap, "speaker", self.project_speaker(prompt.speaker))
        _, conformer, estimator = self._advance(
            codes, False, speaker, prompt.mel, noise, 0, self.n_steps(options), None, tap
        )
        mx.async_eval(conformer.arrays, speaker)  # another thread may go on from here
        n = prompt.mel.shape[1]
        return FlowState(conformer, estimator, speaker, noise, options, n, n, np.arange(n))

    def step(
        self, codes: np.ndarray, state: FlowState, last: bool = False, tap: Tap | None = None
    ) -> tuple[mx.array, FlowState]:
        """Mel of the next codes of a stream.

        Parameters
        ----------
        codes : (B, n). Unless `last`, the final `look_ahead` ones are only looked at and must open the next chunk.
        state : what `begin` or the step before returned; it is not changed and may be used again.

        Returns
        -------
        (B, up * m, M) with m = n if `last`, else n - look_ahead; and the new state.

        Raises
        ------
        DecodeError : codes outside the codebook; a chunk that is not last and too short; noise that is too short.
        """
        if not last and np.shape(codes)[-1] <= self.look_ahead:
            raise DecodeError(
                f"a chunk of {np.shape(codes)[-1]} codes holds nothing beyond the "
                f"{self.look_ahead} of look-ahead: wait for more codes, or say that it is the last"
            )
        start = state.cache_frames if state.options.noise == "cache" else state.position
        x, conformer, estimator = self._advance(
            codes, last, state.speaker, None, state.noise, start, self.n_steps(state.options), state, tap
        )
        n = x.shape[1]
        frames = np.append(state.position + np.arange(n), state.frames)
        kept = _kept(n, len(frames), state)
        estimator = tuple(tuple(_trim(block, kept) for block in step) for step in estimator)
        mx.eval(x, conformer.arrays, [a for step in estimator for block in step for a in block.arrays])
        frames = np.concatenate([frames[part] for part in kept])
        return x, replace(state, conformer=conformer, estimator=estimator, position=state.position + n, frames=frames)

    def _beginning(self, noise: Noise, start: int, mu: mx.array) -> mx.array:
        """The state at t = 0 for the encoder's mel (B, T, M): the same noise in every row."""
        x = self._config.decoder.temperature * noise_frames(noise, start, mu.shape[1], mu.shape[2])
        return mx.broadcast_to(x.astype(mu.dtype), mu.shape)

    def _advance(self, codes, last, speaker, cond, noise, start, n_steps, state: FlowState | None, tap: Tap | None):
        past, steps = (state.conformer, state.estimator) if state else (None, None)
        h, conformer = self.encoder(self.embed(codes), past, last, named(tap, "encoder."))
        mu = emit(tap, "mu", self.encoder_proj(h))
        x = emit(tap, "noise", self._beginning(noise, start, mu))
        cond = mx.zeros_like(mu) if cond is None else cond
        x, estimator = self.decoder(x, mu, speaker, cond, n_steps, steps, True, named(tap, "euler."))
        return x, conformer, estimator


def _kept(n: int, total: int, state: FlowState) -> list[slice]:
    """What stays of `total` frames, of which the newest n stand at the front; the options say so."""
    keep, prompt = state.options.recent_frames, state.prompt_frames
    if state.options.memory == "recent":  # prompt, then the newest frames in the order of time
        older = max(n + prompt, total - max(0, keep - n))
        return [slice(n, n + prompt), slice(older, total), slice(max(0, n - keep), n)]
    if total <= prompt + keep:
        return [slice(0, total)]
    return [slice(0, prompt), slice(total - keep, total)]


def _trim(block: BlockState, kept: list[slice]) -> BlockState:
    """Evict all frames but these."""
    k, v = (mx.concatenate([a[:, :, part] for part in kept], axis=2) for a in (block.k, block.v))
    return BlockState(k, v, block.conv1, block.conv2)
