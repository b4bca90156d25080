"""`SpeechModel`: the language model and the vocoder stack together. Text or speech in, speech out, whole or streamed.

Ties `StepAudio2` to a `Synthesizer`; owns no arithmetic and no state between calls. Knows no files but those that it
is told to load.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Unpack

import mlx.core as mx
import numpy as np

from .checkpoints.capabilities import Capabilities
from .decoding.generate import Step, collect
from .decoding.options import DecodingKeywords, DecodingOptions, merge_options
from .decoding.outputs import Generation, answer_of
from .decoding.sampling import Sampling
from .engine import with_audio
from .errors import WeightsError
from .model import StepAudio2
from .resources import checkpoint_folder
from .synthesis.streaming import StreamOptions, StreamState
from .synthesis.synthesizer import AS_REFERENCE, Sound, Synthesizer
from .text.chat_template import Message
from .text.prompts import DEFAULT_SYSTEM, open_answer, reading_turns, translation_turns
from .text.sentences import MAX_CHARACTERS, cut_text
from .text.tokenizer import Detokenizer, Tokenizer

Conversation = Sequence  # of messages, as `Engine.build_request` takes them


def _chat() -> DecodingOptions:
    return DecodingOptions(Sampling.reference("chat"))


@dataclass(frozen=True)
class SpeechOptions:
    """How answers are made and voiced.

    Parameters
    ----------
    decoding : DecodingOptions
        Of each answer; by default with the sampling of StepFun's spoken examples, which draws: its seed decides.
    seed : int >= 0
        Of the noise that sound starts from.
    voicing : StreamOptions
        How a stream is divided into chunks; its `flow` also holds the Euler steps of sound made whole.
    max_characters : int
        Longest part of a text to be read, see `text.sentences.cut_text`.
    """

    decoding: DecodingOptions = field(default_factory=_chat)
    seed: int = 0
    voicing: StreamOptions = AS_REFERENCE
    max_characters: int = MAX_CHARACTERS


DEFAULT = SpeechOptions()
WRITTEN = SpeechOptions(DecodingOptions(Sampling.reference("translate")))  # greedy: what the examples do for text


@dataclass(frozen=True)
class Spoken:
    """Answers and their sound, in order: one of a question, several of a long text.

    An answer without codes has a sound of no samples: nothing here fails because a model chose to write.
    """

    answers: tuple[Generation, ...]
    sounds: tuple[Sound, ...]
    sample_rate: int

    @property
    def wave(self) -> np.ndarray:
        """All sound, (n,) float32; n = 0 if no answer was spoken."""
        return np.concatenate([np.zeros(0, np.float32), *(s.wave for s in self.sounds)])

    @property
    def text(self) -> str:
        """What was written beside it."""
        return " ".join(t for a in self.answers if (t := (a.text or "").strip()))

    @property
    def kind(self) -> str:
        """The best that any answer is: "spoken", "text" or "empty"."""
        kinds = {a.kind for a in self.answers}
        return next((k for k in ("spoken", "text") if k in kinds), "empty")

    @property
    def n_codes(self) -> int:
        return sum(len(a.codes) for a in self.answers)

    @property
    def n_padding(self) -> int:
        """Padding codes that were dropped."""
        return sum(a.n_padding for a in self.answers)


@dataclass(frozen=True)
class SpokenChunk:
    """What came since the chunk before. wave : (n,) float32. text : new text.

    answer : None, but with the last chunk of an answer (which may hold no sound) the answer.
    """

    wave: np.ndarray
    text: str
    answer: Generation | None = None


class SpeechModel:
    """Make one with `SpeechModel.load`, or of its two halves.

    Methods that make sound take a voice as `Synthesizer.voice` does: a `Voice`, a clip, or a saved voice.
    """

    def __init__(self, model: StepAudio2, synthesizer: Synthesizer | None = None):
        self.model, self._synthesizer = model, synthesizer

    @classmethod
    def load(cls, path: str | Path | None = None, *, speak: bool = True, dtype: mx.Dtype | None = None) -> SpeechModel:
        """Read a model's folder with its converted `token2wav`.

        Parameters
        ----------
        path : folder; by default `STEPAUDIO_CHECKPOINT`, or else the bundled model.
        speak : False leaves the speaking half out, for answers in text.
        dtype : of the language model, as `StepAudio2.load`.

        Raises
        ------
        WeightsError : no speaking half in the folder, found before the language model is read; and what the loaders
            of both halves raise.
        """
        folder = checkpoint_folder(path)
        if speak:
            Capabilities.of_folder(folder).require("speak")
        synthesizer = Synthesizer.load(folder) if speak else None
        return cls(StepAudio2.load(folder, dtype=dtype), synthesizer)

    @property
    def synthesizer(self) -> Synthesizer:
        if self._synthesizer is None:
            raise WeightsError("this model was loaded without its vocoder stack: load it with speak=True")
        return self._synthesizer

    # ------------------------------------------------------------ what can be asked

    def synthesize(self, text: str, voice, options: SpeechOptions = DEFAULT) -> Spoken:
        """Read a text aloud, piece by piece if it is long. Raises `PromptError` for no words or special tokens."""
        return self.speak(self.reading(text, options), voice, options)

    def respond(self, audio, voice, options: SpeechOptions = DEFAULT, system: str = DEFAULT_SYSTEM) -> Spoken:
        """Answer a recording in speech."""
        return self.speak([self.question(audio, system)], voice, options)

    def translate(self, audio, to: str = "zh", options: SpeechOptions = WRITTEN) -> Generation:
        """What is said in a recording, as text in another language: a key of `prompt.LANGUAGES`."""
        self.model.capabilities.require("translate")
        messages = with_audio(translation_turns(to), audio)
        return self.model.generate_text(messages, options=options.decoding)

    def translate_speech(self, audio, voice, to: str = "zh", options: SpeechOptions = DEFAULT) -> Spoken:
        """The same as speech."""
        return self.speak([self.translation(audio, to)], voice, options)

    # ------------------------------------------------------------ conversations, for `speak` and `stream`

    def reading(self, text: str, options: SpeechOptions = DEFAULT) -> list[Conversation]:
        """One conversation per piece of a text to be read aloud."""
        tokenizer = self._tokenizer()
        reading_turns(text, tokenizer)  # a fault anywhere ends it before any piece is read
        return [reading_turns(piece, tokenizer) for piece in cut_text(text, options.max_characters)]

    def question(self, audio, system: str = DEFAULT_SYSTEM) -> Conversation:
        """A recording as the human's turn, and a spoken answer opened."""
        turns = [Message("system", system), Message("human", [{"type": "audio"}]), open_answer(True)]
        return with_audio(turns, audio)

    def translation(self, audio, to: str = "zh") -> Conversation:
        """A recording that is to be translated aloud."""
        return with_audio(translation_turns(to, spoken=True), audio)

    def speak(self, conversations: Sequence[Conversation], voice, options: SpeechOptions = DEFAULT) -> Spoken:
        """Answer each conversation, then voice each answer whole, as the reference does.

        Raises
        ------
        PromptError, AudioError, DecodeError, WeightsError : as the two halves.
        """
        synthesizer = self.synthesizer
        voice = synthesizer.voice(voice)
        answers = tuple(self.model.generate_with_audio(c, options=options.decoding) for c in conversations)
        sounds = tuple(
            synthesizer.decode(
                a.codes, voice, noise=options.seed, source_noise=options.seed, options=options.voicing.flow
            )
            for a in answers
        )
        return Spoken(answers, sounds, synthesizer.sample_rate)

    def stream(
        self, conversations: Sequence[Conversation], voice, options: SpeechOptions = DEFAULT
    ) -> Iterator[SpokenChunk]:
        """The same as it comes: sound follows the codes by one chunk and the look-ahead. Every answer begins anew in
        the voice, which is read once.
        """
        state = self.synthesizer.begin(
            self.synthesizer.voice(voice), noise=options.seed, source_noise=options.seed, options=options.voicing
        )
        return self._stream(conversations, state, options)

    def _stream(self, conversations, state: StreamState, options: SpeechOptions) -> Iterator[SpokenChunk]:
        engine = self.model.engine
        for messages in conversations:
            listener = _Listener(engine.steps(engine.build_request(messages), options.decoding), self._tokenizer())
            for chunk in self.synthesizer.stream(listener, state):
                yield SpokenChunk(chunk.wave, listener.new_text())
            answer = answer_of(collect(iter(listener.steps), 1)[0], self._tokenizer())
            yield SpokenChunk(np.zeros(0, np.float32), listener.new_text(end=True), answer)

    def _tokenizer(self) -> Tokenizer:
        return self.model.engine.require_tokenizer()


class _Listener:
    """The audio codes of steps as they come, padding included; keeps the steps and their text."""

    def __init__(self, steps: Iterator[Step], tokenizer: Tokenizer):
        self.steps: list[Step] = []
        self._source, self._tokenizer = steps, tokenizer
        self._words, self._text = Detokenizer(tokenizer), ""

    def __iter__(self) -> Iterator[int]:
        for step in self._source:
            self.steps.append(step)
            if self._tokenizer.is_audio(step.token):
                yield step.token - self._tokenizer.first_audio_code
            elif step.token < self._tokenizer.text_limit:
                self._text += self._words.push(step.token)

    def new_text(self, end: bool = False) -> str:
        """The text since the last call."""
        text, self._text = self._text + (self._words.finish() if end else ""), ""
        return text
