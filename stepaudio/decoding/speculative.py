"""Proposing tokens that the decoder then checks several at a time (speculative decoding, Leviathan et al. 2023).

A pass over k proposed tokens costs little more than one over a single token, because it reads the weights once. What
is chosen after each of them is what would have been chosen anyway: same rules, same history, same random key. So a
proposal stands as far as it agrees, and the tokens are those of plain decoding, drawn ones too. Who proposes decides
about speed alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import mlx.core as mx
import numpy as np

from ..errors import DecodeError
from ..models.speech_lm import StepAudioConfig, StepAudioNet
from ..text.tokenizer import Tokenizer
from .prefill import prefill
from .sampler import Sampler

LONGEST, SHORTEST = 3, 2  # tokens in a row that must have come before for a lookup to go on as it went on then


@dataclass(frozen=True)
class Drafts:
    """What speculative decoding has saved so far.

    Parameters
    ----------
    proposed, accepted : int
        Tokens that were proposed, and those of them that stood.
    tokens : int
        Tokens of the run.
    passes : int
        Passes of the decoder that gave them, the prompt's included; as many as tokens in plain decoding.
    """

    proposed: int = 0
    accepted: int = 0
    tokens: int = 0
    passes: int = 0

    @property
    def acceptance(self) -> float:
        """Share of the proposed tokens that stood; 0 if none were proposed."""
        return self.accepted / self.proposed if self.proposed else 0.0

    @property
    def tokens_per_pass(self) -> float:
        """Tokens that a pass gave on average; 0 before the first."""
        return self.tokens / self.passes if self.passes else 0.0

    def __add__(self, other: Drafts) -> Drafts:
        return Drafts(
            self.proposed + other.proposed,
            self.accepted + other.accepted,
            self.tokens + other.tokens,
            self.passes + other.passes,
        )


class Proposer(Protocol):
    """Proposes how a run goes on."""

    def learn(self, tokens: Sequence[int]) -> None:
        """Take the tokens that the run got since the last call."""
        ...

    def propose(self, sampler: Sampler, escaping: Sequence[bool]) -> list[int]:
        """At most as many tokens as `escaping` has entries; whether each is chosen by the escape penalties.

        `sampler` is about to choose the next token of the run, and stays as it is.
        """
        ...


class Lookup:
    """Goes on as the prompt or the run went on after the same tokens before (Saxena 2023): the latest time counts."""

    def __init__(self, prompt: Sequence[int]):
        self._tokens: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}  # tokens in a row -> index of what followed them last
        self.learn(prompt)

    def learn(self, tokens: Sequence[int]) -> None:
        """See `Proposer`."""
        known = self._tokens
        for token in tokens:
            for n in range(SHORTEST, LONGEST + 1):
                if n <= len(known):
                    self._after[tuple(known[-n:])] = len(known)
            known.append(token)

    def propose(self, sampler: Sampler, escaping: Sequence[bool]) -> list[int]:
        """See `Proposer`; nothing where the latest tokens are new."""
        known = self._tokens
        for n in range(LONGEST, SHORTEST - 1, -1):
            start = self._after.get(tuple(known[-n:]))
            if start is not None and n <= len(known):
                period = len(known) - start
                return [known[start + i % period] for i in range(len(escaping))]
        return []


class DraftModel:
    """A second model, which reads the same prompt and proposes what it would choose itself.

    It chooses by the rules, the history and the random keys of the run: where two models agree, their draws agree too.

    Parameters
    ----------
    net : StepAudioNet
    embeddings : (n, D), the prompt as this model embeds it.
    cache : an empty cache of this model, which takes positions on trial.
    """

    def __init__(self, net: StepAudioNet, embeddings: mx.array, cache):
        self._net, self._cache = net, cache
        self._unread: mx.array | None = embeddings[None]
        self._waiting: list[int] = []  # tokens of the run that it has not read
        self._on_trial: list[int] = []  # tokens that it has read because it proposed them

    def learn(self, tokens: Sequence[int]) -> None:
        """See `Proposer`."""
        read = agreement(self._on_trial, tokens[:-1])  # what follows the last one must still be worked out
        if self._on_trial:
            self._cache.settle(read)
            self._on_trial = []
        self._waiting += tokens[read:]

    def propose(self, sampler: Sampler, escaping: Sequence[bool]) -> list[int]:
        """See `Proposer`."""
        x = self._embedded(mx.array([self._waiting]))
        x = x if self._unread is None else mx.concatenate([self._unread, x.astype(self._unread.dtype)], axis=1)
        self._unread, self._waiting = None, []
        logits = prefill(self._net, x, self._cache)
        n = min(len(escaping), self._cache.room(len(escaping)))
        mine = sampler.continued([], list(escaping[:1]))
        chosen: list[mx.array] = []
        if n > 1:
            self._cache.hold()
        for escapes in escaping[:n]:
            if chosen:
                logits = self._net.next_logits(self._embedded(chosen[-1][:, None]), self._cache)
            if escapes:
                mine.escape(0)
            chosen.append(mine(logits))
            mx.async_eval(chosen[-1], *mine.arrays)
        tokens = [int(np.array(ids)[0]) for ids in chosen]
        self._on_trial = tokens[:-1]
        return tokens

    def _embedded(self, tokens: mx.array) -> mx.array:
        return self._net.model.embed_tokens(tokens)


def check_draft(
    config: StepAudioConfig, tokenizer: Tokenizer | None, draft: StepAudioConfig, draft_tokenizer: Tokenizer | None
) -> None:
    """Raise `DecodeError` unless a draft model has the model's tokens and its audio rows."""
    ours, theirs = config.audio_encoder_config, draft.audio_encoder_config
    pairs = (
        ("tokens of the vocabulary", config.text_config.vocab_size, draft.text_config.vocab_size),
        ("mel bands", ours.n_mels, theirs.n_mels),
        ("as the stride of the adapter", ours.adapter_stride, theirs.adapter_stride),
    )
    for what, wanted, found in pairs:
        if wanted != found:
            raise DecodeError(f"draft model: expected {wanted} {what}, as the model has, found {found}")
    if tokenizer is not None and draft_tokenizer is not None and not tokenizer.same_ids(draft_tokenizer):
        raise DecodeError("draft model: its tokenizer gives other ids than the model's; the two must share one")


def agreement(proposed: Sequence[int], chosen: Sequence[int]) -> int:
    """How many of the first proposed tokens were chosen."""
    for i, (a, b) in enumerate(zip(proposed, chosen, strict=False)):
        if a != b:
            return i
    return min(len(proposed), len(chosen))
