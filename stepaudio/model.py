"""`StepAudio2`: one loaded model, and everything it can be asked. Ties the layers together, owns no arithmetic.

Knows no tensor names (that is `weights`) and no template (that is `prompt`).
"""

from __future__ import annotations

import operator
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np

from .backend.device import default_dtype, on_cpu
from .checkpoints.load import load_weights
from .checkpoints.report import WeightReport
from .constants import MAX_TOKENS, SAMPLE_RATE, n_prompt_rows
from .decoding.generate import Request, Run, Step, collect, fits_one_batch, generate
from .decoding.options import Options
from .decoding.outputs import Generation, answer_of
from .decoding.sampling import Sampling
from .errors import DecodeError, PromptError, WeightsError
from .models.kv_cache import CachePolicy
from .models.speech_lm import Slot, StepAudioConfig, StepAudioNet
from .models.tap import Tap
from .pipeline import Pipeline
from .resources import default_checkpoint
from .text.chat_template import SPOKEN, AudioSlot, Message, Prompt
from .text.prompts import ASR_SYSTEM, asr_turns
from .text.tokenizer import Detokenizer, Tokenizer
from .transcribe import Transcript, timed, transcribe_many

CPU_BATCH, GPU_BATCH = 8, 32  # pieces decoded together unless the caller says otherwise


