"""An adversary of the vocoder: a net that tells made sound from recorded sound by their spectra.

At three resolutions a small stack of two-dimensional convolutions reads the spectrum's logarithm and its real and
imaginary part with compressed magnitude, so that it sees noise, harmonics and phase; it gives a score for each place,
after the multi-resolution discriminators of Jang et al. (2021) and the complex ones of Défossez et al. (2022). The
scores are trained by least squares (Mao et al. 2017); the vocoder is also asked for the same activations (feature
matching, Kumar et al. 2019).

B examples, n samples, F frames and K bins of a spectrum, C channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from .features import frames_of, windowed_spectrum
from .fit import Batch, Fit, Metrics, Schedule

RESOLUTIONS = ((512, 128), (1024, 256), (2048, 512))  # samples: window, hop
CHANNELS = 32
COMPRESSION = 0.3  # exponent of the magnitude of the complex inputs
QUIET = 1e-3  # added to magnitudes before the logarithm, for a window of 1024
SLOPE = 0.1  # of the leaky rectifiers below 0
ALONE, RAMP = 200, 500  # steps that the adversary learns alone, and over which its weight then rises
FEATURES = 2.0  # weight of the distance between activations


class SpectrumCritic(nn.Module):
    """Scores of one resolution."""

    def __init__(self, size: int, hop: int, channels: int = CHANNELS):
        super().__init__()
        self._size, self._hop = size, hop
        wide, near = (3, 9), (3, 3)
        self.layers = [
            nn.Conv2d(3, channels, wide, padding=(1, 4)),
            *(nn.Conv2d(channels, channels, wide, stride=(1, 2), padding=(1, 4)) for _ in range(3)),
            nn.Conv2d(channels, channels, near, padding=1),
        ]
        self.score = nn.Conv2d(channels, 1, near, padding=1)

    def __call__(self, wave: mx.array) -> tuple[mx.array, list[mx.array]]:
        """(B, n) -> scores (B, F, places, 1), and the activations before them."""
        spectrum = windowed_spectrum(frames_of(wave, self._size, self._hop), self._size)
        scale = (1024 / self._size) ** 0.5
        real, imaginary = spectrum.real * scale, spectrum.imag * scale
        magnitude = mx.sqrt(mx.square(real) + mx.square(imaginary) + 1e-9)
        shrink = (magnitude + QUIET) ** (COMPRESSION - 1)
        x = mx.stack([0.3 * mx.log(magnitude + QUIET) + 1, real * shrink, imaginary * shrink], axis=-1)
        seen = []
        for layer in self.layers:
            x = nn.leaky_relu(layer(x), SLOPE)
            seen.append(x)
        return self.score(x), seen


class Critics(nn.Module):
    """One critic for each resolution."""

    def __init__(self, channels: int = CHANNELS):
        super().__init__()
        self.critics = [SpectrumCritic(size, hop, channels) for size, hop in RESOLUTIONS]

    def __call__(self, wave: mx.array) -> list[tuple[mx.array, list[mx.array]]]:
        """(B, n) -> for each resolution its scores and activations."""
        return [critic(wave) for critic in self.critics]


class Adversary:
    """The critics, how they are trained, and what they say of a sound.

    Parameters
    ----------
    schedule : Schedule
        Of the critics, which is squeezed to the same progress as the vocoder's.
    weight : float > 0
        Of what it finds wrong, in the vocoder's loss.
    made : (params, batch) -> (B, n)
        Sound by a vocoder with these weights.
    true : batch -> (B, n)
        The recorded sound at the same place.
    """

    def __init__(
        self,
        schedule: Schedule,
        weight: float,
        made: Callable[[Any, Batch], mx.array],
        true: Callable[[Batch], mx.array],
    ):
        mx.random.seed(schedule.seed + 1)
        self._critics, self._weight, self._made, self._true = Critics(), weight, made, true
        self.fit = Fit(schedule, self._critics.parameters(), self._loss, compiled=False)

    def shown(self, batch: Batch) -> dict[str, Any]:
        """The batch with the critics' weights and what their word counts at this step."""
        weight = self._weight * min(1.0, max(0.0, (self.fit.step_number - ALONE) / RAMP))
        return {**batch, "critics": self.fit.flat.split(self.fit.state["params"]), "weight": mx.array(weight)}

    def opinion(self, made: mx.array, true: mx.array, batch: dict[str, Any]) -> tuple[mx.array, Metrics]:
        """What the vocoder is asked to lessen: scores below 1, and activations unlike those of the true sound."""
        self._critics.update(batch["critics"])
        scores = features = mx.array(0.0)
        for (score, seen), (_, expected) in zip(self._critics(made), self._critics(true), strict=True):
            scores = scores + mx.square(1 - score).mean() / len(RESOLUTIONS)
            for one, other in zip(seen, expected, strict=True):
                other = mx.stop_gradient(other)
                apart = mx.abs(one - other).mean() / (mx.abs(other).mean() + 1e-3)
                features = features + apart / len(seen) / len(RESOLUTIONS)
        return batch["weight"] * (scores + FEATURES * features), {"scores": scores, "features": features}

    def _loss(self, params: Any, batch: Batch) -> tuple[mx.array, Metrics]:
        self._critics.update(params)
        right = wrong = mx.array(0.0)
        pairs = zip(self._critics(batch["true"]), self._critics(batch["made"]), strict=True)
        for (true, _), (made, _) in pairs:
            right = right + mx.square(1 - true).mean() / len(RESOLUTIONS)
            wrong = wrong + mx.square(made).mean() / len(RESOLUTIONS)
        return right + wrong, {"right": right, "wrong": wrong}

    def step(self, params: Any, batch: Batch, progress: float) -> Metrics:
        """The critics learn from the sound that `params` make of a batch."""
        made = mx.stop_gradient(self._made(params, batch))
        found = self.fit.step({"made": made, "true": self._true(batch)}, progress)
        return {"critics_right": found["right"], "critics_wrong": found["wrong"]}
