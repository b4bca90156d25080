"""Fault injection: each known mistake of re-implementations as a named switch of an experiment.

A fault makes another model that shares all it can with the one it is given and never changes that one; to be rid of it
is to use the model one had. The faithful path knows nothing of this. Defects combine; `faulty` applies several in
one fixed order.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from ..checkpoints.layout import expected_layout
from ..checkpoints.recipe import Recipe, parse_rules
from ..constants import SAMPLE_RATE
from ..decoding.sampling import Penalties, Sampling
from ..errors import ConfigError
from ..model import StepAudio2
from ..models.quantization import Bits, layers_of, quantised_layers, round_layers
from ..text.chat_template import AudioSlot, Message, Prompt, build_base_prompt, build_prompt
from ..text.tokenizer import Tokenizer
from .faulty_mel import VALUES, WrongMel
from .faulty_sound import KINDS, parse, rotten

Net = TypeVar("Net", bound=nn.Module)
Apply = Callable[[StepAudio2], StepAudio2]


@dataclass(frozen=True)
class Fault:
    """A mistake: what it is about, what the reference does, what is done instead, and how to make a model do it."""

    description: str
    reference: str
    wrong: str
    apply: Apply


# ---------------------------------------------------------------- around the nets


def wrong_mel(**choices: str) -> Apply:
    """Another front end; `choices` are fields of `WrongMel`."""

    def apply(model: StepAudio2) -> StepAudio2:
        mel = model.pipeline.mel
        return _around(model, mel=replace(mel if isinstance(mel, WrongMel) else WrongMel(), **choices))

    return apply


def mean_downmix(model: StepAudio2) -> StepAudio2:
    """The mean of the channels, whatever was asked for. Mono recordings stay as they are."""
    load = model.pipeline.load
    return _around(
        model,
        load=lambda source, *, downmix="first", **options: load(source, downmix="mean", **options),
    )


def rotten_sound(name: str) -> Apply:
    """Noise, reverberation or silence in whatever is read, named as `faulty_sound.parse` reads it."""
    kind, dose = parse(name)

    def apply(model: StepAudio2) -> StepAudio2:
        load = model.pipeline.load
        return _around(model, load=lambda source, **how: rotten(load(source, **how), kind, dose))

    return apply


def short_segments(seconds: float) -> Apply:
    """Segments of at most so many seconds; transcription still cuts them in pauses."""
    return lambda model: _around(model, chunk_samples=round(seconds * SAMPLE_RATE))


def fixed_repetition(penalty: float) -> Apply:
    """One repetition penalty over the generated tokens in place of all other penalties, whatever was asked for."""

    def instead(sampling: Sampling) -> Sampling:
        fixed = Penalties(repetition=penalty)
        return replace(sampling, text=fixed, audio=fixed)

    return lambda model: _around(model, sampling=instead)


@dataclass(frozen=True)
class WrongPrompt:
    """A prompt builder in the place of `text.chat_template.build_prompt`; the defaults agree with it.

    chatml : turns as ChatML, the template that lies beside the published tokenizer.
    system : whether system turns are kept. audio_end : whether `<audio_end>` follows the audio.
    """

    chatml: bool = False
    system: bool = True
    audio_end: bool = True

    def __call__(self, messages: Sequence, tokenizer: Tokenizer, n_rows: Sequence[Sequence[int]] = ()) -> Prompt:
        """Messages, and the audio embeddings of each segment of each recording, to a prompt."""
        turns = [m for m in map(Message.of, messages) if self.system or m.role != "system"]
        if self.chatml:
            prompt = build_base_prompt([piece for m in turns for piece in _chatml(m)], tokenizer, n_rows)
        else:
            prompt = build_prompt(turns, tokenizer, n_rows)
        return prompt if self.audio_end else without_audio_end(prompt)


def _chatml(message: Message) -> list[str | Mapping]:
    """One turn as text and items."""
    header = f"<|im_start|>{'user' if message.role == 'human' else message.role}\n"
    if message.content is None:
        return [header]
    content = [message.content] if isinstance(message.content, str) else list(message.content)
    return [header, *content, *(["<|im_end|>\n"] if message.eot else [])]


def without_audio_end(prompt: Prompt) -> Prompt:
    """The prompt with the one token after each segment of audio taken out."""
    ends = [slot.start + slot.length for slot in prompt.slots]
    slots = [AudioSlot(s.start - i, s.length, s.clip, s.piece) for i, s in enumerate(prompt.slots)]
    return Prompt(tuple(np.delete(prompt.tokens, ends).tolist()), tuple(slots))


def wrong_prompt(**choices: bool) -> Apply:
    """Another prompt builder; `choices` are fields of `WrongPrompt`."""

    def apply(model: StepAudio2) -> StepAudio2:
        build = model.pipeline.build_prompt
        build = build if isinstance(build, WrongPrompt) else WrongPrompt()
        return _around(model, build_prompt=replace(build, **choices))

    return apply


def _around(model: StepAudio2, **parts: Callable | int) -> StepAudio2:
    return model.altered(pipeline=replace(model.pipeline, **parts))


# ---------------------------------------------------------------- in the nets


def copy_of(module: Net) -> Net:
    """A net of new modules that share the arrays of the old: replacing anything in it leaves the old one alone."""
    made = copy.copy(module)
    for name, value in module.items():
        dict.__setitem__(made, name, _copied(value))
    return made


def _copied(value):
    if isinstance(value, nn.Module):
        return copy_of(value)
    return [_copied(v) for v in value] if isinstance(value, list) else value


def no_padding_mask(model: StepAudio2) -> StepAudio2:
    """Encoder attention sees the padding; what it costs grows with the padding of the batch."""
    net = copy_of(model.net)
    net.encoder.key_mask = lambda T, x_len, independent: mx.zeros((x_len.shape[0], 1, 1, (T - 1) // 2 + 1))
    return model.altered(net=net)


class _NormedBlock(nn.Module):
    """The last encoder block with the final norm right behind it."""

    def __init__(self, block: nn.Module, norm: nn.Module):
        super().__init__()
        self.block, self.norm = block, norm

    def __call__(self, x: mx.array, mask: mx.array, tap=None) -> mx.array:
        return self.norm(self.block(x, mask, tap))


def norm_before_pool(model: StepAudio2) -> StepAudio2:
    """The encoder's final norm before its pooling."""
    net = copy_of(model.net)
    encoder: Any = net.encoder  # other modules than its class says
    encoder.blocks[-1] = _NormedBlock(encoder.blocks[-1], encoder.after_norm)
    encoder.after_norm = nn.Identity()
    return model.altered(net=net)


