"""Keys of `config.json` beside the published ones: what others add, each of them wrong in turn, and flat files."""

import copy
import json

import pytest
from published_config import PUBLISHED, changed

from stepaudio.errors import ConfigError
from stepaudio.models import config_keys
from stepaudio.models.speech_lm import StepAudioConfig, read_config

# ---- keys that `save_pretrained` adds ----

ADDED = {
    "hidden_act": "silu", "attention_dropout": 0.1, "initializer_range": 0.02, "use_sliding_window": False,
    "sliding_window": 4096, "max_window_layers": 21, "layer_types": ["full_attention"] * 28, "model_type": "qwen2",
    "tie_word_embeddings": False, "bos_token_id": 151643,
    "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"},
    "chunk_size_feed_forward": 0, "id2label": {"0": "LABEL_0"}, "is_encoder_decoder": False, "output_attentions": False,
}  # fmt: skip


def test_the_config_of_a_fine_tune_says_the_same():
    data = copy.deepcopy(PUBLISHED) | {"bos_token_id": None, "tie_word_embeddings": False, "dtype": "bfloat16"}
    data["text_config"] |= ADDED
    data["audio_encoder_config"] |= {"model_type": "step_audio_2_encoder", "initializer_range": 0.02}
    assert StepAudioConfig.from_dict(data) == StepAudioConfig.from_dict(PUBLISHED)
    del data["text_config"]["rope_theta"]  # as transformers 5 writes it
    assert StepAudioConfig.from_dict(data) == StepAudioConfig.from_dict(PUBLISHED)


def test_every_key_of_transformers_own_qwen2_is_known():
    """Whatever that library writes for this decoder is read, and back in its own words."""
    transformers = pytest.importorskip("transformers")
    text = PUBLISHED["text_config"]
    theirs = transformers.Qwen2Config(**{k: v for k, v in text.items() if k not in ("rope_scaling", "torch_dtype")})
    for written in (theirs.to_dict(), theirs.to_diff_dict()):
        data = copy.deepcopy(PUBLISHED) | {"text_config": json.loads(json.dumps(written, default=str))}
        assert StepAudioConfig.from_dict(data) == StepAudioConfig.from_dict(PUBLISHED)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("text_config.hidden_act", "gelu"),
        ("text_config.tie_word_embeddings", True),
        ("text_config.tie_word_embeddings", 0),
        ("tie_word_embeddings", True),
        ("text_config.use_sliding_window", True),
        ("text_config.use_sliding_window", None),
        ("text_config.layer_types", ["full_attention"] * 27 + ["sliding_attention"]),
        ("text_config.layer_types", ["full_attention"] * 27),
        ("text_config.layer_types", "full_attention"),
        ("text_config.model_type", "llama"),
        ("text_config.pruned_heads", {"0": [1]}),
        ("text_config.rope_parameters", {"rope_theta": 1e4, "rope_type": "default"}),
        ("text_config.rope_parameters", {"rope_theta": 1e6, "rope_type": "yarn", "factor": 4.0}),
        ("text_config.rope_parameters", {}),
        ("text_config.rope_parameters", [1e6]),
    ],
)
def test_an_added_key_that_says_something_else_is_refused(path, value):
    with pytest.raises(ConfigError, match=f"{path.rpartition('.')[2]}: .*found "):
        StepAudioConfig.from_dict(changed(path, value))


# ---- every key that is known beside the published ones, with a value under which the net would be another ----

