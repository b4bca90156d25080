"""Training of sparse autoencoders on recorded activations: TopK (Gao et al. 2024), with dead features begun anew.

A feature that is never active any more learns nothing. It is given the direction of what the others leave of a row,
drawn by its squared error, and starts again (Bricken et al., "Towards monosemanticity", 2023).

Every step depends on the settings and its number alone, so that an interrupted run goes on as if nothing had happened,
bit by bit.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from ..checkpoints.header import read_header
from ..checkpoints.tensors import lazy_arrays_with_metadata
from ..choices import is_count, is_number, shown
from ..errors import ConfigError, WeightsError
from ..files import reason, replaced_file
from .donor import digest_of
from .frames import Frames
from .sparse_autoencoder import SparseAutoencoder, top_k

STATE_FILE = "sae_training.safetensors"
KEYS = ("W_enc", "b_enc", "W_dec", "b_dec")
SAVE_EVERY = 500  # steps between states
FALLING = 0.2  # share of the steps, the last ones, over which the rate falls to zero
TELL_EVERY = 100  # steps between calls of `progress`

Params = dict[str, mx.array]


@dataclass(frozen=True)
class SAEOptions:
    """How a sparse autoencoder is trained.

    Attributes
    ----------
    features : from 1; d_sae.
    k : 1 to `features`, most of them active at once.
    steps, batch : from 1; steps of Adam, and rows drawn for each.
    rate : above 0; of learning. It falls to zero over the last fifth of the steps.
    dead_after : from 1; a feature that has not been active for as many steps is dead, and begins anew; none does in the
        last fifth of the steps.
    seed : from 0.

    Raises
    ------
    ConfigError
        A number out of range.
    """

    features: int = 1024
    k: int = 16
    steps: int = 2000
    batch: int = 256
    rate: float = 1e-3
    dead_after: int = 100
    seed: int = 0

    def __post_init__(self):
        for key, least in (("features", 1), ("k", 1), ("steps", 1), ("batch", 1), ("dead_after", 1), ("seed", 0)):
            if not is_count(getattr(self, key), least):
                raise ConfigError(f"{key}: expected a whole number from {least}, found {shown(getattr(self, key))}")
        if self.k > self.features:
            raise ConfigError(f"k: expected at most {self.features}, the number of features, found {self.k}")
        if not is_number(self.rate) or not 0 < self.rate < 1:
            raise ConfigError(f"rate: expected a number between 0 and 1, found {shown(self.rate)}")


class SAEStep(NamedTuple):
    """What a step of training was like: its number from 1, the share of variance that is left, and dead features."""

    step: int
    left: float
    dead: int


def train_sae(
    frames: np.ndarray | Sequence[Frames],
    options: SAEOptions | None = None,
    *,
    name: str = "",
    model_name: str = "",
    folder: str | Path | None = None,
    progress: Callable[[SAEStep], None] | None = None,
) -> SparseAutoencoder:
    """Train a sparse autoencoder on activations.

    Parameters
    ----------
    frames : (rows, channels) finite, or what `audio_frames` gives of one activation, a list over recordings.
    options : SAEOptions
    name, model_name : of the activation and the model, kept with the result.
    folder : where the state of training is kept. A run that finds one there of the same options and activations goes
        on from it.
    progress : called every 100 steps and at the end.

    Returns
    -------
    SparseAutoencoder
        Directions of length 1; for activations as they are, whatever their scale.

    Raises
    ------
    ConfigError
        No rows, rows all alike or not finite, or a folder with the state of another run.
    WeightsError
        The state cannot be read or written.
    """
    options = SAEOptions() if options is None else options
    if not isinstance(options, SAEOptions):
        raise ConfigError(f"options: expected SAEOptions, found {shown(options)}")
    x = _stacked(frames)
    centre = x.mean(axis=0, dtype=np.float64).astype(np.float32)
    scale = float(np.sqrt(((x - centre) ** 2).sum(axis=1).mean(dtype=np.float64) / x.shape[1]))
    if not scale > 0:
        raise ConfigError("sparse autoencoder: expected rows that differ, found one value throughout")
    x = (x - centre) / np.float32(scale)  # so that options mean the same for every activation
    run = {"options": json.dumps(asdict(options), sort_keys=True), "rows": digest_of(x)}
    state, done = _begin(x, options), 0
    if folder is not None:
        state, done = _resumed(Path(folder), run, state)
    step = _step_function(options)
    for i in range(done, options.steps):
        rows = np.random.default_rng([options.seed, 1, i]).integers(len(x), size=options.batch)
        state, left = step(state, mx.array(x[rows]), mx.array(i))
        mx.eval(state, left)
        dead = np.array(state["quiet"]) >= options.dead_after
        if dead.any() and i < (1 - FALLING) * options.steps:
            state = _begun_anew(state, dead, x[rows], options, i)
        last = i + 1 == options.steps
        if folder is not None and (last or (i + 1) % SAVE_EVERY == 0):
            _write(Path(folder), run, state, i + 1)
        if progress is not None and (last or (i + 1) % TELL_EVERY == 0):
            progress(SAEStep(i + 1, float(np.array(left)), int(dead.sum())))
    W_enc, b_enc, W_dec, b_dec = (np.array(state[key]) for key in KEYS)
    b_dec = centre + scale * b_dec
    return SparseAutoencoder(W_enc, scale * b_enc, W_dec, b_dec, options.k, name, model_name)


def _stacked(frames: np.ndarray | Sequence[Frames]) -> np.ndarray:
    """(rows, channels) float32, checked."""
    if not isinstance(frames, np.ndarray):
        parts = list(frames) if isinstance(frames, (list, tuple)) else []
        if not parts or not all(isinstance(part, Frames) for part in parts):
            raise ConfigError(
                f"frames: expected (rows, channels) or a list of what audio_frames gives of one name, found "
                f"{shown(frames)}"
            )
        if len({part.values.shape[1] for part in parts}) > 1:
            raise ConfigError("frames: expected one activation of one model, found several numbers of channels")
        frames = np.concatenate([part.values for part in parts])
    if frames.ndim != 2 or not frames.size or frames.dtype.kind not in "fiu":
        raise ConfigError(f"frames: expected (rows, channels) numbers, found {frames.dtype} {frames.shape}")
    if not np.isfinite(frames).all():
        raise ConfigError("frames: expected finite numbers, found NaN or infinity")
    return frames.astype(np.float32)


def _begin(x: np.ndarray, options: SAEOptions) -> Params:
    """Parameters before the first step, moments of Adam, and for how many steps each feature has been quiet.

    Directions are rows drawn from the data, for with few steps random ones stay dead; the encoder begins as the
    decoder turned over, as strong as reconstructs best.
    """
    draw = np.random.default_rng([options.seed, 0])
    noise = draw.normal(size=(options.features, x.shape[1])).astype(np.float32)
    directions = x[draw.integers(len(x), size=options.features)] + np.float32(0.1) * noise
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    some = mx.array(x[draw.integers(len(x), size=options.batch)])
    made = top_k(some @ mx.array(directions.T), options.k) @ mx.array(directions)
    strength = (some * made).sum() / mx.maximum(mx.square(made).sum(), 1e-12)
    first = {
        "W_enc": strength * mx.array(directions.T), "b_enc": mx.zeros(options.features),
        "W_dec": mx.array(directions), "b_dec": mx.zeros(x.shape[1]),
    }  # fmt: skip
    moments = {f"{m}.{key}": mx.zeros_like(first[key]) for m in ("first", "second") for key in KEYS}
    return first | moments | {"quiet": mx.zeros(options.features, mx.int32)}


def _loss(p: Params, x: mx.array, k: int) -> tuple[mx.array, mx.array]:
    """Share of the variance that is left, and which features were active."""
    features = top_k((x - p["b_dec"]) @ p["W_enc"] + p["b_enc"], k)
    error = x - (features @ p["W_dec"] + p["b_dec"])
    whole = mx.square(x - x.mean(axis=0)).sum() + 1e-12
    return mx.square(error).sum() / whole, (features > 0).any(axis=0)


def _begun_anew(state: Params, dead: np.ndarray, rows: np.ndarray, options: SAEOptions, i: int) -> Params:
    """The state with new directions for dead features: errors of rows, drawn by their squares."""
    p = {key: np.array(state[key]) for key in KEYS}
    made = np.array(top_k(mx.array((rows - p["b_dec"]) @ p["W_enc"] + p["b_enc"]), options.k)) @ p["W_dec"] + p["b_dec"]
    error = rows - made
    weight = np.square(error).sum(axis=1, dtype=np.float64)
    if not weight.sum() > 0:
        return state
    draw = np.random.default_rng([options.seed, 2, i])
    new = error[draw.choice(len(rows), size=int(dead.sum()), p=weight / weight.sum())]
    new = new / np.maximum(np.linalg.norm(new, axis=1, keepdims=True), 1e-12)
    reads = np.linalg.norm(p["W_enc"], axis=0)[~dead]
    p["W_dec"][dead], p["b_enc"][dead] = new, 0
    p["W_enc"][:, dead] = new.T * (np.median(reads) if len(reads) else 1)
    moments = {key: np.array(state[key]) for key in state if "." in key}
    for key, array in moments.items():
        if key.endswith("W_enc"):
            array[:, dead] = 0
        elif not key.endswith("b_dec"):
            array[dead] = 0
    found = {key: mx.array(array) for key, array in (p | moments).items()}
    return found | {"quiet": mx.where(mx.array(dead), 0, state["quiet"])}


def _step_function(options: SAEOptions) -> Callable[[Params, mx.array, mx.array], tuple[Params, mx.array]]:
    """(state, rows, number) -> (state, share of variance left)."""
    gradient_of = mx.value_and_grad(lambda p, x: _loss(p, x, options.k))

    def step(state: Params, x: mx.array, i: mx.array) -> tuple[Params, mx.array]:
        params = {key: state[key] for key in KEYS}
        (left, active), gradient = gradient_of(params, x)
        # Length of a direction is no freedom: what would change it is taken off, and it is put back to 1 below.
        along = (gradient["W_dec"] * params["W_dec"]).sum(axis=1, keepdims=True)
        gradient["W_dec"] = gradient["W_dec"] - along * params["W_dec"]
        t = (i + 1).astype(mx.float32)
        rate = options.rate * mx.minimum(1.0, (1 - i / options.steps) / FALLING)
        found: Params = {}
        for key in KEYS:
            m = 0.9 * state[f"first.{key}"] + 0.1 * gradient[key]
            v = 0.999 * state[f"second.{key}"] + 0.001 * mx.square(gradient[key])
            move = (m / (1 - 0.9**t)) / (mx.sqrt(v / (1 - 0.999**t)) + 1e-8)
            found |= {key: params[key] - rate * move, f"first.{key}": m, f"second.{key}": v}
        found["W_dec"] = found["W_dec"] / mx.linalg.norm(found["W_dec"], axis=1, keepdims=True)
        return found | {"quiet": mx.where(active, 0, state["quiet"] + 1)}, left

    return mx.compile(step)


# ---------------------------------------------------------------- the state of a run


def _resumed(folder: Path, run: dict[str, str], begin: Params) -> tuple[Params, int]:
    """The state in the folder and how many steps it has behind it; the given one where there is none."""
    path = folder / STATE_FILE
    if not path.exists():
        return begin, 0
    read_header(path)
    arrays, meta = lazy_arrays_with_metadata(path)
    for key, what in (("options", "options"), ("rows", "activations")):
        if meta.get(key) != run[key]:
            raise ConfigError(f"{path}: is the state of a run with other {what}; name another folder, or remove it")
    if {k: v.shape for k, v in arrays.items()} != {k: v.shape for k, v in begin.items()}:
        raise WeightsError(f"{path}: its arrays are not those of this run; remove it")
    mx.eval(arrays)  # before another state takes the file's name
    return arrays, int(meta["step"])


def _write(folder: Path, run: dict[str, str], state: Params, step: int) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replaced_file(folder / STATE_FILE) as aside:
            mx.save_safetensors(str(aside), state, run | {"step": str(step)})
    except (OSError, RuntimeError) as error:  # RuntimeError: how mlx reports a failed write
        raise WeightsError(f"{folder}: the state of training could not be written ({reason(error)})") from None
