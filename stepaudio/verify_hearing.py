"""Golden checks of the front end, the audio encoder and the adapter."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from .config import AudioEncoderConfig
from .encoder import Adapter, AudioEncoder, n_rows
from .errors import DataError
from .mel import log_mel, mel_filterbank
from .units import CHUNK_SAMPLES, HOP, N_FFT, SAMPLE_RATE, TAIL_PADDING, n_mel_frames, n_prompt_rows
from .verify_voice import speaking_mel_checks

FRONT_END = {"sample_rate": SAMPLE_RATE, "n_fft": N_FFT, "hop": HOP, "padding": TAIL_PADDING}


def mel_checks(golden, _tokenizer) -> None:
    """Log mels of every signal, filterbanks, and the arithmetic of prompt rows."""
    for key, value in FRONT_END.items():
        if golden.config[key] != value:
            raise DataError(f"config {key}: the model's front end has {value}, the golden file {golden.config[key]}")
    n_mels = golden.config["n_mels"]
    for name in golden.names("in.", ".wav"):
        signal = golden[f"in.{name}.wav"]
        for kind, padding in (("step_logmel", TAIL_PADDING), ("s3_logmel", 0)):
            if f"out.{name}.{kind}" in golden:
                golden.compare(f"{name}.{kind}", log_mel(signal, n_mels, padding), 1e-4, absolute=True)
    for name in golden.names("out.mel_filters_"):
        if name.isdecimal():  # others, such as 24k_80, belong to other front ends
            golden.compare(f"mel_filters_{name}", mel_filterbank(SAMPLE_RATE, N_FFT, int(name)))
    flow = golden.config.get("flow_mel")
    for name in golden.names("out.mel_filters_24k_"):
        bank = mel_filterbank(flow["sample_rate"], flow["n_fft"], int(name), flow["fmin"], flow["fmax"])
        golden.compare(f"mel_filters_24k_{name}", bank)
    for name in golden.names("out.token_num"):
        golden.compare("token_num" + name, _row_arithmetic(golden[f"out.token_num{name}"][:, 0]), 0)
    golden.leave([n for n in golden.names("out.") if n.startswith("resample.")],
                 "resampling is soxr's, not torchaudio's: another filter on purpose")
    speaking_mel_checks(golden)


def _row_arithmetic(samples: np.ndarray) -> np.ndarray:
    """Columns: samples; frames and rows if taken whole; rows after cutting at 25 s."""
    table = []
    for n in map(int, samples):
        pieces = [min(CHUNK_SAMPLES, n - i) for i in range(0, n, CHUNK_SAMPLES)]
        whole = n_mel_frames(n)
        table.append([n, whole, n_prompt_rows(whole), sum(n_prompt_rows(n_mel_frames(p)) for p in pieces)])
    return np.array(table)


class _Hearing(nn.Module):
    def __init__(self, config: AudioEncoderConfig):
        super().__init__()
        self.encoder, self.adapter = AudioEncoder(config), Adapter(config)
        self.stride = config.adapter_stride


def encoder_checks(golden, _tokenizer) -> None:
    """Every stage of encoder and adapter, for whole batches and for clips alone."""
    c = golden.config
    config = AudioEncoderConfig(n_mels=c["n_mels"], n_audio_ctx=c["n_ctx"], n_audio_state=c["n_state"],
                                n_audio_head=c["n_head"], n_audio_layer=c["n_layer"], llm_dim=c["llm_dim"],
                                kernel_size=c["kernel_size"], adapter_stride=c["adapter_stride"],
                                adapter_hidden=c["adapter_hidden"])
    net = _Hearing(config)
    golden.fill(net)
    for batch in golden.names("in.", ".mel"):
        _check_batch(golden, net, batch)


def _check_batch(golden, net: _Hearing, batch: str) -> None:
    mel, x_len = mx.array(golden[f"in.{batch}.mel"]), mx.array(golden[f"in.{batch}.x_len"])
    stages: dict[str, mx.array] = {}
    tap = stages.__setitem__
    net.adapter(net.encoder(mel, x_len, tap=tap), tap)
    found = {**stages, "mask_bias": stages["mask"][:, 0], "encoder": stages["encoded"],
             "conv1": stages["conv1"].swapaxes(1, 2), "conv2": stages["conv2"].swapaxes(1, 2),
             "encoder_len": (x_len + 1) // 4, "feat_len": n_rows(x_len, net.stride)}
    for stage in golden.names(f"out.{batch}."):
        if stage in found:
            golden.compare(f"{batch}.{stage}", found[stage], 0 if stage.endswith("_len") else 1e-4)
    together = net.adapter(net.encoder(mel, x_len, independent=True))
    for single in golden.names(f"out.{batch}.single", ".adapter"):
        n = golden[f"out.{batch}.single{single}.adapter"].shape[1]
        golden.compare(f"{batch}.single{single}.adapter", together[int(single)][None, :n])
