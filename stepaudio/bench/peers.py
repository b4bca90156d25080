"""The same decoder in other programs, for a bench that lets them take turns with ours: mlx-lm's Qwen2, and PyTorch.

Each is there only where its package is installed. mlx-lm gets the very arrays of our net; PyTorch a copy on the device
that it finds.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..checkpoints.layout import parameters_of
from ..models.quantization import quantised_layers
from ..models.speech_lm import StepAudioNet
from . import torch_baseline
from .agreement import torch_tensors
from .own_process import not_installed

SIZES = (
    "hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads", "num_key_value_heads",
    "rms_norm_eps", "vocab_size", "rope_theta",
)  # fmt: skip
WARM = 8  # tokens before the clock of a rate starts


def rate(ends: list[float]) -> float:
    """Tokens per second of a run, from the clock at each token, the first few left out."""
    first = min(WARM, len(ends) // 3)
    return (len(ends) - 1 - first) / max(ends[-1] - ends[first], 1e-9)


class MlxLm:
    """mlx-lm's Qwen2 over the arrays of a net, quantised as the net is."""

    name, needed = "mlx-lm", ("mlx_lm",)

    def __init__(self, net: StepAudioNet):
        from mlx_lm.models import qwen2

        text, bits = net.config.text_config, quantised_layers(net)
        args = {name: getattr(text, name) for name in SIZES}
        self.model = qwen2.Model(qwen2.ModelArgs(model_type="qwen2", **args, tie_word_embeddings=False))
        if bits:
            nn.quantize(self.model, class_predicate=lambda path, _: bits[path].options if path in bits else False)
        own = [(n, a) for n, a in parameters_of(net).items() if n.startswith(("model.", "lm_head."))]
        self.model.load_weights(own)

    @staticmethod
    def installed() -> bool:
        """Whether mlx-lm is there."""
        return not not_installed(MlxLm.needed)

    def prefill(self, x: mx.array) -> float:
        """Seconds to read a prompt of embeddings (n, D)."""
        from mlx_lm.generate import generate_step

        began = time.perf_counter()
        for _ in generate_step(mx.array([], mx.int32), self.model, max_tokens=0, input_embeddings=x):
            pass  # with more tokens it would have begun the step after the first
        return time.perf_counter() - began

    def decode(self, x: mx.array, n: int) -> float:
        """Greedy tokens per second after a prompt of embeddings."""
        from mlx_lm.generate import generate_step

        steps = generate_step(mx.array([], mx.int32), self.model, max_tokens=n, input_embeddings=x)
        return rate([time.perf_counter() for _ in steps])

    def tokens(self, x: mx.array, n: int) -> list[int]:
        """Greedy tokens after a prompt of embeddings."""
        from mlx_lm.generate import generate_step

        return [int(t) for t, _ in generate_step(mx.array([], mx.int32), self.model, max_tokens=n, input_embeddings=x)]


class Torch:
    """PyTorch, eager, with transformers' key/value cache; in bfloat16 on a GPU, else in float32."""

    name, needed = "PyTorch", torch_baseline.NEEDED

    def __init__(self, net: StepAudioNet):
        import torch

        self._torch = torch
        self.device = torch_baseline.device()
        tensors = torch_tensors(net, self.device)
        self.model = torch_baseline.TorchModel(tensors, net.config.to_dict())

    @staticmethod
    def installed() -> bool:
        """Whether torch and transformers are there."""
        return torch_baseline.available()

    def _given(self, x: mx.array):
        values = self._torch.from_numpy(np.array(x.astype(mx.float32)))[None]
        return values.to(self.model.device, self.model.dtype)

    def _wait(self) -> float:
        if self.device == "cuda":
            self._torch.cuda.synchronize()
        return time.perf_counter()

    def encode(self, mel: np.ndarray) -> float:
        """Seconds from a log mel to its audio embeddings."""
        with self._torch.no_grad():
            given = self._torch.from_numpy(mel).to(self.model.device, self.model.dtype)
            began = self._wait()
            self.model.encode(given)
            return self._wait() - began

    def prefill(self, x: mx.array) -> float:
        """Seconds to read a prompt of embeddings (n, D)."""
        with self._torch.no_grad():
            given, began = self._given(x), self._wait()
            self.model.prefill(given)
            return self._wait() - began

    def decode(self, x: mx.array, n: int) -> float:
        """Greedy tokens per second after a prompt of embeddings; waits for the device at the clock's start and end."""
        first, began = min(WARM, n // 3), 0.0
        for i, _ in enumerate(self._steps(x, n)):
            if i == first:
                began = self._wait()
        return (n - 1 - first) / (self._wait() - began)

    def tokens(self, x: mx.array, n: int) -> list[int]:
        """Greedy tokens after a prompt of embeddings."""
        return [int(token) for token in self._steps(x, n)]

    def _steps(self, x: mx.array, n: int) -> Iterator[Any]:
        with self._torch.no_grad():
            token, cache = self.model.prefill(self._given(x))
            yield token
            for _ in range(n - 1):
                token, cache = self.model.step(token, cache)
                yield token


def found(net: StepAudioNet) -> list[Any]:
    """The peers that are installed, over this net."""
    return [peer(net) for peer in (MlxLm, Torch) if peer.installed()]
