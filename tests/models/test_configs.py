"""The published config.json, and every way in which one can be wrong."""

import copy
import json

import pytest

from stepaudio.errors import ConfigError
from stepaudio.models.speech_lm import StepAudioConfig

# The published file's values, so that these tests run without the reference data.
PUBLISHED = {
    "architectures": ["StepAudio2ForCausalLM"],
    "auto_map": {"AutoConfig": "configuration_step_audio_2.StepAudio2Config"},
    "model_type": "step_audio_2",
    "text_config": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_attention_heads": 28,
        "num_attention_groups": 4,
        "num_key_value_heads": 4,
        "num_hidden_layers": 28,
        "max_seq_len": 16384,
        "vocab_size": 158720,
        "rms_norm_eps": 1e-06,
        "eos_token_id": 151643,
        "pad_token_id": 151643,
        "rope_theta": 1000000.0,
        "max_position_embeddings": 16384,
        "rope_scaling": None,
        "torch_dtype": "bfloat16",
    },
    "audio_encoder_config": {
        "n_mels": 128,
        "n_audio_ctx": 1500,
        "n_audio_state": 1280,
        "n_audio_head": 20,
        "n_audio_layer": 32,
        "n_codebook_size": 4096,
        "llm_dim": 3584,
        "kernel_size": 3,
        "adapter_stride": 2,
    },
}


def changed(path: str, value: object = "absent") -> dict:
    """The published config with one value set, or taken out."""
    data = copy.deepcopy(PUBLISHED)
    *sections, key = path.split(".")
    place = data[sections[0]] if sections else data
    if value == "absent":
        del place[key]
    else:
        place[key] = value
    return data


def test_published_file(shared):
    data = json.loads((shared / "Step-Audio-2-mini" / "config.json").read_text())
    for section in ("text_config", "audio_encoder_config"):
        assert data[section] == PUBLISHED[section]
    config = StepAudioConfig.from_file(shared / "Step-Audio-2-mini")
    assert config == StepAudioConfig.from_file(shared / "Step-Audio-2-mini" / "config.json")
    assert config == StepAudioConfig.from_dict(PUBLISHED)


def test_values_are_those_of_the_file():
    config = StepAudioConfig.from_dict(PUBLISHED)
    for section in ("text_config", "audio_encoder_config"):
        for key, value in PUBLISHED[section].items():
            if key != "torch_dtype":
                assert getattr(getattr(config, section), key) == value
    text = config.text_config
    assert (text.head_dim, text.context, config.max_cache_len) == (128, 16384, 4096)
    assert config.audio_encoder_config.adapter_hidden == 2048
    # The published model's cache: 56 KiB a position in 16 bits.
    assert text.kv_bytes_per_position(2) == 56 * 1024


def test_round_trip(tmp_path):
    config = StepAudioConfig.from_dict(changed("max_cache_len", 99))
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    assert StepAudioConfig.from_file(tmp_path) == config and config.max_cache_len == 99
    without = StepAudioConfig.from_dict(changed("text_config.eos_token_id"))
    assert "eos_token_id" not in without.to_dict()["text_config"]


@pytest.mark.parametrize(
    "path",
    [
        *(
            f"text_config.{k}"
            for k in (
                "hidden_size",
                "intermediate_size",
                "num_attention_heads",
                "num_key_value_heads",
                "num_hidden_layers",
                "vocab_size",
                "rms_norm_eps",
                "rope_theta",
            )
        ),
        *(
            f"audio_encoder_config.{k}"
            for k in (
                "n_mels",
                "n_audio_ctx",
                "n_audio_state",
                "n_audio_head",
                "n_audio_layer",
                "llm_dim",
                "kernel_size",
                "adapter_stride",
            )
        ),
        "text_config",
        "audio_encoder_config",
    ],
)
def test_missing_key_is_named(path):
    section, _, key = path.rpartition(".")
    with pytest.raises(ConfigError, match=f"config.json{'.' if section else ''}{section}: missing key {key}"):
        StepAudioConfig.from_dict(changed(path))


