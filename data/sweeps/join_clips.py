"""Make the recordings of the sweeps that follow from the stored clips, or from nothing, and need not be stored.

Without an option: join the clips of `clips/` into longer recordings for the sweep of cache limits.

Sentence k of each kind (plain, digits, repeats) makes a group; the three are joined with pauses of 0.5 s in each of
three rotations, so that every sentence stands once first, once second and once last: 16 groups, 48 recordings of about
9 s. They follow from the clips alone, so they are made anew and not stored.

    python data/sweeps/join_clips.py joined

With --long: the clips of continuous speech in `long/` by threes, with pauses of 0.4 to 1 s: 40 recordings of more than
a minute. With --quiet: 48 recordings in which nobody speaks, 0.5 to 40 s of silence or of faint or loud noise.
"""

import argparse
import csv
from pathlib import Path

import numpy as np

from stepaudio.audio.load import load_audio
from stepaudio.audio.save import save_audio
from stepaudio.experiments.faulty_sound import KINDS

ORDER, N, PAUSE = ("plain", "digits", "repeats"), 16, np.zeros(8000, np.float32)
HERE = Path(__file__).resolve().parent
CLIPS, LONG = HERE / "clips", HERE / "long"
SECONDS = (0.5, 1, 2, 4, 8, 16, 24, 40)
LEVELS = (("silence", 0.0), ("white", 0.001), ("white", 0.01), ("white", 0.1), ("pink", 0.01), ("pink", 0.1))


def texts(folder: Path) -> dict[str, str]:
    """File name -> what is said in it, in the order of the manifest."""
    with open(folder / "manifest.tsv", encoding="utf-8", newline="") as file:
        return {row["file"]: row["text"] for row in csv.DictReader(file, delimiter="\t")}


def join_long(folder: Path) -> list[str]:
    """Three clips that follow one another in one voice, and the next three."""
    text, lines, rng = texts(LONG), [], np.random.default_rng(0)
    names = [name for name in text if not name.startswith(("digits", "refrains"))]
    for k in range(0, len(names), 3):
        parts = []
        for name in names[k : k + 3]:
            parts += [load_audio(LONG / name), np.zeros(rng.integers(6400, 16000), np.float32)]
        save_audio(folder / f"minute_{k // 3:02d}.flac", np.concatenate(parts[:-1]))
        lines.append(f"minute_{k // 3:02d}.flac\t{' '.join(text[name] for name in names[k : k + 3])}")
    return lines


def make_quiet(folder: Path) -> list[str]:
    """Every length in every kind of quiet; levels are root mean squares of full scale."""
    lines = []
    for i, seconds in enumerate(SECONDS):
        for kind, level in LEVELS:
            samples = np.zeros(int(seconds * 16000), np.float32)
            if level:
                made = KINDS[kind](samples, np.random.default_rng(i))
                samples = (made * (level / np.sqrt(np.mean(made**2)))).astype(np.float32)
            name = f"{kind}_{level:g}_{seconds:g}s.flac"
            save_audio(folder / name, samples)
            lines.append(f"{name}\t")
    return lines


def join_short(folder: Path) -> list[str]:
    """Plain, digits and repeats in each of three rotations."""
    text, lines = texts(CLIPS), []
    for k in range(N):
        for turn in range(3):
            names = [f"{kind}_{k:02d}.ogg" for kind in ORDER[turn:] + ORDER[:turn]]
            sounds = [load_audio(CLIPS / name) for name in names]
            joined = np.concatenate([sounds[0], PAUSE, sounds[1], PAUSE, sounds[2]])
            save_audio(folder / f"group{k:02d}_{turn}.flac", joined)
            lines.append(f"group{k:02d}_{turn}.flac\t{' '.join(text[name] for name in names)}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--long", dest="make", action="store_const", const=join_long)
    kind.add_argument("--quiet", dest="make", action="store_const", const=make_quiet)
    parser.set_defaults(make=join_short)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    lines = ["file\ttext", *args.make(args.folder)]
    (args.folder / "manifest.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
