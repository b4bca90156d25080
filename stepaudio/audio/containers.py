"""What the header of a sound file claims of its length, held against the bytes that are there.

Decoders read a file that was cut off as if it ended there, and of files that were joined the first alone. So the
headers are read here first: what is shorter than it claims is refused, joined files come apart, and a length that a
writer left open (it wrote into a pipe) is filled in. Knows the frames of containers, and nothing of samples.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from ..errors import AudioError
from .sources import one_line

HEAD = 128  # bytes that tell the formats apart
BLOCK = 1 << 20  # bytes looked at together
MAX_CHUNKS = 10_000  # looked at; a file of nothing but empty chunks would take for ever
OPEN_32 = (range(0x7FFFF000, 0x80001000), range(0xFFFFF000, 1 << 32))  # what writers into a pipe give as a size
OPEN_64 = (range(0x7FFFFFFFFFFFF000, 0x8000000000001000), range(0xFFFFFFFFFFFFF000, 1 << 64))
SECOND = {b"RIFF": b"WAVE", b"RIFX": b"WAVE", b"RF64": b"WAVE", b"FORM": b"AIF"}  # how a joined file begins: form
W64_TAIL = b"\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a"  # of every chunk's name but the first
FLAC_START = b"fLaC\x00\x00\x00\x22"
MAT4_BYTES = (8, 4, 4, 2, 2, 1)


@dataclass(frozen=True)
class Part:
    """One recording within a file: the bytes that a decoder is to see.

    Parameters
    ----------
    pieces : tuple of bytes or (start, stop)
        Bytes in the place of those of the file, and spans of it.
    n_samples : int, optional
        Samples a channel, where they were counted.
    packet : int
        Samples by which a right reading may fall short of what is stated.
    """

    pieces: tuple[bytes | tuple[int, int], ...]
    n_samples: int | None = None
    packet: int = 0


@dataclass(frozen=True)
class Extent:
    """Where a header says that sound lies.

    Parameters
    ----------
    start, length : int
        In bytes; `length` is None where the writer left it open.
    field : (position, format, added), optional
        Where the length stands, how it is packed, and what is added to it there.
    rate : int
        Bytes a second, 0 if unknown.
    """

    start: int
    length: int | None
    field: tuple[int, str, int] | None = None
    rate: int = 0


class Bytes:
    """A seekable file by positions.

    Parameters
    ----------
    file : binary file
    name : str
        For messages.
    """

    def __init__(self, file: BinaryIO, name: str):
        self.name, self._file = name, file
        self.size = file.seek(0, 2)

    def at(self, position: int, count: int) -> bytes:
        """The bytes from `position` on, at most `count`; fewer at the end. `AudioError` if they cannot be read."""
        try:
            self._file.seek(position)
            data = self._file.read(count)
            while len(data) < count and (more := self._file.read(count - len(data))):  # as raw files do
                data += more
        except (OSError, ValueError) as error:
            raise AudioError(f"{self.name}: cannot be read ({one_line(error)})") from None
        return data

    def unpack(self, position: int, layout: str) -> tuple[int, ...] | None:
        """Numbers at `position`, or None where the file ends before them."""
        found = self.at(position, struct.calcsize(layout))
        return struct.unpack(layout, found) if len(found) == struct.calcsize(layout) else None

    def find(self, mark: bytes, position: int) -> int:
        """Where `mark` comes first at or after `position`; the size of the file if nowhere."""
        while position < self.size:
            block = self.at(position, BLOCK + len(mark) - 1)
            if (found := block.find(mark)) >= 0:
                return position + found
            position += BLOCK
        return self.size


def cut_off(name: str, claimed: str, found: str) -> AudioError:
    """The one error for a file that is shorter than it says."""
    return AudioError(
        f"{name}: is cut off: its header claims {claimed}, {found}; fetch or export it again, or make a whole file "
        f"of what is left, for example with ffmpeg -i FILE rest.wav"
    )


def parts_by_header(file: Bytes, start: int) -> list[Part] | None:
    """The recordings in a file whose header states where sound lies; None for formats that state nothing.

    Parameters
    ----------
    file : Bytes
    start : int
        Where the first header begins: behind tags.

    Raises
    ------
    AudioError
        The file ends before what its header claims.
    """
    head = file.at(start, HEAD)
    if head.startswith(b"fLaC"):
        return _flac(file, start)
    reader = next((reader for mark, reader in READERS.items() if head.startswith(mark)), None)
    if reader is None:
        return None
    parts = []
    while start < file.size:
        extent, stop = reader(file, start)
        if extent is not None and extent.length is not None and extent.start + extent.length > file.size:
            raise cut_off(file.name, *_amounts(extent, file.size))
        following = file.at(stop, 12)
        joined = following[:4] in SECOND and following[8:].startswith(SECOND[following[:4]])
        stop = stop if joined else file.size
        parts.append(Part(_filled_in(extent, start, stop)))
        start = stop
    return parts


def _amounts(extent: Extent, size: int) -> tuple[str, str]:
    assert extent.length is not None
    there = max(0, size - extent.start)
    if not extent.rate:
        return f"{extent.length} bytes of sound", f"{there} are there"
    return f"{extent.length / extent.rate:.2f} s", f"{there / extent.rate:.2f} s are there"


def _filled_in(extent: Extent | None, start: int, stop: int) -> tuple[bytes | tuple[int, int], ...]:
    """The bytes from `start` to `stop`, with the length of the sound in its place where it was left open."""
    if extent is None or extent.field is None or extent.length is not None:
        return ((start, stop),)
    position, layout, added = extent.field
    width = struct.calcsize(layout)
    length = min(max(0, stop - extent.start) + added, (1 << 8 * width) - 1)
    return ((start, position), struct.pack(layout, length), (position + width, stop))


# ---------------------------------------------------------------- chunks: WAV, RF64, W64, AIFF, 8SVX, CAF


def _chunks(file: Bytes, position: int, order: str) -> Iterator[tuple[bytes, int, int]]:
    """Name, position and size of each chunk of a file with names and sizes of 32 bits, up to what is none."""
    for _ in range(MAX_CHUNKS):
        name, found = file.at(position, 4), file.unpack(position + 4, f"{order}I")
        if found is None or not name.isascii() or not name.decode().isprintable():
            return
        yield name, position, found[0]
        position += 8 + found[0] + (found[0] & 1)


def _is_open(file: Bytes, start: int, length: int, marks: tuple[range, ...], order: str = "") -> bool:
    """Whether a length is a mark of "unknown"; 0 is one if sound, and not just further chunks, follows."""
    if length:
        return any(length in mark for mark in marks)
    end = start
    for _, position, size in _chunks(file, start, order) if order else ():
        end = position + 8 + size
    return not file.size - 1 <= end <= file.size + 1


def _riff(file: Bytes, start: int) -> tuple[Extent | None, int]:
    order = ">" if file.at(start, 4) == b"RIFX" else "<"
    rate, long, extent, stop = 0, None, None, file.size
    for name, position, size in _chunks(file, start + 12, order):
        if name == b"fmt ":
            rate = (file.unpack(position + 16, f"{order}I") or (0,))[0]
        elif name == b"ds64":
            long = position + 16, (file.unpack(position + 16, "<Q") or (0,))[0]
        elif name == b"data" and extent is None:
            begin, field, length, marks = position + 8, (position + 4, f"{order}I", 0), size, OPEN_32
            if long is not None and size == 0xFFFFFFFF:
                field, length, marks = (long[0], "<Q", 0), long[1], OPEN_64
            is_open = _is_open(file, begin, length, marks, order)
            extent = Extent(begin, None if is_open else length, field, rate)
            if is_open or field[0] != position + 4:  # sizes of 32 bits say nothing of where the next chunk is
                stop = file.size if is_open else begin + length + (length & 1)
                break
        elif extent is not None and name in SECOND:
            return extent, position
        if extent is not None:
            stop = position + 8 + size + (size & 1)
    return extent, stop


def _form(file: Bytes, start: int) -> tuple[Extent | None, int]:
    extent, stop = None, file.size
    for name, position, size in _chunks(file, start + 12, ">"):
        if name in (b"SSND", b"BODY") and extent is None:
            head = 8 if name == b"SSND" else 0  # an offset and a block size
            begin, length = position + 8 + head, max(0, size - head)
            is_open = _is_open(file, begin, size if length else 0, OPEN_32, ">")
            extent = Extent(begin, None if is_open else length, (position + 4, ">I", head))
            if is_open:
                return extent, file.size
        elif extent is not None and name in SECOND:
            return extent, position
        if extent is not None:
            stop = position + 8 + size + (size & 1)
    return extent, stop


def _w64(file: Bytes, start: int) -> tuple[Extent | None, int]:
    position, rate = start + 40, 0
    for _ in range(MAX_CHUNKS):
        name, found = file.at(position, 16), file.unpack(position + 16, "<Q")
        if found is None or name[4:] != W64_TAIL:
            break
        size, name = found[0], name[:4]
        if name == b"fmt ":
            rate = (file.unpack(position + 32, "<I") or (0,))[0]
        elif name == b"data":
            begin, length = position + 24, max(0, size - 24)
            length = None if _is_open(file, begin, length, OPEN_64) else length
            return Extent(begin, length, (position + 16, "<Q", 24), rate), file.size
        position += max(24, size + -size % 8)
    return None, file.size


def _caf(file: Bytes, start: int) -> tuple[Extent | None, int]:
    position = start + 8
    for _ in range(MAX_CHUNKS):
        name, found = file.at(position, 4), file.unpack(position + 4, ">Q")
        if found is None:
            break
        if name == b"data":
            is_open = _is_open(file, position + 12, found[0], OPEN_64)
            return Extent(position + 12, None if is_open else found[0], (position + 4, ">Q", 0)), file.size
        position += 12 + found[0]
    return None, file.size


# ---------------------------------------------------------------- one header: AU, VOC, NIST and older ones


def _au(file: Bytes, start: int) -> tuple[Extent | None, int]:
    order = ">" if file.at(start, 4) == b".snd" else "<"
    found = file.unpack(start + 4, f"{order}II")
    if found is None:
        return None, file.size
    begin, length = start + found[0], found[1]
    is_open = _is_open(file, begin, length, OPEN_32)
    return Extent(begin, None if is_open else length, (start + 8, f"{order}I", 0)), file.size


def _voc(file: Bytes, start: int) -> tuple[Extent | None, int]:
    position = start + (file.unpack(start + 20, "<H") or (0,))[0]
    for _ in range(MAX_CHUNKS):
        if (found := file.unpack(position, "<I")) is None or not found[0] & 0xFF:  # a type of 0 ends the blocks
            break
        size = found[0] >> 8
        if position + 4 + size > file.size:
            return Extent(position + 4, size), file.size
        position += 4 + size
    return None, file.size


def _nist(file: Bytes, start: int) -> tuple[Extent | None, int]:
    lines = file.at(start, 1024).decode("latin-1").splitlines()
    fields = {words[0]: words[2] for line in lines if len(words := line.split()) == 3}
    try:
        begin = int(lines[1])
        samples, channels, width = (int(fields[k]) for k in ("sample_count", "channel_count", "sample_n_bytes"))
    except (KeyError, ValueError, IndexError):
        return None, file.size
    rate = int(fields["sample_rate"]) if fields.get("sample_rate", "").isdecimal() else 0
    return Extent(start + begin, samples * channels * width, None, rate * channels * width), file.size


def _avr(file: Bytes, start: int) -> tuple[Extent | None, int]:
    found = file.unpack(start + 12, ">HHHHHII")  # stereo is -1
    if found is None:
        return None, file.size
    stereo, bits, frames = found[0], found[1], found[6]
    return Extent(start + 128, frames * (1 + (stereo > 0)) * bits // 8), file.size


def _mpc2k(file: Bytes, start: int) -> tuple[Extent | None, int]:
    channels, frames = file.unpack(start + 21, "<B"), file.unpack(start + 30, "<I")
    if channels is None or frames is None:
        return None, file.size
    return Extent(start + 42, frames[0] * 2 * (1 + (channels[0] > 0))), file.size


def _wve(file: Bytes, start: int) -> tuple[Extent | None, int]:
    return Extent(start + 32, (file.unpack(start + 18, ">I") or (0,))[0]), file.size


def _mat4(file: Bytes, start: int) -> tuple[Extent | None, int]:
    order, position = "<" if file.at(start, 4) == bytes(4) else ">", start
    while (found := file.unpack(position, f"{order}5I")) is not None and found[1] * found[2]:
        kind, rows, columns, imaginary, name = found
        begin = position + 20 + name
        width = MAT4_BYTES[min(kind // 10 % 10, len(MAT4_BYTES) - 1)]
        length = rows * columns * width * (1 + (imaginary > 0))
        if begin + length > file.size:
            return Extent(begin, length), file.size
        position = begin + length
    return None, file.size


def _mat5(file: Bytes, start: int) -> tuple[Extent | None, int]:
    order = "<" if file.at(start + 126, 2) == b"IM" else ">"
    position = start + 128
    while (found := file.unpack(position, f"{order}II")) is not None and found[1]:
        if position + found[1] > file.size:  # libsndfile counts these eight bytes, too
            return Extent(position, found[1]), file.size
        position += 8 + found[1]
    return None, file.size


def _sds(file: Bytes, start: int) -> tuple[Extent | None, int]:
    found = file.unpack(start + 6, "<B3x3B")
    if found is None:
        return None, file.size
    bits, *sevens = found
    a_block = 120 // max(1, -(-bits // 7))  # words of seven bits a byte
    return Extent(start + 21, -(-(sevens[0] | sevens[1] << 7 | sevens[2] << 14) // a_block) * 127), file.size


def _flac(file: Bytes, start: int) -> list[Part]:
    parts = []
    while start < file.size:
        stop = file.find(FLAC_START, start + 1)
        parts.append(Part(((start, stop),)))
        start = stop
    return parts


Reader = Callable[[Bytes, int], tuple[Extent | None, int]]
READERS: dict[bytes, Reader] = {
    b"RIFF": _riff, b"RIFX": _riff, b"RF64": _riff, b"FORM": _form, b"riff": _w64, b"caff": _caf, b".snd": _au,
    b"dns.": _au, b"Creative Voice File\x1a": _voc, b"NIST_1A": _nist, b"2BIT": _avr, b"\x01\x04": _mpc2k,
    b"ALawSoundFile**": _wve, b"\xf0\x7e": _sds, b"MATLAB 5.0 MAT-file": _mat5, b"\0\0\0\0": _mat4,
    b"\0\0\x03\xe8": _mat4,
}  # fmt: skip
