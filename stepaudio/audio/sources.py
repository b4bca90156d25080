"""What a recording may be given as: files that libsndfile reads, from wherever their bytes come, and arrays.

Knows no policy of channels, level or resampling: it hands on an open file, or a numpy array with its rate.
"""

from __future__ import annotations

import io
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf

from ..errors import AudioError

RATE_RANGE = (1_000, 10_000_000)  # Hz; outside it a header or an argument is wrong, not the microphone
PCM_ZERO_AND_SCALE = {"uint8": (128, 2**7), "int8": (0, 2**7), "int16": (0, 2**15), "int32": (0, 2**31)}
SPOOLED_BYTES = 1 << 26  # of a stream that cannot seek; beyond 64 MiB it goes through a temporary file
ARRAY_KEYS = {"array", "sampling_rate"}
EXPECTED = "expected wav, flac, ogg, mp3 or the like: convert it first, for example with ffmpeg"


class _ForwardFile(sf.SoundFile):
    """A sound file read from start to end: soundfile seeks after each block, which a stream of no length fails."""

    resources: ExitStack | None = None  # closed with it

    def seekable(self) -> bool:
        return False

    def close(self) -> None:
        super().close()
        if self.resources is not None:
            self.resources.close()


def is_file(source) -> bool:
    """Whether a source holds an encoded file, which states its own rate: a path, bytes, or a file object."""
    return isinstance(source, (str, os.PathLike, bytes, bytearray, memoryview)) or hasattr(source, "read")


def source_name(source) -> str:
    """What a source is called in messages: its path where it has one."""
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source) if isinstance(source, str) else str(source)
    if hasattr(source, "read"):
        name = getattr(source, "name", None)
        return "standard input" if name == "<stdin>" else name if isinstance(name, str) else "file object"
    return "bytes" if is_file(source) else "array"


def open_sound(source) -> sf.SoundFile:
    """Open a path, bytes or a file object for reading; every way to fail becomes one line of ours.

    Parameters
    ----------
    source : str, os.PathLike, bytes, bytearray, memoryview or binary file object
        A seekable file object is read from its start, wherever it stands. What cannot seek (a pipe, a socket, a
        download) is read to its end first, in memory up to 64 MiB and through a temporary file beyond.

    Raises
    ------
    AudioError
        Absent, empty, unreadable, opened as text, or in no format that libsndfile knows.
    """
    name = source_name(source)
    if isinstance(source, (str, os.PathLike)):
        _check_path(source, name)
        return _opened(Path(source), name)
    if isinstance(source, io.TextIOBase):
        raise AudioError(f"{name}: is open as text; expected a binary file: open(path, 'rb')")
    if not hasattr(source, "read"):
        source = io.BytesIO(source)
    with ExitStack() as resources:
        try:
            if not _can_seek(source):
                stream, source = source, resources.enter_context(tempfile.SpooledTemporaryFile(SPOOLED_BYTES))
                shutil.copyfileobj(stream, source)
            _rewind(source, name)
        except (OSError, ValueError, TypeError) as error:
            raise AudioError(f"{name}: cannot be read ({one_line(error)}); expected an open binary file") from None
        file = _opened(source, name)
        file.resources = resources.pop_all()
    return file


def _opened(target, name: str) -> _ForwardFile:
    try:
        return _ForwardFile(target)
    except (RuntimeError, OSError, TypeError, ValueError) as error:
        said = one_line(error)
        raise AudioError(f"{name}: is not audio that libsndfile reads ({said}); {EXPECTED}") from None


def _check_path(path: str | os.PathLike, name: str) -> None:
    try:
        status = os.stat(path)
    except FileNotFoundError:
        raise AudioError(f"{name}: no such file") from None
    except (OSError, ValueError) as error:
        raise AudioError(f"{name}: cannot be opened ({one_line(error)})") from None
    if stat.S_ISDIR(status.st_mode):
        raise AudioError(f"{name}: is a folder; expected one audio file")
    if not stat.S_ISREG(status.st_mode):
        raise AudioError(
            f"{name}: is not a regular file; save the stream to a file first, or pass it as an open binary file"
        )
    if status.st_size == 0:
        raise AudioError(f"{name}: is empty (0 bytes); expected an audio file")


def _can_seek(file) -> bool:
    try:
        return hasattr(file, "seek") and hasattr(file, "tell") and getattr(file, "seekable", lambda: True)()
    except ValueError:  # closed; reading it will say so
        return True


def _rewind(file, name: str) -> None:
    file.seek(0)
    if not file.read(1):
        raise AudioError(f"{name}: is empty (0 bytes); expected an audio file")
    file.seek(0)


