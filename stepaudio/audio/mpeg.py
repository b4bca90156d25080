"""MPEG audio (MP3) frame by frame: where frames are, how many, and what the first one says of that.

A decoder that finds no count of frames guesses the length from the size of the file, and reads no further: of a file
of variable bit rate, as encoders write it into a pipe, most may be lost. Frames are counted here, and where the file
lacks a right count, a frame that states it is put in front.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from .containers import BLOCK, Bytes, Part, cut_off

RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}  # by version
BIT_RATES = {  # kbit/s, by whether the version is 1, and layer
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
COUNTS = (b"Xing", b"Info")
BEHIND = (b"TAG", b"APETAGEX", b"LYRICSBE", b"ID3", b"\0")  # what may follow the last frame: tags, padding


@dataclass(frozen=True)
class Frame:
    """What four bytes say: format, size in bytes, samples a channel."""

    version: int
    layer: int
    rate: int
    channels: int
    size: int
    samples: int

    @property
    def kind(self) -> tuple[int, int, int, int]:
        """What no encoder changes on the way."""
        return self.version, self.layer, self.rate, self.channels


@dataclass
class _Run:
    """Frames of one encoder: those that follow a count, or that have the same kind."""

    first: Frame
    head: bytes
    start: int
    stated: int | None
    spans: list[tuple[int, int]] = field(default_factory=list)
    n_frames: int = 0
    torn: bool = False  # the file ends inside a frame

    def add(self, start: int, stop: int) -> None:
        if self.spans and self.spans[-1][1] == start:
            self.spans[-1] = self.spans[-1][0], stop
        else:
            self.spans.append((start, stop))


def frame_of(head: bytes) -> Frame | None:
    """The frame that begins with these four bytes; None if none does, or one of unstated ("free") bit rate."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    version, layer = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3)
    bits, rate, padding = head[2] >> 4, head[2] >> 2 & 3, head[2] >> 1 & 1
    if version == 1 or layer == 4 or bits in (0, 15) or rate == 3:
        return None
    first, hz = version == 3, RATES[version][rate]
    kbits = BIT_RATES[first, layer][bits - 1]
    if layer == 1:
        size, samples = (12_000 * kbits // hz + padding) * 4, 384
    else:
        samples = 1152 if layer == 2 or first else 576
        size = samples // 8 * 1000 * kbits // hz + padding
    return Frame(version, layer, hz, 1 if head[3] >> 6 == 3 else 2, size, samples)


def is_mpeg(head: bytes) -> bool:
    """Whether a file that begins so is for a decoder of MPEG audio, layers I to III (AAC has layer 0)."""
    return len(head) >= 4 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0 and bool(head[1] & 0x06)


def mpeg_parts(file: Bytes, start: int) -> list[Part] | None:
    """The recordings in an MP3 file: one, or as many as were joined. None if there are no frames at `start`.

    Raises
    ------
    AudioError
        Frames are missing that the first one counted.
    """
    runs = _runs(file, start)
    return [_part(file, run) for run in runs] or None


def _runs(file: Bytes, start: int) -> list[_Run]:
    runs: list[_Run] = []
    position, base, block = start, start, b""
    while position + 4 <= file.size and (runs or position == start):  # other formats hold what looks like frames
        if (position - base + 2048 > len(block) and base + len(block) < file.size) or not block:
            base, block = position, file.at(position, BLOCK)
        at = position - base
        frame = _known(block[at : at + 4])
        run = runs[-1] if runs else None
        if frame is None or position + frame.size > file.size:
            if frame is not None and run is not None and run.spans[-1][1] == position and frame.kind == run.first.kind:
                run.torn = True
            position = _next(file, block, base, position)
            continue
        new = run is None or frame.kind != run.first.kind
        if new or run is None or run.spans[-1][1] != position:  # after rubbish one frame alone may be chance
            after = _known(file.at(position + frame.size, 4))
            end = file.size - position - frame.size < 4
            if not end and (after is None or after.kind != frame.kind):
                position = _next(file, block, base, position)
                continue
        stated = _stated(block[at : at + 192], frame)
        if new or stated is not None:
            run = _Run(frame, block[at : at + 4], position, stated)
            runs.append(run)
        assert run is not None
        run.n_frames += stated is None
        run.add(position, position + frame.size)
        position += frame.size
    return [run for run in runs if run.n_frames]


_FRAMES: dict[bytes, Frame | None] = {}


def _known(head: bytes) -> Frame | None:
    """`frame_of`, with what was seen before remembered: a file has few kinds of heads."""
    if head not in _FRAMES:
        if len(_FRAMES) > 1 << 16:
            _FRAMES.clear()
        _FRAMES[head] = frame_of(head)
    return _FRAMES[head]


def _next(file: Bytes, block: bytes, base: int, position: int) -> int:
    """Where a frame may begin after `position`, past a tag that stands there."""
    at = position - base
    if block.startswith(b"ID3", at):
        return position + tag_size(block[at : at + 10])
    found = block.find(b"\xff", at + 1)
    return base + (len(block) if found < 0 else found)


def tag_size(head: bytes) -> int:
    """Bytes of the ID3v2 tag that begins with these ten; 1 if it is none."""
    if len(head) < 10 or not head.startswith(b"ID3") or any(b & 0x80 for b in head[6:]):
        return 1
    size = head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]
    return 10 + size + (10 if head[5] & 0x10 else 0)


