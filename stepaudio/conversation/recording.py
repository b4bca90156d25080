"""A recording as a history keeps it: mono, 16 kHz, 24 bits, so that a file gives back what the model read.

Knows no turns and no nets.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import soundfile as sf

from ..audio.load import load_audio
from ..constants import SAMPLE_RATE
from ..decoding.prompt_cache import digest
from ..errors import DataError

FULL = 2**23  # of 24-bit samples
MAX_EXPONENT = 64


@dataclass(frozen=True, eq=False)
class Recording:
    """Samples that are whole numbers: `values` / 2**23 * 2**`exponent` is the sound.

    Parameters
    ----------
    values : np.ndarray, (n,) int32
        From -2**23 to 2**23 - 1.
    exponent : int >= 0
        Above 0 only for sound beyond full scale.
    """

    values: np.ndarray
    exponent: int = 0

    @classmethod
    def of(cls, source, **reading) -> Recording:
        """Read what `audio.load.load_audio` reads, with its options; samples are rounded to 24 bits.

        What was 16 bits at 16 kHz stays as it is to the last bit; anything else changes by less than 2**-23 of its
        peak's power of two.

        Raises
        ------
        AudioError
        """
        return source if isinstance(source, cls) else cls.rounded(load_audio(source, **reading))

    @classmethod
    def rounded(cls, samples: np.ndarray) -> Recording:
        """Samples (n,) at 16 kHz."""
        peak = float(np.abs(samples).max(initial=0.0))
        exponent = max(0, math.ceil(math.log2(peak))) if peak > 1 else 0
        values = np.rint(samples.astype(np.float64) * (FULL / 2**exponent))
        return cls(np.clip(values, -FULL, FULL - 1).astype(np.int32), exponent)

    @property
    def samples(self) -> np.ndarray:
        """(n,) float32 at 16 kHz: what the model reads."""
        return (self.values * (2.0**self.exponent / FULL)).astype(np.float32)

    @property
    def seconds(self) -> float:
        """Its length."""
        return len(self.values) / SAMPLE_RATE

    @cached_property
    def key(self) -> str:
        """A digest of its samples."""
        return digest("recording", self.values, self.exponent)

    def flac(self) -> bytes:
        """Its values as a FLAC file."""
        file = io.BytesIO()
        sf.write(file, self.values << 8, SAMPLE_RATE, format="FLAC", subtype="PCM_24")
        return file.getvalue()

    @classmethod
    def from_flac(cls, data: bytes, exponent: int, what: str) -> Recording:
        """What `flac` wrote; `what` opens the message of the `DataError` for anything else."""
        try:
            with sf.SoundFile(io.BytesIO(data)) as file:
                kind = (file.format, file.subtype, file.channels, file.samplerate)
                if kind != ("FLAC", "PCM_24", 1, SAMPLE_RATE):
                    raise DataError(f"{what}: expected mono FLAC of 24 bits at {SAMPLE_RATE} Hz, found {kind}")
                return cls(np.asarray(file.read(dtype="int32"), dtype=np.int32) >> 8, exponent)
        except (RuntimeError, OSError, ValueError) as error:
            raise DataError(f"{what}: not readable as FLAC ({error!s:.120})") from None
