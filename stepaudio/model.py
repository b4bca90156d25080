"""`StepAudio2`: one loaded model, and everything it can be asked. A thin face over `Engine` and `transcribe`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack, overload

import mlx.core as mx

from .audio.sources import assumptions, given_rate
from .audio.vad import Detector
from .backend.device import default_dtype
from .checkpoints.alignment_heads import AlignmentHeads
from .checkpoints.capabilities import Capabilities
from .checkpoints.find import checkpoint_folder
from .checkpoints.hub_name import repository_of
from .checkpoints.load import load_weights
from .checkpoints.report import WeightReport
from .choices import Resampler
from .decoding.generate import Request, Step
from .decoding.options import DecodingKeywords, DecodingOptions, merge_options, refuse_unknown
from .decoding.outputs import Generation
from .decoding.prompt_cache import PromptCache
from .decoding.thought import Thought
from .engine import Engine, PromptTokens, is_conversation, is_list_of_recordings, spoken_turns, with_audio
from .errors import DecodeError
from .models.parallel import sharded
from .models.speech_lm import StepAudioConfig, StepAudioNet
from .models.tap import Tap
from .pipeline import Pipeline
from .text.chat_template import build_turnless_prompt
from .text.prompts import ASR_SYSTEM, asr_turns
from .text.tokenizer import Tokenizer
from .thinking import think
from .transcribe import Transcript, timed, transcribe_recordings

TOP = 5  # alternatives that a stream lists unless told otherwise


class StepAudio2:
    """A loaded model. Make one with `stepaudio.load`; it holds no state between calls.

    Parameters
    ----------
    engine : Engine
    report : WeightReport
        What became of every tensor of the checkpoint.
    """

    def __init__(self, engine: Engine, report: WeightReport):
        self.engine, self.report = engine, report

    @classmethod
    def load(
        cls,
        path: str | Path | None = None,
        *,
        tokenizer: str | Path | None = "beside",
        dtype: mx.Dtype | None = None,
        rename: dict[str, str] | None = None,
        allow_random: bool = False,
    ) -> StepAudio2:
        """Read a folder in the published layout.

        Parameters
        ----------
        path : str or Path, optional
            Folder, or a text "ORG/NAME" or "ORG/NAME@REVISION" that names a model on a hub, which is then taken from
            the cache, or fetched into it; by default `STEPAUDIO_CHECKPOINT`, or else the bundled nano model.
        tokenizer : "beside", str, Path or None
            "beside": in the same folder; or another folder; or None to work in token ids.
        dtype : mx.Dtype, optional
            Of the weights in memory; by default float32 on the CPU and bfloat16 on a GPU.
        rename : dict, optional
            Published name or prefix for names found in the file, to repair a renamed checkpoint.
        allow_random : bool
            Let a checkpoint with missing tensors run with what the nets were initialised with.

        Returns
        -------
        StepAudio2
            Its `report` accounts for every tensor. If any is missing, and `allow_random` is not set, the model can be
            looked at but refuses to run.

        Raises
        ------
        ConfigError, TokenizerError, WeightsError
            Something in the folder cannot be used, or under 50 % of the tensors match. Under 90 % there is a warning
            that names what is missing. `DownloadError`, a `WeightsError`, where a model cannot be fetched.
        """
        folder = checkpoint_folder(path)
        config = StepAudioConfig.from_file(folder)
        words = None
        if tokenizer is not None:
            words = Tokenizer.from_folder(folder if tokenizer == "beside" else tokenizer, config.text_config.vocab_size)
        capabilities = Capabilities.of_folder(folder if folder.is_dir() else folder.parent)
        net = StepAudioNet(config)
        report = load_weights(net, folder, config, dtype or default_dtype(), rename)
        incomplete = report.summary if report.unfilled and not allow_random else None
        pipeline = Pipeline() if capabilities.turns else Pipeline(build_prompt=build_turnless_prompt)
        heads = AlignmentHeads.of_folder(folder if folder.is_dir() else folder.parent, config.text_config)
        return cls(Engine(net, words, pipeline, capabilities, incomplete, alignment=heads), report)

    def altered(
        self,
        net: StepAudioNet | None = None,
        pipeline: Pipeline | None = None,
        draft: StepAudio2 | None = None,
        prompt_cache: PromptCache | None = None,
    ) -> StepAudio2:
        """Another model that shares everything with this one but what is given; this one stays as it is.

        Parameters
        ----------
        net, pipeline
            Instead of its own.
        draft : StepAudio2, optional
            A model that proposes tokens for speculate="draft"; `DecodeError` if its tokens are others.
        prompt_cache : PromptCache, optional
            Where audio embeddings and turns of prompts are kept and found again; `DataError` if it is of another model.
        """
        return StepAudio2(self.engine.altered(net, pipeline, draft and draft.engine, prompt_cache), self.report)

    def sharded(self, group: mx.distributed.Group | None = None) -> StepAudio2:
        """Another model whose decoder is divided among the processes of a group (tensor parallelism).

        Every process has to load the same weights and to make the same calls; each then has the whole answer.

        Parameters
        ----------
        group : mx.distributed.Group, optional
            By default all processes that `mlx.launch` started; alone, nothing is divided.

        Raises
        ------
        ConfigError
            The decoder's heads or the channels of its MLP do not divide by the number of processes.
        """
        return self.altered(net=sharded(self.net, group))

    @property
    def net(self) -> StepAudioNet:
        """The nets: encoder, adapter, decoder, head."""
        return self.engine.net

    @property
    def tokenizer(self) -> Tokenizer | None:
        """Text <-> token ids; None if the model was loaded without."""
        return self.engine.tokenizer

    @property
    def pipeline(self) -> Pipeline:
        """The functions around the nets."""
        return self.engine.pipeline

    @property
    def config(self) -> StepAudioConfig:
        """The sizes of the nets."""
        return self.engine.config

    @property
    def capabilities(self) -> Capabilities:
        """What the checkpoint was trained to do."""
        return self.engine.capabilities

    # ------------------------------------------------------------ transcription

    @overload
    def transcribe(
        self,
        source: list | tuple,
        *,
        options: DecodingOptions | None = None,
        prompt: str | PromptTokens = ASR_SYSTEM,
        downmix: str = "first",
        resampler: str = Resampler.REFERENCE,
        sr: float | None = None,
        sample_rate: float | None = None,
        progress: bool | None = None,
        vad: str | Detector | None = "energy",
        words: bool = False,
        **changes: Unpack[DecodingKeywords],
    ) -> list[Transcript]: ...
    @overload
    def transcribe(
        self,
        source: Any,
        *,
        options: DecodingOptions | None = None,
        prompt: str | PromptTokens = ASR_SYSTEM,
        downmix: str = "first",
        resampler: str = Resampler.REFERENCE,
        sr: float | None = None,
        sample_rate: float | None = None,
        progress: bool | None = None,
        vad: str | Detector | None = "energy",
        words: bool = False,
        **changes: Unpack[DecodingKeywords],
    ) -> Transcript: ...
    def transcribe(
        self,
        source,
        *,
        options: DecodingOptions | None = None,
        prompt: str | PromptTokens = ASR_SYSTEM,
        downmix: str = "first",
        resampler: str = Resampler.REFERENCE,
        sr: float | None = None,
        sample_rate: float | None = None,
        progress: bool | None = None,
        vad: str | Detector | None = "energy",
        words: bool = False,
        **changes: Unpack[DecodingKeywords],
    ) -> Transcript | list[Transcript]:
        """What is said in a recording of any length, or in each of a list of recordings.

        Parameters
        ----------
        source : recording, or list of recordings
            A path, bytes or a file object of anything libsndfile reads; or samples (n,) or (n, channels) as numpy, mlx
            or torch array, or as a dict with "array" and "sampling_rate". A list gives a list, its segments decoded
            together.
        options : DecodingOptions, optional
            How to decode; by default the planned values.
        prompt : str or pair of sequences of int
            System text; the default is the reference's transcription prompt. Without a tokenizer, the token ids before
            and after the audio.
        downmix : {"first", "mean"}
            What is taken of several channels.
        resampler : {"reference", "soxr"}
            What brings a recording to 16 kHz: the reference's kernel, or soxr.
        sr, sample_rate : number, optional
            Rate in Hz of samples that do not state it; two spellings of one thing. Without it 16 kHz is assumed, and
            the transcript's `notes` say so.
        progress : bool, optional
            Show a bar on stderr; by default for more than a minute of audio, on a terminal.
        vad : {"energy", "silero", "off"} or callable
            Voice activity detection: long silence at the edges and between words is not decoded, and all times remain
            those of the recording. "off" decodes everything, as the reference does. `audio.vad.speech_spans` says what
            is skipped, and what a detector of one's own is given and returns; the transcript's `skipped` says what was.
        words : bool
            Give each segment its `words`: text, start, end and probability of each. Costs one more pass over each
            segment and changes no token. `ConfigError` for a model without alignment heads.
        **changes
            Short keywords on top of `options`: sampling="reference", cache="full", temperature=0.7, max_tokens=200,
            on_loop="stop" and so on; `DecodingOptions` and `Sampling` explain them.

        Returns
        -------
        Transcript, or list of Transcript for a list

        Raises
        ------
        AudioError, DecodeError, PromptError, WeightsError

        Examples
        --------
        >>> model.transcribe("talk.mp3", sampling="reference").text             # doctest: +SKIP
        >>> model.transcribe(samples, sr=44100, temperature=0.7, seed=1)        # doctest: +SKIP
        """
        began = time.perf_counter()
        refuse_unknown(
            changes, ("options", "prompt", "downmix", "resampler", "sr", "sample_rate", "progress", "vad", "words")
        )
        self.capabilities.require("transcribe")
        merged, rate = merge_options(options, "transcribe", **changes), given_rate(sr, sample_rate)
        many = is_list_of_recordings(source)
        sources = list(source) if many else [source]
        recordings = [self.pipeline.load(s, downmix=downmix, sample_rate=rate, resampler=resampler) for s in sources]
        reading = time.perf_counter() - began
        found = transcribe_recordings(self.engine, recordings, merged, prompt, progress, vad, words=words)
        total = sum(map(len, recordings)) or 1
        found = [
            replace(timed(t, t.wall_seconds + reading * len(x) / total), notes=assumptions(s, rate))
            for t, x, s in zip(found, recordings, sources, strict=True)
        ]
        return found if many else timed(found[0], time.perf_counter() - began)

    # ------------------------------------------------------------ free generation

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

    # ------------------------------------------------------------ what it is

    def __repr__(self) -> str:
        path = Path(self.report.path)
        checkpoint = f"{repository_of(path) or path.name}, {self.report.summary or 'whole'}"
        lines = {"checkpoint": checkpoint, **self.engine.description()}
        return "StepAudio2\n" + "\n".join(f"  {name:11} {value}" for name, value in lines.items())


def load(path: str | Path | None = None, **options) -> StepAudio2:
    """Load a model: `StepAudio2.load`, which explains `path` and the options.

    Examples
    --------
    >>> model = load()                                                          # doctest: +SKIP
    >>> model = load("stepfun-ai/Step-Audio-2-mini", dtype=mx.float16)          # doctest: +SKIP
    """
    known = ("tokenizer", "dtype", "rename", "allow_random")
    if unknown := [name for name in options if name not in known]:
        raise DecodeError(f"load: unknown option {unknown[0]!r}; expected one of {', '.join(known)}")
    return StepAudio2.load(path, **options)
