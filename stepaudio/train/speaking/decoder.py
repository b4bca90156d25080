"""The decoder in training: a trained one with more layers, codes that share what their digits share, and the loss.

A code is a number of eight digits, the levels of the quantiser. Codes that have a digit in common sound alike in one
respect, and most codes are rare; so a code's embedding, and its row of the output layer, is the sum of a vector of its
own and of one for each of its digits. What is exported is the sum.

Beside the next token, the hidden state tells the phoneme and the text token that the next code is a part of, through
two heads that are thrown away: where in the text the voice is, and how that is spoken, is then learnt sooner.

The clips to transcribe are of fewer kinds than the first model knew. So where an example transcribes, the
distribution of the next token is pulled to that model's (Li and Hoiem 2016).

B examples, L positions, V tokens, D channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_map

from ...constants import N_AUDIO_CODES
from ...models.kv_cache import NoCache
from ...models.speech_lm import StepAudioConfig, StepAudioNet
from ...text.tokenizer import Tokenizer
from ..batches import IGNORE
from ..initialise import initialise
from ..losses import linear, mean_entropy, one_hot
from ..token2wav.fit import Batch, Metrics
from .examples import LEVELS, N_DIGITS

N_PHONEMES = 256
SOUND_WEIGHT = 0.3  # of each of the two heads
KEEP_WEIGHT = 0.5  # of the distance from the model at the beginning
TRAINED = ("model", "lm_head")
TABLES = (("model", "embed_tokens"), ("lm_head",))  # where a row stands for a token


def digits_of_tokens(vocabulary: int, first_code: int) -> mx.array:
    """(V, 24): for each digit of a code a one at its level; zeros for tokens that are no codes."""
    table = np.zeros((vocabulary, N_DIGITS, LEVELS), np.float32)
    codes = np.arange(N_AUDIO_CODES)
    for k in range(N_DIGITS):
        table[first_code + codes, k, codes // LEVELS**k % LEVELS] = 1
    return mx.array(table.reshape(vocabulary, -1))


def begin(net: StepAudioNet, config: StepAudioConfig, tokenizer: Tokenizer, seed: int, speaks: bool = False) -> dict:
    """Initial weights of a decoder of these sizes: those of `net`, and more layers that change nothing yet.

    `config` differs from the net's own in the number of layers alone. If `net` speaks, its rows of the codes stay,
    and the digits' vectors begin at zero; if not, its codes mean nothing yet and are drawn anew, by their digits.
    """
    mx.random.seed(seed)
    wide = StepAudioNet(config)
    fresh, own = cast(Any, initialise(wide)), cast(Any, net.parameters())
    depth = len(own["model"]["layers"])
    for layer in fresh["model"]["layers"][depth:]:
        for part, last in (("self_attn", "o_proj"), ("mlp", "down_proj")):
            layer[part][last]["weight"] = mx.zeros_like(layer[part][last]["weight"])
    fresh["model"] |= {name: value for name, value in own["model"].items() if name != "layers"}
    fresh["model"]["layers"][:depth] = own["model"]["layers"]
    fresh["lm_head"] = own["lm_head"]
    first, last = tokenizer.first_audio_code, tokenizer.first_audio_code + N_AUDIO_CODES
    digits = {}
    for path in TABLES:
        table = _at(fresh, path)
        rows = table["weight"]
        deviation = mx.sqrt(mx.square(rows[:first] - rows[:first].mean(0)).mean())
        drawn = mx.random.normal((N_DIGITS * LEVELS, rows.shape[1])) * (deviation / N_DIGITS**0.5)
        digits[path[-1]] = mx.zeros_like(drawn) if speaks else drawn
        codes = rows[first:last] if speaks else mx.zeros_like(rows[first:last])
        table["weight"] = mx.concatenate([rows[:first], codes, rows[last:]])
    return {
        "net": {name: fresh[name] for name in TRAINED},
        "digits": digits,
        "heads": heads(config, tokenizer),
    }


def heads(config: StepAudioConfig, tokenizer: Tokenizer) -> dict:
    """Initial weights of the two heads: of phonemes and of text tokens."""
    D = config.text_config.hidden_size
    found = {"phonemes": nn.Linear(D, N_PHONEMES), "spoken": nn.Linear(D, tokenizer.text_limit + 1)}
    return {name: head.parameters() for name, head in found.items()}


def _at(tree: dict, path: tuple[str, ...]) -> dict:
    for name in path:
        tree = tree[name]
    return tree


def whole(params: dict, digits: mx.array) -> dict:
    """The weights by their published names: a row for each token, its digits' vectors added."""
    net = cast(dict, tree_map(lambda p: p, params["net"]))  # a copy of the tree, not of the arrays
    for path in TABLES:
        table = _at(net, path)
        table["weight"] = table["weight"] + digits.astype(table["weight"].dtype) @ params["digits"][path[-1]]
    return net


