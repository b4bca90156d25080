"""The Qwen2 decoder: embeddings in, the last hidden states out; positions and memory belong to the cache it is given.

B batch, n new positions, L positions attended to, D channels. Attribute names are those of the published
checkpoint. Knows no files, no text and no sampling.

Reference: transformers `modeling_qwen2.py`, as the published model subclasses it.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..backend.ops import gated_silu, rms_norm
from ..backend.pieces import Pieces, by_positions
from ..backend.process import enter
from ..errors import ConfigError
from ..schema import MAX_LAYERS, require, require_positive, shown
from .attention import attend, heads_first
from .joined import FEW, Joined, Products
from .kv_protocol import KVCache
from .kv_store import bits_of_head
from .rope import Rope
from .tap import Tap, emit, named


@dataclass(frozen=True)
class TextConfig:
    """Sizes of the Qwen2 decoder, as `text_config` of `config.json` has them.

    Parameters
    ----------
    hidden_size, intermediate_size : int > 0
        Channels between layers, and inside an MLP.
    num_attention_heads, num_key_value_heads, num_hidden_layers : int > 0
        Heads of queries, heads of keys and values (a divisor), layers.
    vocab_size : int > 0
        Tokens, audio tokens included.
    rms_norm_eps, rope_theta : float in (0, 1), float > 1
        Of the norms; base of the rotary position embedding.
    num_attention_groups : int, optional
        The published name for `num_key_value_heads`, kept beside it.
    max_seq_len, max_position_embeddings : int > 0, optional
        Positions that the decoder was built for; two names for one number.
    eos_token_id : int or tuple of int, optional
        Ids that end an answer.
    pad_token_id : int, optional
        Kept as published; an id of the vocabulary.
    rope_scaling : None
        Nothing else is supported.

    Raises
    ------
    ConfigError
        A value outside its range, a size beyond those of `schema`, or one that contradicts another.
    """

    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    num_hidden_layers: int
    vocab_size: int
    rms_norm_eps: float
    rope_theta: float
    num_attention_groups: int | None = None
    max_seq_len: int | None = None
    max_position_embeddings: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    pad_token_id: int | None = None
    rope_scaling: object = None

    def __post_init__(self):
        heads = ("num_attention_heads", "num_key_value_heads")
        require_positive(
            self,
            "text_config",
            ("hidden_size", "intermediate_size", *heads, "vocab_size", "rms_norm_eps", "rope_theta"),
        )
        require_positive(self, "text_config", ["num_hidden_layers"], MAX_LAYERS)
        positions = ("max_seq_len", "max_position_embeddings")
        require_positive(self, "text_config", (name for name in positions if getattr(self, name) is not None))
        require(
            self.hidden_size % self.num_attention_heads == 0,
            f"text_config: hidden_size {self.hidden_size} is not a multiple of num_attention_heads "
            f"{self.num_attention_heads}",
        )
        require(self.head_dim % 2 == 0, f"text_config: head size {self.head_dim} is odd; rotary needs pairs")
        require(
            self.num_attention_heads % self.num_key_value_heads == 0,
            f"text_config: num_attention_heads {self.num_attention_heads} is not a multiple of "
            f"num_key_value_heads {self.num_key_value_heads}",
        )
        require(
            self.num_attention_groups in (None, self.num_key_value_heads),
            f"text_config: num_attention_groups {self.num_attention_groups} contradicts num_key_value_heads "
            f"{self.num_key_value_heads}",
        )
        require(
            self.rope_scaling is None,
            f"text_config.rope_scaling: only null is supported, found {shown(self.rope_scaling)}",
        )
        require(
            self.max_seq_len is None or self.max_position_embeddings in (None, self.max_seq_len),
            f"text_config: max_seq_len {self.max_seq_len} contradicts max_position_embeddings "
            f"{self.max_position_embeddings}",
        )
        require(self.rms_norm_eps < 1, f"text_config.rms_norm_eps: must be below 1, found {self.rms_norm_eps}")
        require(self.rope_theta > 1, f"text_config.rope_theta: must be above 1, found {self.rope_theta}")
        for name in ("eos_token_id", "pad_token_id"):
            value = getattr(self, name)
            require(
                all(0 <= one < self.vocab_size for one in ids(value)),
                f"text_config.{name}: expected an id of the vocabulary of {self.vocab_size}, found {shown(value)}",
            )

    @property
    def end_ids(self) -> frozenset[int]:
        """Ids that end an answer, as far as the file says so."""
        return frozenset(ids(self.eos_token_id))

    @property
    def head_dim(self) -> int:
        """Channels of a head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def context(self) -> int | None:
        """Positions the decoder was built for, if the file says so."""
        return self.max_position_embeddings or self.max_seq_len

    def kv_bytes_per_position(self, itemsize: int, bits: int | None = None) -> int:
        """Bytes of keys and values that one position costs in all layers together; `bits` as `CachePolicy` has them."""
        rows, how = 2 * self.num_hidden_layers * self.num_key_value_heads, bits_of_head(bits, self.head_dim)
        return rows * self.head_dim * itemsize if how is None else how.bytes_of((rows, self.head_dim), itemsize)


