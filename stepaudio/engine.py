"""`Engine`: net, tokenizer and pipeline together. Recordings in, requests for the decoder, runs, text out.

Everything that can be asked of a model goes through here: encode audio, build a request, run it, decode its tokens.
Knows no files and no tensor names (those are `checkpoints`), no turn grammar (that is `text.chat_template`), and
holds no state between calls.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import mlx.core as mx
import numpy as np

from .audio.sources import is_file
from .audio.vad import Detector, speech_spans
from .backend.device import on_cpu
from .backend.memory import limit_buffers
from .checkpoints.alignment_heads import FILE as HEADS_FILE
from .checkpoints.alignment_heads import AlignmentHeads
from .checkpoints.capabilities import Capabilities
from .choices import Resampler
from .constants import n_audio_embeddings
from .decoding.generate import Request, Run, Step, collect, fits_one_batch, generate
from .decoding.options import DecodingOptions, RunOptions
from .decoding.outputs import Generation, answer_of
from .decoding.prompt_cache import PromptCache, digest, encoded_once, identity_of, prefixes_of
from .decoding.sampling import Contrast
from .decoding.speculative import check_draft
from .decoding.stop_strings import StopStrings
from .decoding.word_times import timed_words
from .errors import ConfigError, PromptError, WeightsError
from .models.kv_cache import NoCache
from .models.speech_lm import Slot, StepAudioConfig, StepAudioNet
from .models.tap import Tap
from .pipeline import Layout, Pipeline
from .text.chat_template import Message, Prompt
from .text.messages import audio_items, message_list
from .text.prompts import asr_turns, prompt_around
from .text.tokenizer import Tokenizer

PromptTokens = tuple[Sequence[int], Sequence[int]]  # before and after the audio, where there is no tokenizer


class Engine:
    """A net with its tokenizer and the functions around it.

    Parameters
    ----------
    net : StepAudioNet
    tokenizer : Tokenizer, optional
        None to work with token ids alone.
    pipeline : Pipeline, optional
        By default that of the reference.
    capabilities : Capabilities
        What the weights were trained for; by default everything.
    incomplete : str, optional
        What the weights lack. If given, the engine can be looked at but does not run.
    draft : Engine, optional
        A draft model for speculative decoding, which reads every prompt too.
    prompt_cache : PromptCache, optional
        Where audio embeddings and turns of prompts are kept and found again.
    alignment : AlignmentHeads, optional
        The heads that word times are read from.
    """

    def __init__(
        self,
        net: StepAudioNet,
        tokenizer: Tokenizer | None,
        pipeline: Pipeline | None = None,
        capabilities: Capabilities | None = None,
        incomplete: str | None = None,
        draft: Engine | None = None,
        prompt_cache: PromptCache | None = None,
        alignment: AlignmentHeads | None = None,
    ):
        limit_buffers()
        self.net, self.tokenizer, self.incomplete = net, tokenizer, incomplete
        self.pipeline, self.capabilities = pipeline or Pipeline(), capabilities or Capabilities()
        self.draft, self.alignment = draft, alignment
        if draft is not None:
            draft.require_weights()
            check_draft(self.config, self.tokenizer, draft.config, draft.tokenizer)
        self.prompt_cache = prompt_cache
        if prompt_cache is not None:
            prompt_cache.belong_to(identity_of(net))

    def altered(
        self,
        net: StepAudioNet | None = None,
        pipeline: Pipeline | None = None,
        draft: Engine | None = None,
        prompt_cache: PromptCache | None = None,
    ) -> Engine:
        """Another engine that shares everything with this one but what is given; this one stays as it is.

        Another net leaves the prompt cache behind.
        """
        kept = self.prompt_cache if net is None and prompt_cache is None else prompt_cache
        net, pipeline, draft = net or self.net, pipeline or self.pipeline, draft or self.draft
        return Engine(net, self.tokenizer, pipeline, self.capabilities, self.incomplete, draft, kept, self.alignment)

    @property
    def config(self) -> StepAudioConfig:
        """The sizes of the net."""
        return self.net.config

    # ------------------------------------------------------------ audio

    def log_mel(self, samples: np.ndarray) -> np.ndarray:
        """Samples (n,) at 16 kHz -> log mel (n_mels, T) of the encoder's front end."""
        return self.pipeline.mel(samples, self.config.audio_encoder_config.n_mels)

    def encode_audio(self, mels: Iterable[np.ndarray]) -> list[mx.array]:
        """Audio embeddings of several log mels, (n_i, D) each, as if each had been alone.

        One padded batch on a GPU; on the CPU one after another, which keeps the work in the processor's cache.
        """
        if self.prompt_cache is not None:
            return [encoded_once(self.prompt_cache, self.net, mel) for mel in mels]
        if not on_cpu():
            return self.net.encode_audio(list(mels), independent=True)
        encoded = []
        for mel in mels:
            encoded += self.net.encode_audio([mel], independent=True)
            mx.async_eval(encoded[-1])  # computed while the host makes the next mel
        return encoded

    # ------------------------------------------------------------ requests

    def build_request(
        self,
        messages: Sequence,
        *,
        downmix: str = "first",
        resampler: str = Resampler.REFERENCE,
        sample_rate: float | None = None,
        vad: str | Detector | None = "off",
        tap: Tap | None = None,
    ) -> Request:
        """A prompt of turns, its recordings encoded as the reference encodes them (one zero-padded batch).

        Parameters
        ----------
        messages : sequence of Message, or of dicts with the same keys
            As in StepFun's examples; audio items hold a recording under "audio". Recordings longer than 25 s are cut
            there, each segment with markers of its own. A list that does not end in an assistant turn gets an open one.
        downmix : {"first", "mean"}
            What is taken of recordings with several channels.
        resampler : {"reference", "soxr"}
            What brings recordings to 16 kHz.
        sample_rate : number, optional
            Of recordings that are arrays, in Hz; 16 kHz if not given.
        vad : {"energy", "silero", "off"} or callable
            As `audio.vad.speech_spans`: what it leaves out is cut out, the rest joined; without speech all remains.
        tap : Tap, optional
            Called with what encoder and adapter compute.

        Raises
        ------
        AudioError, PromptError, WeightsError
        """
        return self.encode_layout(self.lay_out(messages, downmix, resampler, sample_rate, vad), tap)

    def lay_out(
        self, messages, downmix="first", resampler="reference", sample_rate=None, vad: str | Detector | None = "off"
    ) -> Layout:
        """What `build_request` does before the net has anything to do."""
        self.require_weights()
        began = time.perf_counter()
        turns = [Message.of(m) for m in message_list(messages)]
        if turns and turns[-1].role != "assistant":
            turns.append(Message("assistant", None))
        load = partial(self.pipeline.load, downmix=downmix, resampler=resampler)
        clips = [self._chunks(item["audio"], load, sample_rate, vad) for item in audio_items(turns)]
        mels = [[self.log_mel(chunk) for chunk in clip] for clip in clips]
        n_rows = [[n_audio_embeddings(mel.shape[1]) for mel in clip] for clip in mels]
        prompt = self.pipeline.build_prompt(turns, self.require_tokenizer(), n_rows)
        # A remainder too short for an embedding keeps only its markers.
        slots = tuple(s for s in prompt.slots if s.length)
        chosen, segments = (tuple(of[s.clip][s.piece] for s in slots) for of in (mels, clips))
        return Layout(replace(prompt, slots=slots), chosen, segments, began)

    def encode_layout(self, layout: Layout, tap: Tap | None = None) -> Request:
        """The request of a prompt that is laid out; `tap` is called with what encoder and adapter compute."""
        prompt, chosen, began = layout.prompt, layout.mels, layout.began
        slots, prefixes = prompt.slots, None
        if self.prompt_cache is not None and tap is None:
            frames = max((mel.shape[1] for mel in chosen), default=0)
            encoded = [encoded_once(self.prompt_cache, self.net, mel, frames) for mel in chosen]
            keys = [digest(slot.start, slot.length, frames, mel) for slot, mel in zip(slots, chosen, strict=True)]
            prefixes = prefixes_of(prompt.tokens, [s.start for s in slots], keys, self.stop_ids(), self.prompt_cache)
        else:
            encoded = self.net.encode_audio(chosen, independent=False, tap=tap) if slots else []
        drafted = self.draft.net.encode_audio(chosen, independent=False) if self.draft and slots else []
        contrasted = self._contrasted(prompt, layout.segments, partial(self.net.encode_audio, independent=False))
        return replace(self._request(prompt, encoded, drafted, began), prefixes=prefixes, contrasted=contrasted)

    def transcription_requests(
        self, segments: Sequence[np.ndarray], encoded: Sequence[mx.array], prompt: str | PromptTokens, began: float
    ) -> list[Request]:
        """The requests to transcribe segments, for a draft model too if there is one.

        Parameters
        ----------
        segments : sequence of np.ndarray
            Samples at 16 kHz.
        encoded : sequence of mx.array
            Their audio embeddings.
        prompt : str or pair of sequences of int
            As in `transcription_request`.
        began : float
            When work on them began, by `time.perf_counter`.
        """
        drafted = self.draft.encode_audio(map(self.log_mel, segments)) if self.draft else []
        made = []
        for i, (segment, own) in enumerate(zip(segments, encoded, strict=True)):
            built = self._transcription_prompt(own.shape[0], prompt)
            request = self._request(built, [own], drafted[i : i + 1], began)
            made.append(replace(request, contrasted=self._contrasted(built, [segment], self.encode_audio)))
        return made

    def _contrasted(
        self, prompt: Prompt, segments: Sequence[np.ndarray], encode: Callable[[list[np.ndarray]], list[mx.array]]
    ) -> Callable[[Contrast], Request] | None:
        """What makes the request of the same prompt with altered audio, encoded by `encode`; None without audio."""

        def make(contrast: Contrast) -> Request:
            return self.embed_prompt(prompt, encode([self.log_mel(contrast.altered(x)) for x in segments]))

        return make if segments else None

    def transcription_request(self, encoded: mx.array, prompt: str | PromptTokens) -> Request:
        """The request to transcribe one segment.

        Parameters
        ----------
        encoded : mx.array, (n, D)
            Its audio embeddings.
        prompt : str or pair of sequences of int
            System text; or, without a tokenizer, the token ids before and after the audio.
        """
        return self.embed_prompt(self._transcription_prompt(encoded.shape[0], prompt), [encoded])

    def _transcription_prompt(self, n: int, prompt: str | PromptTokens) -> Prompt:
        """The prompt to transcribe a segment of `n` audio embeddings."""
        if isinstance(prompt, str):
            return self.pipeline.build_prompt(asr_turns(prompt), self.require_tokenizer(), [[n]])
        return prompt_around(n, prompt)

    def _request(
        self, prompt: Prompt, encoded: Sequence[mx.array], drafted: Sequence[mx.array], began: float
    ) -> Request:
        """A prompt as a request; `drafted` are the audio embeddings of the draft model."""
        draft = (self.draft.net, self.draft.embed_prompt(prompt, drafted)) if self.draft else None
        return replace(self.embed_prompt(prompt, encoded), draft=draft, began=began)

    def embed_prompt(self, prompt: Prompt, encoded: Sequence[mx.array]) -> Request:
        """A prompt with the audio embeddings of its slots, ready for the decoder."""
        slots = [Slot(0, s.start, s.length) for s in prompt.slots]
        x = self.net.embed(np.array(prompt.tokens), slots, encoded)[0]
        mx.async_eval(x)  # whoever takes the steps may be another thread, which cannot evaluate what is left over here
        return Request(prompt.tokens, x, tuple((s.start, s.length) for s in prompt.slots))

    def _chunks(
        self, source, load: Callable[..., np.ndarray], sample_rate: float | None, vad: str | Detector | None
    ) -> list[np.ndarray]:
        """What a recording has of speech in the reference's chunks: 25 s each, wherever that falls."""
        rate = None if is_file(source) else sample_rate
        x, size = load(source, sample_rate=rate), self.pipeline.chunk_samples
        x = np.concatenate([x[start:stop] for start, stop in speech_spans(x, vad) or [(0, len(x))]])
        return [x[i : i + size] for i in range(0, len(x), size)]

    # ------------------------------------------------------------ runs

    def run_options(self, options: DecodingOptions) -> RunOptions:
        """The caller's options with what follows from this model: end marks, stop strings, the range of audio codes."""
        audio = None
        if self.tokenizer is not None and self.tokenizer.n_audio:
            first = self.tokenizer.first_audio_code
            audio = (first, first + self.tokenizer.n_audio)
        watch = None
        if options.stop:
            tokenizer = self.require_tokenizer()
            watch = partial(StopStrings, tokenizer, options.stop)
        options = replace(options, sampling=self.pipeline.sampling(options.rules))
        return RunOptions.of(options, self.stop_ids(), watch, audio)

    def steps(self, request: Request, options: DecodingOptions, tap: Tap | None = None) -> Iterator[Step]:
        """The steps of one run, as they are made."""
        return generate(self.net, [request], self.run_options(options), tap)

    def run(self, requests: Sequence[Request], options: DecodingOptions) -> list[Run]:
        """All requests: in one batch where the cache allows it, else one after another."""
        run = self.run_options(options)
        lengths = [len(r.tokens) for r in requests]
        if len(requests) == 1 or fits_one_batch(lengths, run, self.config.max_cache_len):
            return collect(generate(self.net, requests, run), len(requests))
        return [collect(generate(self.net, [r], run), 1)[0] for r in requests]

    def require_alignment(self) -> AlignmentHeads:
        """The heads that word times are read from; `ConfigError` if they are not known, `PromptError` without text."""
        self.require_tokenizer()
        if self.alignment is None:
            raise ConfigError(
                f"word times: expected {HEADS_FILE} beside the weights, which says the attention heads that follow the "
                "speech, found none of these weights; data/recipe/alignment_heads.py finds them for a model, or "
                "transcribe without words"
            )
        return self.alignment

    def with_words(self, request: Request, run: Run, seconds: float) -> Run:
        """A run with the times of its words, from one more pass over prompt and answer, without a cache.

        Parameters
        ----------
        request : Request
            Whose answer the run is; its audio is one segment.
        run : Run
        seconds : float
            Length of the segment.
        """
        chosen = self.require_alignment()
        if not run.tokens:
            return replace(run, words=())
        found = self.audio_attention(request, run.tokens, {layer for layer, _ in chosen.heads})
        attention = np.stack([found[layer][head] for layer, head in chosen.heads])
        tokenizer = self.require_tokenizer()
        words = timed_words(run.tokens, run.logprobs, attention, tokenizer, chosen.filter_width, seconds)
        return replace(run, words=words)

    def audio_attention(
        self, request: Request, tokens: Sequence[int], layers: Container[int] | None = None
    ) -> dict[int, np.ndarray]:
        """What the tokens of an answer give to its first segment of audio: layer -> (heads, tokens, positions).

        Parameters
        ----------
        request : Request
            Of the prompt.
        tokens : sequence of int
            The answer, at least one token.
        layers : container of int, optional
            Of the decoder; by default all.
        """
        (start, length), n, found = request.spans[0], len(request.tokens), {}

        def keep(name: str, x: mx.array) -> None:
            layer, _, rest = name.partition(".")
            if rest == "pattern" and (layers is None or int(layer) in layers):
                found[int(layer)] = x[0, :, n:, start : start + length]

        answer = self.net.embed(np.array([tokens], np.int32))
        self.net.model(mx.concatenate([request.embeddings[None], answer], axis=1), NoCache(self.net.model.rope), keep)
        return {layer: np.array(pattern) for layer, pattern in found.items()}

    def answer(self, request: Request, options: DecodingOptions, tap: Tap | None = None) -> Generation:
        """The whole answer to one request, text and audio codes apart."""
        return answer_of(collect(self.steps(request, options, tap), 1)[0], self.require_tokenizer())

    # ------------------------------------------------------------ tokens

    def stop_ids(self) -> frozenset[int]:
        """Token ids that end an answer: those of the tokenizer, and those that the config names."""
        known = frozenset() if self.tokenizer is None else self.tokenizer.eos_ids
        return known | self.config.text_config.end_ids

    def decode(self, tokens: Sequence[int]) -> str | None:
        """The text among tokens; markers and audio codes are no text, as in the reference's own split.

        None if the engine has no tokenizer.
        """
        if self.tokenizer is None:
            return None
        limit = self.tokenizer.text_limit
        return self.tokenizer.decode([t for t in tokens if t < limit], skip_special=True)

    def require_tokenizer(self) -> Tokenizer:
        """The tokenizer; `PromptError` if there is none."""
        if self.tokenizer is None:
            raise PromptError(
                "this needs a tokenizer, and the model was loaded with tokenizer=None: load it with one, "
                "or give `transcribe` its prompt as two lists of ids (--prompt-ids)"
            )
        return self.tokenizer

    def require_weights(self) -> None:
        """Raise `WeightsError` if the weights are incomplete and were not allowed to be."""
        if self.incomplete is not None:
            raise WeightsError(
                f"the checkpoint is incomplete and will not run on random weights: {self.incomplete}. "
                "Load it whole, or pass allow_random=True if random weights are what you want"
            )
