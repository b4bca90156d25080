"""What a run takes in memory, worked out from sizes and headers before anything is loaded.

Weights, keys and values are exact. What a stage has in work at its most is counted in arrays: those that a layer needs
at once, of as many positions as are computed in one go. `bench.memory` holds it against what a backend shows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path

import mlx.core as mx

from ..backend.cpu_ops import MANY
from ..backend.memory import KEPT_BUFFERS
from ..backend.pieces import ENOUGH_ON_CPU, ENOUGH_ON_GPU, LAYER, LEAST_ROWS, PART
from ..checkpoints.find import meant
from ..checkpoints.hub import cached
from ..checkpoints.layout import expected_layout
from ..checkpoints.packed import WEIGHT, PackedTensor, quantisable, read_tensors
from ..checkpoints.recipe import Recipe
from ..checkpoints.siblings import name_of, sibling_of
from ..constants import CHUNK_SECONDS, SAMPLE_RATE, n_audio_embeddings, n_mel_frames
from ..decoding.prefill import positions_at_once
from ..errors import ConfigError, DecodeError, WeightsError
from ..models.decoder import TextConfig
from ..models.encoder import AudioEncoderConfig
from ..models.kv_cache import CachePolicy, too_many_kept
from ..models.kv_store import GROWTH
from ..models.quantization import MANY as WIDENED_FROM
from ..models.quantization import Bits
from ..models.speech_lm import StepAudioConfig
from ..transcribe import SEARCH

MINI = StepAudioConfig(
    TextConfig(3584, 18944, 28, 4, 28, 158720, 1e-6, 1e6, max_position_embeddings=16384),
    AudioEncoderConfig(128, 1500, 1280, 20, 32, 3584, 3, 2),
)
PUBLISHED = dict.fromkeys(("Step-Audio-2-mini", "Step-Audio-2-mini-Base", "Step-Audio-2-mini-Think"), MINI)
WORDS = 64  # tokens of a prompt beside the audio, with room
SCORE_ARRAYS = 4  # of attention on a CPU, float32: scores, powers and what they are made by
LOGIT_ARRAYS = 5  # of the vocabulary, float32: logits, rules and their copies


@dataclass(frozen=True)
class Counts:
    """Arrays of a layer that count on a device, and how many layers do.

    On a CPU those that a layer holds at once. On a GPU all that it makes: memory of what is gone comes back when its
    piece is computed, and the host asks for two pieces (`backend.pieces`) before it waits for the first.

    Parameters
    ----------
    encoder : int
        Of a block of the encoder, in channels: the residual stream, norms, queries, keys, values, four wide ones twice.
    layer, mlp : int
        Of a layer of the decoder, in channels; of its MLP, in wide channels. A GPU has one kernel for the gate, which
        writes where one of its factors was.
    pieces : int
        Pieces whose layers count; 0 for a layer alone.
    """

    encoder: int
    layer: int
    mlp: int
    pieces: int

    def layers(self, piece: float, layer: float, most: int) -> int:
        """Layers that count, of so many multiply-adds each; `most` is how far a host gets ahead of a GPU."""
        return min(most, self.pieces * math.ceil(piece / layer)) or 1


ON_CPU, ON_GPU = Counts(encoder=14, layer=6, mlp=3, pieces=0), Counts(encoder=16, layer=8, mlp=2, pieces=2)
ENCODER_AHEAD, AHEAD = 20, 10  # layers of encoder and decoder, as an H100 showed where pieces have more


@dataclass(frozen=True)
class Sizes:
    """A model before it is loaded: what it is called, its config, and bytes of each component's weights as held.

    Parameters
    ----------
    name : str
    config : StepAudioConfig
    weights : int
        Bytes of all weights in memory.
    widest : int
        Numbers of the largest quantised matrix, which a CPU widens; 0 where none is quantised.
    loading : int
        Bytes of the largest tensor as it is stored, where it is held in another type; read while its copy is made.
    """

    name: str
    config: StepAudioConfig
    weights: int
    widest: int = 0
    loading: int = 0


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of a run, by what they are for.

    Parameters
    ----------
    weights, kv, kv_read : int
        Held from beginning to end; at the end of the longest answer; when prompts have been read.
    encoder, prefill, decoding : int
        In work while audio is encoded, prompts are read, tokens are chosen: the largest of them counts.
    buffers : int
        The most that MLX keeps for reuse beside it.
    batch, positions : int
        Segments decoded together, and what each holds at its end.
    """

    weights: int
    kv: int
    kv_read: int
    encoder: int
    prefill: int
    decoding: int
    buffers: int
    batch: int
    positions: int

    @property
    def peak(self) -> int:
        """The most in use at a time, which `mx.get_peak_memory` shows."""
        return self.weights + max(self.encoder, self.kv_read + self.prefill, self.kv + self.decoding)

    @property
    def all(self) -> int:
        """With the buffers that are kept."""
        return self.peak + self.buffers

    def to_dict(self) -> dict:
        """Every field, and both sums."""
        return asdict(self) | {"peak": self.peak, "all": self.all}


