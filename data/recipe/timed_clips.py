"""Clips whose word times are known by construction: Kokoro-82M says how long each phoneme lasts, then speaks it so.

    python timed_clips.py --weights kokoro.npz --voices DIR --text eval.jsonl --out ../timed

Sentences and voices are ones that nano was not trained on. Writes Ogg Vorbis at 16 kHz, and `words.tsv` with clip,
voice, word, start and end in seconds. Sentences whose phonemes do not part into as many words as
the text has are left out. Punctuation at a word's edge, which is silence, is no part of it.
"""

import argparse
import json
import pathlib
import random

import numpy as np
import soundfile
import torch
from hibari.g2p import G2P

import kokoro_model
import kokoro_synth
from kokoro_voices import RESERVED

FRAME = 0.025  # seconds of a duration
MARKS = set(';:,.!?—…"()“”')


def word_times(phonemes, durations):
    """[(start, end)] in seconds of the words; `durations` in frames, of the phonemes and a pad at both ends."""
    times, at, start, end = [], durations[0], None, 0
    for symbol, length in zip([*phonemes, " "], [*durations[1:-1], 0], strict=True):
        if symbol == " " and start is not None:
            times.append((start * FRAME, end * FRAME))
            start = None
        elif symbol != " " and symbol not in MARKS:
            start, end = at if start is None else start, at + length
        at += length
    return times


def main():
    ap = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    ap.add_argument("--weights", required=True, help="the archive that kokoro_convert.py wrote")
    ap.add_argument("--voices", type=pathlib.Path, required=True, help="the folder of voices, NAME.bin each")
    ap.add_argument("--text", required=True, help="the sentences kept back, as make_text.py writes them")
    ap.add_argument("--out", type=pathlib.Path, required=True)
    ap.add_argument("--per-voice", type=int, default=5)
    ap.add_argument("--words", type=int, nargs=2, default=(5, 14), metavar=("LEAST", "MOST"))
    ap.add_argument("--seed", type=int, default=7)
    args = ap.parse_args()

    torch.manual_seed(args.seed)
    model = kokoro_model.Kokoro(args.weights, "cpu")
    for voice in RESERVED:  # the archive lacks them, so that nothing is trained on them
        table = np.fromfile(args.voices / f"{voice}.bin", np.float32).reshape(510, 256)
        model.voices[voice] = torch.from_numpy(table)
    resample = kokoro_synth.Resampler("cpu")
    with open(args.text, encoding="utf-8") as file:
        items = [json.loads(line) for line in file]
    items = [i for i in items if args.words[0] <= len(i["text"].split()) <= args.words[1]]
    random.Random(args.seed).shuffle(items)
    args.out.mkdir(parents=True, exist_ok=True)
    rows, left = ["clip\tvoice\tword\tstart\tend"], iter(items)
    for voice in RESERVED:
        g2p, made = G2P(british=voice[0] == "b"), 0
        while made < args.per_voice:
            item = next(left)
            phonemes = "".join(p for p in g2p(item.get("say") or item["text"]) if p in model.vocab)
            speed = random.Random(item["id"]).uniform(0.9, 1.2)
            entry = {"id": item["id"], "phonemes": phonemes, "voice": voice, "speed": speed}
            if not kokoro_synth.predict(model, [entry], 8):
                continue
            times, words = word_times(phonemes, entry["durations"]), item["text"].split()
            if len(times) != len(words):
                continue
            name = f"{voice}_{item['id']}.ogg"
            if not (args.out / name).exists():
                _, samples, _ = kokoro_synth.speak(model, resample, [entry], 1.0, 0.7)[0]
                soundfile.write(args.out / name, samples, 16000, format="OGG", subtype="VORBIS")
            rows += [f"{name}\t{voice}\t{w}\t{a:.3f}\t{b:.3f}" for w, (a, b) in zip(words, times, strict=True)]
            made += 1
            print(name, item["text"], flush=True)
    (args.out / "words.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
