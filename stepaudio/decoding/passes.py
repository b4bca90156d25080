"""The decoder's passes of one batch, and beside them those that its logits are contrasted with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import mlx.core as mx
import numpy as np

from ..choices import CacheKind
from ..errors import DecodeError
from ..models.batch_cache import BatchWindowCache
from ..models.kv_cache import FullCache, WindowCache
from ..models.speech_lm import StepAudioNet
from ..models.tap import Tap, chain
from .logits import furthest
from .options import RunOptions
from .prefill import prefill
from .prompt_cache import read_prompt
from .steps import Request

Logits = tuple[mx.array, mx.array | None]  # (B, V) of the run, and (B, V) of what it is contrasted with


class Passes:
    """A batch in the decoder: read the prompts, then one token after another.

    The tap sees the run itself, not one that it is contrasted with.

    Raises
    ------
    DecodeError
        A contrast that cannot be: with altered audio where there is none, with a layer that the model lacks or that is
        its last one.
    """

    def __init__(self, net: StepAudioNet, requests: Sequence[Request], options: RunOptions, tap: Tap | None = None):
        self._net, self._requests, self._options = net, requests, options
        self._names, self._streams = _early_streams(net, options), {}
        self._tap = chain(tap, self._keep_stream) if self._names else tap
        self._products = net.model.products()
        self._other = _contrasted(net, requests, options)
        alone = len(requests) == 1
        self._cache = build_cache(net, requests[0], options) if alone else build_batch_cache(net, requests, options)

    @property
    def nbytes(self) -> int:
        """Bytes that the caches hold."""
        return self._cache.nbytes + (self._other.nbytes if self._other else 0)

    def read(self) -> Logits:
        """Feed the prompts; logits after their last positions."""
        logits = read_prompts(self._net, self._requests, self._cache, self._options, self._tap)
        return logits, self._other.read()[0] if self._other else self._early(logits)

    def after(self, tokens: mx.array) -> Logits:
        """Feed a token (B,) of each sequence; logits after it."""
        x, ids = self._net.model.embed(tokens[:, None]), tokens[:, None]
        logits = self._net.next_logits(x, self._cache, self._tap, ids, self._products)
        return logits, self._other.after(tokens)[0] if self._other else self._early(logits)

    def keep_rows(self, rows: list[int]) -> None:
        """Drop all sequences of the batch but these."""
        cast(FullCache | BatchWindowCache, self._cache).keep_rows(rows)  # the kinds that hold a batch
        if self._other:
            self._other.keep_rows(rows)

    def _keep_stream(self, name: str, x: mx.array) -> None:
        if name in self._names:
            self._streams[name] = x[:, -1]

    def _early(self, logits: mx.array) -> mx.array | None:
        """What the furthest of the earlier layers would say, through the final norm and the head."""
        if not self._names:
            return None
        head, norm = self._net.lm_head, self._net.model.norm
        return furthest(logits, [head(norm(self._streams[name])).astype(mx.float32) for name in self._names])


def _early_streams(net: StepAudioNet, options: RunOptions) -> tuple[str, ...]:
    """Names of the residual streams behind the layers that are contrasted with."""
    contrast, n = options.rules.contrasts, net.config.text_config.num_hidden_layers
    if contrast is None or not contrast.early:
        return ()
    if max(contrast.layers) >= n - 1:
        fits = f"numbers from 0 to {n - 2}" if n > 1 else "a decoder of several layers"
        raise DecodeError(
            f"contrast layers: the decoder has {n}, of which the last is the one contrasted; expected {fits}, found "
            f"{max(contrast.layers)}"
        )
    return tuple(f"decoder.{i}.resid_post" for i in contrast.layers)


def _contrasted(net: StepAudioNet, requests: Sequence[Request], options: RunOptions) -> Passes | None:
    """The passes over altered audio, if there are to be any."""
    contrast, made = options.rules.contrasts, []
    if contrast is None or contrast.early:
        return None
    for i, request in enumerate(requests):
        if request.contrasted is None:
            raise DecodeError(
                f"contrast against {contrast.against}: the prompt of request {i} has no audio to alter; expected a "
                "recording in it, or against='layers'"
            )
        made.append(request.contrasted(contrast))
    return Passes(net, made, replace(options, sampling=replace(options.rules, contrast=None)))


# ---------------------------------------------------------------- caches and prompts


def build_cache(
    net: StepAudioNet, request: Request, options: RunOptions, limit: int | None = None
) -> FullCache | WindowCache:
    """An empty cache for one prompt; `limit` stands for that of the net's config."""
    n_layers, default = net.config.text_config.num_hidden_layers, limit or net.config.max_cache_len
    return options.policy.build(n_layers, net.model.rope, default, request.spans)


def build_batch_cache(
    net: StepAudioNet, requests: Sequence[Request], options: RunOptions
) -> FullCache | BatchWindowCache:
    """An empty cache for several prompts, which are filled up at the left."""
    n_layers, policy, default = net.config.text_config.num_hidden_layers, options.policy, net.config.max_cache_len
    lengths, limit = [len(r.tokens) for r in requests], policy.limit(default)
    pad = max(lengths) - np.array(lengths)
    if limit is None or within_limit(lengths, options, default):
        return FullCache(n_layers, net.model.rope, pad, policy.bits)
    kept = [policy.kept(limit, r.spans) for r in requests]
    return BatchWindowCache(n_layers, net.model.rope, limit, kept, pad, policy.bits)


def within_limit(lengths: Sequence[int], options: RunOptions, default_len: int) -> bool:
    """Whether no run of prompts of these lengths can reach the cache limit, so that a full cache holds the same."""
    limit = options.policy.limit(default_len)
    return limit is None or max(lengths) + options.max_tokens <= limit


def read_prompts(
    net: StepAudioNet, requests: Sequence[Request], cache, options: RunOptions, tap: Tap | None = None
) -> mx.array:
    """Feed the prompts; logits (B, V) after their last positions."""
    tokens = None if tap is None else _left_padded_tokens(requests)
    if len(requests) > 1:
        return prefill(net, _left_padded(requests), cache, tap, tokens)
    (request,) = requests
    spans = request.spans if options.policy.kind == CacheKind.PINNED else ()  # the others do not look at them
    policy = f"{options.policy} {options.policy.limit(net.config.max_cache_len)} {spans}"
    return read_prompt(net, request.embeddings[None], cache, policy, request.prefixes, tap, tokens)


def _left_padded(requests: Sequence[Request]) -> mx.array:
    longest = max(r.embeddings.shape[0] for r in requests)
    return mx.stack([mx.pad(r.embeddings, [(longest - r.embeddings.shape[0], 0), (0, 0)]) for r in requests])


def _left_padded_tokens(requests: Sequence[Request]) -> mx.array:
    """(B, n) ids of the prompts, -1 where one has not begun."""
    longest = max(len(r.tokens) for r in requests)
    return mx.array(
        np.stack(
            [np.pad(np.asarray(r.tokens, np.int32), (longest - len(r.tokens), 0), constant_values=-1) for r in requests]
        )
    )