def ids(value: int | tuple[int, ...] | None) -> tuple[int, ...]:
    """One id, several, or none, as a tuple."""
    return () if value is None else value if isinstance(value, tuple) else (value,)


class Attention(nn.Module):
    """Grouped-query attention: several heads share keys and values; rotation and memory are the cache's."""

    def __init__(self, config: TextConfig):
        super().__init__()
        D, size = config.hidden_size, config.head_dim
        self._heads, self._kv_heads, self._scale = config.num_attention_heads, config.num_key_value_heads, size**-0.5
        self.q_proj = nn.Linear(D, self._heads * size, bias=True)
        self.k_proj = nn.Linear(D, self._kv_heads * size, bias=True)
        self.v_proj = nn.Linear(D, self._kv_heads * size, bias=True)
        self.o_proj = nn.Linear(self._heads * size, D, bias=False)

    def keep_share(self, ranks: int) -> None:
        """Expect projections to one of `ranks` equal shares of the heads from now on."""
        self._heads, self._kv_heads = self._heads // ranks, self._kv_heads // ranks

    @property
    def same_input(self) -> tuple[nn.Module, ...]:
        """The layers that multiply what comes in."""
        return self.q_proj, self.k_proj, self.v_proj

    def __call__(
        self, x: mx.array, cache: KVCache, layer: int, tap: Tap | None = None, joined: Joined | None = None
    ) -> mx.array:
        """(B, n, D) -> (B, n, D), with what `cache` holds of layer `layer` before the n new positions.

        `joined` : the projections as one, if they are.
        """
        projected = joined(x) if joined else [by_positions(f, x) for f in self.same_input]
        heads = ("q", self._heads), ("k", self._kv_heads), ("v", self._kv_heads)
        q, k, v = (emit(tap, name, heads_first(y, n)) for (name, n), y in zip(heads, projected, strict=True))
        q, k, v, mask = cache.update(layer, q, k, v)  # (B, heads, n, size), (B, kv heads, L, size)
        q, k, v = emit(tap, "rot_q", q), emit(tap, "k_cache", k), emit(tap, "v_cache", v)
        return by_positions(self.o_proj, attend(q, k, v, self._scale, mask, tap))


class RMSNorm(nn.RMSNorm):
    """Root mean square norm (Zhang and Sennrich 2019)."""

    def __call__(self, x: mx.array) -> mx.array:
        """(…, D) -> (…, D)."""
        return rms_norm(x, self["weight"], self.eps)


