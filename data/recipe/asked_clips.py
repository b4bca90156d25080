"""A few dialogues that were kept back from training, with recordings of what is asked, for `data/asked`.

    python asked_clips.py --dialogues talk/dialogues.jsonl --held held_talk --out ../asked

--held is a folder of `kokoro_eval.py`. Takes the first --number dialogues of each task that are kept back and whose
sentences all have a recording there, whatever a model makes of them. Writes each recording as Ogg Vorbis, and
`dialogues.jsonl`: a line for each dialogue, as `dialogue_texts.py` has it, each sentence of the human with the name of
its `clip` and the `voice`.
"""

import argparse
import collections
import csv
import json
from pathlib import Path

import soundfile


def main():
    ap = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    ap.add_argument("--dialogues", type=Path, required=True)
    ap.add_argument("--held", type=Path, required=True)
    ap.add_argument("--out", type=Path, required=True)
    ap.add_argument("--number", type=int, default=3, help="dialogues of each task")
    args = ap.parse_args()
    with open(args.held / "manifest.tsv", encoding="utf-8") as f:
        clips = {row["text"]: row for row in csv.DictReader(f, delimiter="\t")}
    taken, first = collections.Counter(), set()
    args.out.mkdir(parents=True, exist_ok=True)
    with open(args.out / "dialogues.jsonl", "w", encoding="utf-8") as out:
        for line in args.dialogues.read_text(encoding="utf-8").splitlines():
            dialogue = json.loads(line)
            asked = [turn for turn in dialogue["turns"] if "human" in turn]
            enough = taken[dialogue["task"]] >= args.number or asked[0]["human"] in first
            if not dialogue["held_out"] or enough or not all(turn["human"] in clips for turn in asked):
                continue
            taken[dialogue["task"]] += 1
            first.add(asked[0]["human"])
            for turn in asked:
                row = clips[turn["human"]]
                turn["clip"], turn["voice"] = f"{turn['human'].replace(' ', '_')}.ogg", row["voice"]
                samples, rate = soundfile.read(args.held / row["file"])
                soundfile.write(args.out / turn["clip"], samples, rate, format="OGG", subtype="VORBIS")
            out.write(json.dumps(dialogue, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
