"""Examples of speaking: the grammar of the engine's own prompts and answers, and what a batch makes of it."""

import corpora
import numpy as np
import pytest

from stepaudio.choices import StopReason
from stepaudio.decoding.generate import Run
from stepaudio.decoding.outputs import CODES, MARKER, TEXT, answer_of
from stepaudio.errors import DataError
from stepaudio.text.prompts import ASR_SYSTEM, DEFAULT_SYSTEM, READ_ALOUD
from stepaudio.train.batches import token_spans
from stepaudio.train.corpus import AnswerEncoder
from stepaudio.train.speaking import examples
from stepaudio.train.speaking.examples import Batches, listening, reading, reading_prompts, sounds_of, spoken_answer


def spoken(words, text="the cat sat", n_codes=14, seed=0):
    codes = np.random.default_rng(seed).integers(0, 6561, n_codes)
    return words.encode(" " + text), codes, spoken_answer(words.encode(" " + text), codes, words)


@pytest.mark.parametrize("n_codes", [14, 16, 60, 5])
def test_a_spoken_answer_is_read_back_by_the_parser_of_answers(words, n_codes):
    _, codes, answer = spoken(words, n_codes=n_codes)
    found = answer_of(Run(tuple(map(int, answer)), (0.0,) * len(answer), StopReason.EOS), words)
    assert (found.text, found.codes, found.kind) == (" the cat sat", tuple(codes), "spoken")
    assert answer[-1] in words.eos_ids and answer[-2] == words.tts_end and found.n_padding == 0


def test_four_codes_follow_each_text_token_and_its_place_when_the_text_is_done(words):
    text, _, answer = spoken(words, n_codes=len(words.encode(" the cat sat")) * 4 + 7)
    pieces = answer_of(Run(tuple(map(int, answer)), (0.0,) * len(answer), StopReason.EOS), words).pieces
    sizes = [(p.kind, len(p.tokens)) for p in pieces]
    n = len(text)
    assert sizes == [(TEXT, 1), (CODES, 4)] * n + [(MARKER, 1), (CODES, 4), (MARKER, 1), (CODES, 3), (MARKER, 1)]
    assert pieces[2 * n].tokens == pieces[2 * n + 2].tokens == (words.tts_pad,)


def test_prompts_say_what_the_reference_s_examples_say(words):
    """Spelled out by hand: the turns of its reading, its spoken and its transcribing example."""
    opened = "<|BOT|>assistant\n"
    (read,) = reading_prompts(["What is the time?"], words)
    assert words.decode(read) == (
        f"<|BOT|>system\n{READ_ALOUD}<|EOT|><|BOT|>human\nWhat is the time?<|EOT|>{opened}<tts_start>"
    )
    audio = "<audio_start>" + "<audio_patch>" * 3 + "<audio_end>"
    for is_spoken, system, tail in ((True, DEFAULT_SYSTEM, "<tts_start>"), (False, ASR_SYSTEM, "")):
        example = listening([(7, 3), (20, 2)], is_spoken, np.array([1]), words)
        whole = f"<|BOT|>system\n{system}<|EOT|><|BOT|>human\n{audio}<|EOT|>{opened}{tail}"
        assert words.decode(example.prompts[0]) == whole
        assert [prompt[at - 1] for prompt, ((at, _, _),) in zip(example.prompts, example.slots, strict=True)] == (
            [words.audio_start] * 2
        )
        assert [slot[1:] for (slot,) in example.slots] == [(7, 3), (20, 2)]


@pytest.fixture
def few(words):
    text, _, answer = spoken(words)
    plain = np.array([*text, words.eot], np.int16)
    prompts = reading_prompts(["the cat sat", "The cat sat."], words)
    heard = [(100, 5), (200, 9)]
    return [
        reading(prompts, answer),
        listening(heard, True, answer, words),
        listening(heard, False, plain, words),
    ]


def test_a_batch_asks_for_answers_and_for_nothing_else(words, few):
    batches = Batches(few, words, 128 * 40, seed=1, noisy=False)
    names, found = ("inputs", "place", "labels", "weight"), [batches(step) for step in range(8)]
    assert {batch["inputs"].shape for batch in found} == {(40, 128)}
    seen = set()
    for inputs, place, labels, weight in (row for b in found for row in zip(*(b[k] for k in names), strict=True)):
        assert np.array_equal(inputs[1:], labels[:-1])
        asked = weight > 0
        example = next(e for e in few if len(e.answer) == asked.sum() and np.array_equal(labels[asked], e.answer)
                       and (place.max() >= 0) == bool(e.slots[0]))  # fmt: skip
        seen.add(example.task)
        at = int(np.flatnonzero(asked)[0])
        assert any(np.array_equal(inputs[: at + 1], prompt) for prompt in example.prompts)
        here = np.flatnonzero(place >= 0)
        assert np.array_equal(here, np.flatnonzero(inputs == words.audio_patch))
        if len(here):
            first = 100 if len(here) == 5 else 200
            assert np.array_equal(place[here], first + np.arange(len(here))) and len(here) in (5, 9)
        text = asked & (labels < words.text_limit)
        assert np.allclose(weight[text], examples.TEXT_WEIGHTS[example.task]) and (weight[asked & ~text] == 1).all()
    assert seen == {examples.READ, examples.REPEAT, examples.TRANSCRIBE}


