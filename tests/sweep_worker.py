"""A process that sweeps with a fake model, to be killed or doubled by test_sweep. Arguments: grid, store, pause."""

import hashlib
import sys
import time

from stepaudio.experiments.grid import Grid
from stepaudio.experiments.sweep import run_sweep

pause = 0.0  # seconds a run takes


def fake(model, clip, setting, seed):
    """Tokens that follow from clip, setting and seed, as a model's would; long rows, to be torn."""
    time.sleep(pause)
    digest = hashlib.sha256(f"{clip.file.name} {setting.sampling.temperature} {seed}".encode()).digest()
    return {
        "text": "said “" + digest.hex() + "”",
        "ids": [list(digest) * 20],
        "stops": ["eos"],
        "n_ids": 640,
        "words": 9,
        "errors": digest[0] % 9,
        "loops": digest[1] % 2,
        "rep_4": digest[2] / 256,
        "kv_bytes": 512,
    }


def sweep(grid, store, **options):
    return run_sweep(grid, store, run_one=fake, load=lambda grid: None, progress=False, **options)


if __name__ == "__main__":
    pause = float(sys.argv[3])
    table = sweep(Grid.from_file(sys.argv[1]), sys.argv[2])
    print(len(table))
