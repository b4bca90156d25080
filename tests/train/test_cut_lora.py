"""A LoRA cut to a lower rank, beside NumPy's singular values of the whole product."""

import importlib.util
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np

from stepaudio.checkpoints.lora import write_lora

SCRIPT = Path(__file__).resolve().parents[2] / "data" / "recipe" / "cut_lora.py"


def test_a_cut_lora_is_the_nearest_of_its_rank(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("cut_lora", SCRIPT)
    cut = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(cut)
    rng = np.random.default_rng(0)
    pairs = {
        name: [rng.normal(size=shape).astype(np.float16) for shape in ((n, 6), (6, m))]
        for name, n, m in (("lm_head", 20, 30), ("model.embed_tokens", 40, 10))
    }
    write_lora(tmp_path / "whole", {name: tuple(map(mx.array, pair)) for name, pair in pairs.items()}, 2.0)
    command = ["cut_lora.py", str(tmp_path / "whole"), str(tmp_path / "cut"), "--rank", "3"]
    monkeypatch.setattr(sys, "argv", command)
    cut.main()
    found = mx.load(str(tmp_path / "cut" / "adapters.safetensors"))
    for name, (a, b) in pairs.items():
        u, values, v = np.linalg.svd(a.astype(float) @ b.astype(float), full_matrices=False)
        nearest = (u[:, :3] * values[:3]) @ v[:3]
        a, b = (np.array(found[f"{name}.lora_{half}"].astype(mx.float32)) for half in "ab")
        assert a.shape[1] == 3
        assert np.abs(a @ b - nearest).max() < 2e-3 * np.abs(nearest).max()
