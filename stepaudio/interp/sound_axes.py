"""Axes of time in flow and vocoder: how long each is in the whole of a sound, and where one call of the nets stands."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from ..constants import CODES_PER_SECOND
from ..models.token2wav.flow import Flow, FlowState
from ..models.token2wav.hift import Hift
from ..synthesis.streaming import VocoderState
from .names import TOKEN2WAV_GLOSSARY

NETS = ("flow", "vocoder")
STANDS_IN = -1  # position of a code that is only looked at and is none of the sound's own at that place


@dataclass(frozen=True)
class Window:
    """What one call of flow and vocoder reads.

    Attributes
    ----------
    codes : (n,) position of each code, the prompt's first; `STANDS_IN` for what stands in for codes to come.
    frames : (L,) position of each frame that the estimator looks at, in the order of its keys.
    first_frame : of the vocoder, from the start of the sound.
    made : samples of the vocoder's source that the call before has made.
    """

    codes: np.ndarray
    frames: np.ndarray
    first_frame: int = 0
    made: int = 0

    @classmethod
    def of_whole(cls, flow: Flow, n_codes: int) -> Window:
        """All codes at once, prompt included."""
        return cls(np.arange(n_codes), np.arange(flow.up * n_codes))

    @classmethod
    def of_prompt(cls, flow: Flow, n_prompt: int) -> Window:
        """The prompt as `Flow.begin` reads it, its own first codes behind it."""
        codes = np.append(np.arange(n_prompt), np.full(flow.look_ahead, STANDS_IN))
        return cls(codes, np.arange(flow.up * n_prompt))

    @classmethod
    def of_chunk(
        cls, flow: Flow, vocoder: Hift, state: FlowState, sound: VocoderState, n_codes: int, last: bool
    ) -> Window:
        """The next codes of a stream, those included that are only looked at."""
        first, new = state.position // flow.up, n_codes - (0 if last else flow.look_ahead)
        frames = np.append(state.position + np.arange(flow.up * new), state.frames)
        made = 0 if sound.source is None else sound.source.shape[1]
        at = sound.position // vocoder.config.samples_per_frame
        return cls(np.arange(first, first + n_codes), frames, at, made)


class SoundAxes:
    """The axes of one sound, whichever way it is made; `window` is what the nets read now, at first all of it.

    Parameters
    ----------
    flow, vocoder : the nets.
    n_prompt, n_codes : codes of the voice prompt, and of what is made.
    """

    def __init__(self, flow: Flow, vocoder: Hift, n_prompt: int, n_codes: int):
        self.n_prompt, self.n_codes = n_prompt, n_codes
        self.window = Window.of_whole(flow, n_prompt + n_codes)
        self._up, self._vocoder = flow.up, vocoder.config

    @property
    def seconds(self) -> float:
        """Length of the sound."""
        return self.n_codes / CODES_PER_SECOND

    def origin(self, name: str, letter: str) -> tuple[int, float]:
        """Which entry of an axis stands at second 0, behind the voice prompt, and how many there are per second."""
        scale = self._scale(name, letter)
        if name.startswith("flow."):
            return scale * self.n_prompt, scale * CODES_PER_SECOND
        return 0, scale * self._up * CODES_PER_SECOND

    def made(self, name: str) -> int:
        """Entries that the call before has made and edited."""
        return self.window.made if name == "vocoder.source" else 0

    def length(self, name: str, letter: str) -> int | None:
        """Entries along an axis of the whole sound; None for distances between query and key."""
        if name.endswith("pos_embed"):
            return None
        if name.startswith("flow."):
            return self._scale(name, letter) * (self.n_prompt + self.n_codes)
        more = letter == "F" or (letter == "X" and self._stage(name) == len(self._vocoder.upsample_rates) - 1)
        return self._scale(name, letter) * self.n_codes * self._up + int(more and not name.endswith(".up"))

    def positions(self, name: str, letter: str, n: int) -> np.ndarray:
        """(n,) where the entries of an axis stand in the whole, in one call of the nets."""
        if name == "flow.encoder.embed":
            return self.window.codes
        if letter == "L":  # keys: of the conformer all so far, in the order of time
            return self.window.frames if name.startswith("flow.euler.") else np.arange(n)
        if name.endswith("pos_embed"):
            return np.arange(n)
        first = self.window.codes[0] if name.startswith("flow.") else self.window.first_frame
        return int(first) * self._scale(name, letter) + np.arange(n)

    def _scale(self, name: str, letter: str) -> int:
        """Entries for a code of the flow, or for a frame of the vocoder."""
        net, _, inner = name.partition(".")
        if net == "flow":
            of_codes = inner.startswith("encoder.") and not inner.startswith(("encoder.up.", "encoder.out"))
            return 1 if of_codes else self._up
        c = self._vocoder
        if letter == "X":
            return prod(c.upsample_rates[: self._stage(name) + 1])
        return {"T": 1, "W": c.samples_per_frame, "F": c.samples_per_frame // c.istft.hop_len}[letter]

    @staticmethod
    def _stage(name: str) -> int:
        return int(name.split(".")[1])


def sound_names(flow: Flow, vocoder: Hift, n_steps: int) -> dict[str, tuple[tuple[str, ...], dict[str, int]]]:
    """Every activation of flow and vocoder: its axes, and the sizes of those that the nets decide."""
    conformer, dit = flow.config.encoder, flow.config.decoder.estimator
    of_conformer = {"C": conformer.output_size, "H": conformer.attention_heads}
    of_conformer["K"] = conformer.output_size // conformer.attention_heads
    of_dit = {"C": dit.hidden_size, "H": dit.num_heads, "K": dit.head_dim, "M": flow.config.output_size}
    found = {}
    for net in NETS:
        for pattern, meaning in TOKEN2WAV_GLOSSARY[net].items():
            name = f"{net}.{pattern}"
            sizes = {"M": flow.config.output_size} if net == "flow" else {}
            count = len(vocoder.ups)
            if pattern.startswith("encoder."):
                sizes, count = of_conformer, conformer.num_up_blocks if ".up." in pattern else conformer.num_blocks
            elif pattern.startswith("euler."):
                sizes, count = of_dit, n_steps
            elif pattern == "conv_pre":
                sizes = {"C": vocoder.config.base_channels}
            elif pattern == "sines":
                sizes = {"C": vocoder.config.nb_harmonics + 1}
            elif net == "vocoder":
                sizes = {"C": vocoder.config.stage_channels[-1], "Q": vocoder.config.istft.n_fft + 2}
            for i in range(count if "{i}" in name else 1):
                if "{i}" in name and net == "vocoder":
                    sizes = {"C": vocoder.config.stage_channels[i]}
                for j in range(dit.depth if "{j}" in name else 1):
                    found[name.replace("{i}", str(i)).replace("{j}", str(j))] = (meaning.axes, sizes)
    return found
