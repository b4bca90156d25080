"""Of the bench at the published sizes: codes to sound, and a recording to a voice, beside the same nets in PyTorch."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import mlx.core as mx
import numpy as np

from ..audio.features import kaldi_fbank, log_mel
from ..backend.device import float32_products
from ..backend.memory import free_buffers
from ..checkpoints.random_weights import random_net, random_token2wav
from ..constants import CODES_PER_SECOND
from ..models.token2wav.campplus import SpeakerConfig, SpeakerEncoder
from ..models.token2wav.speech_tokenizer import S3Config, S3Tokenizer
from ..resources import voice_clip
from ..synthesis.synthesizer import Synthesizer
from .rows import Row
from .tts import Cost, Theirs, Trial, published_tensors, turns
from .turns import OURS, Bench, Sides, gb
from .voice_baseline import SPEAKER, TOKENIZER, SpeakerProcess, TokenizerProcess, missing

STEP_AUDIO2 = "step-audio2"
SMALL_TOKENIZER = S3Config(n_audio_state=128, n_audio_head=2, n_audio_layer=2)  # heads as wide as the published ones


def token2wav(bench: Bench) -> Iterator[Row]:
    """Seconds for all codes at once, and streamed, and memory beside what was held before, weights included."""
    gc.collect()
    free_buffers()
    held = mx.get_active_memory()
    synthesizer = Synthesizer(random_token2wav("small" if bench.small else "published", bench.seed))
    clip = synthesizer.voice(voice_clip())
    lengths = (2, 4) if bench.small else (5, 20)
    trials = {seconds: Trial(synthesizer, clip, seconds * CODES_PER_SECOND) for seconds in lengths}
    process = (
        None if (first := Theirs.of(trials[max(lengths)])) is None else first.process
    )  # with noise for the longest
    try:
        for seconds, trial in trials.items():
            theirs = None if process is None else Theirs(process)
            whole, streamed = turns(trial, theirs, bench.repeats)
            yield from _ours(f"{seconds} s", whole[1:], streamed[1:], held)
            if theirs is not None:
                yield from _theirs(f"{seconds} s", theirs)
                moved = theirs.difference(trial)
                yield Row("token2wav", f"{seconds} s whole, mels differ by norm", "both", "ratio", (moved,))
    finally:
        if process is not None:
            process.close()


def _ours(what: str, whole: list[Cost], streamed: list[Cost], held: int) -> Iterator[Row]:
    columns = {
        "whole": [c.wall for c in whole],
        "whole, flow": [c.parts[0] for c in whole],
        "whole, vocoder": [c.parts[1] for c in whole],
        "streamed": [sum(c.parts[1:]) for c in streamed],
        "streamed, first chunk": [c.parts[1] for c in streamed],
        "voice into a stream": [c.parts[0] for c in streamed],
    }
    for name, values in columns.items():
        yield Row("token2wav", f"{what} {name}", OURS, "s", tuple(values))
    for name, costs in (("whole", whole), ("streamed", streamed)):
        yield Row("token2wav", f"{what} {name}, peak", OURS, "GB", gb(max(c.peak for c in costs) - held))


def _theirs(what: str, theirs: Theirs) -> Iterator[Row]:
    whole, streamed = theirs.whole[1:], theirs.streamed[1:]
    columns = {
        "whole": [c["flow"] + c["vocoder"] for c in whole],
        "whole, flow": [c["flow"] for c in whole],
        "whole, vocoder": [c["vocoder"] for c in whole],
        "streamed": [sum(c["chunks"]) for c in streamed],
        "streamed, first chunk": [c["chunks"][0] for c in streamed],
        "voice into a stream": [c["voice"] for c in streamed],
    }
    for name, values in columns.items():
        yield Row("token2wav", f"{what} {name}", STEP_AUDIO2, "s", tuple(values))
    for name, costs in (("whole", whole), ("streamed", streamed)):
        if costs[0]["peak"]:  # PyTorch counts on a GPU alone
            yield Row("token2wav", f"{what} {name}, peak", STEP_AUDIO2, "GB", gb(max(c["peak"] for c in costs)))


def voice(bench: Bench) -> Iterator[Row]:
    """Seconds from features to codes and to a speaker vector, on the same weights, and whether both give the same."""
    sizes = SMALL_TOKENIZER if bench.small else S3Config()
    yield from _tokenizer(bench, random_net(sizes, (bench.seed, 0)))
    yield from _speaker(bench, random_net(SpeakerConfig(), (bench.seed, 1)))


def _tokenizer(bench: Bench, net: S3Tokenizer) -> Iterator[Row]:
    theirs = None
    if not missing(TOKENIZER):
        theirs = TokenizerProcess(published_tensors(net), asdict(net.config), float32_products() != "whole")
    try:
        for seconds in _seconds(bench):
            mel = log_mel(bench.noise(seconds), padding=0)
            what, given = f"speech tokenizer, {seconds} s", mx.array(mel)[None]
            mx.eval(given)
            sides: Sides = {(what, OURS): lambda given=given: _took(lambda: net(given))}
            if theirs is not None:
                sides[what, TOKENIZER] = lambda mel=mel: theirs.codes(mel)[0]
            yield from bench.rows("voice", "s", sides)
            if theirs is not None:
                same = float((net(given)[0] == theirs.codes(mel)[1]).mean())
                yield Row("voice", f"{what}, the same codes", "both", "share", (same,))
    finally:
        if theirs is not None:
            theirs.close()


def _speaker(bench: Bench, net: SpeakerEncoder) -> Iterator[Row]:
    theirs = None
    if not missing(SPEAKER):
        theirs = SpeakerProcess(published_tensors(net), float32_products() != "whole")
    try:
        for seconds in _seconds(bench):
            features = kaldi_fbank(bench.noise(seconds))
            what, given = f"speaker encoder, {seconds} s", mx.array(features)[None]
            mx.eval(given)
            sides: Sides = {(what, OURS): lambda given=given: _took(lambda: net(given))}
            if theirs is not None:
                sides[what, SPEAKER] = lambda features=features: theirs.vector(features)[0]
            yield from bench.rows("voice", "s", sides)
            if theirs is not None:
                vector = theirs.vector(features)[1].astype(np.float64)
                moved = np.linalg.norm(np.array(net(given))[0] - vector) / np.linalg.norm(vector)
                yield Row("voice", f"{what}, differ by norm", "both", "ratio", (float(moved),))
    finally:
        if theirs is not None:
            theirs.close()


def _seconds(bench: Bench) -> tuple[int, ...]:
    return (2,) if bench.small else (5, 30)


def _took(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    mx.eval(work())
    return time.perf_counter() - began
