"""The speech tokenizer against the reference's own numbers, plain numpy, and itself in other batches."""

import json
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from layout_twins import s3_kernels, s3_layout
from mlx.utils import tree_flatten
from safetensors.numpy import load_file

from stepaudio.errors import AudioError, ConfigError
from stepaudio.models.token2wav.speech_tokenizer import (
    FSQVectorQuantization,
    ResidualAttentionBlock,
    S3Config,
    S3Encoder,
    S3Tokenizer,
    windows,
)
from stepaudio.parity.golden import Golden
from stepaudio.parity.voice import s3_checks

TENSORS = load_file(Path(__file__).parents[2] / "assets" / "s3.safetensors")  # batch rows without speech, block 0
GOLDEN_CONFIG = S3Config(n_audio_state=128, n_audio_head=2, n_audio_layer=2)
SMALL = S3Config(n_mels=6, n_audio_state=16, n_audio_head=2, n_audio_layer=2, n_codebook_size=27, fsmn_kernel=5)


def relative(got, want: np.ndarray) -> float:
    return float(np.abs(np.array(got) - want).max() / np.sqrt(np.mean(want**2)))


def filled(module, prefix: str):
    Golden({}, {"w." + n.removeprefix(prefix): t for n, t in TENSORS.items() if n.startswith(prefix)}).fill(module)
    return module


@pytest.fixture(scope="module")
def small() -> S3Tokenizer:
    """A net of random weights whose codes vary and which is far from linear."""
    net, rng = S3Tokenizer(SMALL), np.random.default_rng(0)
    net.load_weights(
        [(n, mx.array(rng.normal(0, 0.5, p.shape).astype(np.float32))) for n, p in tree_flatten(net.parameters())]
    )
    return net


def mels(n: int, frames: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, (n, SMALL.n_mels, frames)).astype(np.float32)


def test_block_equals_the_reference():
    block = filled(ResidualAttentionBlock(GOLDEN_CONFIG), "w.encoder.blocks.0.")
    stages: dict[str, mx.array] = {}
    x = mx.array(TENSORS["out.conv2"].swapaxes(1, 2))
    y = block(x, mx.array(TENSORS["out.code_len"]), stages.__setitem__)
    assert relative(stages["attn_out"], TENSORS["out.attn0"]) < 2e-5
    assert relative(y, TENSORS["out.block0"]) < 2e-5
    assert relative(block(x, mx.array(TENSORS["out.code_len"])), TENSORS["out.block0"]) < 2e-5  # the fused kernel


def test_quantiser_equals_the_reference():
    # The published name starts with an underscore, which only the whole tokenizer lets through.
    quantizer = FSQVectorQuantization(GOLDEN_CONFIG)
    filled(quantizer._codebook, "w.quantizer._codebook.")
    codes = np.array(quantizer(mx.array(TENSORS["out.hidden"])))
    for row, n, want in zip(codes, TENSORS["out.code_len"], TENSORS["out.codes"], strict=True):
        assert np.array_equal(row[:n], want[:n])


@pytest.mark.parametrize(
    ("digits", "code"),
    [((-1, -1, -1), 0), ((0, -1, -1), 1), ((-1, -1, 1), 18), ((1, 0, -1), 5), ((0, 0, 0), 13), ((1, 1, 1), 26)],
)
def test_codes_by_hand(digits, code):
    quantizer = FSQVectorQuantization(SMALL)
    codebook = quantizer._codebook.project_down
    codebook.weight, codebook.bias = mx.eye(3, SMALL.n_audio_state), mx.zeros((3,))
    x = np.zeros((1, 1, SMALL.n_audio_state), np.float32)
    x[..., :3] = np.array(digits) * 9.0
    assert quantizer(mx.array(x)).item() == code


def test_goldens_whole(goldens):
    sidecar = json.loads((goldens / "s3tokenizer.json").read_text())
    golden = Golden(sidecar["config"], load_file(goldens / "s3tokenizer.safetensors"))
    s3_checks(golden, None)
    rows = golden.finish()
    assert {"codes", "long.codes", "hidden", "conv1"} <= {r.stage for r in rows}
    assert [r for r in rows if r.verdict != "ok"] == []


def test_layout_is_the_published_one(shared):
    published = json.loads((shared / "published_layout.json").read_text())["speech_tokenizer_v2_25hz"]
    layout = s3_layout(S3Config())
    assert layout == {name: tuple(shape) for name, shape in published["tensors"].items()}
    assert sum(int(np.prod(shape)) for shape in layout.values()) == published["parameters"]


@pytest.mark.parametrize("config", [SMALL, replace(SMALL, n_audio_layer=1, fsmn_kernel=4, n_mels=3)])
def test_net_holds_the_layout(config):
    swapped = s3_kernels(config)
    want = {n: (s[0], s[2], s[1]) if n in swapped else s for n, s in s3_layout(config).items()}
    assert {n: p.shape for n, p in tree_flatten(S3Tokenizer(config).parameters())} == want
    assert swapped == {n for n, s in s3_layout(config).items() if len(s) == 3}


def plain_gelu(x):
    from math import erf

    return x * 0.5 * (1 + np.vectorize(erf)(x / np.sqrt(2)))


def plain_conv(x, weight, bias):
    """(T, in) -> (ceil(T / 2), out), one frame at a time."""
    x = np.pad(x, ((1, 1), (0, 0)))
    return np.stack([np.einsum("ki,oki->o", x[t : t + 3], weight) for t in range(0, len(x) - 2, 2)]) + bias


