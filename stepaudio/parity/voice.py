"""Golden checks of what reads a voice: speech tokenizer, speaker encoder and their front ends."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from ..errors import DataError
from ..models.token2wav.campplus import SpeakerConfig, SpeakerEncoder
from ..models.token2wav.speech_tokenizer import ROPE_BASE, TANH_SCALE, S3Config, S3Tokenizer
from .features import require_same
from .golden import under_golden_names

GOLDEN_NAMES = {r"(\d+)\.resid_post": r"block\1", r"(\d+)\.attn_out": r"attn\1", r"out": "hidden"}


def s3_checks(golden, _tokenizer) -> None:
    """Every stage of the speech tokenizer for a batch, its codes, and the codes of clips longer than one window."""
    c = golden.config
    config = S3Config(
        n_mels=c["n_mels"],
        n_audio_state=c["n_audio_state"],
        n_audio_head=c["n_audio_head"],
        n_audio_layer=c["n_audio_layer"],
        stride=c["stride"],
        n_codebook_size=c["codebook"],
        fsmn_kernel=c["fsmn_kernel"],
        ln_eps=c["ln_eps"],
    )
    size = config.n_audio_state // config.n_audio_head
    require_same("s3tokenizer", c, {"tanh_scale": TANH_SCALE, "head_dim": size})
    if "rope" in c and f"theta {ROPE_BASE:.0f}" not in c["rope"]:
        raise DataError(
            f"config s3tokenizer.rope: this package has theta {ROPE_BASE:.0f}, the golden file {c['rope']!r}"
        )
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
    stages = under_golden_names(stages, GOLDEN_NAMES)
    n_codes = net.config.n_codes(lengths)
    found = {
        **stages,
        "conv1": stages["conv1"].swapaxes(1, 2),
        "conv2": stages["conv2"].swapaxes(1, 2),
        "code_len": n_codes,
    }
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
    config = SpeakerConfig(
        **{
            name: c[name]
            for name in (
                "feat_dim",
                "embedding_size",
                "growth_rate",
                "bn_size",
                "init_channels",
                "fcm_channels",
                "bn_eps",
                "seg_pool",
            )
        },
        blocks=tuple(map(tuple, c["blocks"])),
    )
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
