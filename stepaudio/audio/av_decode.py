"""Formats that libsndfile does not read (m4a, mp4, webm, aac, …), through PyAV, the extra `av`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, BinaryIO

import numpy as np

from ..errors import AudioError
from .containers import cut_off
from .sources import one_line

STATING = ("mp4", "matroska")  # containers that state a length; of the others it is guessed from the bit rate
TOLERANCE = 0.15  # seconds by which what is stated may be off: two packets of AAC at 16 kHz are 0.13
MARKS = (  # position, bytes, name
    (4, b"ftyp", "MPEG-4 (m4a, mp4, mov)"),
    (0, b"\x1a\x45\xdf\xa3", "Matroska (webm, mkv)"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "Windows Media (wma, wmv)"),
    (0, b"#!AMR", "AMR"),
    (0, b"ADIF", "AAC"),
    (0, b"FLV\x01", "Flash video"),
    (0, b"wvpk", "WavPack"),
    (0, b"MAC ", "Monkey's Audio"),
    (0, b".RMF", "RealMedia"),
    (8, b"AVI ", "AVI"),
)


def foreign_format(file: BinaryIO) -> str | None:
    """The name of a format that PyAV reads and libsndfile does not, by the first bytes; None for all others."""
    file.seek(0)
    head = file.read(16)
    file.seek(0)
    if len(head) > 4 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0:
        return "AAC"
    return next((name for at, mark, name in MARKS if head[at:].startswith(mark)), None)


class AvSound:
    """The first audio stream of a file, with the attributes and methods of `decode.Sound`."""

    def __init__(self, file: BinaryIO, name: str, form: str):
        self.name, self._form, self.resources = name, form, ExitStack()
        self.n_bytes = file.seek(0, 2)
        file.seek(0)
        self._av = _library(name, form)
        with self._reported():
            self._container = self.resources.enter_context(self._av.open(file, mode="r", metadata_errors="ignore"))
            streams = self._container.streams.audio
        if not streams:
            raise AudioError(f"{name}: {form} without sound; expected a recording")
        self._stream = streams[0]
        self.samplerate, self.channels = self._stream.rate, self._stream.channels
        self.frames = None  # what the container states may be off by a packet
        stated = self._stream.duration and self._stream.duration * self._stream.time_base
        stated = stated or (self._container.duration and self._container.duration / self._av.time_base)
        names = self._container.format.name.split(",")
        self._stated = float(stated or 0) if any(name in STATING for name in names) else 0.0

    def __enter__(self) -> AvSound:
        return self

    def __exit__(self, *_) -> None:
        self.resources.close()

    def blocks(self, n_values: int) -> Iterator[np.ndarray]:
        """As `decode.Sound.blocks`; blocks are the packets of the file."""
        n = 0
        with self._reported():
            even = self._av.AudioResampler(format="fltp", layout=self._stream.layout, rate=self.samplerate)
            for frame in self._container.decode(self._stream):
                for part in even.resample(frame):
                    n += part.samples
                    yield part.to_ndarray().T
        if n < (self._stated - TOLERANCE) * self.samplerate:
            raise cut_off(self.name, f"{self._stated:.2f} s", f"{n / self.samplerate:.2f} s could be read")

    @contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except (self._av.error.FFmpegError, ValueError, OverflowError) as error:
            said = getattr(error, "strerror", None) or one_line(error)
            raise AudioError(f"{self.name}: broken {self._form} ({said}); fetch or export it again") from None


def _library(name: str, form: str) -> Any:
    try:
        import av
    except ImportError:
        raise AudioError(
            f"{name}: is {form}, which libsndfile does not read; pip install 'stepaudio[av]' to have it read, or "
            f"convert it: ffmpeg -i FILE out.wav"
        ) from None
    return av
