"""`StepAudio2`: one loaded model. A thin face over `Engine`, `transcribe` and `answering`."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack, overload

import mlx.core as mx

from .answering import Answering
from .audio.sources import assumptions, given_rate
from .audio.vad import Detector
from .backend.device import default_dtype, info
from .checkpoints.alignment_heads import AlignmentHeads
from .checkpoints.capabilities import Capabilities
from .checkpoints.find import checkpoint_folder
from .checkpoints.hub_name import repository_of
from .checkpoints.load import load_weights
from .checkpoints.lora import Lora, LoraReport
from .checkpoints.report import WeightReport
from .choices import Resampler, shown
from .decoding.options import DecodingKeywords, DecodingOptions, merge_options, refuse_unknown
from .decoding.prompt_cache import PromptCache
from .engine import Engine, PromptTokens
from .errors import DecodeError
from .models.parallel import sharded
from .models.quantization import n_values, quantised_layers
from .models.speech_lm import StepAudioConfig, StepAudioNet
from .pipeline import Pipeline
from .text.chat_template import build_turnless_prompt
from .text.messages import is_list_of_recordings
from .text.prompts import ASR_SYSTEM
from .text.tokenizer import Tokenizer
from .transcribe import timed, transcribe_recordings
from .transcript import Transcript


class StepAudio2(Answering):
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
        dtype: mx.Dtype | str | None = None,
        rename: dict[str, str] | None = None,
        allow_random: bool = False,
        lora: str | Path | None = None,
    ) -> StepAudio2:
        """Read a folder in the published layout.

        Parameters
        ----------
        path : str or Path, optional
            Folder, or a text "ORG/NAME" or "ORG/NAME@REVISION" that names a model on a hub, which is then taken from
            the cache, or fetched into it; by default `STEPAUDIO_CHECKPOINT`, or else the bundled nano model.
        tokenizer : "beside", str, Path or None
            "beside": in the same folder; or another folder; or None to work in token ids.
        dtype : mx.Dtype or its name, optional
            Of the weights in memory; by default float32 on the CPU and bfloat16 on a GPU.
        rename : dict, optional
            Published name or prefix for names found in the file, to repair a renamed checkpoint.
        allow_random : bool
            Let a checkpoint with missing tensors run with what the nets were initialised with.
        lora : str or Path, optional
            A LoRA to put on, in PEFT's or mlx-lm's format: the name of a folder within the model's, or else a path.
            Matrices of floats take it in, and cost nothing more; beside quantised ones it is computed. Where its folder
            has a `capabilities.json`, those are the model's.

        Returns
        -------
        StepAudio2
            Its `report` accounts for every tensor. If any is missing, and `allow_random` is not set, the model can be
            looked at but refuses to run.

        Raises
        ------
        ConfigError, TokenizerError, WeightsError
            Something in the folder cannot be used, or under 50 % of the tensors match. Under 90 % there is a warning
            that names what is missing. Also a LoRA of which any tensor does not fit. `DownloadError`, a
            `WeightsError`, where a model cannot be fetched.
        """
        folder = checkpoint_folder(path)
        config = StepAudioConfig.from_file(folder)
        words = None
        if tokenizer is not None:
            words = Tokenizer.from_folder(folder if tokenizer == "beside" else tokenizer, config.text_config.vocab_size)
        capabilities = Capabilities.of_folder(folder if folder.is_dir() else folder.parent)
        added = None if lora is None else Lora.of(lora, folder, config)
        if added is not None:
            capabilities = capabilities.with_lora(added.folder)
        net = StepAudioNet(config)
        report = load_weights(net, folder, config, dtype or default_dtype(), rename, added)
        net.model.join()
        incomplete = report.summary if report.unfilled and not allow_random else None
        pipeline = Pipeline() if capabilities.turns else Pipeline(build_prompt=build_turnless_prompt)
        heads = AlignmentHeads.of_weights(folder, config.text_config)
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
        if not isinstance(draft, StepAudio2 | None):
            raise DecodeError(f"draft: expected a model as stepaudio.load gives it, found {shown(draft)}")
        if not isinstance(prompt_cache, PromptCache | None):
            raise DecodeError(
                f"prompt_cache: expected PromptCache(), or PromptCache.load(file), found {shown(prompt_cache)}"
            )
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
    def lora(self) -> LoraReport | None:
        """What is known of the LoRA that is on; None without one."""
        return self.report.lora

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

    # ------------------------------------------------------------ what it is

    def __repr__(self) -> str:
        path = Path(self.report.path)
        checkpoint = f"{repository_of(path) or path.name}, {self.report.summary or 'whole'}"
        lines = {"checkpoint": checkpoint} | ({"LoRA": self.lora} if self.lora else {}) | _description(self.engine)
        return "StepAudio2\n" + "\n".join(f"  {name:11} {value}" for name, value in lines.items())


def load(path: str | Path | None = None, **options) -> StepAudio2:
    """Load a model: `StepAudio2.load`, which explains `path` and the options.

    Examples
    --------
    >>> model = load()                                                          # doctest: +SKIP
    >>> model = load("stepfun-ai/Step-Audio-2-mini", dtype=mx.float16)          # doctest: +SKIP
    """
    known = ("tokenizer", "dtype", "rename", "allow_random", "lora")
    if unknown := [name for name in options if name not in known]:
        raise DecodeError(f"load: unknown option {unknown[0]!r}; expected one of {', '.join(known)}")
    return StepAudio2.load(path, **options)


def _description(engine: Engine) -> dict[str, str]:
    """Sizes, parameters, dtype, tokenizer and tasks, a line each."""
    net, words = engine.net, engine.tokenizer
    text, audio = engine.config.text_config, engine.config.audio_encoder_config
    sizes = {name: n_values(getattr(net, name)) for name in ("encoder", "adapter", "model", "lm_head")}
    sizes["decoder"] = sizes.pop("model") + sizes.pop("lm_head")
    millions = ", ".join(f"{name} {n / 1e6:.2f} M" for name, n in sizes.items())
    return {
        "parameters": f"{sum(sizes.values()) / 1e6:.2f} M ({millions})",
        "encoder": f"{audio.n_audio_layer} layers of {audio.n_audio_state}, {audio.n_audio_head} heads, "
        f"{audio.n_mels} mel bands",
        "decoder": f"{text.num_hidden_layers} layers of {text.hidden_size}, {text.num_attention_heads} heads "
        f"({text.num_key_value_heads} of keys and values), vocabulary {text.vocab_size}",
        "dtype": f"{str(net.dtype).removeprefix('mlx.core.')} on {info()['backend']}{_fewer_bits(net)}",
        "tokenizer": "none" if words is None else f"{words.n_ids} tokens, {words.n_audio} of them audio",
        "trained to": str(engine.capabilities),
    }


def _fewer_bits(net: StepAudioNet) -> str:
    """How many layers have how many bits, for a description; empty if none has fewer."""
    kinds = Counter(map(str, quantised_layers(net).values()))
    return "".join(f", {n} layers of {kind}" for kind, n in kinds.items())
