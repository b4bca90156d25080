"""A voice: what token2wav needs to know of a person, read once from a short clip and then only passed on.

P codes at 25/s, two mel frames per code, M mel bands, E numbers of a speaker vector. A voice is immutable and named by
its content, so any number of them can be used side by side.

Reference: `_prepare_prompt` of StepFun's `token2wav.py`. It reads channel 0 for codes and speaker and the mean of the
channels for the mel, and so does this.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np

from ..audio.features import FLOW_SAMPLE_RATE, flow_mel, kaldi_fbank, log_mel
from ..audio.load import audio_seconds, load_with_doubt
from ..audio.segment import is_silent
from ..audio.sources import is_file, open_bytes, source_name
from ..checkpoints.header import listed, read_header
from ..checkpoints.layout import parameters_of
from ..checkpoints.tensors import lazy_arrays_with_metadata
from ..checkpoints.token2wav import Token2Wav
from ..choices import Resampler
from ..constants import N_AUDIO_CODES, SAMPLE_RATE
from ..errors import AudioError, WeightsError
from ..files import replaced_file
from ..models.tap import Tap, named
from ..models.token2wav.flow import Prompt
from ..resources import VOICES, voice_clip
from ..schema import shown

FORMAT = "stepaudio voice 1"
DTYPES = {"codes": np.dtype(np.int32), "mel": np.dtype(np.float32), "speaker": np.dtype(np.float32)}
SUFFIX = ".safetensors"  # by which a saved voice is told from a clip, in capitals too
MAX_LOG = 100.0  # of a natural log of a mel band: sound has -12 to 12
MAX_SPEAKER = 1e6  # of a number of a speaker vector
SHORT_SECONDS = 1.0  # below it a voice is made with a warning
ONE_CHANNEL = "give the channel in which one person speaks, as a mono clip"
MAX_SECONDS = 30.0  # one window of the speech tokenizer; attention over the prompt grows with its square


@dataclass(frozen=True, eq=False)
class Voice:
    """What makes speech sound like one person. Equal to another if its content is; usable as a key.

    Parameters
    ----------
    codes : array (P,), int32
        What the speech tokenizer makes of the clip.
    mel : array (frames, M), float32
        Natural log, as many frames per code as the flow makes.
    speaker : array (E,), float32
        Speaker embedding, not normalised.
    weights : str
        Fingerprint of the nets that made it.

    All three arrays are copied, and the copies are read-only.
    """

    codes: np.ndarray
    mel: np.ndarray
    speaker: np.ndarray
    weights: str

    def __post_init__(self):
        for name, dtype in DTYPES.items():
            array = np.array(getattr(self, name), dtype, order="C")  # a copy, which nobody else can write to
            array.flags.writeable = False
            object.__setattr__(self, name, array)
        self._require_sound()

    def _require_sound(self) -> None:
        """Refuse with `WeightsError` arrays that no clip gives."""
        codes, mel, speaker = self.codes, self.mel, self.speaker
        shaped = codes.ndim == speaker.ndim == 1 and mel.ndim == 2 and mel.shape[1] > 0 and len(speaker) > 0
        if not shaped or len(codes) == 0 or len(mel) == 0 or len(mel) % len(codes):
            raise WeightsError(
                "a voice needs codes (P,), as many mel frames (frames, M) for each, and a speaker vector (E,); found "
                f"shapes {codes.shape}, {mel.shape} and {speaker.shape}"
            )
        if codes.min() < 0 or codes.max() >= N_AUDIO_CODES:
            raise WeightsError(f"a voice has codes 0…{N_AUDIO_CODES - 1}, found {codes.min()}…{codes.max()}")
        for name, array, most in (("mel", mel, MAX_LOG), ("speaker", speaker, MAX_SPEAKER)):
            if not (np.abs(array) <= most).all():  # NaN is below nothing
                raise WeightsError(
                    f"a voice's {name} lies within ±{most:g}, found NaN, Inf or more: make the voice again"
                )

    @property
    def key(self) -> str:
        """SHA-256 of the content, in hexadecimal."""
        return _key({name: getattr(self, name) for name in DTYPES}, self.weights)

    def __eq__(self, other) -> bool:
        return isinstance(other, Voice) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def __repr__(self) -> str:
        return f"Voice({len(self.codes)} codes, {self.key[:12]})"

    @property
    def prompt(self) -> Prompt:
        """The voice as the flow takes it, a batch of one."""
        return Prompt(self.codes[None], mx.array(self.mel)[None], mx.array(self.speaker)[None])

    @classmethod
    def from_clip(
        cls,
        parts: Token2Wav,
        source,
        *,
        sample_rate: float | None = None,
        resampler: str = Resampler.REFERENCE,
        max_seconds: float = MAX_SECONDS,
        weights: str | None = None,
        tap: Tap | None = None,
    ) -> Voice:
        """Read a voice from a recording of one person, best of 3 to 10 s.

        The mel is shortened, or its last frame repeated, to the frames of the codes, as in the reference.

        Parameters
        ----------
        parts : Token2Wav
            The nets.
        source, sample_rate, resampler, max_seconds
            As `clip_features`.
        weights : str, optional
            `fingerprint(parts)`, if the caller has it already.
        tap : Tap, optional
            Called with what both nets compute, as "speech_tokenizer.<name>" and "speaker_encoder.<name>"; what it
            returns takes the place of what it was given, and the voice is that of the nets so changed.

        Raises
        ------
        AudioError
            As `clip_features`.
        WeightsError
            The speaker encoder gives NaN or Inf.
        """
        features = clip_features(parts, source, sample_rate=sample_rate, resampler=resampler, max_seconds=max_seconds)
        return cls.of_features(parts, features, weights, tap)

    @classmethod
    def of_features(
        cls, parts: Token2Wav, features: ClipFeatures, weights: str | None = None, tap: Tap | None = None
    ) -> Voice:
        """The voice of a clip that is read; arguments and errors as `from_clip`."""
        mel, bands = features.log_mel[None], mx.array(features.bands)[None]
        codes = parts.tokenizer(mel, tap=named(tap, "speech_tokenizer."))[0]
        speaker = np.array(parts.speaker(bands, named(tap, "speaker_encoder."))[0].astype(mx.float32))
        if not np.isfinite(speaker).all():
            raise WeightsError(f"{features.name}: the speaker encoder gives NaN or Inf; are its weights whole?")
        mel = fitted(features.mel, len(codes) * parts.flow.up)
        return cls(codes, mel, speaker, fingerprint(parts) if weights is None else weights)

    def save(self, path: str | os.PathLike) -> None:
        """Write one safetensors file, whole or not at all.

        Raises `WeightsError` for a name that does not end in ".safetensors", by which a voice is known when it is
        opened again, and where it cannot be written.
        """
        path = Path(path)
        if not _is_saved(path):
            raise WeightsError(f"{path}: expected a name that ends in {SUFFIX}, so that it is opened as a voice again")
        arrays = {name: mx.array(getattr(self, name)) for name in DTYPES}
        try:
            with replaced_file(path) as aside, aside.open("wb") as stream:  # to a name MLX would add its own suffix
                mx.save_safetensors(stream, arrays, {"format": FORMAT, "weights": self.weights, "key": self.key})
        except (OSError, RuntimeError) as error:
            raise WeightsError(f"{path}: the voice cannot be written ({' '.join(str(error).split())})") from None

    @classmethod
    def load(cls, path: str | os.PathLike, parts: Token2Wav | None = None, *, weights: str | None = None) -> Voice:
        """Read what `save` wrote.

        Parameters
        ----------
        path : str or os.PathLike
            The file.
        parts, weights : Token2Wav, str
            The nets that are to speak, or their fingerprint; without either it is not compared.

        Raises
        ------
        WeightsError
            Missing, not a voice, damaged, or made by other weights: the codes would mean other sounds.
        """
        path = Path(path)
        header = read_header(path)
        stored = {name: (info.dtype, len(info.shape)) for name, info in header.items()}
        if stored != {"codes": ("I32", 1), "mel": ("F32", 2), "speaker": ("F32", 1)}:
            raise WeightsError(f"{path}: not a voice; expected codes, mel and speaker, found {listed(sorted(stored))}")
        try:
            arrays, metadata = lazy_arrays_with_metadata(path)
            values = {name: np.array(arrays[name]) for name in DTYPES}
        except (OSError, RuntimeError, ValueError) as error:
            raise WeightsError(f"{path}: cannot be read ({error})") from None
        if metadata.get("format") != FORMAT:
            raise WeightsError(f"{path}: expected the format {FORMAT!r}, found {shown(metadata.get('format'))}")
        made_by = metadata.get("weights", "")
        if _key(values, made_by) != metadata.get("key"):
            raise WeightsError(f"{path}: is damaged: its content is not what was saved; make the voice again")
        try:
            voice = cls(**values, weights=made_by)
        except WeightsError as error:
            raise WeightsError(f"{path}: {error}") from None
        voice.check(weights if weights is not None or parts is None else fingerprint(parts), str(path))
        return voice

    def check(self, weights: str | None, name: str = "voice") -> None:
        """Refuse with `WeightsError` if nets of another fingerprint made this voice."""
        if weights is not None and weights != self.weights:
            raise WeightsError(
                f"{name}: was made by other weights ({self.weights[:12]}) than those that are to speak "
                f"({weights[:12]}), for which its codes are other sounds: make it again from its clip"
            )


@dataclass(frozen=True)
class ClipFeatures:
    """What the nets read of a clip.

    name : what errors call it. seconds : its length at 16 kHz. log_mel : (bands, T), for the speech tokenizer.
    bands : (frames, bands), for the speaker encoder. mel : (frames, M), natural log, of the flow.
    """

    name: str
    seconds: float
    log_mel: np.ndarray
    bands: np.ndarray
    mel: np.ndarray


def clip_features(
    parts: Token2Wav,
    source,
    *,
    sample_rate: float | None = None,
    resampler: str = Resampler.REFERENCE,
    max_seconds: float = MAX_SECONDS,
) -> ClipFeatures:
    """Read a clip for a voice.

    Parameters
    ----------
    parts : Token2Wav
        The nets.
    source, sample_rate
        As `load_audio`.
    resampler : {"reference", "soxr"}
        What brings the clip to 16 and 24 kHz. With soxr many of its codes are others than the reference's.
    max_seconds : float
        Longest clip that is taken; a longer one is refused before it is read.

    Raises
    ------
    AudioError
        What `load_audio` refuses (less than 0.1 s, for one), longer than `max_seconds`, or silence (below
        -60 dBFS), in which there is no voice; a first channel without the voice, or channels that cancel. Under
        1 s there is a warning: it will hardly be recognised.
    """
    name = source_name(source)
    with ExitStack() as stack:
        if is_file(source):  # it is read three times, and may be a pipe
            source = stack.enter_context(open_bytes(source))
            _refuse_long(name, audio_seconds(source), max_seconds)
        samples, doubt = load_with_doubt(source, sample_rate=sample_rate, resampler=resampler)
        seconds = len(samples) / SAMPLE_RATE
        _refuse_long(name, seconds, max_seconds)
        if doubt is not None:
            raise AudioError(f"{name}: {doubt}; a voice is read of the first channel: {ONE_CHANNEL}")
        if is_silent(samples):
            raise AudioError(
                f"{name}: is silent (below -60 dBFS), and silence holds no voice: use a clip in which one person speaks"
            )
        sound, doubt = load_with_doubt(
            source, downmix="mean", sample_rate=sample_rate, to=FLOW_SAMPLE_RATE, resampler=resampler
        )
    if doubt is not None:
        raise AudioError(f"{name}: {doubt}; the mel of a voice is read of the mean: {ONE_CHANNEL}")
    if seconds < SHORT_SECONDS:
        warnings.warn(f"{name}: {seconds:.2f} s hold little of a voice; 3 to 10 s are better", stacklevel=3)
    return ClipFeatures(
        name,
        seconds,
        log_mel(samples, parts.tokenizer.config.n_mels, padding=0),
        kaldi_fbank(samples, parts.speaker.config.feat_dim),
        flow_mel(sound, parts.flow.config.output_size).T,
    )


def _key(arrays: dict[str, np.ndarray], weights: str) -> str:
    found = hashlib.sha256(f"{FORMAT} {weights}".encode())
    for name in DTYPES:
        array = arrays[name]
        found.update(f"{name} {array.shape}".encode())
        found.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
    return found.hexdigest()


def fitted(mel: np.ndarray, n_frames: int) -> np.ndarray:
    """Frames (T, M) shortened to `n_frames`, or the last one repeated up to them."""
    return np.concatenate([mel[:n_frames], np.repeat(mel[-1:], max(0, n_frames - len(mel)), axis=0)])


def fingerprint(parts: Token2Wav) -> str:
    """SHA-256 over every weight of the speech tokenizer and the speaker encoder: the nets that make a voice."""
    found = hashlib.sha256()
    for net in (parts.tokenizer, parts.speaker):
        for name, array in sorted(parameters_of(net).items()):
            found.update(f"{type(net).__name__}.{name} {array.shape}".encode())
            found.update(np.ascontiguousarray(np.array(array.astype(mx.float32))).data)
    return found.hexdigest()


def _is_saved(path: Path) -> bool:
    return path.suffix.lower() == SUFFIX


def _refuse_long(name, seconds: float, most: float) -> None:
    if seconds > most:
        raise AudioError(
            f"{name}: {seconds:.1f} s are too long for a voice; expected at most {most:g} s: cut out 3 to "
            "10 s in which one person speaks, or raise max_seconds"
        )


def open_voice(parts: Token2Wav, source, weights: str | None = None, resampler: str = Resampler.REFERENCE) -> Voice:
    """A voice as it is, a saved one (`.safetensors`), or one made of a clip; always of these weights.

    A name of `resources.VOICES` is that bundled clip, unless a file has it.
    """
    if isinstance(source, Voice):
        source.check(weights if weights is not None else fingerprint(parts))
        return source
    if isinstance(source, str) and source in VOICES and not os.path.isfile(source):
        source = voice_clip(source)
    if isinstance(source, (str, os.PathLike)) and _is_saved(Path(source)):
        return Voice.load(source, parts, weights=weights)
    return Voice.from_clip(parts, source, weights=weights, resampler=resampler)
