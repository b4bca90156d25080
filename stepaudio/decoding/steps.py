"""What goes into the decoding loop and what comes out of it, as records: requests and steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import mlx.core as mx

from ..choices import StopReason
from ..models.speech_lm import StepAudioNet
from .loop_detector import Loop
from .prompt_cache import Prefixes
from .sampling import Contrast
from .speculative import Drafts


@dataclass(frozen=True)
class Request:
    """One prompt, ready for the decoder.

    Parameters
    ----------
    tokens : sequence of int
        Token ids of the prompt.
    embeddings : mx.array, (n, D)
        The same as embeddings, with audio embeddings written in.
    spans : sequence of (start, length)
        Where its audio embeddings are, for a cache that pins them.
    draft : (StepAudioNet, Request), optional
        A draft model, and the same prompt as it has it.
    prefixes : Prefixes, optional
        Its beginnings, to be read from a prompt cache or kept in it; without effect in a batch.
    began : float, optional
        When work on it began, by `time.perf_counter`; None for when it comes to be decoded.
    contrasted : callable, optional
        Makes the same prompt with its audio altered, for contrast decoding; None without audio.
    """

    tokens: Sequence[int]
    embeddings: mx.array
    spans: tuple[tuple[int, int], ...] = ()
    draft: tuple[StepAudioNet, Request] | None = None
    prefixes: Prefixes | None = None
    began: float | None = None
    contrasted: Callable[[Contrast], Request] | None = None


class Alternative(NamedTuple):
    """One of the most probable tokens of a step: its id, and its probability before any rule, 0 to 1."""

    token: int
    probability: float


@dataclass(frozen=True)
class Step:
    """One token of one sequence of the batch.

    Parameters
    ----------
    row : int
        Number of the sequence in the batch.
    index : int
        Number of the token in its run, from 0.
    token : int
        Token id.
    logprob : float
        Natural log-probability under the model's own distribution, before any rule.
    stop : StopReason, optional
        Why the run ends here: "eos", "length", "stop string" or "loop".
    loop : Loop, optional
        The repetition loop that the newest tokens form just now.
    kv_bytes : int
        Bytes that the cache holds.
    top : tuple of Alternative
        The most probable tokens before any rule, the best first; empty unless `DecodingOptions.top` asks for some.
    seconds : float
        Since work on its request began.
    drafts : Drafts, optional
        What speculative decoding has saved in its run so far; None where nothing is proposed.
    """

    row: int
    index: int
    token: int
    logprob: float
    stop: StopReason | None = None
    loop: Loop | None = None
    kv_bytes: int = 0
    top: tuple[Alternative, ...] = ()
    seconds: float = field(default=0.0, compare=False)
    drafts: Drafts | None = field(default=None, compare=False)
