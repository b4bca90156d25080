"""Slow, obvious twins of the nets and rules, and the tiny nets they are compared on.

Every twin is written from the definition, in float64 numpy or plain Python, without caches, masks shared with
the package, or anything incremental. `tiny_net` gives random weights large enough that attention decides.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map

from stepaudio.models.decoder import TextConfig
from stepaudio.models.encoder import AudioEncoderConfig
from stepaudio.models.speech_lm import StepAudioConfig, StepAudioNet

# ------------------------------------------------------------------------------------------ tiny nets


def tiny_config(vocab: int = 48, layers: int = 2, max_cache_len: int = 4096) -> StepAudioConfig:
    text = TextConfig(
        hidden_size=32,
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
        llm_dim=32,
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
    """A real net of 32 ids whose logits are a table: after[i][j], the logit of j after i (else -30)."""
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
    """The net of the golden decoder; the part that hears is a stub where its weights were left out."""
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


def decoder_twin(net: StepAudioNet, x, kept=(), max_len: int | None = None, renumbered: bool = False) -> np.ndarray:
    """Logits (n, V) of one whole sequence of embeddings (n, D), every pair of positions worked out by itself."""
    config = net.config.text_config
    weights = {name: np.array(a, dtype=np.float64) for name, a in _flat(net.parameters())}
    x = np.array(x, dtype=np.float64)
    seen, at_query, at_key = visibility(len(x), set(kept), max_len, renumbered)

    def linear(name, h):
        return h @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0.0)

    def norm(name, h):
        return h / np.sqrt(np.mean(h**2, axis=-1, keepdims=True) + config.rms_norm_eps) * weights[f"{name}.weight"]

    for i in range(config.num_hidden_layers):
        at = f"model.layers.{i}."
        h = norm(at + "input_layernorm", x)
        q, k, v = (linear(f"{at}self_attn.{c}_proj", h).reshape(len(x), -1, config.head_dim) for c in "qkv")
        out = np.zeros_like(q)
        for head in range(config.num_attention_heads):
            group = head // (config.num_attention_heads // config.num_key_value_heads)
            queries = rotate(np.repeat(q[:, None, head], len(x), axis=1), at_query, config.rope_theta)
            keys = rotate(np.repeat(k[None, :, group], len(x), axis=0), at_key, config.rope_theta)
            scores = np.where(seen, (queries * keys).sum(-1) / np.sqrt(config.head_dim), -np.inf)
            share = np.exp(scores - scores.max(axis=1, keepdims=True))
            out[:, head] = (share / share.sum(axis=1, keepdims=True)) @ v[:, group]
        x = x + linear(at + "self_attn.o_proj", out.reshape(len(x), -1))
        h = norm(at + "post_attention_layernorm", x)
        gate = linear(at + "mlp.gate_proj", h)
        x = x + linear(at + "mlp.down_proj", gate / (1 + np.exp(-gate)) * linear(at + "mlp.up_proj", h))
    return linear("lm_head", norm("model.norm", x))


def _flat(tree, prefix: str = ""):
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for name, value in items:
        if isinstance(value, mx.array):
            yield prefix + str(name), value
        elif isinstance(value, (dict, list)):
            yield from _flat(value, f"{prefix}{name}.")


# ------------------------------------------------------------------------------------------ logit rules


def rules_twin(logits, seen, repetition=1.0, frequency=0.0, presence=0.0, no_repeat_ngram=0) -> list[float]:
    """One row of logits after all penalties, one id at a time. `seen`: ids that count."""
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


def _completes(history: list[int], token: int, n: int) -> bool:
    would_be = (history + [token])[-n:]
    return len(would_be) == n and any(history[i : i + n] == would_be for i in range(len(history) - n + 1))


# ------------------------------------------------------------------------------------------ loops


def loop_twin(ids: list[int], max_period: int, min_repeats: int, min_ids: int):
    """(period, onset) of the loop that the end of `ids` forms, shortest period first, or None. Brute force."""
    for period in range(1, min(max_period, len(ids)) + 1):
        start = len(ids) - period
        while start > 0 and ids[start - 1] == ids[start - 1 + period]:
            start -= 1
        length = len(ids) - start
        if length >= min_ids and length >= min_repeats * period:
            return period, start
    return None
