"""Speak a list of sentences with Kokoro-82M on a GPU, in large batches.

    python kokoro_synth.py --weights kokoro.npz --manifest speak.jsonl --out DIR --part 0/3 --deadline 300

Each line of the manifest is {"id", "phonemes", "voice", "speed"}; `voice` is a
name or a mix [["af_bella", 0.6], ["am_adam", 0.4]].  A line may also give
`prosody`, the voice whose timing and melody are taken, `jitter`, the standard
deviation by which the logarithms of lengths differ from the predicted ones, and
whatever `kokoro_model.PLAIN` names.  Process i of n takes every n-th line and
appends to two files of its own:

    kokoro_{i}.pcm    16 kHz mono int16 samples, clip after clip
    kokoro_{i}.jsonl  {"id", "offset", "n_samples", "ids", "durations"} per clip

With --pitch sound stays at 24 kHz, for training token2wav, and a third file
kokoro_{i}.f0 holds the pitch in Hz, float16, one number for every 300 samples (0
where there is none); `person` of the manifest is then kept in each line.

Offsets count samples.  `ids` are the phoneme ids with the silence symbol at both
ends, `durations` their lengths in frames of 25 ms (400 or 600 samples), so the sums
agree: an alignment for free.  A clip's samples are written before its line, so
whatever has a line can be read while the process still runs; a process started
again skips what has one.  Batches of one length come in random order, so that a
stop by `--deadline` leaves out no length more than another.
"""

import argparse
import collections
import json
import math
import pathlib
import random
import time

import torch
import torch.nn.functional as F

import kokoro_model

START = time.monotonic()


class Resampler:
    """24 kHz -> 16 kHz by a windowed sinc (Kaiser, 257 taps): flat to 7.3 kHz, gone at 7.9 kHz."""

    def __init__(self, device, half=128, cutoff=7600.0, beta=8.0):
        t = torch.arange(-half, half + 1, dtype=torch.float64)
        t = torch.stack([t, t - 1.5])  # outputs come in pairs, at input times 3m and 3m + 1.5
        window = torch.special.i0(beta * (1 - (t / (half + 1.5)) ** 2).clamp(min=0).sqrt())
        taps = torch.sinc(2 * cutoff / 24000 * t) * window
        self.taps = (taps / taps.sum(1, keepdim=True)).float()[:, None].to(device)
        self.half = half

    def __call__(self, audio):
        """(B, 3k) -> (B, 2k)"""
        pairs = F.conv1d(F.pad(audio[:, None], (self.half, self.half)), self.taps, stride=3)
        return pairs.transpose(1, 2).flatten(1)


PITCH_HOP = 300  # samples at 24 kHz for each pitch: half a frame


