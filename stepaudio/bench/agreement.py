"""Do we compute what PyTorch computes, at the published sizes? Random weights from a seed, no file of any model.

Encoder, adapter, decoder and head, from a log mel to the logits of every position of a prompt, in float32 against
transformers' Qwen2 and an encoder in plain torch (`torch_baseline`), with the same numbers in both. PyTorch takes the
device that it finds.
"""

from __future__ import annotations

import gc
import importlib.util
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map

from ..backend.memory import free_buffers
from ..checkpoints.layout import axes_of, parameters_of, to_published
from ..constants import SAMPLE_RATE
from ..errors import ConfigError
from ..models.decoder import TextConfig
from ..models.encoder import AudioEncoderConfig
from ..models.kv_cache import NoCache
from ..models.speech_lm import StepAudioConfig, StepAudioNet
from ..text.chat_template import AudioSlot, Prompt
from . import torch_baseline
from .memory import random_engine
from .memory_plan import MINI

SMALL = StepAudioConfig(
    TextConfig(256, 512, 4, 2, 2, 4096, 1e-6, 1e6, max_position_embeddings=16384),
    AudioEncoderConfig(128, 1500, 128, 4, 2, 256, 3, 2),
)
SECONDS = 3.7  # of noise: an odd number of frames, and padding within the encoder
WORDS = 16  # tokens before the audio, and as many after it
LIMIT = 1e-4  # of float32
STAGES = (
    "making random weights",
    "computing in float32",
    "computing in bfloat16",
    "handing the weights to PyTorch",
    "computing in float32 in PyTorch",
    "computing in bfloat16 in PyTorch",
)  # in their order; at the published sizes each takes a while
During = Callable[[str], AbstractContextManager]


@dataclass(frozen=True)
class Agreement:
    """One stage on both sides.

    Parameters
    ----------
    stage : str
    relative : float
        Norm of the difference, by the norm of PyTorch's float32 values.
    argmax : float, optional
        Share of positions with the same most probable token.
    limit : float, optional
        What `relative` may be; None where a figure is only reported.
    """

    stage: str
    relative: float
    argmax: float | None = None
    limit: float | None = None

    @property
    def good(self) -> bool:
        """Within its limit, every argmax equal; true where there is none."""
        return self.limit is None or (self.relative <= self.limit and self.argmax in (None, 1.0))

    def to_dict(self) -> dict:
        """Every field, and the verdict."""
        return asdict(self) | {"good": self.good}


def sizes_named(small: bool) -> StepAudioConfig:
    """The published sizes, or small ones for a rehearsal."""
    return SMALL if small else MINI


def compare_with_torch(small: bool = False, seed: int = 0, during: During = nullcontext) -> list[Agreement]:
    """Run one prompt through both.

    Parameters
    ----------
    small : bool
        A rehearsal at small sizes. At the published sizes 50 GB are in use at most.
    seed : int >= 0
        Of weights, sound and tokens.
    during : callable
        Makes the context that a stage runs in, from a line that says which: what shows progress.

    Raises
    ------
    ConfigError
        torch or transformers is not installed, or a seed below 0.
    """
    if not torch_baseline.available():
        raise ConfigError(
            'PyTorch is not installed, so there is nothing to compare with: pip install "stepaudio[parity]"'
        )
    if seed < 0:
        raise ConfigError(f"seed: must not be negative, found {seed}")
    config, rng = sizes_named(small), np.random.default_rng(seed)
    stages = (during(f"{stage} ({i} of {len(STAGES)})") for i, stage in enumerate(STAGES, 1))
    with next(stages):
        engine = random_engine(config, mx.bfloat16, seed=seed)
    mel = engine.log_mel(rng.normal(0, 0.1, round(SECONDS * SAMPLE_RATE)).astype(np.float32))
    words = rng.integers(0, config.text_config.vocab_size, 2 * WORDS).tolist()
    with next(stages):
        whole = StepAudioNet(config)
        whole.update(tree_map(lambda a: a.astype(mx.float32), engine.net.parameters()))
        ours = _ours(engine.altered(net=whole), mel, words)
        del whole
        free_buffers()
    with next(stages):
        half = _ours(engine, mel, words)
    with next(stages):
        weights = torch_tensors(engine.net, torch_baseline.device())
    del engine
    gc.collect()
    free_buffers()  # of one device, which PyTorch needs too
    with _whole_products():
        with next(stages):
            theirs = _theirs({n: a.float() for n, a in weights.items()}, config, mel, ours["tokens"])
            gc.collect()
        with next(stages):
            rough = _theirs(weights, config, mel, ours["tokens"])
    return [
        Agreement("adapter, float32", _relative(ours["audio"], theirs["audio"]), limit=LIMIT),
        Agreement("logits, float32", _relative(ours["logits"], theirs["logits"]), _same(ours, theirs), LIMIT),
        Agreement("logits, bfloat16 here", _relative(half["logits"], theirs["logits"]), _same(half, theirs)),
        Agreement("logits, bfloat16 in PyTorch", _relative(rough["logits"], theirs["logits"]), _same(rough, theirs)),
    ]


