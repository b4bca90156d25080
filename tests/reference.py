"""Slow, obvious reference implementations of the nets and rules, and the tiny nets they are compared on.

Each is written from the definition, in float64 numpy or plain Python, without caches, masks shared with
the package, or anything incremental. `tiny_net` gives random weights large enough that attention decides.
"""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map

from stepaudio.models.decoder import TextConfig
from stepaudio.models.encoder import AudioEncoderConfig
from stepaudio.models.speech_lm import StepAudioConfig, StepAudioNet

# ------------------------------------------------------------------------------------------ tiny nets


def tiny_config(vocab: int = 48, layers: int = 2, max_cache_len: int = 4096, hidden: int = 32) -> StepAudioConfig:
    text = TextConfig(
        hidden_size=hidden,
        intermediate_size=48,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_hidden_layers=layers,
        vocab_size=vocab,
        rms_norm_eps=1e-6,
        rope_theta=1000.0,
    )
    audio = AudioEncoderConfig(
        n_mels=8,
        n_audio_ctx=64,
        n_audio_state=16,
        n_audio_head=2,
        n_audio_layer=2,
        llm_dim=hidden,
        kernel_size=3,
        adapter_stride=2,
        adapter_hidden=24,
    )
    return StepAudioConfig(text, audio, max_cache_len=max_cache_len)


def tiny_net(seed: int = 0, scale: float = 1.0, **sizes) -> StepAudioNet:
    """A net of normal weights; matrices have a gain of `scale`, so that larger means more decided."""
    net, rng = StepAudioNet(tiny_config(**sizes)), np.random.default_rng(seed)

    def draw(a: mx.array) -> mx.array:
        gain = scale * np.prod(a.shape[1:]) ** -0.5 if a.ndim > 1 else 0.3
        return mx.array((rng.normal(size=a.shape) * gain + (a.ndim == 1) * 0.5).astype(np.float32))

    net.update(tree_map(draw, net.parameters()))
    table = net.model.embed_tokens
    table.weight = mx.array(rng.normal(size=table.weight.shape).astype(np.float32))
    mx.eval(net.parameters())
    return net


def chain_net(after: dict[int, dict[int, float]]) -> StepAudioNet:
    """A real net of 32 tokens whose logits are a table: after[i][j], the logit of j after i (else -30)."""
    net = tiny_net(vocab=32)
    for layer in net.model.layers:  # neither attention nor the linears add anything, so an id is all there is
        layer.self_attn.o_proj.weight = mx.zeros_like(layer.self_attn.o_proj.weight)
        layer.mlp.down_proj.weight = mx.zeros_like(layer.mlp.down_proj.weight)
    table = np.full((32, 32), -30.0, dtype=np.float32)
    for i, logits in after.items():
        for j, logit in logits.items():
            table[j, i] = logit
    net.model.embed_tokens.weight = mx.eye(32)
    net.model.norm.weight = mx.full((32,), 32**-0.5)
    net.lm_head.weight = mx.array(table)
    return net


def golden_net(tensors: dict[str, np.ndarray]) -> StepAudioNet:
    """The net of the golden decoder; the audio encoder is a stub where its weights were left out."""
    text = TextConfig(
        hidden_size=96,
        intermediate_size=160,
        num_attention_heads=6,
        num_key_value_heads=2,
        num_hidden_layers=4,
        vocab_size=512,
        rms_norm_eps=1e-6,
        rope_theta=1e6,
    )
    audio = AudioEncoderConfig(
        n_mels=8,
        n_audio_ctx=8,
        n_audio_state=8,
        n_audio_head=1,
        n_audio_layer=1,
        llm_dim=96,
        kernel_size=3,
        adapter_stride=2,
        adapter_hidden=8,
    )
    net = StepAudioNet(StepAudioConfig(text, audio))
    names = [n for n in tensors if n.startswith(("w.model.", "w.lm_head."))]
    weights = [(n[2:], mx.array(tensors[n])) for n in names]
    assert len(weights) == 4 * 12 + 3
    net.load_weights(weights, strict=False)
    return net


# ------------------------------------------------------------------------------------------ decoder and caches


def remembered(p: int, kept: set[int], max_len: int | None) -> list[int]:
    """What position p may attend to, in order: what is kept, and the last others that fit."""
    if max_len is None:
        return list(range(p + 1))
    others = [j for j in range(p + 1) if j not in kept]
    recent = others[-(max_len - len(kept)) :]
    return sorted([j for j in range(p + 1) if j in kept] + recent)


