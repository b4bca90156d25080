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

from ..constants import n_audio_embeddings
from ..errors import ConfigError
from ..models.speech_lm import StepAudioConfig


class Meaning(NamedTuple):
    """Axes of an activation, one letter each (1 for an axis of one entry), and what it holds."""

    axes: tuple[str, ...]
    text: str


def _layers(net: str, stream: Sequence[str], heads: str, kv_heads: str, size: str) -> dict[str, Meaning]:
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
    "decoder.tokens": Meaning(
        ("B", "n"), "token ids of the new positions, -1 before a prompt begins; cannot be replaced"
    ),
    **_layers("decoder", "BnD", "H", "G", "K"),
    "decoder.{i}.rot_q": Meaning(("B", "H", "n", "K"), "queries after rotation"),
    "decoder.{i}.k_cache": Meaning(("B", "G", "L", "K"), "what the cache gives to this pass: rotated keys, by slot"),
    "decoder.{i}.v_cache": Meaning(("B", "G", "L", "K"), "what the cache gives to this pass: values, by slot"),
    "decoder.{i}.pattern": Meaning(("B", "H", "n", "L"), "attention, query by cache slot; sums to 1 over slots"),
    "decoder.out": Meaning(("B", "n", "D"), "residual stream after the decoder's final norm"),
    "logits": Meaning(("B", "V"), "scores of the next token after the last position, before any rule"),
}

FIXED = ("decoder.positions", "decoder.tokens")  # given to the decoder: integers that can be read, not replaced


def _stack(prefix: str, stream: Sequence[str], also: dict[str, Meaning]) -> dict[str, Meaning]:
    """A stack of a token2wav net: {i} or {j} counts its layers, heads have channels of their own."""
    layers = {
        f"{prefix}.{name.removeprefix('net.{i}.')}": m for name, m in _layers("net", stream, "H", "H", "K").items()
    }
    return layers | {f"{prefix}.{name}": meaning for name, meaning in also.items()}


_KEYS = Meaning(("B", "H", "n", "L"), "attention, query by key; sums to 1 over keys")
_DISTANCES = Meaning(("1", "X", "C"), "sinusoids of all distances between query and key")

# What the nets of token2wav hand out to a tap. Axes: B batch, n new and L all positions, N codes,
# T mel frames, M mel bands, C channels of the net, H heads of K channels, F frames of the vocoder's short STFT with Q
# numbers each, W samples; X depends on the rest. {i} counts layers, Euler steps or stages, {j} layers within a step.
TOKEN2WAV_GLOSSARY: dict[str, dict[str, Meaning]] = {
    "speech_tokenizer": {
        "conv1": Meaning(("B", "T", "C"), "after the first strided convolution and GELU, 50 per second"),
        "conv2": Meaning(("B", "N", "C"), "after the second, 25 per second"),
        **_stack(
            "{i}",
            ("B", "N", "C"),
            {
                "pattern": Meaning(("B", "H", "N", "N"), "attention, query by key; sums to 1 over keys"),
                "memory": Meaning(("B", "N", "C"), "values filtered over time, which attention is added to"),
            },
        ),
        "out": Meaning(("B", "N", "C"), "residual stream after the last block; no norm follows"),
        "project_down": Meaning(("B", "N", "8"), "the dimensions that are rounded to digits of a code"),
    },
    "speaker_encoder": {
        "head": Meaning(("B", "T", "C"), "after the convolutions over bands and frames, 100 per second"),
        "tdnn": Meaning(("B", "T", "C"), "after the strided layer, 50 per second"),
        "transit{i}": Meaning(("B", "T", "C"), "after dense block i and its transition, i from 1"),
        "stats": Meaning(("B", "C"), "mean and standard deviation over time"),
        "embedding": Meaning(("B", "C"), "the speaker vector, not normalised"),
    },
    "flow": {
        "speaker": Meaning(("B", "M"), "speaker vector, normalised and projected"),
        "encoder.embed": Meaning(("B", "N", "C"), "embedded codes, scaled"),
        "encoder.pre_lookahead": Meaning(("B", "N", "C"), "after the look-ahead convolutions"),
        "encoder.pos_embed": _DISTANCES,
        **_stack("encoder.{i}", ("B", "n", "C"), {"pattern": _KEYS}),
        "encoder.up.conv": Meaning(("B", "T", "C"), "repeated to 50 per second and convolved"),
        "encoder.up.embed": Meaning(("B", "T", "C"), "embedded again, scaled"),
        "encoder.up.pos_embed": _DISTANCES,
        **_stack("encoder.up.{i}", ("B", "n", "C"), {"pattern": _KEYS}),
        "encoder.out": Meaning(("B", "T", "C"), "after the last norm"),
        "mu": Meaning(("B", "T", "M"), "the encoder's mel, which the estimator refines"),
        "noise": Meaning(("B", "T", "M"), "where Euler's method begins"),
        "euler.{i}.dit.time": Meaning(("B", "C"), "embedded time; B counts twice, with conditions and without"),
        **_stack(
            "euler.{i}.dit.{j}",
            ("B", "T", "C"),
            {
                "pattern": _KEYS,
                "conv_out": Meaning(("B", "T", "C"), "what the convolutions add to the residual stream"),
            },
        ),
        "euler.{i}.dit.out": Meaning(("B", "T", "M"), "the estimator's velocity"),
        "euler.{i}.velocity": Meaning(("B", "T", "M"), "the same: conditional, then unconditional"),
        "euler.{i}.x": Meaning(("B", "T", "M"), "state after Euler step i; after the last, the mel"),
    },
    "vocoder": {
        "f0": Meaning(("B", "T"), "pitch, Hz"),
        "sines": Meaning(("B", "W", "C"), "harmonics with noise"),
        "source": Meaning(("B", "W"), "the harmonics mixed to one signal"),
        "source_stft": Meaning(("B", "F", "Q"), "its short STFT, real parts then imaginary"),
        "conv_pre": Meaning(("B", "T", "C"), "the mel after the first convolution"),
        "{i}.up": Meaning(("B", "X", "C"), "after the upsampling of stage i"),
        "{i}.source": Meaning(("B", "X", "C"), "what the source adds at stage i"),
        "{i}.out": Meaning(("B", "X", "C"), "after the residual blocks of stage i"),
        "before_conv_post": Meaning(("B", "F", "C"), "what the last convolution reads"),
        "conv_post": Meaning(("B", "F", "Q"), "log magnitudes, then phases"),
        "wave": Meaning(("B", "W"), "sound, within the limit"),
    },
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


def pattern_of(name: str) -> str:
    """The entry of the glossary that a name with a number belongs to."""
    return re.sub(r"\.\d+\.", ".{i}.", name)


def frames_at(mel_frames: int) -> dict[str, int]:
    """Length of a clip of so many mel frames along each axis of time in encoder and adapter, its own frames alone."""
    S = (mel_frames + 1) // 2
    return {"T": mel_frames, "S": S, "P": S // 2, "R": n_audio_embeddings(mel_frames)}
