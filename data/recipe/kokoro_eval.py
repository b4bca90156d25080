"""A small scoring set in voices that are in no training data, spoken by the int8 ONNX export itself.

    python kokoro_eval.py --onnx kokoro_int8.onnx --voices DIR --text eval.jsonl --out DIR

Fifteen different sentences for each of the reserved voices (four English ones, or
with --other three made for other languages), on the CPU, as FLAC, with a
manifest.tsv of file, text, voice and engine.
"""

import argparse
import json
import pathlib
import random

import numpy as np
import onnxruntime
import soundfile
import soxr
from hibari.g2p import G2P

from kokoro_voices import RESERVED, RESERVED_OTHER


def main():
    ap = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    ap.add_argument("--onnx", required=True)
    ap.add_argument("--voices", type=pathlib.Path, required=True)
    ap.add_argument("--vocab", required=True)
    ap.add_argument("--text", required=True)
    ap.add_argument("--out", type=pathlib.Path, required=True)
    ap.add_argument("--other", action="store_true", help="the reserved voices of other languages, not the English ones")
    ap.add_argument("--per-voice", type=int, default=15)
    ap.add_argument("--rate", type=int, default=16000, help="24000 keeps the full band, for scoring token2wav")
    ap.add_argument("--seed", type=int, default=0)
    args = ap.parse_args()

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(args.onnx, options)
    vocab = json.loads(pathlib.Path(args.vocab).read_text(encoding="utf-8"))
    with open(args.text, encoding="utf-8") as f:
        items = [json.loads(line) for line in f]
    # scores of single words are mostly chance: phrases of four words and more
    items = [i for i in items if 4 <= len(i["text"].split()) <= 25]
    random.Random(args.seed).shuffle(items)
    args.out.mkdir(parents=True, exist_ok=True)
    rows = ["file\ttext\tvoice\tengine"]
    for v, voice in enumerate(RESERVED_OTHER if args.other else RESERVED):
        g2p = G2P(british=voice[0] == "b")
        table = np.fromfile(args.voices / f"{voice}.bin", np.float32).reshape(510, 256)
        for item in items[v * args.per_voice : (v + 1) * args.per_voice]:
            ids = [0] + [vocab[p] for p in g2p(item.get("say") or item["text"]) if p in vocab] + [0]
            feed = {"tokens": np.array([ids]), "style": table[None, len(ids) - 3], "speed": np.ones(1, np.float32)}
            audio = session.run(["audio"], feed)[0].reshape(-1)
            audio = soxr.resample(audio, 24000, args.rate) if args.rate != 24000 else audio
            audio *= 0.7 / np.abs(audio).max()
            name = f"{voice}_{item['id']}.flac"
            soundfile.write(args.out / name, audio, args.rate, subtype="PCM_16")
            rows.append(f"{name}\t{item['text']}\t{voice}\tkokoro-int8-onnx")
    (args.out / "manifest.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
