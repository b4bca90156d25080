"""Score token2wav, and a model that speaks through it, by what a speech recogniser makes of the sound.

    python speaking_eval.py speak --nets data/nano/token2wav --held held_kokoro --out spoken
    python speaking_eval.py aloud --model data/nano --nets data/nano/token2wav --held held_kokoro --texts eval.jsonl \\
        --out spoken [--audio-penalties '{"frequency": 1.2, "window": 8}']
    python speaking_eval.py read --out spoken --judge whisper-base [--kinds aloud again]

`speak` and `aloud` need this package. The held-out set is a manifest.tsv of file, text and voice, as kokoro_eval.py
--rate 24000 writes it. For each clip `speak` writes the sound of its codes in its own voice, which is read from another
clip of that voice (`codes`), that of its true mel through the vocoder alone (`mel`), the clip itself (`clip`), and a
picture of the mels for the first ones. `aloud` has a model read sentences of a JSONL in the voices of held-out clips
(`aloud`), and say again what such a clip says (`again`). `read` needs faster-whisper and jiwer; it prints the word
error rate of each kind.
"""

import argparse
import csv
import json
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path


def read_manifest(folder: Path) -> list[dict]:
    with open(folder / "manifest.tsv", encoding="utf-8") as f:
        return list(csv.DictReader(f, delimiter="\t"))


