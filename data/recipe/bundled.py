"""Make the recordings that are bundled with the project: a few human clips and clips of our own.

The human clips are five sentences of a LibriVox reading (public domain), from Debian's pocketsphinx-testdata. The
others say sentences written for this, in voices that are in no training data: four of Kokoro-82M (Apache-2.0) and
a variant of espeak-ng. Two clips are not at 16 kHz mono, so that reading them exercises resampling and mixing down.

Needs numpy, soundfile, soxr, onnxruntime, hibari-tts (for the phonemes that Kokoro takes) and the program
espeak-ng. Writes the clips, manifest.tsv and README.md under --out.
"""

import argparse
import importlib.resources
import json
import os
import re
import subprocess
import tempfile

import numpy as np
import soundfile
import soxr

RATE = 16000
COLUMNS = ("file", "text", "seconds", "voice", "engine", "licence", "kind")

LONG = [
    "The road to the lighthouse is narrow, and in winter it is often closed.",
    "Every evening the keeper climbs one hundred and twelve steps, lights the lamp, and writes the hour in a heavy "
    "green book.",
    "Ships pass far out at sea, and he never learns their names.",
    "On clear nights he counts them, one after another, until the cold drives him back to the stove.",
]
VERY_LONG = [
    "Good morning, and welcome to the museum of bridges.",
    "This tour has five rooms and lasts about an hour.",
    "In the first room you will find models made of paper, string, and matches.",
    "Some of them were built by children, and one was built by a famous engineer when he was only nine.",
    "The second room is about stone.",
    "An arch of stone needs no mortar at all, because its own weight holds every block in place.",
    "In the third room there are ropes, chains, and cables, and you may try how much each of them can carry.",
    "Please do not climb on the railing.",
    "The fourth room tells of bridges that fell, and of what people learned from them.",
    "The last room looks out over the river, where the old iron bridge still carries two trains a day.",
    "Listen for a moment, and you may hear the rails begin to sing before the engine comes in sight.",
    "If you have any questions, ask the woman in the blue coat.",
    "Thank you, and mind the step.",
]

# name, voice, the sentences, and how they are joined and stored
CLIPS = [
    (
        "free_michael",
        "am_michael",
        ["The ferry to the island leaves at noon, so bring a coat and something warm to drink."],
        {},
    ),
    ("free_emma", "bf_emma", ["My grandmother kept every letter in a tin box beneath the stairs."], {}),
    ("free_nicole", "af_nicole", ["Please read the second page again, a little more slowly."], {}),
    (
        "free_george_8k",
        "bm_george",
        ["Nobody could say when the clock in the tower had last told the truth."],
        {"rate": 8000},
    ),
    (
        "free_michael_44k_stereo",
        "am_michael",
        ["Turn left after the bakery, and you will see the station in front of you."],
        {"rate": 44100, "stereo": True},
    ),
    ("free_belinda", "en-us+belinda", ["The green bicycle by the gate belongs to my cousin."], {}),
    ("digits_george", "bm_george", ["Seven oh four, nine nine two, three one zero eight."], {}),
    (
        "repeat_michael",
        "am_michael",
        ["No, no, no, it is far, far away. Knock, knock, knock. And again, and again, and again."],
        {},
    ),
    ("word_emma", "bf_emma", ["Lantern."], {}),
    ("long_george", "bm_george", LONG, {"pause": 0.45}),
    ("long_emma", "bf_emma", VERY_LONG, {"pause": 1.0}),
]


class Kokoro:
    """Kokoro-82M through its ONNX export."""

    licence = "CC0 (model Apache-2.0)"

    def __init__(self, model, voices):
        import onnxruntime
        from hibari.g2p import G2P

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        vocabulary = importlib.resources.files("hibari") / "assets" / "vocab.json"
        self.vocabulary = json.loads(vocabulary.read_text(encoding="utf-8"))
        self.phonemes = {british: G2P(british=british) for british in (False, True)}
        self.folder = voices

    def speak(self, sentence, voice):
        phonemes = self.phonemes[voice[0] == "b"](sentence)
        ids = [self.vocabulary[p] for p in phonemes if p in self.vocabulary]
        styles = np.fromfile(os.path.join(self.folder, voice + ".bin"), np.float32).reshape(-1, 1, 256)
        feeds = {
            "tokens": np.asarray([[0, *ids, 0]], np.int64),
            "style": styles[len(ids) - 1],
            "speed": np.ones(1, np.float32),
        }
        return self.session.run(None, feeds)[0].ravel(), 24000


class Espeak:
    """The program espeak-ng."""

    licence = "CC0"

    def speak(self, sentence, voice):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "clip.wav")
            subprocess.run(["espeak-ng", "-v", voice, "-s", "150", "-w", path, sentence], check=True)
            return soundfile.read(path, dtype="float32")


def trim(audio, rate, keep=0.12):
    """Cut the silence at both ends down to `keep` seconds."""
    loud = np.flatnonzero(np.abs(audio) > 0.01 * np.abs(audio).max())
    return audio[max(0, loud[0] - int(keep * rate)) : loud[-1] + int(keep * rate)]


