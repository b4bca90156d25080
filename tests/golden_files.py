"""Golden files of other sizes, made by the package: they show the plumbing of the verifier, not the arithmetic."""

import json

import mlx.core as mx
import numpy as np
import tiny
from mlx.utils import tree_flatten
from safetensors.numpy import save_file

from stepaudio.audio.features import log_mel
from stepaudio.audio.filters import mel_filterbank
from stepaudio.models.encoder import AudioEncoderConfig
from stepaudio.models.kv_cache import NoCache
from stepaudio.models.speech_lm import Slot, StepAudioConfig, StepAudioNet
from stepaudio.models.tap import named
from stepaudio.parity.decoder import GREEDY, greedy_tokens
from stepaudio.parity.encoder import EncoderAndAdapter
from stepaudio.parity.features import row_arithmetic
from stepaudio.text.tokenizer import Tokenizer


def normal(shape, seed=0):
    return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)


def write(folder, name, config, arrays, component=None):
    sidecar = {"component": component or name, "config": config}
    (folder / f"{name}.json").write_text(json.dumps(sidecar), encoding="utf-8")
    save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, folder / f"{name}.safetensors")


def randomised(module):
    """Fills a module with normals; returns its weights as a golden file has them."""
    stored = {}
    for i, (name, array) in enumerate(tree_flatten(module.parameters())):
        value = normal(array.shape, i) * 0.3 + (array.ndim == 1 and name.endswith("weight"))
        module.load_weights([(name, mx.array(value))], strict=False)
        stored["w." + name] = value.swapaxes(1, 2) if value.ndim == 3 else value
    return stored


def mel_file(folder):
    x = tiny.noise(1)
    rows = row_arithmetic(np.arange(0, 900_000, 77_777))
    write(folder, "mel", {"sample_rate": 16_000, "n_fft": 400, "hop": 160, "padding": 479, "n_mels": 80}, {
        "in.x.wav": x, "out.x.step_logmel": log_mel(x, 80), "out.x.s3_logmel": log_mel(x, 80, 0),
        "out.mel_filters_80": mel_filterbank(16_000, 400, 80), "out.token_num": rows})  # fmt: skip


SIZES = {
    "n_mels": 12,
    "n_audio_ctx": 70,
    "n_audio_state": 24,
    "n_audio_head": 2,
    "n_audio_layer": 1,
    "llm_dim": 20,
    "kernel_size": 3,
    "adapter_stride": 2,
}


