"""Score how a model talks: tools, thoughts, what it was told a turn ago, and saying again; by dialogues kept back.

    python dialogue_texts.py --out talk
    python kokoro_eval.py … --text talk/held_out.jsonl --out held_talk --per-voice 25
    python dialogue_eval.py --model ../nano --dialogues talk/dialogues.jsonl --held held_talk --again held_kokoro \\
        --out rows.jsonl

Needs the package; on the CPU. --held and --again are folders with a manifest.tsv of file, text and voice: the first
with sentences of the dialogues, the second with any. Of each task the first --number dialogues are asked whose
sentences have a clip. All is asked through `Conversation.answer`, greedily; an answer is right if its text is the one
of the dialogue, a call if its name and arguments are. A row is written for each question as soon as it is answered,
and those that are there are not asked again. Prints right / total of each kind with the exact 95 % interval:

    call              the right tool with the right arguments
    result, aloud     the answer from a result behind the right call: in writing, opened as speech
    both rounds       from the spoken request to the written answer, the functions of the grammar being called
    thought, behind   the thought of a sum; the answer behind it, written and (behind aloud) opened as speech
    at once           the same sum without a thought
    reply             the answer to what was told
    recalled          the answer a turn later, behind the model's own reply; recalled aloud: both opened as speech
    again             a recording said again: the text of the spoken answer

With --sounds the sounds of spoken answers are kept, each with a text file of the words that should be in it. A judge,
the folder of a faster-whisper model, then transcribes them, and it is counted in how many all words are right:

    python dialogue_eval.py --sounds sounds --judge whisper-base
"""

import argparse
import csv
import json
from collections import defaultdict
from pathlib import Path

KINDS = (
    "call",
    "result",
    "aloud",
    "both rounds",
    "thought",
    "behind",
    "behind aloud",
    "at once",
    "reply",
    "recalled",
    "recalled aloud",
    "again",
)
MOST = 200  # tokens of an answer


def clips_of(folder):
    """text -> recordings of it."""
    found = defaultdict(list)
    with open(folder / "manifest.tsv", encoding="utf-8") as f:
        for row in csv.DictReader(f, delimiter="\t"):
            found[row["text"]].append(folder / row["file"])
    return found


class Asker:
    """Asks a model, and notes what it answered beside what is right; keeps sounds in a folder, if there is one."""

    def __init__(self, model, out, sounds=None):
        self.model, self.path, self.sounds = model, out, sounds
        if sounds is not None:
            from stepaudio.resources import voice_clip
            from stepaudio.synthesis import Synthesizer

            sounds.mkdir(parents=True, exist_ok=True)
            self.synthesizer = Synthesizer.load()
            self.voice = self.synthesizer.voice(voice_clip())
        self.rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()] if out.exists() else []
        self.known = {(row["kind"], row["key"]) for row in self.rows}

    def known_all(self, key, *kinds):
        return all((kind, key) in self.known for kind in kinds)

    def note(self, kind, key, wanted, found, **more):
        if (kind, key) in self.known:
            return
        row = {"kind": kind, "key": key, "right": found == wanted, "wanted": wanted, "found": found, **more}
        self.rows.append(row)
        self.known.add((kind, key))
        with open(self.path, "a", encoding="utf-8") as f:
            f.write(json.dumps(row, ensure_ascii=False) + "\n")

    def answer(self, talk, **how):
        return talk.answer(self.model, sampling="greedy", max_tokens=MOST, **how)

    def aloud(self, kind, key, wanted, spoken, **more):
        """Note a spoken answer by its text, and keep its sound with the words that should be heard."""
        self.note(kind, key, wanted, text_of(spoken), codes=len(spoken.codes), **more)
        if self.sounds is not None and spoken.codes:
            from stepaudio.audio.save import save_audio

            made = self.synthesizer.decode(spoken.codes, self.voice, noise=0)
            path = self.sounds / f"{kind} - {key.replace(' | ', ' - ')}.wav"
            save_audio(path, made.wave, made.sample_rate)
            path.with_suffix(".txt").write_text(wanted + "\n", encoding="utf-8")


def text_of(answer):
    return answer.text.strip()


def ask_tool(asker, dialogue, clips, key):
    from stepaudio.conversation import Conversation
    from stepaudio.train.speaking.dialogues import call_tokens
    from stepaudio.train.speaking.grammar import TOOLS, said

    request, call, result, answer = dialogue["turns"]
    if asker.known_all(key, "call", "result", "aloud", "both rounds"):
        return
    tools = [TOOLS[name] for name in dialogue["tools"]]
    asked = Conversation(tools=tools).ask(audio=clips[request["human"]][0])
    whole = asker.answer(asked, tools=tools)
    calls = [turn.calls for turn in whole.turns if getattr(turn, "calls", ())]
    made = [[c.name, dict(c.arguments)] if hasattr(c, "name") else [c.text] for c in (calls[0] if calls else ())]
    asker.note("call", key, [[call["call"], call["arguments"]]], made, text=whole.last.text)
    wanted = said(call["call"], call["arguments"], TOOLS[call["call"]](**call["arguments"]))
    asker.note("both rounds", key, wanted, text_of(whole.last))
    tokens = call_tokens(call["call"], call["arguments"], asker.model.tokenizer)
    behind = asked.say_tokens(tokens, spoken=False).give(result["result"])
    asker.note("result", key, answer["answer"], text_of(asker.answer(behind).last))
    asker.aloud("aloud", key, answer["answer"], asker.answer(behind, spoken=True).last)


