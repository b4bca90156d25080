"""Patches by gradient: what patching every position, head or channel would restore, from one pass and its gradient.

Attribution patching (Nanda 2023; Syed, Rager and Conmy 2023): a patch moves an activation from its corrupt to its clean
value, and to first order a measure moves by the gradient times that. It is an estimate: `patching` is the measurement.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from ..choices import Measure
from ..errors import ConfigError
from ..model import StepAudio2
from .names import FIXED, GLOSSARY, activation_names, matching, pattern_of
from .patching import FORCED, RunPair, run_pair
from .recorder import BYTE_LIMIT, Recorder
from .running import by_position, forced_logits, forced_pass


@dataclass(frozen=True, eq=False)
class PatchEstimates:
    """What patches of the decoder are estimated to change.

    Attributes
    ----------
    measure : of the numbers that follow.
    clean, corrupt : of the two runs.
    values : activation -> (positions, channels) or (heads, positions, channels), by how much patching this one number
        would move the measure; sums are estimates of patches of more.
    """

    measure: Measure
    clean: float
    corrupt: float
    values: Mapping[str, np.ndarray]

    def by_position(self, name: str) -> np.ndarray:
        """(positions,) share of the difference that patching one position restores."""
        array = self._array(name)
        return self._share(array.sum(axis=(0, 2) if array.ndim == 3 else 1))

    def by_head(self, name: str) -> np.ndarray:
        """(heads,) share of the difference that patching one head restores."""
        array = self._array(name)
        if array.ndim != 3:
            raise ConfigError(f"{name} has no heads; expected q, k, v, rot_q or z")
        return self._share(array.sum(axis=(1, 2)))

    @property
    def recovered(self) -> dict[str, float]:
        """Of every activation, patched as a whole: share of the difference, 0 nothing, 1 all."""
        return {name: float(self._share(array.sum())) for name, array in self.values.items()}

    def table(self) -> str:
        """One line an activation."""
        width = max(map(len, self.values))
        return "\n".join(f"{name:{width}} {share:9.1%}" for name, share in self.recovered.items())

    def _array(self, name: str) -> np.ndarray:
        if name not in self.values:
            raise ConfigError(f"{name} was not estimated; there are {', '.join(self.values)}")
        return self.values[name]

    def _share(self, values: np.ndarray) -> np.ndarray:
        whole = self.clean - self.corrupt
        return values / whole if whole else np.full(np.shape(values), np.nan)


def estimate_patches(
    model: StepAudio2,
    clean,
    corrupt,
    names: str | Sequence[str] = "decoder.*.z",
    measure: Measure | str = Measure.LOGIT_DIFFERENCE,
    *,
    byte_limit: int = BYTE_LIMIT,
    **how: Any,
) -> PatchEstimates:
    """Estimate for every position, head and channel what `patch_between` would restore there.

    Parameters
    ----------
    model, clean, corrupt, **how : as in `run_pair`.
    names : activations of the decoder with channels at every position, as patterns over `names.GLOSSARY`.
    measure : {"logit_difference", "probability"}, as in `patch_between`; those of what is generated have no gradient.
    byte_limit : most bytes kept of either run.

    Raises
    ------
    ConfigError : as `run_pair`; a measure without a gradient; names of anything else.
    """
    wanted = Measure.of(measure, "measure")
    if wanted not in FORCED:
        raise ConfigError(f"estimate_patches: {wanted} has no gradient; expected {' or '.join(FORCED)}")
    chosen = _smooth(model, names)
    pair = run_pair(model, clean, corrupt, chosen, byte_limit=byte_limit, **how)
    recorder, n = Recorder(model.config, chosen, byte_limit=byte_limit), len(pair.layout.prompt.tokens)
    forced_logits(model, pair.layout, pair.tokens, pair.fault, recorder, pair.embeddings)
    found = by_position(recorder, n, n + len(pair.tokens) - 1, ())
    gradients = mx.grad(lambda shifts: _shifted(pair, wanted, dict(zip(chosen, shifts, strict=True))))(
        [mx.zeros(found[name].shape) for name in chosen]
    )
    mx.eval(gradients)
    values = {
        name: (pair.donor[name] - found[name])[0].astype(np.float64) * np.array(gradient)[0]
        for name, gradient in zip(chosen, gradients, strict=True)
    }
    return PatchEstimates(wanted, pair.clean(wanted), pair.corrupt(wanted), values)


def _smooth(model: StepAudio2, names: str | Sequence[str]) -> list[str]:
    """The activations that are meant; refuses those that a gradient does not reach."""
    patterns = (names,) if isinstance(names, str) else tuple(names)
    meant = frozenset().union(*matching(patterns, model.config).values()) - set(FIXED)
    axes = {name: GLOSSARY[pattern_of(name)].axes for name in activation_names(model.config) if name in meant}
    wrong = [n for n, a in axes.items() if not n.startswith("decoder.") or a[-2] != "n" or a[-1] == "L"]
    if wrong or not axes:
        raise ConfigError(
            "estimate_patches: expected activations of the decoder with channels at every position, such as "
            f"decoder.*.z, found {', '.join(wrong[:4]) or 'none'}"
        )
    return list(axes)


def _shifted(pair: RunPair, measure: Measure, shifts: Mapping[str, mx.array]) -> mx.array:
    """The measure of the corrupt run with something added to activations."""

    def tap(name: str, x: mx.array) -> mx.array | None:
        return x + shifts[name].astype(x.dtype) if name in shifts else None

    at = forced_pass(pair.model, pair.layout, pair.tokens, pair.fault, tap, pair.embeddings)[pair.step]
    clean = pair.tokens[pair.step]
    if measure == Measure.LOGIT_DIFFERENCE:
        return at[clean] - at[pair.instead]
    return mx.softmax(at)[clean]