@pytest.mark.parametrize(
    "path",
    [
        "encoder_config",
        "hidden_size",
        "text_config.n_layer",
        "audio_encoder_config.dropout",
        "text_config.tie_word_embeddings",
    ],
)
def test_unknown_key_is_named(path):
    section, _, key = path.rpartition(".")
    where = f"config.json{'.' if section else ''}{section}"
    with pytest.raises(ConfigError, match=f"{where}: unknown key {key}; known are"):
        StepAudioConfig.from_dict(changed(path, 7))


def test_keys_that_compute_nothing_may_be_absent():
    for path in (
        "architectures",
        "auto_map",
        "text_config.torch_dtype",
        "text_config.num_attention_groups",
        "text_config.max_seq_len",
        "audio_encoder_config.n_codebook_size",
        "text_config.rope_scaling",
    ):
        StepAudioConfig.from_dict(changed(path))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("text_config.num_attention_groups", 2, "num_attention_groups 2 contradicts num_key_value_heads 4"),
        ("text_config.max_seq_len", 8192, "max_seq_len 8192 contradicts max_position_embeddings 16384"),
        ("audio_encoder_config.llm_dim", 4096, "llm_dim 4096 contradicts text_config.hidden_size 3584"),
        ("text_config.num_attention_heads", 27, "3584 is not a multiple of num_attention_heads 27"),
        ("text_config.num_attention_heads", 3584, "head size 1 is odd"),
        ("text_config.num_key_value_heads", 5, "28 is not a multiple of num_key_value_heads 5"),
        ("text_config.rope_scaling", {"type": "yarn"}, "rope_scaling: only null"),
        ("text_config.rms_norm_eps", 0.0, "rms_norm_eps and rope_theta must be positive"),
        ("text_config.num_hidden_layers", 0, "num_hidden_layers: must be positive, found 0"),
        ("audio_encoder_config.n_audio_head", 21, "1280 is not a multiple of n_audio_head 21"),
        ("audio_encoder_config.n_mels", -128, "n_mels: must be positive, found -128"),
        ("model_type", "qwen2", "expected 'step_audio_2', found 'qwen2'"),
        ("max_cache_len", 0, "max_cache_len: must be positive, found 0"),
    ],
)
def test_contradiction_is_named(path, value, message):
    with pytest.raises(ConfigError, match=message):
        StepAudioConfig.from_dict(changed(path, value))


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("text_config.hidden_size", "3584", "int"),
        ("text_config.hidden_size", 3584.0, "int"),
        ("text_config.hidden_size", None, "int"),
        ("text_config.vocab_size", True, "int"),
        ("text_config.rope_theta", "1e6", "float"),
        ("text_config.rms_norm_eps", False, "float"),
        ("text_config.eos_token_id", [1, 2], "int"),
        ("model_type", 3, "str"),
    ],
)
def test_wrong_type_is_named(path, value, expected):
    with pytest.raises(ConfigError, match=f"config.json.{path}: expected {expected}, found"):
        StepAudioConfig.from_dict(changed(path, value))


@pytest.mark.parametrize("data", [[], "x", None, 3])
def test_refuses_what_is_no_object(data):
    with pytest.raises(ConfigError, match="config.json: expected a JSON object"):
        StepAudioConfig.from_dict(data)
    with pytest.raises(ConfigError, match="config.json.text_config: expected a JSON object"):
        StepAudioConfig.from_dict(changed("text_config", data))


def test_integers_may_stand_for_floats():
    config = StepAudioConfig.from_dict(changed("text_config.rope_theta", 1000000))
    assert config == StepAudioConfig.from_dict(PUBLISHED) and type(config.text_config.rope_theta) is float


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"", "not readable as JSON"),
        (b"{", "not readable as JSON"),
        (b"\xff\xfe", "not readable as JSON"),
    ],
)
def test_unreadable_file(tmp_path, content, message):
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        StepAudioConfig.from_file(tmp_path)
