"""Make data/sweeps/long: 160 clips of about 19 to 24 s for the stored sweeps, in voices that are in no training data.

120 are continuous speech: prose (the opening of *Alice's Adventures in Wonderland*, public domain, an example of
Debian's flite), dictation and lists; 40 rightly repeat: digits and refrains. Three by three those of continuous speech
follow one another in one voice, so that `join_clips.py --long` makes clips of more than a minute of them. The voices
are the six variants of espeak-ng that training leaves out. Stored as Ogg Opus.

With --short: 480 clips of one sentence each, of the same prose and dictation, which are not stored.

Needs soundfile, soxr and the program espeak-ng. Clips that are there already are left as they are.

    python long_clips.py --alice /usr/share/doc/flite/examples/alice --words ../nano/words.txt --out ../sweeps/long
"""

import argparse
import os
import re
from random import Random

import numpy as np
import soundfile
import soxr

import long_texts
from bundled import RATE, Espeak, to_text, trim
from readers import clauses, sentences

VOICES = ("en-us+Annie", "en-gb+Michael", "en-us+belinda", "en-gb+victor", "en-us+steph2", "en-us+klatt3")
SHORTEST, LONGEST = 20.0, 25.0  # seconds of a clip
GROUPS = {"prose": 17, "dictation": 8, "lists": 15}  # of three clips that follow one another
APART = {"digits": 20, "refrains": 20}  # clips
N_SHORT = 480
SMALL = 0.97  # libsndfile's compression level: 13.5 kbit/s


def say(sentence, voice):
    """Samples at 16 kHz, silence at both ends cut short."""
    audio, rate = Espeak().speak(sentence, voice)
    audio = trim(soxr.resample(audio.astype(np.float32), rate, RATE), RATE)
    return audio * (0.6 / np.abs(audio).max())


def prose(path, words):
    """Clauses of at most 14 words of the book, in order, without those that hold a word nano never heard."""
    with open(path, encoding="utf-8") as file:
        text = re.sub(r"CHAPTER.*|\s\*", "", file.read().split("CHAPTER I:", 1)[1]).replace("`", "")
    rng = Random(0)
    for paragraph in re.split(r"\n\s*\n", text):
        for sentence in sentences(" ".join(paragraph.split())):
            for clause in clauses(sentence, rng, 14):
                clause = re.sub(r"(?<![A-Za-z])'|'(?![A-Za-z])|[()]|--|\b[A-Z]{2,}( A\b)?\b", _plain, clause)
                known = all(word in words for word in to_text([clause]).split())
                if known and 3 <= len(clause.split()) <= 20:
                    yield clause[0].upper() + clause[1:].rstrip(",;: ") + ("" if clause[-1] in ".?!" else ",")


def _plain(match):
    return match[0].lower() if match[0][0].isalpha() else ""


def take(supply, n_words):
    """The next sentences of `supply` that hold at least so many words together."""
    taken = []
    while sum(len(s.split()) for s in taken) < n_words:
        taken.append(next(supply))
    return taken


def passages(alice, words):
    """(kind, number, voice, what can be said): one for each clip, in the order of the manifest.

    Groups take turns: the first of two draws from more words, and its voices go round on their own.
    """
    book, said = prose(alice, words), long_texts.DICTATION
    dictation = iter(said * 2), iter(Random(1).sample(said, len(said)) * 2)
    turns = 0
    for kind, count in {**{kind: 3 * groups for kind, groups in GROUPS.items()}, **APART}.items():
        for i in range(count):
            turn = (i if kind in APART else i // 3) % 2
            voice = VOICES[(i // (2 if kind in APART else 6) if turn else turns // 3) % 6]
            turns += 1 - turn
            if kind in APART:
                yield kind, i, voice, getattr(long_texts, kind)(Random(f"{kind} {i}"))
            elif kind == "lists":
                yield kind, i, voice, take(iter(long_texts.lists(Random(f"l{i}"))), 65)
            else:
                yield kind, i, voice, take(book if kind == "prose" else dictation[turn], 60 if turn else 74)


def short(alice, words):
    """As `passages`, a sentence each: dictation twice, in two voices, and as much of the prose as is wanted."""
    said = [s for s in prose(alice, words) if len(s.split()) > 4]
    for i, sentence in enumerate((long_texts.DICTATION * 2 + said)[:N_SHORT]):
        yield "sentence", i, VOICES[(i + i // 60) % 6], [sentence]


def fill(voice, said, rng):
    """Sentences with pauses until a clip is long enough; (samples, the sentences that found room)."""
    spoken, used, total = [], [], 0.0
    for sentence in said:
        audio, pause = say(sentence, voice), rng.uniform(0.25, 0.6)
        if total + pause + len(audio) / RATE > LONGEST - 0.3:
            continue
        spoken.append((audio, pause))
        used.append(sentence)
        total += pause + len(audio) / RATE
        if total > SHORTEST + 0.8:
            break
    more = max(0.0, SHORTEST + 0.8 - total) / len(spoken)  # where the text was short, the pauses are longer
    return np.concatenate(
        [part for audio, pause in spoken for part in (audio, np.zeros(int((pause + more) * RATE)))][:-1]
    ), used


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    for name in ("alice", "words", "out"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--short", action="store_true")
    args = parser.parse_args()
    os.makedirs(args.out, exist_ok=True)
    with open(args.words, encoding="utf-8") as file:
        words = {line.split()[0] for line in file}
    lines = ["file\ttext\tkind\tvoice\tseconds"]
    for kind, i, voice, said in (short if args.short else passages)(args.alice, words):
        path = os.path.join(args.out, f"{kind}_{i:02d}.ogg")
        audio, used = (say(said[0], voice), said) if args.short else fill(voice, said, Random(f"{kind} {i}"))
        if not os.path.exists(path):
            soundfile.write(path, audio.astype(np.float32), RATE, "OPUS", format="OGG", compression_level=SMALL)
        lines.append(f"{kind}_{i:02d}.ogg\t{to_text(used)}\t{kind}\t{voice}\t{len(audio) / RATE:.2f}")
    with open(os.path.join(args.out, "manifest.tsv"), "w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
