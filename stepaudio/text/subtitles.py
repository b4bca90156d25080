"""Texts with times as subtitles and tables: SubRip, WebVTT, tab-separated. Plain strings in, one string out."""

from __future__ import annotations

import re
from collections.abc import Iterable

from .scripts import is_unspaced

_TIMES = re.compile(r"\d{2,}:\d\d:\d\d[.,]\d{3} --> \d{2,}:\d\d:\d\d[.,]\d{3}")
WORD_HEAD = "start\tend\tword\tprobability\tdoubt"

Line = tuple[float, float, str]  # start and end in seconds, text


def srt(lines: Iterable[Line]) -> str:
    """SubRip: numbered from 1, comma before the milliseconds. Lines without words are left out.

    >>> print(srt([(0, 1.5, "yes"), (1.5, 2, ""), (3661, 3662.25, "no")]), end="")
    1
    00:00:00,000 --> 00:00:01,500
    yes
    <BLANKLINE>
    2
    01:01:01,000 --> 01:01:02,250
    no
    <BLANKLINE>
    """
    spoken = [line for line in lines if line[2].strip()]
    return "".join(
        f"{i}\n{clock(start, ',')} --> {clock(end, ',')}\n{_cue(text)}\n\n"
        for i, (start, end, text) in enumerate(spoken, 1)
    )


def vtt(lines: Iterable[Line]) -> str:
    """WebVTT (W3C). Lines without words are left out; `&`, `<` and `>` are escaped.

    >>> print(vtt([(0, 1.5, "a < b")]), end="")
    WEBVTT
    <BLANKLINE>
    00:00:00.000 --> 00:00:01.500
    a &lt; b
    <BLANKLINE>
    """
    spoken = [line for line in lines if line[2].strip()]
    cues = "".join(f"{clock(start)} --> {clock(end)}\n{_escaped(_cue(text))}\n\n" for start, end, text in spoken)
    return f"WEBVTT\n\n{cues}"


def tsv(lines: Iterable[Line]) -> str:
    r"""Start and end in milliseconds and the text, tab-separated, under a head; tabs and line breaks become blanks.

    >>> tsv([(0, 1.5, "yes")])
    'start\tend\ttext\n0\t1500\tyes\n'
    """
    rows = "".join(
        f"{round(1000 * start)}\t{round(1000 * end)}\t{' '.join(text.split())}\n" for start, end, text in lines
    )
    return f"start\tend\ttext\n{rows}"


def vtt_words(lines: Iterable[tuple[float, float, list[tuple[float, str, bool]]]]) -> str:
    """WebVTT with the time of each word before it; each word is (start, text, doubtful), doubt being a class.

    >>> print(vtt_words([(0, 1.5, [(0.25, "yes", False), (1, "no", True)])]), end="")
    WEBVTT
    <BLANKLINE>
    00:00:00.000 --> 00:00:01.500
    <00:00:00.250>yes <00:00:01.000><c.doubt>no</c>
    <BLANKLINE>
    """
    cues = ""
    for start, end, words in lines:
        text = last = ""
        for at, word, doubt in words:
            blank = " " if text and not is_unspaced(last[-1:] + word[:1]) else ""
            marked = f"<c.doubt>{_escaped(word)}</c>" if doubt else _escaped(word)
            text, last = f"{text}{blank}<{clock(at)}>{marked}", word
        cues += f"{clock(start)} --> {clock(end)}\n{text}\n\n" if text else ""
    return f"WEBVTT\n\n{cues}"


def tsv_words(words: Iterable[tuple[float, float, str, float, bool]]) -> str:
    r"""Start and end in milliseconds, the word, its probability and a mark of doubt, tab-separated, under a head.

    >>> tsv_words([(0, 1.5, "yes", 0.25, True)])
    'start\tend\tword\tprobability\tdoubt\n0\t1500\tyes\t0.250\t?\n'
    """
    rows = "".join(
        f"{round(1000 * start)}\t{round(1000 * end)}\t{' '.join(text.split())}\t{odds:.3f}\t{'?' if doubt else ''}\n"
        for start, end, text, odds, doubt in words
    )
    return f"{WORD_HEAD}\n{rows}"


def is_srt(text: str) -> bool:
    """Whether a text is nothing but numbered lines with times, as `srt` writes them."""
    cues = [cue.split("\n", 2) for cue in text.strip("\n").split("\n\n")]
    return all(len(cue) == 3 and cue[0] == str(i) and _TIMES.fullmatch(cue[1]) for i, cue in enumerate(cues, 1))


def is_vtt(text: str) -> bool:
    """Whether a text is nothing but lines with times, as `vtt` writes them: no note, no style, no position."""
    head, *cues = text.strip("\n").split("\n\n")
    return head == "WEBVTT" and all(_TIMES.fullmatch(cue.split("\n")[0]) for cue in cues)


def is_tsv(text: str) -> bool:
    """Whether a text is a table as `tsv` writes it."""
    head, *rows = text.rstrip("\n").split("\n")
    kinds = {"start\tend\ttext": r"\d+\t\d+\t[^\t]+", WORD_HEAD: r"\d+\t\d+\t[^\t]+\t[01]\.\d{3}\t\??"}
    return head in kinds and all(re.fullmatch(kinds[head], row) for row in rows)


def clock(seconds: float, point: str = ".") -> str:
    """Hours, minutes, seconds and milliseconds.

    >>> clock(3661.25)
    '01:01:01.250'
    """
    milliseconds = round(1000 * seconds)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{milliseconds // 1000:02}{point}{milliseconds % 1000:03}"


def _cue(text: str) -> str:
    """The text in one paragraph: an empty line would end the cue."""
    return "\n".join(filter(None, (line.strip() for line in text.splitlines())))


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
