"""`SpeechModel`: the language model and the vocoder stack together. Text or speech in, speech out, whole or streamed.

Ties `StepAudio2` to a `Synthesizer`; owns no arithmetic and no state between calls. Knows no files but those that it
is told to load.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Unpack

import mlx.core as mx
import numpy as np

from .checkpoints.capabilities import Capabilities
from .checkpoints.find import checkpoint_folder
from .checkpoints.hub_name import MODEL, TOKEN2WAV
from .choices import Resampler
from .decoding.generate import Step, collect
from .decoding.options import DecodingKeywords, DecodingOptions, merge_options, refuse_unknown
from .decoding.outputs import Generation, answer_of
from .decoding.sampling import Sampling
from .errors import WeightsError
from .model import StepAudio2
from .synthesis.streaming import StreamOptions, StreamState
from .synthesis.synthesizer import AS_REFERENCE, Sound, Synthesizer
from .text.chat_template import Message
from .text.messages import with_audio
from .text.prompts import DEFAULT_SYSTEM, open_answer, reading_turns, translation_turns
from .text.scripts import join_texts
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
    resampler : {"reference", "soxr"}
        What brings recordings, and clips of a voice, to the rates of the nets.
    """

    decoding: DecodingOptions = field(default_factory=_chat)
    seed: int = 0
    voicing: StreamOptions = AS_REFERENCE
    max_characters: int = MAX_CHARACTERS
    resampler: str = Resampler.REFERENCE


DEFAULT = SpeechOptions()
WRITTEN = SpeechOptions(DecodingOptions(Sampling.reference("translate")))  # greedy: what the examples do for text


@dataclass(frozen=True)
class Spoken:
    """Answers and their sound, in order: one of a question, several of a long text.

    An answer without codes has a sound of no samples: nothing here fails because a model chose to write.
    `first_sound_seconds` counts from when work on the first conversation began, the voice being read, to when the first
    sound was there; None without sound. The first token's seconds are with each answer.
    """

    answers: tuple[Generation, ...]
    sounds: tuple[Sound, ...]
    sample_rate: int
    first_sound_seconds: float | None = field(default=None, compare=False)

    @property
    def wave(self) -> np.ndarray:
        """All sound, (n,) float32; n = 0 if no answer was spoken."""
        return np.concatenate([np.zeros(0, np.float32), *(s.wave for s in self.sounds)])

    @property
    def text(self) -> str:
        """What was written beside it."""
        return join_texts((a.text or "").strip() for a in self.answers)

    @property
    def kind(self) -> str:
        """The best that any answer is: "spoken", "text" or "empty"."""
        kinds = {a.kind for a in self.answers}
        return next((k for k in ("spoken", "text") if k in kinds), "empty")

    @property
    def n_codes(self) -> int:
        """Audio codes in all answers."""
        return sum(len(a.codes) for a in self.answers)

    @property
    def n_padding(self) -> int:
        """Padding codes that were dropped."""
        return sum(a.n_padding for a in self.answers)


@dataclass(frozen=True)
class SpokenChunk:
    """What came since the chunk before. wave : (n,) float32. text : new text.

    answer : None, but with the last chunk of an answer (which may hold no sound) the answer.
    seconds : from when the stream's first chunk was asked for until this one was there.
    """

    wave: np.ndarray
    text: str
    answer: Generation | None = None
    seconds: float = field(default=0.0, compare=False)