def visibility(n: int, kept: set[int], max_len: int | None, renumbered: bool):
    """(n, n) seen, and the rotary positions of query and key for every pair (query, key)."""
    seen, at_query, at_key = np.zeros((n, n), bool), np.zeros((n, n)), np.zeros((n, n))
    for p in range(n):
        memory = remembered(p, kept, max_len)
        for rank, j in enumerate(memory):
            seen[p, j] = True
            at_key[p, j] = rank if renumbered else j
            at_query[p, j] = memory.index(p) if renumbered else p
    return seen, at_query, at_key


def rotate(x: np.ndarray, position: np.ndarray, base: float) -> np.ndarray:
    """Halves convention: channel i turns with i + D/2 by position / base^(2i/D). x (…, D), position (…)."""
    D = x.shape[-1]
    angle = position[..., None] * base ** (-2.0 * np.arange(D // 2) / D)
    a, b = x[..., : D // 2], x[..., D // 2 :]
    return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], axis=-1)


def decoder_reference(
    net: StepAudioNet, x, kept=(), max_len: int | None = None, renumbered: bool = False, edits=None, hold=lambda a: a
) -> np.ndarray:
    """Logits (n, V) of one whole sequence of embeddings (n, D), every pair of positions worked out by itself.

    `edits` : name of an activation -> what stands in its place, (n, …) or (heads, n, …); read as `put` is written.
    `hold` : what a cache makes of keys and values (…, size) by storing them.
    """
    config, edits = net.config.text_config, edits or {}
    weights = {name: np.array(a, dtype=np.float64) for name, a in _flat(net.parameters())}
    x = np.array(x, dtype=np.float64)
    seen, at_query, at_key = visibility(len(x), set(kept), max_len, renumbered)

    def put(name, h):
        return np.array(edits[name], dtype=np.float64) if name in edits else h

    def linear(name, h):
        return h @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0.0)

    def norm(name, h):
        return h / np.sqrt(np.mean(h**2, axis=-1, keepdims=True) + config.rms_norm_eps) * weights[f"{name}.weight"]

    for i in range(config.num_hidden_layers):
        at, name = f"model.layers.{i}.", f"decoder.{i}."
        x = put(name + "resid_pre", x)
        h = norm(at + "input_layernorm", x)
        q, k, v = (
            put(name + c, linear(f"{at}self_attn.{c}_proj", h).reshape(len(x), -1, config.head_dim).swapaxes(0, 1))
            for c in "qkv"
        )  # (heads, n, size)
        v = put(name + "v_cache", hold(v))
        k = hold(k) if renumbered else k  # which are stored before they are rotated
        patterns = []
        for head in range(config.num_attention_heads):
            group = head // (config.num_attention_heads // config.num_key_value_heads)
            queries = rotate(np.repeat(q[head][:, None], len(x), axis=1), at_query, config.rope_theta)
            keys = rotate(np.repeat(k[group][None], len(x), axis=0), at_key, config.rope_theta)
            keys = keys if renumbered else hold(keys)
            if name + "rot_q" in edits:
                queries = np.repeat(edits[name + "rot_q"][head][:, None], len(x), axis=1)
            if name + "k_cache" in edits:
                keys = np.repeat(edits[name + "k_cache"][group][None], len(x), axis=0)
            scores = np.where(seen, (queries * keys).sum(-1) / np.sqrt(config.head_dim), -np.inf)
            share = np.exp(scores - scores.max(axis=1, keepdims=True))
            patterns.append(share / share.sum(axis=1, keepdims=True))
        pattern = put(name + "pattern", np.stack(patterns))
        z = put(name + "z", pattern @ np.repeat(v, len(pattern) // len(v), axis=0))
        x = x + put(name + "attn_out", linear(at + "self_attn.o_proj", z.swapaxes(0, 1).reshape(len(x), -1)))
        x = put(name + "resid_mid", x)
        h = norm(at + "post_attention_layernorm", x)
        gate = linear(at + "mlp.gate_proj", h)
        mlp = linear(at + "mlp.down_proj", gate / (1 + np.exp(-gate)) * linear(at + "mlp.up_proj", h))
        x = put(name + "resid_post", x + put(name + "mlp_out", mlp))
    return put("logits", linear("lm_head", put("decoder.out", norm("model.norm", x))))


def encoder_reference(net: StepAudioNet, mel, edits=None) -> np.ndarray:
    """Audio embeddings (R, D) of one unpadded log mel (M, T), every number from the definition; `edits` as above."""
    config, edits = net.config.audio_encoder_config, edits or {}
    weights = {name: np.array(a, dtype=np.float64) for name, a in _flat(net.parameters())}

    def put(name, h):
        return np.array(edits[name], dtype=np.float64) if name in edits else h

    def linear(name, h):
        return h @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0.0)

    def conv(name, h, stride):
        kernel, h = weights[f"{name}.weight"], np.pad(h, ((1, 1), (0, 0)))  # (out, 3, in)
        starts = range(0, len(h) - kernel.shape[1] + 1, stride)
        return gelu(np.stack([np.einsum("okc,kc->o", kernel, h[t : t + kernel.shape[1]]) for t in starts])
                    + weights[f"{name}.bias"])  # fmt: skip

    def norm(name, h):
        h = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-5)
        return h * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    mel = put("encoder.mel", np.array(mel, dtype=np.float64))
    x = put("encoder.conv2", conv("encoder.conv2", put("encoder.conv1", conv("encoder.conv1", mel.T, 1)), 2))
    x = x + weights["encoder.positional_embedding.weight"][: len(x)]
    counts = (mel.shape[1] + 1) % 2 + 2 * np.arange(len(x)) < mel.shape[1] - 2  # as the reference masks a lone clip
    mask = put("encoder.mask", np.where(counts, 0.0, -1e10))
    for i in range(config.n_audio_layer):
        name, at = f"encoder.{i}.", f"encoder.blocks.{i}."
        x = put(name + "resid_pre", x)
        h, heads = norm(at + "attn_ln", x), config.n_audio_head
        q, k, v = (
            put(name + c, linear(f"{at}attn.{long}", h).reshape(len(x), heads, -1).swapaxes(0, 1))
            for c, long in (("q", "query"), ("k", "key"), ("v", "value"))
        )
        scores = q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1]) + mask
        share = np.exp(scores - scores.max(-1, keepdims=True))
        pattern = put(name + "pattern", share / share.sum(-1, keepdims=True))
        z = put(name + "z", pattern @ v).swapaxes(0, 1).reshape(len(x), -1)
        x = put(name + "resid_mid", x + put(name + "attn_out", linear(at + "attn.out", z)))
        mlp = linear(at + "mlp.2", gelu(linear(at + "mlp.0", norm(at + "mlp_ln", x))))
        x = put(name + "resid_post", x + put(name + "mlp_out", mlp))
    x = put("encoder.pooled", (x[0 : len(x) // 2 * 2 : 2] + x[1::2]) / 2)
    x = put("adapter.conv", conv("adapter.conv", put("encoder.out", norm("encoder.after_norm", x)), 2))
    return put("adapter.out", linear("adapter.linear2", np.maximum(linear("adapter.linear1", x), 0)))


def gelu(x) -> np.ndarray:
    """x Phi(x), one number at a time."""
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def _flat(tree, prefix: str = ""):
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for name, value in items:
        if isinstance(value, mx.array):
            yield prefix + str(name), value
        elif isinstance(value, (dict, list)):
            yield from _flat(value, f"{prefix}{name}.")


# ------------------------------------------------------------------------------------------ logit rules


def rules_reference(logits, seen, repetition=1.0, frequency=0.0, presence=0.0, no_repeat_ngram=0) -> list[float]:
    """One row of logits after all penalties, one token at a time. `seen`: tokens that count."""
    out = []
    for token, logit in enumerate(map(float, logits)):
        count = list(seen).count(token)
        if count:
            logit = logit / repetition if logit > 0 else logit * repetition
            logit = logit - frequency * count - presence
        if no_repeat_ngram and _completes(list(seen), token, no_repeat_ngram):
            logit = float("-inf")
        out.append(logit)
    return out


def drawn_reference(logits, temperature=1.0, top_p=1.0, min_p=0.0, noise=None) -> int:
    """The token that a row of ruled logits gives in float64: the best, or with noise (V,) a draw after all rules."""
    x = np.array(logits, dtype=np.float64)
    if temperature == 0:
        return int(np.argmax(x))
    x = (x - x.max()) / temperature
    order = np.argsort(x, kind="stable")
    share = np.exp(x - np.logaddexp.reduce(x))
    if top_p < 1:
        drop = np.cumsum(share[order]) <= 1 - top_p
        drop[-1] = False
        x[order[drop]] = -np.inf
    if min_p:
        share = np.exp(x - np.logaddexp.reduce(x))
        x[share < min_p * share.max()] = -np.inf
    return int(np.argmax(x + noise))


def _completes(history: list[int], token: int, n: int) -> bool:
    would_be = [*history, token][-n:]
    return len(would_be) == n and any(history[i : i + n] == would_be for i in range(len(history) - n + 1))


# ------------------------------------------------------------------------------------------ loops


def loop_reference(tokens: list[int], max_period: int, min_repeats: int, min_ids: int):
    """(period, onset) of the loop that the end of `tokens` forms, shortest period first, or None. Brute force."""
    for period in range(1, min(max_period, len(tokens)) + 1):
        start = len(tokens) - period
        while start > 0 and tokens[start - 1] == tokens[start - 1 + period]:
            start -= 1
        length = len(tokens) - start
        if length >= min_ids and length >= min_repeats * period:
            return period, start
    return None