@dataclass(frozen=True)
class Task:
    """What is to be done.

    Parameters
    ----------
    seconds : float > 0
        Of audio.
    tokens : int >= 1
        Most tokens of an answer, or of each segment.
    whole : bool
        One prompt with all of the audio, as conversations and streams have it; else segments of 25 s in batches.
    batch : int >= 1
        Segments decoded together.
    policy : CachePolicy
    on_cpu : bool
        Where it is computed.
    itemsize : int
        Bytes of a number in weights and activations.
    """

    seconds: float
    tokens: int
    whole: bool
    batch: int
    policy: CachePolicy
    on_cpu: bool
    itemsize: int

    def __post_init__(self):
        if not 0 < self.seconds < 1e6:
            raise ConfigError(f"seconds: expected above 0 and below a million, found {self.seconds!r:.40}")
        for name in ("tokens", "batch"):
            if not 0 < getattr(self, name) < 2**31:
                raise ConfigError(f"{name}: expected a whole number of at least 1, found {getattr(self, name)!r:.40}")


def sizes_of(model: str | Path | None, itemsize: int, recipe: Recipe | None = None) -> Sizes:
    """What is known of a model from its headers; of one on a hub that is not in the cache, from its published sizes.

    Parameters
    ----------
    model : str or Path, optional
        As `stepaudio.load` takes it; nothing is fetched.
    itemsize : int
        Bytes of a number that is not quantised, in memory.
    recipe : Recipe, optional
        Fewer bits than the files have.

    Raises
    ------
    ConfigError, WeightsError
        Nothing is known of its sizes, its files cannot be trusted, or the recipe does not fit it.
    """
    named = meant(model)
    folder = named if isinstance(named, Path) else cached(named)
    known = None if isinstance(named, Path) else sibling_of(named)
    if folder is None or not any((folder / name).is_file() for name in ("config.json", "config_origin.json")):
        if known is None or known.name not in PUBLISHED:
            meant_by = name_of(str(model)) or "stepfun-ai/Step-Audio-2-mini"
            raise ConfigError(
                f"{named}: no config is here and its sizes are not known; expected a folder, a model that was "
                f"downloaded, or {meant_by}"
            )
        return planned(str(named), PUBLISHED[known.name], {}, itemsize, recipe)
    config = StepAudioConfig.from_file(folder)
    try:
        records = read_tensors(folder)
    except WeightsError:
        if isinstance(named, Path):
            raise
        records = {}  # the cache has the config alone
    held = {name: info for name, info in records.items() if isinstance(info, PackedTensor)}
    if held and recipe is not None:
        raise ConfigError(f"{folder}: is quantised already; plan it without --bits and rules, or plan the float model")
    found = planned(
        str(model or folder.name), config, {name: info.bits for name, info in held.items()}, itemsize, recipe
    )
    other = max((i.nbytes for i in records.values() if i.nbytes != prod(i.shape) * itemsize), default=0)
    return Sizes(found.name, config, found.weights, found.widest, other)


def planned(
    name: str, config: StepAudioConfig, held: Mapping[str, Bits], itemsize: int, recipe: Recipe | None
) -> Sizes:
    """A model of these sizes whose matrices `held` (by the names of tensors) or those of a recipe have fewer bits."""
    chosen = dict(held)
    if recipe is not None:
        chosen = {layer + WEIGHT: bits for layer, bits in recipe.choose(quantisable(config)).items()}
    weights = widest = 0
    for tensor, shape in expected_layout(config).items():
        if tensor in chosen:
            weights += chosen[tensor].bytes_of((shape[0], shape[1]), itemsize)
            widest = max(widest, prod(shape))
        else:
            weights += prod(shape) * itemsize
    return Sizes(name, config, weights, widest)


