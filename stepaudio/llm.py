"""The Qwen2 decoder: ids or embeddings in, logits out; positions and memory belong to the cache it is given.

B rows, n new positions, L positions attended to, D channels. Attribute names are those of the published
checkpoint. Knows no files, no text and no sampling.

Reference: transformers `modeling_qwen2.py`, as the published model subclasses it.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from .activations import silu, softmax_attention
from .cache import Rope
from .config import TextConfig
from .encoder import Tap, _named, _no_tap


class Attention(nn.Module):
    def __init__(self, config: TextConfig):
        super().__init__()
        D, size = config.hidden_size, config.head_dim
        self._heads, self._kv_heads, self._scale = config.num_attention_heads, config.num_key_value_heads, size**-0.5
        self.q_proj = nn.Linear(D, self._heads * size, bias=True)
        self.k_proj = nn.Linear(D, self._kv_heads * size, bias=True)
        self.v_proj = nn.Linear(D, self._kv_heads * size, bias=True)
        self.o_proj = nn.Linear(self._heads * size, D, bias=False)

    def __call__(self, x: mx.array, cache, layer: int, tap: Tap | None = None) -> mx.array:
        B, n, _ = x.shape
        q, k, v = (f(x).reshape(B, n, heads, -1).transpose(0, 2, 1, 3) for f, heads in (
            (self.q_proj, self._heads), (self.k_proj, self._kv_heads), (self.v_proj, self._kv_heads)))
        q, k, v, mask = cache.update(layer, q, k, v)  # (B, heads, n, size), (B, kv heads, L, size)
        y = softmax_attention(q, k, v, self._scale, mask, tap)
        return self.o_proj(y.transpose(0, 2, 1, 3).reshape(B, n, -1))


class MLP(nn.Module):
    def __init__(self, config: TextConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        return self.down_proj(silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nn.Module):
    def __init__(self, config: TextConfig):
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def __call__(self, x: mx.array, cache, layer: int, tap: Tap | None = None) -> mx.array:
        x = x + self.self_attn(self.input_layernorm(x), cache, layer, tap)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Embedding table, layers, final norm: what the checkpoint calls `model`."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = [DecoderLayer(config) for _ in range(config.num_hidden_layers)]
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self._rope = Rope(config.head_dim, config.rope_theta)

    @property
    def rope(self) -> Rope:
        return self._rope

    def __call__(self, x: mx.array, cache, tap: Tap = _no_tap) -> mx.array:
        """Run embeddings (B, n, D) through all layers; the cache learns the n positions. Returns (B, n, D)."""
        cache.plan(x.shape[1])
        recording = None if tap is _no_tap else tap
        for i, layer in enumerate(self.layers):
            x = layer(x, cache, i, _named(recording, f"layer{i}."))
            tap(f"layer{i}", x)
        cache.advance()
        x = self.norm(x)
        tap("norm", x)
        return x