def ask_sum(asker, dialogue, clips, key):
    from stepaudio.conversation import Conversation

    request, answer = dialogue["turns"]
    if asker.known_all(key, "thought", "behind", "behind aloud", "at once"):
        return
    asked = Conversation().ask(audio=clips[request["human"]][0])
    last = asker.answer(asked, think=True, think_tokens=MOST).last
    asker.note("thought", key, answer["thought"], last.thought)
    asker.note("behind", key, answer["answer"], text_of(last))
    spoken = asker.answer(asked, think=True, think_tokens=MOST, spoken=True).last
    asker.aloud("behind aloud", key, answer["answer"], spoken)
    asker.note("at once", key, answer["answer"], text_of(asker.answer(asked, think=False).last))


def ask_twice(asker, dialogue, clips, key):
    from stepaudio.conversation import Conversation

    told, reply, question, answer = dialogue["turns"]
    if asker.known_all(key, "reply", "recalled", "recalled aloud"):
        return
    for spoken, kind in ((False, "recalled"), (True, "recalled aloud")):
        talk = asker.answer(Conversation().ask(audio=clips[told["human"]][0]), spoken=spoken)
        if not spoken:
            asker.note("reply", key, reply["answer"], text_of(talk.last))
        talk = asker.answer(talk.ask(audio=clips[question["human"]][-1]), spoken=spoken)
        note = asker.aloud if spoken else lambda *row: asker.note(*row[:3], text_of(row[3]))
        note(kind, key, answer["answer"], talk.last)


def ask_again(asker, text, clip, key):
    from stepaudio.conversation import Conversation
    from stepaudio.evaluation.word_errors import count_errors

    if asker.known_all(key, "again"):
        return
    last = asker.answer(Conversation().ask(audio=clip), spoken=True).last
    words, errors = count_errors(text, last.text)
    asker.aloud("again", key, text, last, words=words, errors=errors)


def report(rows):
    from stepaudio.evaluation.limits import exact_interval

    for kind in KINDS:
        some = [row for row in rows if row["kind"] == kind]
        if some:
            right = sum(row["right"] for row in some)
            low, high = exact_interval(right, len(some), 0.95)
            print(f"{kind:15} {right:4} / {len(some):<4} {right / len(some):6.1%}  ({low:.1%} to {high:.1%})")
    again = [row for row in rows if row["kind"] == "again"]
    if again:
        words, errors = (sum(row[name] for row in again) for name in ("words", "errors"))
        print(f"again: {errors} of {words} words wrong, {errors / words:.1%}")


def hear(sounds, judge):
    """Print, for each kind of spoken answer, in how many sounds a judge transcribes every word right."""
    from speaking_eval import listener, plain
    from stepaudio.evaluation.limits import exact_interval
    from stepaudio.evaluation.word_errors import count_errors

    transcript, counts = listener(judge), defaultdict(list)
    for path in sorted(sounds.glob("*.wav")):
        wanted, found = plain(path.with_suffix(".txt").read_text(encoding="utf-8")), transcript(path)
        for kind in (path.stem.split(" - ")[0], "all"):
            counts[kind].append(count_errors(wanted, found))
        if wanted != found:
            print(f"    {wanted}  |  {found[:200]}")
    for kind, some in counts.items():
        right = sum(errors == 0 for _, errors in some)
        low, high = exact_interval(right, len(some), 0.95)
        words, errors = (sum(each[k] for each in some) for k in (0, 1))
        print(f"{kind:15} {right:4} / {len(some):<4} {right / len(some):6.1%}  ({low:.1%} to {high:.1%})", end="")
        print(f"  {errors} of {words} words wrong")


def main():
    ap = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    ap.add_argument("--model", type=Path)
    ap.add_argument("--lora", help="folder of a LoRA to put on it, or the name of one in the model's folder")
    ap.add_argument("--dialogues", type=Path)
    ap.add_argument("--held", type=Path)
    ap.add_argument("--again", type=Path)
    ap.add_argument("--number", type=int, default=24, help="of each task, at most")
    ap.add_argument("--out", type=Path)
    ap.add_argument("--sounds", type=Path, help="folder for the sounds of spoken answers, in the default voice")
    ap.add_argument("--judge", help="folder of a faster-whisper model, to transcribe these sounds")
    args = ap.parse_args()
    if args.judge:
        if not args.sounds:
            ap.error("--judge: needs --sounds, the folder with what it is to transcribe")
        hear(args.sounds, args.judge)
        return
    if not all((args.model, args.dialogues, args.held, args.out)):
        ap.error("expected --model, --dialogues, --held and --out, or --sounds and --judge")

    import stepaudio
    from stepaudio.train.speaking.dialogues import read_dialogues
    from stepaudio.train.speaking.grammar import REMEMBER, THINK, TOOL

    model = stepaudio.load(args.model, lora=args.lora).altered(
        prompt_cache=stepaudio.PromptCache()
    )  # most prompts begin alike
    asker, clips = Asker(model, args.out, args.sounds), clips_of(args.held)
    asked = defaultdict(int)
    first = set()
    for dialogue in read_dialogues(args.dialogues):
        sentences = [turn["human"] for turn in dialogue["turns"] if "human" in turn]
        task = dialogue["task"]
        enough = asked[task] >= args.number or sentences[0] in first
        if not dialogue["held_out"] or enough or not all(text in clips for text in sentences):
            continue
        first.add(sentences[0])
        asked[task] += 1
        {TOOL: ask_tool, THINK: ask_sum, REMEMBER: ask_twice}[task](asker, dialogue, clips, " | ".join(sentences))
    if args.again:
        some = [(text, path) for text, paths in clips_of(args.again).items() for path in paths]
        for text, path in some[:: max(1, len(some) // args.number)][: args.number]:
            ask_again(asker, text, path, path.name)
    report(asker.rows)


if __name__ == "__main__":
    main()
