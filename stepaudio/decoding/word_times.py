"""When each word was said: the tokens of a transcript laid along its audio by the attention of chosen heads.

Some heads look from a token at the part of the audio in which it is said. Their attention over the audio embeddings,
smoothed over time, is a table of tokens by positions, and dynamic time warping finds the path through it that never
goes back: where the path comes to a token, that token begins. The idea is that of Whisper's word times.

Knows no nets: attention comes as numbers, from `Engine.with_words`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..constants import EMBEDDINGS_PER_SECOND
from ..text.scripts import is_unspaced
from ..text.tokenizer import Detokenizer, Tokenizer

DOUBTFUL = 0.5  # a word whose tokens are less probable than this in the mean is marked

FAINT = 0.003  # share of the attention beside which differences between tokens count little, as they are in silence


@dataclass(frozen=True)
class Word:
    """One word of a segment.

    Parameters
    ----------
    text : str
        Without blanks around it; of a script without blanks between words, what one token holds.
    start, end : float
        Seconds from the beginning of the recording, in steps of 0.08 s.
    probability : float
        Mean of the probabilities of its tokens, 0 to 1, before any rule of decoding.
    """

    text: str
    start: float
    end: float
    probability: float

    @property
    def doubtful(self) -> bool:
        """Whether the model was rather unsure: `probability` is below `DOUBTFUL`."""
        return self.probability < DOUBTFUL


def words_of(tokens: Sequence[int], tokenizer: Tokenizer) -> list[tuple[str, int, int]]:
    """Tokens as words: (text, first token, last token + 1). Markers and audio codes belong to none.

    A word begins at a blank; where a script puts none between words, at every token.
    """
    detokenizer, found = Detokenizer(tokenizer), []
    text, first, last = "", 0, 0

    def close() -> None:
        if text.strip():
            found.append((text.strip(), first, last))

    waiting = None  # the first of the tokens whose bytes do not make a character yet
    for i, token in enumerate(tokens):
        if token >= tokenizer.text_limit or token in tokenizer.special_ids:
            continue
        waiting = i if waiting is None else waiting
        if not (part := detokenizer.push(token)):
            continue
        seam = text + part[0]
        if (
            not text.strip()
            or part[0].isspace()
            or text[-1].isspace()
            or (part[0].isalnum() and is_unspaced(seam[-2:]))
        ):
            close()
            text, first = "", waiting
        text, last, waiting = text + part, i + 1, None
    if waiting is not None:  # a character that was cut off
        text, last = text + detokenizer.finish(), len(tokens)
    close()
    return found


def timed_words(
    tokens: Sequence[int],
    logprobs: Sequence[float],
    attention: np.ndarray,
    tokenizer: Tokenizer,
    width: int,
    seconds: float,
) -> tuple[Word, ...]:
    """The words of a run, with times from the beginning of its segment.

    Parameters
    ----------
    tokens, logprobs : of the run, the end mark included, which says where the last word ends.
    attention, width : as `token_starts` takes them.
    tokenizer : of the model.
    seconds : of the segment, which no time exceeds.
    """
    words = words_of(tokens, tokenizer)
    if not words:
        return ()
    times = np.minimum(np.append(token_starts(attention, width) / EMBEDDINGS_PER_SECOND, np.inf), seconds).tolist()
    odds = np.exp(np.asarray(logprobs, float))
    return tuple(Word(text, times[a], times[b], float(odds[a:b].mean())) for text, a, b in words)


def median_filtered(x: np.ndarray, width: int) -> np.ndarray:
    """The median of each `width` neighbours along the last axis, ends mirrored; `width` is odd."""
    half = min(width // 2, x.shape[-1] - 1)
    if half < 1:
        return x
    padded = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(half, half)], mode="reflect")
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, 2 * half + 1, axis=-1), axis=-1)


def warp(cost: np.ndarray) -> np.ndarray:
    """The cheapest path through a table of costs, as the first column of each row.

    The path leads from the first row and column to the last. Each step goes on by one column, and by one row or none;
    where rows outnumber columns, a step may also go on by a row alone.

    Parameters
    ----------
    cost : np.ndarray, (n, m)

    Returns
    -------
    np.ndarray of int, (n,)
        Never falling, the first 0.
    """
    n, m = cost.shape
    total = np.full((n + 1, m + 1), np.inf)
    total[0, 0] = 0
    down = np.inf if n <= m else 0.0  # added to a step by a row alone
    for diagonal in range(n + m - 1):  # all entries of one depend on those of the two before alone
        i = np.arange(max(0, diagonal - m + 1), min(n, diagonal + 1))
        j = diagonal - i
        before = np.minimum(np.minimum(total[i, j], total[i + 1, j]), total[i, j + 1] + down)
        total[i + 1, j + 1] = cost[i, j] + before
    starts = np.zeros(n, int)
    i, j = n, m
    while i > 0 and j > 0:
        starts[i - 1] = j - 1
        steps = [(total[i - 1, j - 1], i - 1, j - 1), (total[i, j - 1], i, j - 1), (total[i - 1, j] + down, i - 1, j)]
        _, i, j = min(steps, key=lambda step: step[0])
    return starts


def token_starts(attention: np.ndarray, width: int) -> np.ndarray:
    """The position of audio at which each token begins.

    Parameters
    ----------
    attention : np.ndarray, (heads, tokens, positions)
        What each token, once chosen, gives to each position of the audio; >= 0.
    width : int
        Of the median filter, in positions; odd.

    Returns
    -------
    np.ndarray of int, (tokens,)
        Never falling. What comes before the first token belongs to none.
    """
    share = attention / np.maximum(attention.sum(axis=-1, keepdims=True), 1e-12)
    spread = share.std(axis=1, keepdims=True)  # over tokens: what all look at says nothing about any
    scaled = (share - share.mean(axis=1, keepdims=True)) / (spread + FAINT)
    gain = median_filtered(scaled, width).mean(axis=0)
    silence = np.zeros((1, gain.shape[1]))  # before the first token, at no cost and no gain
    return warp(-np.concatenate([silence, gain]))[1:]
