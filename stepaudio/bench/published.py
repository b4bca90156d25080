"""Speed and memory at the published sizes, with random weights, as one table.

Neither depends on what weights say, so no file of a model is needed. All that a line compares takes turns within one
run, ours beside mlx-lm and PyTorch where these are installed: on a shared machine only ratios of interleaved runs hold.
Each line is given as soon as it is measured. The parts here are about the language model; `published_sound` has the
others.
"""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import mlx.core as mx
import numpy as np

from ..backend.device import info
from ..backend.memory import free_buffers
from ..checkpoints.layout import parameters_of
from ..checkpoints.load import load_weights
from ..checkpoints.random_weights import random_token2wav
from ..checkpoints.recipe import Recipe
from ..checkpoints.save import save_checkpoint
from ..constants import CHUNK_SECONDS
from ..decoding.generate import Request, generate
from ..decoding.prompt_cache import PromptCache, prefixes_of
from ..decoding.sampling import Sampling
from ..engine import Engine
from ..errors import ConfigError
from ..models.kv_cache import CachePolicy
from ..models.quantization import Bits
from ..models.speech_lm import StepAudioNet
from ..models.tap import Tap
from ..resources import voice_clip
from ..synthesis.synthesizer import Synthesizer
from . import peers, step_audio2_baseline, torch_baseline, voice_baseline
from .edited import taps_of
from .memory import random_engine
from .own_process import not_installed
from .published_sound import STEP_AUDIO2, token2wav, voice
from .rows import Row
from .successor import successor_net
from .turns import OURS, Bench, Sides, gb, run_options

SAMPLERS: dict[str, Sampling] = {
    "greedy": Sampling.greedy(), "planned": Sampling.planned(), "reference, chat": Sampling.reference("chat"),
    "temperature 0.7": Sampling.greedy(temperature=0.7),
    "temperature 0.7, top-p 0.9": Sampling.greedy(temperature=0.7, top_p=0.9),
    "temperature 0.7, top-k 50": Sampling.greedy(temperature=0.7, top_k=50),
    "temperature 0.7, min-p 0.05": Sampling.greedy(temperature=0.7, min_p=0.05),
}  # fmt: skip
CACHES: dict[str, CachePolicy] = {
    "full": CachePolicy("full"), "sinks 4096": CachePolicy("sinks", 4096), "window 256": CachePolicy("window", 256),
    "sinks 256": CachePolicy("sinks", 256), "sinks 256, re-indexed": CachePolicy("sinks", 256, positions="reindexed"),
    "pinned 512": CachePolicy("pinned", 512), "full, 8 bits": CachePolicy("full", bits=8),
    "full, 4 bits": CachePolicy("full", bits=4),
}  # fmt: skip
PEERS = {  # whose turns they are -> parts, the modules that it takes, how they are installed
    peers.MlxLm.name: (("decode", "prefill", "bits"), peers.MlxLm.needed, 'pip install "stepaudio[mlx-lm]"'),
    peers.Torch.name: (("decode", "prefill", "encoder"), peers.Torch.needed, 'pip install "stepaudio[parity]"'),
    STEP_AUDIO2: (("token2wav",), step_audio2_baseline.NEEDED, step_audio2_baseline.INSTALL),
    **{side: (("voice",), voice_baseline.NEEDED[side], voice_baseline.INSTALL) for side in voice_baseline.NEEDED},
}
PERIOD = 20  # tokens after which the repeating text comes again
SHARD = 5_000_000_000


def about(small: bool) -> str:
    """One line: what computes, at which sizes, and beside which mlx-lm and PyTorch."""
    found, others = info(), []
    if peers.MlxLm.installed():
        others.append(f"mlx-lm {version('mlx_lm')}")
    if peers.Torch.installed():
        others.append(torch_baseline.versions())
    sizes = "small sizes" if small else "the published sizes"
    mlx = f"MLX {found['versions']['mlx']}, {found['backend']}, {found['dtype']}"
    return "; ".join([mlx, f"random weights at {sizes}", *others])