def encoder_file(folder, stride=2):
    config = AudioEncoderConfig(**SIZES | {"adapter_stride": stride}, adapter_hidden=28)
    net, stages = EncoderAndAdapter(config), {}
    arrays = randomised(net)
    mel, x_len = normal((2, 12, 101)), np.array([99, 50], np.int32)
    tap = stages.__setitem__
    net.adapter(net.encoder(mx.array(mel), mx.array(x_len), tap=tap), named(tap, "adapter."))
    arrays |= {"in.Z.mel": mel, "in.Z.x_len": x_len}
    ours = {"embedded": "0.resid_pre", "block0": "0.resid_post", "pooled": "pooled"}
    for stage, name in (ours | {"adapter_conv": "adapter.conv", "adapter": "adapter.out"}).items():
        arrays[f"out.Z.{stage}"] = np.array(stages[name])
    arrays["out.Z.encoder_len"] = (x_len + 1) // 4
    arrays["out.Z.feat_len"] = ((x_len + 1) // 4 - 1) // stride + 1
    alone = net.adapter(net.encoder(mx.array(mel[1:, :, :52]), mx.array(x_len[1:])))
    arrays["out.Z.single1.adapter"] = np.array(alone[:, : arrays["out.Z.feat_len"][1]])
    c = {"n_ctx": "n_audio_ctx", "n_state": "n_audio_state", "n_head": "n_audio_head", "n_layer": "n_audio_layer"}
    flat = {short: SIZES[long] for short, long in c.items()} | {"adapter_stride": stride, "adapter_hidden": 28}
    write(folder, "encoder_adapter", flat | {k: SIZES[k] for k in ("n_mels", "llm_dim", "kernel_size")}, arrays)


def llm_file(folder):
    text = {
        "hidden_size": 20,
        "intermediate_size": 30,
        "num_attention_heads": 5,
        "num_key_value_heads": 1,
        "num_hidden_layers": 2,
        "vocab_size": 90,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e4,
    }
    whole = {"text_config": text, "audio_encoder_config": {**SIZES, "adapter_hidden": 28}}
    net = StepAudioNet(StepAudioConfig.from_dict(whole))
    arrays, stages = randomised(net), {}
    ids = np.random.default_rng(1).integers(0, 80, (1, 17))
    x = net.embed(ids)
    logits = net.logits(x, NoCache(net.model.rope), stages.__setitem__)
    arrays |= {
        "in.text.ids": ids,
        "out.text.logits": np.array(logits),
        "out.text.layer1": np.array(stages["decoder.1.resid_post"]),
    }
    for name, rules in GREEDY.items():
        arrays[f"out.greedy.{name}"] = np.array(greedy_tokens(net, ids, x, 12, rules))
    plain = arrays["out.greedy.plain"]
    stop = int(plain[5])
    arrays |= {"in.greedy.eos_id": np.array([stop]), "out.greedy.eos": plain[: list(plain).index(stop) + 1]}
    mels = normal((1, 12, 60))
    (rows,) = net.encode_audio([mels[0]])
    prompt = np.array([[3, 81, *[82] * len(rows), 83, 5]])
    y = net.embed(prompt, [Slot(0, 2, len(rows))], [rows])
    arrays |= {
        "in.audio1.ids": prompt,
        "in.audio1.mels": mels,
        "in.audio1.mel_lens": np.array([58], np.int32),
        "out.audio1.rows": np.arange(2, 2 + len(rows)),
        "out.audio1.embeds": np.array(y),
        "out.audio1.logits": np.array(net.logits(y, NoCache(net.model.rope))),
        "out.audio1.greedy": np.array(greedy_tokens(net, prompt, y, 7)),
    }
    write(
        folder,
        "llm",
        {**whole, "audio_encoder_config": SIZES, "adapter_hidden": 28, "token_ids": {"audio_start": 81}},
        arrays | rule_arrays(),
    )


def rule_arrays():
    """Logit rules by their definitions, in numpy."""
    logits, history = normal((2, 30), 5), np.random.default_rng(6).integers(0, 30, (2, 25))
    counts = np.stack([np.bincount(h, minlength=30) for h in history])
    kept = np.where(logits >= np.sort(logits, 1)[:, -4:][:, :1], logits, -np.inf)
    repeated = np.where(counts > 0, np.where(logits > 0, logits / 1.25, logits * 1.25), logits)
    return {
        "in.proc.logits": logits,
        "in.proc.history": history,
        "in.proc.tied_logits": np.round(logits * 2) / 2,
        "out.proc.counts": counts.astype(np.float32),
        "out.proc.temp0p5": logits / np.float32(0.5),
        "out.proc.topk4": kept,
        "out.proc.rep1p25": repeated.astype(np.float32),
        "out.proc.freq0.25_pres-1.5": (logits - 0.25 * counts + 1.5 * (counts > 0)).astype(np.float32),
    }


def text_files(folder, tokenizer: Tokenizer):
    pairs = [{"text": t, "ids": tokenizer.encode(t), "decode": t, "decode_skip_special": t} for t in tiny.SENTENCES[:4]]
    t = tokenizer
    chat = {
        "name": "one",
        "messages": [{"role": "human", "content": "hi"}, {"role": "assistant", "content": None}],
        "mel_frames": [],
        "audio_tokens": [],
        "ids": [t.bot, *t.encode("human\nhi"), t.eot, t.bot, *t.encode("assistant\n")],
    }
    (folder / "tokenizer_pairs.json").write_text(
        json.dumps({"component": "tokenizer", "pairs": pairs, "decode_only": [], "chats": [chat]})
    )
    special = [{"token": name, "id": t.id(name), "special": True} for name in ("<|BOT|>", "<|EOT|>", "<audio_start>")]
    first = t.first_audio_code
    (folder / "special_tokens.json").write_text(
        json.dumps(
            {"tokens": special, "audio_run": {"id_from": first, "id_to": first + tiny.N_AUDIO - 1}, "eos_id": t.eot}
        )
    )
