"""`StepAudio2`: one loaded model, and everything it can be asked. Ties the layers together, owns no arithmetic.

Knows no tensor names (that is `weights`) and no template (that is `prompt`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import mlx.core as mx
import numpy as np

from . import prompt as grammar
from .audio import load_audio
from .backend import default_dtype, on_cpu
from .cache import CachePolicy
from .config import StepAudioConfig
from .errors import DecodeError, PromptError, WeightsError
from .generate import Options, Request, Run, Step, collect, fits_one_batch, generate
from .loops import Loop
from .mel import log_mel
from .net import Slot, StepAudioNet
from .report import WeightReport
from .samples import default_checkpoint
from .sampling import Sampling
from .tokenizer import Detokenizer, Tokenizer
from .transcribe import Transcript, timed, transcribe_many
from .units import CHUNK_SAMPLES, MAX_TOKENS, N_AUDIO_CODES, n_mel_frames, n_prompt_rows
from .weights import load_weights


@dataclass(frozen=True)
class Generation:
    """An answer. ids: all of it, in order. text: its text ids, decoded. codes: its audio codes 0..6560.

    `stop` says why it ended ("eos", "length", "stop string", "loop"); `loop` what it repeated, if it did.
    """

    ids: tuple[int, ...]
    text: str | None
    codes: tuple[int, ...]
    stop: str
    mean_logprob: float
    loop: Loop | None = None
    kv_bytes: int = 0


class StepAudio2:
    """A loaded model. Make one with `StepAudio2.load`; it holds no state between calls."""

    def __init__(self, net: StepAudioNet, tokenizer: Tokenizer | None, report: WeightReport, usable: bool = True):
        self.net, self.tokenizer, self.report, self._usable = net, tokenizer, report, usable

    @classmethod
    def load(cls, path: str | Path | None = None, *, tokenizer: str | Path | None = "beside", dtype: mx.Dtype | None = None,
             rename: dict[str, str] | None = None, allow_random: bool = False) -> StepAudio2:
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

    @property
    def config(self) -> StepAudioConfig:
        return self.net.config

    # ------------------------------------------------------------ transcription

    def transcribe(self, source, *, sampling: Sampling | None = None, cache: CachePolicy | None = None,
                   max_tokens: int = MAX_TOKENS, on_loop: str = "report", prompt: str | tuple = grammar.ASR_SYSTEM,
                   downmix: str = "first", sample_rate: float | None = None, batch: int | None = None,
                   progress: bool | None = None) -> Transcript:
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
        samples = load_audio(source, downmix=downmix, sample_rate=sample_rate)
        result = self.transcribe_many([samples], sampling=sampling, cache=cache, max_tokens=max_tokens, on_loop=on_loop,
                                      prompt=prompt, batch=batch, progress=progress)[0]
        return timed(result, time.perf_counter() - began)

    transcribe_long = transcribe  # any length goes the same way

    def transcribe_samples(self, samples, sample_rate: float = 16_000, **options) -> Transcript:
        """`transcribe` for an array; options as there."""
        return self.transcribe(samples, sample_rate=sample_rate, **options)

    def transcribe_many(self, recordings: Sequence[np.ndarray], *, sampling: Sampling | None = None,
                        cache: CachePolicy | None = None, max_tokens: int = MAX_TOKENS, on_loop: str = "report",
                        prompt: str | tuple = grammar.ASR_SYSTEM, batch: int | None = None,
                        progress: bool | None = None) -> list[Transcript]:
        """Several recordings (float32, 16 kHz) together: pieces of like length share a batch."""
        self._ready()
        options = self._options(sampling, cache, max_tokens, on_loop)
        limit = min(CHUNK_SAMPLES, self._encoder_samples())

        def decode(pieces: list[np.ndarray]) -> list[Run]:
            return self._run([self._listen(p, prompt) for p in self._together(pieces)], options)

        return transcribe_many(recordings, decode, self._spell, self._stop_ids(), batch or (8 if on_cpu() else 32),
                               limit / 16_000, progress)

    def _encoder_samples(self) -> int:
        """Most samples whose mel frames fit the encoder's positions."""
        return (2 * self.config.audio_encoder_config.n_audio_ctx) * 160 - 479

    def _together(self, pieces: list[np.ndarray]) -> list[tuple[mx.array, int]]:
        """Adapter rows of several pieces, as if each had been alone, computed in one batch."""
        mels = [log_mel(p, self.config.audio_encoder_config.n_mels) for p in pieces]
        return [(rows, rows.shape[0]) for rows in self.net.hear(mels, independent=True)]

    def _listen(self, heard: tuple[mx.array, int], system: str | tuple[Sequence[int], Sequence[int]]) -> Request:
        rows, n = heard
        if isinstance(system, str):
            return self._request(grammar.asr_prompt(self._words(), [n], system), [rows])
        before, after = map(tuple, system)
        filler = (before or after)[-1]  # any id will do where the rows go, their embeddings are replaced
        prompt = grammar.Prompt(before + (filler,) * n + after, (grammar.AudioSlot(len(before), n, 0),))
        return self._request(prompt, [rows])

    # ------------------------------------------------------------ free generation

    def request(self, messages: Sequence, *, downmix: str = "first") -> Request:
        """A prompt of turns, with its recordings heard as the reference hears them (one zero-padded batch).

        messages : dicts or `prompt.Message`, as in StepFun's examples; audio items hold a path or samples under
            "audio". Recordings longer than 25 s are cut there, each piece with markers of its own.
        """
        self._ready()
        pieces = [self._pieces(item["audio"], downmix) for item in _audio_items(messages)]
        n_rows = [[n_prompt_rows(n_mel_frames(len(p))) for p in clip] for clip in pieces]
        prompt = grammar.build_prompt(messages, self._words(), n_rows)
        mels = [log_mel(p) for clip in pieces for p in clip]
        used = [i for i, slot in enumerate(prompt.slots) if slot.length]
        heard = self.net.hear([mels[i] for i in used], independent=False) if used else []
        return self._request(replace(prompt, slots=tuple(prompt.slots[i] for i in used)), heard)

    def _pieces(self, source, downmix: str) -> list[np.ndarray]:
        x = load_audio(source, downmix=downmix)
        return [x[i : i + CHUNK_SAMPLES] for i in range(0, len(x), CHUNK_SAMPLES)]

    def _request(self, prompt: grammar.Prompt, heard: Sequence[mx.array]) -> Request:
        slots = [Slot(0, s.start, s.length) for s in prompt.slots]
        x = self.net.embed(np.array(prompt.ids), slots, heard)[0]
        return Request(prompt.ids, x, tuple((s.start, s.length) for s in prompt.slots))

    def stream(self, messages: Sequence, *, sampling: Sampling | None = None, cache: CachePolicy | None = None,
               max_tokens: int = MAX_TOKENS, on_loop: str = "report", stop: Sequence[str] = ()) -> Iterator[Step]:
        """The steps of one answer as they are made. `stop`: strings that end it. See `generate_with_audio`."""
        options = self._options(sampling, cache, max_tokens, on_loop, stop)
        return generate(self.net, [self.request(messages)], options)

    def generate_with_audio(self, messages: Sequence, **options) -> Generation:
        """Answer with text and audio codes, as they come. Options as in `stream`."""
        run = collect(self.stream(messages, **options), 1)[0]
        ids = run.ids[:-1] if run.stop == "eos" else run.ids
        return self._generation(run, ids, ids)

    def generate_text(self, messages: Sequence, **options) -> Generation:
        """Answer in text; the same run as `generate_with_audio`, without its codes."""
        return replace(self.generate_with_audio(messages, **options), codes=())

    def generate_audio_tokens(self, messages: Sequence, **options) -> Generation:
        """Answer in audio codes: the open assistant turn starts with `<tts_start>`, as the reference seeds it."""
        self._words()
        messages = [grammar.Message.of(m) for m in messages]
        if not messages or messages[-1].role != "assistant":
            messages.append(grammar.Message("assistant", grammar.SPOKEN, eot=False))
        return self.generate_with_audio(messages, **options)

    def _generation(self, run: Run, ids: Sequence[int], spoken: Sequence[int]) -> Generation:
        tokenizer = self._words()
        text = [t for t in ids if t < tokenizer.text_limit]
        codes = [c for t in spoken if (c := tokenizer.audio_code(t)) is not None and c < N_AUDIO_CODES]
        return Generation(tuple(ids), tokenizer.decode(text, skip_special=True), tuple(codes), run.stop or "length",
                          run.mean_logprob, run.loop, run.kv_bytes)

    # ------------------------------------------------------------ what all of them share

    def _options(self, sampling, cache, max_tokens: int, on_loop: str, stop: Sequence[str] = ()) -> Options:
        audio = None
        if self.tokenizer is not None and self.tokenizer.n_audio:
            first = self.tokenizer.first_audio_code
            audio = (first, first + self.tokenizer.n_audio)
        if isinstance(stop, str) or any(not s for s in stop):
            raise DecodeError(f"stop: expected a list of non-empty strings, found {stop!r}")
        watch = (lambda: StopStrings(self._words(), stop)) if stop else None
        return Options(sampling or Sampling.planned(), cache or CachePolicy(), max_tokens, self._stop_ids(), on_loop,
                       watch, audio)

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
        return None if self.tokenizer is None else self.tokenizer.decode(list(ids), skip_special=True)

    def _words(self) -> Tokenizer:
        if self.tokenizer is None:
            raise PromptError("this needs a tokenizer, and the model was loaded with tokenizer=None: load it with one, "
                              "or build a `prompt.Prompt` from ids and use `generate.generate`")
        return self.tokenizer

    def _ready(self) -> None:
        if not self._usable:
            raise WeightsError(f"the checkpoint is incomplete and will not run on random weights: {self.report.summary()}. "
                               "Load it whole, or pass allow_random=True if random weights are what you want")


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


def _audio_items(messages: Sequence) -> Iterator[dict]:
    for message in messages:
        content = grammar.Message.of(message).content
        for item in content if isinstance(content, (list, tuple)) else ():
            if item.get("type") == "audio":
                if "audio" not in item:
                    raise PromptError('an audio item needs its recording under "audio": a path or samples')
                yield item
