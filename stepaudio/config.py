"""Sizes of the nets, read from the published `config.json` in its own nested shape.

The record is a closed world: a key that is unknown, missing or contradicts another is a `ConfigError` with
its path, because a key that is silently skipped means a model of default size (a known defect of peers).
Knows nothing of weights, tokens or files other than the JSON itself.
"""

from __future__ import annotations

import json
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path

from .errors import ConfigError
from .units import MAX_CACHE_LEN

# Written by training frameworks, read by nobody here; their values cannot change what is computed.
INERT_KEYS = frozenset(
    {"architectures", "auto_map", "transformers_version", "torch_dtype", "dtype", "_name_or_path", "use_cache"}
)


def _require(ok: bool, message: str) -> None:
    if not ok:
        raise ConfigError(message)


def _read(cls, data: object, path: str):
    """Fill the frozen record `cls` from a JSON object, refusing what it does not know."""
    _require(isinstance(data, dict), f"{path}: expected a JSON object, found {type(data).__name__}")
    known = {f.name: f for f in fields(cls)}
    unknown = sorted(set(data) - set(known) - INERT_KEYS)
    _require(not unknown, f"{path}: unknown key {', '.join(unknown)}; known are {', '.join(sorted(known))}")
    needed = {n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING}
    absent = sorted(needed - set(data))
    _require(not absent, f"{path}: missing key {', '.join(absent)}; the published config.json has it")
    values = {}
    for name, value in data.items():
        if name in known:
            values[name] = _typed(value, known[name].type, f"{path}.{name}")
    return cls(**values)


def _typed(value, kind, path: str):
    """One value checked against the annotation of its field; nested records are read recursively."""
    if kind in NESTED:
        return _read(NESTED[kind], value, path)
    if value is None and kind.endswith("| None"):
        return None
    kind = kind.removesuffix(" | None")
    if kind == "int":
        ok = isinstance(value, int) and not isinstance(value, bool)
    elif kind == "float":
        ok = isinstance(value, (int, float)) and not isinstance(value, bool)
        value = float(value) if ok else value
    elif kind == "str":
        ok = isinstance(value, str)
    elif kind == "bool":
        ok = isinstance(value, bool)
    else:  # "object": checked by the record itself
        ok = True
    _require(ok, f"{path}: expected {kind}, found {value!r}")
    return value


@dataclass(frozen=True)
class TextConfig:
    """The Qwen2 decoder. Sizes in units of channels, heads, layers, ids and positions."""

    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    num_hidden_layers: int
    vocab_size: int
    rms_norm_eps: float
    rope_theta: float
    num_attention_groups: int | None = None  # the published name for num_key_value_heads, kept beside it
    max_seq_len: int | None = None
    max_position_embeddings: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None
    rope_scaling: object = None

    def __post_init__(self):
        for name in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads",
                     "num_hidden_layers", "vocab_size"):
            _require(getattr(self, name) > 0, f"text_config.{name}: must be positive, found {getattr(self, name)}")
        _require(self.hidden_size % self.num_attention_heads == 0,
                 f"text_config: hidden_size {self.hidden_size} is not a multiple of num_attention_heads "
                 f"{self.num_attention_heads}")
        _require(self.head_dim % 2 == 0, f"text_config: head size {self.head_dim} is odd; rotary needs pairs")
        _require(self.num_attention_heads % self.num_key_value_heads == 0,
                 f"text_config: num_attention_heads {self.num_attention_heads} is not a multiple of "
                 f"num_key_value_heads {self.num_key_value_heads}")
        _require(self.num_attention_groups in (None, self.num_key_value_heads),
                 f"text_config: num_attention_groups {self.num_attention_groups} contradicts num_key_value_heads "
                 f"{self.num_key_value_heads}")
        _require(self.rope_scaling is None,
                 f"text_config.rope_scaling: only null is supported, found {self.rope_scaling!r}")
        _require(self.max_seq_len is None or self.max_position_embeddings in (None, self.max_seq_len),
                 f"text_config: max_seq_len {self.max_seq_len} contradicts max_position_embeddings "
                 f"{self.max_position_embeddings}")
        _require(self.rms_norm_eps > 0 and self.rope_theta > 0,
                 "text_config: rms_norm_eps and rope_theta must be positive")

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def context(self) -> int | None:
        """Positions the decoder was built for, if the file says so."""
        return self.max_position_embeddings or self.max_seq_len

    def kv_bytes_per_position(self, itemsize: int) -> int:
        """Bytes of keys and values that one position costs in all layers together."""
        return 2 * self.num_hidden_layers * self.num_key_value_heads * self.head_dim * itemsize


@dataclass(frozen=True)
class AudioEncoderConfig:
    """The Whisper-like encoder and the adapter. `n_audio_ctx` counts 50 Hz positions (1500 = 30 s)."""

    n_mels: int
    n_audio_ctx: int
    n_audio_state: int
    n_audio_head: int
    n_audio_layer: int
    llm_dim: int
    kernel_size: int
    adapter_stride: int
    n_codebook_size: int | None = None  # published, used by nothing in the published forward
    adapter_hidden: int = 2048  # a literal in the reference code

    def __post_init__(self):
        for f in fields(self):
            value = getattr(self, f.name)
            _require(value is None or value > 0, f"audio_encoder_config.{f.name}: must be positive, found {value}")
        _require(self.n_audio_state % self.n_audio_head == 0,
                 f"audio_encoder_config: n_audio_state {self.n_audio_state} is not a multiple of n_audio_head "
                 f"{self.n_audio_head}")


@dataclass(frozen=True)
class StepAudioConfig:
    """The whole speech LLM, as `config.json` nests it."""

    text_config: TextConfig
    audio_encoder_config: AudioEncoderConfig
    model_type: str = "step_audio_2"
    max_cache_len: int = field(default=MAX_CACHE_LEN)  # ours: cached positions before eviction

    def __post_init__(self):
        _require(self.model_type == "step_audio_2",
                 f"model_type: expected 'step_audio_2', found {self.model_type!r}; is this another model's folder?")
        text, audio = self.text_config, self.audio_encoder_config
        _require(audio.llm_dim == text.hidden_size,
                 f"audio_encoder_config.llm_dim {audio.llm_dim} contradicts text_config.hidden_size "
                 f"{text.hidden_size}")
        _require(self.max_cache_len > 0, f"max_cache_len: must be positive, found {self.max_cache_len}")

    @classmethod
    def from_dict(cls, data: dict, name: str = "config.json") -> StepAudioConfig:
        """Read the parsed JSON; `name` opens every error message."""
        return _read(cls, data, name)

    @classmethod
    def from_file(cls, path: str | Path) -> StepAudioConfig:
        """Read `config.json` (or the folder that holds it)."""
        path = Path(path)
        path = path / "config.json" if path.is_dir() else path
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigError(f"{path}: no such file; expected the folder of a published model") from None
        except (OSError, ValueError, RecursionError) as error:  # ValueError: neither UTF-8 nor JSON
            raise ConfigError(f"{path}: not readable as JSON ({error})") from None
        return cls.from_dict(data, str(path.name))

    def to_dict(self) -> dict:
        """The nested JSON shape again, without keys that were absent."""
        drop = lambda pairs: {k: v for k, v in pairs if v is not None}  # noqa: E731
        return asdict(self, dict_factory=drop)


NESTED = {"TextConfig": TextConfig, "AudioEncoderConfig": AudioEncoderConfig}
