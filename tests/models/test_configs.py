"""The published config.json, and every way in which one can be wrong."""

import copy
import dataclasses
import json
import math
from collections.abc import Iterator

import pytest
from published_config import PUBLISHED, changed

from stepaudio.checkpoints.layout import CONFIGS, net_layout
from stepaudio.checkpoints.random_weights import sizes
from stepaudio.errors import ConfigError
from stepaudio.models.speech_lm import StepAudioConfig
from stepaudio.schema import MAX_LAYERS, MAX_SIZE, read_record


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
        ("text_config.rms_norm_eps", 0.0, "rms_norm_eps: must be positive, found 0.0"),
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
        ("text_config.eos_token_id", [1, "2"], "int or a list of int"),
        ("text_config.eos_token_id", {}, "int or a list of int"),
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


# ---- numbers that no net can have: refused by their path, at once, before anything is built ----

LM = PUBLISHED | {"max_cache_len": 4096}
# As JSON has them: the file of the language model, and those of token2wav as its manifest keeps them.
DATA = {"config.json": LM} | {
    name: json.loads(json.dumps(dataclasses.asdict(config))) for name, config in sizes("published").items()
}
LAYERS = {"num_hidden_layers", "n_audio_layer", "num_blocks", "num_up_blocks", "depth"}
# Floats that may be 0 or negative: slopes, noise, rates of dropout and of guidance, all within float32.
SIGNED = {"lrelu_slope", "final_lrelu_slope", "nsf_alpha", "nsf_sigma", "nsf_voiced_threshold", "inference_cfg_rate",
          "dropout_rate", "positional_dropout_rate", "attention_dropout_rate"}  # fmt: skip


def numbers(tree, kind: type, path: tuple = ()) -> Iterator[tuple]:
    """Where the numbers of one kind stand in nested objects and lists."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        if type(value) is kind:
            yield (*path, key)
        yield from numbers(value, kind, (*path, key))


def rows(kind: type) -> list:
    return [(name, path) for name, data in DATA.items() for path in numbers(data, kind)]


def read(name: str, path: tuple, value: object):
    data = copy.deepcopy(DATA[name])
    place = data
    for key in path[:-1]:
        place = place[key]
    assert type(place[path[-1]]) is type(value) or value in (math.inf, -math.inf)
    place[path[-1]] = value
    return StepAudioConfig.from_dict(data) if name == "config.json" else read_record(CONFIGS[name], data, name)


def test_the_table_has_every_number():
    assert len(rows(int)) > 90 and len(rows(float)) >= 17


@pytest.mark.parametrize(("name", "path"), rows(int), ids=str)
def test_no_whole_number_is_believed(name, path):
    for value in (2**31, 2**63, 10**30, 10**400, -1, -(10**400)):
        with pytest.raises(ConfigError, match=next(str(key) for key in reversed(path) if isinstance(key, str))):
            read(name, path, value)


@pytest.mark.parametrize(("name", "path"), [row for row in rows(int) if row[1][-1] in LAYERS], ids=str)
def test_layers_are_few(name, path):
    for value in (MAX_LAYERS + 1, 10**6):
        with pytest.raises(ConfigError, match=f"at most {MAX_LAYERS} are possible, found {value}"):
            read(name, path, value)
    assert net_layout(read(name, path, 40))


@pytest.mark.parametrize(("name", "path"), rows(float), ids=str)
def test_every_float_is_one_of_float32(name, path):
    for value in (math.nan, math.inf, -math.inf, 1e-46, 1e-39, 1e39, -1e300):
        with pytest.raises(
            ConfigError, match=rf"{path[-1]}: expected (a finite float|0 or a float of float32's range)"
        ):
            read(name, path, value)


@pytest.mark.parametrize(("name", "path"), [row for row in rows(float) if row[1][-1] not in SIGNED], ids=str)
def test_a_float_that_divides_is_above_zero(name, path):
    for value in (0.0, -0.0, -1.0):
        with pytest.raises(ConfigError, match=str(path[-1])):
            read(name, path, value)


def test_records_made_by_hand_are_held_to_the_same_ranges():
    text = StepAudioConfig.from_dict(PUBLISHED).text_config
    for change in ({"rms_norm_eps": math.inf}, {"rms_norm_eps": 1e-46}, {"rope_theta": math.nan}, {"rms_norm_eps": 1.5},
                   {"rope_theta": 0.5}, {"vocab_size": MAX_SIZE + 1}, {"eos_token_id": 158_720}, {"pad_token_id": -1},
                   {"max_seq_len": 0, "max_position_embeddings": 0}):  # fmt: skip
        with pytest.raises(ConfigError, match=next(iter(change))):
            dataclasses.replace(text, **change)
