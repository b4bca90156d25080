"""Write a LoRA again with a lower rank: of each layer's product the best of that rank, by singular values.

    python cut_lora.py run/model ../nano/talk --rank 56

Needs the package. What the cut leaves out is printed for each layer, as a share of the squares of its product; factors
are stored in float16. Source of the method: Eckart and Young 1936.
"""

import argparse
import json
from pathlib import Path

import numpy as np


def best_of_rank(a, b, rank):
    """Factors (n, rank) and (rank, m) of the nearest matrix to a @ b, and the share of its squares that is lost."""
    (q, r), (p, s) = np.linalg.qr(a), np.linalg.qr(b.T)
    u, values, v = np.linalg.svd(r @ s.T)
    root = np.sqrt(values[:rank])
    lost = (values[rank:] ** 2).sum() / max((values**2).sum(), 1e-300)
    return (q @ u[:, :rank]) * root, (root[:, None] * v[:rank]) @ p.T, lost


def main():
    ap = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    ap.add_argument("lora", type=Path, help="a folder that a run wrote, in mlx-lm's format")
    ap.add_argument("out", type=Path)
    ap.add_argument("--rank", type=int, required=True)
    args = ap.parse_args()

    from stepaudio.checkpoints.lora import write_lora  # before MLX, so that the package chooses its BLAS

    import mlx.core as mx  # isort: skip

    config = json.loads((args.lora / "adapter_config.json").read_text(encoding="utf-8"))
    stored = mx.load(str(args.lora / "adapters.safetensors"))
    halves = {name: np.array(value.astype(mx.float32), np.float64) for name, value in stored.items()}
    pairs = {}
    for name in sorted(name for name in halves if name.endswith(".lora_a")):
        layer = name.removesuffix(".lora_a")
        a, b, lost = best_of_rank(halves[name], halves[f"{layer}.lora_b"], args.rank)
        pairs[layer] = (mx.array(a.astype(np.float32)), mx.array(b.astype(np.float32)))
        print(f"{lost:7.2%} {layer}")
    write_lora(args.out, pairs, config["lora_parameters"]["scale"], config.get("model"))


if __name__ == "__main__":
    main()
