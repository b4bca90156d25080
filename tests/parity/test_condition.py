"""Waves of any length: those of a right vocoder pass, those of a wrong one do not.

The other side is the vocoder in PyTorch (`torch_vocoder`), with random weights, on waves of 1 and 5 s.
"""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from layout_twins import hift_layout
from safetensors.numpy import save_file

from stepaudio.models.token2wav import hift as vocoder
from stepaudio.models.token2wav.hift import HiftConfig
from stepaudio.parity import token2wav as checks
from stepaudio.parity.condition import CEILING, CONDITIONS, STRETCH, compare_sound
from stepaudio.parity.golden import Golden
from stepaudio.parity.run import verify
from stepaudio.synthesis import streaming

pytest.importorskip("torch")
from torch_vocoder import TorchVocoder

CONFIG = HiftConfig(in_channels=12, base_channels=16, f0_cond_channels=16)
SOUNDS = ("sines", "source", "wav", "source_no_noise", "wav_no_noise", "stream.source", "stream.wav", "stream.faded")
SEEN_TWICE = 8  # frames
FAR = 10  # tolerances that each fault is off by, at least


def weights(seed):
    """Random tensors whose pitch is that of a voice and whose sound is neither faint nor cut off."""
    rng, tensors = np.random.default_rng(seed), {}
    for name, shape in hift_layout(CONFIG).items():
        x = rng.normal(size=shape).astype(np.float32)
        if name.endswith(".original0"):
            x = np.abs(x) * 0.2 + 0.8
        if name.endswith("alpha"):
            x = np.abs(x) + 0.5
        if name.endswith("bias"):
            x *= 0.1
        tensors[name] = x
    tensors["f0_predictor.classifier.weight"] *= 60
    tensors["f0_predictor.classifier.bias"][:] = 130
    for name in tensors:  # no more than so much comes of each layer: else a wave is chaotic in its pitch
        if name.endswith(".original0") and not name.startswith("f0"):
            tensors[name] *= 0.5
        if name.startswith("source_downs") and name.endswith("weight"):
            tensors[name] *= 0.3
    tensors["conv_post.bias"][: CONFIG.istft.n_fft // 2 + 1] = 0.3
    return tensors


def smooth_mel(n, rng):
    knots = rng.normal(size=(CONFIG.in_channels, n // 6 + 2))
    return np.array([np.interp(np.arange(n) / 6, np.arange(n // 6 + 2), row) for row in knots], np.float32)[None]


def golden_file(folder, n_frames, n_next, seed=0):
    """A golden file of one whole wave and of a second call of a stream."""
    tensors, rng, per = weights(seed), np.random.default_rng(seed + 100), CONFIG.samples_per_frame
    theirs, H = TorchVocoder(tensors, CONFIG), CONFIG.nb_harmonics + 1
    mel, noise = smooth_mel(n_frames, rng), rng.normal(size=(1, n_frames * per, H)).astype(np.float32)
    whole, quiet = theirs(mel, noise), theirs(mel, 0 * noise)
    held, next_mel = SEEN_TWICE * per, np.concatenate([mel[:, :, -SEEN_TWICE:], smooth_mel(n_next, rng)], axis=2)
    next_noise = rng.normal(size=(1, next_mel.shape[2] * per, H)).astype(np.float32)
    cache = whole["source"][:, :, -held:]
    after, window = theirs(next_mel, next_noise, cache), np.hamming(2 * held)
    faded = after["wav"].copy()
    faded[:, :held] = faded[:, :held] * window[:held] + whole["wav"][:, -held:] * window[held:]
    arrays = {
        "in.mel": mel, "in.noise": noise, "in.stream.mel": next_mel, "in.stream.noise": next_noise,
        "in.stream.cache_source": cache, "out.fade_window": window,
        "out.wav_no_noise": quiet["wav"], "out.source_no_noise": quiet["source"],
        "out.stream.source": after["source"], "out.stream.wav": after["wav"], "out.stream.faded": faded,
    }  # fmt: skip
    arrays |= {f"out.{n}": a for n, a in whole.items()} | {f"w.{n}": a for n, a in tensors.items()}
    config = {f: getattr(CONFIG, f) for f in ("in_channels", "base_channels", "f0_cond_channels")}
    (folder / "hift.json").write_text(json.dumps({"component": "hift", "config": config}), encoding="utf-8")
    save_file({n: np.ascontiguousarray(a, np.float32) for n, a in arrays.items()}, folder / "hift.safetensors")
    return folder


def rows_of(folder: Path):
    ((_, rows),) = verify(folder)
    return {row.stage: row for row in rows}


@pytest.fixture(scope="module")
def long_set(tmp_path_factory):
    return golden_file(tmp_path_factory.mktemp("long"), n_frames=250, n_next=40)


@pytest.fixture(scope="module")
def short_set(tmp_path_factory):
    return golden_file(tmp_path_factory.mktemp("short"), n_frames=30, n_next=12)


def test_a_long_wave_of_a_right_vocoder_passes(long_set):
    rows = rows_of(long_set)
    assert all(row.good for row in rows.values()), rows
    assert set(SOUNDS) <= set(rows) and all(rows[s].condition is not None for s in SOUNDS)
    assert rows["wav"].tolerance > 2e-3, "as long as this, or the fixed tolerance would do"


FAULTS = {
    "a hop of 481 samples": ("harmonic_phase", lambda f: lambda f0, n, rate, per: f(f0 * (481 / 480), n, rate, per)),
    "a frame late": ("harmonic_phase", lambda f: lambda f0, *a: f(mx.concatenate([f0[:, :1], f0[:, :-1]], 1), *a)),
    "the sign of the phase": ("harmonic_phase", lambda f: lambda *a: -f(*a)),
    "harmonics from the second on": ("harmonic_phase", lambda f: lambda f0, n, *a: f(f0, n + 1, *a)[..., 1:]),
    "a pitch off by a thousandth": ("harmonic_phase", lambda f: lambda f0, *a: f(f0 * 1.001, *a)),
    "a symmetric window": ("_window", lambda f: lambda n: np.hanning(n)),
    "a spectrum whose sign is turned": ("short_stft", lambda f: lambda x, *a: f(-x, *a)),
    "a sound one sample late": ("inverse_stft", lambda f: lambda *a: mx.roll(f(*a), 1, axis=1)),
    "a sound upside down": ("inverse_stft", lambda f: lambda *a: -f(*a)),
    "magnitudes 10 % too large": ("inverse_stft", lambda f: lambda m, *a: f(1.1 * m, *a)),
    "another slope": ("leaky_relu", lambda f: lambda x, slope: f(x, 0.05)),
}


@pytest.mark.parametrize(
    ("fault", "size"), [(f, "short") for f in FAULTS] + [("a hop of 481 samples", "long"), ("another slope", "long")]
)
def test_faults_of_the_vocoder_show_in_its_waves(short_set, long_set, monkeypatch, fault, size):
    name, make = FAULTS[fault]
    monkeypatch.setattr(vocoder, name, make(getattr(vocoder, name)))
    rows = rows_of(long_set if size == "long" else short_set)
    off = [s for s in SOUNDS if rows[s].verdict == "off"]
    assert {"wav", "wav_no_noise", "stream.wav"} <= set(off), (fault, rows)
    assert max(rows[s].absolute / rows[s].tolerance for s in off) > FAR, rows


@pytest.mark.parametrize("fault", ["an even cross-fade", "a cross-fade a sample late", "the halves exchanged"])
def test_faults_of_a_chunk_boundary_show(short_set, monkeypatch, fault):
    halves, fade = streaming.fade_halves, streaming.cross_fade
    changed = {
        "an even cross-fade": ("fade_halves", lambda n, how="hamming": halves(n, "even")),
        "a cross-fade a sample late": ("cross_fade", lambda a, b, *how: fade(a, mx.roll(b, 1, axis=1), *how)),
        "the halves exchanged": ("fade_halves", lambda n, how="hamming": halves(n, how)[::-1]),
    }
    monkeypatch.setattr(streaming, *changed[fault])
    row = rows_of(short_set)["stream.faded"]
    assert row.verdict == "off" and row.absolute > FAR * row.tolerance


def test_exchanged_blocks_show(short_set, monkeypatch):
    """Blocks of the source in the place of blocks of the sound."""
    load = checks.hift_net

    def exchanged(golden):
        net = load(golden)
        for i in range(len(net.ups)):
            net.source_resblocks[i], net.resblocks[3 * i] = net.resblocks[3 * i], net.source_resblocks[i]
        return net

    monkeypatch.setattr(checks, "hift_net", exchanged)
    row = rows_of(short_set)["wav_no_noise"]
    assert row.verdict == "off" and row.absolute > FAR * row.tolerance


def judged(want, found, moved_by, floor=2e-3):
    want, found = np.asarray(want, np.float32), np.asarray(found, np.float32)
    golden = Golden({}, {"out.x": want})
    compare_sound(golden, "x", found, found, [found + moved_by, found - moved_by], floor)
    return golden.rows[0]


def test_what_is_conditioned_too_ill_is_said_and_not_judged():
    n = 10 * STRETCH
    want = np.sin(np.arange(n)).astype(np.float32)
    grows = np.linspace(0, 2 * CEILING / CONDITIONS, n) * np.sqrt(0.5)  # the ceiling is reached half-way
    late = np.arange(n) > 0.8 * n
    row = judged(want, want + 0.5 * late, grows)
    assert row.verdict == "ok" and row.note.startswith("40% of it judged")
    assert judged(want, want + 0.5 * (np.arange(n) == 5), grows).verdict == "off"
    row = judged(want, want, 0 * grows + 1)
    assert row.verdict == "unusable" and "nothing can be judged" in row.note


def test_the_tolerance_is_eight_times_the_condition_and_never_less_than_the_floor():
    want = np.sin(np.arange(STRETCH)).astype(np.float32)
    for condition, tolerance in ((1e-3, 8e-3), (1e-4, 2e-3), (0, 2e-3)):
        row = judged(want, want, np.full(STRETCH, condition))
        assert row.tolerance == pytest.approx(tolerance, rel=1e-3) and row.verdict == "ok"
        assert row.condition == pytest.approx(condition, abs=1e-6)
        assert judged(want, want + 1.01 * tolerance, np.full(STRETCH, condition)).verdict == "off"


@pytest.mark.parametrize("spoil", [lambda x: x[:-1], lambda x: np.where(x == x[7], np.nan, x)])
def test_another_shape_and_numbers_that_are_none_are_off(spoil):
    want = np.sin(np.arange(3 * STRETCH)).astype(np.float32)
    golden = Golden({}, {"out.x": want})
    compare_sound(golden, "x", spoil(want), want, [want, want], 2e-3)
    assert golden.rows[0].verdict == "off" and golden.rows[0].stage == "x"
