"""Edits whose cost is measured: at one head, at a second of audio in one layer or in all, at a head of every layer."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..constants import CHUNK_SAMPLES
from ..decoding.generate import Request, collect, generate
from ..decoding.options import RunOptions
from ..engine import Engine
from ..interp.editing import EditTap
from ..interp.edits import Edits, patch, scale, zero
from ..interp.recorder import Recorder
from ..interp.running import by_position
from ..models.tap import Tap
from ..pipeline import Layout
from ..text.chat_template import AudioSlot, Prompt

SECONDS = 3.0  # of audio in the prompt; the second of them is edited
DONOR_BYTES = 1 << 30


def taps_of(
    engine: Engine, mel: Callable[[float], np.ndarray], n: int, run: RunOptions, seed: int
) -> tuple[Request, dict[str, Callable[[], Tap | None]]]:
    """A prompt of `n` positions around audio, and what makes the tap of each of its runs, the plain one's first.

    Parameters
    ----------
    engine : needs no tokenizer.
    mel : seconds -> the log mel of so much sound.
    run : how answers are decoded.
    seed : of the words of prompt and donor.
    """
    config, given = engine.config, mel(SECONDS)
    (encoded,) = engine.encode_audio([given])
    rng, vocab = np.random.default_rng(seed), config.text_config.vocab_size
    words, others = rng.integers(0, vocab, (2, n - encoded.shape[0])).tolist()
    request, other = (engine.transcription_request(encoded, (w[:4], w[4:])) for w in (words, others))
    ((start, length),) = request.spans
    layout = Layout(Prompt(tuple(request.tokens), (AudioSlot(start, length, 0),)), (given,), (), 0.0)

    recorder = Recorder(config, ["decoder.*.resid_post", "decoder.*.z"], byte_limit=DONOR_BYTES)
    tokens = collect(generate(engine.net, [other], run, recorder), 1)[0].tokens
    recorder.keep_passes((recorder.first_choice or 0) + len(tokens))
    donor = by_position(recorder, n, n + len(tokens) - 1, (given.shape[1],))
    middle = (config.text_config.num_hidden_layers - 1) // 2  # behind the last layer a norm would undo the scale
    kinds: dict[str, Edits] = {  # none of them spares the net any work: what is overwritten whole is never computed
        "a head zeroed": zero(f"decoder.{middle}.z", heads=0),
        "a layer scaled, 1 s": scale(f"decoder.{middle}.resid_post", 0.5, seconds=(1, 2)),
        "every layer patched, 1 s": patch("decoder.*.resid_post", donor, seconds=(1, 2)),
        "a head per layer patched": patch("decoder.*.z", donor, heads=0),
    }

    def made(edits: Edits) -> Callable[[], Tap]:
        return lambda: EditTap(edits, config, [layout], run.max_tokens, CHUNK_SAMPLES)

    return request, {"plain": lambda: None, **{name: made(e) for name, e in kinds.items()}}