WRONG = {
    "": {
        "_attn_implementation": 1, "_attn_implementation_autoset": "yes", "_attn_implementation_internal": 1,
        "_name_or_path": 3, "add_cross_attention": True, "architectures": "StepAudio2ForCausalLM",
        "attn_implementation": 1, "auto_map": [], "bos_token_id": "<|BOT|>", "chunk_size_feed_forward": 4,
        "compression_config": {"a": 1}, "cross_attention_hidden_size": 64, "custom_pipelines": [],
        "decoder_start_token_id": -1, "dtype": "int8", "eos_token_id": "<|EOT|>", "finetuning_task": 1,
        "id2label": ["a"], "ignore_keys_at_rope_validation": "rope_theta", "initializer_range": -0.02,
        "is_composition": "no", "is_decoder": True, "is_encoder_decoder": True, "label2id": 3, "name_or_path": [],
        "output_attentions": 1, "output_hidden_states": "all", "pad_token_id": 1.5, "prefix": 0, "problem_type": 0,
        "pruned_heads": {"0": [1]}, "quantization": {"bits": 7, "group_size": 64},
        "quantization_config": {"quant_method": "gptq"}, "return_dict": "true", "sep_token_id": {},
        "task_specific_params": "none", "tf_legacy_loss": 0, "tie_encoder_decoder": True, "tie_word_embeddings": True,
        "tokenizer_class": {}, "torch_dtype": "float8_e4m3fn", "torchscript": "off",
        "transformers_version": 5, "transformers_weights": 1, "unsloth_fixed": "yes", "unsloth_version": 2025,
        "use_bfloat16": True, "use_cache": "always",
    },
    "text_config": {
        "attention_bias": False, "attention_dropout": 1.5, "hidden_act": "gelu", "max_window_layers": -1,
        "mlp_bias": True, "model_type": "qwen3", "partial_rotary_factor": 0.5, "pretraining_tp": 2,
        "sliding_window": "wide", "use_mrope": True, "use_qk_norm": True, "use_sliding_window": True,
        "layer_types": ["full_attention"] * 27, "head_dim": 64, "rope_parameters": {"rope_theta": 1e4},
    },
    "audio_encoder_config": {"activation_function": "relu", "hidden_act": "silu", "model_type": "whisper"},
}  # fmt: skip


def test_the_table_of_wrong_values_has_every_key():
    """But for those that say how tokens are chosen, which any value may be."""
    free = {key for key, rule in config_keys.COMMON.items() if rule is config_keys.ANYTHING}
    assert set(WRONG[""]) == set(config_keys.COMMON) - free and {"temperature", "do_sample", "num_beams"} <= free
    assert set(WRONG["text_config"]) == {*config_keys.DECODER, *config_keys.AGREEING}
    assert set(WRONG["audio_encoder_config"]) == set(config_keys.ENCODER)


@pytest.mark.parametrize(("section", "key"), [(section, key) for section, keys in WRONG.items() for key in keys])
def test_each_key_that_says_something_else_is_refused_with_the_reason(section, key):
    path = f"{section}.{key}".strip(".")
    with pytest.raises(ConfigError, match=rf"^config.json.{path}: expected .* found .*") as refused:
        StepAudioConfig.from_dict(changed(path, WRONG[section][key]))
    assert len(str(refused.value)) < 500 and (";" in str(refused.value) or key == "rope_parameters")


@pytest.mark.parametrize("section", ["text_config", "audio_encoder_config"])
def test_a_key_of_every_part_is_refused_in_each(section):
    """A net whose head is tied, or whose weights have fewer bits, may say so at any place."""
    for key in ("tie_word_embeddings", "quantization_config", "is_encoder_decoder"):
        with pytest.raises(ConfigError, match=f"{section}.{key}: expected"):
            StepAudioConfig.from_dict(changed(f"{section}.{key}", WRONG[""][key]))


SAVED_AGAIN = {
    "_name_or_path": "somebody/fine-tune", "architectures": ["StepAudio2ForConditionalGeneration"],
    "add_cross_attention": False, "bos_token_id": None, "chunk_size_feed_forward": 0, "diversity_penalty": 0.0,
    "do_sample": False, "dtype": "bfloat16", "early_stopping": False, "eos_token_id": [151643, 151645, 151665],
    "finetuning_task": None, "id2label": {"0": "LABEL_0"}, "initializer_range": 0.02, "is_decoder": False,
    "is_encoder_decoder": False, "label2id": {"LABEL_0": 0}, "length_penalty": 1.0, "max_length": 20, "num_beams": 1,
    "output_attentions": False, "output_hidden_states": False, "pad_token_id": 151643, "prefix": None,
    "problem_type": None, "pruned_heads": {}, "quantization_config": None, "repetition_penalty": 1.0,
    "return_dict": True, "sep_token_id": None, "temperature": 1.0, "tie_word_embeddings": False,
    "tokenizer_class": None, "torch_dtype": "bfloat16", "torchscript": False, "transformers_version": "4.57.1",
    "unsloth_fixed": True, "use_bfloat16": False, "use_cache": True,
}  # fmt: skip