class Writer:
    """The files of one process; a broken tail of an earlier run is cut off."""

    def __init__(self, folder, part, pitch=False):
        folder.mkdir(parents=True, exist_ok=True)
        self.done = set()
        self.offset = 0
        lines = folder / f"kokoro_{part}.jsonl"
        keep = 0
        if lines.exists():
            for line in lines.read_bytes().splitlines(keepends=True):
                if not line.endswith(b"\n"):
                    break
                entry = json.loads(line)
                self.done.add(entry["id"])
                self.offset = entry["offset"] + entry["n_samples"]
                keep += len(line)
        self.lines = open(lines, "ab")
        self.lines.truncate(keep)
        self.pcm = open(folder / f"kokoro_{part}.pcm", "ab")
        self.pcm.truncate(2 * self.offset)
        self.f0 = open(folder / f"kokoro_{part}.f0", "ab") if pitch else None
        if self.f0:
            self.f0.truncate(2 * self.offset // PITCH_HOP)

    def write(self, clips):
        """[(entry, int16 samples, float16 pitch)]"""
        text = []
        for entry, samples, pitch in clips:
            self.pcm.write(samples.tobytes())
            line = {
                "id": entry["id"],
                "offset": self.offset,
                "n_samples": len(samples),
                "ids": entry["ids"],
                "durations": entry["durations"],
            }
            if self.f0:
                self.f0.write(pitch.tobytes())
                line["person"] = entry.get("person", 0)
            text.append(json.dumps(line) + "\n")
            self.offset += len(samples)
        self.pcm.flush()
        if self.f0:
            self.f0.flush()
        self.lines.write("".join(text).encode())
        self.lines.flush()


def groups(items, key, limit):
    """Split into lists of equal key, each no longer than limit(key)."""
    by_key = collections.defaultdict(list)
    for item in items:
        by_key[key(item)].append(item)
    for value, members in sorted(by_key.items()):
        size = max(1, limit(value))
        for k in range(0, len(members), size):
            yield members[k : k + size]


def precise(on):
    """Full float32 products, for the durations; or the faster TF32, ample for sound."""
    torch.backends.cuda.matmul.allow_tf32 = not on
    torch.backends.cudnn.allow_tf32 = not on


def uneven(frames, ids, space, jitter, rng):
    """Lengths in frames, at least 1, varied by word and by sound; `space` is the id between two words."""
    word, out = rng.gauss(0, jitter), []
    for d, i in zip(frames, ids, strict=True):
        if i == space:
            word = rng.gauss(0, jitter)
        out.append(max(1, int(d * math.exp(0.7 * (word + rng.gauss(0, jitter))) + rng.random())))
    return out


def predict(model, entries, step):
    """Adds ids, style, durations and the two text encodings to each entry; lengths become multiples of `step`."""
    for e in entries:
        e["ids"] = model.ids(e["phonemes"])
    usable = [e for e in entries if 3 <= len(e["ids"]) <= 510]
    precise(True)
    for batch in groups(usable, lambda e: len(e["ids"]), lambda n: 30000 // n):
        n = len(batch[0]["ids"])
        styles = torch.stack([model.style(e["voice"], n, e.get("prosody")) for e in batch]).to(model.device)
        ids = torch.tensor([e["ids"] for e in batch], device=model.device)
        speed = torch.tensor([float(e.get("speed", 1.0)) for e in batch], device=model.device)
        frames, for_pitch, for_sound = model.durations(ids, styles, speed)
        for k, (e, d) in enumerate(zip(batch, frames.tolist(), strict=True)):
            if e.get("jitter"):
                d = uneven(d, e["ids"], model.vocab[" "], e["jitter"], random.Random(e["id"]))
            d[-1] += -sum(d) % step  # the last symbol is silence
            e.update(style=styles[k], durations=d, frames=sum(d), for_pitch=for_pitch[k], for_sound=for_sound[k])
    precise(False)
    return usable


def speak(model, resample, batch, noise, peak):
    """Entries of equal length -> [(entry, int16 samples, float16 pitch)]; without `resample` at 24 kHz."""
    pad = torch.nn.utils.rnn.pad_sequence
    durations = pad([torch.tensor(e["durations"]) for e in batch], batch_first=True)
    index = kokoro_model.frame_index(durations).to(model.device)
    manner = {name: [e.get(name, usual) for e in batch] for name, usual in kokoro_model.PLAIN.items()}
    audio, f0 = model.synthesise(
        index,
        torch.stack([e["style"] for e in batch]),
        pad([e["for_pitch"] for e in batch], batch_first=True),
        pad([e["for_sound"] for e in batch], batch_first=True),
        noise,
        manner,
    )
    audio = resample(audio) if resample else audio
    audio = audio * (peak / audio.abs().amax(1, keepdim=True).clamp(min=1e-4))
    samples = (audio * 32767).round().short().cpu().numpy()
    pitch = torch.where(f0 > kokoro_model.UNVOICED, f0, torch.zeros_like(f0)).half().cpu().numpy()
    return list(zip(batch, samples, pitch, strict=True))


def main():
    ap = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    ap.add_argument("--weights", required=True, help="the archive that kokoro_convert.py wrote")
    ap.add_argument("--manifest", required=True)
    ap.add_argument("--out", type=pathlib.Path, required=True)
    ap.add_argument("--part", default="0/1", help="i/n: this process's share")
    ap.add_argument("--deadline", type=float, default=math.inf, help="stop after this many seconds")
    ap.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    ap.add_argument("--block", type=int, default=6000, help="clips whose durations are predicted together")
    ap.add_argument("--batch-frames", type=int, default=12000, help="frames of 25 ms per batch of sound")
    ap.add_argument("--step", type=int, default=8, help="clips are lengthened to a multiple of this many frames")
    ap.add_argument("--noise", type=float, default=1.0, help="random part of the source; 0: as the ONNX export")
    ap.add_argument("--peak", type=float, default=0.7)
    ap.add_argument("--pitch", action="store_true", help="24 kHz, and the pitch beside it")
    ap.add_argument("--seed", type=int, default=0)
    args = ap.parse_args()

    part, parts = map(int, args.part.split("/"))
    if args.device == "cuda":
        count = torch.cuda.device_count()
        args.device = f"cuda:{part % count}"
        # batches of many shapes make the allocator hoard; within a limit it gives back before it fails
        torch.cuda.set_per_process_memory_fraction(min(0.9, 0.9 * count / parts), args.device)
    torch.manual_seed(args.seed * 1000 + part)
    model = kokoro_model.Kokoro(args.weights, args.device)
    resample = None if args.pitch else Resampler(model.device)
    with open(args.manifest, encoding="utf-8") as f:
        entries = [json.loads(line) for k, line in enumerate(f) if k % parts == part]
    writer = Writer(args.out, part, args.pitch)
    entries = [e for e in entries if e["id"] not in writer.done]
    print(
        f"[{part}] {len(entries)} to speak, {len(writer.done)} done before, "
        f"ready after {time.monotonic() - START:.1f} s",
        flush=True,
    )

    first = last = time.monotonic()
    seconds = clips = 0
    finished = True
    for k in range(0, len(entries), args.block):
        block = predict(model, entries[k : k + args.block], args.step)
        batches = list(groups(block, lambda e: e["frames"], lambda n: args.batch_frames // n))
        random.Random(k).shuffle(batches)
        for batch in batches:
            if time.monotonic() - START > args.deadline:
                finished = False
                break
            writer.write(speak(model, resample, batch, args.noise, args.peak))
            clips += len(batch)
            seconds += len(batch) * batch[0]["frames"] * 0.025
            if time.monotonic() - last > 10:
                last = time.monotonic()
                print(
                    f"[{part}] {clips} clips, {seconds / 3600:.2f} h, {seconds / (last - first):.0f} x real time",
                    flush=True,
                )
        for e in entries[k : k + args.block]:
            e.clear()  # frees the encodings
        if not finished:
            break
    spent = max(time.monotonic() - first, 1e-6)
    print(
        f"[{part}] {'finished' if finished else 'stopped'}: {clips} clips, {seconds / 3600:.2f} h, "
        f"{seconds / spent:.1f} x real time, {spent:.0f} s",
        flush=True,
    )


if __name__ == "__main__":
    main()
