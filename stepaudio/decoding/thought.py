"""A thought as a record: what a model said to itself before it answers, and the prompt that has it answer.

The reference runs such a turn in two: up to `</think>`, then on from there, for speech with `<tts_start>` put behind.
Knows text alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..choices import StopReason
from ..errors import DecodeError
from ..text.chat_template import SPOKEN, Message
from .outputs import Generation

END_OF_THOUGHT = "</think>"


@dataclass(frozen=True)
class Thought:
    """The first of two phases of an answer.

    Parameters
    ----------
    turns : tuple of Message
        What it is about.
    opening : str
        What opened the answer, up to the thought.
    generation : Generation
        What was generated, `</think>` and what came with it in the same token included.
    spoken : bool
        Whether the answer is to be spoken.
    """

    turns: tuple[Message, ...]
    opening: str
    generation: Generation
    spoken: bool

    @property
    def finished(self) -> bool:
        """Whether it came to its end, rather than to a limit, a loop or the end of the turn."""
        return self.generation.stop == StopReason.STOP_STRING and END_OF_THOUGHT in self.generation.text

    @property
    def text(self) -> str:
        """The thought, without the marks around it."""
        return self.generation.text.partition(END_OF_THOUGHT)[0].strip()

    @property
    def messages(self) -> list[Message]:
        """The prompt of the second phase: the turns, and the open answer with the thought in it.

        Raises `DecodeError` where the thought was not finished: there is nothing to go on from.
        """
        if not self.finished:
            raise DecodeError(
                f"the thought was not finished, it ended by {self.generation.stop} after {len(self.generation.tokens)} "
                "tokens: raise max_tokens, or change the sampling; its text is in .text"
            )
        thought, _, rest = self.generation.text.partition(END_OF_THOUGHT)
        behind = f"\n\n{SPOKEN}" if self.spoken else rest
        return [*self.turns, Message("assistant", f"{self.opening}{thought}{END_OF_THOUGHT}{behind}", eot=False)]
