"""From an open file to blocks of samples: the container is examined first, then libsndfile decodes, or PyAV.

Knows no policy of channels, level or rate. What cannot be decoded whole is refused.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import ExitStack
from typing import BinaryIO, cast

import numpy as np
import soundfile as sf

from ..errors import AudioError
from .av_decode import AvSound, foreign_format
from .callbacks import signals_wait
from .containers import Bytes, Part, parts_by_header
from .mpeg import is_mpeg, mpeg_parts, tag_size
from .ogg import MARK, ogg_parts
from .sources import one_line, open_bytes, source_name

LENGTH_UNKNOWN = 1 << 60  # libsndfile reports its largest count for a stream without a length
EXPECTED = "expected wav, flac, ogg, mp3 or the like: convert it first, for example with ffmpeg"


class Sound:
    """An encoded recording, open: use it in a `with` block.

    Attributes
    ----------
    name : str
        For messages.
    samplerate : int
        Hz, as the file states it.
    channels : int
    frames : int, optional
        Samples a channel; None where no header states them.
    n_bytes : int
        Size of the encoded file.
    """

    def __init__(self, file: BinaryIO, name: str):
        self.name, self._file, self.resources = name, Bytes(file, name), ExitStack()  # these are closed with it
        self.n_bytes = self._file.size
        self._parts = _parts(self._file)
        forms, counts = [], []
        for part in self._parts:
            with self._opened(part) as opened:
                forms.append((opened.channels, opened.samplerate))
                counts.append(_stated(part, opened))
        self.channels, self.samplerate = forms[0]
        self.frames = None if None in counts else sum(n for n in counts if n is not None)
        other = next((i for i, form in enumerate(forms) if form != forms[0]), None)
        if other is not None:
            raise AudioError(
                f"{name}: holds {len(forms)} recordings, one after another, of several forms: number {other + 1} has "
                f"{forms[other][0]} channels at {forms[other][1]} Hz, the first {forms[0][0]} at {forms[0][1]} Hz; "
                f"convert them to one form, for example with ffmpeg"
            )

    def __enter__(self) -> Sound:
        return self

    def __exit__(self, *_) -> None:
        self.resources.close()

    def blocks(self, n_values: int) -> Iterator[np.ndarray]:
        """Float32 (n, channels), at most `n_values` values each.

        Raises
        ------
        AudioError
            The data is broken, or ends before what the header states.
        """
        for part in self._parts:
            yield from self._part_blocks(part, n_values)

    def _part_blocks(self, part: Part, n_values: int) -> Iterator[np.ndarray]:
        n = 0
        with self._opened(part) as opened:
            size, stated = max(1, n_values // opened.channels), _stated(part, opened)
            while stated is None or n < stated:  # past its end a file may hold tags, which no decoder should see
                try:
                    count = size if stated is None else min(size, stated - n)
                    with signals_wait():
                        block = opened.read(count, dtype="float32", always_2d=True)
                except (RuntimeError, OSError) as error:
                    said = one_line(error)
                    raise AudioError(f"{self.name}: broken audio data ({said}); fetch or export it again") from None
                opened.bytes.check()
                if len(block) == 0:
                    break
                n += len(block)
                yield block
        if stated is not None and n < stated - part.packet:
            raise AudioError(
                f"{self.name}: is cut off or damaged: its header promises {stated} samples, {n} could be read; "
                f"fetch or export it again"
            )

    def _opened(self, part: Part) -> _OpenPart:
        try:
            with signals_wait():
                return _OpenPart(_Spliced(self._file, part.pieces))
        except (RuntimeError, OSError, TypeError, ValueError) as error:
            said = one_line(error)
            raise AudioError(f"{self.name}: is not audio that libsndfile reads ({said}); {EXPECTED}") from None


def open_sound(source) -> Sound | AvSound:
    """Open a path, bytes, a file object or a mapping of them for decoding; every way to fail is one line of ours.

    Parameters
    ----------
    source
        As `sources.open_bytes`.

    Raises
    ------
    AudioError
        What `open_bytes` refuses; no known format; cut off; joined recordings of several rates.
    """
    name, resources = source_name(source), ExitStack()
    with resources:
        file = resources.enter_context(open_bytes(source))
        foreign = foreign_format(file)
        sound = Sound(file, name) if foreign is None else AvSound(file, name, foreign)
        sound.resources.push(resources.pop_all())
        return sound
    raise AssertionError  # an ExitStack lets errors pass


def _parts(source: Bytes) -> list[Part]:
    start = 0
    while (size := tag_size(source.at(start, 10))) > 1:
        start += size
    if source.at(start, 4) == MARK:
        return ogg_parts(source, start)
    parts = parts_by_header(source, start)
    if parts is None and is_mpeg(source.at(start, 4)):
        parts = mpeg_parts(source, start)
        if parts is None:
            raise AudioError(f"{source.name}: is not audio: one MPEG frame does not follow another; {EXPECTED}")
    return parts or [Part(((0, source.size),))]


def _stated(part: Part, opened: sf.SoundFile) -> int | None:
    if part.n_samples is not None:
        return part.n_samples
    return opened.frames if opened.frames < LENGTH_UNKNOWN else None


class _OpenPart(sf.SoundFile):
    """A sound file read from start to end: soundfile seeks after each block, which a stream of no length fails."""

    def __init__(self, data: _Spliced):
        self.bytes = data
        super().__init__(cast(BinaryIO, data))

    def seekable(self) -> bool:
        return False


class _Spliced:
    """Pieces of a file, and bytes between them, as one file to read.

    A decoder calls from C, where an exception would be lost and the file seem to end: the first one is kept.
    """

    def __init__(self, file: Bytes, pieces: tuple[bytes | tuple[int, int], ...]):
        self._file, self._pieces, self._at = file, pieces, 0
        self._error: AudioError | None = None
        sizes = [len(piece) if isinstance(piece, bytes) else piece[1] - piece[0] for piece in pieces]
        self._ends = np.cumsum(sizes).tolist()

    def check(self) -> None:
        """Raise the `AudioError` with which reading failed."""
        if self._error is not None:
            raise self._error

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._ends[-1]}[whence]
        self._at = max(0, origin + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer) -> int:
        done, wanted = 0, len(buffer)
        index = int(np.searchsorted(self._ends, self._at, "right"))
        while done < wanted and index < len(self._pieces):
            piece, left = self._pieces[index], self._ends[index] - self._at
            count = min(wanted - done, left)
            data = self._piece(piece, count, left)
            buffer[done : done + len(data)] = data
            done, self._at = done + len(data), self._at + len(data)
            if len(data) < count:
                break
            index += self._at >= self._ends[index]
        return done

    def _piece(self, piece: bytes | tuple[int, int], count: int, left: int) -> bytes:
        """`count` bytes of a piece, of which `left` have not been read."""
        if isinstance(piece, bytes):
            start = len(piece) - left
            return piece[start : start + count]
        try:
            return self._file.at(piece[1] - left, count)
        except AudioError as error:
            self._error = self._error or error
            return b""
