"""Sound into files: whole or block by block, never clipped, never half written under the wanted name.

One stated policy for level: 16-bit files hold +-1, and what is louder is refused, or divided by its peak with a
warning; float files (`.f32.wav`) hold anything finite. Knows nothing of models.
"""

from __future__ import annotations

import io
import math
import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import soundfile as sf

from ..constants import SAMPLE_RATE
from ..errors import AudioError, ConfigError
from ..files import replaced_file
from .callbacks import signals_wait
from .decode import open_sound
from .load import BLOCK_VALUES
from .sources import as_array, checked_rate, one_line

FLOAT_SUFFIX = ".f32.wav"
TOO_LOUD = ("refuse", "scale")
UNWRITTEN = (".raw", ".sd2")  # states neither rate nor type; keeps them in a second file


class AudioWriter:
    """An open file that takes blocks; made by `audio_writer`."""

    def __init__(self, path: Path, file: sf.SoundFile, gain: float, disk: _Disk):
        self.path, self.gain, self.n_samples, self._file, self._disk = path, gain, 0, file, disk

    def write(self, samples: np.ndarray) -> None:
        """Append float samples (n,) or (n, channels). Raises `AudioError` for NaN, Inf, or more than was promised."""
        samples = np.asarray(samples)
        low, high = (float(samples.min()), float(samples.max())) if samples.size else (0.0, 0.0)
        if not math.isfinite(low) or not math.isfinite(high):
            raise AudioError(f"{self.path}: samples hold NaN or Inf; nothing written")
        block = samples.astype(np.float32)
        if self._file.subtype != "FLOAT":
            peak = max(-low, high) * self.gain
            if peak > 1 + 1e-6:  # a peak divided by itself may round up
                raise AudioError(f"{self.path}: peak {peak:.6g} is beyond full scale and would clip; nothing written")
            block = np.clip(np.rint(samples.astype(np.float64) * self.gain * 2**15), -(2**15), 2**15 - 1)
            block = block.astype(np.int16)  # that clip is for +1.0 alone, which has no code
        with _reported(self.path), signals_wait():
            self._file.write(block)
            self._disk.check()
        self.n_samples += len(samples)


class _Disk:
    """What an encoder writes through. It cannot be told that the disk is full, so the first failure is kept here."""

    def __init__(self, path: Path):
        self._file, self._error = path.open("wb"), None

    def _try(self, act, *arguments, otherwise):
        if self._error is None:
            try:
                return act(*arguments)
            except OSError as error:
                self._error = error
        return otherwise

    def write(self, data: bytes) -> int:
        return self._try(self._file.write, data, otherwise=len(data))

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._try(self._file.seek, offset, whence, otherwise=0)

    def tell(self) -> int:
        return self._try(self._file.tell, otherwise=0)

    def flush(self) -> None:
        self._try(self._file.flush, otherwise=None)

    def close(self) -> None:
        """Give up the file, whatever became of it."""
        self._try(self._file.close, otherwise=None)
        self._file.raw.close()

    def check(self) -> None:
        """Raise the first `OSError` that there was."""
        if self._error is not None:
            raise self._error


@contextmanager
def audio_writer(
    path: str | os.PathLike, sample_rate: int, channels: int = 1, peak: float = 1.0
) -> Iterator[AudioWriter]:
    """Open a file that is written block by block, and appears under its name only when it is whole.

    Until then it lies beside it under a hidden name, and is removed if anything goes wrong.

    Parameters
    ----------
    path : str or os.PathLike
        The suffix picks the format: `.f32.wav` is 32-bit float, anything else that libsndfile knows (wav, flac,
        ogg, mp3, …) 16-bit. An existing file is replaced.
    sample_rate : int in `RATE_RANGE`, in Hz
    channels : int > 0
    peak : float > 0
        Loudest sample that will come. Beyond 1 a 16-bit file is written at the gain 1 / peak throughout, and a
        warning says so: a stream cannot look ahead for its peak.

    Raises
    ------
    AudioError
        Unknown suffix, impossible rate, a place that cannot be written; and what `AudioWriter.write` raises.
    """
    path = check_target(path)
    rate = checked_rate(sample_rate, str(path))
    if rate != int(rate):
        raise AudioError(f"{path}: files hold whole rates, found {rate:g} Hz; resample first")
    is_float = path.name.lower().endswith(FLOAT_SUFFIX)
    gain = 1.0 if is_float else 1.0 / max(1.0, peak)
    if gain < 1:
        warnings.warn(
            f"{path}: sound may reach {peak:.4g} of full scale; all of it is written at "
            f"{20 * math.log10(gain):.1f} dB, so that nothing clips",
            stacklevel=3,
        )
    with ExitStack() as stack:
        with _reported(path):
            aside = stack.enter_context(replaced_file(path))
            disk = stack.enter_context(closing(_Disk(aside)))
            kind = {"format": path.suffix[1:].upper(), "subtype": "FLOAT" if is_float else None}
            with signals_wait():
                file = stack.enter_context(sf.SoundFile(cast(BinaryIO, disk), "w", int(rate), channels, **kind))
        writer = AudioWriter(path, file, gain, disk)
        yield writer  # what the caller raises here is not ours to report
        with _reported(path):
            with signals_wait():
                file.close()  # encoders write their last block here, and what they wrote before is told to the disk
            disk.close()
            disk.check()
            _check_length(aside, writer.n_samples)
            stack.close()