def speak(nets: Path, held: Path, out: Path, limit: int, pictures: int, steps: int) -> None:
    import stepaudio  # noqa: F401, I001  (before mlx)
    import mlx.core as mx
    import numpy as np
    import soundfile

    from stepaudio.audio.features import flow_mel, log_mel
    from stepaudio.audio.load import load_audio
    from stepaudio.models.token2wav.flow import FlowOptions
    from stepaudio.synthesis.synthesizer import Synthesizer

    made, rows = Synthesizer.load(nets), read_manifest(held)
    out.mkdir(parents=True, exist_ok=True)
    lines, spent, spoken = [], 0.0, 0.0
    for k, row in enumerate(rows[:: max(1, len(rows) // limit)][:limit]):
        others = [r for r in rows if r["voice"] == row["voice"] and r["file"] != row["file"]]
        sound = load_audio(held / row["file"], to=24_000)
        voice = made.voice(held / others[k % len(others)]["file"])
        codes = made.parts.tokenizer(log_mel(load_audio(held / row["file"]), padding=0)[None])[0]
        began = time.time()
        again = made.decode(codes, voice, options=FlowOptions(n_steps=steps))
        spent, spoken = spent + time.time() - began, spoken + again.seconds
        mel = flow_mel(sound).T
        through, _ = made.parts.hift(mx.array(mel)[None], 0)
        waves = {"clip": sound, "mel": np.array(through)[0], "codes": again.wave}
        for kind, wave in waves.items():
            soundfile.write(out / f"{k:03}_{kind}.wav", wave, 24_000)
        lines.append(
            {
                "k": k,
                "text": row["text"],
                "voice": row["voice"],
                "codes": len(codes),
                "different": len(np.unique(codes)),
            }
        )
        if k < pictures:
            picture(out / f"{k:03}.png", [mel, flow_mel(waves["mel"]).T, again.mel, flow_mel(again.wave).T])
    (out / "spoken.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    print(f"{len(lines)} clips, {spoken:.1f} s spoken, real-time factor {spent / spoken:.2f} with {steps} steps")


def aloud(folder: Path, nets: Path, held: Path, texts: Path, out: Path, limit: int, changes: dict, seed: int) -> None:
    import soundfile

    import stepaudio
    from stepaudio.speech_model import SpeechModel
    from stepaudio.synthesis.synthesizer import Synthesizer

    model = SpeechModel(stepaudio.load(folder), Synthesizer.load(nets))
    rows, sentences = read_manifest(held), [json.loads(s) for s in texts.read_text(encoding="utf-8").splitlines()]
    voices = {}
    for row in rows:
        voices.setdefault(row["voice"], model.synthesizer.voice(held / row["file"]))
    out.mkdir(parents=True, exist_ok=True)
    lines, options = [], {"seed": seed, "max_tokens": 500} | changes
    for k, sentence in enumerate(sentences[:: max(1, len(sentences) // limit)][:limit]):
        name = list(voices)[k % len(voices)]
        row = [row for row in rows if row["voice"] != name][k % (len(rows) - 1) // 2]
        found = {
            "aloud": (
                sentence["text"],
                model.synthesize(sentence.get("say", sentence["text"]), voices[name], **options),
            ),
            "again": (row["text"], model.respond(held / row["file"], voices[name], **options)),
        }
        for kind, (text, spoken) in found.items():
            soundfile.write(out / f"{k:03}_{kind}.wav", spoken.wave, 24_000)
            stops = [str(answer.stop) for answer in spoken.answers]
            lines.append({"k": k, "kind": kind, "text": text, "voice": name, "written": spoken.text, "stops": stops,
                          "codes": spoken.n_codes})  # fmt: skip
            print(json.dumps(lines[-1]), flush=True)
        (out / "spoken.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def picture(path: Path, mels: list) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    _, axes = plt.subplots(len(mels), 1, figsize=(11, 2.2 * len(mels)))
    for axis, mel, title in zip(
        axes,
        mels,
        ("clip", "its mel through the vocoder", "flow's mel of its codes", "that mel through the vocoder"),
        strict=True,
    ):
        axis.imshow(mel.T, origin="lower", aspect="auto", vmin=-11, vmax=2)
        axis.set_title(title, fontsize=8)
    plt.tight_layout()
    plt.savefig(path, dpi=70)
    plt.close()


SPELLINGS = {"mrs": "missus", "mr": "mister", "dr": "doctor", "okay": "ok"}


def plain(text: str) -> str:
    words = re.sub(r"[^a-z' ]", " ", text.lower().replace("-", " ")).split()
    return " ".join(SPELLINGS.get(word, word) for word in words)


def listener(judge: str) -> Callable[[Path], str]:
    """Sound file -> what a faster-whisper model makes of it, as `plain` text without digits."""
    from faster_whisper import WhisperModel

    model = WhisperModel(judge, device="cpu", compute_type="int8", cpu_threads=2)
    vocabulary = model.hf_tokenizer.get_vocab()
    numerals = [i for token, i in vocabulary.items() if re.search(r"^[^<]*\d", token)]  # texts have numbers in words

    def transcript(path: Path) -> str:
        segments, _ = model.transcribe(str(path), language="en", suppress_tokens=[-1, *numerals])
        return plain(" ".join(s.text for s in segments))

    return transcript


def read(out: Path, judge: str, kinds: list[str]) -> None:
    import jiwer

    transcript = listener(judge)
    lines = [json.loads(line) for line in (out / "spoken.jsonl").read_text(encoding="utf-8").splitlines()]
    for kind in kinds:
        hypotheses, wanted = [], [line for line in lines if line.get("kind", kind) == kind]
        for line in wanted:
            hypotheses.append(transcript(out / f"{line['k']:03}_{kind}.wav"))
        wer = jiwer.wer([plain(line["text"]) for line in wanted], hypotheses)
        print(
            f"{kind:6} {100 * wer:5.1f} % of {sum(len(plain(line['text']).split()) for line in wanted)} words", end=""
        )
        for voice in sorted({line["voice"] for line in wanted}):
            pairs = [
                (plain(line["text"]), found)
                for line, found in zip(wanted, hypotheses, strict=True)
                if line["voice"] == voice
            ]
            print(f"  {voice} {100 * jiwer.wer(*map(list, zip(*pairs, strict=True))):.1f}", end="")
        print()
        for line, found in list(zip(wanted, hypotheses, strict=True))[:8]:
            print(f"    {plain(line['text'])}  |  {found}")


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("verb", choices=("speak", "aloud", "read"))
    parser.add_argument("--model", type=Path)
    parser.add_argument("--texts", type=Path)
    parser.add_argument("--temperature", type=float)
    parser.add_argument(
        "--audio-penalties", metavar="JSON", help="of aloud: penalties of audio codes, others as published"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--nets", type=Path)
    parser.add_argument("--held", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--judge", help="folder of a faster-whisper model")
    parser.add_argument("--kinds", nargs="+", default=["clip", "mel", "codes"])
    parser.add_argument("--limit", type=int, default=24)
    parser.add_argument("--pictures", type=int, default=4)
    parser.add_argument("--steps", type=int, default=10)
    args = parser.parse_args()
    changes = {} if args.temperature is None else {"temperature": args.temperature}
    if args.audio_penalties is not None:
        from stepaudio import Penalties, Sampling

        chat = Sampling.reference("chat")
        changes["sampling"] = replace(chat, audio=Penalties(**json.loads(args.audio_penalties)))
    if args.verb == "speak":
        speak(args.nets, args.held, args.out, args.limit, args.pictures, args.steps)
    elif args.verb == "aloud":
        aloud(args.model, args.nets, args.held, args.texts, args.out, args.limit, changes, args.seed)
    else:
        read(args.out, args.judge, args.kinds)


if __name__ == "__main__":
    main()