def test_a_config_saved_again_with_thirty_added_keys_is_the_same_and_each_is_listed(tmp_path):
    data = copy.deepcopy(PUBLISHED) | SAVED_AGAIN
    data["text_config"] |= ADDED | {"head_dim": 128, "attention_bias": True}
    assert len(SAVED_AGAIN.keys() - PUBLISHED.keys()) > 30
    (tmp_path / "config.json").write_text(json.dumps(data))
    config, notes = read_config(tmp_path)
    assert config == StepAudioConfig.from_dict(PUBLISHED)
    listed = {note.key.removeprefix("config.json.") for note in notes}
    assert listed >= {key for key in SAVED_AGAIN if key != "model_type"}
    assert listed >= {f"text_config.{key}" for key in (*ADDED, "head_dim")}
    said = {note.key: str(note) for note in notes}
    assert said["config.json.text_config.hidden_act"] == "config.json.text_config.hidden_act: 'silu', as built"
    assert said["config.json.text_config.attention_dropout"].endswith("0.1, not used")


def test_end_ids_are_one_or_several_and_said_at_either_place():
    assert StepAudioConfig.from_dict(PUBLISHED).text_config.end_ids == {151643}
    several = StepAudioConfig.from_dict(changed("text_config.eos_token_id", [151643, 151665]))
    assert several.text_config.end_ids == {151643, 151665}
    assert StepAudioConfig.from_dict(json.loads(json.dumps(several.to_dict()))) == several
    data = changed("text_config.eos_token_id") | {"eos_token_id": [7, 8]}
    assert StepAudioConfig.from_dict(data).text_config.end_ids == {7, 8}
    assert StepAudioConfig.from_dict(PUBLISHED | {"eos_token_id": 7}).text_config.end_ids == {151643}
    for wrong in ([151643, 158_720], [-1]):
        with pytest.raises(ConfigError, match="eos_token_id: expected an id of the vocabulary"):
            StepAudioConfig.from_dict(changed("text_config.eos_token_id", wrong))


def test_an_unknown_key_is_refused_with_what_to_do():
    with pytest.raises(ConfigError, match="unknown key rotary_style; known are .*; whether it changes .* take it out"):
        StepAudioConfig.from_dict(changed("text_config.rotary_style", "new"))


# ---- flat ----


def flat(nested_encoder: bool) -> dict:
    data = {"model_type": "step_audio_2", "hidden_act": "silu", "transformers_version": "4.49.0"}
    data |= {k: v for k, v in PUBLISHED["text_config"].items() if k != "max_seq_len"}
    encoder = PUBLISHED["audio_encoder_config"]
    return data | ({"audio_encoder_config": dict(encoder)} if nested_encoder else encoder)


@pytest.mark.parametrize("nested_encoder", [True, False])
def test_a_flat_file_is_read_as_the_nested_one(tmp_path, nested_encoder):
    data = flat(nested_encoder)
    expected = StepAudioConfig.from_dict(changed("text_config.max_seq_len"))
    assert StepAudioConfig.from_dict(data) == StepAudioConfig.from_dict(data | {"model_type": "qwen2"}) == expected
    (tmp_path / "config_origin.json").write_text(json.dumps(data))
    assert StepAudioConfig.from_file(tmp_path) == expected
    with pytest.raises(ConfigError, match="text_config.hidden_act: expected 'silu', found 'gelu'"):
        StepAudioConfig.from_dict(data | {"hidden_act": "gelu"})
    with pytest.raises(ConfigError, match="unknown key novelty"):
        StepAudioConfig.from_dict(data | {"novelty": 1})


def test_the_nested_file_is_read_where_both_are_there(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED))
    (tmp_path / "config_origin.json").write_text("broken")
    assert StepAudioConfig.from_file(tmp_path) == StepAudioConfig.from_dict(PUBLISHED)
    with pytest.raises(ConfigError, match="config_origin.json: not readable as JSON"):
        StepAudioConfig.from_file(tmp_path / "config_origin.json")


def test_a_text_model_is_told_from_a_flat_file():
    data = {k: v for k, v in flat(True).items() if k != "audio_encoder_config"}
    with pytest.raises(ConfigError, match="expected 'step_audio_2', found 'qwen2'; is this another model's folder"):
        StepAudioConfig.from_dict(data | {"model_type": "qwen2"})
