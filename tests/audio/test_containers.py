"""Files cut off anywhere, left open by their writer, joined, or with rubbish behind: the number of samples is known."""

import io
import struct

import numpy as np
import pytest
import soundfile as sf

from stepaudio.audio.load import audio_seconds, load_audio
from stepaudio.audio.mpeg import frame_of
from stepaudio.errors import AudioError

RATE, N = 16_000, 8000
SOUND = np.cumsum(np.random.default_rng(0).normal(0, 0.01, N)).astype(np.float32)
SOUND *= 0.5 / np.abs(SOUND).max()
RATES = {"WVE": 8000, "XI": 44_100}  # the only ones of these
NO_LENGTH = {"PAF", "PVF", "IRCAM", "XI"}  # their headers, as libsndfile writes them, do not say how long they are
UNREAD = {"RAW", "SD2"}  # no header; a second file
CASES = [(f, s) for f in sf.available_formats() for s in sf.available_subtypes(f) if f not in UNREAD]


def encoded(form, subtype=None, samples=SOUND, rate=RATE, **more) -> bytes:
    out = io.BytesIO()
    sf.write(out, samples, RATES.get(form, rate), format=form, subtype=subtype, **more)
    return out.getvalue()


@pytest.mark.parametrize("form", sorted({form for form, _ in CASES}))
def test_a_file_cut_anywhere_is_refused_or_read_to_the_last_packet(form):
    for subtype in (s for f, s in CASES if f == form):
        try:
            data = encoded(form, subtype)
        except sf.LibsndfileError:
            continue  # not at this rate
        rate, packet = sf.info(io.BytesIO(data)).samplerate, 576 if form == "MP3" else 1  # a voc rounds the rate
        want = len(load_audio(data, to=rate))
        assert N <= want <= N + 1024, (form, subtype)
        shares = np.random.default_rng(len(data)).uniform(0, 1, 4)
        for cut in {len(data) - 1, len(data) - 3, len(data) // 2, *(int(len(data) * share) for share in shares)}:
            try:
                found = len(load_audio(data[:cut], to=rate))
            except AudioError as error:
                assert len(str(error)) < 1000 and "\n" not in str(error)
                continue
            right = want * cut / len(data) - 2048 if form in NO_LENGTH else want - packet
            assert found >= right, f"{form} {subtype}: {cut} of {len(data)} bytes gave {found} of {want} samples"


@pytest.mark.parametrize("form", ["WAV", "AIFF", "AU", "W64", "RF64", "CAF", "OGG", "MP3"])
def test_what_is_cut_off_says_so(form):
    data = encoded(form, samples=np.tile(SOUND, 4))
    with pytest.raises(AudioError, match=r"bytes: is (cut off: its header claims .* there|.*malformed)"):
        load_audio(data[: len(data) // 2])


def test_the_lengths_of_a_cut_file_are_told():
    data = encoded("WAV")
    with pytest.raises(AudioError, match=r"claims 0.50 s, 0.25 s are there; fetch .* ffmpeg -i FILE rest.wav"):
        load_audio(data[: 44 + N])


# ---- lengths that a writer left open ----


def with_field(data: bytes, mark: bytes, offset: int, layout: str, *values) -> bytes:
    at = data.index(mark) + offset
    return data[:at] + struct.pack(layout, *values) + data[at + struct.calcsize(layout) :]


OPEN = [0, 0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000, 0x80000000, 0xFFFFFFDB]
OPEN_FIELDS = [
    *(("WAV", b"data", 4, "<I", size) for size in OPEN),
    *(("WAVEX", b"data", 4, "<I", size) for size in OPEN[:2]),
    *(("AIFF", b"SSND", 4, ">I", size) for size in (*OPEN[:4], 8)),
    *(("AU", b".snd", 8, ">I", size) for size in OPEN[:2]),
    *(("RF64", b"ds64", 16, "<Q", size) for size in (0, 2**64 - 1)),
    *(("W64", b"data", 16, "<Q", size) for size in (0, 24, 2**64 - 1, 2**63 - 1)),
    ("CAF", b"data", 4, ">Q", 2**64 - 1),
]


@pytest.mark.parametrize(("form", "mark", "offset", "layout", "size"), OPEN_FIELDS)
def test_a_length_that_was_left_open_means_to_the_end(form, mark, offset, layout, size):
    data = encoded(form)
    left_open = with_field(data, mark, offset, layout, size)
    assert np.array_equal(load_audio(left_open), load_audio(data)) and audio_seconds(left_open) == N / RATE
    assert len(load_audio(left_open[:-2000])) == N - 1000


def test_a_recorder_without_power_leaves_both_sizes_of_the_empty_file():
    data = with_field(with_field(encoded("WAV"), b"RIFF", 4, "<I", 36), b"data", 4, "<I", 0)
    assert len(load_audio(data)) == N


def test_an_empty_file_is_empty_whatever_follows():
    empty = encoded("WAV", samples=SOUND[:0]) + b"LIST" + struct.pack("<I", 4) + b"INFO"
    with pytest.raises(AudioError, match="holds no samples"):
        load_audio(empty)


def test_nothing_but_small_chunks_is_no_work_for_ever():
    with pytest.raises(AudioError):
        load_audio(b"RIFF\xff\xff\xff\xffWAVE" + b"junk\0\0\0\0" * 1_000_000)
    with pytest.raises(AudioError):
        load_audio(bytes(4_000_000))


# ---- what follows, and what was joined ----

TAG = b"TAG" + b"x" * 125
ID3 = b"ID3\4\0\0\0\0\x20\x00" + bytes(4096)
LIST = b"LIST" + struct.pack("<I", 4) + b"INFO"


@pytest.mark.parametrize(
    ("form", "rest"),
    [(form, rest) for form in ("WAV", "AIFF", "FLAC", "OGG", "MP3", "AU") for rest in (TAG, ID3, b"\0", bytes(999))]
    + [("WAV", LIST), ("WAV", LIST + TAG)],
)
def test_tags_and_rubbish_behind_change_nothing(form, rest):
    data = encoded(form)
    if form == "AU":
        assert len(load_audio(data + rest)) == N
    assert np.array_equal(load_audio(data + rest), load_audio(data))


@pytest.mark.parametrize("form", ["FLAC", "MP3", "WAV"])
def test_a_tag_in_front_changes_nothing(form):
    assert np.array_equal(load_audio(ID3 + ID3 + encoded(form)), load_audio(encoded(form)))


JOINED = [("WAV", None), ("AIFF", None), ("FLAC", None), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", None)]


@pytest.mark.parametrize(
    ("form", "subtype", "between"),
    [(*joined, b"") for joined in JOINED] + [(f, None, tag) for f in ("MP3", "FLAC") for tag in (TAG, ID3)],
)
def test_every_part_of_joined_files_is_read(form, subtype, between):
    """What libsndfile reads from each file alone, in a row."""
    first, second = encoded(form, subtype), encoded(form, subtype, samples=SOUND[::-1].copy())
    want = np.concatenate([sf.read(io.BytesIO(data), dtype="float32")[0] for data in (first, second, first)])
    found = load_audio(first + between + second + between + first)
    assert len(found) == len(want) and np.abs(found - want).max() < 1e-4
    assert audio_seconds(first + second + first) == len(want) / RATE
    with pytest.raises(AudioError):
        load_audio(first + second[: len(second) // 2])


@pytest.mark.parametrize("form", ["WAV", "FLAC", "OGG", "MP3"])
def test_joined_files_of_two_forms_are_named(form):
    faster = encoded(form, samples=np.repeat(SOUND, 2), rate=2 * RATE)
    with pytest.raises(AudioError, match="2 recordings.*number 2 has 1 channels at 32000 Hz, the first 1 at 16000 Hz"):
        load_audio(encoded(form) + faster)
    stereo = encoded(form, samples=np.stack([SOUND, SOUND], axis=1))
    with pytest.raises(AudioError, match="number 2 has 2 channels at 16000 Hz"):
        load_audio(encoded(form) + stereo)


def test_a_damaged_ogg_page_is_no_silent_gap():
    data = bytearray(encoded("OGG", samples=np.tile(SOUND, 8)))
    data[len(data) // 2] ^= 1
    with pytest.raises(AudioError, match="page is damaged or missing at byte"):
        load_audio(bytes(data))


# ---- MP3 without a count of its frames ----


def without_count(data: bytes) -> bytes:
    frame = frame_of(data[:4])
    assert (frame is not None and b"Xing" in data[: frame.size]) or b"Info" in data[: frame.size]
    return data[frame.size :]


@pytest.mark.parametrize("rate", [8000, 22_050, 44_100, 48_000])
@pytest.mark.parametrize("channels", [1, 2])
def test_an_mp3_without_a_count_is_read_to_its_end(rate, channels):
    """Quiet at first, loud then: the bit rate of the beginning says little of the length."""
    samples = np.concatenate([SOUND * 1e-4, np.random.default_rng(1).uniform(-0.9, 0.9, 4 * N)])
    data = encoded("MP3", samples=np.stack([samples] * channels, axis=1), rate=rate, bitrate_mode="VARIABLE")
    frame = frame_of(data[:4])
    counted, uncounted = len(load_audio(data, to=rate)), len(load_audio(without_count(data), to=rate))
    assert counted == len(samples) and 0 <= uncounted - counted <= 4 * frame.samples
    assert audio_seconds(without_count(data)) == pytest.approx(uncounted / rate, abs=2 * frame.samples / rate)
    joined = load_audio(without_count(data) * 2, to=rate)
    assert abs(len(joined) - 2 * uncounted) <= 2 * frame.samples


def test_a_count_that_is_too_small_is_not_believed():
    data = with_field(encoded("MP3", bitrate_mode="VARIABLE"), b"Xing", 8, ">I", 3)
    assert len(load_audio(data)) >= N


# ---- bombs ----


def test_hours_in_a_small_file_are_refused_before_they_fill_the_memory(monkeypatch):
    monkeypatch.setattr("stepaudio.audio.load.FREE_BYTES", 1 << 16)
    silent = encoded("FLAC", samples=np.zeros(60 * RATE, np.float32))
    unknown = bytearray(silent)
    unknown[21] &= 0xF0  # 36 bits of total samples, zero means unknown
    unknown[22:26] = bytes(4)
    for data in (silent, bytes(unknown)):
        with pytest.raises(AudioError, match=r"h or more in a file of \d+ bytes would take over 1000 times its size"):
            load_audio(data)
    assert len(load_audio(encoded("FLAC", samples=np.tile(SOUND, 10)))) == 10 * N
