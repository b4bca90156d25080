"""Free generation of one loaded model: a run step by step, answers in text and in audio codes, thoughts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Unpack

from .audio.sources import given_rate
from .audio.vad import Detector
from .checkpoints.capabilities import Capabilities
from .choices import Resampler
from .decoding.generate import Request, Step
from .decoding.options import DecodingKeywords, DecodingOptions, merge_options, refuse_unknown
from .decoding.outputs import Generation
from .decoding.thought import Thought
from .engine import Engine
from .models.tap import Tap
from .text.messages import is_conversation, spoken_turns, with_audio
from .text.prompts import ASR_SYSTEM, asr_turns
from .thinking import think

TOP = 5  # alternatives that a stream lists unless told otherwise


class Answering:
    """What `StepAudio2` answers with; `engine` is what it has loaded."""

    engine: Engine

    @property
    def capabilities(self) -> Capabilities:
        """What the checkpoint was trained to do."""
        return self.engine.capabilities

    def request(
        self,
        messages: Sequence,
        *,
        downmix: str = "first",
        resampler: str = Resampler.REFERENCE,
        tap: Tap | None = None,
    ) -> Request:
        """A prompt of turns, ready for the decoder; see `Engine.build_request`."""
        return self.engine.build_request(messages, downmix=downmix, resampler=resampler, tap=tap)

    def stream(
        self,
        source,
        *,
        options: DecodingOptions | None = None,
        prompt: str = ASR_SYSTEM,
        resampler: str = Resampler.REFERENCE,
        sr: float | None = None,
        sample_rate: float | None = None,
        vad: str | Detector | None = "energy",
        tap: Tap | None = None,
        **changes: Unpack[DecodingKeywords],
    ) -> Iterator[Step]:
        """The steps of one run as they are made: of a transcription, or of an answer to messages.

        Parameters
        ----------
        source : recording, or list of messages
            A recording (as `transcribe` takes it) is transcribed in one run, however long it is, as the reference does
            it; messages (as `Engine.build_request` takes them) are answered.
        options, resampler, sr, sample_rate, **changes
            As in `transcribe`. `top` is 5 here unless given: every step lists its most probable tokens.
        prompt : str
            System text for a recording.
        vad : {"energy", "silero", "off"} or callable
            As in `transcribe`; of a recording, what remains is joined. Recordings in messages are taken whole.
        tap : Tap, optional
            Called as tap(name, array) with every intermediate result (`interp.recorder` names them).

        Yields
        ------
        Step
        """
        refuse_unknown(changes, ("options", "prompt", "resampler", "sr", "sample_rate", "vad", "tap"))
        if "top" not in changes and (options is None or not options.top):
            changes["top"] = TOP
        rate = given_rate(sr, sample_rate)
        if is_conversation(source):
            messages, task, vad = source, "chat", "off"
        else:
            messages, task = with_audio(asr_turns(prompt), source), "transcribe"
        merged = merge_options(options, task, **changes)
        request = self.engine.build_request(messages, resampler=resampler, sample_rate=rate, tap=tap, vad=vad)
        return self.engine.steps(request, merged, tap)

    def generate_with_audio(
        self,
        messages: str | Sequence,
        *,
        options: DecodingOptions | None = None,
        resampler: str = Resampler.REFERENCE,
        **changes: Unpack[DecodingKeywords],
    ) -> Generation:
        """Answer with text and audio codes, as they come.

        Parameters
        ----------
        messages : str or list of messages
            A text is the human's turn. A list as `Engine.build_request` takes it.
        options, resampler, **changes
            As in `transcribe`; sampling="reference" means that of StepFun's chat examples.
        """
        refuse_unknown(changes, ("options", "resampler"))
        if isinstance(messages, str):
            self.capabilities.require("respond")
        merged = merge_options(options, "chat", **changes)
        return self.engine.answer(self.engine.build_request(messages, resampler=resampler), merged)

    def generate_text(
        self,
        messages: str | Sequence,
        *,
        options: DecodingOptions | None = None,
        resampler: str = Resampler.REFERENCE,
        **changes: Unpack[DecodingKeywords],
    ) -> Generation:
        """Answer in text; the same run as `generate_with_audio`, without its codes."""
        return self.generate_with_audio(messages, options=options, resampler=resampler, **changes).text_only()

    def generate_audio_tokens(
        self,
        messages: str | Sequence,
        *,
        options: DecodingOptions | None = None,
        resampler: str = Resampler.REFERENCE,
        **changes: Unpack[DecodingKeywords],
    ) -> Generation:
        """Answer in audio codes: the open assistant turn starts with `<tts_start>`, as the reference seeds it."""
        if isinstance(messages, str):
            self.capabilities.require("speak")
        return self.generate_with_audio(spoken_turns(messages), options=options, resampler=resampler, **changes)

    def think(
        self,
        messages: str | Sequence,
        *,
        spoken: bool | None = None,
        options: DecodingOptions | None = None,
        **changes: Unpack[DecodingKeywords],
    ) -> Thought:
        """Have a model that thinks aloud think about messages; the first of the two phases of its answer.

        Parameters
        ----------
        messages : str or list of messages
            As `generate_with_audio` takes them.
        spoken : bool, optional
            Whether the answer is to be spoken; by default, if the model can speak.
        options, **changes
            As in `generate_with_audio`; the thought ends at `</think>`, whatever `stop` says.

        Returns
        -------
        Thought
            Its `messages` are what `generate_with_audio` takes for the second phase.

        Raises
        ------
        PromptError
            The model was not trained to think aloud.

        Examples
        --------
        >>> thought = model.think([{"role": "human", "content": "Why is the sky blue?"}])     # doctest: +SKIP
        >>> print(thought.text, model.generate_text(thought.messages).text)                   # doctest: +SKIP
        """
        refuse_unknown(changes, ("options", "spoken"))
        return think(self.engine, messages, merge_options(options, "chat", **changes), spoken)