class MLP(nn.Module):
    """Gated linear unit with SiLU (Shazeer 2020)."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    @property
    def same_input(self) -> tuple[nn.Module, ...]:
        """The layers that multiply what comes in."""
        return self.gate_proj, self.up_proj

    def __call__(self, x: mx.array, joined: Joined | None = None) -> mx.array:
        """(B, n, D) -> (B, n, D). `joined` : gate and up as one, if they are."""
        gate, up = joined(x) if joined else (self.gate_proj(x), self.up_proj(x))
        return self.down_proj(gated_silu(gate, up))


class DecoderLayer(nn.Module):
    """Attention and MLP, each behind an RMS norm and added to the residual stream."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def __call__(
        self,
        x: mx.array,
        cache: KVCache,
        layer: int,
        tap: Tap | None = None,
        joined_self_attn: Joined | None = None,
        joined_mlp: Joined | None = None,
    ) -> mx.array:
        """(B, n, D) -> (B, n, D); see `interp.names.GLOSSARY` for what the tap receives."""
        x = emit(tap, "resid_pre", x)
        added = emit(tap, "attn_out", self.self_attn(self.input_layernorm(x), cache, layer, tap, joined_self_attn))
        x = emit(tap, "resid_mid", x + added)
        y = self.post_attention_layernorm(x)
        y = self.mlp(y, joined_mlp) if joined_mlp else by_positions(self.mlp, y)
        return emit(tap, "resid_post", x + emit(tap, "mlp_out", y))


BLOCKS = ("self_attn", "mlp")


def _is_ours(layer: nn.Module) -> bool:
    """Whether a layer and its blocks are those of this file, which know products."""
    return type(layer) is DecoderLayer and type(layer.self_attn) is Attention and type(layer.mlp) is MLP


class Decoder(nn.Module):
    """Embedding table, layers, final norm: what the checkpoint calls `model`."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = [DecoderLayer(config) for _ in range(config.num_hidden_layers)]
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self._rope = Rope(config.head_dim, config.rope_theta)
        self._joined = Products()

    @property
    def rope(self) -> Rope:
        """The rotation that caches of this decoder apply."""
        return self._rope

    def embed(self, tokens: mx.array) -> mx.array:
        """Token ids (…) -> embeddings (…, D), in the dtype of the norms, whatever the table is held in."""
        return self.embed_tokens(tokens).astype(self.norm.weight.dtype)

    def join(self) -> None:
        """Lay matrices that multiply the same input one behind another in memory; `products` then has them as one."""
        self._joined = Products.of(self._same_input())

    def products(self) -> Products:
        """What may be multiplied as one, as the weights are now; for one run, since they may be changed."""
        self._joined = self._joined.that_hold(self._same_input())
        return self._joined

    def _same_input(self) -> dict[tuple[int, str], tuple[nn.Module, ...]]:
        ours = [(i, layer) for i, layer in enumerate(self.layers) if _is_ours(layer)]
        return {(i, name): layer[name].same_input for i, layer in ours for name in BLOCKS}

    def __call__(
        self,
        x: mx.array,
        cache: KVCache,
        tap: Tap | None = None,
        tokens: mx.array | None = None,
        products: Products | None = None,
    ) -> mx.array:
        """Run embeddings (B, n, D) through all layers; the cache learns the n positions. Returns (B, n, D).

        `tokens` (B, n), the ids that `x` embeds, are for the tap alone. `products` : of this run, if there are any.
        """
        enter()
        cache.plan(x.shape[1])
        if tap is not None:
            slots = mx.array(cache.slots.astype(np.int32))
            for name, given in (("positions", slots), ("tokens", tokens)):
                if given is not None and emit(tap, name, given) is not given:
                    raise ConfigError(f"tap at {name}: they are given to the decoder and can be read, not replaced")
        pieces = Pieces()
        joined = products if products and x.shape[0] * x.shape[1] <= FEW else Products()
        for i, layer in enumerate(self.layers):
            found = {f"joined_{name}": one for name in BLOCKS if (one := joined.get(i, name))}
            x = pieces.end(layer(x, cache, i, named(tap, f"{i}."), **found))
        cache.advance()
        return emit(tap, "out", self.norm(x))
