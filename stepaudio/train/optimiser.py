"""AdamW over all parameters as one vector, the averaged weights beside it, and the mean of several saved states."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import numpy as np
from mlx.utils import tree_unflatten

from ..checkpoints.header import read_header
from ..checkpoints.tensors import lazy_arrays_with_metadata
from ..errors import DataError
from ..files import replaced_file
from ..models.parameters import named_arrays

CHECKPOINT = "checkpoint"  # folder of a run with its saved state
STATE_FILE = "state.safetensors"
PLACE = 64  # values: 256 bytes, as memory is allocated on an accelerator
State = dict[str, mx.array]  # of the names in `STATE`, all (n,)
STATE = {"params", "average", "first", "second"}  # the weights, their running average, moments of the gradient


class Flat:
    """A tree of arrays as one vector and back: one optimiser step is then a dozen operations, not thousands.

    Each array begins at a multiple of `PLACE` values, as an array of its own would: CUDA's matrix products refuse
    operands that do not begin at a multiple of 16 bytes. What lies between them is zero, and stays so.
    """

    def __init__(self, tree: Any):
        pairs = named_arrays(tree)
        self.names, self.shapes = [n for n, _ in pairs], [v.shape for _, v in pairs]
        sizes = np.array([v.size for _, v in pairs], np.int64)
        self._gaps = (-sizes % PLACE).tolist()
        self.starts = np.concatenate([[0], np.cumsum(sizes + self._gaps)[:-1]]).tolist()
        self._cuts = sorted({*self.starts, *(self.starts + sizes).tolist()} - {0})

    def join(self, tree: Any) -> mx.array:
        """All values of a tree of this shape as one float32 vector."""
        parts = []
        for (_, value), gap in zip(named_arrays(tree), self._gaps, strict=True):
            parts.append(value.reshape(-1).astype(mx.float32))
            if gap:
                parts.append(mx.zeros((gap,)))
        return mx.concatenate(parts)

    def split(self, vector: mx.array) -> dict:
        """The tree again, in the vector's dtype."""
        parts = dict(zip([0, *self._cuts], mx.split(vector, self._cuts), strict=True))
        pairs = [(n, parts[at].reshape(s)) for n, at, s in zip(self.names, self.starts, self.shapes, strict=True)]
        return cast(dict, tree_unflatten(pairs))


def fresh_state(params: mx.array) -> State:
    """The state before the first step: the average equals the parameters, the moments are zero."""
    return {
        "params": params,
        "average": params + 0,
        "first": mx.zeros_like(params),
        "second": mx.zeros_like(params),
    }


def adamw(state: State, gradient: mx.array, t: int, rate: float | mx.array, decay: mx.array, average: float) -> State:
    """One step of AdamW (Loshchilov and Hutter 2019), gradient norm clipped to 1, then of the running average.

    Parameters
    ----------
    state, gradient : vectors of all parameters.
    t : number of this step, from 1. rate : learning rate, of all or (n,) of each.
    decay : (n,) weight decay of each parameter, relative to the rate.
    average : share of the old average that stays, less in the first steps.
    """
    gradient = gradient * mx.minimum(1.0, 1.0 / (mx.linalg.norm(gradient) + 1e-6))
    first = 0.9 * state["first"] + 0.1 * gradient
    second = 0.98 * state["second"] + 0.02 * gradient * gradient
    step = (first / (1 - 0.9**t)) / (mx.sqrt(second / (1 - 0.98**t)) + 1e-8)
    params = state["params"] * (1 - rate * decay) - rate * step
    keep = min(average, t / (t + 10))
    return {
        "params": params,
        "average": keep * state["average"] + (1 - keep) * params,
        "first": first,
        "second": second,
    }


def write_state(folder: Path, state: State, step: int) -> None:
    """Write the state and its step number into a folder; an older one stays until the new one is complete."""
    folder.mkdir(parents=True, exist_ok=True)
    with replaced_file(folder / STATE_FILE) as aside:
        mx.save_safetensors(str(aside), state, {"step": str(step)})


def read_state(folder: Path) -> tuple[State, int] | None:
    """The state in a folder and its step number; None if there is none.

    Raises
    ------
    WeightsError : the file cannot be read.
    DataError : it is no state of a run.
    """
    path = folder / STATE_FILE
    if not path.exists():
        return None
    read_header(path)
    arrays, meta = lazy_arrays_with_metadata(path)
    if set(arrays) != STATE or not meta.get("step", "").isdecimal():
        raise DataError(f"{path}: no state of a run; expected {', '.join(sorted(STATE))} and the number of a step")
    return arrays, int(meta["step"])


def average_states(folders: list[Path], out: Path) -> None:
    """Write the mean of saved states, for a run to go on from: of their averaged weights, their moments, their steps.

    Raises
    ------
    DataError : a folder without a saved state, or states of nets of different sizes.
    """
    states, steps = [], []
    for folder in folders:
        found = read_state(folder)
        if found is None:
            raise DataError(f"{folder}: no {STATE_FILE} in it; expected the `checkpoint` folder of a run")
        states.append(found[0] | {"params": found[0]["average"]})
        steps.append(found[1])
    sizes = {state["params"].size for state in states}
    if len(sizes) > 1:
        raise DataError(f"{', '.join(map(str, folders))}: states of {sizes} weights have no mean")
    mean = {name: mx.stack([state[name] for state in states]).sum(0) / len(states) for name in states[0]}
    write_state(out, mean, sum(steps) // len(steps))
