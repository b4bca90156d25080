"""`Conversation`: an immutable history, and the answers of a model to it.

Every method gives another conversation and leaves this one as it is, so that a fork is a name, an interrupted answer
changes nothing, and conversations in several threads have nothing in common but the model.
"""

from __future__ import annotations

import operator
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any, Unpack

from ..choices import Resampler, is_whole, shown
from ..decoding.generate import Step
from ..decoding.options import DecodingKeywords, DecodingOptions, merge_options, refuse_unknown
from ..decoding.prompt_cache import digest
from ..errors import PromptError
from ..model import StepAudio2
from ..text.messages import names_a_file
from ..text.prompts import ASR_SYSTEM, DEFAULT_SYSTEM, READ_ALOUD, open_answer
from .answering import ROUNDS, SECONDS, STOP, THINK_TOKENS, AnswerOptions, Thinking, steps_to
from .context import Context, context_of, prompts_of
from .file import read_turns, write_turns
from .recording import Recording
from .tools import Tool, schemas
from .turns import RESULT_NOTE, Answer, Role, Turn, check_order


class Conversation:
    """A history of turns.

    Parameters
    ----------
    system : str, optional
        The system text; None for none.
    tools : iterable of callable, or str
        Functions whose schemas the model is shown (`Tool.of` says what they must be), or the text of schemas.
    turns : sequence of Turn, optional
        A whole history instead of both.

    Raises
    ------
    PromptError
        Turns in an order that is none, or what `Tool.of` refuses.

    Examples
    --------
    >>> talk = Conversation().ask("Give me a brief introduction to the Great Wall.")
    >>> talk = talk.answer(model)                                                # doctest: +SKIP
    >>> print(talk.last.text)                                                    # doctest: +SKIP
    """

    def __init__(
        self,
        system: str | None = DEFAULT_SYSTEM,
        *,
        tools: Iterable[Callable[..., Any] | Tool] | str = (),
        turns: Sequence[Turn] | None = None,
    ):
        if turns is None:
            turns = [] if system is None else [Turn(Role.SYSTEM, (_text(system, "system"),))]
            shown_tools = tools if isinstance(tools, str) else schemas(tools)
            turns += [Turn(Role.TOOLS, (shown_tools,))] if shown_tools else []
        check_order(turns)
        self._turns = tuple(turns)

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The history, oldest first."""
        return self._turns

    @cached_property
    def key(self) -> str:
        """A digest of what a model reads of all turns: two conversations with the same one get the same answers."""
        return digest(*(turn.key for turn in self.turns))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Conversation) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def __len__(self) -> int:
        return len(self.turns)

    def __repr__(self) -> str:
        lines = [f"{turn.role:7} {_line(turn)}" for turn in self.turns]
        return "\n".join(["Conversation", *(f"  {n:3}  {line}" for n, line in enumerate(lines))])

    @property
    def last(self) -> Answer:
        """The last answer; `PromptError` if there is none."""
        found = next((turn for turn in reversed(self.turns) if isinstance(turn, Answer)), None)
        if found is None:
            raise PromptError("the conversation has no answer yet: call answer(model)")
        return found

    def _with(self, *turns: Turn) -> Conversation:
        return Conversation(turns=(*self.turns, *turns))

    # ------------------------------------------------------------ what is said

    def ask(
        self,
        *parts: Any,
        audio: Any = None,
        downmix: str = "first",
        resampler: str = Resampler.REFERENCE,
        sample_rate: float | None = None,
    ) -> Conversation:
        """With a turn of the human.

        Parameters
        ----------
        *parts : str or recording
            In their order. A str is text, whatever is in it, and never the name of a file; anything else is a
            recording, as `StepAudio2.transcribe` takes it (of a path, a `Path`).
        audio : recording, optional
            Behind the parts; here a str is a path.
        downmix, resampler, sample_rate
            How recordings are read, as `audio.load.load_audio` has it.

        Raises
        ------
        PromptError
            Nothing is asked, or the last question has no answer yet.
        AudioError
        """
        reading = {"downmix": downmix, "resampler": resampler, "sample_rate": sample_rate}
        read = [part if isinstance(part, str) else Recording.of(part, **reading) for part in parts]
        if audio is not None:
            read.append(Recording.of(audio, **reading))
        for name in (part for part in parts if isinstance(part, str) and names_a_file(part)):
            warnings.warn(f"ask: {name} is asked as a text; to have the file read, give it as audio=", stacklevel=2)
        if not read:
            raise PromptError('ask: expected a text or a recording: ask("…") or ask(audio="talk.wav")')
        return self._with(Turn(Role.HUMAN, tuple(_text(p, "ask") if isinstance(p, str) else p for p in read)))

    def say(self, text: str) -> Conversation:
        """With a written answer that no model gave."""
        return self._with(Answer(Role.ANSWER, (_text(text, "say"),)))

    def say_tokens(self, tokens: Sequence[int], spoken: bool = True) -> Conversation:
        """With an answer of these token ids that no model gave; a spoken one behind `<tts_start>`."""
        try:
            ids = tuple(map(operator.index, tokens))
        except TypeError:
            raise PromptError(f"say_tokens: expected a list of token ids, found {shown(tokens)}") from None
        if min(ids, default=0) < 0:
            raise PromptError(f"say_tokens: expected token ids from 0, found {min(ids)}")
        return self._with(Answer(Role.ANSWER, ("",), ids, spoken))

    def give(self, *results: str, note: str = RESULT_NOTE) -> Conversation:
        """With the results of tools, and behind them what is to be made of them: the sentence of StepFun's example."""
        if not results:
            raise PromptError('give: expected the text of a result: give("…")')
        texts = [_text(result, "give") for result in results]
        return self._with(Turn(Role.RESULT, (*texts, *([_text(note, "note")] if note else []))))

    # ------------------------------------------------------------ answers

    def answer(
        self,
        model: StepAudio2,
        *,
        spoken: bool = False,
        think: bool | None = None,
        think_tokens: int = THINK_TOKENS,
        tools: Sequence[Callable[..., Any] | Tool] = (),
        rounds: int = ROUNDS,
        seconds: float = SECONDS,
        errors: str = STOP,
        options: DecodingOptions | None = None,
        **changes: Unpack[DecodingKeywords],
    ) -> Conversation:
        """With the model's answer; where it calls tools, with their results and the answers to those.

        Parameters
        ----------
        model : StepAudio2
        spoken : bool
            Whether the answer is opened as a spoken one; its codes are in `last.codes`.
        think : bool, optional
            Whether the model thinks first; by default, if it is one whose answers begin so.
        think_tokens : int >= 1
            Most tokens of the thought. One that has not ended by then is closed, and the answer follows.
        tools : sequence of callable
            Functions that may be called. A call of any other is answered with an error, or ends it. Without any,
            nothing is called: what the model wished is in `last.calls`.
        rounds : int >= 0
            How often results are given back for another answer.
        seconds : number > 0
            Longest time that a call may take.
        errors : {"stop", "show"}
            What is done about a call that is malformed, unknown or fails: end with `last.outcomes`, or show the model
            the error as its result.
        options, **changes
            As in `StepAudio2.generate_with_audio`.

        Raises
        ------
        PromptError
            Nothing is asked, or the model was not trained for it.
        DecodeError, WeightsError
        """
        asked = AnswerOptions(spoken, think, think_tokens, tools, rounds, seconds, errors)
        steps = self._stream(model, asked, options, changes)
        deque(steps, maxlen=0)
        return steps.conversation

    def stream(
        self,
        model: StepAudio2,
        *,
        spoken: bool = False,
        think: bool | None = None,
        think_tokens: int = THINK_TOKENS,
        tools: Sequence[Callable[..., Any] | Tool] = (),
        rounds: int = ROUNDS,
        seconds: float = SECONDS,
        errors: str = STOP,
        options: DecodingOptions | None = None,
        **changes: Unpack[DecodingKeywords],
    ) -> AnswerStream:
        """The steps of the same answer as they are made; the conversation with it once they have ended.

        Examples
        --------
        >>> steps = talk.stream(model)                                           # doctest: +SKIP
        >>> for step in steps: ...                                               # doctest: +SKIP
        >>> talk = steps.conversation                                            # doctest: +SKIP
        """
        asked = AnswerOptions(spoken, think, think_tokens, tools, rounds, seconds, errors)
        return self._stream(model, asked, options, changes)

    def _stream(
        self, model: StepAudio2, asked: AnswerOptions, options: DecodingOptions | None, changes: DecodingKeywords
    ) -> AnswerStream:
        refuse_unknown(changes, (*(f.name for f in fields(AnswerOptions)), "options"))
        merged = merge_options(options, "chat", **changes)
        if not isinstance(model, StepAudio2):
            found = type(model).__name__
            raise PromptError(f"answer: expected a StepAudio2 (of a SpeechModel its .model), found {found}")
        if not self.turns or self.turns[-1].role not in (Role.HUMAN, Role.RESULT):
            raise PromptError("answer: nothing is asked; call ask(…) first")
        self._require_task(model, asked.spoken)
        thoughts: list[Thinking] = []
        return AnswerStream(self, steps_to(model.engine, self.turns, asked, merged, thoughts), thoughts)

    def context(
        self,
        model: StepAudio2,
        *,
        spoken: bool = False,
        options: DecodingOptions | None = None,
        **changes: Unpack[DecodingKeywords],
    ) -> Context:
        """Positions that each turn takes for the next answer, and what the cache would evict of it; print it."""
        merged = merge_options(options, "chat", **changes)
        return context_of(model.engine, self.turns, open_answer(spoken), merged)

    def tokens(self, model: StepAudio2, spoken: bool = False) -> tuple[int, ...]:
        """The token ids of the prompt for the next answer, one without a thought; nothing is encoded."""
        prompts = prompts_of(model.engine, self.turns, open_answer(spoken))
        return tuple(token for prompt in prompts for token in prompt.tokens)

    def _require_task(self, model: StepAudio2, spoken: bool) -> None:
        """Raise `PromptError` if the model was trained for no such conversation."""
        capabilities = model.capabilities
        if not capabilities.turns:
            raise PromptError("this is a base model, whose prompts have no turns: load one that converses")
        system, asked = self.turns[0].text, self.turns[-1]
        if spoken:
            capabilities.require("speak")
        recorded = any(isinstance(part, Recording) for part in asked.parts)
        if system == ASR_SYSTEM and recorded:
            capabilities.require("transcribe")
        elif spoken and recorded:
            capabilities.require_answer()
        elif not (spoken and system == READ_ALOUD):
            capabilities.require("respond")

    # ------------------------------------------------------------ other histories

    def fork(self, turn: int) -> Conversation:
        """The history up to and with this turn (negative numbers count from the end)."""
        if not is_whole(turn) or not -len(self) <= turn < len(self):
            raise PromptError(f"fork: expected the number of one of {len(self)} turns, found {shown(turn)}")
        return Conversation(turns=self.turns[: turn % len(self) + 1])

    def rewind(self, questions: int = 1) -> Conversation:
        """The history before the last questions, with all that came after them gone."""
        places = [n for n, turn in enumerate(self.turns) if turn.role == Role.HUMAN]
        if not is_whole(questions) or not 0 <= questions <= len(places):
            raise PromptError(f"rewind: expected 0 to {len(places)} questions, found {shown(questions)}")
        return Conversation(turns=self.turns[: places[-questions]] if questions else self.turns)

    # ------------------------------------------------------------ files

    def save(self, path: str | Path) -> Path:
        """Write the history to one file (a zip of JSON Lines and FLAC), whole or not at all; `DataError` if not."""
        return write_turns(path, self.turns)

    @classmethod
    def open(cls, path: str | Path) -> Conversation:
        """Read a file that `save` wrote; `DataError` for anything else."""
        return cls(turns=read_turns(path))