def left_out(config, share: float, seed: int = 0) -> list[str]:
    """Names of the tensors that `partly_loaded` does not load: a seeded choice, in the order of the layout."""
    names = list(expected_layout(config))
    if not 0 <= share <= 1:
        raise ConfigError(f"share of loaded tensors: expected 0 to 1, found {share}")
    lost = np.random.default_rng(seed).choice(len(names), len(names) - round(share * len(names)), replace=False)
    return [names[i] for i in sorted(lost)]


def partly_loaded(share: float, seed: int = 0) -> Apply:
    """Only this share of the tensors; the rest as in a fresh net. The model's report stays that of its files."""
    return lambda model: _with_fresh(model, left_out(model.config, share, seed), seed)


def lost(prefix: str, seed: int = 0) -> Apply:
    """The tensors whose published names start with `prefix` as in a fresh net, e.g. "model.layers.1."."""

    def apply(model: StepAudio2) -> StepAudio2:
        names = [name for name in expected_layout(model.config) if name.startswith(prefix)]
        if not names:
            raise ConfigError(f"lost: no tensor of this model has a name that starts with {prefix!r}")
        return _with_fresh(model, names, seed)

    return apply


def _with_fresh(model: StepAudio2, names: Sequence[str], seed: int) -> StepAudio2:
    net = copy_of(model.net)
    have = dict(tree_flatten(net.parameters()))
    odd = [name for name in names if name not in have or not mx.issubdtype(have[name].dtype, mx.floating)]
    if odd:
        raise ConfigError(f"partly loaded: {odd[0]} is quantised or moved; apply this first, as `faulty` does")
    keys = mx.random.split(mx.random.key(seed), max(1, len(names)))
    net.load_weights(
        [(name, _fresh(name, have[name], key)) for name, key in zip(names, keys, strict=False)], strict=False
    )
    return model.altered(net=net)