class Loss:
    """(weights, batch) -> weighted cross-entropy of the tokens of answers, with that of the two heads; and metrics.

    Parameters
    ----------
    net : StepAudioNet
        Its decoder takes the weights.
    embeddings : (rows, D), of audio.
    tokenizer : Tokenizer
    dtype : of products.
    start : StepAudioNet
        The model at the beginning, as it stays; it is copied.
    assemble : callable, optional
        What is trained -> the decoder's weights by their published names; by default `whole`.
    """

    def __init__(
        self,
        net: StepAudioNet,
        embeddings: mx.array,
        tokenizer: Tokenizer,
        dtype: mx.Dtype,
        start: StepAudioNet,
        assemble: Callable[[dict], dict] | None = None,
    ):
        self.net, self.embeddings, self.dtype = net, embeddings.astype(dtype), dtype
        self.start = StepAudioNet(start.config)
        kept = {name: cast(Any, start[name]).parameters() for name in TRAINED}
        self.start.update(cast(dict, tree_map(lambda p: p.astype(dtype), kept)))
        self.first_code, self.text_limit = tokenizer.first_audio_code, tokenizer.text_limit
        self.digits = digits_of_tokens(net.config.text_config.vocab_size, self.first_code)
        self.assemble = assemble or (lambda params: whole(params, self.digits))

    def hidden(self, net: StepAudioNet, batch: Batch) -> mx.array:
        """(B, L, D), the last hidden states of a net."""
        table = net.model.embed_tokens.weight
        x = one_hot(batch["inputs"], table.shape[0], self.dtype) @ table
        place = batch["place"][..., None]
        x = mx.where(place >= 0, self.embeddings[mx.maximum(batch["place"], 0)], x)
        return net.model(x, NoCache(net.model.rope))

    def distance(self, log_p: mx.array, batch: Batch) -> mx.array:
        """Kullback-Leibler distance of log-probabilities (B, L, V) from those of the model at the beginning.

        Mean over the places to `keep`; of its codes it knew nothing, so it is asked for the other tokens alone.
        """
        logits = self.start.lm_head(self.hidden(self.start, batch))[..., : self.first_code].astype(mx.float32)
        log_q = mx.stop_gradient(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
        each = (mx.exp(log_q) * (log_q - log_p[..., : self.first_code])).sum(-1)
        return (each * batch["keep"]).sum() / mx.maximum(batch["keep"].sum(), 1)

    def __call__(self, params: dict, batch: Batch) -> tuple[mx.array, Metrics]:
        """Mean over the batch by the tokens' weights; means of codes and of text apart, and how many are right.

        `whole` is the share of examples all of whose tokens are right, codes aside.
        """
        params = cast(dict, tree_map(lambda p: p.astype(self.dtype), params))
        self.net.update(self.assemble(params))
        h, labels, weight = self.hidden(self.net, batch), batch["labels"], batch["weight"]
        logits = self.net.lm_head(h).astype(mx.float32)
        each = nn.losses.cross_entropy(logits, labels)
        codes, text = labels >= self.first_code, labels < self.text_limit
        right = logits.argmax(-1) == labels

        def mean(x: mx.array, where: mx.array) -> mx.array:
            where = where * (weight > 0)
            return (x * where).sum() / mx.maximum(where.sum(), 1)

        wrong = ((labels < self.first_code) & (weight > 0) & mx.logical_not(right)).sum(1)
        asked = (weight > 0).sum(1) > 0
        total = (each * weight).sum() / mx.maximum(weight.sum(), 1)
        apart = self.distance(logits - mx.logsumexp(logits, axis=-1, keepdims=True), batch)
        sounds = {
            name: mean_entropy(linear(head, h), batch[name], batch[name] != IGNORE)
            for name, head in params["heads"].items()
        }
        return total + SOUND_WEIGHT * (sounds["phonemes"] + sounds["spoken"]) + KEEP_WEIGHT * apart, {
            "codes": mean(each, codes),
            "text": mean(each, text),
            "codes_right": mean(right, codes),
            "text_right": mean(right, text),
            "whole": ((wrong == 0) & asked).sum() / mx.maximum(asked.sum(), 1),
            "apart": apart,
            **sounds,
        }


def on_device(batch: dict[str, np.ndarray]) -> Batch:
    """The arrays of a batch."""
    return {name: mx.array(cast(Any, value)) for name, value in batch.items()}