def without(parts: Sequence[str] = ()) -> list[str]:
    """A line for each program that these parts compare with and that is not here: what is missing, how it comes."""
    lines = []
    for name, (compared, needed, install) in PEERS.items():
        named = [part for part in parts or PARTS if part in compared]
        if named and (missing := not_installed(needed)):
            lines.append(f"no rows for {name} of {', '.join(named)}: {', '.join(missing)} not installed ({install})")
    return lines


def run(parts: Sequence[str] = (), small: bool = False, repeats: int = 3, seed: int = 0) -> Iterator[Row]:
    """Measure, line by line.

    Parameters
    ----------
    parts : sequence of str
        Of `PARTS`; all of them if none is named.
    small : bool
        A rehearsal at small sizes.
    repeats : int >= 1
        After one that warms up.
    seed : int >= 0
        Of weights, sound and tokens.

    Raises
    ------
    ConfigError
        An unknown part, or no repeats.
    """
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        raise ConfigError(f"part: expected of {', '.join(PARTS)}, found {', '.join(map(repr, unknown))}")
    bench = Bench(small, repeats, seed)
    for name in parts or PARTS:
        yield from PARTS[name](bench)
        gc.collect()
        free_buffers()


# ---------------------------------------------------------------- the parts


def _load(bench: Bench) -> Iterator[Row]:
    """A folder of the published layout, written here: its files are in the system's memory as far as there is room."""
    with tempfile.TemporaryDirectory(prefix="stepaudio-bench-") as folder:
        save_checkpoint(folder, bench.config, parameters_of(bench.engine.net), SHARD)
        free_buffers()
        mx.reset_peak_memory()
        held, seconds = mx.get_active_memory(), []
        for _ in range(bench.repeats):
            began, net = time.perf_counter(), StepAudioNet(bench.config)
            load_weights(net, Path(folder), bench.config)
            mx.eval(net.parameters())
            mx.synchronize()
            seconds.append(time.perf_counter() - began)
            active, peak = mx.get_active_memory() - held, mx.get_peak_memory() - held
            del net
            gc.collect()
            free_buffers()
    yield Row("load", "from a local disk", OURS, "s", tuple(seconds))
    yield Row("load", "weights", OURS, "GB", gb(active))
    yield Row("load", "peak", OURS, "GB", gb(peak))


def _encoder(bench: Bench) -> Iterator[Row]:
    for seconds in (1, 10, CHUNK_SECONDS):
        mel = bench.mel(seconds)

        def ours(mel=mel) -> float:
            began = time.perf_counter()
            mx.eval(bench.engine.encode_audio([mel]))
            return time.perf_counter() - began

        what = f"{seconds} s of sound"
        sides: Sides = {(what, OURS): ours}
        for peer in bench.peers:
            if hasattr(peer, "encode"):
                sides[what, peer.name] = lambda peer=peer, mel=mel: peer.encode(mel)
        yield from bench.rows("encoder", "s", sides)


def _prefill(bench: Bench) -> Iterator[Row]:
    """Prompts read: into a full cache, and into a bounded one that has room for all; bytes beside the weights."""
    for n in (64, 128) if bench.small else (512, 2048, 8192):
        request, what = bench.words(n), f"{n} positions"
        room = CachePolicy("sinks", 2 * n)
        seconds: Sides = {
            (what, OURS): lambda request=request: bench.first(request),
            (f"{what}, roomy sinks", OURS): lambda request=request, room=room: bench.first(request, cache=room),
        }
        for peer in bench.peers:
            seconds[what, peer.name] = lambda peer=peer, request=request: peer.prefill(request.embeddings)
        yield from bench.rows(
            "prefill", "positions/s", {name: lambda n=n, took=took: n / took() for name, took in seconds.items()}
        )
        for (named, side), took in seconds.items():
            if side != peers.Torch.name:  # which counts its own
                yield Row("prefill", f"{named}, memory", side, "GB", gb(_peak(took)))


def _peak(work: Callable[[], float]) -> int:
    """Bytes in use at most beside what is held before."""
    gc.collect()
    free_buffers()
    mx.reset_peak_memory()
    held = mx.get_active_memory()
    work()
    return mx.get_peak_memory() - held


