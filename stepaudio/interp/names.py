"""What every activation is called, its axes and what it holds; the names of the version before, too.

Names follow TransformerLens where it has one (resid_pre, pattern, z, …). Axes: B clips or prompts of a batch, T mel
frames, S = ceil(T / 2), P = S // 2, R audio embeddings, n new positions of one pass, L positions attended to, C and D
channels of encoder and decoder, M mel bands, A encoder heads of E channels, H decoder heads of K channels, G key/value
heads, V tokens of the vocabulary.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

from ..errors import ConfigError
from ..models.speech_lm import StepAudioConfig


class Meaning(NamedTuple):
    """Axes of an activation, one letter each (1 for an axis of one entry), and what it holds."""

    axes: tuple[str, ...]
    text: str


def _layers(net: str, stream: str, heads: str, kv_heads: str, size: str) -> dict[str, Meaning]:
    """What one block or layer hands out; `stream`: batch, positions and channels of the residual stream."""
    B, n, _ = stream
    residual = tuple(stream)
    return {
        f"{net}.{{i}}.resid_pre": Meaning(residual, "residual stream before the layer"),
        f"{net}.{{i}}.q": Meaning((B, heads, n, size), "queries"),
        f"{net}.{{i}}.k": Meaning((B, kv_heads, n, size), "keys"),
        f"{net}.{{i}}.v": Meaning((B, kv_heads, n, size), "values"),
        f"{net}.{{i}}.z": Meaning((B, heads, n, size), "what each head read: values under the pattern"),
        f"{net}.{{i}}.attn_out": Meaning(residual, "what attention adds to the residual stream"),
        f"{net}.{{i}}.resid_mid": Meaning(residual, "residual stream between attention and MLP"),
        f"{net}.{{i}}.mlp_out": Meaning(residual, "what the MLP adds to the residual stream"),
        f"{net}.{{i}}.resid_post": Meaning(residual, "residual stream after the layer"),
    }


# {i} counts encoder blocks or decoder layers. What is named decoder… or logits comes once per pass of the decoder.
GLOSSARY: dict[str, Meaning] = {
    "encoder.mel": Meaning(("B", "M", "T"), "log mel of the clips, zero-padded to the longest"),
    "encoder.mask": Meaning(("B", "1", "1", "S"), "added to the scores: 0 for keys that count, -1e10 for the others"),
    "encoder.conv1": Meaning(("B", "T", "C"), "after the first convolution and GELU, 100 per second"),
    "encoder.conv2": Meaning(("B", "S", "C"), "after the strided convolution and GELU, 50 per second"),
    **_layers("encoder", "BSC", "A", "A", "E"),
    "encoder.{i}.pattern": Meaning(("B", "A", "S", "S"), "attention, query by key; sums to 1 over keys"),
    "encoder.pooled": Meaning(("B", "P", "C"), "means of neighbours, 25 per second"),
    "encoder.out": Meaning(("B", "P", "C"), "pooled, after the final norm of the encoder"),
    "adapter.conv": Meaning(("B", "R", "C"), "after the adapter's strided convolution and GELU, 12.5 per second"),
    "adapter.out": Meaning(("B", "R", "D"), "audio embeddings; may hold one more than the prompt takes"),
    "decoder.positions": Meaning(("L",), "absolute position in each cache slot of this pass; cannot be replaced"),
    **_layers("decoder", "BnD", "H", "G", "K"),
    "decoder.{i}.rot_q": Meaning(("B", "H", "n", "K"), "queries after rotation"),
    "decoder.{i}.k_cache": Meaning(("B", "G", "L", "K"), "what the cache gives to this pass: rotated keys, by slot"),
    "decoder.{i}.v_cache": Meaning(("B", "G", "L", "K"), "what the cache gives to this pass: values, by slot"),
    "decoder.{i}.pattern": Meaning(("B", "H", "n", "L"), "attention, query by cache slot; sums to 1 over slots"),
    "decoder.out": Meaning(("B", "n", "D"), "residual stream after the decoder's final norm"),
    "logits": Meaning(("B", "V"), "scores of the next token after the last position, before any rule"),
}

# Names of the version before -> names of this one. They go with the next version.
FORMER_NAMES: dict[str, str] = {
    "mel": "encoder.mel",
    "mask": "encoder.mask",
    "conv1": "encoder.conv1",
    "conv2": "encoder.conv2",
    "embedded": "encoder.0.resid_pre",
    "block{i}": "encoder.{i}.resid_post",
    "block{i}.attention": "encoder.{i}.pattern",
    "pooled": "encoder.pooled",
    "encoded": "encoder.out",
    "adapter_conv": "adapter.conv",
    "adapter": "adapter.out",
    "layer{i}": "decoder.{i}.resid_post",
    "layer{i}.attention": "decoder.{i}.pattern",
    "layer{i}.keys": "decoder.{i}.k_cache",
    "layer{i}.values": "decoder.{i}.v_cache",
    "positions": "decoder.positions",
    "norm": "decoder.out",
}


def activation_names(config: StepAudioConfig) -> dict[str, Meaning]:
    """Every name that a model of these sizes hands out, with its meaning."""
    return {name: GLOSSARY[of] for name, of in _numbered(GLOSSARY, config).items()}


def _numbered(patterns, config: StepAudioConfig) -> dict[str, str]:
    """Each name with a number in the place of {i} -> the pattern it comes from."""
    n_encoder, n_decoder = config.audio_encoder_config.n_audio_layer, config.text_config.num_hidden_layers
    names = {}
    for pattern in patterns:
        count = n_encoder if pattern.startswith(("encoder", "block")) else n_decoder
        for i in range(count if "{i}" in pattern else 1):
            names[pattern.replace("{i}", str(i))] = pattern
    return names


def axis_sizes(config: StepAudioConfig) -> dict[str, int]:
    """Length of every axis that the config decides; B, T, S, P, R, n and L depend on the run."""
    text, audio = config.text_config, config.audio_encoder_config
    return {
        "1": 1,
        "M": audio.n_mels,
        "C": audio.n_audio_state,
        "A": audio.n_audio_head,
        "E": audio.n_audio_state // audio.n_audio_head,
        "D": text.hidden_size,
        "H": text.num_attention_heads,
        "G": text.num_key_value_heads,
        "K": text.head_dim,
        "V": text.vocab_size,
    }


def current_name(name: str) -> str:
    """The name of today for one of the version before, e.g. "layer3.attention" of a stored file; others stay."""
    for former, current in FORMER_NAMES.items():
        if match := re.fullmatch(re.escape(former).replace(r"\{i\}", r"(\d+)"), name):
            return current.replace("{i}", match[1]) if match.groups() else current
    return name


def matching(patterns: Sequence[str], config: StepAudioConfig) -> dict[str, frozenset[str]]:
    """For each glob pattern, the activations of this model that it means.

    A pattern that fits no name of today but one of the version before is taken for that, with a DeprecationWarning.

    Raises
    ------
    ConfigError : a pattern that fits neither.
    """
    known, former = activation_names(config), _numbered(FORMER_NAMES, config)
    found = {}
    for pattern in patterns:
        names = {n for n in known if fnmatchcase(n, pattern)}
        if not names:
            names = {current_name(n) for n in former if fnmatchcase(n, pattern)}
            if not names:
                raise ConfigError(
                    f"no activation is called {pattern!r}; expected a pattern over "
                    f"{', '.join(GLOSSARY)}, with {{i}} a number from 0"
                )
            warn_of_former(pattern, min(names))
        found[pattern] = frozenset(names)
    return found


def warn_of_former(name: str, current: str) -> None:
    """Tell that a name is of the version before."""
    warnings.warn(
        f"the activation name {name!r} is of an earlier version and goes with the next: {current!r} is its name now "
        "(stepaudio.interp.names.GLOSSARY has all)",
        DeprecationWarning,
        stacklevel=4,
    )
