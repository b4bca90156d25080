"""Make data/sweeps/clips: 48 short clips of our own sentences, for the stored sweeps.

A third are plain, a third digit strings, a third phrases that rightly repeat, in the four voices of Kokoro-82M that
no training data holds. They are apart from data/speech, so that what a sweep shows does not rest on the recordings
that everybody looks at. Stored as Ogg Opus. Needs what `bundled.py` needs. Writes clips and manifest.tsv under --out.
"""

import argparse
import os

import numpy as np
import soundfile

from bundled import RATE, Kokoro, read_aloud, to_text

VOICES = ("am_michael", "bf_emma", "bm_george", "af_nicole")
PLAIN = [
    "The baker opens his shop before the sun is up.",
    "We left the old boat under a tree by the lake.",
    "My brother plays the piano better than he thinks.",
    "The last bus to the village goes at half past nine.",
    "She found a letter in the pocket of her coat.",
    "Nobody in the house had heard the door.",
    "It rained so hard that the road was gone by morning.",
    "The doctor asked him to sit down and say nothing.",
    "There is a small bridge behind the school.",
    "They sold the farm and moved to the city.",
    "A black dog was sleeping in front of the fire.",
    "You can see the mountains from my window.",
    "The children were waiting for the snow to stop.",
    "He wrote his name on the first page of the book.",
    "I would like a cup of tea and a piece of bread.",
    "The water in the well is cold even in summer.",
]
DIGITS = [
    "Four four seven one two nine.",
    "Three three three eight five five.",
    "Nine one one, nine one one, two.",
    "Six two six two seven seven.",
    "One two three, one two three, four.",
    "Eight eight zero five zero five.",
    "Five nine one four two six eight.",
    "Two two four four six six.",
    "Seven zero seven zero seven one.",
    "Zero one zero one one one.",
    "Four five six, four five six, nine.",
    "Three one four one five nine.",
    "Eight six seven, five three zero nine.",
    "Six six six one one six.",
    "One nine eight four, one nine eight five.",
    "Two five two five two five eight.",
]
REPEATS = [
    "Very, very, very good.",
    "Ring the bell, ring the bell, ring the bell.",
    "No, no, no, not today.",
    "Come here, come here, come here at once.",
    "I know, I know, I know what you mean.",
    "Round and round and round it goes.",
    "Wait for me, wait for me, please wait for me.",
    "Yes, yes, yes, I will do it.",
    "Up and down and up and down we went.",
    "Never, never, never say that again.",
    "Step by step, day by day, day by day.",
    "Look at the sea, look at the sea, look at the sky.",
    "Good night, good night, good night, my dear.",
    "He said that she said that he said no.",
    "Again and again and again he fell.",
    "Row on row on row of empty chairs.",
]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kokoro", required=True, help="the ONNX model of Kokoro-82M")
    parser.add_argument("--voices", required=True, help="folder of its voices, NAME.bin")
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    os.makedirs(args.out, exist_ok=True)
    engine, lines = Kokoro(args.kokoro, args.voices), ["file\ttext\tvoice\tseconds"]
    for kind, sentences in (("plain", PLAIN), ("digits", DIGITS), ("repeats", REPEATS)):
        for i, sentence in enumerate(sentences):
            voice = VOICES[i % len(VOICES)]
            audio, _ = read_aloud(engine, voice, [sentence], {})
            name = f"{kind}_{i:02d}.ogg"
            soundfile.write(os.path.join(args.out, name), audio.astype(np.float32), RATE, "OPUS", format="OGG")
            lines.append(f"{name}\t{to_text([sentence])}\t{voice}\t{len(audio) / RATE:.2f}")
    with open(os.path.join(args.out, "manifest.tsv"), "w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