def _check_length(path: Path, n_samples: int) -> None:
    """Raise `OSError` unless a file states the samples that were written: some formats have a largest size."""
    if n_samples:
        with open_sound(path) as file:
            if file.frames is not None and file.frames < n_samples:
                raise OSError(f"only {file.frames} of {n_samples} samples are in the file")


@contextmanager
def _reported(path: Path) -> Iterator[None]:
    """Whatever the library or the system says of this file becomes one line of ours."""
    try:
        yield
    except (RuntimeError, OSError, TypeError, ValueError) as error:
        raise AudioError(f"{path}: cannot be written ({one_line(error)})") from None


def save_audio(path: str | os.PathLike, samples, sample_rate: int = SAMPLE_RATE, too_loud: str = "refuse") -> None:
    """Write float samples; the suffix of `path` picks format and sample type, as in `audio_writer`.

    One step of 16 bits is 1/32768, so 16-bit audio read by `load_audio` is written back bit for bit (+1.0 itself,
    which has no 16-bit code, becomes 32767).

    Parameters
    ----------
    path : str or os.PathLike
        File to write; an existing one is replaced, whole or not at all.
    samples : array of float, (n,) or (n, channels)
        In [-1, 1] by convention.
    sample_rate : int in `RATE_RANGE`
        In Hz.
    too_loud : {"refuse", "scale"}
        What becomes of samples beyond +-1 that are to go into 16 bits: an error, or all samples are divided by the
        peak and a warning says so. They are never clipped.

    Raises
    ------
    AudioError
        Samples out of range, not finite, not float; unknown suffix; a place that cannot be written.
    ConfigError
        An unknown `too_loud`.
    """
    if too_loud not in TOO_LOUD:
        raise ConfigError(f"too_loud: expected {' or '.join(map(repr, TOO_LOUD))}, found {too_loud!r}")
    path, array = Path(path), as_array(samples)
    if array.dtype.kind != "f" or array.size == 0:
        raise AudioError(f"{path}: expected float samples in [-1, 1], found {array.dtype} of shape {array.shape}")
    peak = float(np.abs(array).max())
    if too_loud == "refuse" and 1 < peak < math.inf and not path.name.lower().endswith(FLOAT_SUFFIX):
        raise AudioError(
            f"{path}: peak {peak:.6g} is beyond full scale and would clip; divide the samples by it, say "
            f"too_loud='scale', or write {FLOAT_SUFFIX}"
        )
    channels = 1 if array.ndim == 1 else array.shape[1]
    step = BLOCK_VALUES // channels
    with audio_writer(path, sample_rate, channels, peak if math.isfinite(peak) else 1.0) as writer:
        for start in range(0, len(array), step):
            writer.write(array[start : start + step])


def check_target(path: str | os.PathLike) -> Path:
    """The path, if sound can be written there: a known suffix, and a folder to lie in. `AudioError` otherwise."""
    path = Path(path)
    if path.suffix[1:].upper() not in sf.available_formats() or path.suffix.lower() in UNWRITTEN:
        raise AudioError(
            f"{path}: unknown audio suffix {path.suffix!r}; use .wav, {FLOAT_SUFFIX} (float), .flac, .ogg or .mp3"
        )
    with _reported(path):
        if path.is_dir() or not path.parent.is_dir():
            raise OSError("it is a folder" if path.is_dir() else "no such folder")
    return path