def test_convolutions_equals_a_plain_reference(small):
    n, padded = 13, mels(1, 20)
    stages: dict[str, mx.array] = {}
    small.encoder(mx.array(padded), mx.array([n]), stages.__setitem__)
    x = padded[0, :, :n].T.astype(np.float64)  # what lies past the length must not matter
    for name in ("conv1", "conv2"):
        conv = small.encoder[name]
        x = plain_gelu(plain_conv(x, np.array(conv.weight), np.array(conv.bias)))
        assert relative(stages[name][0, : len(x)], x) < 1e-5


def plain_memory(v, kernel):
    """FSMN: k // 2 steps back (one fewer for even kernels), the rest ahead, and the value itself."""
    S, k = len(v), kernel.shape[1]
    y = v.copy()
    for t in range(S):
        for j in range(k):
            at = t + j - (k - 1) // 2
            if 0 <= at < S:
                y[t] += v[at] * kernel[:, j, 0]
    return y


@pytest.mark.parametrize("k", [1, 4, 5])
def test_memory_equals_a_plain_reference(k):
    attention = S3Encoder(replace(SMALL, fsmn_kernel=k)).blocks[0].attn
    v = np.random.default_rng(1).normal(size=(1, 9, SMALL.n_audio_state)).astype(np.float32)
    got = np.array(attention.memory(mx.array(v), mx.array([7])))[0]
    assert np.abs(got[:7] - plain_memory(v[0, :7], np.array(attention.fsmn_block.weight))).max() < 1e-5
    assert np.all(got[7:] == 0)


@pytest.mark.parametrize("lengths", [[40, 1, 17], [39, 40, 2], [5, 4, 3]])
def test_batch_equals_alone(small, lengths):
    mel = mels(3, 40)  # noise past the lengths, too: the masks must hold it back
    together = small(mel, lengths)
    for row, (n, codes) in enumerate(zip(lengths, together, strict=True)):
        assert np.array_equal(codes, small(mel[row : row + 1, :, :n])[0])
        assert codes.dtype == np.int32 and len(codes) == -(-n // 4) == SMALL.n_codes(n)
    assert len(set(np.concatenate(together))) > 3


def reference_ranges(n: int) -> list[tuple[int, int]]:
    """Kept codes of each window, as s3tokenizer 0.3.0 slices its lists."""
    starts = list(range(0, n, 2600))
    kept = []
    for i, start in enumerate(starts):
        codes = list(range(start // 4, start // 4 + -(-(min(start + 3000, n) - start) // 4)))
        codes = codes[50 if i else 0 : -50 if i < len(starts) - 1 else len(codes)]
        kept.append((codes[0], codes[-1] + 1) if codes else (0, 0))
    return [k for k in kept if k != (0, 0)]


LONG = [3001, 3137, 5200, 5201, 5300, 5401, 5599, 5600, 5601, 7800, 8000, 8200, 8201, 60_000]


@pytest.mark.parametrize("n", LONG)
def test_windows_are_the_reference_s(n):
    kept = []
    for w in windows(n, S3Config()):
        assert w.stop - w.start <= 3000
        codes = range(w.start // 4, w.start // 4 + -(-(w.stop - w.start) // 4))[w.keep]
        kept += [(codes.start, codes.stop)] if len(codes) else []
    assert kept == reference_ranges(n)


@pytest.mark.parametrize("n", LONG)
def test_windows_can_keep_the_tail(n):
    codes = [
        c
        for w in windows(n, S3Config(), keep_tail=True)
        for c in range(w.start // 4, w.start // 4 + -(-(w.stop - w.start) // 4))[w.keep]
    ]
    assert codes == list(range(-(-n // 4)))


def test_the_reference_loses_codes_near_the_end():
    kept = sum(len(range(-(-(w.stop - w.start) // 4))[w.keep]) for w in windows(5300, S3Config()))
    assert (S3Config().n_codes(5300), kept) == (1325, 1275)  # two seconds


@pytest.mark.parametrize("n", [1, 4, 2999, 3000])
def test_short_clips_are_one_window(n):
    (window,) = windows(n, S3Config())
    assert (window.start, window.stop, window.keep) == (0, n, slice(0, -(-n // 4)))


def test_long_clips_are_windows_joined(small):
    mel = mels(2, 5301)
    long, short = small(mel, [5301, 100])
    pieces = [small(mel[:1, :, a:b])[0] for a, b in ((0, 3000), (2600, 5301), (5200, 5301))]
    assert np.array_equal(long, np.concatenate([pieces[0][:-50], pieces[1][50:-50], pieces[2][50:]]))
    assert np.array_equal(short, small(mel[1:, :, :100])[0])
    assert len(small(mel[:1], keep_tail=True)[0]) == -(-5301 // 4)


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((6, 20), np.float32),
        np.zeros((1, 7, 20), np.float32),
        np.zeros((1, 6, 0), np.float32),
        np.zeros((0, 6, 20), np.float32),
    ],
)
def test_refuses_other_shapes(small, bad):
    with pytest.raises(AudioError, match=r"expected log mels of shape \(clips, 6, frames\)"):
        small(bad)


@pytest.mark.parametrize("lengths", [[20], [20, 0], [20, 21], [20.0, 20.0], [[20, 20]], [20, -1]])
def test_refuses_lengths_that_do_not_fit(small, lengths):
    with pytest.raises(AudioError, match="expected 2 lengths, integers in 1 … 20"):
        small(mels(2, 20), lengths)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n_codebook_size", 6560),
        ("n_codebook_size", 1),
        ("n_audio_head", 3),
        ("n_audio_layer", 0),
        ("n_audio_state", 18),
        ("ln_eps", 0),
    ],
)
def test_refuses_impossible_sizes(field, value):
    with pytest.raises(ConfigError, match="s3 tokenizer"):
        replace(SMALL, **{field: value})