def _ours(engine, mel: np.ndarray, words: list[int]) -> dict[str, Any]:
    """Audio embeddings, prompt and logits, on the host, in float32."""
    net = engine.net
    (audio,) = net.encode_audio([mel])
    tokens = [*words[:WORDS], *[0] * audio.shape[0], *words[WORDS:]]
    request = engine.embed_prompt(Prompt(tuple(tokens), (AudioSlot(WORDS, audio.shape[0], 0),)), [audio])
    logits = net.logits(request.embeddings[None], NoCache(net.model.rope))[0]
    return {"audio": _host(audio), "logits": _host(logits), "tokens": tokens}


def _host(array: mx.array) -> np.ndarray:
    return np.array(array.astype(mx.float32))


class _whole_products:
    """Within it PyTorch multiplies float32 whole, not in TF32."""

    def __enter__(self):
        import torch

        self._before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False

    def __exit__(self, *_):
        import torch

        torch.set_float32_matmul_precision(self._before[0])
        torch.backends.cudnn.allow_tf32 = self._before[1]


def torch_tensors(net: StepAudioNet, device: str) -> dict[str, Any]:
    """Every parameter of a net of floats as a tensor of torch, by its published name and in PyTorch's axes."""
    import torch

    found = {}
    for name, array in parameters_of(net).items():
        array = mx.contiguous(to_published(array, axes_of(StepAudioConfig, name)))
        if array.dtype == mx.bfloat16:  # which numpy has not got
            held = torch.from_numpy(np.array(array.view(mx.int16))).view(torch.bfloat16)
        else:
            held = torch.from_numpy(np.array(array))
        found[name] = held.to(device)
    return found


def _theirs(weights: dict[str, Any], config: StepAudioConfig, mel: np.ndarray, tokens: list[int]) -> dict[str, Any]:
    import torch

    with torch.no_grad():
        model = torch_baseline.TorchModel(weights, config.to_dict())
        x, audio = model.embeddings(mel, tokens, WORDS)
        return {"audio": audio.float().cpu().numpy(), "logits": model.logits(x).float().cpu().numpy()}


def _relative(found: np.ndarray, expected: np.ndarray) -> float:
    wide = expected.astype(np.float64)
    return float(np.linalg.norm(found - wide) / np.linalg.norm(wide))


def _same(found: dict[str, Any], expected: dict[str, Any]) -> float:
    return float((found["logits"].argmax(-1) == expected["logits"].argmax(-1)).mean())


def versions() -> str:
    """What is compared with, if it is installed."""
    return torch_baseline.versions() if importlib.util.find_spec("torch") else "no PyTorch"


def table(found: list[Agreement]) -> str:
    """Aligned text."""
    lines = [f"{'stage':30}{'relative':>10}{'limit':>10}{'argmax':>9}"]
    for row in found:
        limit = "-" if row.limit is None else f"{row.limit:.0e}"
        same = "-" if row.argmax is None else f"{row.argmax:.1%}"
        lines.append(f"{row.stage:30}{row.relative:10.1e}{limit:>10}{same:>9}  {'' if row.good else 'off'}".rstrip())
    return "\n".join(lines)
