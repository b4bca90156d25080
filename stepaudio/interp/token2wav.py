"""Token2wav seen from inside: text and codes against time, stages from codes to wave, and a voice's round trip.

N codes at 25/s, T mel frames, M bands, n samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from ..decoding.outputs import CODES, MARKER, PADDING, TEXT, Generation
from ..errors import ConfigError, DecodeError
from ..models.token2wav.flow import REFERENCE, FlowOptions
from ..models.token2wav.noise import Noise, noise_frames
from ..synthesis.synthesizer import Synthesizer
from ..synthesis.voice import Voice

CODES_PER_SECOND = 25
DB_PER_NEPER = 20 / np.log(10)  # the flow's mel is the natural log of an amplitude
KINDS = (TEXT, CODES, PADDING, MARKER)


@dataclass(frozen=True)
class Interleaving:
    """How an answer mixes text and sound.

    Attributes
    ----------
    kinds : (tokens,) what each token is, by its place in `KINDS`.
    seconds : (tokens,) sound whose codes had been written before each token.
    n_text, n_codes, n_padding : tokens of each kind.
    stop : why it ended.
    """

    kinds: np.ndarray
    seconds: np.ndarray
    n_text: int
    n_codes: int
    n_padding: int
    stop: str

    @property
    def codes_per_text(self) -> float:
        """Audio codes for each text token; NaN without text."""
        return self.n_codes / self.n_text if self.n_text else float("nan")

    @property
    def unvoiced_text(self) -> int:
        """Text tokens after the last code: written, but no sound followed them."""
        after = np.flatnonzero(self.kinds == KINDS.index(CODES))
        return int((self.kinds[after[-1] + 1 :] == KINDS.index(TEXT)).sum()) if len(after) else self.n_text

    @property
    def end_is_missing(self) -> bool:
        """True where the answer ended without an end mark: by length, by a loop, by a stop string."""
        return self.stop != "eos"


def interleaving(answer: Generation) -> Interleaving:
    """Kinds and times of an answer's tokens. Raises `ConfigError` for one without tokens."""
    if not answer.tokens:
        raise ConfigError("interleaving: the answer has no tokens")
    kinds = np.concatenate([np.full(len(p.tokens), KINDS.index(p.kind)) for p in answer.pieces])
    is_code = kinds == KINDS.index(CODES)
    before = np.cumsum(is_code) - is_code
    n_text, n_codes, n_padding = (int((kinds == i).sum()) for i in range(3))
    return Interleaving(kinds, before / CODES_PER_SECOND, n_text, n_codes, n_padding, answer.stop)


@dataclass(frozen=True)
class Stages:
    """One utterance at every stage, in the order in which it is made; without the voice prompt.

    Attributes
    ----------
    codes : (N,).
    mu : (T, M) what the conformer makes of them, 50 frames/s.
    steps : (Euler steps + 1, T, M) from noise to mel.
    f0 : (T,) Hz.
    source, wave : (n,) at `sample_rate`; wave within +-0.99.
    sample_rate : Hz.
    """

    codes: np.ndarray
    mu: np.ndarray
    steps: np.ndarray
    f0: np.ndarray
    source: np.ndarray
    wave: np.ndarray
    sample_rate: int

    @property
    def mel(self) -> np.ndarray:
        """(T, M), natural log: the last of the steps."""
        return self.steps[-1]

    @property
    def frames_per_second(self) -> float:
        """Mel frames in a second of sound."""
        return self.sample_rate * len(self.mel) / len(self.wave)

    def table(self) -> str:
        """Name, shape, range and rate of each stage."""
        per_second = {
            "codes": len(self.codes) * self.sample_rate / len(self.wave),
            "mu": self.frames_per_second,
            "noise": self.frames_per_second,
            "mel": self.frames_per_second,
            "f0": self.frames_per_second,
            "source": self.sample_rate,
            "wave": self.sample_rate,
        }
        arrays = {
            "codes": self.codes,
            "mu": self.mu,
            "noise": self.steps[0],
            "mel": self.mel,
            "f0": self.f0,
            "source": self.source,
            "wave": self.wave,
        }
        rows = [f"{'stage':7} {'shape':>12} {'per second':>11} {'least':>9} {'most':>9}"]
        rows += [
            f"{name:7} {'×'.join(map(str, a.shape)):>12} {per_second[name]:11.0f} {a.min():9.2f} {a.max():9.2f}"
            for name, a in arrays.items()
        ]
        return "\n".join(rows)


