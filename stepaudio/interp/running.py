"""Run a model with edits: one recording or several, generating, or along tokens that are given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Unpack

import mlx.core as mx
import numpy as np

from ..audio.sources import given_rate
from ..decoding.generate import Run, Step, collect, fits_one_batch, generate
from ..decoding.options import DecodingKeywords, DecodingOptions, merge_options
from ..errors import ConfigError
from ..model import StepAudio2
from ..models.kv_cache import NoCache
from ..models.tap import Tap, chain
from ..pipeline import Layout
from ..text.messages import is_conversation
from ..text.prompts import ASR_SYSTEM
from .donor import Activations
from .editing import EditTap, RowTaps
from .edits import Edits
from .names import FIXED, GLOSSARY, pattern_of
from .recorder import BYTE_LIMIT, Recorder, record, transcription


def run_with_edits(
    model: StepAudio2,
    sources: Sequence,
    edits: Edits | Sequence[Edits],
    *,
    prompt: str = ASR_SYSTEM,
    sample_rate: float | None = None,
    audio: Sequence[mx.array] | None = None,
    options: DecodingOptions | None = None,
    **changes: Unpack[DecodingKeywords],
) -> list[Run]:
    """Transcribe recordings, or answer conversations, with edits: in one batch where the cache limit allows it.

    Parameters
    ----------
    model : StepAudio2
    sources : list of recordings, or of lists of messages; each is one run.
    edits : made in every run, or a list with those of each.
    prompt : system text for recordings.
    sample_rate : number, optional
        Of recordings that are arrays, in Hz; 16 kHz if not given.
    audio : list of mx.array, optional
        Audio embeddings (n, D) of each recording without edits, which saves encoding it where no edit is in encoder or
        adapter; one segment each, no contrast.
    options, **changes : as in `StepAudio2.stream`.

    Returns
    -------
    list of Run, in the order of the sources; the same as each gets alone.

    Raises
    ------
    ConfigError : an edit that cannot apply to one of them; nothing has run then.
    """
    if not isinstance(sources, (list, tuple)) or not sources or is_conversation(sources):
        raise ConfigError("run_with_edits: expected a list of recordings or conversations, at least one")
    engine = model.engine
    decoding = merge_options(options, "chat" if is_conversation(sources[0]) else "transcribe", **changes)
    layouts = [lay_out(model, source, prompt, sample_rate) for source in sources]
    each = [edits] * len(layouts) if isinstance(edits, Edits) else list(edits)
    if len(each) != len(layouts):
        raise ConfigError(f"run_with_edits: expected edits for each of {len(layouts)} runs, found {len(each)}")
    taps = [edit_tap(model, one, [at], decoding.max_tokens) for one, at in zip(each, layouts, strict=True)]
    known = audio or [None] * len(layouts)
    requests = [
        engine.encode_layout(layout, tap) if own is None or tap.in_audio else engine.embed_prompt(layout.prompt, [own])
        for layout, tap, own in zip(layouts, taps, known, strict=True)
    ]
    run = engine.run_options(decoding)
    lengths = [len(r.tokens) for r in requests]
    if len(requests) > 1 and not fits_one_batch(lengths, run, model.config.max_cache_len, tapped=True):
        return [collect(generate(engine.net, [r], run, tap), 1)[0] for r, tap in zip(requests, taps, strict=True)]
    if isinstance(edits, Edits):
        tap = edit_tap(model, edits, layouts, decoding.max_tokens)
    else:
        longest = max(lengths)
        tap = RowTaps(
            [edit_tap(model, one, [at], decoding.max_tokens, longest) for one, at in zip(each, layouts, strict=True)]
        )
    return collect(generate(engine.net, requests, run, tap), len(requests))


def steps_with_edits(
    model: StepAudio2,
    source,
    edits: Edits,
    *,
    prompt: str = ASR_SYSTEM,
    sample_rate: float | None = None,
    options: DecodingOptions | None = None,
    **changes: Unpack[DecodingKeywords],
) -> Iterator[Step]:
    """The steps of one run with edits as they are made; `SpeechModel.voiced` makes sound of them as they come.

    Parameters
    ----------
    source : recording, or list of messages.
    edits, prompt, sample_rate, options, **changes : as in `run_with_edits`.

    Raises
    ------
    ConfigError : an edit that cannot apply; nothing has run then.
    """
    decoding = merge_options(options, "chat" if is_conversation(source) else "transcribe", **changes)
    layout = lay_out(model, source, prompt, sample_rate)
    tap = edit_tap(model, edits, [layout], decoding.max_tokens)
    return model.engine.steps(model.engine.encode_layout(layout, tap), decoding, tap)


def lay_out(model: StepAudio2, source, prompt: str = ASR_SYSTEM, sample_rate: float | None = None) -> Layout:
    """The prompt of a recording to be transcribed, or of messages."""
    messages = source if is_conversation(source) else transcription(source, prompt)
    return model.engine.lay_out(messages, sample_rate=given_rate(sample_rate, None))


def edit_tap(
    model: StepAudio2, edits: Edits, layouts: Sequence[Layout], max_tokens: int, longest: int | None = None
) -> EditTap:
    """The edits of one run of these prompts, checked."""
    return EditTap(edits, model.config, layouts, max_tokens, model.pipeline.chunk_samples, longest)


def generated(
    model: StepAudio2, layout: Layout, options: DecodingOptions, edits: Edits | None = None
) -> tuple[int, ...]:
    """The tokens of one answer, with edits."""
    engine, tap = model.engine, edit_tap(model, edits, [layout], options.max_tokens) if edits else None
    request = engine.encode_layout(layout, tap)
    return collect(generate(engine.net, [request], engine.run_options(options), tap), 1)[0].tokens


def forced_logits(
    model: StepAudio2,
    layout: Layout,
    tokens: Sequence[int],
    edits: Edits | None = None,
    tap: Tap | None = None,
    embeddings: mx.array | None = None,
) -> np.ndarray:
    """Logits (tokens, V) that choose each of the given tokens, float32: one pass over prompt and tokens, no cache.

    Parameters
    ----------
    layout : as `lay_out` gives it.
    tokens : the answer along which the model is led, at least one; whatever it would have chosen.
    edits : made on the way; step i stands before token i.
    tap : called behind them.
    embeddings : (n, D) of the prompt without edits, which saves encoding its audio where no edit is in encoder or
        adapter.
    """
    return np.array(forced_pass(model, layout, tokens, edits, tap, embeddings))


def forced_pass(
    model: StepAudio2,
    layout: Layout,
    tokens: Sequence[int],
    edits: Edits | None = None,
    tap: Tap | None = None,
    embeddings: mx.array | None = None,
) -> mx.array:
    """`forced_logits` on the device, before they are computed."""
    if not len(tokens):
        raise ConfigError("forced logits: expected at least one token, found none")
    net = model.engine.net
    editing = edit_tap(model, edits or Edits(), [layout], len(tokens))
    watching, prompt = chain(editing, tap), embeddings
    if prompt is None or editing.in_audio:
        prompt = model.engine.encode_layout(layout, watching).embeddings
    ids = np.array([[*layout.prompt.tokens, *tokens[:-1]]], np.int32)
    x = mx.concatenate([prompt[None], net.embed(ids[:, len(layout.prompt.tokens) :])], axis=1)
    logits = net.logits(x, NoCache(net.model.rope), watching, mx.array(ids))
    return logits[0, len(layout.prompt.tokens) - 1 :].astype(mx.float32)


def activations(
    model: StepAudio2,
    source,
    names: str | Sequence[str] = ("*",),
    *,
    edits: Edits | None = None,
    byte_limit: int = BYTE_LIMIT,
    prompt: str = ASR_SYSTEM,
    sample_rate: float | None = None,
    options: DecodingOptions | None = None,
    **changes: Unpack[DecodingKeywords],
) -> Activations:
    """Generate one answer and keep its activations by position, as a donor for `patch`, `mean` and `resample`.

    Parameters
    ----------
    names : glob patterns over `names.GLOSSARY`.
    Others as in `record`; the cache keeps everything.

    Raises
    ------
    ConfigError, DecodeError : as `record`.
    """
    changes["cache"] = "full"
    trace = record(
        model, source, names, edits=edits, byte_limit=byte_limit, prompt=prompt, sample_rate=sample_rate,
        options=options, **changes,
    )  # fmt: skip
    return by_position(trace.recorder, trace.n_prompt, trace.n_prompt + len(trace.steps) - 1, trace.frames)


def by_position(recorder: Recorder, n_prompt: int, n_positions: int, frames: tuple[int, ...]) -> Activations:
    """What was recorded, by position; nothing may have been evicted on the way. `frames` as `Activations` has them."""
    found = {}
    for name in recorder.names:
        if name in FIXED:
            continue
        axes, arrays = GLOSSARY[pattern_of(name)].axes, recorder[name]
        if name == "logits":
            every = arrays[0].ndim == 3  # of all positions, as one pass without a cache gives them
            found[name] = arrays[0][:, n_prompt - 1 :] if every else np.stack(arrays, axis=1)
        elif axes[2:] == ("n", "L"):
            longest = max(a.shape[-1] for a in arrays)
            wide = [np.pad(a, [(0, 0)] * 3 + [(0, longest - a.shape[-1])]) for a in arrays]
            found[name] = np.concatenate(wide, axis=2)
        else:
            found[name] = np.concatenate(arrays, axis=axes.index("n")) if "n" in axes else arrays[-1]
    return Activations(found, n_prompt, n_positions, frames)
