"""Keys that others write into `config.json`, each with the values under which the net computes what is built here.

The published file has few keys. `save_pretrained` adds dozens, fine-tuning and quantising tools add theirs. One table
says for each what it may be: such a value is taken note of, another one is refused with the reason, and a key that is
in no table is refused by name, since nobody here knows what it would change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from ..schema import in_float32, require, require_keys, shown
from .quantization import Quantization

MODEL = "step_audio_2"
BUILT, UNUSED = "as built", "not used"
FULL, ROPE = "full_attention", "default"
UNKNOWN = (
    "whether it changes what is computed is not known here: if it does not, take it out of the file, or out of a copy "
    "of it"
)


@dataclass(frozen=True)
class ConfigNote:
    """A key that was understood and is no size. effect : "as built", or "not used" by what is computed here."""

    key: str
    value: object
    effect: str

    def __str__(self) -> str:
        return f"{self.key}: {shown(self.value)}, {self.effect}"


@dataclass(frozen=True)
class Rule:
    """What a key may say (`fits`, and `expected` in words), what such a value does, and why another is refused."""

    fits: Callable[[Any], bool]
    expected: str
    effect: str
    reason: str


def _built(*values: object, reason: str = "the net would compute other logits") -> Rule:
    """Exactly one of these values, a boolean being no number."""

    def fits(told: object) -> bool:
        return any(type(told) is type(value) and told == value for value in values)

    return Rule(fits, " or ".join(map(repr, values)), BUILT, f"the net is built so; {reason}")


def _unused(fits: Callable[[Any], bool], expected: str) -> Rule:
    """Any value of its kind; one of another kind means something that is not understood."""
    return Rule(lambda told: told is None or fits(told), f"{expected} or null", UNUSED, "it is not understood")


def _is_number(told: object) -> bool:
    return isinstance(told, (int, float)) and not isinstance(told, bool) and in_float32(told)


def _is_count(told: object) -> bool:
    return isinstance(told, int) and not isinstance(told, bool) and 0 <= told < 2**63


def _are_texts(told: object) -> bool:
    return isinstance(told, list) and all(isinstance(item, str) for item in told)


def _are_ids(told: object) -> bool:
    return _is_count(told) or (isinstance(told, list) and all(map(_is_count, told)))


YES_OR_NO = _unused(lambda told: isinstance(told, bool), "true or false")
TEXT = _unused(lambda told: isinstance(told, str), "a text")
TEXTS = _unused(_are_texts, "a list of texts")
OBJECT = _unused(lambda told: isinstance(told, dict), "a JSON object")
COUNT = _unused(_is_count, "a whole number from 0 on")
IDS = _unused(_are_ids, "a token id or a list of them")
DROPOUT = _unused(lambda told: _is_number(told) and 0 <= told < 1, "a number from 0 to below 1")
SPREAD = _unused(lambda told: _is_number(told) and told >= 0, "a number from 0 on")
ANYTHING = _unused(lambda told: True, "anything")
DTYPE = _unused(lambda told: told in ("auto", "bfloat16", "float16", "float32"), "bfloat16, float16, float32, auto")
NO = _built(False)
ONE = _built(1)
NONE = _built(None)
QUANTISED = _built(
    None, reason="of weights of fewer bits those are read that MLX's tools write, which say so in quantization"
)

# Of the file and of each of its parts. What a forward pass hands out beside logits, of other tasks, of training, of
# the tools that wrote the file; then how tokens are chosen, which older files say here and which options say for us.
COMMON: dict[str, Rule] = {
    "_attn_implementation": TEXT, "_attn_implementation_autoset": YES_OR_NO, "_attn_implementation_internal": TEXT,
    "_name_or_path": TEXT, "add_cross_attention": NO, "architectures": TEXTS, "attn_implementation": TEXT,
    "auto_map": OBJECT, "bos_token_id": IDS, "chunk_size_feed_forward": _built(0), "compression_config": QUANTISED,
    "cross_attention_hidden_size": NONE, "custom_pipelines": OBJECT, "decoder_start_token_id": IDS, "dtype": DTYPE,
    "eos_token_id": IDS, "finetuning_task": TEXT, "id2label": OBJECT, "ignore_keys_at_rope_validation": TEXTS,
    "initializer_range": SPREAD, "is_composition": YES_OR_NO, "is_decoder": NO, "is_encoder_decoder": NO,
    "label2id": OBJECT, "name_or_path": TEXT, "output_attentions": YES_OR_NO, "output_hidden_states": YES_OR_NO,
    "pad_token_id": IDS, "prefix": TEXT, "problem_type": TEXT, "pruned_heads": _built({}), "quantization": QUANTISED,
    "quantization_config": QUANTISED, "return_dict": YES_OR_NO, "sep_token_id": IDS, "task_specific_params": OBJECT,
    "tf_legacy_loss": YES_OR_NO, "tie_encoder_decoder": NO, "tie_word_embeddings": NO, "tokenizer_class": TEXT,
    "torch_dtype": DTYPE, "torchscript": YES_OR_NO, "transformers_version": TEXT,
    "transformers_weights": TEXT, "unsloth_fixed": YES_OR_NO, "unsloth_version": TEXT, "use_bfloat16": NO,
    "use_cache": YES_OR_NO,
} | dict.fromkeys(
    (
        "bad_words_ids", "begin_suppress_tokens", "diversity_penalty", "do_sample", "early_stopping",
        "encoder_no_repeat_ngram_size", "exponential_decay_length_penalty", "forced_bos_token_id",
        "forced_eos_token_id", "length_penalty", "max_length", "max_new_tokens", "min_length", "no_repeat_ngram_size",
        "num_beam_groups", "num_beams", "num_return_sequences", "output_scores", "remove_invalid_values",
        "repetition_penalty", "return_dict_in_generate", "suppress_tokens", "temperature", "top_k", "top_p",
        "typical_p",
    ), ANYTHING,
)  # fmt: skip
DECODER: dict[str, Rule] = {
    "attention_bias": _built(True), "attention_dropout": DROPOUT, "hidden_act": _built("silu"),
    "max_window_layers": COUNT, "mlp_bias": NO, "model_type": _built("qwen2", "qwen2_text"),
    "partial_rotary_factor": Rule(lambda told: _is_number(told) and told == 1, "1.0", BUILT, "the net is built so"),
    "pretraining_tp": ONE, "sliding_window": COUNT, "use_mrope": NO, "use_qk_norm": NO,
    "use_sliding_window": NO,  # which makes `sliding_window` and `max_window_layers` idle
}  # fmt: skip
ENCODER: dict[str, Rule] = {
    "activation_function": _built("gelu"), "hidden_act": _built("gelu"),
    "model_type": _built("step_audio_2_encoder", MODEL),
}  # fmt: skip
AGREEING = ("layer_types", "head_dim", "rope_parameters")  # of the decoder: judged by what other keys say
PARTS = {"text_config": DECODER, "audio_encoder_config": ENCODER}


def published_keys(data: object, path: str, records: Mapping[str, type]) -> tuple[object, tuple[ConfigNote, ...]]:
    """The parsed `config.json` with only the keys of the records, and a note of each other key that was understood.

    Parameters
    ----------
    data : object
        What the file holds; anything but a JSON object is given back as it is.
    path : str
        Opens messages.
    records : mapping of str to dataclass
        "" for the file itself, then the parts by their keys.

    Raises
    ------
    ConfigError
        Another model; a key that says something else than what is built; an unknown key.
    """
    if not isinstance(data, Mapping):
        return data, ()
    own = {part: {f.name for f in fields(kind)} for part, kind in records.items()}
    notes: list[ConfigNote] = []
    found = _of_this_model(_nested(dict(data), own), path)
    text, end = found.get("text_config"), found.get("eos_token_id")
    if isinstance(text, Mapping) and end is not None:  # said of the whole model, it holds unless the decoder says it
        found = found | {"text_config": {"eos_token_id": end, **text}}
    found = _agreed(_without_bits(found, path, notes), {}, own[""], path, notes)
    for part, rules in PARTS.items():
        inner, below = found.get(part), f"{path}.{part}"
        if isinstance(inner, Mapping):
            inner = dict(inner)
            if part == "text_config":
                inner = _decoder_keys(inner, below, notes)
            found[part] = _agreed(inner, rules, own[part], below, notes)
    return found, tuple(notes)


def _without_bits(data: dict[str, Any], path: str, notes: list[ConfigNote]) -> dict[str, Any]:
    """Without what says which layers have fewer bits: sizes are the same, and whoever reads the weights reads it."""
    said = data.get("quantization")
    if said is None:
        return data
    Quantization.from_dict(said, f"{path}.quantization")
    again = data.get("quantization_config")  # MLX's tools write both
    require(again in (None, said), f"{path}.quantization_config: says something else than quantization; keep one")
    notes.append(ConfigNote(f"{path}.quantization", said, BUILT))
    return {key: told for key, told in data.items() if key not in ("quantization", "quantization_config")}


def _nested(data: dict[str, Any], own: Mapping[str, set[str]]) -> dict[str, Any]:
    """A flat config, which has the keys of decoder and encoder side by side, as the parts that the net has.

    The two share no name. A file without any key of the encoder is some other model's and stays as it is.
    """
    of_encoder = own["audio_encoder_config"] & data.keys()
    if "text_config" in data or "hidden_size" not in data or not (of_encoder or "audio_encoder_config" in data):
        return data
    of_decoder = data.keys() & {*own["text_config"], *DECODER, *AGREEING} - {"model_type"}
    encoder = data.get("audio_encoder_config", {key: data[key] for key in of_encoder})
    taken = of_decoder if "audio_encoder_config" in data else of_decoder | of_encoder
    rest = {key: told for key, told in data.items() if key not in taken}
    if rest.get("model_type") == "qwen2":
        rest["model_type"] = MODEL
    return rest | {"text_config": {key: data[key] for key in of_decoder}, "audio_encoder_config": encoder}


def _of_this_model(data: dict[str, Any], path: str) -> dict[str, Any]:
    told = data.get("model_type", MODEL)
    require(
        told == MODEL or not isinstance(told, str),  # no text is a wrong type, which the record refuses
        f"{path}.model_type: expected {MODEL!r}, found {shown(told)}; is this another model's folder?",
    )
    return data


def _agreed(
    data: dict[str, Any], rules: Mapping[str, Rule], own: set[str], path: str, notes: list[ConfigNote]
) -> dict[str, Any]:
    """What is left for the record once every other key said what is built."""
    kept = {}
    for key, told in data.items():
        rule = None if key in own else rules.get(key, COMMON.get(key))
        if rule is None:
            kept[key] = told
            continue
        if not rule.fits(told):
            require(False, f"{path}.{key}: expected {rule.expected}, found {shown(told)}; {rule.reason}")
        notes.append(ConfigNote(f"{path}.{key}", told, rule.effect))
    return require_keys(kept, own, path, UNKNOWN)


def _decoder_keys(text: dict[str, Any], path: str, notes: list[ConfigNote]) -> dict[str, Any]:
    """Without the keys that must agree with others, `rope_theta` where transformers wrote it before its version 5."""
    for name, expected, fits in (
        ("layer_types", f"{FULL!r} of every layer", _all_full),
        ("head_dim", "hidden_size / num_attention_heads", _divides),
    ):
        if (told := text.pop(name, None)) is not None:
            require(fits(told, text), f"{path}.{name}: expected {expected}, found {shown(told)}; the net is built so")
            notes.append(ConfigNote(f"{path}.{name}", told, BUILT))
    rope = text.pop("rope_parameters", None)
    if rope is not None:
        plain = isinstance(rope, Mapping) and {"rope_theta"} <= set(rope) <= {"rope_theta", "rope_type"}
        require(
            plain
            and rope.get("rope_type", ROPE) == ROPE
            and text.get("rope_theta", rope["rope_theta"]) == rope["rope_theta"],
            f"{path}.rope_parameters: expected rope_theta, once, and rope_type {ROPE!r}, found {shown(rope)}",
        )
        text["rope_theta"] = rope["rope_theta"]
        notes.append(ConfigNote(f"{path}.rope_parameters", rope, BUILT))
    return text


def _all_full(told: object, text: Mapping[str, Any]) -> bool:
    return isinstance(told, list) and all(k == FULL for k in told) and len(told) == text.get("num_hidden_layers")


def _divides(told: object, text: Mapping[str, Any]) -> bool:
    heads, size = text.get("num_attention_heads"), text.get("hidden_size")
    return _is_count(told) and _is_count(heads) and told * heads == size  # pyright: ignore[reportOperatorIssue]