def samples_and_rate(source, sample_rate: float | None = None) -> tuple[np.ndarray, float | None]:
    """An array of samples and its rate in Hz, None where neither the source nor the caller states one.

    Parameters
    ----------
    source : numpy, mlx or torch array, list, or a mapping with the keys "array" and "sampling_rate"
    sample_rate : number, optional
        What the caller says. A mapping may repeat it, not contradict it.

    Raises
    ------
    AudioError
        As `as_array`; a mapping with other keys, or one that contradicts `sample_rate`.
    """
    if not isinstance(source, Mapping):
        return as_array(source), sample_rate
    if set(source) - {"path"} != ARRAY_KEYS:
        raise AudioError(
            f'mapping: expected the keys "array" and "sampling_rate", found {", ".join(map(str, source)) or "none"}'
        )
    own = checked_rate(source["sampling_rate"], "mapping")
    if sample_rate is not None and sample_rate != own:
        raise AudioError(f"mapping: its sampling_rate is {own:g} Hz, and {sample_rate!r} was given; leave one out")
    return as_array(source["array"]), own


def rate_is_assumed(source, sample_rate: float | None = None, sr: float | None = None) -> bool:
    """Whether `load_audio` has to take 16 kHz for granted: an array, and nobody stated its rate."""
    return sample_rate is None and sr is None and not is_file(source) and not isinstance(source, Mapping)


def given_rate(sample_rate: float | None, sr: float | None) -> float | None:
    """The one rate of two spellings. Raises `AudioError` if both are given and differ."""
    if sample_rate is not None and sr is not None and sample_rate != sr:
        raise AudioError(f"sample_rate={sample_rate!r} and sr={sr!r} mean the same and differ; leave one out")
    return sr if sample_rate is None else sample_rate


def as_array(source) -> np.ndarray:
    """`source` as numpy, (n,) or (n, channels), of a type that has a full scale.

    Raises
    ------
    AudioError
        Not a rectangle of numbers, a type without a full scale (int64, bool, complex), more than two axes, or
        more channels than samples.
    """
    _refuse_pair(source)
    try:
        array = np.asarray(_on_the_host(source))
    except (TypeError, ValueError, RuntimeError) as error:
        raise AudioError(
            f"array: not a rectangular array of numbers ({one_line(error)}); "
            f"expected float32 samples of shape (n,) or (n, channels)"
        ) from None
    if array.dtype.kind != "f" and array.dtype.name not in PCM_ZERO_AND_SCALE:
        raise AudioError(
            f"array: {array.dtype} samples have no known full scale; expected float in [-1, 1] or "
            f"{', '.join(PCM_ZERO_AND_SCALE)} PCM: convert first"
        )
    if array.ndim not in (1, 2) or array.shape[1:] == (0,):
        raise AudioError(f"array: expected shape (n,) or (n, channels), found {array.shape}; pass one recording")
    if array.ndim == 2 and array.shape[1] > array.shape[0]:
        raise AudioError(
            f"array: shape {array.shape} has more channels than samples; expected (n, channels): transpose it"
        )
    return array


def _refuse_pair(source) -> None:
    """What many readers return, (samples, rate) or (rate, samples), is no array."""
    if isinstance(source, (tuple, list)) and len(source) == 2:
        for rate, samples in (source, source[::-1]):
            if isinstance(rate, Real) and np.ndim(samples) > 0:
                raise AudioError(f"array: a pair of samples and a rate; pass them apart: (samples, sr={rate})")


def _on_the_host(source: Any):
    """What numpy can look at: tensors leave graph and device, and bfloat16, which numpy lacks, becomes float32."""
    is_half = "bfloat16" in str(getattr(source, "dtype", ""))
    if hasattr(source, "detach"):  # torch, which is not imported here
        source = source.detach().cpu()
        return source.float() if is_half else source
    if is_half and "mlx.core" in sys.modules and isinstance(source, sys.modules["mlx.core"].array):
        return source.astype(sys.modules["mlx.core"].float32)
    return source


def checked_rate(rate, name: str) -> float:
    """`rate` as a number of Hz within `RATE_RANGE`; `AudioError`, which names `name`, for anything else."""
    low, high = RATE_RANGE
    try:
        value = float("nan") if isinstance(rate, (bool, str)) else float(rate)
    except (TypeError, ValueError):
        value = float("nan")
    if not low <= value <= high:
        raise AudioError(f"{name}: sample rate {rate!r} Hz is impossible; expected {low} to {high}")
    return value


def one_line(error: Exception) -> str:
    """What a library said, without its own mention of the file."""
    said = " ".join(str(error).split())
    for mark in ("': ", ">: "):
        said = said.rpartition(mark)[2]
    return said.rstrip(".") or type(error).__name__
