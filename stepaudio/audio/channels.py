"""Several channels to one, and whether that one holds their sound: not the wrong channel, not a mean that cancels.

What is done about a doubt is for the caller to say.
"""

from __future__ import annotations

import numpy as np

from .segment import FLOOR_POWER, SILENCE_DBFS

FRAME_SECONDS = 0.02
LOUD_FRAMES = 5  # 0.1 s: a channel is as loud as its fifth loudest frame, so that a click is no sound
QUIETER_DB = 30.0  # first channel against the loudest: more than crosstalk and distance make, less than an empty input
CANCELLED_DB = 20.0  # mean of the channels against what it is where they are independent
DISTINCT_DB = 10.0  # by which another channel is louder where the one that is read lies below silence


class ChannelWatch:
    """Makes one signal of the channels of a recording, block by block, and compares it with each of them.

    Parameters
    ----------
    downmix : {"first", "mean"}
        How that signal is made.
    rate : number
        Samples per second.
    """

    def __init__(self, downmix: str, rate: float):
        self._downmix, self._frame = downmix, max(1, round(FRAME_SECONDS * rate))
        self._loudest = np.zeros((0, 0))  # (up to LOUD_FRAMES, channels + 1): powers, the last column of the result

    def mono(self, block: np.ndarray) -> np.ndarray:
        """The next block, (n, channels), as the one signal (n,) that is read."""
        n, n_channels = block.shape
        mono = block[:, 0] if self._downmix == "first" or n_channels == 1 else block.mean(axis=1)
        if n_channels > 1 and n:
            powers = np.concatenate([self._powers(block), self._powers(mono[:, None])], axis=1)
            known = np.concatenate([self._loudest, powers]) if self._loudest.size else powers
            self._loudest = np.sort(known, axis=0)[-LOUD_FRAMES:]
        return mono

    @np.errstate(invalid="ignore", over="ignore")  # NaN and Inf in a channel that is not read do no harm
    def _powers(self, block: np.ndarray) -> np.ndarray:
        """(n, channels) -> variance of every frame, (frames, channels); 0 where it is not finite."""
        frame = min(self._frame, len(block))
        frames = block[: len(block) // frame * frame].reshape(-1, frame, block.shape[1])
        frames = frames - frames[:, :1]  # an offset would drown the rest in the rounding of the sums
        powers = np.einsum("tfc,tfc->tc", frames, frames) / frame - (np.einsum("tfc->tc", frames) / frame) ** 2
        return np.where(np.isfinite(powers), powers, 0)

    def doubt(self) -> str | None:
        """One clause that says what is wrong, or None: what is read holds the sound, or nothing does."""
        if not self._loudest.size:
            return None
        powers = np.maximum(self._loudest[0], 0)
        *levels, read = 10 * np.log10(powers + FLOOR_POWER)
        n, loudest = len(levels), int(np.argmax(levels))
        if levels[loudest] < SILENCE_DBFS:
            return None
        below = f"{levels[loudest] - read:.0f} dB below channel {loudest + 1}"
        if self._downmix == "mean":
            expected = 10 * np.log10(powers[:-1].sum() / n**2 + FLOOR_POWER)
            return f"the mean of its {n} channels cancels, {below}" if read < expected - CANCELLED_DB else None
        if read > max(levels[loudest] - QUIETER_DB, SILENCE_DBFS) or read > levels[loudest] - DISTINCT_DB:
            return None
        what = "holds no sound" if read < SILENCE_DBFS else "holds hardly any sound"
        return f"channel 1 of {n}, which is read, {what}, {below}"
