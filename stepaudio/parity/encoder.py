"""Golden checks of the audio encoder and the adapter."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from ..models.encoder import Adapter, AudioEncoder, AudioEncoderConfig, n_rows
from ..models.tap import named
from .golden import under_golden_names

GOLDEN_NAMES = {
    r"encoder\.0\.resid_pre": "embedded",
    r"encoder\.(\d+)\.resid_post": r"block\1",
    r"encoder\.out": "encoder",
    r"encoder\.(\w+)": r"\1",
    r"adapter\.conv": "adapter_conv",
    r"adapter\.out": "adapter",
}


class EncoderAndAdapter(nn.Module):
    """The two nets under the names that the golden file's weights have."""

    def __init__(self, config: AudioEncoderConfig):
        super().__init__()
        self.encoder, self.adapter = AudioEncoder(config), Adapter(config)
        self.stride = config.adapter_stride


def encoder_checks(golden, _tokenizer) -> None:
    """Every stage of encoder and adapter, for whole batches and for clips alone."""
    c = golden.config
    config = AudioEncoderConfig(
        n_mels=c["n_mels"],
        n_audio_ctx=c["n_ctx"],
        n_audio_state=c["n_state"],
        n_audio_head=c["n_head"],
        n_audio_layer=c["n_layer"],
        llm_dim=c["llm_dim"],
        kernel_size=c["kernel_size"],
        adapter_stride=c["adapter_stride"],
        adapter_hidden=c["adapter_hidden"],
    )
    net = EncoderAndAdapter(config)
    golden.fill(net)
    for batch in golden.names("in.", ".mel"):
        _check_batch(golden, net, batch)


def _check_batch(golden, net: EncoderAndAdapter, batch: str) -> None:
    mel, x_len = mx.array(golden[f"in.{batch}.mel"]), mx.array(golden[f"in.{batch}.x_len"])
    stages: dict[str, mx.array] = {}
    tap = stages.__setitem__
    net.adapter(net.encoder(mel, x_len, tap=named(tap, "encoder.")), named(tap, "adapter."))
    stages = under_golden_names(stages, GOLDEN_NAMES)
    found = {
        **stages,
        "mask_bias": stages["mask"][:, 0],
        "conv1": stages["conv1"].swapaxes(1, 2),
        "conv2": stages["conv2"].swapaxes(1, 2),
        "encoder_len": (x_len + 1) // 4,
        "feat_len": n_rows(x_len, net.stride),
    }
    for stage in golden.names(f"out.{batch}."):
        if stage in found:
            golden.compare(f"{batch}.{stage}", found[stage], 0 if stage.endswith("_len") else 1e-4)
    together = net.adapter(net.encoder(mel, x_len, independent=True))
    for single in golden.names(f"out.{batch}.single", ".adapter"):
        n = golden[f"out.{batch}.single{single}.adapter"].shape[1]
        golden.compare(f"{batch}.single{single}.adapter", together[int(single)][None, :n])
