"""Answers as records: every token in one part, padding counted and not synthesised."""

import pytest
import tiny

from stepaudio.decoding.generate import Run
from stepaudio.decoding.outputs import CODES, MARKER, PADDING, TEXT, answer_of, interleave
from stepaudio.text.tokenizer import N_AUDIO_TOKENS, Tokenizer


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    """All audio tokens, padding included."""
    return Tokenizer.train(tiny.SENTENCES, 300, n_audio=N_AUDIO_TOKENS)


def audio(words, *codes) -> list[int]:
    return [words.first_audio_code + c for c in codes]


def test_text_and_codes_in_order(words):
    the, cat = words.encode("the"), words.encode(" cat")
    tokens = [words.tts_start, *the, *audio(words, 3, 6560), *cat, *audio(words, 6561, 6655, 0), words.tts_end]
    parts = interleave(tokens, words)
    assert [(p.kind, p.text, p.codes) for p in parts] == [
        (MARKER, "", ()), (TEXT, "the", ()), (CODES, "", (3, 6560)), (TEXT, " cat", ()), (PADDING, "", ()),
        (CODES, "", (0,)), (MARKER, "", ()),
    ]  # fmt: skip
    assert [i for p in parts for i in p.tokens] == tokens
    assert all(tuple(tokens[p.start : p.start + len(p.tokens)]) == p.tokens for p in parts)
    found = answer_of(Run(tuple(tokens), (0.0,) * len(tokens), "length"), words)
    assert (found.text, found.codes, found.n_padding, found.kind) == ("the cat", (3, 6560, 0), 2, "spoken")
    written = found.text_only()
    assert (written.codes, written.kind, written.tokens, written.n_padding) == ((), "text", tuple(tokens), 2)


def test_a_character_spread_over_two_pieces_stays_one(words):
    """Its bytes are tokens of their own, with a code between them."""
    first, *rest = (words.id(c) for c in "\u00e4\u00bd\u0142")  # how byte-level BPE writes the three bytes of U+4F60
    parts = interleave([first, *audio(words, 5), *rest], words)
    assert [p.text for p in parts] == ["", "", "\u4f60"]
    cut_off = interleave([*words.encode("the"), first, *audio(words, 5)], words)
    assert [p.text for p in cut_off] == ["the\ufffd", ""]


@pytest.mark.parametrize(
    ("tokens", "kind"), [((), "empty"), (("eot",), "empty"), ((" ",), "empty"), (("the",), "text")]
)
def test_answers_without_codes(words, tokens, kind):
    known = [words.eot if i == "eot" else words.encode(i)[0] for i in tokens]
    stop = "eos" if "eot" in tokens else "length"
    found = answer_of(Run(tuple(known), (0.0,) * len(known), stop), words)
    assert (found.kind, found.codes, found.n_padding) == (kind, (), 0)


def test_padding_alone_is_empty(words):
    found = answer_of(Run(tuple(audio(words, 6561, 6600)), (0.0, 0.0), "length"), words)
    assert (found.kind, found.codes, found.n_padding, found.text) == ("empty", (), 2, "")