class SpeechModel:
    """A language model and a vocoder stack. Make one with `SpeechModel.load`, or of the two.

    Methods that make sound take a voice as `Synthesizer.voice` does: a `Voice`, a clip, or a saved voice.
    """

    def __init__(self, model: StepAudio2, synthesizer: Synthesizer | None = None):
        self.model, self._synthesizer = model, synthesizer

    @classmethod
    def load(
        cls,
        path: str | Path | None = None,
        *,
        speak: bool = True,
        dtype: mx.Dtype | str | None = None,
        lora: str | Path | None = None,
    ) -> SpeechModel:
        """Read a model's folder with its converted `token2wav`.

        Parameters
        ----------
        path : str or Path, optional
            Folder or name on a hub, as `StepAudio2.load` takes it; by default `STEPAUDIO_CHECKPOINT`, or else the
            bundled model.
        speak : bool
            False leaves the vocoder stack out, for answers in text.
        dtype : mx.Dtype or its name, optional
            Of the language model, as `StepAudio2.load`.
        lora : str or Path, optional
            Of the language model, as `StepAudio2.load`.

        Raises
        ------
        PromptError
            The model was not trained to speak.
        WeightsError
            No vocoder stack in the folder, found before the language model is read; and what both loaders raise.
        """
        folder = checkpoint_folder(path, (MODEL, TOKEN2WAV) if speak else (MODEL,))
        if speak:
            Capabilities.of(folder, lora).require("speak")
        synthesizer = Synthesizer.load(folder) if speak else None
        return cls(StepAudio2.load(folder, dtype=dtype, lora=lora), synthesizer)

    def altered(self, model: StepAudio2) -> SpeechModel:
        """The same vocoder stack behind another language model; this one stays as it is."""
        return SpeechModel(model, self._synthesizer)

    @property
    def synthesizer(self) -> Synthesizer:
        """The vocoder stack; `WeightsError` if it was not loaded."""
        if self._synthesizer is None:
            raise WeightsError("this model was loaded without its vocoder stack: load it with speak=True")
        return self._synthesizer

    # ------------------------------------------------------------ what can be asked

    def synthesize(
        self, text: str, voice: Any = "female", options: SpeechOptions = DEFAULT, **changes: Unpack[DecodingKeywords]
    ) -> Spoken:
        """Read a text aloud, part by part if it is long.

        Parameters
        ----------
        text : str
        voice : Voice, recording, path, "female" or "male"
            As `Synthesizer.voice` takes it.
        options : SpeechOptions
        **changes
            Short keywords on top of `options.decoding`, as in `StepAudio2.transcribe`; `seed` also that of the noise.

        Raises
        ------
        PromptError
            No words, or special tokens among them.
        """
        options = _merged(options, "speak", changes)
        return self.speak(self.reading(text, options), voice, options)

    def respond(
        self,
        audio,
        voice: Any = "female",
        options: SpeechOptions = DEFAULT,
        system: str = DEFAULT_SYSTEM,
        **changes: Unpack[DecodingKeywords],
    ) -> Spoken:
        """Answer a recording in speech; options as in `synthesize`. A model that only repeats says it again."""
        self.model.capabilities.require_answer()
        options = _merged(options, "chat", changes)
        return self.speak([self.thought(self.question(audio, system), options)], voice, options)

    def translate(
        self, audio, to: str = "zh", options: SpeechOptions = WRITTEN, **changes: Unpack[DecodingKeywords]
    ) -> Generation:
        """What is said in a recording, as text in another language: a key of `text.prompts.LANGUAGES`."""
        self.model.capabilities.require("translate")
        messages = with_audio(translation_turns(to), audio)
        options = _merged(options, "translate", changes)
        return self.model.generate_text(messages, options=options.decoding, resampler=options.resampler)

    def translate_speech(
        self,
        audio,
        voice: Any = "female",
        to: str = "zh",
        options: SpeechOptions = DEFAULT,
        **changes: Unpack[DecodingKeywords],
    ) -> Spoken:
        """The same as speech; options as in `synthesize`."""
        self.model.capabilities.require("translate")
        return self.speak([self.translation(audio, to)], voice, _merged(options, "chat", changes))

    # ------------------------------------------------------------ conversations, for `speak` and `stream`

    def reading(self, text: str, options: SpeechOptions = DEFAULT) -> list[Conversation]:
        """One conversation per part of a text to be read aloud."""
        tokenizer = self._tokenizer()
        reading_turns(text, tokenizer)  # a fault anywhere ends it before any part is read
        self.model.capabilities.require_text(text)
        self.model.capabilities.warn_of_symbols(text)
        return [reading_turns(part, tokenizer) for part in cut_text(text, options.max_characters)]

    def question(self, audio, system: str = DEFAULT_SYSTEM) -> Conversation:
        """A recording as the human's turn, and a spoken answer opened."""
        turns = [Message("system", system), Message("human", [{"type": "audio"}]), open_answer(True)]
        return with_audio(turns, audio)

    def thought(self, conversation: Conversation, options: SpeechOptions = DEFAULT) -> Conversation:
        """The conversation, with its thought in the open answer if the model's answers begin with one."""
        able = self.model.capabilities
        if able.thinking is None or not able.thinks_unasked:
            return conversation
        return self.model.think(conversation, spoken=True, options=options.decoding).messages

    def translation(self, audio, to: str = "zh") -> Conversation:
        """A recording that is to be translated aloud."""
        return with_audio(translation_turns(to, spoken=True), audio)

    def speak(self, conversations: Sequence[Conversation], voice, options: SpeechOptions = DEFAULT) -> Spoken:
        """Answer each conversation, then voice each answer whole, as the reference does.

        Raises
        ------
        PromptError, AudioError, DecodeError, WeightsError
            As both parts raise them.
        """
        synthesizer = self.synthesizer
        voice = synthesizer.voice(voice, options.resampler)
        began, first = time.perf_counter(), None
        answers = tuple(
            self.model.generate_with_audio(c, options=options.decoding, resampler=options.resampler)
            for c in conversations
        )
        sounds, noise = [], {"noise": options.seed, "source_noise": options.seed}
        for answer in answers:
            sounds.append(synthesizer.decode(answer.codes, voice, **noise, options=options.voicing.flow))
            if first is None and len(sounds[-1].wave):
                first = time.perf_counter() - began
        return Spoken(answers, tuple(sounds), synthesizer.sample_rate, first)

    def stream(
        self, conversations: Sequence[Conversation], voice, options: SpeechOptions = DEFAULT
    ) -> Iterator[SpokenChunk]:
        """The same as it comes: sound follows the codes by one chunk and the look-ahead.

        Every answer begins anew in the voice, which is read once.
        """
        engine = self.model.engine
        requests = (engine.build_request(messages, resampler=options.resampler) for messages in conversations)
        return self.voiced((engine.steps(request, options.decoding) for request in requests), voice, options)

    def voiced(self, runs: Iterable[Iterator[Step]], voice, options: SpeechOptions = DEFAULT) -> Iterator[SpokenChunk]:
        """Sound of answers as their steps come, as `stream` makes it, whoever runs them.

        Parameters
        ----------
        runs : iterable of iterators of Step
            One for each answer, as `StepAudio2.stream` gives it, or `interp.steps_with_edits`; each is taken when it is
            its turn.
        voice : as in `synthesize`.
        options : SpeechOptions
            Its `decoding` is not used.
        """
        state = self.synthesizer.begin(
            self.synthesizer.voice(voice, options.resampler),
            noise=options.seed,
            source_noise=options.seed,
            options=options.voicing,
        )
        return self._voiced(runs, state)

    def _voiced(self, runs: Iterable[Iterator[Step]], state: StreamState) -> Iterator[SpokenChunk]:
        began = time.perf_counter()
        for steps in runs:
            listener = _Listener(steps, self._tokenizer())
            for chunk in self.synthesizer.stream(listener, state):
                yield SpokenChunk(chunk.wave, listener.new_text(), seconds=time.perf_counter() - began)
            answer = answer_of(collect(iter(listener.steps), 1)[0], self._tokenizer())
            text = listener.new_text(end=True)
            yield SpokenChunk(np.zeros(0, np.float32), text, answer, time.perf_counter() - began)

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


def _merged(options: SpeechOptions, task: str, changes: DecodingKeywords) -> SpeechOptions:
    """The options with short keywords on top; one seed decides every draw, of tokens and of noise."""
    refuse_unknown(changes, ("options", "system", "to"))
    decoding = merge_options(options.decoding, task, **changes)
    return replace(options, decoding=decoding, seed=changes.get("seed", options.seed))