def _stated(frame_bytes: bytes, frame: Frame) -> int | None:
    """How many frames follow, by a frame that holds that count instead of sound; 0 if it holds none."""
    if frame.layer != 3:
        return None
    if frame_bytes[36:40] == b"VBRI":
        return int.from_bytes(frame_bytes[50:54], "big")
    at = _count_at(frame)
    if frame_bytes[at : at + 4] not in COUNTS:
        return None
    return int.from_bytes(frame_bytes[at + 8 : at + 12], "big") if frame_bytes[at + 7] & 1 else 0


def _count_at(frame: Frame) -> int:
    """Where a count stands in a frame: after the head and what says how the sound is coded."""
    return 4 + ((17 if frame.channels == 1 else 32) if frame.version == 3 else (9 if frame.channels == 1 else 17))


def _part(file: Bytes, run: _Run) -> Part:
    frame, n = run.first, run.n_frames
    seconds = frame.samples / frame.rate
    if run.stated and n < run.stated - _may_be_whole(file, run):  # some encoders count the frame of the count
        raise cut_off(file.name, f"{run.stated * seconds:.2f} s", f"{n * seconds:.2f} s are there")
    if run.stated and n <= run.stated + 1:
        return Part(tuple(run.spans), packet=frame.samples)
    spans = run.spans
    if run.stated is not None:  # a count that is wrong: its frame goes
        first = frame.size
        spans = [(spans[0][0] + first, spans[0][1]), *spans[1:]]
    if frame.layer != 3:
        return Part(tuple(spans), n * frame.samples, 2 * frame.samples)
    return Part((_counting(run.head, frame, n), *spans), n * frame.samples, 2 * frame.samples)


def _may_be_whole(file: Bytes, run: _Run) -> bool:
    """Whether nothing speaks against it: no gap, behind the frames a tag or another recording, no byte too few."""
    (start, end), behind, head = run.spans[0], file.at(run.spans[0][1], 8), file.at(run.start, 192)
    at = _count_at(run.first)
    n_bytes = int.from_bytes(head[at + 12 : at + 16], "big") if head[at : at + 4] in COUNTS and head[at + 7] & 2 else 0
    ended = not behind or behind.startswith(BEHIND) or _known(behind[:4]) is not None
    return not run.torn and len(run.spans) == 1 and ended and end - start >= n_bytes


def _counting(head: bytes, frame: Frame, n_frames: int) -> bytes:
    """A frame that says how many follow, of the kind of `frame`."""
    heads = (bytes((head[0], head[1] | 1, bits << 4 | head[2] & 0x0C, head[3])) for bits in range(1, 15))
    at = _count_at(frame)
    changed, size = next((h, f.size) for h in heads if (f := frame_of(h)) and f.size >= at + 12)
    return (changed + bytes(at - 4) + COUNTS[0] + struct.pack(">II", 1, n_frames)).ljust(size, b"\0")
