"""LoRA folders: written, read again, and held against what the formats' own libraries make of them."""

import json

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import load_file

from stepaudio.checkpoints.lora import write_lora
from stepaudio.errors import WeightsError


def pair(inputs: int, rank: int, outputs: int, seed: int = 0) -> tuple[mx.array, mx.array]:
    r = np.random.default_rng(seed)
    return tuple(mx.array(r.standard_normal(s).astype(np.float32)) for s in ((inputs, rank), (rank, outputs)))


# ---- writing ----


def test_what_is_written_is_mlx_lms_format(tmp_path):
    pairs = {"model.layers.1.mlp.up_proj": pair(8, 4, 6), "lm_head": pair(8, 4, 20, 1)}
    write_lora(tmp_path / "lora", pairs, 2.0, base="nano")
    stored = load_file(tmp_path / "lora" / "adapters.safetensors")
    assert sorted(stored) == sorted(f"{name}.lora_{x}" for name in pairs for x in "ab")
    for name, arrays in pairs.items():
        for letter, array in zip("ab", arrays, strict=True):
            np.testing.assert_array_equal(stored[f"{name}.lora_{letter}"], np.array(array).astype(np.float16))
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    keys = ["lm_head", "mlp.up_proj"]
    assert config["lora_parameters"] == {"rank": 4, "scale": 2.0, "dropout": 0.0, "keys": keys}
    assert (config["fine_tune_type"], config["num_layers"], config["model"]) == ("lora", -1, "nano")
    assert {p.name for p in (tmp_path / "lora").iterdir()} == {"adapters.safetensors", "adapter_config.json"}


@pytest.mark.parametrize(
    ("pairs", "scale", "message"),
    [
        ({}, 1.0, "without a layer"),
        ({"lm_head": pair(8, 4, 20)[::-1]}, 1.0, r"lm_head: expected A of .* found \(4, 20\) and \(8, 4\)"),
        ({"lm_head": pair(8, 4, 20), "model.embed_tokens": pair(20, 2, 8)}, 1.0, "expected one rank"),
        ({"lm_head": (mx.full((8, 4), 1e6), mx.ones((4, 20)))}, 1.0, "lm_head.lora_a: has values that float16"),
        ({"lm_head": pair(8, 4, 20)}, float("nan"), "scale: expected a finite number"),
    ],
)
def test_what_is_no_lora_is_not_written(tmp_path, pairs, scale, message):
    with pytest.raises(WeightsError, match=message):
        write_lora(tmp_path / "lora", pairs, scale)
    assert not (tmp_path / "lora" / "adapters.safetensors").exists()


def test_a_folder_that_cannot_be_written_is_one_error(tmp_path):
    (tmp_path / "lora").write_text("a file")
    with pytest.raises(WeightsError, match="the LoRA could not be written"):
        write_lora(tmp_path / "lora", {"lm_head": pair(8, 4, 20)}, 1.0)
