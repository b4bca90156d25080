"""Make data/sweeps/long: 160 clips of 20 to 25 s for the stored sweeps, in voices that are in no training data.

120 are continuous speech: prose (the opening of *Alice's Adventures in Wonderland*, public domain, an example of
Debian's flite), dictation and lists; 40 rightly repeat: digits and refrains. Three by three those of continuous speech
follow one another in one voice, so that `join_clips.py --long` makes clips of more than a minute of them. The voices
are four of Kokoro-82M and six variants of espeak-ng, by turns. Stored as Ogg Opus.

Needs torch, soundfile, soxr, hibari-tts, the program espeak-ng and the archive of `kokoro_convert.py`. Clips that are
there already are left as they are, so that a run that was cut off goes on.

    python long_clips.py --kokoro kokoro.npz --voices voices/ --alice /usr/share/doc/flite/examples/alice \
        --words ../nano/words.txt --out ../sweeps/long
"""

import argparse
import os
import re
from random import Random

import numpy as np
import soundfile
import soxr
import torch

import long_texts
from bundled import RATE, Espeak, to_text, trim
from kokoro_model import Kokoro, frame_index
from readers import clauses, sentences

KOKORO = ("am_michael", "bf_emma", "bm_george", "af_nicole")
ESPEAK = ("en-us+Annie", "en-gb+Michael", "en-us+belinda", "en-gb+victor", "en-us+steph2", "en-us+klatt3")
WORDS = {KOKORO: 74, ESPEAK: 60}  # that surely fill a clip at these engines' pace
SHORTEST, LONGEST = 20.0, 25.0  # seconds of a clip
GROUPS = {"prose": 17, "dictation": 8, "lists": 15}  # of three clips that follow one another
APART = {"digits": 20, "refrains": 20}  # clips
SMALL = 0.97  # libsndfile's compression level: 13.5 kbit/s


class Voices:
    """Both engines behind one method; Kokoro is the net of `kokoro_model.py`."""

    def __init__(self, weights, folder):
        from hibari.g2p import G2P

        self.kokoro, self.espeak = Kokoro(weights), Espeak()
        for name in KOKORO:  # which the archive does not hold, as it is made for training
            table = np.fromfile(os.path.join(folder, name + ".bin"), np.float32).reshape(-1, 256)
            self.kokoro.voices[name] = torch.from_numpy(table)
        self.phonemes = {british: G2P(british=british) for british in (False, True)}

    @torch.no_grad()
    def speak(self, sentence, voice):
        """Samples at 16 kHz, silence at both ends cut short."""
        if "+" in voice:
            audio, rate = self.espeak.speak(sentence, voice)
        else:
            ids = self.kokoro.ids(self.phonemes[voice[0] == "b"](sentence))
            style = self.kokoro.style(voice, len(ids))[None]
            frames, pitch, sound = self.kokoro.durations(torch.tensor([ids]), style, torch.ones(1))
            audio = self.kokoro.synthesise(frame_index(frames), style, pitch, sound)[0][0].numpy()
            rate = 24000
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
    """(kind, number, voice, what can be said): one for each clip, in the order of the manifest."""
    book, said = prose(alice, words), long_texts.DICTATION
    dictation = {KOKORO: iter(said + said), ESPEAK: iter(Random(1).sample(said, len(said)) * 2)}
    for kind, groups in GROUPS.items():
        for i in range(3 * groups):
            engine = (KOKORO, ESPEAK)[i // 3 % 2]
            supply = {"prose": book, "dictation": dictation[engine]}.get(kind) or iter(
                long_texts.lists(Random(f"l{i}"))
            )
            yield kind, i, engine[i // 6 % len(engine)], take(supply, WORDS[engine] if kind != "lists" else 65)
    for kind, count in APART.items():
        for i in range(count):
            engine = (KOKORO, ESPEAK)[i % 2]
            yield kind, i, engine[i // 2 % len(engine)], getattr(long_texts, kind)(Random(f"{kind} {i}"))


def fill(say, said, rng):
    """Sentences with pauses until a clip is long enough; (samples, the sentences that found room)."""
    spoken, used, total = [], [], 0.0
    for sentence in said:
        audio, pause = say(sentence), rng.uniform(0.25, 0.6)
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
    for name in ("kokoro", "voices", "alice", "words", "out"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--engine", choices=("kokoro", "espeak"), help="only the clips of one of them")
    args = parser.parse_args()
    os.makedirs(args.out, exist_ok=True)
    with open(args.words, encoding="utf-8") as file:
        words = {line.split()[0] for line in file}
    voices, lines = Voices(args.kokoro, args.voices), []
    for kind, i, voice, said in passages(args.alice, words):
        if args.engine and (args.engine == "espeak") != ("+" in voice):
            continue
        name = f"{kind}_{i:02d}.ogg"
        path, note = os.path.join(args.out, name), os.path.join(args.out, name + ".txt")
        if not os.path.exists(note):
            torch.manual_seed(i)
            audio, used = fill(lambda sentence, voice=voice: voices.speak(sentence, voice), said, Random(f"{kind} {i}"))
            soundfile.write(path, audio.astype(np.float32), RATE, "OPUS", format="OGG", compression_level=SMALL)
            with open(note, "w", encoding="utf-8") as file:
                file.write(f"{name}\t{to_text(used)}\t{kind}\t{voice}\t{len(audio) / RATE:.2f}")
        with open(note, encoding="utf-8") as file:
            lines.append(file.read())
    with open(os.path.join(args.out, "manifest.tsv"), "w", encoding="utf-8") as file:
        file.write("\n".join(["file\ttext\tkind\tvoice\tseconds", *lines]) + "\n")


if __name__ == "__main__":
    main()
