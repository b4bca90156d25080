"""Front ends against their goldens: log mels, filterbanks, lengths, resampling."""

from __future__ import annotations

import re

import numpy as np

from ..audio.features import (
    FLOW_FMAX,
    FLOW_HOP,
    FLOW_N_FFT,
    FLOW_N_MELS,
    FLOW_SAMPLE_RATE,
    PREEMPHASIS,
    flow_mel,
    kaldi_fbank,
    log_mel,
)
from ..audio.filters import KALDI_FMIN, KALDI_N_FFT, KALDI_N_MELS, kaldi_filterbank, mel_filterbank
from ..audio.resample import resampled
from ..choices import Resampler
from ..constants import CHUNK_SAMPLES, HOP, N_FFT, SAMPLE_RATE, TAIL_PADDING, n_audio_embeddings, n_mel_frames
from ..errors import DataError

FRONT_END = {"sample_rate": SAMPLE_RATE, "n_fft": N_FFT, "hop": HOP, "padding": TAIL_PADDING}


def mel_checks(golden, _tokenizer) -> None:
    """Log mels of every signal, filterbanks, and the arithmetic of audio embeddings."""
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
        golden.compare("token_num" + name, row_arithmetic(golden[f"out.token_num{name}"][:, 0]), 0)
    for pair in golden.names("out.resample."):
        golden.compare(f"resample.{pair}", _at_another_rate(golden["in.resample.wav"], pair), 1e-6, absolute=True)
    token2wav_mel_checks(golden)


def _at_another_rate(signal: np.ndarray, pair: str) -> np.ndarray:
    """A signal (n,) as the reference's kernel brings it from one rate to the other; pair : "48000_16000"."""
    found = re.fullmatch(r"(\d+)_(\d+)", pair)
    if not found:
        raise DataError(f"resample.{pair}: expected two rates in Hz, as in resample.48000_16000")
    return np.concatenate(list(resampled([signal], int(found[1]), int(found[2]), Resampler.REFERENCE)))


def row_arithmetic(samples: np.ndarray) -> np.ndarray:
    """Columns: samples; frames and audio embeddings if taken whole; embeddings after cutting at 25 s."""
    table = []
    for n in map(int, samples):
        segments = [min(CHUNK_SAMPLES, n - i) for i in range(0, n, CHUNK_SAMPLES)]
        whole = n_mel_frames(n)
        table.append([n, whole, n_audio_embeddings(whole), sum(n_audio_embeddings(n_mel_frames(s)) for s in segments)])
    return np.array(table)


LOG_MEL_TOLERANCE = 1e-4  # absolute, as for the encoder's front end
# Kaldi's lowest bands hold one or two bins, unnormalised; where such a band is quiet beside loud ones, the float32
# transform of the reference itself is 3e-4 away from float64 (root mean square: 7e-6).
KALDI_TOLERANCE = 1e-3
FLOW_FRONT_END = {
    "sample_rate": FLOW_SAMPLE_RATE,
    "n_fft": FLOW_N_FFT,
    "win": FLOW_N_FFT,
    "hop": FLOW_HOP,
    "fmin": 0,
    "fmax": FLOW_FMAX,
}
KALDI_FRONT_END = {
    "sample_frequency": SAMPLE_RATE,
    "frame_length_ms": N_FFT * 1000 // SAMPLE_RATE,
    "frame_shift_ms": HOP * 1000 // SAMPLE_RATE,
    "fft": KALDI_N_FFT,
    "low_freq": KALDI_FMIN,
    "preemph": PREEMPHASIS,
    "dither": 0,
}


def require_same(name: str, config: dict, ours: dict) -> None:
    """Raise `DataError` where the golden file's config has another value than this package."""
    for key, value in ours.items():
        if key in config and config[key] != value:
            raise DataError(f"config {name}.{key}: this package has {value}, the golden file {config[key]}")


def token2wav_mel_checks(golden) -> None:
    """Flow mels and kaldi features of every signal of a mel file, and kaldi's filterbank."""
    flow, kaldi = golden.config.get("flow_mel", {}), golden.config.get("kaldi", {})
    require_same("flow_mel", flow, FLOW_FRONT_END)
    require_same("kaldi", kaldi, KALDI_FRONT_END)
    n_flow, n_kaldi = flow.get("n_mels", FLOW_N_MELS), kaldi.get("num_mel_bins", KALDI_N_MELS)
    kinds = {
        "flow_mel": (lambda x: flow_mel(x, n_flow), LOG_MEL_TOLERANCE),
        "kaldi_fbank": (lambda x: kaldi_fbank(x, n_kaldi, subtract_mean=False), KALDI_TOLERANCE),
        "kaldi_fbank_cmn": (lambda x: kaldi_fbank(x, n_kaldi), KALDI_TOLERANCE),
    }
    for kind, (compute, tolerance) in kinds.items():
        for name in golden.names("out.", f".{kind}"):
            golden.compare(f"{name}.{kind}", compute(golden[f"in.{name}.wav"]), tolerance, absolute=True)
    for name in golden.names("out.kaldi_mel_banks_"):
        golden.compare(f"kaldi_mel_banks_{name}", kaldi_filterbank(int(name)), LOG_MEL_TOLERANCE, absolute=True)
