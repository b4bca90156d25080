"""Sound rotted by degree: noise, babble and reverberation at a level below the speech, and silence before it.

Each is a function of samples alone: what is added is drawn from a seed that follows from them, so a recording gets the
same noise at every level, only louder.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import lru_cache

import numpy as np

from ..audio.load import load_audio
from ..constants import SAMPLE_RATE
from ..errors import ConfigError
from ..evaluation.manifest import read_manifest
from ..resources import speech_manifest

FRAME = 320  # samples over which loudness is measured: 20 ms
QUIET = 1e-3  # power below that of the loudest frame under which a frame is no speech: -30 dB
ROOM_SECONDS = 0.6  # in which reverberation falls by 60 dB
TALKERS = 6  # voices in babble
FAINT = 1e-3  # of full scale, the noise in silence: -60 dB


def speech_power(samples: np.ndarray) -> float:
    """Mean square of the frames in which somebody speaks; 0 for digital silence."""
    n = max(1, len(samples) // FRAME)
    power = np.array([np.mean(part**2) for part in np.array_split(samples.astype(np.float64), n)])
    return float(power[power >= QUIET * power.max()].mean())


def white(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Noise of equal power at all frequencies."""
    return rng.standard_normal(len(samples))


def pink(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Noise whose power falls by 3 dB an octave."""
    spectrum = np.fft.rfft(rng.standard_normal(len(samples)))
    return np.fft.irfft(spectrum / np.sqrt(np.maximum(np.arange(len(spectrum)), 1)), len(samples))


def babble(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Several of the bundled recordings at once, each from a place of its own and over again."""
    chosen = rng.choice(len(_talkers()), TALKERS, replace=False)
    voices = [np.roll(_talkers()[i], rng.integers(1 << 20)) for i in chosen]
    return np.sum([np.resize(voice, len(samples)) for voice in voices], axis=0)


def room(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What a room of decaying noise adds to the sound itself."""
    n = round(ROOM_SECONDS * SAMPLE_RATE)
    tail = rng.standard_normal(n) * 10 ** (-3 * np.arange(n) / n)
    size = len(samples) + n  # long enough that nothing wraps round
    return np.fft.irfft(np.fft.rfft(samples, size) * np.fft.rfft(tail, size), size)[: len(samples)]


@lru_cache(1)
def _talkers() -> list[np.ndarray]:
    """The bundled recordings in which somebody speaks, equally loud."""
    sounds = [load_audio(clip.file) for clip in read_manifest(speech_manifest()) if clip.text]
    return [sound / np.sqrt(speech_power(sound)) for sound in sounds]


KINDS: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "white": white, "pink": pink, "babble": babble, "room": room,
}  # fmt: skip


def rotten(samples: np.ndarray, kind: str, dose: float) -> np.ndarray:
    """Samples with something added.

    Parameters
    ----------
    samples : np.ndarray
        float32, (n,) at 16 kHz.
    kind : one of `KINDS`, or "quiet"
    dose : number
        Of a kind of noise, how far the speech is above it, in dB; of "quiet", the seconds of faint noise before it.

    Returns
    -------
    np.ndarray
        float32, (n,), or longer by the silence.
    """
    rng = np.random.default_rng(zlib.crc32(samples.tobytes() + kind.encode()))
    if kind == "quiet":
        return np.concatenate([FAINT * rng.standard_normal(round(dose * SAMPLE_RATE)), samples]).astype(np.float32)
    if len(samples) == 0 or not samples.any():
        return samples
    added = KINDS[kind](samples, rng)
    gain = np.sqrt(speech_power(samples) / np.mean(added**2)) * 10 ** (-dose / 20)
    return (samples + gain * added).astype(np.float32)


def parse(name: str) -> tuple[str, float]:
    """("white", 10.0) from "white:10".

    Raises
    ------
    ConfigError
        Another kind, or a dose that is no number.
    """
    kind, _, dose = name.partition(":")
    try:
        value = float(dose)
    except ValueError:
        value = np.nan
    if kind not in (*KINDS, "quiet") or not np.isfinite(value) or (kind == "quiet" and value < 0):
        raise ConfigError(f"sound {name!r}: expected KIND:DB, of {', '.join(KINDS)}, or quiet:SECONDS")
    return kind, value
