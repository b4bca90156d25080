"""Make the texts that the training speech of nano is spoken from.

A line of the result has two forms. `say` is what a speech engine is given: cased, punctuated, numbers
already spelled. `text` is what the recogniser must write: lower case, the letters a to z and the
apostrophe, single spaces. `text` is always computed from `say`, so the two cannot disagree.

Sources are files that the caller names (every one is optional):

  --tatoeba TSV      english, other, split; rows whose split is "eval" feed the evaluation texts only
  --wordnet DIR      data.noun, data.verb, data.adj, data.adv: quoted examples and glosses
  --gcide FILE       dictionary text (gzip or plain): its quotations
  --rdata FILE:LIST  the string vectors of an R data base (.rdb), LIST the 0-based ones wanted, as 0,1,4
  --prose FILE       plain text, paragraphs apart by empty lines; may be given several times
  --verses JSONL     objects with a "text"
  --plays FILE       plays; stage directions, headings and speakers' names are dropped
  --fortunes FILE    sayings divided by lines of "%"; the attribution is dropped
  --words FILE       list of English words, one a line; a prose line with a word outside it is dropped
  --frequent FILE    English words, most frequent first: for word salads and single words
  --forbid TSV       a table whose column "text" must not come back: no line may share six words in
                     a row with it, nor equal a line of it

What needs no file is made by the grammar below: everyday sentences, strings of digits, and phrases that
rightly repeat.

Writes train.jsonl, eval.jsonl ({id, text, say, source} a line) and words.txt (word, tab, count over the
training texts) under --out. The same arguments and files give the same result.
"""

import argparse
import collections
import hashlib
import json
import os
import random
import re

from phrases import digits, grammar, repeats
from readers import from_fortunes, from_gcide, from_plays, from_prose, from_rdata, from_wordnet
from spelling import ONES, to_say, to_text

WANTED = {
    "rdata": 12000,
    "prose": 1200,
    "verses": 5000,
    "plays": 4000,
    "wordnet-example": 8000,
    "wordnet-gloss": 2500,
    "gcide": 4500,
    "fortunes": 1500,
    "grammar": 8000,
    "digits": 6000,
    "repeats": 2500,
    "words": 4000,
}


def six_grams(text, n=6):
    words = text.split()
    return {" ".join(words[i : i + n]) for i in range(len(words) - n + 1)}


class Collector:
    """Keeps lines that are well formed, new, and not among the forbidden ones."""

    def __init__(self, known, forbidden):
        self.known, self.forbidden = known, set(forbidden)
        self.grams = set().union(*(six_grams(text) for text in forbidden)) if forbidden else set()
        self.seen, self.lines = set(), []

    def add(self, raw, source, checked=True, low=3, high=25, again=False):
        """Take a raw line in; true if it was kept. `checked`: its words must be known ones."""
        say = to_say(raw)
        text = to_text(say) if say else ""
        words = text.split()
        if not low <= len(words) <= high or len(text) > 170:
            return False
        if text in self.forbidden or (text in self.seen and not again) or self.grams & six_grams(text):
            return False
        if checked and self.known and not all(word in self.known for word in words):
            return False
        if checked and sum(len(word) == 1 and word not in "aio" for word in words):
            return False
        self.seen.add(text)
        self.lines.append({"text": text, "say": say, "source": source})
        return True

    def fill(self, makes, source, want, **rules):
        """Add lines of an iterable until `want` of them were kept."""
        kept = 0
        for raw in makes:
            if kept >= want:
                break
            kept += self.add(raw, source, **rules)
        return kept


def salads(words, rng, each):
    """Lines of 3 to 10 random words in which every word comes up `each` times."""
    deck = []
    for _ in range(each):
        turn = words[:]
        rng.shuffle(turn)
        deck += turn
    at = 0
    while at < len(deck):
        size = rng.randint(3, 10)
        yield " ".join(deck[at : at + size])
        at += size