def to_text(sentences):
    """What a recogniser should write: lower case, no punctuation."""
    line = re.sub(r"[^a-z' ]", " ", " ".join(sentences).lower())
    return " ".join(line.split())


def noise(kind, seconds, rng):
    """White or pink noise with an RMS of 0.05."""
    white = rng.standard_normal(int(seconds * RATE))
    if kind == "pink":
        spectrum = np.fft.rfft(white)
        white = np.fft.irfft(spectrum / np.sqrt(np.maximum(np.arange(len(spectrum)), 1)))
    return (0.05 * white / white.std()).astype(np.float32)


def read_aloud(engine, voice, sentences, how):
    """(samples, rate) of one clip, as `how` says: seconds of `pause` between sentences, stored `rate`, `stereo`."""
    rate, pieces = how.get("rate", RATE), []
    for sentence in sentences:
        if pieces:
            pieces.append(np.zeros(int(how.get("pause", 0) * rate), np.float32))
        audio, own = engine.speak(sentence, voice)
        pieces.append(trim(soxr.resample(audio.astype(np.float32), own, rate), rate))
    audio = np.concatenate(pieces)
    audio = audio * (0.6 / np.abs(audio).max())
    return (np.stack([audio, 0.7 * audio], axis=1) if how.get("stereo") else audio), rate


README = """# Recordings

Short clips for the tests and the examples. `manifest.tsv` names for each its text (lower case, no
punctuation; empty where nobody speaks), seconds, voice, engine, licence, and whether a person speaks.

| clips | what | licence |
|---|---|---|
| `human_*` | a LibriVox volunteer reads Jane Austen, *Sense and Sensibility*, chapter 1; from Debian's \
pocketsphinx-testdata | public domain |
| `*_michael*`, `*_emma`, `*_george*`, `*_nicole` | Kokoro-82M, voices am_michael, bf_emma, bm_george, \
af_nicole | Apache-2.0 model; the sound is ours, CC0 |
| `free_belinda` | espeak-ng, en-us with the variant belinda; the program is GPL-3, what it says is not bound \
by it | ours, CC0 |
| `silence`, `noise_*` | made by a program | ours, CC0 |

The sentences of all but the human clips were written for this project. Everything is FLAC, 16 kHz mono,
but `free_george_8k` (8 kHz) and `free_michael_44k_stereo` (44.1 kHz, two channels, the second 0.7 times the
first). None of these voices is in the training data. `../recipe/bundled.py` made this folder.
"""


class Shelf:
    """The folder being filled, and the rows of its manifest."""

    def __init__(self, folder):
        self.folder, self.rows = folder, []
        os.makedirs(folder, exist_ok=True)

    def store(self, name, audio, rate, text, voice, engine, licence, kind):
        path = os.path.join(self.folder, name + ".flac")
        soundfile.write(path, audio, rate, subtype="PCM_16", compression_level=1.0)
        self.rows.append((name + ".flac", text, f"{len(audio) / rate:.2f}", voice, engine, licence, kind))

    def close(self):
        with open(os.path.join(self.folder, "manifest.tsv"), "w", encoding="utf-8") as file:
            for row in (COLUMNS, *self.rows):
                file.write("\t".join(row) + "\n")
        with open(os.path.join(self.folder, "README.md"), "w", encoding="utf-8") as file:
            file.write(README)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kokoro", required=True, help="the ONNX model of Kokoro-82M")
    parser.add_argument("--voices", required=True, help="folder of its voices, NAME.bin")
    parser.add_argument(
        "--human", required=True, help="folder of pocketsphinx-testdata's librivox clips and their transcription"
    )
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    shelf = Shelf(args.out)

    with open(os.path.join(args.human, "transcription"), encoding="utf-8") as file:
        for text, name in re.findall(r"<s> (.*?) </s> \((.*?)\)", file.read()):
            audio, rate = soundfile.read(os.path.join(args.human, name + ".wav"), dtype="int16")
            shelf.store("human_" + name[-4:], audio, rate, text, "LibriVox reader", "human", "public domain", "human")

    engines = {"kokoro": Kokoro(args.kokoro, args.voices), "espeak-ng": Espeak()}
    for name, voice, sentences, how in CLIPS:
        engine = "espeak-ng" if "+" in voice else "kokoro"
        audio, rate = read_aloud(engines[engine], voice, sentences, how)
        shelf.store(name, audio, rate, to_text(sentences), voice, engine, engines[engine].licence, "synthetic")

    rng = np.random.default_rng(3)
    shelf.store("silence", np.zeros(3 * RATE, np.float32), RATE, "", "-", "-", "CC0", "synthetic")
    for kind in ("white", "pink"):
        shelf.store("noise_" + kind, noise(kind, 3, rng), RATE, "", "-", "-", "CC0", "synthetic")
    shelf.close()


if __name__ == "__main__":
    main()
