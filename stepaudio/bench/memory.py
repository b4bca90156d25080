"""What a backend shows of memory, beside what `memory_plan` says: a run at the sizes of a model, with random weights.

Memory does not depend on what weights say, so no file is needed but a config.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import mlx.core as mx
import numpy as np

from ..backend.memory import MemoryUse, free_buffers, memory_use
from ..backend.process import enter
from ..checkpoints.layout import parameters_of
from ..checkpoints.recipe import Recipe
from ..constants import CHUNK_SAMPLES, SAMPLE_RATE
from ..decoding.options import merge_options
from ..engine import Engine
from ..models.quantization import layers_of, quantise_layers
from ..models.speech_lm import StepAudioConfig, StepAudioNet
from ..transcribe import transcribe_recordings
from .memory_plan import WORDS, MemoryPlan, Task

BIAS = 0.02  # spread of the biases of random nets
PROMPT = ([1] * (WORDS // 2), [2] * (WORDS // 2))  # token ids before and after the audio


@dataclass(frozen=True)
class Shown:
    """Bytes that a backend shows: of weights, at the most while audio is encoded, at the most of the whole run."""

    weights: int
    encoder: int
    peak: int
    use: MemoryUse


def random_engine(config: StepAudioConfig, dtype: mx.Dtype, recipe: Recipe | None = None, seed: int = 0) -> Engine:
    """A net of these sizes with random weights, made matrix by matrix, and no tokenizer.

    Matrices and kernels are normal with a variance of 1 / inputs, norms 1, biases small: signals keep their size from
    layer to layer, so that what two programs make of them can be compared.
    """
    enter()
    net, keys = StepAudioNet(config), mx.random.key(seed)
    chosen = {} if recipe is None else recipe.choose(layers_of(net))
    for name, array in parameters_of(net).items():
        layer = name.removesuffix(".weight")
        scale = prod(array.shape[1:]) ** -0.5 if array.ndim > 1 else BIAS
        keys, key = mx.random.split(keys)
        value = (mx.random.normal(array.shape, dtype, key=key) * scale).astype(dtype)
        if array.ndim == 1 and not name.endswith("bias"):
            value = mx.ones(array.shape, dtype)
        net.load_weights([(name, value)], strict=False)
        if layer in chosen and name.endswith(".weight"):
            quantise_layers(net, {layer: chosen[layer]})
        mx.eval(_of(net, layer))
    free_buffers()
    return Engine(net, None)


def _of(net: StepAudioNet, layer: str) -> list[mx.array]:
    """The arrays of one layer, or the one array of that name."""
    return [a for name, a in parameters_of(net).items() if name == layer or name.startswith(f"{layer}.")]


def measure(engine: Engine, task: Task, plan_batch: int) -> Shown:
    """Run the task on noise, every answer as long as it may be; `plan_batch` segments at a time, unless whole."""
    mx.synchronize()
    weights = mx.get_active_memory()
    noise = np.random.default_rng(0).normal(0, 0.1, round(task.seconds * SAMPLE_RATE)).astype(np.float32)
    options = merge_options(sampling="greedy", on_loop="off", cache=task.policy, max_tokens=task.tokens)
    clips = [noise[i : i + CHUNK_SAMPLES] for i in range(0, len(noise), CHUNK_SAMPLES)]
    if not task.whole:  # one batch of what is longest, as the plan counts it
        clips = clips[:1] * plan_batch
    mx.reset_peak_memory()
    encoded = engine.encode_audio(engine.log_mel(clip) for clip in clips)
    mx.eval(encoded)
    encoder = mx.get_peak_memory()
    encoded = [mx.concatenate(encoded)] if task.whole else encoded
    runs = engine.run([engine.transcription_request(e, PROMPT) for e in encoded], options)
    use = memory_use(max(run.kv_bytes for run in runs))
    return Shown(weights, encoder, use.peak, use)


def compared(plan: MemoryPlan, shown: Shown) -> str:
    """A line for each figure: what was planned, what was shown, and their ratio."""
    pairs = {
        "weights": (plan.weights, shown.weights),
        "encoding audio": (plan.weights + plan.encoder, shown.encoder),
        "keys and values": (plan.kv, shown.use.kv),
        "peak": (plan.peak, shown.peak),
    }
    lines = [f"{'GB':16}{'planned':>10}{'shown':>10}{'ratio':>8}"]
    for name, (said, found) in pairs.items():
        lines.append(f"{name:16}{said / 1e9:10.3f}{found / 1e9:10.3f}{said / max(found, 1):8.3f}")
    lines.append(f"{'buffers kept':16}{plan.buffers / 1e9:10.3f}{shown.use.cached / 1e9:10.3f}")
    return "\n".join(lines)


def growth(engine: Engine, seconds: Sequence[float], tokens: int = 8) -> list[MemoryUse]:
    """Memory after each of several recordings of these lengths, one after another."""
    options, found = merge_options(sampling="greedy", on_loop="off", max_tokens=tokens), []
    for i, length in enumerate(seconds):
        noise = np.random.default_rng(i).normal(0, 0.1, round(length * SAMPLE_RATE)).astype(np.float32)
        transcribe_recordings(engine, [noise], options, PROMPT, vad="off")
        mx.synchronize()
        found.append(memory_use())
    return found