def forever(make, *args):
    while True:
        yield make(*args)


def read(path, encoding="utf-8"):
    with open(path, encoding=encoding, errors="replace") as file:
        return file.read()


class Maker:
    """One run: the options, the texts gathered so far, and how many came from where."""

    def __init__(self, args):
        self.args, self.counts, self.rng = args, {}, random.Random(args.seed)
        self.want = WANTED | {name: int(n) for name, n in (item.split("=") for item in args.want)}
        self.known = self._known_words()
        forbidden = self._forbidden()
        self.train, self.evaluation = Collector(self.known, forbidden), Collector(self.known, forbidden)

    def _known_words(self):
        listed = read(self.args.words).split() if self.args.words else ()
        known = {word.lower() for word in listed if word.islower() or word.istitle()}
        if known:
            known.update(["mister", "missus", "tis", "twas", "o'clock", "thou'rt", "i'm", "i've", "i'll", "i'd"])
        return known

    def _forbidden(self):
        if not self.args.forbid:
            return []
        rows = [line.split("\t") for line in read(self.args.forbid).splitlines()]
        column = rows[0].index("text")
        forbidden = [to_text(row[column]) for row in rows[1:]]
        return [text for text in forbidden if len(text.split()) > 2]  # lone digits are no secret

    def tatoeba(self):
        """The evaluation texts first: whatever they hold is then kept out of training."""
        everyday = {"train": [], "eval": []}
        for row in read(self.args.tatoeba).splitlines()[1:] if self.args.tatoeba else ():
            english, _, split = row.split("\t")
            if re.match(r"^[A-Za-z0-9' ,.;:!?$%\"’‘“”-]+$", english):
                everyday[split].append(english)
        rng, evaluation = random.Random(self.args.seed + 1), self.evaluation
        held = everyday["eval"][:]
        rng.shuffle(held)
        evaluation.fill(held, "tatoeba", 220)
        evaluation.fill(forever(grammar, rng), "grammar", 90)
        evaluation.fill(forever(digits, rng), "digits", 50, checked=False, low=3)
        short = [line["say"] for line in evaluation.lines[:200] if len(line["text"].split()) < 8]
        evaluation.fill(forever(repeats, rng, short or ["It is late."]), "repeats", 40, checked=False, low=2)
        self.train.forbidden |= evaluation.seen | {to_text(to_say(line) or "") for line in everyday["eval"]}
        self.rng.shuffle(everyday["train"])
        self.counts["tatoeba"] = self.train.fill(everyday["train"], "tatoeba", 10**9, low=1)

    def take(self, name, lines, **rules):
        """Add as many of these lines as are wanted of the source, in random order."""
        lines = list(lines)
        self.rng.shuffle(lines)
        kept = self.train.fill(lines, name, self.want[name.split(":")[0]], **rules)
        self.counts[name] = self.counts.get(name, 0) + kept

    def books(self):
        args, rng = self.args, self.rng
        for item in args.rdata:
            path, _, wanted = item.partition(":")
            texts = from_rdata(path, {int(n) for n in wanted.split(",")} if wanted else {0})
            package = os.path.basename(os.path.dirname(os.path.dirname(path)))
            self.take("rdata:" + package, (line for text in texts for line in from_prose(text, rng)))
        for path in args.prose:
            self.take("prose:" + os.path.basename(path), from_prose(read(path), rng))
        if args.verses:
            rows = read(args.verses).splitlines()
            self.take("verses", (line for row in rows for line in from_prose(json.loads(row)["text"], rng)))
        if args.plays:
            self.take("plays", (line for path in args.plays for line in from_plays(read(path), rng)))
        if args.wordnet:
            pairs = list(from_wordnet(args.wordnet))
            self.take("wordnet-example", (line for kind, line in pairs if kind == "wordnet-example"))
            self.take("wordnet-gloss", (line for kind, line in pairs if kind == "wordnet-gloss"), low=4)
        if args.gcide:
            self.take("gcide", from_gcide(args.gcide, rng))
        if args.fortunes:
            self.take("fortunes", (line for path in args.fortunes for line in from_fortunes(read(path), rng)))

    def made_up(self):
        train, rng, want, counts = self.train, self.rng, self.want, self.counts
        counts["grammar"] = train.fill(forever(grammar, rng), "grammar", want["grammar"], checked=False)
        counts["digits"] = 0
        for word in [*ONES[:10], "oh"]:
            counts["digits"] += train.fill([word] * 30, "digits", 30, checked=False, low=1, again=True)
        rest = want["digits"] - counts["digits"]
        counts["digits"] += train.fill(forever(digits, rng), "digits", rest, checked=False, low=2)
        plain = [
            line["say"] for line in train.lines if line["source"] == "tatoeba" and 2 <= len(line["text"].split()) <= 8
        ]
        makes = forever(repeats, rng, plain or ["It is late."])
        counts["repeats"] = train.fill(makes, "repeats", want["repeats"], checked=False, low=2)

    def words(self):
        """Word salads, single words and pairs of words."""
        train, rng, known, want = self.train, self.rng, self.known, self.want["words"]
        words = [
            word
            for word in read(self.args.frequent).split()
            if re.match(r"^[a-z]+('[a-z]+)?$", word)
            and re.search(r"[aeiouy]", word)
            and (len(word) > 2 or word in {"a", "i", "o"} or word in known)
            and (not known or word in known)
        ]
        common = words[:12000]
        self.counts["salad"] = train.fill(salads(common, rng, 4), "salad", 10**9, checked=False)
        singles = common[:3000] + rng.sample(words[3000:20000], min(1500, max(0, len(words) - 3000)))
        rng.shuffle(singles)
        kept = train.fill(singles, "words", want * 6 // 10, low=1, high=1)
        pairs = (rng.choice(common[:4000]) + " " + rng.choice(common[:4000]) for _ in range(10**6))
        self.counts["words"] = kept + train.fill(pairs, "words", want - kept, low=2, high=2)

    def write(self):
        train, evaluation, out = self.train.lines, self.evaluation.lines, self.args.out
        for line in train + evaluation:  # old spellings: to-day, to-morrow, to-night
            line["say"] = re.sub(r"\b([Tt]o)-(day|morrow|night)\b", r"\1\2", line["say"])
            line["text"] = to_text(line["say"])
        self.rng.shuffle(train)
        os.makedirs(out, exist_ok=True)
        for name, lines in (("train", train), ("eval", evaluation)):
            with open(os.path.join(out, name + ".jsonl"), "w", encoding="utf-8") as file:
                for number, line in enumerate(lines):
                    file.write(json.dumps({"id": f"{name[0]}{number:06d}", **line}) + "\n")
        tally = collections.Counter(word for line in train for word in line["text"].split())
        with open(os.path.join(out, "words.txt"), "w", encoding="utf-8") as file:
            for word, count in sorted(tally.items(), key=lambda item: (-item[1], item[0])):
                file.write(f"{word}\t{count}\n")
        digest = hashlib.sha256(read(os.path.join(out, "train.jsonl")).encode()).hexdigest()[:12]
        print(json.dumps(self.counts), "train", len(train), "eval", len(evaluation), "words", len(tally), digest)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("tatoeba", "wordnet", "gcide", "verses", "words", "frequent", "forbid"):
        parser.add_argument("--" + name)
    for name in ("prose", "plays", "fortunes", "rdata"):
        parser.add_argument("--" + name, action="append", default=[])
    parser.add_argument("--out", required=True)
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--want", action="append", default=[], metavar="SOURCE=N", help="lines wanted of a source")
    maker = Maker(parser.parse_args())
    maker.tatoeba()
    maker.books()
    maker.made_up()
    if maker.args.frequent:
        maker.words()
    maker.write()


if __name__ == "__main__":
    main()