def _fresh(name: str, like: mx.array, key: mx.array) -> mx.array:
    """What MLX's layers start with: ones and zeros in norms, normals in embeddings, else uniform ±fan-in^-1/2."""
    owner = name.split(".")[-2]
    if "norm" in owner or owner.endswith("_ln"):
        return mx.ones_like(like) if name.endswith("weight") else mx.zeros_like(like)
    scale = (like.size // like.shape[0] if like.ndim > 1 else like.shape[0]) ** -0.5
    if "embed" in owner:
        return mx.random.normal(like.shape, like.dtype, scale=scale, key=key)
    return mx.random.uniform(-scale, scale, like.shape, like.dtype, key=key)


def fewer_bits(bits: int, group_size: int = 32, part: str = "") -> Apply:
    """Weights of all linear layers whose path starts with `part`, in groups that share scale and offset, `bits` each.

    Embeddings and convolutions stay. Method: MLX's affine quantisation, held as the values it stands for: what is
    computed is the same, and faster on a CPU.
    """

    def apply(model: StepAudio2) -> StepAudio2:
        net, how = copy_of(model.net), Bits(bits, group_size)
        if quantised_layers(net):
            raise ConfigError(f"{bits} bits: this model is quantised already; start from the one that it was made of")
        tables = ("model.embed_tokens", "encoder.positional_embedding")
        widths = {path: width for path, (_, width) in layers_of(net).items() if path not in tables}
        chosen = {path: how for path, width in widths.items() if path.startswith(part) and how.fits(width)}
        if not chosen:
            raise ConfigError(f"{bits} bits: no linear layer of this model is a multiple of {group_size} wide")
        round_layers(net, chosen)
        return model.altered(net=net)

    return apply


def with_bits(rule: str) -> Apply:
    """Layers of fewer bits by a rule of `checkpoints.recipe`, PATTERN=BITS, with the values that quantising stores."""
    recipe = parse_rules([rule], Recipe(), BITS)

    def apply(model: StepAudio2) -> StepAudio2:
        net = copy_of(model.net)
        round_layers(net, recipe.choose(layers_of(net)))
        return model.altered(net=net)

    return apply


# ---------------------------------------------------------------- the switches

FAULTS: dict[str, Fault] = {
    "mel_scale": Fault(
        "mel filters",
        "Slaney's scale, filters of equal area",
        "HTK's scale, filters of equal height",
        wrong_mel(scale="htk"),
    ),
    "framing": Fault(
        "STFT frames",
        "centred, mirrored ends, periodic Hann window",
        "not centred, symmetric Hann window, two frames fewer",
        wrong_mel(framing="uncentred"),
    ),
    "downmix": Fault("channels", "channel 0", "mean of the channels", mean_downmix),
    "chunk": Fault("longest segment of audio", "25 s", "15 s", short_segments(15)),
    "padding_mask": Fault("keys past the end of a clip", "masked in the encoder", "not masked", no_padding_mask),
    "chatml": Fault(
        "turn grammar", "<|BOT|>human … <|EOT|>", "<|im_start|>user … <|im_end|>", wrong_prompt(chatml=True)
    ),
    "audio_end": Fault("end of audio", "<audio_end> after the audio", "no <audio_end>", wrong_prompt(audio_end=False)),
    "system_text": Fault("system turn", "says what to do with the audio", "no system turn", wrong_prompt(system=False)),
    "penalty_scope": Fault(
        "repetition penalty",
        "none to transcribe; 1.05 over prompt and answer to chat",
        "1.3, over the answer only, whatever was asked for",
        fixed_repetition(1.3),
    ),
    # What follows changes nets, in an order that works: values, then structure, then how values are held.
    "partly_loaded": Fault(
        "tensors of the checkpoint", "all of them", "nine in ten, the rest random", partly_loaded(0.9)
    ),
    "norm_pool": Fault("end of the encoder", "pool, then norm", "norm, then pool", norm_before_pool),
    "bits_8": Fault("weights of linear layers", "16 bits", "8 bits in groups of 32", fewer_bits(8)),
    "bits_4": Fault("weights of linear layers", "16 bits", "4 bits in groups of 32", fewer_bits(4)),
    "bits_3": Fault("weights of linear layers", "16 bits", "3 bits in groups of 32", fewer_bits(3)),
    "bits_2": Fault("weights of linear layers", "16 bits", "2 bits in groups of 32", fewer_bits(2)),
    "decoder_2": Fault(
        "weights of the decoder's linear layers", "16 bits", "2 bits in groups of 32", fewer_bits(2, part="model.")
    ),
}
BITS = "bits:"  # before a rule of a recipe, PATTERN=BITS: a fault that `with_bits` makes
LOST = "lost:"  # before a prefix of tensor names: a fault that `lost` makes
MELS = tuple(f"mel:{values}" for values in VALUES[1:])  # front ends with other values than the faithful one's
SOUNDS = tuple(f"{kind}:" for kind in (*KINDS, "quiet"))  # before a dose: a fault that `rotten_sound` makes


ALTERNATIVES = ({"bits_8", "bits_4", "bits_3", "bits_2", "decoder_2"}, set(MELS))  # at most one of each set


def unknown_faults(names: Sequence[str]) -> list[str]:
    """Those not in `FAULTS` or `MELS`, and not "lost:" and a prefix of names, "bits:" and a rule, a sound and a dose.

    Raises `ConfigError` for a rule that says no bits.
    """
    for name in names:
        if name.startswith(BITS):
            with_bits(name.removeprefix(BITS))
    return [name for name in names if name not in (*FAULTS, *MELS) and not name.startswith((LOST, BITS, *SOUNDS))]


def _fault(name: str) -> Apply:
    if name in FAULTS:
        return FAULTS[name].apply
    if name in MELS:
        return wrong_mel(values=name.partition(":")[2])
    if name.startswith(BITS):
        return with_bits(name.removeprefix(BITS))
    return lost(name.removeprefix(LOST)) if name.startswith(LOST) else rotten_sound(name)


def _place(name: str) -> int:
    """When a fault is applied: sounds first, then in the order of `FAULTS`, lost tensors with other lost ones."""
    order = list(FAULTS)
    if name.startswith(BITS):
        return order.index("bits_8")
    return -1 if name.startswith(SOUNDS) or name in MELS else order.index(name if name in FAULTS else "partly_loaded")


def faulty(model: StepAudio2, faults: str | Sequence[str]) -> StepAudio2:
    """A model with these faults; the one given stays as it is.

    Parameters
    ----------
    model : StepAudio2
    faults : names from `FAULTS` or `MELS`, "lost:" and a prefix of tensor names, "bits:" and a rule such as encoder=8
        (see `checkpoints.recipe`), or a sound and its dose (see `faulty_sound`), in any order, or one string with "+"
        between them; "none" or nothing gives the model itself

    Raises
    ------
    ConfigError
        An unknown name, a name twice, or two that exclude each other.
    """
    names = faults.split("+") if isinstance(faults, str) else list(faults)
    names = [] if names == ["none"] else names
    unknown = unknown_faults(names)
    if unknown:
        raise ConfigError(
            f"no fault is called {unknown[0]!r}; expected none or names joined by +, of: "
            f"{', '.join((*FAULTS, *MELS))}, {LOST}PREFIX, {BITS}PATTERN=BITS"
        )
    clashes = [sorted(group) for group in ALTERNATIVES if len(group & set(names)) > 1]
    if clashes or len(set(names)) < len(names):
        raise ConfigError(
            f"faults {'+'.join(names)}: expected each once"
            + (f", and at most one of {', '.join(clashes[0])}" if clashes else "")
        )
    for name in sorted(names, key=_place):
        model = _fault(name)(model)
    return model
