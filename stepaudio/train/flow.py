"""Training the flow: from noise to the mel of somebody's speech, given its codes, who speaks, and how they began.

Conditional flow matching on straight paths (Lipman et al. 2023): at time t the net sees (1 - t) noise + t mel and is to
say mel - noise. Rows are stretches of one person's speech, several sentences long; the first part of a row is shown as
the prompt, as in use, and a share of the rows sees no conditions at all, which guidance needs (Ho and Salimans 2022).

B rows, N codes, T = 2 N mel frames, M bands, E numbers of a speaker vector.
"""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from ..token2wav.config import FlowConfig
from ..token2wav.flow import Flow
from ..token2wav.random_weights import _flow
from .front_ends import cut, resident
from .speaking_corpus import CODE_HOP, SpeakingCorpus

NO_CONDITIONS = 0.15  # share of rows without codes, speaker and prompt
NO_PROMPT = 0.3  # share of the others that are not told how they began
MOST_PROMPT = 0.6  # of a row, at most, is prompt
OWN_MEL = 0.2  # weight of the distance between the encoder's mel and the true one
WRONG_CODES = 0.02  # share of codes replaced at random: those of a decoder will not all be right

LENGTHS = ((128, 0.5), (192, 0.3), (320, 0.2))  # codes of a row, and how often: mels of 256, 384 and 640 frames


def size(speaker: int, width: int = 192, hidden: int = 160, blocks: int = 3, depth: int = 6) -> FlowConfig:
    """About 8 M parameters for speaker vectors of that many numbers. The estimator is narrower than the encoder: it
    runs twenty times, the encoder once."""
    published = _flow(width, 3, blocks, blocks, depth, speaker)
    estimator = replace(published.decoder.estimator, hidden_size=hidden, num_heads=2, head_dim=hidden // 2,
                        mlp_ratio=2.0)
    return replace(published, decoder=replace(published.decoder, estimator=estimator))


def begin(config: FlowConfig, mean: np.ndarray, seed: int) -> tuple[Flow, dict]:
    """The net and fresh weights. Blocks of the estimator begin as if they were not there (Peebles and Xie 2023), and
    its last layer with what a mel is on average: mean (M,)."""
    mx.random.seed(seed)
    net, fresh = Flow(config), []
    for name, value in tree_flatten(net.parameters()):
        if "adaLN_modulation" in name or name == "decoder.estimator.final_layer.linear.weight":
            value = mx.zeros(value.shape)
        elif name in ("decoder.estimator.final_layer.linear.bias", "encoder_proj.bias"):
            value = mx.array(mean.astype(np.float32))
        elif value.ndim >= 2:
            value = mx.random.normal(value.shape) * (value.size // value.shape[0]) ** -0.5
            if "pos_bias" in name:
                value = mx.zeros(value.shape)
            elif name == "encoder_proj.weight" or name.endswith(("w_2.weight", "linear_out.weight")):
                value = 0.3 * value
        elif name.endswith("bias"):
            value = mx.zeros(value.shape)
        fresh.append((name, value))
    return net, tree_unflatten(fresh)


def loss(params: dict, batch: dict, net: Flow):
    """Mean square of what the velocity misses, and the encoder's own distance from the mel."""
    net.update(params)
    mel, t = batch["mel"], batch["t"]
    codes = net.input_embedding(batch["codes"])
    h, _ = net.encoder(codes)
    mu = net.encoder_proj(h)
    told = batch["told"][:, None]
    speaker = net.project_speaker(batch["speaker"]) * told
    prompt = (mx.arange(mel.shape[1])[None] < batch["prompt"][:, None]).astype(mel.dtype)[..., None]
    cond = mel * prompt * told[..., None]
    at = t[:, None, None]
    x = (1 - at) * batch["noise"] + at * mel
    v, _ = net.decoder.estimator(x, mu * told[..., None], t, speaker, cond)
    missed = mx.square(v - (mel - batch["noise"])).mean()
    own = mx.abs(mu - mel).mean()
    return missed + OWN_MEL * own, {"missed": missed, "own": own}


class Batches:
    """step -> codes, mel, speaker vector, time, noise. A row's vector is of another stretch of the same person.

    codes : (N,) of the whole corpus. mels : (2 N, M) of it. vectors : (persons, each, E).
    """

    def __init__(self, corpus: SpeakingCorpus, codes: np.ndarray, mels: mx.array, vectors: np.ndarray, seconds: float,
                 seed: int, lengths=None):
        self.corpus, self.seconds, self.seed, self.lengths = corpus, seconds, seed, lengths or LENGTHS
        self.codes, self.mels, self.vectors = resident(codes.astype(np.int32)), mels, resident(vectors)
        self._each = vectors.shape[1]

    def __call__(self, step: int) -> dict[str, mx.array]:
        rng = np.random.default_rng((self.seed, step))
        share = np.array([share for _, share in self.lengths])
        n = self.lengths[int(rng.choice(len(share), p=share / share.sum()))][0]
        rows = max(1, round(self.seconds * 25 / n))
        start, who = self.corpus.windows(rng, rows, n * CODE_HOP)
        first = mx.array(start // CODE_HOP)
        mel = cut(self.mels, 2 * first, 2 * n).astype(mx.float32)
        codes = cut(self.codes, first, n)
        wrong = mx.array(rng.random((rows, n)) < WRONG_CODES)
        codes = mx.where(wrong, mx.array(rng.integers(0, 6561, (rows, n)).astype(np.int32)), codes)
        prompt = rng.uniform(0, MOST_PROMPT, rows) * 2 * n * (rng.random(rows) >= NO_PROMPT)
        vector = self.vectors[mx.array(who), mx.array(rng.integers(0, self._each, rows).astype(np.int32))]
        return {"mel": mel, "codes": codes, "speaker": vector, "prompt": mx.array(prompt.astype(np.int32)),
                "told": mx.array((rng.random(rows) >= NO_CONDITIONS).astype(np.float32)),
                "t": mx.array((1 - np.cos(0.5 * np.pi * rng.random(rows))).astype(np.float32)),
                "noise": mx.random.normal(mel.shape, key=mx.random.key(int(rng.integers(1 << 31))))}
