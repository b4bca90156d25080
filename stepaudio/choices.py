"""Every choice that has names, spelled once: `--help`, widgets, errors and code take the names from here.

Members are strings, so that `CacheKind.SINKS == "sinks"`, in JSON too.
"""

from __future__ import annotations

from difflib import get_close_matches
from enum import StrEnum
from typing import Self, cast

from .errors import DecodeError

MAX_COUNT = 2**31 - 1


class Choice(StrEnum):
    """A closed set of names."""

    def __repr__(self) -> str:
        return repr(str(self))

    @classmethod
    def of(cls, value: object, what: str) -> Self:
        """The member that a word names; `what` opens the message of the `DecodeError` for any other value."""
        if isinstance(value, str) and value in cls.values():
            return cls(value)
        raise DecodeError(
            f"{what}: expected {alternatives(cls.values())}, found {shown(value)}{hint(value, cls.values())}"
        )

    @classmethod
    def values(cls) -> tuple[str, ...]:
        """All names, in the order of their definition."""
        return tuple(member.value for member in cls)


class CacheKind(Choice):
    """What a key/value cache keeps once its limit is reached; see `models.kv_cache.CachePolicy`."""

    FULL = "full"
    WINDOW = "window"
    SINKS = "sinks"
    PINNED = "pinned"


class Positions(Choice):
    """Where a cached key stands: where it was read, or at its rank among the keys still held."""

    ABSOLUTE = "absolute"
    REINDEXED = "reindexed"

    @classmethod
    def of(cls, value: object, what: str) -> Self:
        """As `Choice.of`; "renumbered", an earlier name, still means re-indexed."""
        return super().of("reindexed" if value == "renumbered" else value, what)


class LoopAction(Choice):
    """What is done once the newest tokens form a repetition loop.

    OFF does not look for one; REPORT notes it in the result; STOP ends the run; ESCAPE is the adaptive penalty: from
    there on stronger penalties apply, and the run ends if the loop goes on all the same.
    """

    OFF = "off"
    REPORT = "report"
    STOP = "stop"
    ESCAPE = "escape"


class Speculation(Choice):
    """Who proposes tokens that the decoder then checks several at a time; see `decoding.speculative`.

    LOOKUP repeats what followed the same tokens before; DRAFT asks a second, smaller model.
    """

    OFF = "off"
    LOOKUP = "lookup"
    DRAFT = "draft"


class Against(Choice):
    """What a model's logits are contrasted with; see `decoding.sampling.Contrast`.

    SILENCE, NOISE and SHIFT are the same model on altered audio, LAYERS are its own earlier layers.
    """

    SILENCE = "silence"
    NOISE = "noise"
    SHIFT = "shift"
    LAYERS = "layers"


class SpeechDetector(Choice):
    """What finds the silence that is not decoded; see `audio.vad`. OFF decodes everything."""

    ENERGY = "energy"
    SILERO = "silero"
    OFF = "off"


class Resampler(Choice):
    """What brings a recording to the model's rate: the library soxr, or the kernel of the reference (torchaudio's)."""

    SOXR = "soxr"
    REFERENCE = "reference"


class QuantizationMode(Choice):
    """How weights of fewer bits are held, as MLX has it; see `models.quantization.Bits`."""

    AFFINE = "affine"
    MXFP4 = "mxfp4"
    MXFP8 = "mxfp8"
    NVFP4 = "nvfp4"


class StopReason(Choice):
    """Why a run ended; SILENCE is for audio that was not decoded, because no speech was found in it."""

    EOS = "eos"
    LENGTH = "length"
    STOP_STRING = "stop string"
    LOOP = "loop"
    SILENCE = "silence"


def alternatives(names: tuple[str, ...]) -> str:
    """Names as a sentence lists them.

    >>> alternatives(("full", "window", "sinks"))
    'full, window or sinks'
    """
    return " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def hint(found: object, names) -> str:
    """What to append to a message about an unknown name: "; did you mean 'sinks'?", or nothing if none is close."""
    close = get_close_matches(found, list(names), 1) if isinstance(found, str) else []
    return f"; did you mean {close[0]!r}?" if close else ""


def is_whole(value: object) -> bool:
    """Whether a value is a whole number; `True` and `False` are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_count(value: object, least: int = 0) -> bool:
    """Whether a value is a whole number from `least` to `MAX_COUNT`, which int32 on the device still holds."""
    return is_whole(value) and least <= cast(int, value) <= MAX_COUNT


def shown(value: object) -> str:
    """A value as a message shows it: on one line, however long it is."""
    if is_whole(value) and abs(cast(int, value)) >= 10**40:
        return "a number of more than 40 digits"
    return f"{value!r:.80}"


def is_number(value: object) -> bool:
    """Whether a value is a real number; `True` and `False` are not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


class EditKind(Choice):
    """How an activation is changed; see `interp.edits`."""

    REPLACE = "replace"
    ZERO = "zero"
    MEAN = "mean"
    ADD = "add"
    SCALE = "scale"
    PATCH = "patch"
    RESAMPLE = "resample"


class Measure(Choice):
    """What is measured of an edited run; see `interp.patching`."""

    LOGIT_DIFFERENCE = "logit_difference"
    PROBABILITY = "probability"
    LOOP = "loop"
    WER = "wer"
