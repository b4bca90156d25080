"""Audio encoder and adapter against the reference's numbers, and clips in a batch against clips alone."""

import json
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from reference import tiny_net
from safetensors.numpy import load_file

from stepaudio.constants import n_audio_embeddings
from stepaudio.errors import AudioError
from stepaudio.models.encoder import Adapter, AudioEncoder, AudioEncoderConfig, average_pairs, n_rows, zero_past
from stepaudio.models.tap import named

TENSORS = load_file(Path(__file__).parents[1] / "assets" / "encoder.safetensors")
TOLERANCE = 1e-4  # largest difference over the root mean square; float32 on both sides
STAGES = ["mask", "conv2", "0.resid_post", "2.resid_post", "pooled", "out", "adapter.conv"]
NAMES = {  # ours -> the golden file's
    "mask": "mask_bias",
    "out": "encoder",
    "0.resid_post": "block0",
    "2.resid_post": "block2",
    "adapter.conv": "adapter_conv",
}


class EncoderAndAdapter(nn.Module):
    def __init__(self, positions: int):
        super().__init__()
        config = AudioEncoderConfig(
            n_mels=128,
            n_audio_ctx=positions,
            n_audio_state=64,
            n_audio_head=4,
            n_audio_layer=3,
            llm_dim=96,
            kernel_size=3,
            adapter_stride=2,
        )
        self.encoder, self.adapter = AudioEncoder(config), Adapter(config)


def filled(tensors: dict, strict: bool) -> EncoderAndAdapter:
    net = EncoderAndAdapter(tensors["w.encoder.positional_embedding.weight"].shape[0])
    weights = {n[2:]: a.swapaxes(1, 2) if a.ndim == 3 else a for n, a in tensors.items() if n.startswith("w.")}
    net.load_weights([(n, mx.array(a)) for n, a in weights.items()], strict=strict)
    return net


NETS = filled(TENSORS, strict=False)  # the copy lacks the adapter's linears and positions nobody reaches
TINY = tiny_net(seed=2)


def off(got, want) -> float:
    got, want = np.array(got), np.array(want)
    assert got.shape == want.shape
    return float(np.abs(got - want).max() / np.sqrt(np.mean(want.astype(np.float64) ** 2)))


def stages_of(net: EncoderAndAdapter, batch: str, independent: bool = False) -> dict[str, mx.array]:
    found: dict[str, mx.array] = {}
    mel, x_len = mx.array(TENSORS[f"in.{batch}.mel"]), mx.array(TENSORS[f"in.{batch}.x_len"])
    net.adapter(net.encoder(mel, x_len, independent, tap=found.__setitem__), named(found.__setitem__, "adapter."))
    return found


@pytest.mark.parametrize(("batch", "stage"), [("A", s) for s in STAGES] + [("B", "mask"), ("B", "out")])
def test_stages_equal_the_reference(batch, stage):
    found = stages_of(NETS, batch)
    got = found["mask"][:, 0] if stage == "mask" else found[stage]
    got = got.swapaxes(1, 2) if stage == "conv2" else got
    want = TENSORS[f"out.{batch}.{NAMES.get(stage, stage)}"]
    assert np.array_equal(got, want) if stage == "mask" else off(got, want) < TOLERANCE


@pytest.mark.parametrize("batch", ["A", "B"])
def test_adapter_and_lone_clips_equal_the_reference(goldens, batch):
    tensors = load_file(goldens / "encoder_adapter.safetensors")
    config = json.loads((goldens / "encoder_adapter.json").read_text())["config"]
    net = filled(tensors, strict=True)
    assert tensors["w.encoder.positional_embedding.weight"].shape[0] == config["n_ctx"]
    mel, x_len = mx.array(tensors[f"in.{batch}.mel"]), mx.array(tensors[f"in.{batch}.x_len"])
    together = net.adapter(net.encoder(mel, x_len))
    assert off(together, tensors[f"out.{batch}.adapter"]) < TOLERANCE
    apart = net.adapter(net.encoder(mel, x_len, independent=True))
    for i in range(3):
        want = tensors[f"out.{batch}.single{i}.adapter"][0]
        assert off(apart[i, : len(want)], want) < TOLERANCE
        # The golden file's own verdict on which clips the reference lets the batch change; some in each batch.
        differs = off(tensors[f"out.{batch}.adapter"][i, : len(want)], want) > 0.01
        assert differs == ((batch, i) in {("A", 2), ("B", 1), ("B", 2)})
        assert (off(together[i, : len(want)], want) > 0.01) == differs


