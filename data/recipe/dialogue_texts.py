"""The dialogues that teach a model to talk a little, and the sentences that must be spoken for them.

    python dialogue_texts.py --out DIR --narrated 2000 --seed 1

Needs the package. Writes to DIR `dialogues.jsonl`, which `python -m stepaudio.train speaking --dialogues` reads, and
lists of {"id", "text", "say"}, in which a sentence may come several times, to be spoken by another voice each time:

    requests.jsonl   what the human says, for kokoro_manifest.py and --hearing
    answers.jsonl    what is answered, for kokoro_manifest.py --narrator and --narrator
    held_out.jsonl   what the human says in dialogues that are kept back, each once, for scoring by other voices
    texts.jsonl      all three together, for --texts

A sentence with few others like it ("what is my name") is said in more voices. Of answers with a number and a city there
are more than need be spoken: --narrated of them are.
"""

import argparse
import collections
import json
import pathlib
import random

from stepaudio.train.speaking.grammar import CITIES, NAMES, REMEMBER, THINK, TOOL, dialogues

NUMBERS = {TOOL: 3000, THINK: 8000, REMEMBER: 3000}
HELD_OUT = {TOOL: 300, THINK: 250, REMEMBER: 200}
VOICES = {TOOL: 6, THINK: 2, REMEMBER: 2}  # that say a sentence of a task
QUESTION_VOICES = 80  # that say one which is the same in many dialogues
NAMED = {name: name.capitalize() for name in (*CITIES, *NAMES)}


def as_written(text, asked):
    """A sentence as a person writes it, for whoever reads it aloud."""
    words = [NAMED.get(word, "I" if word == "i" else word) for word in text.split()]
    line = " ".join(words)
    question = asked and words[0] in ("what", "how", "where", "do")
    return line[0].upper() + line[1:] + ("?" if question else ".")


def main():
    ap = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    ap.add_argument("--out", type=pathlib.Path, required=True)
    ap.add_argument("--narrated", type=int, default=2000, help="answers to requests of tools that are spoken, at most")
    ap.add_argument("--seed", type=int, default=1)
    args = ap.parse_args()
    rng = random.Random(args.seed)
    drawn = [
        line
        for held_out, numbers in ((False, NUMBERS), (True, HELD_OUT))
        for task, number in numbers.items()
        for line in dialogues(task, number, args.seed, held_out)
    ]
    requests, held, answers, many = {}, {}, collections.defaultdict(dict), set()
    for line in drawn:
        asked = [turn["human"] for turn in line["turns"] if "human" in turn]
        for k, text in enumerate(asked):
            requests[text] = VOICES[line["task"]]
            if k:
                many.add(text)
            if line["held_out"]:
                held[text] = 1
        for turn in line["turns"]:
            if "answer" in turn:
                answers[line["task"] == TOOL][turn["answer"]] = 1
    requests |= dict.fromkeys(sorted(many), QUESTION_VOICES)
    of_tools = sorted(answers[True])
    rng.shuffle(of_tools)
    narrated = dict.fromkeys([*sorted(answers[False]), *of_tools[: args.narrated]], 1)
    args.out.mkdir(parents=True, exist_ok=True)
    everything = []
    for name, sentences, asked in (
        ("requests", requests, True),
        ("answers", narrated, False),
        ("held_out", held, True),
    ):
        lines = [
            {"id": f"{name[0]}{i:05}.{k}", "text": text, "say": as_written(text, asked)}
            for i, (text, voices) in enumerate(sorted(sentences.items()))
            for k in range(voices)
        ]
        everything += lines
        write(args.out / f"{name}.jsonl", lines)
    write(args.out / "texts.jsonl", everything)
    write(args.out / "dialogues.jsonl", drawn)


def write(path, lines):
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    print(f"{path.name}: {len(lines)}")


if __name__ == "__main__":
    main()
