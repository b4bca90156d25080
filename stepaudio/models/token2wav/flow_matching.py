"""Conditional flow matching: integrate the estimator's velocity from noise to a mel, with classifier-free guidance.

The initial noise is an argument, and so is the state of a chunked run, which is handed back; nothing is kept here.
Knows no codes and no voices.

Reference: `flow_matching.py` of StepFun's token2wav; flow matching after Lipman et al. 2023, guidance after Ho and
Salimans 2022.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ...choices import shown
from ...schema import require, require_positive
from ..tap import Tap, emit, named
from .dit import DiT, DitConfig, DitState

MOST_STEPS = 1000  # each is a pass of the estimator; the reference takes 10
MOST_TEMPERATURE = 16.0  # far beyond any state that the estimator was trained on
MOST_GUIDANCE = 4096.0  # beyond, the difference of two velocities keeps no digits of them in float32


@dataclass(frozen=True)
class CfmConfig:
    """The solver and the net that it integrates.

    Parameters
    ----------
    inference_cfg_rate : float, 0 … 4096
        Guidance rate r: the velocity is (1 + r) conditional - r unconditional.
    estimator : DitConfig
    n_steps : int, 1 … 1000
        Euler steps unless a run asks for others. The published files do not say: the reference takes 10.
    temperature : float, above 0, at most 16
        Standard deviation of the noise at t = 0. Flows are trained with 1, which the reference takes here too.

    Raises
    ------
    ConfigError
        A number outside these ranges.
    """

    inference_cfg_rate: float
    estimator: DitConfig
    n_steps: int = 10
    temperature: float = 1.0

    def __post_init__(self):
        require_positive(self, "decoder", ["n_steps"], MOST_STEPS)
        require_positive(self, "decoder", ["temperature"])
        require(
            self.temperature <= MOST_TEMPERATURE,
            f"decoder.temperature: must not be above {MOST_TEMPERATURE:.0f}, found {shown(self.temperature)}",
        )
        require(
            0 <= self.inference_cfg_rate <= MOST_GUIDANCE,
            f"decoder.inference_cfg_rate: must not be negative or above {MOST_GUIDANCE:.0f}, found "
            f"{shown(self.inference_cfg_rate)}",
        )


def time_grid(n_steps: int) -> np.ndarray:
    """1 - cos(pi i / 2n) for i = 0…n, float32: short steps near the noise, long ones near the mel."""
    return 1 - np.cos(np.linspace(0, 1, n_steps + 1, dtype=np.float32) * np.float32(0.5 * np.pi))


def euler_steps(n_steps: int) -> list[tuple[float, float]]:
    """(t, dt) of every step; t is summed up in float32 as in the reference, so that it drifts as there."""
    grid = time_grid(n_steps)
    t, steps = grid[0], []
    for following in grid[1:]:
        dt = following - t
        steps.append((float(t), float(dt)))
        t = t + dt
    return steps


class CausalConditionalCFM(nn.Module):
    """The solver and the estimator that it integrates."""

    def __init__(self, config: CfmConfig):
        super().__init__()
        self.estimator = DiT(config.estimator)
        self._rate = config.inference_cfg_rate

    def __call__(
        self,
        x: mx.array,
        mu: mx.array,
        speaker: mx.array,
        cond: mx.array,
        n_steps: int,
        past: tuple[DitState, ...] | None = None,
        keep: bool = False,
        tap: Tap | None = None,
    ):
        """Solve from noise x at t = 0 to a mel at t = 1 by Euler's method.

        Parameters
        ----------
        x, mu, cond : (B, T, M) noise, the encoder's mel, the prompt mel. speaker : (B, M).
        n_steps : >= 1, estimator calls (each for 2 B rows: with conditions, and with all of them zero).
        past : one estimator state per step; None for a whole sequence or a first chunk.
        keep : return the states after these frames; costs memory for all steps.

        Returns
        -------
        (B, T, M), and one state per step (none unless `keep`).
        """
        mu, speaker, cond = (mx.concatenate([a, mx.zeros_like(a)]) for a in (mu, speaker, cond))
        states: list[DitState] = []
        steps = euler_steps(n_steps)
        moments = self.estimator.moments(mx.array([t for t, _ in steps]))
        for i, ((_, dt), now) in enumerate(zip(steps, moments, strict=True)):
            both = mx.concatenate([x, x])
            at = named(tap, f"{i}.")
            v, state = self.estimator(both, mu, now, speaker, cond, past[i] if past else None, named(at, "dit."))
            v = emit(at, "velocity", v)
            conditional, unconditional = mx.split(v, 2)
            x = emit(at, "x", x + dt * ((1 + self._rate) * conditional - self._rate * unconditional))
            if keep:
                states.append(state)
            mx.eval(x, [a for block in (state if keep else ()) for a in block.arrays])  # the end of each Euler step
        return x, tuple(states)