def plan_memory(sizes: Sizes, task: Task) -> MemoryPlan:
    """Work out a run of a model; `DecodeError` where the cache could not hold what it never evicts."""
    text, audio, item = sizes.config.text_config, sizes.config.audio_encoder_config, task.itemsize
    clip = min(task.seconds, float(CHUNK_SECONDS))
    chunks = math.ceil(task.seconds / CHUNK_SECONDS)
    segments = chunks if task.whole else math.ceil(task.seconds / (CHUNK_SECONDS - SEARCH))  # if all pauses come early
    batch = 1 if task.whole else min(task.batch, segments)
    frames = n_mel_frames(round(clip * SAMPLE_RATE))
    rows = n_audio_embeddings(frames)
    if task.whole:
        rest = n_audio_embeddings(n_mel_frames(round((task.seconds - (chunks - 1) * CHUNK_SECONDS) * SAMPLE_RATE)))
        rows = (chunks - 1) * rows + rest
    prompt = rows + WORDS
    limit = task.policy.limit(sizes.config.max_cache_len)
    positions = prompt + task.tokens if limit is None else min(prompt + task.tokens, limit)
    if limit is not None and (kept := len(task.policy.kept(limit, [(WORDS, rows)]))) >= limit:
        raise DecodeError(too_many_kept(limit, kept))
    if limit is not None and batch > 1 and prompt + task.tokens <= limit:  # then a batch shares a full cache
        limit = None
    room, per_position = _room(positions, limit), batch * text.kv_bytes_per_position(item, task.policy.bits)
    kv, kv_read = room * per_position, _room(prompt, limit) * per_position

    counts, piece = (ON_CPU, ENOUGH_ON_CPU) if task.on_cpu else (ON_GPU, ENOUGH_ON_GPU)
    clips = segments if task.whole else batch
    together = 1 if task.on_cpu else clips
    layers = [shape for name, shape in expected_layout(sizes.config).items() if name.startswith(("encoder", "adapter"))]
    work = frames // 2 * sum(map(prod, layers))
    at_once = math.ceil(together / max(1, min(together, math.ceil(together * work / (PART * piece)))))  # see `in_parts`
    S, C = (frames - 1) // 2 + 1, audio.n_audio_state
    scores = min(MANY, at_once * audio.n_audio_head * S * S) * 4 * SCORE_ARRAYS if task.on_cpu else 0
    layer = at_once * S * C * (LAYER * C + 2 * S)  # as `Pieces` counts
    ahead = counts.layers(piece, layer, min(ENCODER_AHEAD, audio.n_audio_layer))
    encoder = at_once * (S * C * counts.encoder * ahead + frames * C * 2) * item + scores
    embedded = clips * n_audio_embeddings(frames) * text.hidden_size * item

    n = min(positions_at_once(batch, task.on_cpu), prompt)
    mlp = 3 * text.hidden_size * text.intermediate_size
    wide = min(batch * n, max(LEAST_ROWS, int(PART * piece / mlp)))
    layer = batch * n * text.hidden_size * (LAYER * text.hidden_size + 2 * n)
    ahead = counts.layers(piece, layer, min(AHEAD, text.num_hidden_layers))
    prefill = (batch * n * text.hidden_size * counts.layer + wide * text.intermediate_size * counts.mlp) * item * ahead
    prefill += batch * prompt * text.hidden_size * item
    prefill += min(MANY, batch * text.num_attention_heads * n * prompt) * 4 * SCORE_ARRAYS if task.on_cpu else 0
    widened = sizes.widest * 4 if task.on_cpu else 0
    held = 2 * batch * room * text.num_key_value_heads * text.head_dim * item if task.policy.bits else 0
    decoding = batch * text.vocab_size * 4 * LOGIT_ARRAYS + held
    encoder = max(encoder + embedded + widened, sizes.loading)
    prefill += widened + held
    return MemoryPlan(
        weights=sizes.weights,
        kv=kv,
        kv_read=kv_read,
        encoder=encoder,
        prefill=prefill,
        decoding=decoding + (widened if batch >= WIDENED_FROM else 0),
        buffers=min(KEPT_BUFFERS, encoder + kv + prefill + decoding),  # of what is gone, all that may be kept
        batch=batch,
        positions=positions,
    )


def _room(positions: int, limit: int | None) -> int:
    """Positions that a cache has room for once it holds so many."""
    room = -(-positions // GROWTH) * GROWTH
    return room if limit is None else min(room, limit)


VARIANTS: dict[str, Recipe | None] = {
    "16 bits": None, "8 bits": Recipe(Bits(8)), "6 bits": Recipe(Bits(6)), "4 bits": Recipe(Bits(4)),
}  # fmt: skip
ROWS = ("weights", "kv", "encoder", "prefill", "decoding", "buffers", "peak", "all")
NAMES = (
    "weights",
    "keys and values",
    "encoding audio",
    "reading prompts",
    "choosing tokens",
    "buffers kept",
    "peak",
    "all",
)


def table(plans: Mapping[str, MemoryPlan], memory: int | None) -> str:
    """Aligned text: a column for each plan, GB (10^9 bytes), and whether it fits into `memory`."""
    lines = [" " * 16 + "".join(name.rjust(10) for name in plans)]
    for row, name in zip(ROWS, NAMES, strict=True):
        lines.append(name.ljust(16) + "".join(f"{getattr(plan, row) / 1e9:10.3f}" for plan in plans.values()))
    if memory is not None:
        fits = "".join(("yes" if plan.all <= memory else "no").rjust(10) for plan in plans.values())
        lines.append(f"{'fits':16}{fits}")
    return "\n".join(lines)


def dtype_named(name: str) -> mx.Dtype:
    """float32, float16 or bfloat16. `ConfigError` for another."""
    if name not in ("float32", "float16", "bfloat16"):
        raise ConfigError(f"dtype: expected float32, float16 or bfloat16, found {name!r:.40}")
    return getattr(mx, name)
