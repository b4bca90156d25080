"""The whole speech LLM as one module: encoder, adapter, decoder and head, joined where the reference joins them.

Parameter names equal the published names, so a checkpoint is this module's parameters and nothing else. Token ids
arrive as numbers, audio slots as (row, start, length).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..backend.pieces import in_parts, n_weights
from ..backend.process import enter
from ..constants import MAX_CACHE_LEN
from ..errors import AudioError, ConfigError, PromptError
from ..reading import is_file, is_folder, read_object
from ..schema import read_record, require, require_positive
from .config_keys import ConfigNote, published_keys
from .decoder import Decoder, TextConfig
from .encoder import Adapter, AudioEncoder, AudioEncoderConfig, n_rows
from .joined import Products
from .kv_protocol import KVCache
from .tap import Tap, emit, named

CONFIG_FILE, FLAT_FILE = "config.json", "config_origin.json"


@dataclass(frozen=True)
class StepAudioConfig:
    """Sizes of the whole speech language model, as `config.json` nests them.

    Parameters
    ----------
    text_config : TextConfig
    audio_encoder_config : AudioEncoderConfig
    model_type : str
        Only "step_audio_2" is read.
    max_cache_len : int > 0
        Cached positions before eviction; ours, not published.

    Raises
    ------
    ConfigError
        Another model's type, or parts that do not fit each other.
    """

    text_config: TextConfig
    audio_encoder_config: AudioEncoderConfig
    model_type: str = "step_audio_2"
    max_cache_len: int = MAX_CACHE_LEN

    def __post_init__(self):
        require(
            self.model_type == "step_audio_2",
            f"model_type: expected 'step_audio_2', found {self.model_type!r}; is this another model's folder?",
        )
        text, audio = self.text_config, self.audio_encoder_config
        require(
            audio.llm_dim == text.hidden_size,
            f"audio_encoder_config.llm_dim {audio.llm_dim} contradicts text_config.hidden_size {text.hidden_size}",
        )
        require_positive(self, "config", ["max_cache_len"])

    @classmethod
    def from_dict(cls, data: dict, name: str = "config.json") -> StepAudioConfig:
        """Read the parsed JSON; `name` opens every error message.

        Keys that other programs add may be there as long as they say what is built anyway, and a flat file is read as
        a nested one. Raises `ConfigError` as `schema.read_record`.
        """
        return _read(data, name)[0]

    @classmethod
    def from_file(cls, path: str | Path) -> StepAudioConfig:
        """Read `config.json`, or the folder that holds it; `ConfigError` where it is missing, no JSON, or wrong."""
        return read_config(path)[0]

    def to_dict(self) -> dict:
        """The nested JSON shape again, without keys that were absent."""
        return asdict(self, dict_factory=lambda pairs: {k: v for k, v in pairs if v is not None})


def read_config(path: str | Path) -> tuple[StepAudioConfig, tuple[ConfigNote, ...]]:
    """The sizes that a file or folder states, and each other key in it that was understood.

    Parameters
    ----------
    path : str or Path
        A folder with `config.json` (where there is none, with `config_origin.json`), or such a file.

    Raises
    ------
    ConfigError
        Missing, no JSON, another model's; a key that is missing, unknown or says something else than what is built.
    """
    path = Path(path)
    if is_folder(path, ConfigError):
        names = [name for name in (CONFIG_FILE, FLAT_FILE) if is_file(path / name, ConfigError)]
        path = path / (names or [CONFIG_FILE])[0]
    return _read(read_object(path, ConfigError, "expected the folder of a published model"), path.name)


def _read(data: object, name: str) -> tuple[StepAudioConfig, tuple[ConfigNote, ...]]:
    kept, notes = published_keys(data, name, RECORDS)
    return read_record(StepAudioConfig, kept, name, advice="the published config.json has it"), notes


RECORDS = {"": StepAudioConfig, "text_config": TextConfig, "audio_encoder_config": AudioEncoderConfig}


class Slot(NamedTuple):
    """Where one segment of audio goes: positions start … start+length-1 of batch row `row`."""

    row: int
    start: int
    length: int


class StepAudioNet(nn.Module):
    """Mels and token ids in, logits out. Holds weights and sizes, and nothing of any run."""

    def __init__(self, config: StepAudioConfig):
        super().__init__()
        text = config.text_config
        self.encoder = AudioEncoder(config.audio_encoder_config)
        self.adapter = Adapter(config.audio_encoder_config)
        self.model = Decoder(text)
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        self._config = config

    @property
    def config(self) -> StepAudioConfig:
        """Its sizes."""
        return self._config

    @property
    def dtype(self) -> mx.Dtype:
        """Of what is computed: that of all weights that are not quantised."""
        return self.model.norm.weight.dtype

    def encode_audio(
        self, mels: Sequence[np.ndarray], independent: bool = True, tap: Tap | None = None, frames: int = 0
    ) -> list[mx.array]:
        """Audio embeddings of several log mels, computed as one zero-padded batch.

        Parameters
        ----------
        mels : arrays (n_mels, T_i), log-mel scale of the reference front end.
        independent : as in `AudioEncoder`; false for clips that share one prompt, as the reference runs them.
        frames : mel frames to pad to at least: those of the longest clip, where clips are encoded one after another.

        Returns
        -------
        list of (R_i, D), R_i = `constants.n_audio_embeddings(T_i)`.

        Raises
        ------
        AudioError : no clip, wrong number of mel bands, too few frames for a single embedding, or too many.
        """
        config = self._config.audio_encoder_config
        if not mels:
            raise AudioError("no audio to encode: expected at least one log mel")
        for i, mel in enumerate(mels):
            if mel.ndim != 2 or mel.shape[0] != config.n_mels:
                raise AudioError(f"log mel {i}: expected shape ({config.n_mels}, frames), found {tuple(mel.shape)}")
            if n_rows(mel.shape[1] - 2, config.adapter_stride) < 1:
                raise AudioError(
                    f"log mel {i}: {mel.shape[1]} frames are too few for one prompt row; expected 5 or more"
                )
        lengths = [mel.shape[1] for mel in mels]
        batch = np.zeros((len(mels), config.n_mels, max(*lengths, frames)), dtype=np.float32)
        for row, mel in zip(batch, mels, strict=True):
            row[:, : mel.shape[1]] = mel
        x_len = mx.array(np.array(lengths, dtype=np.int32) - 2)
        mel = mx.array(batch).astype(self.dtype)

        def run(mel: mx.array, x_len: mx.array) -> mx.array:
            return self.adapter(self.encoder(mel, x_len, independent, named(tap, "encoder.")), named(tap, "adapter."))

        if tap is None and len(mels) > 1:  # of one clip there are no parts, and its work is not worth counting
            work = mel.shape[2] // 2 * (n_weights(self.encoder) + n_weights(self.adapter))
            embeddings = in_parts(run, work, mel, x_len)
        else:
            embeddings = run(mel, x_len)
        return [embeddings[i, : n_rows(n - 2, config.adapter_stride)] for i, n in enumerate(lengths)]

    def embed(self, tokens: np.ndarray, slots: Sequence[Slot] = (), features: Sequence[mx.array] = ()) -> mx.array:
        """Token embeddings with audio embeddings written into their slots.

        Parameters
        ----------
        tokens : (n,) or (B, n) token ids.
        slots : where the audio goes. features : (R_i, D) for each slot.

        Returns
        -------
        (B, n, D)

        Raises
        ------
        PromptError : an id is outside the vocabulary, a slot leaves its row, or a slot and its features differ in
            length.
        """
        enter()
        tokens = np.atleast_2d(np.asarray(tokens))
        vocab = self._config.text_config.vocab_size
        if tokens.size and (tokens.min() < 0 or tokens.max() >= vocab):
            bad = tokens[(tokens < 0) | (tokens >= vocab)][0]
            raise PromptError(
                f"token id {bad} is outside the vocabulary of {vocab} tokens: do tokenizer and model belong together?"
            )
        if len(slots) != len(features):
            raise PromptError(
                f"the prompt has {len(slots)} audio slots but {len(features)} segments of audio were given"
            )
        x = self.model.embed(mx.array(tokens))
        for i, (slot, audio) in enumerate(zip(slots, features, strict=True)):
            if audio.shape[0] == 0:
                raise PromptError(f"audio slot {i} was given no embeddings: its audio is too short, leave the slot out")
            if audio.shape[0] != slot.length:
                raise PromptError(f"audio slot {i} has {slot.length} positions, its audio {audio.shape[0]} embeddings")
            if not (
                0 <= slot.row < tokens.shape[0] and slot.start >= 0 and slot.start + slot.length <= tokens.shape[1]
            ):
                raise PromptError(
                    f"audio slot {i} (row {slot.row}, {slot.start}..{slot.start + slot.length}) leaves the "
                    f"prompt of {tokens.shape[0]} x {tokens.shape[1]} tokens"
                )
            x[slot.row, slot.start : slot.start + slot.length] = audio.astype(x.dtype)
        return x

    def logits(self, x: mx.array, cache: KVCache, tap: Tap | None = None, tokens: mx.array | None = None) -> mx.array:
        """Embeddings (B, n, D) -> logits (B, n, vocabulary) for every position; `tokens` as `Decoder` takes them."""
        return emit(tap, "logits", self.lm_head(self.model(x, cache, named(tap, "decoder."), tokens)))

    def next_logits(
        self,
        x: mx.array,
        cache: KVCache,
        tap: Tap | None = None,
        tokens: mx.array | None = None,
        products: Products | None = None,
    ) -> mx.array:
        """Logits (B, vocabulary) after the last position only; float32, as the reference casts before sampling.

        `products` as `Decoder` takes them.
        """
        last = self.model(x, cache, named(tap, "decoder."), tokens, products)[:, -1]
        return emit(tap, "logits", self.lm_head(last).astype(mx.float32))