def test_noise_is_in_the_answers_inputs_alone(words, few):
    clean, noisy = (Batches(few[:2], words, 128 * 300, seed=1, noisy=n)(0) for n in (False, True))
    for name in ("place", "labels", "weight"):
        assert np.array_equal(clean[name], noisy[name]), name
    other = clean["inputs"] != noisy["inputs"]
    within = np.pad(clean["weight"] > 0, ((0, 0), (1, 0)))[:, :-1]  # the inputs that are tokens of answers
    assert not (other & ~within).any()
    first = words.first_audio_code
    codes = within & (clean["inputs"] >= first)
    assert abs(other[codes].mean() - examples.WRONG_CODES - examples.WRONG_DIGITS) < 0.02
    a, b = (x["inputs"][codes & other] - first for x in (clean, noisy))
    assert b.min() >= 0 and b.max() < 6561
    digits = [np.array([np.base_repr(v, 3).zfill(8)[-8:] for v in x]) for x in (a, b)]
    wrong = np.array([sum(p != q for p, q in zip(x, y, strict=True)) for x, y in zip(*digits, strict=True)])
    share = examples.WRONG_DIGITS / (examples.WRONG_CODES + examples.WRONG_DIGITS)
    assert abs((wrong == 1).mean() - share) < 0.1
    markers = within & np.isin(clean["inputs"], [words.tts_pad, words.tts_end])
    assert markers.any() and not other[markers].any()


def test_the_tokens_to_keep_are_those_of_transcripts(words, few):
    batch = Batches(few, words, 128 * 50, seed=1)(0)
    for keep, labels, asked in zip(batch["keep"], batch["labels"], batch["weight"] > 0, strict=True):
        transcript = not (labels[asked] >= words.first_audio_code).any()
        assert np.array_equal(keep, asked & transcript)
    assert batch["keep"].any() and not batch["keep"].any(1).all()


def test_the_step_decides_the_batch(words, few):
    a, b = (Batches(few, words, 512, seed=1) for _ in range(2))
    for step in range(3):
        one, two = a(step), b(step)
        assert all(np.array_equal(one[name], two[name]) for name in one)
    assert any(not np.array_equal(a(0)["labels"], a(step)["labels"]) for step in (1, 2))


def test_examples_that_are_too_long_are_left_out(words, few):
    with pytest.raises(DataError, match="no example"):
        Batches(few, words, 512, seed=1, lengths=(8,))


def test_sounds_are_those_of_the_middle_of_each_code(words):
    """Frame by frame: a phoneme of the durations sounds two frames, 50 ms, before its place."""
    encode = AnswerEncoder(words)
    clip = corpora.clip_lines(5, seconds=0.8)[4]
    clip = {"text": clip["text"], "phonemes": clip["ids"], "frames": clip["durations"], "tokens": encode(clip["text"])}
    answer = spoken_answer(clip["tokens"], np.arange(20), words)
    phonemes, spoken = sounds_of(clip, answer, encode, words)
    frames = [p for p, n in zip(clip["phonemes"], clip["frames"], strict=True) for _ in range(n)]
    spans, at = token_spans(clip, encode), 0
    for token, phoneme, text in zip(answer, phonemes, spoken, strict=True):
        if token < words.first_audio_code:
            assert phoneme == text == 0
            continue
        frame = (at + 0.5) * 40 / 25 + 2
        assert phoneme == frames[min(int(frame), len(frames) - 1)] + 1
        said = [int(t) + 1 for t, first, stop in spans if first <= frame < stop]
        assert text == (said[0] if said else 0)
        at += 1
    assert at == 20 and set(spoken) - {0} <= {t + 1 for t in clip["tokens"]} and spoken.any()


def test_sounds_stand_beside_the_codes_they_name(words):
    _, codes, answer = spoken(words)
    sounds = np.where(answer >= words.first_audio_code, np.arange(2 * len(answer)).reshape(2, -1) + 1, 0)
    example = reading(reading_prompts(["the cat sat"], words), answer, sounds.astype(np.int16))
    batch = Batches([example], words, 128, seed=0)(0)
    named = batch["phonemes"][0] > 0
    assert np.array_equal(batch["labels"][0][named], codes + words.first_audio_code)
    assert np.array_equal(batch["phonemes"][0][named], sounds[0][sounds[0] > 0])
    assert np.array_equal(batch["spoken"][0][named], sounds[1][sounds[1] > 0])
