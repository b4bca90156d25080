"""Sizes of the flow and of the vocoder: a closed world, as in the main model's config.

The flow's record nests as `flow.yaml` does and is read from it; HiFT has no published file, its defaults are the
literals of the reference class. A key that is unknown, missing or contradicts another is a `ConfigError` with its
path. Knows no weights and builds no nets.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from math import prod
from pathlib import Path

from ..config import _require, _typed
from ..errors import ConfigError
from .flow_yaml import TAG, parse

# The classes that flow.yaml may name. The file is read as data: naming another class must not pass unseen.
FLOW_CLASS = "cosyvoice2.flow.flow.CausalMaskedDiffWithXvec"
ENCODER_CLASS = "cosyvoice2.transformer.upsample_encoder_v2.UpsampleConformerEncoderV2"
DECODER_CLASS = "cosyvoice2.flow.flow_matching.CausalConditionalCFM"
ESTIMATOR_CLASS = "cosyvoice2.flow.decoder_dit.DiT"


def _fill(cls, data: object, path: str):
    """Fill the frozen record `cls` from a mapping, refusing what it does not know."""
    _require(isinstance(data, dict), f"{path}: expected a mapping, found {type(data).__name__}")
    known = {f.name: f for f in fields(cls)}
    unknown = sorted(str(k) for k in set(data) - set(known))
    _require(not unknown, f"{path}: unknown key {', '.join(unknown)}; known are {', '.join(sorted(known))}")
    absent = sorted({n for n, f in known.items() if f.default is MISSING} - set(data))
    _require(not absent, f"{path}: missing key {', '.join(absent)}; the published file has it")
    return cls(**{n: _typed(value, known[n].type, f"{path}.{n}") for n, value in data.items()})


def _positive(record, path: str, names: tuple[str, ...]) -> None:
    for name in names:
        value = getattr(record, name)
        _require(value > 0, f"{path}.{name}: must be positive, found {value}")


def _only(record, path: str, allowed: dict) -> None:
    for name, value in allowed.items():
        found = getattr(record, name)
        _require(found == value, f"{path}.{name}: only {value!r} is supported, found {found!r}")


@dataclass(frozen=True)
class ConformerConfig:
    """The upsampling conformer encoder. Sizes in channels, blocks and codes; dropout rates act in training only."""

    input_size: int
    output_size: int
    input_layer: str
    pre_lookahead_len: int
    num_blocks: int
    num_up_blocks: int
    up_stride: int
    up_scale_factor: float
    attention_heads: int
    pos_enc_layer_type: str
    selfattention_layer_type: str
    key_bias: bool
    linear_units: int
    dropout_rate: float
    positional_dropout_rate: float
    attention_dropout_rate: float
    normalize_before: bool

    def __post_init__(self):
        path = "encoder"
        _positive(self, path, ("input_size", "output_size", "pre_lookahead_len", "num_blocks", "num_up_blocks",
                               "up_stride", "attention_heads", "linear_units"))
        # After upsampling a layer of the same input_size is applied to output_size channels.
        _only(self, path, {"input_layer": "linear", "pos_enc_layer_type": "rel_pos_espnet",
                           "selfattention_layer_type": "rel_selfattn", "normalize_before": True,
                           "input_size": self.output_size, "up_scale_factor": float(self.up_stride)})
        _require(self.output_size % self.attention_heads == 0 and self.output_size % 2 == 0,
                 f"{path}: output_size {self.output_size} must be even and a multiple of attention_heads "
                 f"{self.attention_heads}")


@dataclass(frozen=True)
class DitConfig:
    """The DiT estimator. in_channels is noisy mel, mu, speaker and prompt mel side by side."""

    in_channels: int
    out_channels: int
    mlp_ratio: float
    depth: int
    num_heads: int
    head_dim: int
    hidden_size: int

    def __post_init__(self):
        _positive(self, "estimator", tuple(f.name for f in fields(self)))

    @property
    def mlp_size(self) -> int:
        return int(self.hidden_size * self.mlp_ratio)


@dataclass(frozen=True)
class CfmConfig:
    """The solver: guidance rate r, (1 + r) conditional - r unconditional, and the net it integrates."""

    inference_cfg_rate: float
    estimator: DitConfig

    def __post_init__(self):
        _require(self.inference_cfg_rate >= 0, f"decoder.inference_cfg_rate: must not be negative, found "
                                               f"{self.inference_cfg_rate}")


@dataclass(frozen=True)
class FlowConfig:
    """Codes to mel. output_size counts mel bands, spk_embed_dim the numbers of a speaker vector."""

    input_size: int
    output_size: int
    spk_embed_dim: int
    output_type: str
    vocab_size: int
    encoder: ConformerConfig
    decoder: CfmConfig

    def __post_init__(self):
        _positive(self, "flow", ("input_size", "output_size", "spk_embed_dim", "vocab_size"))
        _only(self, "flow", {"output_type": "mel", "input_size": self.encoder.input_size})
        _only(self.decoder.estimator, "estimator", {"in_channels": 4 * self.output_size,
                                                    "out_channels": self.output_size})

    @classmethod
    def from_dict(cls, data: dict, name: str = "flow") -> FlowConfig:
        """Read nested mappings (without tags); `name` opens every error message."""
        _require(isinstance(data, dict), f"{name}: expected a mapping, found {type(data).__name__}")
        data = dict(data)
        if "encoder" in data:
            data["encoder"] = _fill(ConformerConfig, data["encoder"], f"{name}.encoder")
        if "decoder" in data:
            decoder = data["decoder"]
            if isinstance(decoder, dict) and "estimator" in decoder:
                estimator = _fill(DitConfig, decoder["estimator"], f"{name}.decoder.estimator")
                decoder = {**decoder, "estimator": estimator}
            data["decoder"] = _fill(CfmConfig, decoder, f"{name}.decoder")
        return _fill(cls, data, name)

    @classmethod
    def from_yaml(cls, text: str, name: str = "flow.yaml") -> FlowConfig:
        """Read the text of the published `flow.yaml`.

        Raises
        ------
        ConfigError : not in the subset of YAML that the file uses, a class other than the four known ones, or a
            key that is unknown, missing or contradicts another.
        """
        tree = parse(text, name)
        extra = sorted(set(tree) - {"flow"})
        _require("flow" in tree and not extra, f"{name}: expected one entry 'flow', found {', '.join(tree)}")
        return cls.from_dict(_untag(tree["flow"], name), name)

    @classmethod
    def from_file(cls, path: str | Path) -> FlowConfig:
        """Read `flow.yaml` (or the folder that holds it)."""
        path = Path(path)
        path = path / "flow.yaml" if path.is_dir() else path
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise ConfigError(f"{path}: no such file; expected the token2wav folder of a published model") from None
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: not readable as text ({error})") from None
        return cls.from_yaml(text, path.name)


def _untag(flow: object, name: str) -> dict:
    """The nested mappings of flow.yaml without their class names, once these are the known ones."""
    flow = _of_class(flow, FLOW_CLASS, f"{name}: flow")
    if "encoder" in flow:
        flow["encoder"] = _of_class(flow["encoder"], ENCODER_CLASS, f"{name}: flow.encoder")
    if "decoder" in flow:
        decoder = _of_class(flow["decoder"], DECODER_CLASS, f"{name}: flow.decoder")
        if "estimator" in decoder:
            estimator = _of_class(decoder["estimator"], ESTIMATOR_CLASS, f"{name}: flow.decoder.estimator")
            decoder["estimator"] = estimator
        flow["decoder"] = decoder
    return flow


def _of_class(node: object, expected: str, path: str) -> dict:
    found = node.get(TAG) if isinstance(node, dict) else None
    _require(found == expected,
             f"{path}: expected !new:{expected}, found {found or node!r}; is this another model's file?")
    return {k: v for k, v in node.items() if k != TAG}


@dataclass(frozen=True)
class IstftConfig:
    """Short inverse transform at the end of the vocoder, in samples."""

    n_fft: int = 16
    hop_len: int = 4

    def __post_init__(self):
        _positive(self, "istft", ("n_fft", "hop_len"))
        _require(self.n_fft % 2 == 0 and self.hop_len <= self.n_fft // 2,
                 f"istft: n_fft {self.n_fft} must be even and at least twice hop_len {self.hop_len}")


@dataclass(frozen=True)
class HiftConfig:
    """HiFT vocoder; the defaults are the published sizes (HiFTGenerator of FlashCosyVoice)."""

    in_channels: int = 80
    base_channels: int = 512
    f0_cond_channels: int = 512
    nb_harmonics: int = 8
    sampling_rate: int = 24_000  # Hz
    nsf_alpha: float = 0.1  # amplitude of the sines
    nsf_sigma: float = 0.003  # deviation of the noise where voiced
    nsf_voiced_threshold: float = 10.0  # Hz; above it a frame is voiced
    upsample_rates: tuple[int, ...] = (8, 5, 3)
    upsample_kernel_sizes: tuple[int, ...] = (16, 11, 7)
    istft: IstftConfig = IstftConfig()
    resblock_kernel_sizes: tuple[int, ...] = (3, 7, 11)
    resblock_dilation_sizes: tuple[tuple[int, ...], ...] = ((1, 3, 5),) * 3
    source_resblock_kernel_sizes: tuple[int, ...] = (7, 7, 11)
    source_resblock_dilation_sizes: tuple[tuple[int, ...], ...] = ((1, 3, 5),) * 3
    lrelu_slope: float = 0.1
    final_lrelu_slope: float = 0.01  # the reference leaves this one at PyTorch's default
    audio_limit: float = 0.99
    magnitude_clip: float = 100.0

    def __post_init__(self):
        _positive(self, "hift", ("in_channels", "base_channels", "f0_cond_channels", "sampling_rate", "audio_limit",
                                 "magnitude_clip"))
        for field in fields(self):
            if field.type.startswith("tuple"):
                _whole_numbers(getattr(self, field.name), field.type.count("tuple"), f"hift.{field.name}")
        _require(self.sampling_rate != 22_050, "hift: at 22050 Hz the reference has another source; not supported")
        stages = len(self.upsample_rates)
        _require(stages > 0 and len(self.upsample_kernel_sizes) == stages == len(self.source_resblock_kernel_sizes)
                 == len(self.source_resblock_dilation_sizes),
                 "hift: upsample_rates, upsample_kernel_sizes and the source_resblock lists must be equally long")
        _require(len(self.resblock_kernel_sizes) == len(self.resblock_dilation_sizes) > 0,
                 "hift: resblock_kernel_sizes and resblock_dilation_sizes must have the same length")
        _require(self.base_channels % 2**stages == 0,
                 f"hift: base_channels {self.base_channels} cannot be halved {stages} times")
        for rate, kernel in zip(self.upsample_rates, self.upsample_kernel_sizes, strict=True):
            _require(kernel >= rate and (kernel - rate) % 2 == 0,
                     f"hift: upsampling kernel {kernel} and rate {rate} must differ by an even number")
        kernels = (*self.resblock_kernel_sizes, *self.source_resblock_kernel_sizes)
        _require(all(k % 2 == 1 for k in kernels), f"hift: residual kernels must be odd, found {kernels}")

    @property
    def samples_per_frame(self) -> int:
        """Samples of sound that one mel frame becomes (480 published)."""
        return prod(self.upsample_rates) * self.istft.hop_len

    @property
    def stage_channels(self) -> tuple[int, ...]:
        """Channels after each upsampling."""
        return tuple(self.base_channels // 2 ** (i + 1) for i in range(len(self.upsample_rates)))

    @property
    def source_strides(self) -> tuple[int, ...]:
        """How far each stage thins the STFT frames of the source: the product of the rates still to come."""
        return tuple(prod(self.upsample_rates[i + 1 :]) for i in range(len(self.upsample_rates)))

    @classmethod
    def from_dict(cls, data: dict, name: str = "hift") -> HiftConfig:
        """Read a mapping with this record's keys; lists become tuples. Absent keys keep the published values."""
        _require(isinstance(data, dict), f"{name}: expected a mapping, found {type(data).__name__}")
        data = {k: _tuples(v) for k, v in data.items()}
        if "istft" in data:
            data["istft"] = _fill(IstftConfig, data["istft"], f"{name}.istft")
        return _fill(cls, data, name)


def _whole_numbers(value, depth: int, path: str) -> None:
    """Raise unless `value` is a tuple of positive whole numbers, or of such tuples for a depth of two."""
    _require(isinstance(value, tuple) and len(value) > 0, f"{path}: expected a list, found {value!r}")
    for item in value:
        if depth > 1:
            _whole_numbers(item, depth - 1, path)
        else:
            ok = type(item) is int and item > 0
            _require(ok, f"{path}: expected a list of positive whole numbers, found {value!r}")


def _tuples(value):
    return tuple(_tuples(v) for v in value) if isinstance(value, (list, tuple)) else value
