"""Golden checks of what reads a voice: speech tokenizer, speaker encoder and their front ends."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from . import mel_speaking as front
from .errors import DataError
from .mel_speaking import flow_mel, kaldi_fbank, kaldi_filterbank
from .token2wav.s3 import ROPE_BASE, TANH_SCALE, S3Config, S3Tokenizer
from .token2wav.speaker import SpeakerConfig, SpeakerEncoder
from .units import HOP, N_FFT, SAMPLE_RATE

LOG_MEL_TOLERANCE = 1e-4  # absolute, as for the encoder's front end
# Kaldi's lowest bands hold one or two bins, unnormalised; where such a band is quiet beside loud ones, the float32
# transform of the reference itself is 3e-4 away from float64 (root mean square: 7e-6).
KALDI_TOLERANCE = 1e-3
FLOW_FRONT_END = {"sample_rate": front.FLOW_SAMPLE_RATE, "n_fft": front.FLOW_N_FFT, "win": front.FLOW_N_FFT,
                  "hop": front.FLOW_HOP, "fmin": 0, "fmax": front.FLOW_FMAX}
KALDI_FRONT_END = {"sample_frequency": SAMPLE_RATE, "frame_length_ms": N_FFT * 1000 // SAMPLE_RATE,
                   "frame_shift_ms": HOP * 1000 // SAMPLE_RATE, "fft": front.KALDI_N_FFT,
                   "low_freq": front.KALDI_FMIN, "preemph": front.PREEMPHASIS, "dither": 0}


def _require_same(name: str, config: dict, ours: dict) -> None:
    for key, value in ours.items():
        if key in config and config[key] != value:
            raise DataError(f"config {name}.{key}: this package has {value}, the golden file {config[key]}")


def speaking_mel_checks(golden) -> None:
    """Flow mels and kaldi features of every signal of a mel file, and kaldi's filterbank."""
    flow, kaldi = golden.config.get("flow_mel", {}), golden.config.get("kaldi", {})
    _require_same("flow_mel", flow, FLOW_FRONT_END)
    _require_same("kaldi", kaldi, KALDI_FRONT_END)
    n_flow, n_kaldi = flow.get("n_mels", front.FLOW_N_MELS), kaldi.get("num_mel_bins", front.KALDI_N_MELS)
    kinds = {"flow_mel": (lambda x: flow_mel(x, n_flow), LOG_MEL_TOLERANCE),
             "kaldi_fbank": (lambda x: kaldi_fbank(x, n_kaldi, subtract_mean=False), KALDI_TOLERANCE),
             "kaldi_fbank_cmn": (lambda x: kaldi_fbank(x, n_kaldi), KALDI_TOLERANCE)}
    for kind, (compute, tolerance) in kinds.items():
        for name in golden.names("out.", f".{kind}"):
            golden.compare(f"{name}.{kind}", compute(golden[f"in.{name}.wav"]), tolerance, absolute=True)
    for name in golden.names("out.kaldi_mel_banks_"):
        golden.compare(f"kaldi_mel_banks_{name}", kaldi_filterbank(int(name)), LOG_MEL_TOLERANCE, absolute=True)


def s3_checks(golden, _tokenizer) -> None:
    """Every stage of the speech tokenizer for a batch, its codes, and the codes of clips longer than one window."""
    c = golden.config
    config = S3Config(n_mels=c["n_mels"], n_audio_state=c["n_audio_state"], n_audio_head=c["n_audio_head"],
                      n_audio_layer=c["n_audio_layer"], stride=c["stride"], n_codebook_size=c["codebook"],
                      fsmn_kernel=c["fsmn_kernel"], ln_eps=c["ln_eps"])
    size = config.n_audio_state // config.n_audio_head
    _require_same("s3tokenizer", c, {"tanh_scale": TANH_SCALE, "head_dim": size})
    if "rope" in c and f"theta {ROPE_BASE:.0f}" not in c["rope"]:
        raise DataError(f"config s3tokenizer.rope: this package has theta {ROPE_BASE:.0f}, the golden file "
                        f"{c['rope']!r}")
    net = S3Tokenizer(config)
    golden.fill(net)
    _check_batch(golden, net)
    for name in golden.names("in.", ".mel_period"):
        _check_long(golden, net, name)


def _check_batch(golden, net: S3Tokenizer) -> None:
    mel, lengths = golden["in.mel"], golden["in.mel_len"]
    stages: dict[str, mx.array] = {}
    tap = stages.__setitem__
    codes = np.array(net.quantizer(net.encoder(mx.array(mel), mx.array(lengths), tap), tap))
    n_codes = net.config.n_codes(lengths)
    found = {**stages, "conv1": stages["conv1"].swapaxes(1, 2), "conv2": stages["conv2"].swapaxes(1, 2),
             "code_len": n_codes, **{f"attn{i}": stages[f"block{i}.attn"] for i in range(net.config.n_audio_layer)}}
    for stage in golden.names("out."):
        if stage in found:
            golden.compare(stage, found[stage], 0 if stage == "code_len" else 1e-4)
    golden.compare("codes", _valid(codes, n_codes, golden["out.codes"]), 0)


def _valid(codes: np.ndarray, n_codes: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Codes with the meaningless ones past each row's number taken from `expected`, so that they cannot differ."""
    if codes.shape != expected.shape:
        return codes
    return np.where(np.arange(codes.shape[1])[None, :] < n_codes[:, None], codes, expected)


def _check_long(golden, net: S3Tokenizer, name: str) -> None:
    period, n = golden[f"in.{name}.mel_period"], int(golden[f"in.{name}.mel_len"][0])
    mel = np.tile(period, -(-n // period.shape[1]))[None, :, :n]
    codes = np.stack(net(mel, [n]))
    golden.compare(f"{name}.codes", codes, 0)
    golden.compare(f"{name}.code_len", [codes.shape[1]], 0)


def speaker_checks(golden, _tokenizer) -> None:
    """Every stage of CAM++ and the embeddings; `head` is of the short clip, and only its first frames are kept."""
    c = golden.config
    config = SpeakerConfig(**{name: c[name] for name in ("feat_dim", "embedding_size", "growth_rate", "bn_size",
                                                         "init_channels", "fcm_channels", "bn_eps", "seg_pool")},
                           blocks=tuple(map(tuple, c["blocks"])))
    net = SpeakerEncoder(config)
    golden.fill(net)
    stages = {key: _speaker_stages(net, golden[f"in.{key}"]) for key in ("feat", "feat_short")}
    for stage in golden.names("out."):
        of = "feat_short" if stage == "head" or stage.endswith("_short") else "feat"
        found = stages[of].get(stage.removesuffix("_short"))
        if found is not None:
            n = golden[f"out.{stage}"].shape[-1]
            golden.compare(stage, found[..., :n] if stage == "head" else found)


def _speaker_stages(net: SpeakerEncoder, features: np.ndarray) -> dict[str, mx.array]:
    """Stages by name, (B, C, T) as PyTorch has them."""
    stages: dict[str, mx.array] = {}
    net(mx.array(features), stages.__setitem__)
    return {name: x.swapaxes(1, 2) if x.ndim == 3 else x for name, x in stages.items()}
