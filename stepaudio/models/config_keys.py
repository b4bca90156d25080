"""Keys that `save_pretrained` writes into every `config.json`: fine-tunes have them, the published file does not.

What cannot change a logit is dropped. What could is dropped where it says what is built here, and refused elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..schema import require, shown

# Of training, of other tasks, or of what a forward pass hands out beside its logits.
BOOKKEEPING = frozenset(
    {
        "_name_or_path", "architectures", "attention_dropout", "auto_map", "bos_token_id", "dtype", "finetuning_task",
        "id2label", "initializer_range", "label2id", "max_window_layers", "name_or_path", "output_attentions",
        "output_hidden_states", "prefix", "problem_type", "return_dict", "sep_token_id", "sliding_window",
        "task_specific_params", "tokenizer_class", "torch_dtype", "torchscript", "transformers_version", "use_cache",
    }
)  # fmt: skip
AS_BUILT: dict[str, object] = {
    "add_cross_attention": False,
    "chunk_size_feed_forward": 0,
    "hidden_act": "silu",
    "is_decoder": False,
    "is_encoder_decoder": False,
    "pruned_heads": {},
    "tie_encoder_decoder": False,
    "tie_word_embeddings": False,
    "use_bfloat16": False,
    "use_sliding_window": False,  # which makes `sliding_window` and `max_window_layers` idle
}
PARTS = {"text_config": "qwen2", "audio_encoder_config": None}  # part -> the only `model_type` it may say
FULL, ROPE = "full_attention", "default"


def without_added_keys(data: object, path: str) -> object:
    """The parsed `config.json` with only the keys that the published one may have.

    Raises
    ------
    ConfigError
        A key that says something else than what is built.
    """
    if not isinstance(data, Mapping):
        return data
    found = _agreed(data, path)
    for part, kind in PARTS.items():
        inner = found.get(part)
        if isinstance(inner, Mapping):
            inner, below = _agreed(inner, f"{path}.{part}"), f"{path}.{part}"
            if "model_type" in inner:
                told = inner.pop("model_type")
                require(kind in (None, told), f"{below}.model_type: expected {kind!r}, found {shown(told)}")
            found[part] = _text_as_published(inner, below) if part == "text_config" else inner
    return found


def _agreed(data: Mapping, path: str) -> dict[str, Any]:
    for key in AS_BUILT.keys() & data.keys():
        built, told = AS_BUILT[key], data[key]
        same = type(told) is type(built) and told == built
        require(
            same, f"{path}.{key}: the net is built with {built!r}, found {shown(told)}; it would compute other logits"
        )
    return {key: value for key, value in data.items() if key not in AS_BUILT and key not in BOOKKEEPING}


def _text_as_published(text: dict[str, Any], path: str) -> dict[str, Any]:
    """Without `layer_types`, and with `rope_theta` in the place where transformers wrote it before its version 5."""
    kinds = text.pop("layer_types", None)
    require(
        kinds is None
        or (isinstance(kinds, list) and all(k == FULL for k in kinds) and len(kinds) == text.get("num_hidden_layers")),
        f"{path}.layer_types: expected {FULL!r} of every layer, found {shown(kinds)}",
    )
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
    return text