class StepAudio2:
    """A loaded model. Make one with `StepAudio2.load`; it holds no state between calls."""

    def __init__(
        self,
        net: StepAudioNet,
        tokenizer: Tokenizer | None,
        report: WeightReport,
        usable: bool = True,
        pipeline: Pipeline | None = None,
    ):
        self.net, self.tokenizer, self.report, self._usable = net, tokenizer, report, usable
        self.pipeline = pipeline or Pipeline()

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
        path : folder; by default `STEPAUDIO_CHECKPOINT`, or else the bundled nano model.
        tokenizer : "beside" (in the same folder), another folder, or None to work in ids.
        dtype : of the weights in memory; by default float32 on the CPU and bfloat16 on a GPU.
        rename : published name or prefix for names found in the file, to repair a renamed checkpoint.
        allow_random : let a checkpoint with missing tensors run with what the nets were initialised with.

        Returns
        -------
        StepAudio2, whose `report` accounts for every tensor. If any is missing, and `allow_random` is not set, the
        model can be looked at but refuses to run.

        Raises
        ------
        ConfigError, TokenizerError, WeightsError : something in the folder cannot be used; under 50 % of the
            tensors match. Under 90 % there is a warning that names what is missing.
        """
        folder = Path(path) if path is not None else default_checkpoint()
        config = StepAudioConfig.from_file(folder)
        words = None
        if tokenizer is not None:
            words = Tokenizer.from_folder(folder if tokenizer == "beside" else tokenizer, config.text_config.vocab_size)
        net = StepAudioNet(config)
        report = load_weights(net, folder, config, dtype or default_dtype(), rename)
        return cls(net, words, report, usable=not report.unfilled or allow_random)

    def altered(self, net: StepAudioNet | None = None, pipeline: Pipeline | None = None) -> StepAudio2:
        """Another model that shares everything with this one but what is given; this one stays as it is."""
        return StepAudio2(net or self.net, self.tokenizer, self.report, self._usable, pipeline or self.pipeline)

    @property
    def config(self) -> StepAudioConfig:
        return self.net.config

    # ------------------------------------------------------------ transcription

    def transcribe(
        self,
        source,
        *,
        sampling: Sampling | None = None,
        cache: CachePolicy | None = None,
        max_tokens: int = MAX_TOKENS,
        on_loop: str = "report",
        prompt: str | tuple = ASR_SYSTEM,
        downmix: str = "first",
        sample_rate: float | None = None,
        batch: int | None = None,
        progress: bool | None = None,
    ) -> Transcript:
        """What is said in a recording of any length.

        Parameters
        ----------
        source : path of anything libsndfile reads, or samples (n,) or (n, channels) with `sample_rate` (16 kHz).
        sampling : by default the planned one; `Sampling.reference()` is what StepFun's example uses.
        cache : what the decoder remembers; by default sinks and the last `max_cache_len` positions.
        max_tokens : per piece of at most 25 s. on_loop : off, report, stop or escape.
        prompt : system text; the default is the reference's transcription prompt. Without a tokenizer, a pair of id
            lists: what stands before and after the audio.
        batch : pieces decoded together; rows of a batch come out as they would alone.

        Raises
        ------
        AudioError, DecodeError, WeightsError
        """
        began = time.perf_counter()
        samples = self.pipeline.load(source, downmix=downmix, sample_rate=sample_rate)
        result = self.transcribe_many(
            [samples],
            sampling=sampling,
            cache=cache,
            max_tokens=max_tokens,
            on_loop=on_loop,
            prompt=prompt,
            batch=batch,
            progress=progress,
        )[0]
        return timed(result, time.perf_counter() - began)

    transcribe_long = transcribe  # any length goes the same way

    def transcribe_samples(self, samples, sample_rate: float = 16_000, **options) -> Transcript:
        """`transcribe` for an array; options as there."""
        return self.transcribe(samples, sample_rate=sample_rate, **options)

    def transcribe_many(
        self,
        recordings: Sequence[np.ndarray],
        *,
        sampling: Sampling | None = None,
        cache: CachePolicy | None = None,
        max_tokens: int = MAX_TOKENS,
        on_loop: str = "report",
        prompt: str | tuple = ASR_SYSTEM,
        batch: int | None = None,
        progress: bool | None = None,
    ) -> list[Transcript]:
        """Several recordings (float32, 16 kHz) together: pieces of like length share a batch."""
        self._ready()
        options = self._options(sampling, cache, max_tokens, on_loop)
        if batch is not None and (not isinstance(batch, int) or batch < 1):
            raise DecodeError(f"batch: expected a whole number of at least 1, found {batch!r}")
        limit = min(self.pipeline.chunk_samples, self._encoder_samples())

        def decode(pieces: list[np.ndarray]) -> list[Run]:
            return self._run([self._listen(p, prompt) for p in self._together(pieces)], options)

        return transcribe_many(
            recordings,
            decode,
            self._spell,
            self._stop_ids(),
            batch or (CPU_BATCH if on_cpu() else GPU_BATCH),
            limit / SAMPLE_RATE,
            progress,
        )

    def _encoder_samples(self) -> int:
        """Most samples whose mel frames fit the encoder's positions."""
        return (2 * self.config.audio_encoder_config.n_audio_ctx) * 160 - 479

    def _together(self, pieces: list[np.ndarray]) -> list[tuple[mx.array, int]]:
        """Adapter rows of several pieces, as if each had been alone, and their number."""
        return [(rows, rows.shape[0]) for rows in self._hear(self._mel(p) for p in pieces)]

    def _hear(self, mels: Iterable[np.ndarray]) -> list[mx.array]:
        """In one padded batch; on the CPU one after another, which keeps the work in the processor's cache."""
        if not on_cpu():
            return self.net.encode_audio(list(mels), independent=True)
        heard = []
        for mel in mels:
            heard += self.net.encode_audio([mel], independent=True)
            mx.async_eval(heard[-1])  # computed while the host makes the next mel
        return heard

    def _listen(self, heard: tuple[mx.array, int], system: str | tuple[Sequence[int], Sequence[int]]) -> Request:
        rows, n = heard
        if isinstance(system, str):
            return self._request(self.pipeline.build_prompt(asr_turns(system), self._words(), [[n]]), [rows])
        try:
            before, after = (tuple(map(operator.index, ids)) for ids in system)
        except (TypeError, ValueError):
            raise PromptError(
                f"prompt: expected a text, or two lists of ids, before and after the audio; found {system!r:.120}"
            ) from None
        filler = [*after, *before, 0][0]  # any id will do where the rows go, their embeddings are replaced
        prompt = Prompt(before + (filler,) * n + after, (AudioSlot(len(before), n, 0),))
        return self._request(prompt, [rows])

    # ------------------------------------------------------------ free generation

    def request(self, messages: Sequence, *, downmix: str = "first", tap: Tap | None = None) -> Request:
        """A prompt of turns, with its recordings heard as the reference hears them (one zero-padded batch).

        messages : dicts or `prompt.Message`, as in StepFun's examples; audio items hold a path or samples under
            "audio". Recordings longer than 25 s are cut there, each piece with markers of its own. A list that does
            not end in an assistant turn gets an open one.
        tap : called as tap(name, array) with what encoder and adapter compute.
        """
        self._ready()
        messages = [Message.of(m) for m in _list_of(messages)]
        if messages and messages[-1].role != "assistant":
            messages.append(Message("assistant", None))
        pieces = [self._pieces(item["audio"], downmix) for item in _audio_items(messages)]
        mels = [[self._mel(p) for p in clip] for clip in pieces]
        n_rows = [[n_prompt_rows(mel.shape[1]) for mel in clip] for clip in mels]
        prompt = self.pipeline.build_prompt(messages, self._words(), n_rows)
        slots = tuple(s for s in prompt.slots if s.length)  # a remainder too short for a row keeps only its markers
        heard = (
            self.net.encode_audio([mels[s.clip][s.piece] for s in slots], independent=False, tap=tap) if slots else []
        )
        return self._request(replace(prompt, slots=slots), heard)

    def _pieces(self, source, downmix: str) -> list[np.ndarray]:
        x, size = self.pipeline.load(source, downmix=downmix), self.pipeline.chunk_samples
        return [x[i : i + size] for i in range(0, len(x), size)]

    def _mel(self, samples: np.ndarray) -> np.ndarray:
        return self.pipeline.mel(samples, self.config.audio_encoder_config.n_mels)

    def _request(self, prompt: Prompt, heard: Sequence[mx.array]) -> Request:
        slots = [Slot(0, s.start, s.length) for s in prompt.slots]
        x = self.net.embed(np.array(prompt.ids), slots, heard)[0]
        return Request(prompt.ids, x, tuple((s.start, s.length) for s in prompt.slots))

    def stream(
        self,
        messages: Sequence,
        *,
        sampling: Sampling | None = None,
        cache: CachePolicy | None = None,
        max_tokens: int = MAX_TOKENS,
        on_loop: str = "report",
        stop: Sequence[str] = (),
        tap: Tap | None = None,
    ) -> Iterator[Step]:
        """The steps of one answer as they are made.

        messages : as in `request`.
        stop : strings that end it, in the text without special tokens; the one that was met stays in the answer.
        tap : called as tap(name, array) with every intermediate result (`interp.recorder` names them); what
            it returns takes their place.
        Other options as in `transcribe`.
        """
        options = self._options(sampling, cache, max_tokens, on_loop, stop)
        return generate(self.net, [self.request(messages, tap=tap)], options, tap)

    def generate_with_audio(self, messages: Sequence, **options) -> Generation:
        """Answer with text and audio codes, as they come. Options as in `stream`."""
        return answer_of(collect(self.stream(messages, **options), 1)[0], self._words())

    def generate_text(self, messages: Sequence, **options) -> Generation:
        """Answer in text; the same run as `generate_with_audio`, without its codes."""
        return self.generate_with_audio(messages, **options).text_only()

    def generate_audio_tokens(self, messages: Sequence, **options) -> Generation:
        """Answer in audio codes: the open assistant turn starts with `<tts_start>`, as the reference seeds it."""
        messages = [Message.of(m) for m in _list_of(messages)]
        if messages and messages[-1].role == "assistant" and messages[-1].content is None:
            messages.pop()  # the open turn, to be opened again as a spoken one
        if not messages or messages[-1].role != "assistant":
            messages.append(Message("assistant", SPOKEN, eot=False))
        return self.generate_with_audio(messages, **options)

    # ------------------------------------------------------------ what all of them share

    def _options(self, sampling, cache, max_tokens: int, on_loop: str, stop: Sequence[str] = ()) -> Options:
        audio = None
        if self.tokenizer is not None and self.tokenizer.n_audio:
            first = self.tokenizer.first_audio_code
            audio = (first, first + self.tokenizer.n_audio)
        if not isinstance(stop, (list, tuple)) or not all(isinstance(s, str) and s for s in stop):
            raise DecodeError(f"stop: expected a list of non-empty strings, found {stop!r}")
        watch = (lambda: StopStrings(self._words(), stop)) if stop else None
        return Options(
            self.pipeline.sampling(sampling or Sampling.planned()),
            cache or CachePolicy(),
            max_tokens,
            self._stop_ids(),
            on_loop,
            watch,
            audio,
        )

    def _run(self, requests: Sequence[Request], options: Options) -> list[Run]:
        """All requests: in one batch where the cache limit allows it, else one after another."""
        if len(requests) == 1 or fits_one_batch([len(r.ids) for r in requests], options, self.config.max_cache_len):
            return collect(generate(self.net, requests, options), len(requests))
        return [collect(generate(self.net, [r], options), 1)[0] for r in requests]

    def _stop_ids(self) -> frozenset[int]:
        if self.tokenizer is not None:
            return self.tokenizer.eos_ids
        end = self.config.text_config.eos_token_id
        return frozenset() if end is None else frozenset([end])

    def _spell(self, ids: Sequence[int]) -> str | None:
        """The text ids as text; markers and audio codes are no text, as in the reference's own split."""
        if self.tokenizer is None:
            return None
        limit = self.tokenizer.text_limit
        return self.tokenizer.decode([t for t in ids if t < limit], skip_special=True)

    def _words(self) -> Tokenizer:
        if self.tokenizer is None:
            raise PromptError(
                "this needs a tokenizer, and the model was loaded with tokenizer=None: load it with one, "
                "or give `transcribe` its prompt as two lists of ids (--prompt-ids)"
            )
        return self.tokenizer

    def _ready(self) -> None:
        if not self._usable:
            raise WeightsError(
                f"the checkpoint is incomplete and will not run on random weights: "
                f"{self.report.summary}. "
                "Load it whole, or pass allow_random=True if random weights are what you want"
            )


class StopStrings:
    """Tells when the text so far ends in one of the strings; a string may span several ids."""

    def __init__(self, tokenizer: Tokenizer, strings: Sequence[str]):
        self._text, self._detokenizer = "", Detokenizer(tokenizer)
        self._strings, self._longest = tuple(strings), max(map(len, strings))

    def __call__(self, token: int) -> bool:
        new = self._detokenizer.push(token)
        window = self._text + new
        self._text = window[-self._longest :]
        return any(s in window for s in self._strings)


def _list_of(messages: Sequence) -> Sequence:
    if isinstance(messages, (str, Mapping, Message)) or not isinstance(messages, Iterable):
        raise PromptError(f"expected a list of messages, found one {type(messages).__name__}")
    return messages


def _audio_items(messages: Sequence[Message]) -> Iterator[Mapping]:
    for message in messages:
        for item in message.content if isinstance(message.content, (list, tuple)) else ():
            if isinstance(item, Mapping) and item.get("type") == "audio":
                if "audio" not in item:
                    raise PromptError('an audio item needs its recording under "audio": a path or samples')
                yield item
