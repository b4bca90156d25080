"""LoRAs with random values, written by hand in the two formats, and what they add to a weight, in numpy."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

ATTENTION = [f"self_attn.{name}_proj" for name in "qkvo"]
MLP = [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
TABLE, HEAD = "model.embed_tokens", "lm_head"
SCALE = 0.75


def layers_of(folder: Path) -> dict[str, tuple[int, int]]:
    """Layer -> shape of its weight, of everything that mlx-lm would train in the decoder of a folder."""
    from safetensors.numpy import load_file

    shapes = {name.removesuffix(".weight"): x.shape for name, x in load_file(folder / "model.safetensors").items()}
    wanted = [f"model.layers.{i}.{name}" for i in range(2) for name in (*ATTENTION, *MLP)]
    return {name: shapes[name] for name in (*wanted, HEAD, TABLE)}


def pairs_of(layers: dict[str, tuple[int, int]], rank: int = 4, seed: int = 0) -> dict[str, tuple]:
    """Layer -> A and B as mlx-lm has them, float32."""
    r = np.random.default_rng(seed)

    def values(*shape):
        return (r.standard_normal(shape) * 0.2).astype(np.float32)

    return {
        name: (values(*((rows, rank) if name == TABLE else (width, rank))),
               values(*((rank, width) if name == TABLE else (rank, rows))))
        for name, (rows, width) in layers.items()
    }  # fmt: skip


def added(name: str, pair: tuple, scale: float = SCALE) -> np.ndarray:
    """What a pair adds to its weight, float64."""
    change = scale * (pair[0].astype(np.float64) @ pair[1].astype(np.float64))
    return change if name == TABLE else change.T


def write_mlx(folder: Path, pairs: dict, config: dict | None = None, prefix: str = "", **tensors) -> Path:
    """As mlx-lm writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    stored = {f"{prefix}{n}.lora_{letter}": x for n, p in pairs.items() for letter, x in zip("ab", p, strict=True)}
    save_file({n: np.ascontiguousarray(x) for n, x in (stored | tensors).items()}, folder / "adapters.safetensors")
    rank = next(iter(pairs.values()))[0].shape[1] if pairs else 4
    said = {"fine_tune_type": "lora", "num_layers": 2, "iters": 100, "data": "somewhere",
            "lora_parameters": {"rank": rank, "scale": SCALE, "dropout": 0.0}}  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(said | (config or {})))
    return folder


def write_peft(folder: Path, pairs: dict, config: dict | None = None, **tensors) -> Path:
    """As PEFT writes it: each matrix with its axes exchanged; alpha by rank is 3."""
    folder.mkdir(parents=True, exist_ok=True)
    stored = {}
    for name, (a, b) in pairs.items():
        for letter, x in (("A", a), ("B", b)):
            last = f"lora_embedding_{letter}" if name == TABLE else f"lora_{letter}.weight"
            stored[f"base_model.model.{name}.{last}"] = x.T
    save_file({n: np.ascontiguousarray(x) for n, x in (stored | tensors).items()}, folder / "adapter_model.safetensors")
    said = {"peft_type": "LORA", "r": 4, "lora_alpha": 12, "lora_dropout": 0.1, "bias": "none", "use_rslora": False,
            "use_dora": False, "modules_to_save": None, "rank_pattern": {}, "alpha_pattern": {},
            "init_lora_weights": True, "target_modules": ["q_proj"], "qalora_group_size": 16}  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(said | (config or {})))
    return folder
