"""Sentences out of the sources: prose, plays, R data, WordNet, GCIDE, sayings. Each reader yields raw lines."""

import gzip
import os
import re
import zlib

ABBREVIATIONS = re.compile(r"\b(Mr|Mrs|Dr|St|Messrs|Esq|Capt|Col|Gen|Lt|Rev|Hon|vol|viz|etc|[A-Z])\.$")


def sentences(paragraph):
    """Cut a paragraph at the ends of its sentences."""
    start = 0
    for match in re.finditer(r"[.!?;]['\"”’)]*\s+", paragraph):
        piece = paragraph[start : match.end()].strip()
        if ABBREVIATIONS.search(piece):
            continue
        yield piece
        start = match.end()
    if paragraph[start:].strip():
        yield paragraph[start:].strip()


def clauses(sentence, rng, most=25):
    """Cut a sentence at its commas into readings of at most `most` words, of varied length."""
    if len(sentence.split()) <= rng.choice((12, 18, most)):
        return [sentence]
    parts, current, goal = [], [], rng.randint(4, 20)
    for piece in re.split(r"(?<=[,:;])\s+|\s*--\s*", sentence):
        length = len(piece.split())
        if current and (
            sum(len(p.split()) for p in current) + length > most or sum(len(p.split()) for p in current) >= goal
        ):
            parts.append(" ".join(current))
            current, goal = [], rng.randint(4, 20)
        current.append(piece)
    if current:
        parts.append(" ".join(current))
    return parts


def from_prose(text, rng):
    """Readings from running text whose paragraphs are apart by empty lines."""
    start = re.search(r"\*\*\* ?START OF.*\n", text)
    end = re.search(r"\*\*\* ?END OF|End of (the )?Project Gutenberg", text)
    text = text[start.end() if start else 0 : end.start() if end else len(text)]
    for paragraph in re.split(r"\r?\n\s*\r?\n", text):
        paragraph = " ".join(paragraph.split())
        if len(paragraph.split()) < 4 or paragraph.isupper():
            continue
        for sentence in sentences(paragraph):
            yield from clauses(sentence, rng)


def from_plays(text, rng):
    """Readings from a play: its verse lines and sentences, without directions and headings."""
    text = re.sub(r"\[[^\]]*\]|_[^_]*_", " ", text)
    paragraphs = []
    for block in re.split(r"\r?\n\s*\r?\n", text):
        lines = [line.strip() for line in block.splitlines() if line.strip()]
        if len(lines) < 2 or not re.match(r"^[A-Z][A-Za-z ]{1,20}\.$", lines[0]):
            continue
        paragraphs.append(" ".join(lines[1:]))
    yield from from_prose("\n\n".join(paragraphs), rng)


def from_rdata(path, wanted):
    """The string vectors of an R data base: each a text whose elements are its lines."""
    with open(path, "rb") as file:
        blob = file.read()
    at = number = 0
    while at < len(blob):
        stream = zlib.decompressobj()
        data = stream.decompress(blob[at + 4 :])
        at = len(blob) - len(stream.unused_data)
        if number in wanted:
            lines, i = [], 0
            while True:
                header = re.compile(rb"\0[\0\4\x08][\0\x80]\t").search(data, i)  # of one string
                if not header or header.end() + 4 > len(data):
                    break
                i = header.end() + 4
                size = max(int.from_bytes(data[i - 4 : i], "big", signed=True), 0)
                lines.append(data[i : i + size].decode("utf-8", "replace"))
                i += size
            yield "\n".join(lines)
        number += 1


def from_wordnet(folder):
    """Quoted examples, and glosses that read as phrases: (kind, raw line)."""
    for name in ("noun", "verb", "adj", "adv"):
        with open(os.path.join(folder, "data." + name), encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith("  ") or "|" not in line:
                    continue
                gloss = line.split("|", 1)[1].strip()
                for example in re.findall(r'"([^"]+)"', gloss):
                    yield "wordnet-example", re.sub(r"^`|'$", "", example)
                first = re.split(r'[;"]', gloss)[0].strip()
                if "(" not in first:
                    yield "wordnet-gloss", first


def from_gcide(path, rng):
    """The dictionary's quotations: blocks that end in a deeply indented "--Author"."""
    opener = gzip.open if path.endswith((".gz", ".dz")) else open
    with opener(path, "rt", encoding="utf-8", errors="replace") as file:
        block = []
        for line in file:
            stripped = line.strip()
            if line.startswith("         ") and not stripped.startswith("--"):
                block.append(re.sub(r"\s+--[A-Z].*$", "", stripped))
                if " --" not in line:
                    continue
                ends = True
            else:
                ends = stripped.startswith("--") and len(stripped) > 4
            if ends and block:
                yield from from_prose(re.sub(r"[{}]", "", " ".join(block)), rng)
            block = []


def from_fortunes(text, rng):
    """Sayings, without who said them; conversations and verse forms fall out at the word check."""
    for saying in text.split("\n%\n"):
        saying = re.split(r"\n\s*-- ", saying)[0]
        if saying.count("\n") < 6 and "\n\t" not in saying:
            yield from from_prose(saying, rng)
