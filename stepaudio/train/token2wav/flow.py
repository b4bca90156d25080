"""Training the flow: from noise to a mel, given speech codes, a speaker vector and a prompt.

Conditional flow matching on straight paths (Lipman et al. 2023): at time t the net reads (1 - t) noise + t mel and
predicts the velocity, mel - noise. An example is an excerpt of one speaker, several sentences long; its first part is
given as the prompt, as at inference, and a share of the examples has no conditions at all, which classifier-free
guidance needs (Ho and Salimans 2022).

B examples, N codes, T = 2 N mel frames, M bands, E numbers of a speaker vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import mlx.core as mx
import numpy as np
from mlx.utils import tree_unflatten

from ...checkpoints.random_weights import flow_config
from ...constants import ENCODER_FRAMES_PER_SECOND, N_AUDIO_CODES
from ...models.parameters import named_arrays
from ...models.token2wav.flow import Flow, FlowConfig
from .corpus import CODE_HOP, SpeechCorpus
from .features import excerpts, resident
from .fit import Batch, Metrics

CODES_PER_SECOND = ENCODER_FRAMES_PER_SECOND
NO_CONDITIONS = 0.15  # share of examples without codes, speaker and prompt
NO_PROMPT = 0.3  # share of the others without a prompt
MOST_PROMPT = 0.6  # of an example, at most, is prompt
ENCODER_WEIGHT = 0.2  # of the distance between the encoder's mel and the true one
WRONG_CODES = 0.02  # share of codes replaced at random: a language model's codes will not all be right

LENGTHS = ((128, 0.5), (192, 0.3), (320, 0.2))  # codes of an example, and how often: mels of 256, 384 and 640 frames


def size(speaker: int, width: int = 192, hidden: int = 160, blocks: int = 3, depth: int = 6) -> FlowConfig:
    """About 8 M parameters, for speaker vectors of `speaker` numbers.

    The estimator is narrower than the encoder: it runs twenty times, the encoder once.
    """
    published = flow_config(width, 3, blocks, blocks, depth, speaker)
    estimator = replace(
        published.decoder.estimator, hidden_size=hidden, num_heads=2, head_dim=hidden // 2, mlp_ratio=2.0
    )
    return replace(published, decoder=replace(published.decoder, estimator=estimator))


def begin(config: FlowConfig, mean: np.ndarray, seed: int) -> tuple[Flow, dict]:
    """The net and initial weights.

    The estimator's blocks begin as identities (Peebles and Xie 2023), its last layer with the mean mel: `mean` (M,).
    """
    mx.random.seed(seed)
    net, fresh = Flow(config), []
    for name, value in named_arrays(net.parameters()):
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
    return net, cast(dict, tree_unflatten(fresh))


def loss(params: dict, batch: Batch, net: Flow) -> tuple[mx.array, Metrics]:
    """Mean square error of the velocity, and the encoder's mean distance from the mel."""
    net.update(params)
    mel, t = batch["mel"], batch["t"]
    h, _ = net.encoder(net.input_embedding(batch["codes"]))
    mu = net.encoder_proj(h)
    conditioned = batch["conditioned"][:, None]
    speaker = net.project_speaker(batch["speaker"]) * conditioned
    prompt = (mx.arange(mel.shape[1])[None] < batch["prompt"][:, None]).astype(mel.dtype)[..., None]
    cond = mel * prompt * conditioned[..., None]
    at = t[:, None, None]
    x = (1 - at) * batch["noise"] + at * mel
    predicted, _ = cast(Any, net.decoder.estimator(x, mu * conditioned[..., None], t, speaker, cond))
    velocity = mx.square(predicted - (mel - batch["noise"])).mean()
    encoder = mx.abs(mu - mel).mean()
    return velocity + ENCODER_WEIGHT * encoder, {"velocity": velocity, "encoder": encoder}


class Batches:
    """step -> codes, mel, speaker vector, time, noise. The vector is of another excerpt of the same speaker.

    Parameters
    ----------
    corpus : SpeechCorpus
    codes : (N,), of the whole corpus.
    mels : (2 N, M), of the whole corpus.
    vectors : (speakers, each, E).
    seconds : of speech in a batch.
    seed : int
    lengths : pairs of an example's number of codes and its share, `LENGTHS` by default.
    """

    def __init__(
        self,
        corpus: SpeechCorpus,
        codes: np.ndarray,
        mels: mx.array,
        vectors: np.ndarray,
        seconds: float,
        seed: int,
        lengths: Sequence[tuple[int, float]] | None = None,
    ):
        self.corpus, self.seconds, self.seed, self.lengths = corpus, seconds, seed, lengths or LENGTHS
        self.codes, self.mels, self.vectors = resident(codes.astype(np.int32)), mels, resident(vectors)
        self._each = vectors.shape[1]

    def __call__(self, step: int) -> Batch:
        """The batch of a step; the same step gives the same batch."""
        rng = np.random.default_rng((self.seed, step))
        share = np.array([share for _, share in self.lengths])
        n = self.lengths[int(rng.choice(len(share), p=share / share.sum()))][0]
        B = max(1, round(self.seconds * CODES_PER_SECOND / n))
        start, who = self.corpus.windows(rng, B, n * CODE_HOP)
        first = mx.array(start // CODE_HOP)
        mel = excerpts(self.mels, 2 * first, 2 * n).astype(mx.float32)
        codes = excerpts(self.codes, first, n)
        wrong = mx.array(cast(Any, rng.random((B, n)) < WRONG_CODES))
        codes = mx.where(wrong, mx.array(rng.integers(0, N_AUDIO_CODES, (B, n)).astype(np.int32)), codes)
        prompt = rng.uniform(0, MOST_PROMPT, B) * 2 * n * (rng.random(B) >= NO_PROMPT)
        vector = self.vectors[mx.array(who), mx.array(rng.integers(0, self._each, B).astype(np.int32))]
        return {
            "mel": mel,
            "codes": codes,
            "speaker": vector,
            "prompt": mx.array(prompt.astype(np.int32)),
            "conditioned": mx.array((rng.random(B) >= NO_CONDITIONS).astype(np.float32)),
            "t": mx.array((1 - np.cos(0.5 * np.pi * rng.random(B))).astype(np.float32)),
            "noise": mx.random.normal(mel.shape, key=mx.random.key(int(rng.integers(1 << 31)))),
        }