def stages(
    synthesizer: Synthesizer,
    codes,
    voice: Voice,
    *,
    noise: Noise = 0,
    source_noise: Noise | None = 0,
    options: FlowOptions = REFERENCE,
) -> Stages:
    """All stages of `Synthesizer.decode`, with the same result at the end.

    Parameters
    ----------
    codes, voice, noise, source_noise, options : as there, but no padding.

    Raises
    ------
    DecodeError : no codes. Others as `decode`.
    """
    voice.check(synthesizer.weights)
    codes = np.asarray(codes)
    if codes.ndim != 1 or codes.size == 0 or codes.dtype.kind not in "iu":
        raise DecodeError(
            f"stages: expected codes (n,) of whole numbers, at least one, found {codes.shape} of {codes.dtype}"
        )
    flow, hift = synthesizer.parts.flow, synthesizer.parts.hift
    seen: dict[str, mx.array] = {}
    skip, of_flow = len(voice.mel), ["noise", *(f"euler.{i}.x" for i in range(flow.n_steps(options)))]

    def tap(name: str, array: mx.array) -> None:
        if name in ("mu", "f0", "source", *of_flow):
            seen[name] = array

    made = flow(codes[None], voice.prompt, noise, options, tap)
    wave, _ = hift(made, source_noise, tap=tap)
    steps = [_host(seen[name])[skip:] for name in of_flow]
    return Stages(
        codes,
        _host(seen["mu"])[skip:],
        np.stack(steps),
        _host(seen["f0"]),
        _host(seen["source"]),
        _host(wave),
        synthesizer.sample_rate,
    )


def flow_noise(synthesizer: Synthesizer, noise: Noise, start: int, n: int) -> np.ndarray:
    """Frames start … start+n-1 of the flow's noise, (n, M), of standard deviation 1."""
    return _host(noise_frames(noise, start, n, synthesizer.parts.flow.config.output_size))


def _host(array: mx.array) -> np.ndarray:
    """The only row, float32."""
    return np.array(array[0].astype(mx.float32))


@dataclass(frozen=True)
class RoundTrip:
    """A clip -> codes -> sound -> codes, and what came back.

    Attributes
    ----------
    before, after : the voices read from the clip and from the sound made of its codes.
    agreement : share of codes that came back, place by place.
    by_chance : the same share over all shifts of the codes against each other but none, in the mean.
    speaker_cosine : -1…1.
    mel_distance_db : mean absolute difference of the flow's mel, dB.
    """

    before: Voice
    after: Voice
    agreement: float
    by_chance: float
    speaker_cosine: float
    mel_distance_db: float

    def table(self) -> str:
        """The four measures as text."""
        rows = [
            ("codes that came back", f"{self.agreement:.1%}"),
            ("the same by chance", f"{self.by_chance:.1%}"),
            ("cosine of the speaker vectors", f"{self.speaker_cosine:.2f}"),
            ("mean difference of the mels", f"{self.mel_distance_db:.1f} dB"),
        ]
        return "\n".join(f"{what:30} {value:>9}" for what, value in rows)


def round_trip(synthesizer: Synthesizer, source, *, noise: Noise = 0, options: FlowOptions = REFERENCE) -> RoundTrip:
    """Synthesise a clip's codes in its own voice, read the result as a voice, and compare.

    Parameters
    ----------
    source : a clip, as `Synthesizer.voice` takes it. noise, options : as `Synthesizer.decode`.

    Raises
    ------
    AudioError : the clip, or the sound made of it, is refused as a voice (silence, for one).
    """
    before = synthesizer.voice(source)
    sound = synthesizer.decode(before.codes.tolist(), before, noise=noise, source_noise=0, options=options)
    after = Voice.from_clip(synthesizer.parts, sound.wave, sample_rate=sound.sample_rate, weights=synthesizer.weights)
    return compare_voices(before, after)


def compare_voices(before: Voice, after: Voice) -> RoundTrip:
    """Two voices read from what should be one sound, over the codes and frames that both have."""
    n, frames = min(len(before.codes), len(after.codes)), min(len(before.mel), len(after.mel))
    a, b = before.codes[:n], after.codes[:n]
    chance = np.mean([(a == np.roll(b, k)).mean() for k in range(1, n)]) if n > 1 else float("nan")
    cosine = before.speaker @ after.speaker / (np.linalg.norm(before.speaker) * np.linalg.norm(after.speaker))
    distance = np.abs(before.mel[:frames] - after.mel[:frames]).mean() * DB_PER_NEPER
    return RoundTrip(before, after, float((a == b).mean()), float(chance), float(cosine), float(distance))