class AnswerStream:
    """Steps of an answer as they are made, once; what is left off has changed nothing."""

    def __init__(self, talk: Conversation, steps: Generator[Step, None, list[Turn]], thoughts: Sequence[Thinking]):
        self._talk, self._steps, self._found, self._thoughts = talk, steps, None, thoughts

    def __iter__(self) -> Iterator[Step]:
        new = yield from self._steps
        self._found = Conversation(turns=(*self._talk.turns, *new))

    @property
    def thought(self) -> Thinking | None:
        """What the model thought before the answer whose steps come now, from the first of them on; None if nothing."""
        return self._thoughts[-1] if self._thoughts else None

    @property
    def conversation(self) -> Conversation:
        """The conversation with the answer; `PromptError` before its last step was taken."""
        if self._found is None:
            raise PromptError("the answer has not ended: take all steps of the stream first")
        return self._found


def _text(text: object, what: str) -> str:
    if not isinstance(text, str) or not text:
        raise PromptError(f"{what}: expected a text, found {shown(text)}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise PromptError(f"{what}: expected text without lone surrogates, found {shown(text)}") from None
    return text


def _line(turn: Turn) -> str:
    parts = [f"({p.seconds:.1f} s of audio)" if isinstance(p, Recording) else p for p in turn.parts]
    text = " ".join(" ".join(parts).split())
    codes = f" ({len(turn.codes)} codes)" if isinstance(turn, Answer) and turn.codes else ""
    return (text if len(text) <= 80 else f"{text[:79]}…") + codes
