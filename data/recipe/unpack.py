"""Decode a speech pack (index.jsonl + pack-*.bin of Ogg Opus clips) into the training corpus form.

    python unpack.py PACK_FOLDER OUT_FOLDER [--workers 8]

One NAME.pcm and NAME.jsonl per pack file, 16 kHz mono int16; packs are decoded side by side.
"""

import argparse
import io
import json
import multiprocessing
from pathlib import Path

import soundfile as sf
import soxr


def decode(job) -> int:
    """Decode one pack (its path, its lines of the index, the folder to write to); returns samples written."""
    pack, lines, out = job
    data, offset = pack.read_bytes(), 0
    with open(out / f"{pack.stem}.pcm", "wb") as pcm, open(out / f"{pack.stem}.jsonl", "w") as index:
        for line in lines:
            blob = data[line["offset"] : line["offset"] + line["length"]]
            samples, rate = sf.read(io.BytesIO(blob), dtype="float32")
            samples = soxr.resample(samples, rate, 16_000) if rate != 16_000 else samples
            words = (samples.clip(-1, 1) * 32767).astype("<i2")
            pcm.write(words.tobytes())
            entry = {"id": line["id"], "offset": offset, "n_samples": len(words), "text": line["text"]}
            index.write(json.dumps(entry) + "\n")
            offset += len(words)
    return offset


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("packs", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--workers", type=int, default=8)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    by_pack: dict[str, list] = {}
    for text in (options.packs / "index.jsonl").read_text().splitlines():
        line = json.loads(text)
        by_pack.setdefault(line["pack"], []).append(line)
    jobs = [
        (options.packs / name, lines, options.out) for name, lines in by_pack.items() if (options.packs / name).exists()
    ]
    with multiprocessing.Pool(options.workers) as pool:
        total = sum(pool.map(decode, jobs, chunksize=1))
    print(f"{total / 16_000 / 3600:.2f} h from {len(jobs)} packs")


if __name__ == "__main__":
    main()
