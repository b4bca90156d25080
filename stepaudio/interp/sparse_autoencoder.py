"""Sparse autoencoders: an activation as a sum of few directions out of many. Encoding, reading, changing, files.

TopK as in Gao et al., "Scaling and evaluating sparse autoencoders" (2024): of d_sae features the k largest are kept,
of these the positive ones. Files have SAELens' layout (6.0): `cfg.json` and `sae_weights.safetensors`. How they are
trained is in `sae_training`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import mlx.core as mx
import numpy as np

from ..checkpoints.tensors import read_arrays
from ..choices import is_count, is_number, shown
from ..errors import ConfigError, DataError, WeightsError
from ..files import move_into_place, reason, staging_folder
from ..models.tap import Tap
from ..reading import read_object
from .edits import Edits, add
from .frames import Frames

CONFIG_FILE, WEIGHTS_FILE = "cfg.json", "sae_weights.safetensors"
LAYOUT = "6.0.0"  # the version of SAELens from which its configs have this form
EXPECTED = "expected a folder with cfg.json and sae_weights.safetensors, as SAELens writes a topk SAE"
ROWS = 4096  # encoded at a time


class FeaturePlace(NamedTuple):
    """Where a feature is active: recording, second at which the frame begins, and how strongly."""

    clip: int
    second: float
    activation: float


@dataclass(frozen=True, eq=False)
class SparseAutoencoder:
    """A trained TopK autoencoder of one activation; immutable.

    Attributes
    ----------
    W_enc : (d_in, d_sae), b_enc : (d_sae,), what each feature reads.
    W_dec : (d_sae, d_in), b_dec : (d_in,), what each feature writes, and what is there without any.
    k : most features that are active at once.
    name : of the activation, for example "encoder.3.resid_post".
    model_name : of the model it comes from.
    subtract : whether b_dec is taken off the input before it is encoded.

    Raises
    ------
    ConfigError
        Shapes that do not fit, numbers that are not finite, or k not between 1 and d_sae.
    """

    W_enc: np.ndarray
    b_enc: np.ndarray
    W_dec: np.ndarray
    b_dec: np.ndarray
    k: int
    name: str = ""
    model_name: str = ""
    subtract: bool = True

    def __post_init__(self):
        for key in ("W_enc", "b_enc", "W_dec", "b_dec"):
            array = np.array(getattr(self, key), np.float32)
            if not np.isfinite(array).all():
                raise ConfigError(f"sparse autoencoder: {key}: expected finite numbers, found NaN or infinity")
            array.flags.writeable = False
            object.__setattr__(self, key, array)
        d_in, d_sae = self.W_enc.shape if self.W_enc.ndim == 2 else (0, 0)
        for key, shape in (("b_enc", (d_sae,)), ("W_dec", (d_sae, d_in)), ("b_dec", (d_in,))):
            found = getattr(self, key).shape
            if found != shape or not d_in:
                raise ConfigError(
                    f"sparse autoencoder: {key}: expected {shape} beside W_enc {self.W_enc.shape}, found {found}"
                )
        if not is_count(self.k, 1) or self.k > d_sae:
            raise ConfigError(f"sparse autoencoder: k: expected 1 to {d_sae}, found {shown(self.k)}")

    @property
    def d_in(self) -> int:
        """Channels of the activation."""
        return self.W_enc.shape[0]

    @property
    def d_sae(self) -> int:
        """Number of features."""
        return self.W_enc.shape[1]

    def __repr__(self) -> str:
        return f"SparseAutoencoder({self.name or 'no name'}, {self.d_in} -> {self.d_sae}, k={self.k})"

    # ---- encoding ----

    def encode(self, x: np.ndarray) -> np.ndarray:
        """Features of activations.

        Parameters
        ----------
        x : (…, d_in), finite.

        Returns
        -------
        (…, d_sae) float32, at least 0, at most k of each row above it.
        """
        rows = self._rows(x, self.d_in)
        parts = [np.array(self._features(mx.array(rows[i : i + ROWS]))) for i in range(0, len(rows), ROWS)]
        return np.concatenate([np.zeros((0, self.d_sae), np.float32), *parts]).reshape(*np.shape(x)[:-1], self.d_sae)

    def decode(self, features: np.ndarray) -> np.ndarray:
        """Activations (…, d_in) of features (…, d_sae)."""
        rows = self._rows(features, self.d_sae)
        return (rows @ self.W_dec + self.b_dec).reshape(*np.shape(features)[:-1], self.d_in)

    def explained(self, x: np.ndarray) -> float:
        """Share of the variance of activations (…, d_in) that their reconstruction keeps; 1 is all of it.

        Variance is counted around the mean of `x`, so that below 0 the mean would do better.
        """
        rows = self._rows(x, self.d_in).astype(np.float64)
        left = ((rows - self.decode(self.encode(rows))) ** 2).sum()
        whole = ((rows - rows.mean(axis=0)) ** 2).sum()
        if not whole:
            raise ConfigError("explained variance: expected activations that differ, found one value throughout")
        return float(1 - left / whole)

    def _rows(self, x: Any, channels: int) -> np.ndarray:
        try:
            array = np.asarray(x, np.float32)
        except (TypeError, ValueError):
            raise ConfigError(f"sparse autoencoder: expected numbers, found {type(x).__name__}") from None
        if array.ndim < 1 or array.shape[-1] != channels:
            raise ConfigError(f"sparse autoencoder: expected (…, {channels}) numbers, found shape {array.shape}")
        if not np.isfinite(array).all():
            raise ConfigError("sparse autoencoder: expected finite numbers, found NaN or infinity")
        return array.reshape(-1, channels)

    def _features(self, x: mx.array) -> mx.array:
        x = x - mx.array(self.b_dec) if self.subtract else x
        return top_k(x @ mx.array(self.W_enc) + mx.array(self.b_enc), self.k)

    # ---- reading ----

    def places(self, frames: Sequence[Frames], feature: int, n: int = 10, apart: float = 0.5) -> list[FeaturePlace]:
        """Where a feature is most active, the strongest first.

        Parameters
        ----------
        frames : this activation over the audio of each recording, as `audio_frames` gives it by name.
        feature : from 0.
        n : from 1, most places.
        apart : seconds, from 0; of a recording, places that lie nearer to a stronger one are left out.

        Returns
        -------
        list of FeaturePlace; fewer than n where the feature is active at fewer.
        """
        self._check_feature(feature)
        if not is_count(n, 1) or not is_number(apart) or not apart >= 0:
            raise ConfigError(f"places: expected n from 1 and apart from 0 s, found {shown(n)} and {shown(apart)}")
        if not isinstance(frames, (list, tuple)) or not all(isinstance(one, Frames) for one in frames):
            raise ConfigError(f"frames: expected a list of what audio_frames gives of one name, found {shown(frames)}")
        every = []
        for clip, one in enumerate(frames):
            active = self.encode(one.values)[:, feature]
            every += [FeaturePlace(clip, float(one.start[i]), float(active[i])) for i in np.flatnonzero(active)]
        found: list[FeaturePlace] = []
        for place in sorted(every, key=lambda p: (-p.activation, p.clip, p.second)):
            if len(found) < n and all(p.clip != place.clip or abs(p.second - place.second) >= apart for p in found):
                found.append(place)
        return found

    # ---- changing ----

    def add(self, feature: int, amount: float, **where: Any) -> Edits:
        """An edit that adds `amount` of a feature to the activation; `where` as `edits.zero` has it.

        A feature's own activations, such as `places` gives them, are the scale of the amount.
        """
        self._check_feature(feature)
        self._check_number("amount", amount)
        return add(self._edited(), amount * self.W_dec[feature], **where)

    def scaling(self, feature: int, factor: float = 0.0) -> Tap:
        """A tap that multiplies a feature wherever it is active: 0 ablates it. Give it as `tap` to `record`.

        Only what the feature writes is changed; what the autoencoder does not explain stays.
        """
        self._check_feature(feature)
        self._check_number("factor", factor)
        name = self._edited()
        direction = mx.array(self.W_dec[feature])

        def tap(at: str, x: mx.array) -> mx.array | None:
            if at != name:
                return None
            rows = x.transpose(0, 2, 1, 3) if x.ndim == 4 else x  # heads, if any, behind the positions
            flat = rows.reshape(-1, self.d_in).astype(mx.float32)
            flat = flat + (factor - 1) * self._features(flat)[:, feature, None] * direction
            changed = flat.reshape(rows.shape)
            return (changed.transpose(0, 2, 1, 3) if x.ndim == 4 else changed).astype(x.dtype)

        return tap

    def _check_feature(self, feature: int) -> None:
        if not is_count(feature) or feature >= self.d_sae:
            raise ConfigError(f"feature: expected 0 to {self.d_sae - 1}, found {shown(feature)}")

    @staticmethod
    def _check_number(what: str, value: Any) -> None:
        if not is_number(value) or not math.isfinite(value):
            raise ConfigError(f"{what}: expected a finite number, found {shown(value)}")

    def _edited(self) -> str:
        if not self.name:
            raise ConfigError("sparse autoencoder: it does not say of which activation it is; load it with name=")
        return self.name

    # ---- files ----

    def save(self, folder: str | Path) -> list[Path]:
        """Write a folder that SAELens loads: `SAE.load_from_disk(folder)`.

        Returns
        -------
        list of Path: weights and config, moved into place together.

        Raises
        ------
        WeightsError
            The folder cannot be written.
        """
        config = {
            "architecture": "topk", "d_in": self.d_in, "d_sae": self.d_sae, "k": self.k, "dtype": "float32",
            "device": "cpu", "apply_b_dec_to_input": self.subtract, "normalize_activations": "none",
            "reshape_activations": "none", "rescale_acts_by_decoder_norm": False,
            "metadata": {
                "sae_lens_version": LAYOUT, "sae_lens_training_version": None,
                "model_name": self.model_name, "hook_name": self.name,
            },
        }  # fmt: skip
        arrays = {key: mx.array(getattr(self, key)) for key in ("W_enc", "W_dec", "b_enc", "b_dec")}
        try:
            with staging_folder(folder, ".saving-") as aside:
                mx.save_safetensors(str(aside / WEIGHTS_FILE), arrays, metadata={"format": "pt"})
                (aside / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
                return move_into_place(aside, folder, [WEIGHTS_FILE, CONFIG_FILE], [CONFIG_FILE])
        except (OSError, RuntimeError) as error:  # RuntimeError: how mlx reports a failed write
            raise WeightsError(f"{folder}: the autoencoder could not be written ({reason(error)})") from None

    @classmethod
    def load(cls, folder: str | Path, name: str | None = None) -> Self:
        """Read a folder of a TopK autoencoder in SAELens' layout, of this version or of those before 6.0.

        Parameters
        ----------
        folder : str or Path
        name : of the activation, if the file's own name (`hook_name`) is another library's.

        Raises
        ------
        WeightsError
            Files that are missing or damaged, or tensors that do not fit the config.
        ConfigError
            Another architecture, inputs that would have to be normalised, or a k that is not there.
        """
        folder = Path(folder)
        config = read_object(folder / CONFIG_FILE, WeightsError, EXPECTED)
        try:
            arrays = read_arrays(folder / WEIGHTS_FILE)
        except DataError as error:
            raise WeightsError(str(error)) from None
        if missing := {"W_enc", "W_dec", "b_enc", "b_dec"} - set(arrays):
            raise WeightsError(f"{folder / WEIGHTS_FILE}: lacks {', '.join(sorted(missing))}; {EXPECTED}")
        kwargs = config.get("activation_fn_kwargs") or {}  # before 6.0
        k = config.get("k", kwargs.get("k") if isinstance(kwargs, dict) else None)
        activation = config.get("activation_fn_str", config.get("activation_fn"))
        if config.get("architecture") != "topk" and activation != "topk":
            raise ConfigError(
                f"{folder / CONFIG_FILE}: architecture: expected topk, found {shown(config.get('architecture'))}"
            )
        for key, accepted in (("normalize_activations", ("none", False)), ("reshape_activations", ("none",))):
            if config.get(key) is not None and config[key] not in accepted:
                raise ConfigError(f"{folder / CONFIG_FILE}: {key}: expected none, found {shown(config[key])}")
        if not isinstance(k, int) or not is_count(k, 1):
            raise ConfigError(f"{folder / CONFIG_FILE}: k: expected a whole number from 1, found {shown(k)}")
        W_enc, b_enc, W_dec = (arrays[key].astype(np.float32) for key in ("W_enc", "b_enc", "W_dec"))
        if config.get("rescale_acts_by_decoder_norm") and W_dec.ndim == 2:  # as if directions had length 1
            length = np.maximum(np.linalg.norm(W_dec, axis=1), 1e-8)
            if W_enc.shape[-1:] == b_enc.shape == length.shape:
                W_enc, b_enc, W_dec = W_enc * length, b_enc * length, W_dec / length[:, None]
        metadata = config.get("metadata") if isinstance(config.get("metadata"), dict) else config
        names = [metadata.get(key) if isinstance(metadata, dict) else None for key in ("hook_name", "model_name")]
        of, model = (value if isinstance(value, str) else "" for value in names)
        subtract = bool(config.get("apply_b_dec_to_input", True))
        try:
            return cls(W_enc, b_enc, W_dec, arrays["b_dec"], k, of if name is None else name, model, subtract)
        except ConfigError as error:
            raise WeightsError(f"{folder}: {error}") from None


def top_k(x: mx.array, k: int) -> mx.array:
    """The k largest of each row where they are above 0, and 0 elsewhere; of equal ones at the edge all are kept."""
    if k < x.shape[-1]:
        edge = mx.topk(x, k, axis=-1).min(axis=-1, keepdims=True)
        x = mx.where(x >= mx.stop_gradient(edge), x, 0)
    return mx.maximum(x, 0)
