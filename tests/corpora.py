"""A speech corpus of five short clips, written by hand, and nets of a few channels to train on it."""

import json
from dataclasses import replace

import numpy as np
import tiny

from stepaudio.models.speech_lm import StepAudioConfig
from stepaudio.train import loop
from stepaudio.train.batches import Bucket, transcription_prompt
from stepaudio.train.recipe import Recipe

RATE = 16_000
BUCKETS = (Bucket(2.0, 3, 12, 0.5), Bucket(3.0, 2, 20, 0.5))
TEXTS = ["the cat", "sat on", "the mat", "what is", "the time now"]


def clip_lines(n=5, seconds=0.6):
    """Equal clips; each has two phonemes beside the silence at both ends, in frames of 25 ms."""
    size, lines = round(seconds * RATE), []
    for i in range(n):
        frames = round(seconds / 0.025)
        words = TEXTS[i].split()
        ids = [0, *[p for w in range(len(words)) for p in ([40 + w] if w == 0 else [16, 40 + w])], 0]
        durations = [2, *[3] * (len(ids) - 2), frames - 2 - 3 * (len(ids) - 2)]
        lines.append(
            {
                "id": str(i),
                "offset": i * size,
                "n_samples": size,
                "text": TEXTS[i],
                "ids": ids,
                "durations": durations,
            }
        )
    return lines


def write(folder, lines=None, tail=b"", name="a"):
    lines = clip_lines() if lines is None else lines
    folder.mkdir(exist_ok=True)
    n = max(line["offset"] + line["n_samples"] for line in lines)
    samples = np.random.default_rng(0).integers(-9000, 9000, n).astype(np.int16)
    samples.tofile(folder / f"{name}.pcm")
    (folder / f"{name}.jsonl").write_bytes(b"".join(json.dumps(line).encode() + b"\n" for line in lines) + tail)
    return samples


def write_for_speaking(folder, n_samples=12_800):
    """The five clips, of whole codes, and their texts as a person writes them."""
    lines = [line | {"n_samples": n_samples, "offset": k * n_samples} for k, line in enumerate(clip_lines())]
    write(folder, lines)
    texts = [{"id": line["id"], "text": line["text"], "say": line["text"].capitalize() + "."} for line in lines]
    (folder / "texts").write_text("".join(json.dumps(line) + "\n" for line in texts), encoding="utf-8")
    return folder


def speaking_command(folder, start, codec, out):
    corpus = ["--narrator", str(folder), "--texts", str(folder / "texts"), "--tokenizer", str(codec)]
    return ["speaking", *corpus, "--start", str(start), "--out", str(out)]


def sizes(rows):
    """A tenth of the parameters of the tiny model: training takes many steps."""
    whole = tiny.config(rows)
    text = replace(
        whole.text_config,
        hidden_size=16,
        intermediate_size=24,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_hidden_layers=1,
        rope_theta=1e4,
    )
    audio = replace(whole.audio_encoder_config, n_audio_state=16, llm_dim=16, adapter_hidden=24)
    return StepAudioConfig(text, audio)


def new_trainer(tokenizer, encoder=None, teacher=None, **changes):
    """A trainer of nets of a few channels; `encoder` has arrays of one that stays as it is, of any number of layers."""
    recipe = Recipe(steps=50, warmup=2, buckets=BUCKETS, **changes)
    config = sizes(-(-tokenizer.n_ids // 64) * 64)
    if encoder:
        layers = sum(name.endswith("attn_ln.weight") for name in encoder)
        config = replace(config, audio_encoder_config=replace(config.audio_encoder_config, n_audio_layer=layers))
    return loop.Trainer(recipe, config, transcription_prompt(tokenizer), tokenizer.text_limit, encoder, teacher)
