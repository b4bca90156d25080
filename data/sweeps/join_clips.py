"""Join the clips of `clips/` into longer recordings for the sweep of cache limits.

Sentence k of each kind (plain, digits, repeats) makes a group; the three are joined with pauses of 0.5 s in each of
three rotations, so that every sentence stands once first, once second and once last: 16 groups, 48 recordings of about
9 s. They follow from the clips alone, so they are made anew and not stored.

    python data/sweeps/join_clips.py joined
"""

import csv
import sys
from pathlib import Path

import numpy as np

from stepaudio.audio.load import load_audio
from stepaudio.audio.save import save_audio

KINDS, N, PAUSE = ("plain", "digits", "repeats"), 16, np.zeros(8000, np.float32)
CLIPS = Path(__file__).resolve().parent / "clips"


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with open(CLIPS / "manifest.tsv", encoding="utf-8", newline="") as file:
        text = {row["file"]: row["text"] for row in csv.DictReader(file, delimiter="\t")}
    lines = ["file\ttext"]
    for k in range(N):
        for turn in range(3):
            names = [f"{kind}_{k:02d}.ogg" for kind in KINDS[turn:] + KINDS[:turn]]
            sounds = [load_audio(CLIPS / name) for name in names]
            joined = np.concatenate([sounds[0], PAUSE, sounds[1], PAUSE, sounds[2]])
            save_audio(folder / f"group{k:02d}_{turn}.flac", joined)
            lines.append(f"group{k:02d}_{turn}.flac\t{' '.join(text[name] for name in names)}")
    (folder / "manifest.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
