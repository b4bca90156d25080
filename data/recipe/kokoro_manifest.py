"""Give each sentence a voice, a speed and its phonemes: the list that kokoro_synth.py speaks.

    python kokoro_manifest.py --text train.jsonl --out speak.jsonl --hours 30 --seed 1

Reads lines of {"id", "text"}; `say`, where present, is the spelling to be read
aloud (with capitals and punctuation) while `text` is the transcript, and `voice`
and `speed` may be set beforehand.  Writes {"id", "text", "phonemes", "voice",
"prosody", "speed"} and what `pick_manner` draws, shuffled, and stops at an
estimated number of hours.  Phonemes come from the `hibari` package, British ones
where British voices prevail.

A recogniser must understand far more people than there are voices (`kokoro_voices.py`).
Styles are vectors, so a combination of two or three voices speaks as somebody
new, and some lie beyond a voice, away from another.  Every second clip has its
timing and melody from elsewhere than its timbre.  Its pitch is then moved, its
melody and its energy flattened or exaggerated, the length of its words and sounds
varied, its voice made breathy or rough, one sound made to run into the next, and
its sounds are moved towards what people say: they are far less even, and far less
distinct, than a synthesiser that reads a dictionary's phonemes.

Training token2wav wants the opposite: clear speech, much of it from each voice, and
each voice known by name. With --persons N there are N fixed voices (`persons`), each
line says whose it is ("person": 0 ... N - 1), and nothing is careless.

Teaching the decoder to speak wants one voice (--narrator NAME) that says each
sentence as it always would: codes then follow from the words. With --first it says
those first that another manifest has too, so that what is heard there can be said
again.
"""

import argparse
import json
import math
import random

from kokoro_voices import VOICES
from ways_of_speaking import as_people_say

SECONDS_PER_PHONEME = 0.068  # with the pads' silence, at speed 1; only for --hours


def pick_voice(rng):
    """A name (one clip in three), or a mix of two or three [[name, weight], ...]."""
    count = rng.choices((1, 2, 3), (0.33, 0.42, 0.25))[0]
    names = []
    while len(names) < count:
        name = rng.choices(list(VOICES), list(VOICES.values()))[0]
        if name not in names:
            names.append(name)
    if count == 1:
        return names[0]
    if count == 2 and rng.random() < 0.3:
        beyond = round(rng.uniform(0.1, 0.5), 3)
        return [[names[0], 1 + beyond], [names[1], -beyond]]
    shares = [rng.gammavariate(1.5, 1.0) * VOICES[n] for n in names]
    return [[n, round(s / sum(shares), 3)] for n, s in zip(names, shares, strict=True)]


def pick_speed(rng):
    """0.8 .. 1.3, most near 1."""
    speed = rng.uniform(0.8, 1.3) if rng.random() < 0.2 else rng.gauss(1.02, 0.08)
    return round(min(max(speed, 0.8), 1.3), 2)


def pick_manner(rng):
    """What `kokoro_model.PLAIN` names, and the unevenness of lengths: how one person, in one mood, speaks."""
    manner = {
        "pitch": min(max(math.exp(rng.gauss(0, 0.15)), 0.7), 1.45),
        "spread": rng.uniform(0.5, 1.6),
        "jitter": rng.uniform(0, 0.3),
        "energy": rng.uniform(0.5, 1.6),
    }
    if rng.random() < 0.45:
        manner["blur"] = rng.uniform(0.4, 1.7)
    if rng.random() < 0.25:
        manner["breath"] = math.exp(rng.uniform(0, 4))
    if rng.random() < 0.25:
        manner["rough"] = rng.uniform(0.01, 0.15)
    return {name: round(value, 3) for name, value in manner.items()}


def persons(count, rng):
    """`count` fixed voices, {"voice", "pitch"}: every single one, then mixtures, moved in pitch too."""
    found = [{"voice": name, "pitch": 1.0} for name in VOICES][:count]
    while len(found) < count:
        voice = pick_voice(rng)
        if not isinstance(voice, str):
            found.append({"voice": voice, "pitch": round(min(max(math.exp(rng.gauss(0, 0.1)), 0.8), 1.25), 3)})
    return found


def clear_manner(rng):
    """Livelier or calmer than the network would say it, but as clear."""
    return {
        "spread": round(rng.uniform(0.7, 1.4), 3),
        "jitter": round(rng.uniform(0, 0.12), 3),
        "energy": round(rng.uniform(0.7, 1.3), 3),
    }


def is_british(voice):
    mix = [[voice, 1.0]] if isinstance(voice, str) else voice
    return sum(w if name[0] == "b" else -w for name, w in mix) > 0


def check_voice(voice):
    for name, _ in [[voice, 1.0]] if isinstance(voice, str) else voice:
        if name not in VOICES:
            raise SystemExit(f"voice {name!r} is not one of the training voices: {' '.join(sorted(VOICES))}")
    return voice


def main():
    ap = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    ap.add_argument("--text", required=True, nargs="+", help="JSONL files of {id, text}")
    ap.add_argument("--out", required=True)
    ap.add_argument("--hours", type=float, default=float("inf"), help="stop at about this much speech")
    ap.add_argument("--max-phonemes", type=int, default=250)
    ap.add_argument("--persons", type=int, default=0, help="so many fixed voices, speaking clearly")
    ap.add_argument("--narrator", help="this voice alone, in its plain manner and at its own speed")
    ap.add_argument("--first", help="a manifest whose sentences come first")
    ap.add_argument("--seed", type=int, default=0)
    args = ap.parse_args()

    from hibari.g2p import G2P

    readers = {british: G2P(british=british) for british in (False, True)}
    rng = random.Random(args.seed)
    known = persons(args.persons, rng)
    lines = []
    for path in args.text:
        with open(path, encoding="utf-8") as f:
            lines += f.readlines()
    rng.shuffle(lines)
    if args.first:
        with open(args.first, encoding="utf-8") as f:
            early = {json.loads(line)["id"] for line in f}
        lines.sort(key=lambda line: json.loads(line)["id"] not in early)
    seconds = written = 0
    with open(args.out, "w", encoding="utf-8") as out:
        for line in lines:
            item = json.loads(line)
            if known:
                who = rng.randrange(len(known))
                item, manner = item | known[who], {"person": who, "pitch": known[who]["pitch"]} | clear_manner(rng)
            if args.narrator:
                item, manner = item | {"voice": args.narrator, "speed": 1.0}, {}
            voice = check_voice(item.get("voice") or pick_voice(rng))
            speed = item.get("speed") or pick_speed(rng)
            phonemes = readers[is_british(voice)](item.get("say") or item["text"])
            if not known and not args.narrator:
                phonemes = as_people_say(phonemes, rng)
                manner = pick_manner(rng) | ({"prosody": pick_voice(rng)} if rng.random() < 0.5 else {})
            if not 1 <= len(phonemes) <= args.max_phonemes:
                continue
            out.write(
                json.dumps(
                    {
                        "id": item["id"],
                        "text": item["text"],
                        "phonemes": phonemes,
                        "voice": voice,
                        "speed": speed,
                        **manner,
                    },
                    ensure_ascii=False,
                )
                + "\n"
            )
            written += 1
            seconds += (len(phonemes) + 2) * SECONDS_PER_PHONEME / speed
            if seconds > args.hours * 3600:
                break
    print(f"{written} sentences, about {seconds / 3600:.1f} h")


if __name__ == "__main__":
    main()
