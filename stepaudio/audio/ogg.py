"""Ogg files page by page: whether the last page is there, whether all are sound, and where joined recordings part.

Ogg states no length in front: a stream is whole if the last of its pages is marked so. One recording after another in
the same file (a chained stream) is allowed, and decoders read the first alone.
"""

from __future__ import annotations

import zlib

from ..errors import AudioError
from .containers import Bytes, Part, cut_off

MARK = b"OggS"
HEADER = 27  # bytes, before the table of segments
FIRST, LAST = 2, 4  # flags
REVERSED = bytes(int(f"{i:08b}"[::-1], 2) for i in range(256))


def ogg_parts(file: Bytes, start: int) -> list[Part]:
    """The recordings of an Ogg file.

    Raises
    ------
    AudioError
        A page is damaged or missing, or the last page of a stream is not there.
    """
    parts, begin, position = [], start, start
    following: dict[int, int] = {}  # stream -> number of its next page, while it goes on
    while position < file.size:
        page = _page(file, position)
        if page is None:
            found = file.find(MARK, position + 1)
            if found < file.size or following or file.at(position, 4) == MARK:
                raise _lost(file, position, "last" if found == file.size else "next")
            break  # what follows the last page is no Ogg: tags, or rubbish
        flags, stream, number = page[5], int.from_bytes(page[14:18], "little"), int.from_bytes(page[18:22], "little")
        if flags & FIRST and stream not in following:
            if not following and position > begin:
                parts.append(Part(((begin, position),)))
                begin = position
        elif following.get(stream, number) != number:
            raise _lost(file, position, "next")
        following[stream] = number + 1
        if flags & LAST:
            del following[stream]
        position += len(page)
    if following:
        raise _lost(file, position, "last")
    return [*parts, Part(((begin, position),))]


def _page(file: Bytes, position: int) -> bytes | None:
    """The whole page at `position`, or None where there is none, or none that agrees with its checksum."""
    header = file.at(position, HEADER + 255)
    if len(header) < HEADER or not header.startswith(MARK):
        return None
    n_segments = header[HEADER - 1]
    size = HEADER + n_segments + sum(header[HEADER : HEADER + n_segments])
    page = file.at(position, size)
    stated = int.from_bytes(page[22:26], "little")
    return page if len(page) == size and _checksum(page[:22] + bytes(4) + page[26:]) == stated else None


def _checksum(page: bytes) -> int:
    """CRC-32 of polynomial 0x04c11db7, highest bit first, from 0: zlib's, of the bits in reverse."""
    found = zlib.crc32(page.translate(REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{found:032b}"[::-1], 2)


def _lost(file: Bytes, position: int, which: str) -> AudioError:
    if which == "last":
        return cut_off(file.name, "a last page", f"{position} bytes on there is none")
    return AudioError(f"{file.name}: an Ogg page is damaged or missing at byte {position}; fetch or export it again")
