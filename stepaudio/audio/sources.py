"""What a recording may be given as: encoded files, from wherever their bytes come, and arrays.

Knows no formats, and no policy of channels, level or resampling: it hands on an open file of bytes, or a numpy array
with its rate.
"""

from __future__ import annotations

import io
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from numbers import Real
from typing import Any, BinaryIO, cast

import numpy as np

from ..constants import SAMPLE_RATE
from ..errors import AudioError
from ..files import LONGEST_NAME, printable_name, short_name

RATE_RANGE = (1_000, 10_000_000)  # Hz; outside it a header or an argument is wrong, not the microphone
PCM_ZERO_AND_SCALE = {"uint8": (128, 2**7), "int8": (0, 2**7), "int16": (0, 2**15), "int32": (0, 2**31)}
SPOOLED_BYTES = 1 << 26  # of a stream that cannot seek; beyond 64 MiB it goes through a temporary file
ARRAY_KEYS = {"array", "sampling_rate"}
FILE_KEYS = {"bytes", "path"}


def is_file(source) -> bool:
    """Whether a source holds an encoded file, which states its own rate: a path, bytes, a file object, or a mapping."""
    return (
        isinstance(source, (str, os.PathLike, bytes, bytearray, memoryview))
        or hasattr(source, "read")
        or (isinstance(source, Mapping) and "array" not in source and bool(FILE_KEYS & set(source)))
    )


def source_name(source) -> str:
    """What a source is called in messages: its path where it has one, on one line, shortened if it is very long."""
    if isinstance(source, Mapping) and is_file(source):
        source = source.get("path") or source.get("bytes")
    if hasattr(source, "read"):
        name = getattr(source, "name", None)
        source = "standard input" if name == "<stdin>" else name if isinstance(name, str) else "file object"
    if not isinstance(source, (str, os.PathLike)):
        return "bytes" if is_file(source) else "array"
    return short_name(source)


@contextmanager
def open_bytes(source) -> Iterator[BinaryIO]:
    """Open a path, bytes or a file object as bytes that can be sought in; every way to fail is one line of ours.

    Parameters
    ----------
    source : str, os.PathLike, bytes, bytearray, memoryview, binary file object or mapping
        A seekable file object is read from its start, wherever it stands, and stays open. What cannot seek (a pipe,
        a socket, a download) is read to its end first, in memory up to 64 MiB and through a temporary file beyond.
        Of a mapping with "bytes" and "path" the bytes are taken, or if they are None the file.

    Raises
    ------
    AudioError
        Absent, empty, unreadable, a folder or a device, or opened as text.
    """
    name = source_name(source)
    if isinstance(source, Mapping):
        source = source.get("path") if source.get("bytes") is None else source["bytes"]
        if source is None:
            raise AudioError("mapping: holds neither bytes nor a path; expected a recording")
    with ExitStack() as resources:
        if isinstance(source, (str, os.PathLike)):
            source = resources.enter_context(_opened(source, name))
        elif isinstance(source, io.TextIOBase):
            raise AudioError(f"{name}: is open as text; expected a binary file: open(path, 'rb')")
        elif not hasattr(source, "read"):
            source = io.BytesIO(cast(Any, source))
        try:
            if not _can_seek(source):
                stream, source = source, resources.enter_context(tempfile.SpooledTemporaryFile(SPOOLED_BYTES))
                shutil.copyfileobj(cast(Any, stream), source)
            _rewind(source, name)
        except (OSError, ValueError, TypeError) as error:
            raise AudioError(f"{name}: cannot be read ({one_line(error)}); expected an open binary file") from None
        yield cast(BinaryIO, source)


def _opened(path: str | os.PathLike, name: str) -> BinaryIO:
    """An open file or pipe. What it is is asked first: to open a device may be to wait, or to set it going."""
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise AudioError(f"{name}: is a folder; expected one audio file")
        if not stat.S_ISREG(mode) and not stat.S_ISFIFO(mode):
            raise AudioError(f"{name}: is a device or a socket; expected an audio file, or a pipe that gives one")
        return open(path, "rb")
    except FileNotFoundError:
        if os.path.islink(path):
            raise AudioError(
                f"{name}: is a link to a file that is not there: {printable_name(os.readlink(path))}"
            ) from None
        raise AudioError(f"{name}: no such file") from None
    except PermissionError:
        raise AudioError(f"{name}: no permission to read it; allow it with chmod, or ask its owner") from None
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or one_line(error)
        raise AudioError(f"{name}: cannot be opened ({said})") from None


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
            f'mapping: expected the keys "array" and "sampling_rate" (or "bytes" and "path"), found {_words(source)}'
        )
    own = checked_rate(source["sampling_rate"], "mapping")
    if sample_rate is not None and sample_rate != own:
        raise AudioError(f"mapping: its sampling_rate is {own:g} Hz, and {sample_rate!r} was given; leave one out")
    return as_array(source["array"]), own


def _words(source: Mapping) -> str:
    """The keys of a mapping, not too many."""
    words = ", ".join(map(str, source)) or "none"
    return words if len(words) <= LONGEST_NAME else f"{words[:LONGEST_NAME]}…"


def rate_is_assumed(source, sample_rate: float | None = None, sr: float | None = None) -> bool:
    """Whether `load_audio` has to take 16 kHz for granted: an array, and nobody stated its rate."""
    return sample_rate is None and sr is None and not is_file(source) and not isinstance(source, Mapping)


def assumptions(source, sample_rate: float | None) -> tuple[str, ...]:
    """What a transcript notes of a recording that does not state everything: nothing, or the rate."""
    assumed = rate_is_assumed(source, sample_rate)
    return (f"the array came without a sample rate: {SAMPLE_RATE} Hz was assumed",) if assumed else ()


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
