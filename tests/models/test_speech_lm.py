"""Where audio goes into a prompt, as the reference puts it, and what does not fit."""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from reference import golden_net, tiny_net
from safetensors.numpy import load_file

from stepaudio.constants import n_audio_embeddings
from stepaudio.errors import AudioError, PromptError
from stepaudio.models.kv_cache import NoCache
from stepaudio.models.speech_lm import Slot, StepAudioConfig, StepAudioNet

TENSORS = load_file(Path(__file__).parents[1] / "assets" / "llm.safetensors")
NET = golden_net(TENSORS)
TINY = tiny_net(seed=5)
AUDIO_START = 400  # marker of the golden prompts


def off(got, want) -> float:
    got, want = np.array(got), np.array(want)
    assert got.shape == want.shape
    return float(np.abs(got - want).max() / np.sqrt(np.mean(want.astype(np.float64) ** 2)))


def mel(frames: int, bands: int = 8) -> np.ndarray:
    return np.random.default_rng(frames).normal(size=(bands, frames)).astype(np.float32)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_rows_and_nothing_else_are_replaced(k):
    tokens, want = TENSORS[f"in.audio{k}.ids"], TENSORS[f"out.audio{k}.embeds"]
    rows = TENSORS[f"out.audio{k}.rows"]
    breaks = np.flatnonzero(np.diff(rows) > 1) + 1
    runs = np.split(rows, breaks)  # the golden file's own idea of where each segment of audio lies
    assert [r[0] - 1 for r in runs] == np.flatnonzero(tokens[0] == AUDIO_START).tolist()
    features = [mx.array(want[0, r]) for r in runs]
    x = NET.embed(tokens, [Slot(0, int(r[0]), len(r)) for r in runs], features)
    assert np.array_equal(x, want)
    assert set(np.flatnonzero((np.array(NET.embed(tokens)) != want).any(-1)[0])) == set(rows.tolist())


@pytest.mark.parametrize("k", [1, 2, 3])
def test_encoding_and_reading_equal_the_reference(goldens, k):
    tensors = load_file(goldens / "llm.safetensors")
    c = json.loads((goldens / "llm.json").read_text())["config"]
    audio = {**c["audio_encoder_config"], "adapter_hidden": c["adapter_hidden"]}
    net = StepAudioNet(StepAudioConfig.from_dict({"text_config": c["text_config"], "audio_encoder_config": audio}))
    weights = {n[2:]: a.swapaxes(1, 2) if a.ndim == 3 else a for n, a in tensors.items() if n.startswith("w.")}
    net.load_weights([(n, mx.array(a)) for n, a in weights.items()])
    tokens, frames = tensors[f"in.audio{k}.ids"], tensors[f"in.audio{k}.mel_lens"] + 2
    mels = [m[:, :n] for m, n in zip(tensors[f"in.audio{k}.mels"], frames, strict=True)]
    encoded = net.encode_audio(mels, independent=False)
    assert [len(h) for h in encoded] == [n_audio_embeddings(int(n)) for n in frames]
    starts = np.flatnonzero(tokens[0] == c["token_ids"]["audio_start"]) + 1
    x = net.embed(tokens, [Slot(0, int(s), len(h)) for s, h in zip(starts, encoded, strict=True)], encoded)
    assert off(x, tensors[f"out.audio{k}.embeds"]) < 1e-4
    assert off(net.logits(x, NoCache(net.model.rope)), tensors[f"out.audio{k}.logits"]) < 1e-3


def test_several_rows_each_with_their_own_audio():
    tokens = np.arange(20).reshape(2, 10)
    a, b = TINY.encode_audio([mel(21), mel(40)])
    x = np.array(TINY.embed(tokens, [Slot(1, 2, len(a)), Slot(0, 5, len(b))], [a, b]))
    plain = np.array(TINY.embed(tokens))
    plain[1, 2 : 2 + len(a)], plain[0, 5 : 5 + len(b)] = np.array(a), np.array(b)
    assert np.array_equal(x, plain)
    assert np.array_equal(
        TINY.embed(tokens), TINY.model.embed_tokens.weight[mx.array(tokens)]
    )  # the table is untouched


@pytest.mark.parametrize(
    ("slots", "rows", "message"),
    [
        ([Slot(0, 2, 3)], [4], "audio slot 0 has 3 positions, its audio 4 embeddings"),
        ([Slot(0, 2, 3)], [2], "audio slot 0 has 3 positions, its audio 2 embeddings"),
        ([Slot(0, 8, 3)], [3], "leaves the prompt of 1 x 10 tokens"),
        ([Slot(0, -1, 3)], [3], "leaves the prompt"),
        ([Slot(1, 2, 3)], [3], "leaves the prompt"),
        ([Slot(-1, 2, 3)], [3], "leaves the prompt"),
        ([Slot(0, 2, 0)], [0], "audio slot 0 was given no embeddings"),
        ([Slot(0, 2, 3)], [], "1 audio slots but 0 segments"),
        ([], [3], "0 audio slots but 1 segments"),
    ],
)
def test_refuses_audio_that_does_not_fit(slots, rows, message):
    with pytest.raises(PromptError, match=message):
        TINY.embed(np.arange(10), slots, [mx.zeros((n, 32)) for n in rows])


def test_a_slot_may_end_with_the_prompt():
    assert not np.array(TINY.embed(np.arange(10), [Slot(0, 7, 3)], [mx.zeros((3, 32))]))[0, 7:].any()


@pytest.mark.parametrize("tokens", [[0, 48], [-1, 2], [[1, 2], [3, 1000]]], ids=str)
def test_refuses_ids_outside_the_vocabulary(tokens):
    with pytest.raises(PromptError, match="outside the vocabulary of 48 tokens"):
        TINY.embed(np.array(tokens))
    TINY.embed(np.array([0, 47]))


@pytest.mark.parametrize(
    ("mels", "message"),
    [
        ([], "no audio"),
        ([mel(20, 7)], r"log mel 0: expected shape \(8, frames\), found \(7, 20\)"),
        ([mel(20), mel(20).T], r"log mel 1: expected shape \(8, frames\), found \(20, 8\)"),
        ([mel(20)[None]], "expected shape"),
        ([mel(20), mel(4)], "log mel 1: 4 frames are too few"),
        ([mel(20)[:, :0]], "0 frames are too few"),
        ([mel(129)], "needs 65 encoder positions"),
    ],
)
def test_refuses_mels_that_do_not_fit(mels, message):
    with pytest.raises(AudioError, match=message):
        TINY.encode_audio(mels)


def test_shortest_clip_has_one_row():
    assert TINY.encode_audio([mel(5)])[0].shape == (1, 32)