def _decode(bench: Bench) -> Iterator[Row]:
    request = bench.request(10)
    mx.reset_peak_memory()
    sides: Sides = {("greedy", OURS): lambda: bench.rate([request])}
    for peer in bench.peers:
        n = bench.n_tokens if peer.name != peers.Torch.name else max(16, bench.n_tokens // 4)
        sides["greedy", peer.name] = lambda peer=peer, n=n: peer.decode(request.embeddings, n)
    yield from bench.rows("decode", "tokens/s", sides)
    yield Row("decode", "peak", "all", "GB", gb(mx.get_peak_memory()))


def _samplers(bench: Bench) -> Iterator[Row]:
    request = bench.request(10)
    yield from bench.rows("sampler", "tokens/s", {
        (name, OURS): lambda rules=rules: bench.rate([request], sampling=rules) for name, rules in SAMPLERS.items()
    })  # fmt: skip


def _caches(bench: Bench) -> Iterator[Row]:
    request, n = bench.request(10), 2 * bench.n_tokens
    yield from bench.rows("cache", "tokens/s", {
        (name, OURS): lambda policy=policy: bench.rate([request], n, cache=policy) for name, policy in CACHES.items()
    })  # fmt: skip


def _bits(bench: Bench) -> Iterator[Row]:
    request = bench.request(10)
    for bits in (8, 4):
        few = random_engine(bench.config, bench.dtype, Recipe(Bits(bits)), bench.seed)
        again = Request(request.tokens, few.net.embed(np.array(request.tokens))[0])
        held = sum(a.nbytes for a in parameters_of(few.net).values())
        what = f"{bits} bits, greedy"
        sides: Sides = {
            ("16 bits, greedy", OURS): lambda: bench.rate([request]),
            (what, OURS): lambda few=few, again=again: bench.rate([again], net=few.net),
        }
        if peers.MlxLm.installed():
            peer = peers.MlxLm(few.net)
            sides[what, peer.name] = lambda peer=peer, again=again: peer.decode(again.embeddings, bench.n_tokens)
        yield Row("bits", f"{bits} bits, weights", OURS, "GB", gb(held))
        yield from bench.rows("bits", "tokens/s", sides)
        del few, again, sides
        gc.collect()
        free_buffers()


def _batches(bench: Bench) -> Iterator[Row]:
    seconds, n = (2, 12) if bench.small else (CHUNK_SECONDS, bench.n_tokens // 2)
    mel = bench.mel(seconds)
    for size in (1, 2, 4) if bench.small else (1, 2, 4, 8, 16, 32):

        def encode(size=size) -> float:
            began = time.perf_counter()
            mx.eval(bench.engine.encode_audio([mel] * size))
            return time.perf_counter() - began

        requests = [bench.request(seconds) for _ in range(size)]
        mx.reset_peak_memory()
        yield from bench.rows("batch", "s", {(f"{size} clips of {seconds} s, encoding", OURS): encode})
        what = f"{size} clips of {seconds} s, greedy"
        yield from bench.rows("batch", "tokens/s", {(what, OURS): lambda requests=requests: bench.rate(requests, n)})
        yield Row("batch", f"{size} clips of {seconds} s, peak", OURS, "GB", gb(mx.get_peak_memory()))


def _speculative(bench: Bench) -> Iterator[Row]:
    """Text that comes again after `PERIOD` tokens, and text that never does."""
    for what, period in (("repeating text", PERIOD), ("text that never repeats", bench.config.text_config.vocab_size)):
        net = successor_net(bench.engine.net, period)
        tokens = list(range(2 * PERIOD))
        request, passes = Request(tokens, net.embed(np.array(tokens))[0]), []

        def looked_up(net=net, request=request, passes=passes) -> float:
            began, run = time.perf_counter(), run_options(bench.n_tokens, speculate="lookup")
            steps = list(generate(net, [request], run))
            if (drafts := steps[-1].drafts) is not None:
                passes.append(drafts.tokens_per_pass)
            return len(steps) / (time.perf_counter() - began)

        def plain(net=net, request=request) -> float:
            began = time.perf_counter()
            n = sum(1 for _ in generate(net, [request], run_options(bench.n_tokens)))
            return n / (time.perf_counter() - began)

        sides: Sides = {(f"{what}, plain", OURS): plain, (f"{what}, lookup", OURS): looked_up}
        yield from bench.rows("speculative", "tokens/s", sides)
        yield Row("speculative", f"{what}, lookup", OURS, "tokens/pass", tuple(passes[1:]))
        del net, request, sides, plain, looked_up


def _first_token(bench: Bench) -> Iterator[Row]:
    """A clip behind a long history, its audio embeddings and turns computed, or found in a prompt cache."""
    seconds = 2 if bench.small else CHUNK_SECONDS
    n, mel, end = 64 if bench.small else 2048, bench.mel(seconds), 3
    history = [*np.random.default_rng(bench.seed).integers(4, bench.config.text_config.vocab_size, n).tolist(), end]

    def asked(engine: Engine, cache: PromptCache | None) -> float:
        began = time.perf_counter()
        (encoded,) = engine.encode_audio([mel])
        request = engine.transcription_request(encoded, (history, [5, 6, 7]))
        if cache is not None:
            starts = [start for start, _ in request.spans]
            request = replace(request, prefixes=prefixes_of(request.tokens, starts, ["clip"], frozenset({end}), cache))
        next(generate(engine.net, [request], run_options(1)))
        return time.perf_counter() - began

    kept = PromptCache(4 << 30)
    warm = bench.engine.altered(prompt_cache=kept)
    what = f"{n} tokens and {seconds} s of sound"
    yield from bench.rows("first token", "s", {
        (f"{what}, computed", OURS): lambda: asked(bench.engine, None),
        (f"{what}, found", OURS): lambda: asked(warm, kept),
    })  # fmt: skip


def _first_sound(bench: Bench) -> Iterator[Row]:
    """From a clip to the first chunk of a stream, if all that the decoder says are audio codes; the voice is read."""
    synthesizer = Synthesizer(random_token2wav("small" if bench.small else "published", bench.seed))
    state, flow = synthesizer.begin(synthesizer.voice(voice_clip())), synthesizer.parts.flow
    n = state.options.chunk_codes + flow.look_ahead

    def token() -> float:
        began = time.perf_counter()
        next(generate(bench.engine.net, [bench.request(10)], run_options(1)))
        return time.perf_counter() - began

    def sound() -> float:
        began = time.perf_counter()
        steps = generate(bench.engine.net, [bench.request(10)], run_options(n + 1))
        next(synthesizer.stream((s.token % flow.config.vocab_size for s in steps), state))
        return time.perf_counter() - began

    sides: Sides = {("10 s of sound, first token", OURS): token, (f"{n} codes, their sound streamed", OURS): sound}
    yield from bench.rows("first sound", "s", sides)


def _edits(bench: Bench) -> Iterator[Row]:
    """The same prompt with and without edits: read, and answered; then how many times as long each edit takes."""
    request, taps = taps_of(
        bench.engine, bench.mel, 64 if bench.small else 512, run_options(bench.n_tokens), bench.seed
    )
    n = len(request.tokens)
    works: dict[str, tuple[str, Callable[[Tap | None], float]]] = {
        f"{n} positions": ("positions/s", lambda tap: n / bench.first(request, tap)),
        "greedy": ("tokens/s", lambda tap: bench.rate([request], tap=tap)),
    }
    for work, (unit, measure) in works.items():
        sides: Sides = {
            (f"{work}, {name}", OURS): lambda measure=measure, made=made: measure(made()) for name, made in taps.items()
        }
        plain, *edited = bench.rows("edits", unit, sides)
        yield from (plain, *edited)
        for row in edited:
            ratios = tuple(a / b for a, b in zip(plain.values, row.values, strict=True))
            yield Row("edits", row.what, OURS, "time / plain", ratios)


PARTS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "load": _load, "encoder": _encoder, "prefill": _prefill, "decode": _decode, "samplers": _samplers,
    "caches": _caches, "bits": _bits, "batches": _batches, "speculative": _speculative, "first-token": _first_token,
    "first-sound": _first_sound, "edits": _edits, "token2wav": token2wav, "voice": voice,
}  # fmt: skip
