"""What was computed of prompts, by what it was computed of: audio embeddings, and the cache after each turn.

A key is a digest of everything that the numbers depend on: the weights, the tokens, the log mels, what the cache keeps.
So whatever differs anywhere is another entry. A prompt is read turn by turn whether its turns are known or not, hence a
turn that was found gives the same bits as one that was computed.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, cast

import mlx.core as mx
import numpy as np

from ..backend.device import info
from ..checkpoints.header import read_header, read_metadata
from ..choices import is_whole, shown
from ..errors import DataError, DecodeError, WeightsError
from ..files import replaced_file
from ..models.fingerprint import fingerprint
from ..models.speech_lm import StepAudioNet
from ..models.tap import Tap
from .prefill import prefill

FORMAT = "stepaudio prompt cache 2"
MAX_BYTES = 1 << 30
Arrays = dict[str, mx.array]


class PromptCache:
    """Arrays by key, the latest used last, never more than so many bytes; in memory, and in a file if it is saved.

    Parameters
    ----------
    max_bytes : int >= 1
        What is used least goes first; what is larger alone is not kept.

    Raises
    ------
    DecodeError
        A limit that is none.
    """

    def __init__(self, max_bytes: int = MAX_BYTES):
        if not (is_whole(max_bytes) and 1 <= max_bytes < 2**63):
            raise DecodeError(f"prompt cache: expected max_bytes of at least 1, found {shown(max_bytes)}")
        self.max_bytes, self.model = max_bytes, ""
        self.hits = self.misses = 0
        self._entries: OrderedDict[str, Arrays] = OrderedDict()
        self._path: str | None = None
        self._lock = Lock()  # conversations of several threads may share one

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(map(_nbytes, self._entries.values()))

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"PromptCache({len(self)} entries, {self.nbytes} bytes, {self.hits} hits, {self.misses} misses)"

    def belong_to(self, model: str) -> None:
        """Hold numbers of this model (a digest) alone; `DataError` if it holds those of another."""
        if self.model not in ("", model):
            raise DataError(
                f"{self._path or 'prompt cache'}: was made with another model, other weights or another version; take "
                "another for this one, or delete it"
            )
        self.model = model

    def find(self, key: str) -> Arrays | None:
        """The arrays of a key, which are used last from now on."""
        with self._lock:
            found = self._entries.get(key)
            if found is None:
                self.misses += 1
            else:
                self.hits += 1
                self._entries.move_to_end(key)
            return found

    def put(self, key: str, arrays: Mapping[str, mx.array]) -> None:
        """Keep arrays, and let go of what is used least until all fits."""
        mx.eval(list(arrays.values()))
        with self._lock:
            self._entries[key] = dict(arrays)
            self._entries.move_to_end(key)
            left = self.nbytes
            while left > self.max_bytes:
                left -= _nbytes(self._entries.popitem(last=False)[1])

    # ------------------------------------------------------------ files

    def save(self, path: str | Path) -> Path:
        """Write a file (safetensors), whole or not at all; `DataError` where nothing can be written."""
        path = Path(path)
        arrays = {f"{key}/{name}": a for key, found in self._entries.items() for name, a in found.items()}
        try:
            with replaced_file(path) as aside, aside.open("wb") as file:
                mx.save_safetensors(cast(Any, file), arrays, {"format": FORMAT, "model": self.model})
        except OSError as error:
            raise DataError(f"{path}: cannot be written ({error.strerror or error})") from None
        return path

    @classmethod
    def load(cls, path: str | Path, max_bytes: int = MAX_BYTES) -> PromptCache:
        """Read a file that `save` wrote.

        Raises
        ------
        DataError
            No such file, another kind of file, a broken one, or one of another version.
        """
        found, path = cls(max_bytes), Path(path)
        try:
            names, about = read_header(path), read_metadata(path)
        except WeightsError as error:
            raise DataError(f"{str(error).removesuffix('.')}; expected a prompt cache") from None
        if about.get("format") != FORMAT:
            raise DataError(f"{path}: expected a file of the format {FORMAT!r}, found {shown(about.get('format'))}")
        arrays = mx.load(str(path), format="safetensors")
        if not isinstance(arrays, dict) or any(len(name.split("/")) != 2 for name in names):
            raise DataError(f"{path}: is no prompt cache; delete it")
        for name in names:
            key, _, part = name.partition("/")
            found._entries.setdefault(key, {})[part] = arrays[name]
        found.model, found._path = about.get("model", ""), str(path)
        for key, entry in list(found._entries.items()):
            found.put(key, entry)
        return found

    @staticmethod
    def is_ours(path: Path) -> bool:
        """Whether a file is a prompt cache, of whatever model."""
        try:
            return read_metadata(path).get("format", "").startswith(FORMAT[:-1])
        except WeightsError:
            return False


def _nbytes(arrays: Arrays) -> int:
    return sum(a.nbytes for a in arrays.values())


def digest(*parts: object) -> str:
    """Hexadecimal SHA-256 of texts, numbers and arrays, in their order and told apart."""
    found = hashlib.sha256()
    for part in parts:
        data = np.ascontiguousarray(part).tobytes() if isinstance(part, np.ndarray) else repr(part).encode()
        kind = f"{part.dtype}{part.shape}" if isinstance(part, np.ndarray) else type(part).__name__
        found.update(f"{kind} {len(data)}\n".encode())
        found.update(data)
    return found.hexdigest()


@dataclass(frozen=True)
class Prefixes:
    """Where the turns of a prompt end, and what each beginning depends on.

    Parameters
    ----------
    cache : PromptCache
    marks : tuple of (int, str)
        Positions before which a turn ends, in order, and a key of all before them.
    """

    cache: PromptCache
    marks: tuple[tuple[int, str], ...]


def prefixes_of(
    tokens: Sequence[int], starts: Sequence[int], audio: Sequence[str], end_ids: frozenset[int], cache: PromptCache
) -> Prefixes:
    """The beginnings of a prompt that end with a turn.

    starts, audio : of each stretch of audio embeddings its first position, and a key of where and what it is.
    end_ids : tokens that end a turn.
    """
    ends = [i + 1 for i, token in enumerate(tokens) if token in end_ids]
    sounds = list(zip(starts, audio, strict=True))
    marks = [(end, digest(list(tokens[:end]), [key for start, key in sounds if start < end])) for end in ends]
    return Prefixes(cache, tuple(marks))


def read_prompt(
    net: StepAudioNet,
    x: mx.array,
    cache,
    policy: str,
    prefixes: Prefixes | None,
    tap: Tap | None = None,
    tokens: mx.array | None = None,
) -> mx.array:
    """Feed a prompt (1, n, D), from the longest beginning that is known; logits (1, V) after its last position.

    policy : what the cache keeps, as a text. A tap sees all of a prompt, so nothing is reused for it.
    tokens : as `prefill` takes them.
    """
    if prefixes is None or tap is not None:
        return prefill(net, x, cache, tap, tokens)
    marks = [(end, digest("prompt", policy, str(x.dtype), key)) for end, key in prefixes.marks if 0 < end < x.shape[1]]
    done = 0
    for end, key in reversed(marks):
        if (state := prefixes.cache.find(key)) is not None:
            cache.restore(state)
            done = end
            break
    for end, key in marks:
        if end > done:
            prefill(net, x[:, done:end], cache)
            mx.eval(cache.arrays)
            prefixes.cache.put(key, cache.state())
            done = end
    return prefill(net, x[:, done:], cache)


def encoded_once(cache: PromptCache, net: StepAudioNet, mel: np.ndarray, frames: int = 0) -> mx.array:
    """Audio embeddings of one log mel, computed if they are not there: alone, or padded to `frames` as in a prompt."""
    key = digest("audio", frames, mel)
    found = cache.find(key)
    if found is None:
        found = {"0": net.encode_audio([mel], independent=not frames, frames=frames)[0]}
        cache.put(key, found)
    return found["0"]


def identity_of(net: StepAudioNet) -> str:
    """What the numbers of a prompt depend on beside the prompt: sizes, weights, and what computes."""
    about = info()
    return digest(net.config.to_dict(), fingerprint(net), *(about[name] for name in ("backend", "blas", "versions")))