@pytest.mark.parametrize("batch", ["A", "B"])
def test_lengths_equal_the_reference(batch):
    x_len = TENSORS[f"in.{batch}.x_len"]
    assert np.array_equal(n_rows(x_len), TENSORS[f"out.{batch}.feat_len"])


def random_mels(lengths, n_mels=8, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(n_mels, n)).astype(np.float32) for n in lengths]


ODD_AND_EVEN = [[n, m] for n in (5, 6, 7, 8, 21, 22, 23, 24) for m in (5, 24, 41, 127, 128) if m >= n]


MORE = [[5, 5, 5], [5, 6, 7, 8, 9, 10, 11, 12], [128, 5, 33, 6]]


@pytest.mark.parametrize("lengths", ODD_AND_EVEN + MORE, ids=str)
def test_independent_clips_do_not_depend_on_the_batch(lengths):
    mels = random_mels(lengths, seed=sum(lengths))
    together = TINY.encode_audio(mels, independent=True)
    for mel, rows in zip(mels, together, strict=True):
        # Alone, the reference's way and ours are the same thing: nothing is padded.
        for independent in (True, False):
            alone = TINY.encode_audio([mel], independent=independent)[0]
            assert alone.shape[0] == n_audio_embeddings(mel.shape[1])
            assert off(rows, alone) < 1e-5


def test_what_lies_in_the_padding_does_not_matter():
    mel = np.zeros((2, 8, 60), np.float32)
    mel[0], mel[1, :, :31] = random_mels([60])[0], random_mels([31])[0]
    x_len = mx.array([58, 29])
    clean = TINY.adapter(TINY.encoder(mx.array(mel), x_len, independent=True))
    rows = n_audio_embeddings(31)
    assert off(clean[1, :rows], TINY.encode_audio([mel[1, :, :31]])[0]) < 1e-5


@pytest.mark.parametrize(("frames", "changed"), [(30, "last row"), (31, "every row"), (32, "no row")])
def test_reference_mode_depends_on_the_batch(frames, changed):
    # 60 frames beside it: an odd clip gets the mask of an even one; an unmasked convolution reaches past the end.
    mels = random_mels([frames, 60])
    alone, together = TINY.encode_audio(mels[:1])[0], TINY.encode_audio(mels, independent=False)[0]
    moved = np.abs(np.array(alone - together)).max(axis=1) > 1e-3
    want = {"last row": [False] * 3 + [True], "every row": [True] * 4, "no row": [False] * 4}[changed]
    assert moved.tolist() == want


def test_masked_keys_carry_no_weight():
    found: dict[str, mx.array] = {}
    mel = random_mels([41])[0][None]
    TINY.encoder(mx.array(mel), mx.array([20]), tap=found.__setitem__)
    weights = np.array(found["0.pattern"])
    assert np.abs(weights.sum(-1) - 1).max() < 1e-6
    visible = np.array(found["mask"])[0, 0, 0] == 0
    assert visible.sum() == 10 and not weights[..., ~visible].any() and (weights[..., visible] > 0).all()


def test_attention_with_and_without_a_tap_agree():
    mel, x_len = mx.array(np.stack(random_mels([40, 40]))), mx.array([38, 20])
    watched = TINY.encoder(mel, x_len, tap=lambda name, array: None)
    assert np.array_equal(watched, TINY.encoder(mel, x_len))


def test_pool_comes_before_the_norm():
    found: dict[str, mx.array] = {}
    x = TINY.encoder(mx.array(random_mels([21])[0][None]), mx.array([19]), tap=found.__setitem__)
    assert off(found["pooled"], average_pairs(found["1.resid_post"])) < 1e-6
    assert off(x, TINY.encoder.after_norm(found["pooled"])) < 1e-6


def test_small_parts():
    x = mx.arange(10, dtype=mx.float32).reshape(1, 5, 2)
    assert np.array_equal(average_pairs(x), [[[1, 2], [5, 6]]])
    assert np.array_equal(zero_past(x, mx.array([2])), [[[0, 1], [2, 3], [0, 0], [0, 0], [0, 0]]])
    assert [int(n_rows(n - 2)) for n in range(5, 200)] == [n_audio_embeddings(n) for n in range(5, 200)]


def test_refuses_what_is_too_long():
    TINY.encode_audio(random_mels([128]))  # 64 positions, all there are
    with pytest.raises(AudioError, match="129 mel frames needs 65 encoder positions, the checkpoint has 64"):
        TINY.encode_audio(random_mels([129]))
    with pytest.raises(AudioError, match="needs 65"):
        TINY.encode_audio(random_mels([20, 129]))
